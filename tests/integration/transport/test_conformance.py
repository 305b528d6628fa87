"""What every road promises: who is linked, what arrives, what is bounded, and what comes back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from roads import Road
from tls_peers import Recorder, free_port, until

from edgepool.config import Limits
from edgepool.errors import LocalError
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member
from edgepool.transport.pauses import Pauses

PATIENCE_S = 60.0


async def test_two_peers_link_and_talk(road: Road) -> None:
    lathe = road.peer("lathe-1", machine_type="turning")
    cell = road.peer("cell coordinator/1", role="coordinator")
    async with lathe as a, cell as b:
        a.transport.want(b.member)
        a.transport.want(a.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        assert b.seen.linked[a.peer] == a.certificate
        assert a.seen.linked[b.peer].name == "cell coordinator/1"
        assert a.seen.linked[b.peer].role == "coordinator"
        assert b.seen.linked[a.peer].machine_type == "turning"
        assert a.transport.send(b.peer, b"to b")
        assert b.transport.send(a.peer, b"to a")
        assert not a.seen.frames, "the handler is never called from within send"
        await until(lambda: a.seen.frames and b.seen.frames, PATIENCE_S)
        assert a.seen.frames == [(b.peer, b"to a")]
        assert b.seen.frames == [(a.peer, b"to b")]
        assert not a.transport.send(PeerId("nobody"), b"lost")
        assert a.counters == {"dropped_no_link": 1}
        assert b.counters == {}


async def test_a_mesh_has_one_link_for_each_pair(road: Road) -> None:
    peers = [road.peer(f"m{i}") for i in range(3)]
    for peer in peers:
        await peer.start()
    try:
        for peer in peers:
            for other in peers:
                peer.transport.want(other.member)
        await until(lambda: all(p.linked_to(*(o for o in peers if o is not p)) for p in peers), PATIENCE_S)
        for peer in peers:
            assert sorted(peer.seen.events) == sorted(("up", o.peer) for o in peers if o is not peer)
    finally:
        await asyncio.gather(*(peer.transport.close() for peer in peers))


async def test_frames_of_all_sizes_arrive_whole_and_in_order(road: Road) -> None:
    chance = random.Random(1)
    sizes = [chance.choice((0, 1, 3, 100, 4_000, 70_000)) for _ in range(490)]
    sizes += [65_532, 65_536, 262_144, 1_000_000, Limits().frame_bytes, 1, 500_000, 0, 17, 1_000_000]
    frames = [chance.randbytes(size) for size in sizes]
    async with road.peer("a") as a, road.peer("b") as b:
        a.transport.want(b.member)
        await until(lambda: a.linked_to(b), PATIENCE_S)
        for frame in frames:
            await until(lambda frame=frame: a.transport.send(b.peer, frame), PATIENCE_S)  # type: ignore[misc]
        await until(lambda: len(b.seen.frames) == len(frames), PATIENCE_S)
        assert [frame for _, frame in b.seen.frames] == frames
        assert not a.transport.send(b.peer, bytes(Limits().frame_bytes + 1))
        assert a.counters["dropped_frame_too_long"] == 1


async def test_what_is_queued_is_bounded_and_all_that_was_taken_arrives(road: Road) -> None:
    limits = Limits(outbox_bytes=1024 * 1024)
    async with road.peer("a", limits=limits) as a, road.peer("b") as b:
        a.transport.want(b.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        # In one turn of the loop nothing can leave, so that only what is bounded is taken.
        taken = [a.transport.send(b.peer, bytes([i]) * 100_000) for i in range(20)]
        assert taken == [True] * 10 + [False] * 10
        assert a.counters == {"dropped_outbox": 10}
        await until(lambda: len(b.seen.frames) == 10, PATIENCE_S)
        assert [frame[0] for _, frame in b.seen.frames] == list(range(10))
        await until(lambda: a.transport.send(b.peer, b"room again"), PATIENCE_S)
        await until(lambda: b.seen.frames[-1] == (a.peer, b"room again"), PATIENCE_S)


async def test_links_come_back_after_the_other_side_restarts(road: Road) -> None:
    where = road.standing_address()
    async with road.peer("a") as a:
        b = await road.peer("b", **where).start()
        a.transport.want(b.member)
        await until(lambda: a.linked_to(b), PATIENCE_S)
        await b.transport.close()
        await until(lambda: not a.linked_to(b), PATIENCE_S)
        async with road.peer("b", **where) as again:
            await until(lambda: a.linked_to(again) and again.linked_to(a), PATIENCE_S)
            assert a.seen.events == [("up", b.peer), ("down", b.peer), ("up", b.peer)]
            assert a.transport.send(again.peer, b"welcome back")
            await until(lambda: again.seen.frames, PATIENCE_S)


async def test_a_misbehaving_peer_comes_back_only_after_a_pause(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepool.transport.pauses.RELINK_PAUSE_S", 600.0)
    async with road.peer("a") as a, road.peer("b") as b:
        b.transport.want(a.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        a.transport.close_link(b.peer, "voted twice")
        assert a.seen.events == [("up", b.peer)], "the handler is not called from within its own call"
        await until(lambda: not a.linked_to(b) and ("down", a.peer) in b.seen.events, PATIENCE_S)
        assert a.seen.reasons == ["voted twice"]
        if road.name != "memory":
            await until(lambda: a.counters.get("refused_paused"), PATIENCE_S)
            assert not a.linked_to(b)
            a.transport._pauses = Pauses()  # it has passed
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        assert [event for event, _ in b.seen.events] == ["up", "down", "up"]


async def test_close_flushes_and_then_the_handler_hears_nothing(road: Road) -> None:
    async with road.peer("b") as b:
        a = await road.peer("a").start()
        nowhere = Member(road.peer("ghost").peer, "ghost", "", ("/ip4/127.0.0.1/tcp/9",))
        a.transport.want(nowhere)
        a.transport.want(b.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        for i in range(50):
            assert a.transport.send(b.peer, bytes([i]) * 10_000)
        await a.transport.close()
        await until(lambda: b.seen.events == [("up", a.peer), ("down", a.peer)], PATIENCE_S)
        assert [frame[0] for _, frame in b.seen.frames] == list(range(50))
        assert a.seen.events == [("up", b.peer)]
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("edgepool")]


async def test_a_hundred_times_connected_and_closed_leaves_nothing_behind(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepool.transport.pauses.RELINK_PAUSE_S", 0.0)
    monkeypatch.setattr("edgepool.transport.dialler.LONGEST_BACKOFF_S", 0.02)
    async with road.peer("a") as a, road.peer("b") as b:
        b.transport.want(a.member)

        async def cycle(count: int) -> None:
            await until(lambda: a.seen.events.count(("up", b.peer)) == count and a.linked_to(b), PATIENCE_S)
            a.transport.close_link(b.peer, "once more")
            await until(lambda: not a.linked_to(b), PATIENCE_S)

        for count in range(1, 11):
            await cycle(count)
        tasks, files = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
        for count in range(11, 101):
            await cycle(count)
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        await until(lambda: len(asyncio.all_tasks()) <= tasks + 4, PATIENCE_S)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= files + 4, PATIENCE_S)
        assert a.transport.send(b.peer, b"still here")
        await until(lambda: b.seen.frames, PATIENCE_S)


# --- what only roads with a wire can be asked -------------------------------------------------


async def test_when_both_dial_at_once_one_link_stays_and_nobody_sees_a_flap(
    wire: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the courtesy pause both dial in the same instant, every time.
    monkeypatch.setattr("edgepool.transport.dialler.YIELD_S", 0.0)
    crossed = 0
    for attempt in range(4):
        if crossed and attempt > 1:
            break
        async with wire.peer("a") as a, wire.peer("b") as b:
            a.transport.want(b.member)
            b.transport.want(a.member)
            await until(lambda a=a, b=b: a.linked_to(b) and b.linked_to(a), PATIENCE_S)  # type: ignore[misc]
            for i in range(20):
                assert a.transport.send(b.peer, b"%d" % i)
                assert b.transport.send(a.peer, b"%d" % i)
                await asyncio.sleep(0)
            await until(lambda a=a, b=b: len(a.seen.frames) == len(b.seen.frames) == 20, PATIENCE_S)  # type: ignore[misc]
            assert a.seen.events == [("up", b.peer)]
            assert b.seen.events == [("up", a.peer)]
            crossed += sum(p.counters.get("dropped_duplicate", 0) for p in (a, b))
            crossed += sum(p.counters.get("refused_handshake", 0) for p in (a, b))
    assert crossed, "the two never dialled at once: this test tests nothing"


async def test_a_peer_that_lost_power_replaces_its_old_link(
    wire: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepool.transport.tls._CROSSING_S", 0.0)
    async with wire.peer("a") as a, wire.peer("b") as b:
        a.transport.want(b.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        # The same machine once more: its first life never said goodbye.
        async with wire.peer("b") as b2:
            b2.transport.want(a.member)
            await until(lambda: b2.linked_to(a), PATIENCE_S)
            assert [event for event, _ in a.seen.events] == ["up", "down", "up"]
            assert "replaced" in a.seen.reasons[0]


async def test_pings_keep_an_idle_link_and_stay_in_the_transport(wire: Road) -> None:
    # Three times this without a byte would end the link.
    limits = Limits(keepalive_ms=800)
    async with wire.peer("a", limits=limits) as a, wire.peer("b", limits=limits) as b:
        a.transport.want(b.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        await asyncio.sleep(3.0)
        assert a.seen.events == [("up", b.peer)]
        assert b.seen.frames == []


async def test_somebody_else_at_the_address_is_linked_as_who_it_is(wire: Road) -> None:
    async with wire.peer("a") as a, wire.peer("b") as b, wire.peer("c") as c:
        elsewhere = (*b.transport.addresses, "not an address", "/dns4/" + "x" * 70 + "/tcp/1")
        a.transport.want(Member(c.peer, "c", "", elsewhere))
        await until(lambda: a.counters.get("refused_wrong_peer"), PATIENCE_S)
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        assert not a.linked_to(c)
        # Its real address, once known, is used from the next attempt on.
        a.transport.want(Member(c.peer, "c", "", (*b.transport.addresses, *c.transport.addresses)))
        await until(lambda: a.linked_to(c), PATIENCE_S)


async def test_a_handler_that_fails_costs_one_link(wire: Road) -> None:
    class Fragile(Recorder):
        def frame_received(self, peer: PeerId, frame: bytes) -> None:
            if frame == b"bad":
                raise RuntimeError("a mistake in the handler")
            super().frame_received(peer, frame)

    a = wire.peer("a")
    a.seen = Fragile()
    async with a, wire.peer("b") as b, wire.peer("c") as c:
        b.transport.want(a.member)
        c.transport.want(a.member)
        await until(lambda: a.linked_to(b, c) and b.linked_to(a) and c.linked_to(a), PATIENCE_S)
        b.transport.send(a.peer, b"bad")
        await until(lambda: ("down", b.peer) in a.seen.events, PATIENCE_S)
        assert a.counters["failed_handler"] == 1
        c.transport.send(a.peer, b"good")
        await until(lambda: a.seen.frames == [(c.peer, b"good")], PATIENCE_S)
        await until(lambda: a.linked_to(b), PATIENCE_S)


async def test_a_port_in_use_is_one_clear_sentence(wire: Road) -> None:
    async with wire.peer("a", **wire.standing_address()) as a:
        host, port = wire.where(a)
        second = wire.peer("b", **wire.listening_at(host, port))
        with pytest.raises(LocalError, match=rf"/ip4/{host}/tcp/{port}.*in use.*'listen'"):
            await second.start()
        await second.transport.close()


async def test_listening_everywhere_gives_an_address_that_can_be_dialled(wire: Road) -> None:
    async with wire.peer("a", **wire.listening_at("0.0.0.0", 0)) as a, wire.peer("b") as b:
        assert not [address for address in a.transport.addresses if "0.0.0.0" in address]
        b.transport.want(a.member)
        await until(lambda: b.linked_to(a), PATIENCE_S)


async def test_a_killed_process_is_noticed_and_linked_again(wire: Road) -> None:
    port = free_port()
    member = wire.peer("b").peer

    async def run_b() -> asyncio.subprocess.Process:
        program = Path(__file__).with_name("answering_peer.py")
        return await asyncio.create_subprocess_exec(
            *(sys.executable, program, wire.name, wire.folder, "b", str(port)), stdout=asyncio.subprocess.PIPE
        )

    async def answers(process: asyncio.subprocess.Process) -> bytes:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            return await process.stdout.readline()

    async with wire.peer("a") as a:
        process = await run_b()
        try:
            address = (await answers(process)).decode().strip()
            a.transport.want(Member(member, "b", "", (address,)))
            await until(lambda: member in a.seen.linked, PATIENCE_S)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            await until(lambda: member not in a.seen.linked, PATIENCE_S)
            process = await run_b()
            await until(lambda: member in a.seen.linked, PATIENCE_S)
            assert a.transport.send(member, b"are you there?")
            await until(lambda: a.seen.frames == [(member, b"are you there?")], PATIENCE_S)
        finally:
            process.kill()
            await process.wait()

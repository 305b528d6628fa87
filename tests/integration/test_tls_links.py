"""Links over real sockets: who gets in, what arrives, and what happens when things break."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tls_peers import Recorder, TlsPeer, ended, free_port, make_settings, until

from edgepool.config import Limits
from edgepool.errors import LocalError
from edgepool.model.codec import encode
from edgepool.model.ids import PeerId, format_address
from edgepool.model.message import Ping
from edgepool.model.pool import Member


@pytest.fixture(autouse=True)
def _nothing_left_over(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test may leave an asyncio complaint (a lost task or exception) behind."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.name == "asyncio"] == []


def frame_of(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


async def open_raw_link(
    at: TlsPeer, as_peer: TlsPeer, protocol: str = "edgepool-link/1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a peer as a member whose software we control byte by byte."""
    context = as_peer.identity.link_context
    context.set_alpn_protocols([protocol] if protocol else [])
    return await asyncio.open_connection(*at.where, ssl=context, server_hostname="")


async def test_two_peers_link_and_talk(tmp_path: Path) -> None:
    settings_a = make_settings(tmp_path, "lathe-1", machine_type="turning")
    settings_b = make_settings(tmp_path, "cell coordinator/1", role="coordinator")
    async with TlsPeer(settings_a) as a, TlsPeer(settings_b) as b:
        a.transport.want(b.member)
        a.transport.want(a.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a))
        assert b.seen.linked[a.peer] == a.identity.certificate
        assert a.seen.linked[b.peer].name == "cell coordinator/1"
        assert a.seen.linked[b.peer].role == "coordinator"
        assert b.seen.linked[a.peer].machine_type == "turning"
        assert a.transport.send(b.peer, b"to b")
        assert b.transport.send(a.peer, b"to a")
        await until(lambda: a.seen.frames and b.seen.frames)
        assert a.seen.frames == [(b.peer, b"to a")]
        assert b.seen.frames == [(a.peer, b"to b")]
        assert not a.transport.send(PeerId("nobody"), b"lost")
        assert a.counters == {"dropped_no_link": 1}
        assert b.counters == {}


async def test_five_peers_mesh_with_one_link_for_each_pair(tmp_path: Path) -> None:
    peers = [TlsPeer(make_settings(tmp_path, f"m{i}")) for i in range(5)]
    for peer in peers:
        await peer.start()
    try:
        for peer in peers:
            for other in peers:
                peer.transport.want(other.member)
        await until(lambda: all(p.linked_to(*(o for o in peers if o is not p)) for p in peers))
        for peer in peers:
            assert sorted(peer.seen.events) == sorted(("up", o.peer) for o in peers if o is not peer)
    finally:
        await asyncio.gather(*(peer.transport.close() for peer in peers))


async def test_when_both_dial_at_once_one_link_stays_and_nobody_sees_a_flap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the courtesy pause both dial in the same instant, every time.
    monkeypatch.setattr("edgepool.transport.dialler.YIELD_S", 0.0)
    duplicates = 0
    for _ in range(8):
        async with (
            TlsPeer(make_settings(tmp_path, "a")) as a,
            TlsPeer(make_settings(tmp_path, "b")) as b,
        ):
            a.transport.want(b.member)
            b.transport.want(a.member)
            await until(lambda a=a, b=b: a.linked_to(b) and b.linked_to(a))  # type: ignore[misc]
            for i in range(20):
                assert a.transport.send(b.peer, b"%d" % i)
                assert b.transport.send(a.peer, b"%d" % i)
                await asyncio.sleep(0)
            await until(lambda a=a, b=b: len(a.seen.frames) == len(b.seen.frames) == 20)  # type: ignore[misc]
            assert a.seen.events == [("up", b.peer)]
            assert b.seen.events == [("up", a.peer)]
            duplicates += sum(p.counters.get("dropped_duplicate", 0) for p in (a, b))
            duplicates += sum(p.counters.get("refused_handshake", 0) for p in (a, b))
    assert duplicates, "the two never dialled at once: this test tests nothing"


async def test_frames_of_all_sizes_arrive_whole_and_in_order(tmp_path: Path) -> None:
    chance = random.Random(1)
    sizes = [chance.choice((0, 1, 3, 100, 4_000, 70_000)) for _ in range(990)]
    sizes += [65_532, 65_536, 262_144, 1_000_000, Limits().frame_bytes, 1, 500_000, 0, 17, 1_000_000]
    frames = [chance.randbytes(size) for size in sizes]
    async with TlsPeer(make_settings(tmp_path, "a")) as a, TlsPeer(make_settings(tmp_path, "b")) as b:
        a.transport.want(b.member)
        await until(lambda: a.linked_to(b))
        for frame in frames:
            await until(lambda frame=frame: a.transport.send(b.peer, frame))  # type: ignore[misc]
        await until(lambda: len(b.seen.frames) == len(frames), 30)
        assert [frame for _, frame in b.seen.frames] == frames
        assert not a.transport.send(b.peer, bytes(Limits().frame_bytes + 1))
        assert a.counters["dropped_frame_too_long"] == 1


async def test_links_come_back_after_the_other_side_restarts(tmp_path: Path) -> None:
    port = free_port()
    settings_b = make_settings(tmp_path, "b", listen=format_address("127.0.0.1", port))
    async with TlsPeer(make_settings(tmp_path, "a")) as a:
        b = await TlsPeer(settings_b).start()
        a.transport.want(b.member)
        await until(lambda: a.linked_to(b))
        await b.transport.close()
        await until(lambda: not a.linked_to(b))
        async with TlsPeer(settings_b) as again:
            await until(lambda: a.linked_to(again) and again.linked_to(a))
            assert a.seen.events == [("up", b.peer), ("down", b.peer), ("up", b.peer)]
            assert a.transport.send(again.peer, b"welcome back")
            await until(lambda: again.seen.frames)


async def test_a_peer_that_lost_power_replaces_its_old_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepool.transport.tls._CROSSING_S", 0.0)
    settings_b = make_settings(tmp_path, "b")
    async with TlsPeer(make_settings(tmp_path, "a")) as a, TlsPeer(settings_b) as b:
        a.transport.want(b.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a))
        # The same machine once more: its first life never said goodbye.
        async with TlsPeer(settings_b) as b2:
            b2.transport.want(a.member)
            await until(lambda: b2.linked_to(a))
            assert [event for event, _ in a.seen.events] == ["up", "down", "up"]
            assert "replaced" in a.seen.reasons[0]


async def test_a_stranger_is_refused_and_only_counted(tmp_path: Path) -> None:
    foreign = make_settings(tmp_path / "elsewhere", "mole")
    async with TlsPeer(make_settings(tmp_path, "a")) as a, TlsPeer(foreign) as mole:
        # Even told the right peer id, it fails on the other side's certificate.
        mole.transport.want(a.member)
        await until(lambda: a.counters.get("refused_handshake"))
        # And one that does not care whom it talks to fails on its own.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["edgepool-link/1"])
        refused_before = a.counters["refused_handshake"]
        for folder in (None, foreign.folder / "identity"):
            if folder is not None:
                context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
            reader, writer = await asyncio.open_connection(*a.where, ssl=context, server_hostname="")
            writer.write(frame_of(b"let me in"))
            assert await ended(reader)
            writer.close()
        await until(lambda: a.counters["refused_handshake"] >= refused_before + 2)
        assert set(a.counters) == {"refused_handshake"}
        assert a.seen.events == []
        assert mole.seen.events == []


async def test_a_member_of_another_network_is_a_stranger(tmp_path: Path) -> None:
    other = make_settings(tmp_path, "b", network="plant-8")
    async with TlsPeer(make_settings(tmp_path, "a")) as a, TlsPeer(other) as b:
        reader, writer = await open_raw_link(a, b)
        assert await ended(reader)
        writer.close()
        assert a.counters == {"refused_stranger": 1}
        assert a.seen.events == []


@pytest.mark.parametrize("protocol", ["", "h2", "edgepool-transfer/1"])
async def test_a_protocol_that_is_not_spoken_is_refused(tmp_path: Path, protocol: str) -> None:
    async with TlsPeer(make_settings(tmp_path, "a")) as a:
        b = TlsPeer(make_settings(tmp_path, "b"))
        reader, writer = await open_raw_link(a, b, protocol)
        assert await ended(reader)
        writer.close()
        assert a.counters == {"refused_stranger": 1}


async def test_garbage_on_the_port_is_only_counted(tmp_path: Path) -> None:
    async with TlsPeer(make_settings(tmp_path, "a")) as a:
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(300), bytes(4096)):
            reader, writer = await asyncio.open_connection(*a.where)
            writer.write(garbage)
            writer.write_eof()
            assert await ended(reader)
            writer.close()
        await until(lambda: a.counters.get("refused_handshake") == 3)
        assert a.seen.events == []


async def test_a_connection_that_says_nothing_times_out(tmp_path: Path) -> None:
    limits = Limits(handshake_timeout_ms=100)
    async with TlsPeer(make_settings(tmp_path, "a", limits=limits)) as a:
        reader, writer = await asyncio.open_connection(*a.where)
        assert await ended(reader)
        writer.close()
        await until(lambda: a.counters == {"refused_handshake": 1})


async def test_many_silent_connections_do_not_keep_members_out(tmp_path: Path) -> None:
    limits = Limits(handshakes=3, handshake_timeout_ms=60_000)
    async with (
        TlsPeer(make_settings(tmp_path, "a", limits=limits)) as a,
        TlsPeer(make_settings(tmp_path, "b")) as b,
    ):
        silent = [await asyncio.open_connection(*a.where) for _ in range(10)]
        b.transport.want(a.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a))
        assert a.counters["refused_busy"] >= 7
        for _, writer in silent:
            writer.close()


async def test_an_oversized_frame_ends_the_link(tmp_path: Path) -> None:
    async with TlsPeer(make_settings(tmp_path, "a")) as a:
        b = TlsPeer(make_settings(tmp_path, "b"))
        reader, writer = await open_raw_link(a, b)
        writer.write(frame_of(b"fine") + b"\xff\xff\xff\xff")
        assert await ended(reader)
        writer.close()
        await until(lambda: a.seen.events == [("up", b.peer), ("down", b.peer)])
        assert a.seen.frames == [(b.peer, b"fine")]
        assert a.counters == {"refused_oversize": 1}


async def test_pings_keep_an_idle_link_and_stay_in_the_transport(tmp_path: Path) -> None:
    limits = Limits(keepalive_ms=40)
    async with (
        TlsPeer(make_settings(tmp_path, "a", limits=limits)) as a,
        TlsPeer(make_settings(tmp_path, "b", limits=limits)) as b,
    ):
        a.transport.want(b.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a))
        started_s = time.monotonic()
        await until(lambda: time.monotonic() - started_s > 0.4)
        assert a.seen.events == [("up", b.peer)]
        assert b.seen.frames == []


async def test_a_silent_peer_is_given_up(tmp_path: Path) -> None:
    async with TlsPeer(make_settings(tmp_path, "a", limits=Limits(keepalive_ms=40))) as a:
        b = TlsPeer(make_settings(tmp_path, "b"))
        reader, writer = await open_raw_link(a, b)
        writer.write(frame_of(encode(Ping(7))))
        heard = await reader.readexactly(4 + 7)
        assert heard == frame_of(encode(Ping(0)))
        assert await ended(reader)
        writer.close()
        await until(lambda: a.seen.events == [("up", b.peer), ("down", b.peer)])
        assert a.seen.frames == []
        assert a.counters == {"lost_silent": 1}


async def test_somebody_else_at_the_address_gets_no_link(tmp_path: Path) -> None:
    async with (
        TlsPeer(make_settings(tmp_path, "a")) as a,
        TlsPeer(make_settings(tmp_path, "b")) as b,
        TlsPeer(make_settings(tmp_path, "c")) as c,
    ):
        misled = Member(
            c.peer, "c", "", (*b.transport.addresses, "not an address", "/dns4/" + "x" * 70 + "/tcp/1")
        )
        a.transport.want(misled)
        await until(lambda: a.counters.get("refused_wrong_peer"))
        assert a.seen.events == b.seen.events == []
        # Its real address, once known, is used from the next attempt on.
        a.transport.want(Member(c.peer, "c", "", (*b.transport.addresses, *c.transport.addresses)))
        await until(lambda: a.linked_to(c))


async def test_a_reader_that_stops_reading_costs_no_more_than_the_outbox(tmp_path: Path) -> None:
    limits = Limits(outbox_bytes=1024 * 1024)
    async with TlsPeer(make_settings(tmp_path, "a", limits=limits)) as a:
        b = TlsPeer(make_settings(tmp_path, "b"))
        _, writer = await open_raw_link(a, b)
        await until(lambda: a.linked_to(b))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        sent_bytes = 0
        refused = 0
        while refused < 200:
            if a.transport.send(b.peer, bytes(100_000)):
                sent_bytes += 100_000
            else:
                refused += 1
                await asyncio.sleep(0.001)
        # What the kernel holds comes on top of the outbox.
        assert sent_bytes < 32 * 1024 * 1024
        assert a.counters == {"dropped_outbox": 200}
        writer.transport.abort()
        await until(lambda: not a.linked_to(b))


async def test_a_misbehaving_peer_comes_back_only_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepool.transport.tls.RELINK_PAUSE_S", 0.5)
    async with TlsPeer(make_settings(tmp_path, "a")) as a, TlsPeer(make_settings(tmp_path, "b")) as b:
        b.transport.want(a.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a))
        a.transport.close_link(b.peer, "voted twice")
        assert a.seen.events == [("up", b.peer)], "the handler is not called from within its own call"
        await until(lambda: not a.linked_to(b) and not b.linked_to(a))
        assert a.seen.reasons == ["voted twice"]
        await until(lambda: a.counters.get("refused_paused"))
        assert not a.linked_to(b)
        await until(lambda: a.linked_to(b) and b.linked_to(a))
        assert [event for event, _ in b.seen.events] == ["up", "down", "up"]


async def test_a_handler_that_fails_costs_one_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fragile(Recorder):
        def frame_received(self, peer: PeerId, frame: bytes) -> None:
            if frame == b"bad":
                raise RuntimeError("a mistake in the handler")
            super().frame_received(peer, frame)

    a = TlsPeer(make_settings(tmp_path, "a"))
    a.seen = Fragile()
    async with a, TlsPeer(make_settings(tmp_path, "b")) as b, TlsPeer(make_settings(tmp_path, "c")) as c:
        b.transport.want(a.member)
        c.transport.want(a.member)
        await until(lambda: a.linked_to(b, c) and b.linked_to(a) and c.linked_to(a))
        b.transport.send(a.peer, b"bad")
        await until(lambda: ("down", b.peer) in a.seen.events)
        assert a.counters["failed_handler"] == 1
        c.transport.send(a.peer, b"good")
        await until(lambda: a.seen.frames == [(c.peer, b"good")])
        await until(lambda: a.linked_to(b))


async def test_a_port_in_use_is_one_clear_sentence(tmp_path: Path) -> None:
    async with TlsPeer(make_settings(tmp_path, "a")) as a:
        second = TlsPeer(make_settings(tmp_path, "b", listen=a.transport.addresses[0]))
        with pytest.raises(LocalError, match=rf"{a.transport.addresses[0]}.*in use.*'listen'"):
            await second.start()
        await second.transport.close()


async def test_listening_everywhere_gives_an_address_that_can_be_dialled(tmp_path: Path) -> None:
    everywhere = make_settings(tmp_path, "a", listen="/ip4/0.0.0.0/tcp/0")
    async with TlsPeer(everywhere) as a, TlsPeer(make_settings(tmp_path, "b")) as b:
        assert "0.0.0.0" not in a.transport.addresses[0]
        b.transport.want(a.member)
        await until(lambda: b.linked_to(a))


async def test_close_flushes_then_leaves_nothing_behind(tmp_path: Path) -> None:
    async with TlsPeer(make_settings(tmp_path, "b")) as b:
        a = await TlsPeer(make_settings(tmp_path, "a")).start()
        unreachable = Member(make_peer_id(tmp_path), "ghost", "", (format_address("127.0.0.1", free_port()),))
        a.transport.want(unreachable)
        a.transport.want(b.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a))
        half_open = await asyncio.open_connection(*a.where)
        for i in range(50):
            assert a.transport.send(b.peer, bytes([i]) * 10_000)
        await a.transport.close()
        await until(lambda: len(b.seen.frames) == 50)
        await until(lambda: b.seen.events == [("up", a.peer), ("down", a.peer)])
        assert a.seen.events == [("up", b.peer)], "after close the handler hears nothing"
        assert await ended(half_open[0])
        half_open[1].close()
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("edgepool")]


async def test_close_does_not_wait_for_a_reader_that_does_not_read(tmp_path: Path) -> None:
    a = await TlsPeer(make_settings(tmp_path, "a")).start()
    b = TlsPeer(make_settings(tmp_path, "b"))
    _, writer = await open_raw_link(a, b)
    await until(lambda: a.linked_to(b))
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await until(lambda: not a.transport.send(b.peer, bytes(1_000_000)))
    async with asyncio.timeout(5):
        await a.transport.close()
    writer.transport.abort()


def make_peer_id(tmp_path: Path) -> PeerId:
    settings: Any = make_settings(tmp_path, "ghost")
    return TlsPeer(settings).peer

"""Strangers, liars, the silent and the slow: what they cost on each road that has a wire."""

from __future__ import annotations

import asyncio

import pytest
from roads import Road, frame_of
from tls_peers import until

from edgepool.config import Limits
from edgepool.core.ledger.trust import UnitedTrust
from edgepool.model.codec import encode
from edgepool.model.message import Ping

PATIENCE_S = 60.0
GARBAGE = (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(300), bytes(4096))


async def test_a_stranger_is_refused_and_only_counted(wire: Road) -> None:
    async with wire.peer("a") as a, wire.stranger("mole") as mole:
        # Even told the right peer id, neither can make a link to the other.
        mole.transport.want(a.member)
        await until(lambda: refusals(a) or refusals(mole), PATIENCE_S)
        mole.transport.close_link(a.peer, "")
        a.transport.want(mole.member)
        await until(lambda: refusals(a) and refusals(mole), PATIENCE_S)
        assert set(a.counters) <= {"refused_handshake", "refused_foreign"}
        assert a.seen.events == []
        assert mole.seen.events == []


async def test_a_member_of_another_network_is_a_stranger(wire: Road) -> None:
    async with wire.peer("a") as a, wire.peer("b", network="plant-8") as b:
        link = await wire.raw(a, b)
        async with asyncio.timeout(PATIENCE_S):
            assert await link.ended()
        await until(lambda: a.counters, PATIENCE_S)
        assert a.counters == {"refused_wrong_network": 1}
        assert a.seen.events == []


async def test_a_revoked_member_is_cut_and_does_not_come_back(wire: Road) -> None:
    async with wire.peer("a") as a, wire.peer("b") as b, wire.peer("c") as c:
        b.transport.want(a.member)
        c.transport.want(a.member)
        await until(lambda: a.linked_to(b, c) and b.linked_to(a), PATIENCE_S)
        assert b.transport.send(a.peer, b"already under way")
        a.identity.trust.decide(UnitedTrust(revoked={b.peer: None}))
        # In this very call: nothing goes to it any more, and nothing that it has sent is read.
        assert not a.transport.send(b.peer, b"a secret")
        await until(lambda: not a.linked_to(b) and a.counters.get("refused_revoked"), PATIENCE_S)
        assert a.counters["lost_revoked"] == 1
        assert (a.seen.frames, b.seen.frames) == ([], [])
        assert a.seen.events.count(("up", b.peer)) == 1
        assert a.transport.send(c.peer, b"who is still one")
        await until(lambda: c.seen.frames, PATIENCE_S)


async def test_garbage_on_the_port_is_only_counted(wire: Road) -> None:
    async with wire.peer("a") as a:
        for garbage in GARBAGE:
            reader, writer = await asyncio.open_connection(*wire.where(a))
            writer.write(garbage)
            writer.write_eof()
            async with asyncio.timeout(PATIENCE_S):
                try:
                    while await reader.read(65536):
                        pass
                except ConnectionError:
                    pass
            writer.close()
        await until(lambda: a.counters.get("refused_handshake") == len(GARBAGE), PATIENCE_S)
        assert a.seen.events == []


async def test_a_connection_that_says_nothing_times_out(wire: Road) -> None:
    async with wire.peer("a", limits=Limits(handshake_timeout_ms=300)) as a:
        reader, writer = await asyncio.open_connection(*wire.where(a))
        async with asyncio.timeout(PATIENCE_S):
            while await reader.read(65536):
                pass
        writer.close()
        await until(lambda: a.counters == {"refused_handshake": 1}, PATIENCE_S)


async def test_many_silent_connections_do_not_keep_members_out(wire: Road) -> None:
    limits = Limits(handshakes=3, handshake_timeout_ms=60_000)
    async with wire.peer("a", limits=limits) as a, wire.peer("b") as b:
        silent = [await asyncio.open_connection(*wire.where(a)) for _ in range(10)]
        b.transport.want(a.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        await until(lambda: a.counters.get("refused_busy", 0) >= 7, PATIENCE_S)
        for _, writer in silent:
            writer.close()


async def test_an_oversized_frame_ends_the_link(wire: Road) -> None:
    async with wire.peer("a") as a, wire.peer("b") as b:
        link = await wire.raw(a, b)
        link.write(frame_of(b"fine") + b"\xff\xff\xff\xff")
        async with asyncio.timeout(PATIENCE_S):
            assert await link.ended()
        await until(lambda: a.seen.events == [("up", b.peer), ("down", b.peer)], PATIENCE_S)
        assert a.seen.frames == [(b.peer, b"fine")]
        assert a.counters == {"refused_oversize": 1}


async def test_a_silent_peer_is_given_up(wire: Road) -> None:
    async with wire.peer("a", limits=Limits(keepalive_ms=100)) as a, wire.peer("b") as b:
        link = await wire.raw(a, b)
        link.write(frame_of(encode(Ping(7))))
        async with asyncio.timeout(PATIENCE_S):
            heard = await link.read(4 + 7)
            assert heard == frame_of(encode(Ping(0)))
            assert await link.ended()
        await until(lambda: a.seen.events == [("up", b.peer), ("down", b.peer)], PATIENCE_S)
        assert a.seen.frames == []
        assert a.counters == {"lost_silent": 1}


async def test_a_reader_that_stops_reading_costs_no_more_than_the_outbox(wire: Road) -> None:
    limits = Limits(outbox_bytes=1024 * 1024)
    async with wire.peer("a", limits=limits) as a, wire.peer("b") as b:
        link = await wire.raw(a, b)
        await until(lambda: a.linked_to(b), PATIENCE_S)
        link.stop_reading()
        sent_bytes = 0
        refused = 0
        while refused < 200:
            if a.transport.send(b.peer, bytes(100_000)):
                sent_bytes += 100_000
                await asyncio.sleep(0)
            else:
                refused += 1
                await asyncio.sleep(0.005)
        # What the kernel and the windows hold comes on top of the outbox.
        assert sent_bytes < 32 * 1024 * 1024
        assert a.counters == {"dropped_outbox": 200}
        link.abort()
        await until(lambda: not a.linked_to(b), PATIENCE_S)


async def test_a_slow_reader_delays_nobody_else(wire: Road) -> None:
    async with wire.peer("a") as a, wire.peer("b") as b, wire.peer("c") as c:
        link = await wire.raw(a, b)
        c.transport.want(a.member)
        await until(lambda: a.linked_to(b, c) and c.linked_to(a), PATIENCE_S)
        link.stop_reading()
        await until(lambda: not a.transport.send(b.peer, bytes(1_000_000)), PATIENCE_S)
        for i in range(100):
            assert a.transport.send(c.peer, b"%d" % i)
        await until(lambda: len(c.seen.frames) == 100, PATIENCE_S)
        link.abort()


async def test_close_does_not_wait_for_a_reader_that_does_not_read(wire: Road) -> None:
    a = await wire.peer("a").start()
    async with wire.peer("b") as b:
        link = await wire.raw(a, b)
        await until(lambda: a.linked_to(b), PATIENCE_S)
        link.stop_reading()
        await until(lambda: not a.transport.send(b.peer, bytes(1_000_000)), PATIENCE_S)
        async with asyncio.timeout(30):
            await a.transport.close()
        link.abort()


def refusals(peer: object) -> int:
    counters: dict[str, int] = peer.counters  # type: ignore[attr-defined]
    return sum(number for name, number in counters.items() if name.startswith("refused_"))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepool.transport.pauses.RELINK_PAUSE_S", 0.1)

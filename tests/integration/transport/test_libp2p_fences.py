"""More of what py-libp2p 0.8 does and we do not: in each test ours holds, and its own does not.

The muxer, the bounds and the rest of the table in docs/decisions/0014; test_libp2p_defects.py has the others.
"""

from __future__ import annotations

import logging
import struct
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("libp2p") is None:
    pytest.skip("the extra libp2p is not installed", allow_module_level=True)

import trio
import trio.testing
from libp2p.custom_types import TProtocol
from libp2p.network.auto_connector import AutoConnector
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr
from test_libp2p_defects import LOOPBACK, begin, ours, pipes, stock, with_muxers

from edgepool.transport.libp2p_child import host, run
from edgepool.transport.libp2p_child.events import MESHSUB
from edgepool.transport.libp2p_child.host import Connections, Upgrader
from edgepool.transport.libp2p_child.muxer import STREAMS_OF_A_PEER, WINDOW_BYTES, Yamux

SYN, RST = 1, 8


def test_the_muxer_that_is_configured_is_the_one_that_is_used() -> None:
    async def made(upgrader: Any) -> list[Any]:
        """Return what both ends of a connection are muxed by."""
        found: list[Any] = []

        async def upgrade(pipe: Any) -> None:
            found.append(await upgrader.upgrade_connection(pipe, ID(b"peer")))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for pipe in pipes():
                    nursery.start_soon(upgrade, pipe)
        return found

    async def main() -> None:
        noise: Any = Connections(begin(), lambda reason: None).swarm.upgrader.security_multistream
        here = Upgrader(next(iter(noise.transports.values())), 5.0)
        assert [type(one) for one in await made(here)] == [Yamux, Yamux]
        there = TransportUpgrader(dict(noise.transports), {TProtocol(YAMUX): Yamux})  # type: ignore[dict-item]
        assert not any(isinstance(one, Yamux) for one in await made(there))

    trio.run(main)


def test_a_full_window_is_waited_for_and_not_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    sleep = trio.sleep

    async def nap(seconds: float) -> None:
        naps.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(trio, "sleep", nap)

    async def fill(a: Any, b: Any) -> None:
        stream = await a.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, bytes(2 * WINDOW_BYTES))
            await b.accept_stream()
            await sleep(1)
            naps.clear()
            await sleep(2)
            nursery.cancel_scope.cancel()

    trio.run(with_muxers, ours, fill, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert naps == []
    trio.run(with_muxers, stock, fill, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert len(naps) > 50


def test_a_peer_may_have_only_so_many_streams_on_a_connection() -> None:
    async def accept(conn: Any) -> None:
        while True:
            await conn.accept_stream()

    async def open_after(make: Any, times: int) -> tuple[int, int]:
        """Have the other side open streams; return how many there are, and how many were reset."""
        near, far = pipes()
        conn = make(far)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.start)
            await conn.event_started.wait()
            nursery.start_soon(accept, conn)
            for number in range(times):
                await near.write(struct.pack(">BBHII", 0, 1, SYN, 2 * number + 1, 0))
            for _ in range(100_000):
                if far.arrived:
                    await trio.lowlevel.checkpoint()
            for _ in range(500):
                await trio.lowlevel.checkpoint()
            said = [struct.unpack_from(">BBHII", near.arrived, at) for at in range(0, len(near.arrived), 12)]
            known = len(conn._streams if isinstance(conn, Yamux) else conn.streams)
            nursery.cancel_scope.cancel()
        return known, sum(1 for _, _, flags, _, _ in said if flags & RST)

    times = STREAMS_OF_A_PEER + 40
    assert trio.run(open_after, ours, times) == (STREAMS_OF_A_PEER, 40)
    assert trio.run(open_after, stock, times) == (times, 0)


async def until(condition: Any) -> None:
    with trio.fail_after(45):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.05)


def test_connections_that_prove_nothing_are_bounded_and_idle_ones_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[str] = []

    async def main() -> None:
        here = Connections(begin(handshakes=4), counted.append)
        diallers = [Connections(begin(b"dialler %d" % number), lambda reason: None) for number in range(7)]
        async with here.host.run([LOOPBACK]), AsyncExitStack() as stack:
            for dialler in diallers:
                await stack.enter_async_context(background_trio_service(dialler.swarm))
                await dialler.swarm.dial_addr(here.host.get_addrs()[0], here.host.get_id())
            # Without a watch all of them stand.
            await until(lambda: here.swarm.get_total_connections() == len(diallers))
            here.prove(str(diallers[0].host.get_id()))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.keep_bounded)
                await until(lambda: here.swarm.get_total_connections() == 5)
                assert here.live(diallers[0].host.get_id()), "a member's stays, though it is the oldest"
                assert counted.count("refused_busy") == 2
                monkeypatch.setattr(host, "IDLE_S", 0.3)
                await until(lambda: here.swarm.get_total_connections() == 0)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_nobody_is_dialled_where_a_stranger_says_that_it_is() -> None:
    """By identify anybody tells addresses, and py-libp2p dials them if it has few connections."""

    async def dialled_unasked(there: Connections) -> list[ID]:
        """Have a stranger come, say where it listens, and go; return whom `there` dials by itself then."""
        dialled: list[ID] = []

        async def dial(peer: ID) -> None:
            dialled.append(peer)

        stranger = Connections(begin(b"stranger"), lambda reason: None)
        claimed = [Multiaddr("/ip4/127.0.0.1/tcp/9")]
        stranger.host.get_addrs = stranger.host.get_transport_addrs = lambda *_: claimed  # type: ignore[method-assign]
        me = stranger.host.get_id()
        there.swarm.dial_peer = dial  # type: ignore[method-assign, assignment]
        async with there.host.run([LOOPBACK]):
            async with background_trio_service(stranger.swarm):
                await stranger.swarm.dial_addr(there.host.get_addrs()[0], there.host.get_id())
                # What it says has come when its protocols are known.
                await until(lambda: me in there.swarm.peerstore.peer_ids() and _protocols(there, me))
            await until(lambda: not there.swarm.connections)
            there.swarm.auto_connector._recent_disconnects.clear()  # as after a minute
            await there.swarm.auto_connector.maybe_connect()
        return dialled

    async def main() -> None:
        assert await dialled_unasked(Connections(begin(), lambda reason: None)) == []
        # Their parts in ours.
        theirs = Connections(begin(), lambda reason: None)
        theirs.swarm.auto_connector = AutoConnector(theirs.swarm)
        kept = PeerStore()
        kept.peer_data_map.update(theirs.swarm.peerstore.peer_data_map)
        theirs.swarm.peerstore = theirs.host.peerstore = kept
        assert len(await dialled_unasked(theirs)) == 1

    trio.run(main)


def _protocols(there: Connections, peer: ID) -> bool:
    try:
        return bool(there.swarm.peerstore.get_protocols(peer))
    except Exception:
        return False


def test_frames_are_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(a: Any, b: Any) -> None:
        stream = await a.open_stream()
        await stream.write(b"x" * 100)
        taken = await b.accept_stream()
        assert await taken.read(100) == b"x" * 100

    lines: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign]
    theirs, before = logging.getLogger("libp2p"), logging.root.manager.disable
    level = theirs.level
    theirs.addHandler(handler)
    try:
        theirs.setLevel(logging.DEBUG)
        trio.run(with_muxers, stock, talk)
        assert lines, "its own logs each frame"
        monkeypatch.setattr(run, "trio", _NoTrio)
        near, far = run.socket.socketpair()
        with near:
            run.run(far.detach())
        lines.clear()
        trio.run(with_muxers, stock, talk)
        assert not lines
    finally:
        theirs.removeHandler(handler)
        theirs.setLevel(level)
        logging.disable(before)


class _NoTrio:
    """Stands for trio where nothing is to be run."""

    @staticmethod
    def run(main: Any, connection: Any) -> None:
        connection.close()


def test_its_own_pubsub_takes_every_connection_for_a_friend() -> None:
    """Why events.py stands before it: nobody has proved anything here. Ours: test_libp2p_events.py."""

    async def main() -> None:
        first, second = (Connections(begin(seed), lambda reason: None) for seed in (b"first", b"second"))
        router = GossipSub([MESHSUB], 6, 4, 12, heartbeat_initial_delay=0.1, heartbeat_interval=1)
        pubsub = Pubsub(first.host, router, strict_signing=True)
        other = Pubsub(second.host, GossipSub([MESHSUB], 6, 4, 12), strict_signing=True)
        async with (
            first.host.run([LOOPBACK]),
            background_trio_service(second.swarm),
            background_trio_service(router),
            background_trio_service(pubsub),
            background_trio_service(other),
        ):
            await pubsub.wait_until_ready()
            await second.swarm.dial_addr(first.host.get_addrs()[0], first.host.get_id())
            await until(lambda: second.host.get_id() in pubsub.peers)

    trio.run(main)


def test_its_own_streams_stay_when_their_peer_never_ends_them() -> None:
    """The other half of test_a_stream_that_its_peer_never_ends_does_not_stay."""

    async def half_closed(a: Any, b: Any) -> None:
        stream = await a.open_stream()
        await stream.write(b"a question")
        await b.accept_stream()
        await stream.close()
        await trio.sleep(40)
        assert a.streams
        assert b.streams

    trio.run(with_muxers, stock, half_closed, clock=trio.testing.MockClock(autojump_threshold=0.01))

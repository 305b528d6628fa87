"""Each defect of py-libp2p 0.8 that we work around: gone with our part, still there in its own.

The second half of each test fails on the day on which py-libp2p has repaired it: then our part can go.
"""

from __future__ import annotations

import inspect
import socket
import struct
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("libp2p") is None:
    pytest.skip("the extra libp2p is not installed", allow_module_level=True)

import libp2p
import trio
import trio.testing
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.io.utils import read_exactly
from libp2p.network import swarm as stock_swarm
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as CircuitPeer
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import Yamux as StockYamux
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.tcp.tcp import TCP as StockTcp
from multiaddr import Multiaddr

from edgepool.transport.libp2p_child.host import Connections
from edgepool.transport.libp2p_child.messages import Begin
from edgepool.transport.libp2p_child.muxer import WINDOW_BYTES, Yamux
from edgepool.transport.libp2p_child.wire import BufferedConnection, Tcp

LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/0")
KEEPALIVE_S = 5.0


def begin(seed: bytes = b"a", connections: int = 4, handshakes: int = 4) -> Begin:
    return Begin(seed.ljust(32), (), (), handshakes, connections, 5_000, 5_000, 0, False, False)


class Pipe:
    """A secured connection in memory; what is written waits at the other end without bound."""

    def __init__(self, initiator: bool) -> None:
        self.is_initiator = initiator
        self.other: Pipe
        self.arrived = bytearray()
        self.news = trio.Event()
        self.closed = False

    async def read(self, n: int | None = None) -> bytes:
        while not self.arrived:
            if self.closed:
                raise ConnectionClosedError("closed")
            self.news = trio.Event()
            await self.news.wait()
        taken = bytes(self.arrived[:n])
        del self.arrived[: len(taken)]
        return taken

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.other.arrived += data
        self.other.news.set()

    async def close(self) -> None:
        for end in (self, self.other):
            end.closed = True
            end.news.set()

    def get_remote_address(self) -> None:
        return None

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


def pipes() -> tuple[Any, Any]:
    a, b = Pipe(True), Pipe(False)
    a.other, b.other = b, a
    return a, b


def ours(pipe: Any) -> Any:
    return Yamux(pipe, ID(b"peer"), KEEPALIVE_S)


def stock(pipe: Any) -> Any:
    return StockYamux(pipe, ID(b"peer"))


async def with_muxers(make: Callable[[Any], Any], use: Callable[[Any, Any], Awaitable[None]]) -> None:
    a, b = (make(pipe) for pipe in pipes())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        await a.event_started.wait()
        await b.event_started.wait()
        await use(a, b)
        nursery.cancel_scope.cancel()


def test_plaintext_is_refused_by_default() -> None:
    async def answer(port: int) -> bytes:
        """Ask a listener for plaintext, in multistream-select."""
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(b"\x13/multistream/1.0.0\n" + b"\x11/plaintext/2.0.0\n")
            heard = b""
            with trio.move_on_after(20):
                while heard.count(b"\n") < 2 and (data := await stream.receive_some(1024)):
                    heard += data
            return heard

    async def port_of(host: Any) -> int:
        return int(host.get_addrs()[0].value_for_protocol("tcp"))

    async def main() -> None:
        connections = Connections(begin(), lambda reason: None)
        async with connections.host.run([LOOPBACK]):
            assert b"plaintext" not in await answer(await port_of(connections.host))
        stock_host = libp2p.new_host()
        async with stock_host.run([LOOPBACK]):
            assert b"/plaintext/2.0.0" in await answer(await port_of(stock_host))

    trio.run(main)


def test_places_of_inbound_connections_are_given_back() -> None:
    async def served(host: Any, times: int) -> int:
        """Connect and disconnect one after the other; return how many were let in."""
        address = host.get_addrs()[0]
        host_id = host.get_id()
        let_in = 0
        for _ in range(times):
            dialler = Connections(begin(b"dialler"), lambda reason: None)
            async with background_trio_service(dialler.swarm):
                with trio.move_on_after(5):
                    try:
                        conn = await dialler.swarm.dial_addr(address, host_id)
                        let_in += 1
                        await conn.close()
                    except Exception:
                        pass
            await trio.sleep(0.05)
        return let_in

    async def main() -> None:
        connections = Connections(begin(), lambda reason: None)
        places = connections.swarm.connection_config.max_connections
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with connections.host.run([LOOPBACK]):
            assert await served(connections.host, places + 4) == places + 4
            for _ in range(200):
                if connections.swarm.connections:
                    await trio.sleep(0.05)
            # Neither a place nor a task is left of any of them.
            assert connections.swarm._inbound_limiter.borrowed_tokens == 0
            assert trio.lowlevel.current_statistics().tasks_living < tasks + 30
        config = ConnectionConfig(max_connections=4, min_connections=0, low_watermark=0, high_watermark=4)
        stock_host = libp2p.new_host(
            connection_config=config, sec_opt=_noise(b"stock"), key_pair=_key(b"stock")
        )
        async with stock_host.run([LOOPBACK]):
            assert await served(stock_host, 6) < 6

    trio.run(main)


def _key(seed: bytes) -> Any:
    return create_new_key_pair(seed.ljust(32))


def _noise(seed: bytes) -> Any:
    connections = Connections(begin(seed), lambda reason: None)
    return dict(connections.swarm.upgrader.security_multistream.transports)


def test_a_dial_waits_for_no_second_address_and_remembers_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        there, here = (Connections(begin(seed), lambda reason: None) for seed in (b"there", b"here"))

        def never(*_: object) -> None:
            raise AssertionError("the way that waits was taken")

        monkeypatch.setattr(here.swarm, "dial_peer", never)
        async with there.host.run([LOOPBACK]), background_trio_service(here.swarm):
            address = there.host.get_addrs()[0]
            nowhere = Multiaddr(f"/ip4/127.0.0.1/tcp/9/p2p/{there.host.get_id()}")
            for _ in range(2):
                with pytest.raises(Exception, match="connection"):
                    await here.swarm.dial_addr(nowhere, there.host.get_id())
            stream = await here.open_stream(str(there.host.get_id()), str(address), "/ipfs/ping/1.0.0")
            await stream.reset()

    trio.run(main)
    assert stock_swarm._HAPPY_EYEBALLS_DELAY >= 0.25
    assert "_negative_peer_cache.mark_failed" in inspect.getsource(stock_swarm.Swarm.dial_peer)


def test_a_peer_that_sends_more_than_its_window_is_cut_off() -> None:
    async def kept_of_a_flood(make: Callable[[Any], Any]) -> int:
        """Open a stream and send 8 MiB into its window of 256 KiB; return how much is kept of it."""
        near, far = pipes()
        conn = make(far)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.start)
            await conn.event_started.wait()
            await near.write(struct.pack(">BBHII", 0, 1, 1, 1, 0))
            for _ in range(128):
                await near.write(struct.pack(">BBHII", 0, 0, 0, 1, 65_536) + bytes(65_536))
            for _ in range(2_000):
                await trio.lowlevel.checkpoint()
            buffers = getattr(conn, "stream_buffers", None)
            kept = sum(map(len, buffers.values())) if buffers is not None else 0
            kept += sum(len(stream.buffer) for stream in getattr(conn, "_streams", {}).values())
            nursery.cancel_scope.cancel()
        return kept

    async def main() -> None:
        assert await kept_of_a_flood(ours) <= WINDOW_BYTES
        assert await kept_of_a_flood(stock) > 4 * WINDOW_BYTES

    trio.run(main)


def test_a_reader_that_rests_for_a_minute_does_not_break_the_sender() -> None:
    size_bytes = 4 * WINDOW_BYTES

    async def rest_then_read(a: Any, b: Any) -> None:
        stream = await a.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, bytes(size_bytes))
            taken = await b.accept_stream()
            await trio.sleep(60)
            got = 0
            while got < size_bytes:
                got += len(await taken.read(65_536))

    trio.run(with_muxers, ours, rest_then_read, clock=trio.testing.MockClock(autojump_threshold=0.01))
    with pytest.raises(ExceptionGroup) as caught:
        trio.run(with_muxers, stock, rest_then_read, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert caught.group_contains(MuxedStreamError, match="5 seconds")


def test_a_slow_sender_does_not_break_a_read() -> None:
    class Trickle:
        """A TCP stream on which one byte comes at a time."""

        socket = socket.socket()

        async def receive_some(self, _: int) -> bytes:
            await trio.lowlevel.checkpoint()
            return b"x"

        async def read(self, _: int) -> bytes:
            return b"x"

    async def main() -> None:
        assert await BufferedConnection(Trickle()).read(300) == b"x" * 300  # type: ignore[arg-type]
        with pytest.raises(IncompleteReadError):
            await read_exactly(Trickle(), 300)  # type: ignore[arg-type]

    trio.run(main)


def test_a_dead_peer_is_noticed() -> None:
    async def ends(make: Callable[[Any], Any]) -> bool:
        """Say whether a connection ends whose other side has vanished without a word."""
        _, far = pipes()
        conn = make(far)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.start)
            await conn.event_started.wait()
            await trio.sleep(600)
            nursery.cancel_scope.cancel()
        return bool(conn.is_closed)

    clock = trio.testing.MockClock(autojump_threshold=0.01)
    assert trio.run(ends, ours, clock=clock)
    assert not trio.run(ends, stock, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_stream_that_its_peer_never_ends_does_not_stay() -> None:
    async def half_closed(a: Any, b: Any) -> None:
        stream = await a.open_stream()
        await stream.write(b"a question")
        await b.accept_stream()
        await stream.close()
        await trio.sleep(120)
        assert not a._streams
        assert not b._streams

    trio.run(with_muxers, ours, half_closed, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_port_is_not_shared() -> None:
    async def both_listen(make: Callable[[], Any]) -> bool:
        async def nothing(_: Any) -> None:
            return

        first, second = (make().create_listener(nothing) for _ in range(2))
        await first.listen(LOOPBACK)
        try:
            await second.listen(first.get_addrs()[0])
        except Exception:
            return False
        else:
            await second.close()
            return True
        finally:
            await first.close()

    assert not trio.run(both_listen, lambda: Tcp(4, lambda reason: None))
    assert trio.run(both_listen, StockTcp)


class _FakeStream:
    """A stream to a relay: at its end at once; what is written and whether it was closed is kept."""

    def __init__(self, peer: ID) -> None:
        self.muxed_conn = self
        self.peer_id = peer
        self.closed = False

    async def read(self, n: int | None = None) -> bytes:
        return b""

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None:
        self.closed = True

    async def reset(self) -> None:
        self.closed = True

    def is_open(self) -> bool:
        return not self.closed


def _relay() -> CircuitV2Protocol:
    return CircuitV2Protocol(Connections(begin(), lambda reason: None).host, allow_hop=True)


def test_its_relay_gives_places_in_the_name_of_others() -> None:
    """Why its circuit relay is not used, first reason: anybody fills the table with invented peers."""
    relay, stranger, other = (
        _relay(),
        ID.from_pubkey(_key(b"s").public_key),
        ID.from_pubkey(_key(b"o").public_key),
    )
    asked = HopMessage(type=HopMessage.RESERVE, peer=CircuitPeer(id=other.to_bytes()))
    trio.run(relay._handle_reserve, _FakeStream(stranger), asked)
    assert set(relay.resource_manager._reservations) == {other}


def test_its_relay_ends_one_circuit_of_a_peer_with_another() -> None:
    """Why its circuit relay is not used, second reason: a gateway has many, one to each member."""
    relay, source = _relay(), ID.from_pubkey(_key(b"s").public_key)
    first, second = ((_FakeStream(source), _FakeStream(source)) for _ in range(2))
    # This is how it keeps the circuits of one source: under one key.
    relay._active_relays[source] = first
    relay._active_relays[source] = second
    trio.run(relay._relay_data, *first, source)
    assert [stream.closed for stream in second] == [True, True]
    assert "self._active_relays[source_addr] = (stream, None)" in inspect.getsource(CircuitV2Protocol)

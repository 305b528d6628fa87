"""Circuits among members (circuit relay v2 of libp2p, github.com/libp2p/specs, relay/circuit-v2.md).

It takes the place of py-libp2p's own relay, which gives places in the name of others and ends one circuit of
a peer with another. A relay passes bytes that it cannot read: Noise is spoken between the two ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import trio
from libp2p.abc import ConnectionType, INetStream
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Reservation, Status, StopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as PeerMessage
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from multiaddr import Multiaddr

from edgepool.transport.libp2p_child.wire import BufferedConnection
from edgepool.transport.refusals import CIRCUIT

HOP = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP = TProtocol("/libp2p/circuit/relay/0.2.0/stop")
RESERVED_S = 3600
MAX_CIRCUITS = 256
MAX_CIRCUITS_OF_A_PEER = 32
ANSWER_S = 10.0
_COPY_BYTES = 64 * 1024

OpenStream = Callable[[str, str, str], Any]


class Circuits:
    """Dials and takes circuits; with `serves` it is a relay for members too."""

    def __init__(self, connections: Any, serves: bool, count: Callable[[str], None]) -> None:
        self._connections = connections
        self._count = count
        self._places: dict[ID, None] = {}
        self._circuits: dict[tuple[ID, ID, int], None] = {}
        self._made = 0
        self._passed_bytes = 0
        connections.host.set_stream_handler(STOP, self._taken)
        if serves:
            connections.host.set_stream_handler(HOP, self._asked)

    # --- at the ends --------------------------------------------------------------------------

    async def reserve(self, relay: str, address: str) -> None:
        """Take a place at a relay, which holds as long as the connection; SwarmException if it says no."""
        stream = await self._connections.open_stream(relay, address, HOP)
        try:
            with trio.fail_after(ANSWER_S):
                await write_delimited_msg(stream, HopMessage(type=HopMessage.RESERVE))
                _expect_ok(await read_delimited_msg(stream, HopMessage))
        finally:
            await stream.reset()

    async def dial(self, address: str, peer: ID) -> Any:
        """Return a connection to `peer` through the relay in `address`."""
        way, _, _ = address.partition("/p2p-circuit")
        relay_address, _, relay = way.rpartition("/p2p/")
        stream = await self._connections.open_stream(relay, relay_address, HOP)
        try:
            with trio.fail_after(ANSWER_S):
                asked = HopMessage(type=HopMessage.CONNECT, peer=PeerMessage(id=peer.to_bytes()))
                await write_delimited_msg(stream, asked)
                _expect_ok(await read_delimited_msg(stream, HopMessage))
            raw = self._raw(stream, True, relay, str(peer))
            return await self._connections.swarm.upgrade_outbound_raw_conn(raw, peer)
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.reset()
            raise

    async def _taken(self, stream: INetStream) -> None:
        """Somebody comes through a relay: it is let in as at the port."""
        relay = stream.muxed_conn.peer_id
        try:
            with trio.fail_after(ANSWER_S):
                asked = await read_delimited_msg(stream, StopMessage)
                if asked.type != StopMessage.CONNECT or not self._connections.is_proven(relay):
                    raise SwarmException("no circuit is expected of it")
                await write_delimited_msg(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
            raw = self._raw(stream, False, str(relay), str(ID(asked.peer.id)))
            address = Multiaddr(f"/p2p/{relay}/p2p-circuit")
            await self._connections.swarm.upgrade_inbound_raw_conn(raw, address)
            await raw.stream.closed.wait()
        except Exception:
            await stream.reset()

    def _raw(self, stream: INetStream, dialled: bool, relay: str, peer: str) -> Any:
        through = [Multiaddr(f"/p2p/{relay}/p2p-circuit/p2p/{peer}")]
        return RawConnection(BufferedConnection(_AsSocket(stream)), dialled, ConnectionType.RELAYED, through)  # type: ignore[arg-type]

    # --- as a relay ---------------------------------------------------------------------------

    def passing(self) -> tuple[int, int, int]:
        """Return how many places are given, how many circuits are open, and how many bytes have passed."""
        places = sum(1 for peer in self._places if self._connections.live(peer))
        return places, len(self._circuits), self._passed_bytes

    async def _asked(self, stream: INetStream) -> None:
        asker = stream.muxed_conn.peer_id
        try:
            with trio.fail_after(ANSWER_S):
                asked = await read_delimited_msg(stream, HopMessage)
                if not self._connections.is_proven(asker):
                    await self._refuse(stream, Status.PERMISSION_DENIED)
                elif asked.type == HopMessage.RESERVE:
                    await self._grant(stream, asker)
                elif asked.type == HopMessage.CONNECT:
                    other = await self._reach(stream, asker, ID(asked.peer.id))
                else:
                    await self._refuse(stream, Status.MALFORMED_MESSAGE)
            if asked.type == HopMessage.CONNECT and self._connections.is_proven(asker) and other is not None:
                await self._pass(stream, other, asker, ID(asked.peer.id))
        except Exception:
            await stream.reset()

    async def _grant(self, stream: INetStream, asker: ID) -> None:
        """Give a place to who asks, never to somebody it names."""
        self._places = {peer: None for peer in self._places if self._connections.live(peer)}
        if asker not in self._places and len(self._places) >= MAX_CIRCUITS:
            await self._refuse(stream, Status.RESERVATION_REFUSED)
            return
        self._places[asker] = None
        granted = Reservation(expire=int(time.time()) + RESERVED_S)
        await write_delimited_msg(
            stream, HopMessage(type=HopMessage.STATUS, status=Status.OK, reservation=granted)
        )
        await stream.close()

    async def _reach(self, stream: INetStream, asker: ID, target: ID) -> INetStream | None:
        """Open the way to who keeps a place here; None if there is none, which the asker has been told."""
        of_the_asker = sum(1 for one, _, _ in self._circuits if one == asker)
        if len(self._circuits) >= MAX_CIRCUITS or of_the_asker >= MAX_CIRCUITS_OF_A_PEER:
            await self._refuse(stream, Status.RESOURCE_LIMIT_EXCEEDED)
            return None
        if target not in self._places or not self._connections.live(target):
            await self._refuse(stream, Status.NO_RESERVATION)
            return None
        other = await self._connections.open_stream(str(target), "", STOP)
        told = StopMessage(type=StopMessage.CONNECT, peer=PeerMessage(id=asker.to_bytes()))
        await write_delimited_msg(other, told)
        _expect_ok(await read_delimited_msg(other, StopMessage))
        await write_delimited_msg(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK))
        return other  # type: ignore[no-any-return]

    async def _pass(self, one: INetStream, other: INetStream, asker: ID, target: ID) -> None:
        self._made += 1
        circuit = (asker, target, self._made)
        self._circuits[circuit] = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, one, other, nursery.cancel_scope)
                nursery.start_soon(self._copy, other, one, nursery.cancel_scope)
        finally:
            del self._circuits[circuit]
            with trio.CancelScope(shield=True):
                await one.reset()
                await other.reset()

    async def _copy(self, source: INetStream, sink: INetStream, scope: trio.CancelScope) -> None:
        """Pass bytes on until either end is over; then the circuit is."""
        try:
            while True:
                data = await source.read(_COPY_BYTES)
                await sink.write(data)
                self._passed_bytes += len(data)
        except Exception:
            scope.cancel()

    async def _refuse(self, stream: INetStream, status: Any) -> None:
        self._count(CIRCUIT)
        await write_delimited_msg(stream, HopMessage(type=HopMessage.STATUS, status=status))
        await stream.close()


class _AsSocket:
    """A stream in the shape of a TCP stream, for BufferedConnection."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream

    @property
    def socket(self) -> _AsSocket:
        return self

    def getpeername(self) -> tuple[str, int]:
        return ("0.0.0.0", 0)

    async def receive_some(self, size_bytes: int) -> bytes:
        try:
            return await self._stream.read(size_bytes)
        except Exception:
            return b""

    async def send_all(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except Exception as error:
            raise trio.BrokenResourceError from error

    async def aclose(self) -> None:
        await self._stream.reset()


def _expect_ok(answer: Any) -> None:
    if answer.status != Status.OK:
        raise SwarmException(f"the relay says no: {Status.Name(answer.status)}")

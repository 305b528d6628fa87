"""Carries streams between the parent's socket and the host: bounded, credited, each with two small tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamEOF

from edgepool.model.codec import encode
from edgepool.model.ids import PeerId
from edgepool.transport.framing import header
from edgepool.transport.libp2p_child.messages import (
    CHUNK_BYTES,
    WINDOW_BYTES,
    Accepted,
    Credit,
    Data,
    Dial,
    Finish,
    FromChild,
    Met,
    Opened,
    Reset,
)
from edgepool.transport.libp2p_child.wire import AnotherPeer

Tell = Callable[[FromChild], Awaitable[None]]
Open = Callable[[str, str, str], Awaitable[INetStream]]


class ParentSocket:
    """Writes frames to the parent, one at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._lock = trio.Lock()

    async def tell(self, message: FromChild) -> None:
        """Send a message; wait while the parent does not read."""
        body = encode(message)
        async with self._lock:
            # Half a frame would spoil the socket for good.
            with trio.CancelScope(shield=True):
                await self._stream.send_all(header(len(body)) + body)


class Carried:
    """One stream: what the parent has sent and is not written yet, and how much it may be sent."""

    def __init__(self, number: int, stream: INetStream) -> None:
        self.number = number
        self.stream = stream
        self.credit_bytes = WINDOW_BYTES
        self.queue: deque[bytes | None] = deque()
        self.queued_bytes = 0
        self.changed = trio.lowlevel.ParkingLot()
        self.scope = trio.CancelScope()
        self.reset_by_parent = False


class Carrier:
    """All carried streams."""

    def __init__(self, tell: Tell, open_stream: Open) -> None:
        self.streams: dict[int, Carried] = {}
        self._tell = tell
        self._open_stream = open_stream
        self._next_number = 1
        self._dials: dict[int, trio.CancelScope] = {}

    # --- streams that begin -------------------------------------------------------------------

    async def accept(self, stream: INetStream) -> None:
        """Carry a stream that another peer has opened, until it is over."""
        number = self._next_number
        self._next_number += 2
        peer, protocol = str(stream.muxed_conn.peer_id), str(stream.get_protocol())
        carried = self.streams[number] = Carried(number, stream)
        await self._tell(Accepted(number, PeerId(peer), protocol, relay_of(stream)))
        await self._carry(carried)

    async def dial(self, order: Dial) -> None:
        """Open a stream and carry it until it is over."""
        try:
            with trio.move_on_after(order.timeout_ms / 1000) as scope:
                self._dials[order.stream] = scope
                stream = await self._open_stream(order.peer, order.address, order.protocol)
        except Exception as error:
            # py-libp2p's layers raise whatever their own parts do.
            met = _met(error)
            # Behind a relay it may be the relay that is another, and who is meant there is known by its key.
            named = bool(met) and "/p2p-circuit" not in order.address
            await self._tell(Met(order.stream, met) if named else Reset(order.stream, words(error)))
            return
        finally:
            del self._dials[order.stream]
        if scope.cancelled_caught:
            await self._tell(Reset(order.stream, "it did not answer in time"))
            return
        carried = self.streams[order.stream] = Carried(order.stream, stream)
        await self._tell(Opened(order.stream, relay_of(stream)))
        await self._carry(carried)

    # --- what the parent says -----------------------------------------------------------------

    def data(self, message: Data) -> None:
        """Queue bytes to be written; the parent keeps to its credit, or it is no parent of ours."""
        carried = self.streams.get(message.stream)
        if carried is not None:
            carried.queue.append(message.data)
            carried.queued_bytes += len(message.data)
            assert carried.queued_bytes <= WINDOW_BYTES, "the parent sent more than its credit"
            carried.changed.unpark_all()

    def finish(self, message: Finish) -> None:
        """Close our direction once everything queued is written."""
        carried = self.streams.get(message.stream)
        if carried is not None:
            carried.queue.append(None)
            carried.changed.unpark_all()

    def credit(self, message: Credit) -> None:
        """The parent takes more."""
        carried = self.streams.get(message.stream)
        if carried is not None:
            carried.credit_bytes += message.size_bytes
            carried.changed.unpark_all()

    def reset(self, message: Reset) -> None:
        """End a stream, or the attempt to open it."""
        dial = self._dials.get(message.stream)
        if dial is not None:
            dial.cancel()
        carried = self.streams.get(message.stream)
        if carried is not None:
            carried.reset_by_parent = True
            carried.scope.cancel()

    # --- carrying -----------------------------------------------------------------------------

    async def _carry(self, carried: Carried) -> None:
        reason = ""
        try:
            with carried.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._inward, carried)
                    nursery.start_soon(self._outward, carried)
        except* Exception as group:
            reason = words(group.exceptions[0])
        finally:
            self.streams.pop(carried.number, None)
            with trio.CancelScope(shield=True):
                if reason or carried.scope.cancelled_caught:
                    await carried.stream.reset()
                else:
                    await carried.stream.close()
        if not carried.reset_by_parent:
            await self._tell(Reset(carried.number, reason))

    async def _inward(self, carried: Carried) -> None:
        while True:
            while carried.credit_bytes <= 0:
                await carried.changed.park()
            try:
                data = await carried.stream.read(min(carried.credit_bytes, CHUNK_BYTES))
            except StreamEOF:
                await self._tell(Finish(carried.number))
                return
            carried.credit_bytes -= len(data)
            await self._tell(Data(carried.number, data))

    async def _outward(self, carried: Carried) -> None:
        while True:
            while not carried.queue:
                await carried.changed.park()
            data = carried.queue.popleft()
            if data is None:
                await carried.stream.close_write()
                return
            await carried.stream.write(data)
            carried.queued_bytes -= len(data)
            await self._tell(Credit(carried.number, len(data)))


def relay_of(stream: INetStream) -> PeerId:
    """Return the peer id of the relay that a stream goes through, '' if there is none."""
    try:
        addresses: list[Any] = stream.muxed_conn.get_transport_addresses()
    except Exception:
        return PeerId("")
    for address in map(str, addresses):
        way, circuit, _ = address.partition("/p2p-circuit")
        if circuit:
            return PeerId(way.rpartition("/p2p/")[2])
    return PeerId("")


def _met(error: BaseException) -> PeerId:
    """Return who was met instead of the peer that was dialled, '' if that is not what went wrong."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, AnotherPeer):
            return PeerId(cause.peer)
        cause = cause.__cause__
    return PeerId("")


def words(error: BaseException) -> str:
    """Return what an error says, in at most 500 characters."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return (str(error) or type(error).__name__)[:500]

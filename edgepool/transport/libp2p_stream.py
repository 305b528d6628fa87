"""One stream of the libp2p child, as an asyncio transport."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

from edgepool.model.ids import PeerId
from edgepool.transport.libp2p_child.messages import (
    CHUNK_BYTES,
    WINDOW_BYTES,
    Credit,
    Data,
    Finish,
    Reset,
    ToChild,
)

_HIGH_WATER_BYTES = 128 * 1024


class AnotherPeer(ConnectionRefusedError):
    """At an address is `peer`, as Noise has proved, and not the one that was dialled."""

    def __init__(self, peer: PeerId) -> None:
        super().__init__(0, "another peer answers there")
        self.peer = peer


class ChildBroken(Exception):
    """The child does what it never does: it is not to be trusted with another message."""


class StreamOwner(Protocol):
    """The process that a stream belongs to."""

    streams: dict[int, ChildStream]

    def say(self, message: ToChild) -> None:
        """Send the child a message."""
        ...


class ChildStream(asyncio.Transport):
    """One stream of the child, as an asyncio transport; both directions keep to their credit."""

    def __init__(self, process: StreamOwner, number: int, peer: PeerId, relay: PeerId) -> None:
        super().__init__()
        self.peer = peer
        self.relay = relay
        self._process = process
        self._number = number
        self._protocol: asyncio.BaseProtocol | None = None
        self._credit_bytes = WINDOW_BYTES
        self._owed_bytes = 0
        self._uncredited_bytes = 0
        self._queue: deque[memoryview] = deque()
        self._queued_bytes = 0
        self._high_bytes = _HIGH_WATER_BYTES
        self._paused_protocol = False
        self._paused_reading = False
        self._arrived: deque[bytes] = deque()
        self._ended_there = self._told_end = False
        self._finishing = False
        self._finished = False
        self._lost = False

    # --- for protocols ------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol take over; it is not told connection_made."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who has the stream."""
        assert self._protocol is not None
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return 'peername' as the peer id and '' for a port."""
        return (self.peer, 0) if name == "peername" else default

    def is_closing(self) -> bool:
        """Say whether nothing more can be written."""
        return self._finishing or self._lost

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set from how many queued bytes on the protocol is paused; it goes on at half of that."""
        self._high_bytes = _HIGH_WATER_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait for credit."""
        return self._queued_bytes

    def write(self, data: Any) -> None:
        """Queue bytes; they leave as credit comes in."""
        if self.is_closing() or not len(data):
            return
        self._queue.append(memoryview(bytes(data)))
        self._queued_bytes += len(data)
        self._flush()
        if self._queued_bytes > self._high_bytes and not self._paused_protocol:
            self._paused_protocol = True
            self.get_protocol().pause_writing()

    def close(self) -> None:
        """End our direction once everything is written; it is over when the other side's has ended too."""
        if not self.is_closing():
            self._finishing = True
            self._flush()

    def abort(self) -> None:
        """End the stream at once."""
        if not self._lost:
            self._process.say(Reset(self._number, ""))
            self.lose(None)

    def pause_reading(self) -> None:
        """Take no more data; the sender stops when its credit is used up."""
        self._paused_reading = True

    def resume_reading(self) -> None:
        """Take what has arrived, and more."""
        self._paused_reading = False
        asyncio.get_running_loop().call_soon(self._deliver)

    def is_reading(self) -> bool:
        """Say whether data is taken."""
        return not self._paused_reading

    # --- for the process ----------------------------------------------------------------------

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        """The stream stands: tell the protocol."""
        self._protocol = protocol
        protocol.connection_made(self)
        self._deliver()

    def credit(self, size_bytes: int) -> None:
        """The child has passed on so many bytes."""
        self._credit_bytes += size_bytes
        self._flush()

    def data(self, data: bytes) -> None:
        """Bytes arrived."""
        self._uncredited_bytes += len(data)
        if self._uncredited_bytes > WINDOW_BYTES:
            raise ChildBroken(f"it sends more than its credit on stream {self._number}")
        if not self._lost:
            self._arrived.append(data)
            self._deliver()

    def finish(self) -> None:
        """The other side's direction has ended."""
        self._ended_there = True
        self._deliver()

    def lose(self, error: Exception | None) -> None:
        """The stream is over."""
        if self._lost:
            return
        self._lost = True
        self._process.streams.pop(self._number, None)
        self._queue.clear()
        self._queued_bytes = 0
        if self._protocol is not None:
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, error)

    # --- inside -------------------------------------------------------------------------------

    def _flush(self) -> None:
        while self._queue and self._credit_bytes > 0 and not self._lost:
            head = self._queue[0]
            size = min(len(head), self._credit_bytes, CHUNK_BYTES)
            self._process.say(Data(self._number, bytes(head[:size])))
            self._credit_bytes -= size
            self._queued_bytes -= size
            if size == len(head):
                self._queue.popleft()
            else:
                self._queue[0] = head[size:]
        if self._paused_protocol and self._queued_bytes <= self._high_bytes // 2 and not self._lost:
            self._paused_protocol = False
            self.get_protocol().resume_writing()
        if self._finishing and not self._queue and not self._finished and not self._lost:
            self._finished = True
            self._process.say(Finish(self._number))
            # The child says when the stream is over, which it is once both directions have ended.

    def _deliver(self) -> None:
        if self._protocol is None:
            return
        while self._arrived and not self._paused_reading and not self._lost:
            data = self._arrived.popleft()
            self._owed_bytes += len(data)
            if self._owed_bytes >= WINDOW_BYTES // 4:
                self._process.say(Credit(self._number, self._owed_bytes))
                self._uncredited_bytes -= self._owed_bytes
                self._owed_bytes = 0
            hand_over(self.get_protocol(), data)
        if self._ended_there and not self._arrived and not self._lost and not self._told_end:
            self._told_end = True
            self._tell_end()

    def _tell_end(self) -> None:
        protocol = self.get_protocol()
        assert isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol)
        if not protocol.eof_received():
            self.close()


def hand_over(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """Give bytes to a protocol of either kind."""
    if isinstance(protocol, asyncio.BufferedProtocol):
        view = memoryview(data)
        while view:
            space = memoryview(protocol.get_buffer(len(view)))
            size = min(len(space), len(view))
            space[:size] = view[:size]
            protocol.buffer_updated(size)
            view = view[size:]
    else:
        assert isinstance(protocol, asyncio.Protocol)
        protocol.data_received(data)

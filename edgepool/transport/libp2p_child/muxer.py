"""Yamux (/yamux/1.0.0) with its rules enforced.

It takes the place of py-libp2p's own, which lets a peer send more than its window, polls every 10 ms when a
window is empty, breaks a sender whose reader rests for 5 s, and does not notice that the other side is dead.
Specification: github.com/hashicorp/yamux, spec.md.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

import trio
from libp2p.abc import ConnectionType, IMuxedConn, IMuxedStream, ISecureConn
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from multiaddr import Multiaddr

WINDOW_BYTES = 256 * 1024
"""The receive window of a stream, as the specification begins with; it is never made larger."""
STREAMS_OF_A_PEER = 32
"""So many streams a peer may have open to us on one connection; more are reset."""

_HEADER = struct.Struct(">BBHII")
_DATA, _WINDOW, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_PROTOCOL_ERROR = 1
# One frame in one Noise message, which holds at most 65,535 bytes with its 16 of authentication.
_MESSAGE_BYTES = 65_535 - 16
_FRAME_DATA_BYTES = _MESSAGE_BYTES - _HEADER.size
_QUEUE_BYTES = 4 * 65_536
_MAX_CONTROL_BYTES = 64 * 1024
_LINGER_S = 30.0


class ProtocolBroken(BaseLibp2pError):
    """The other side did what Yamux forbids."""


class Stream(IMuxedStream):
    """One stream. Closing it ends our direction; what the other side still sends is dropped then."""

    def __init__(self, conn: Yamux, number: int) -> None:
        self.muxed_conn = conn
        self.number = number
        self.send_window = WINDOW_BYTES
        self.receive_window = WINDOW_BYTES
        self.buffer = bytearray()
        self.unacknowledged_bytes = 0
        self.ended_here = self.ended_there = self.broken = False
        self.closed_at_s = 0.0
        self.changed = trio.lowlevel.ParkingLot()

    async def read(self, n: int | None = None) -> bytes:
        """Return at most `n` bytes, at least one; MuxedStreamEOF at the end."""
        if n == 0:
            return b""
        while not self.buffer:
            if self.broken:
                raise MuxedStreamReset
            if self.ended_there:
                raise MuxedStreamEOF
            await self.changed.park()
        if self.broken:
            raise MuxedStreamReset
        taken = bytes(self.buffer[:n])
        del self.buffer[:n]
        self.unacknowledged_bytes += len(taken)
        if self.unacknowledged_bytes >= WINDOW_BYTES // 2 and not self.ended_there:
            self.receive_window += self.unacknowledged_bytes
            self.muxed_conn.say(_WINDOW, 0, self.number, self.unacknowledged_bytes)
            self.unacknowledged_bytes = 0
        await trio.lowlevel.checkpoint()
        return taken

    async def write(self, data: bytes) -> None:
        """Write all of `data`, however long the other side takes to make room for it."""
        view = memoryview(data)
        while view:
            if self.broken:
                raise MuxedStreamReset
            if self.ended_here:
                raise MuxedStreamClosed
            if not self.send_window:
                await self.changed.park()
                continue
            size = min(len(view), self.send_window, _FRAME_DATA_BYTES)
            self.send_window -= size
            await self.muxed_conn.send(_HEADER.pack(0, _DATA, 0, self.number, size) + view[:size])
            view = view[size:]

    async def close(self) -> None:
        """End our direction."""
        if not self.ended_here and not self.broken:
            self.ended_here = True
            self.closed_at_s = trio.current_time()
            self.muxed_conn.say_last(_WINDOW, _FIN, self.number)
            self.changed.unpark_all()
            self.muxed_conn.forget_if_over(self)
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """End both directions at once."""
        if not self.broken:
            self.muxed_conn.say(_WINDOW, _RST, self.number, 0)
            self.muxed_conn.break_stream(self)
        await trio.lowlevel.checkpoint()

    def set_deadline(self, ttl: int) -> None:
        """Deadlines are the caller's."""
        raise NotImplementedError

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the other side's host and port."""
        return self.muxed_conn.secured_conn.get_remote_address()

    async def __aenter__(self) -> Stream:
        return self


class Yamux(IMuxedConn):
    """One connection: a reader, a writer, and a watch that ends it when nothing is heard."""

    def __init__(self, conn: ISecureConn, peer_id: ID, keepalive_s: float) -> None:
        self.secured_conn = conn
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self.on_close: Any = None
        self._keepalive_s = keepalive_s
        self._closed = trio.Event()
        self._streams: dict[int, Stream] = {}
        self._next_number = 1 if conn.is_initiator else 2
        self._accepted: deque[Stream] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._control = bytearray()
        self._frames: deque[bytes] = deque()
        self._frames_bytes = 0
        self._to_write = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._heard_at_s = trio.current_time()

    # --- for the host -------------------------------------------------------------------------

    @property
    def is_initiator(self) -> bool:
        """Say whether this side dialled."""
        return self.secured_conn.is_initiator

    @property
    def is_established(self) -> bool:
        """Say whether streams can be opened."""
        return self.event_started.is_set() and not self._closed.is_set()

    @property
    def is_closed(self) -> bool:
        """Say whether it is over."""
        return self._closed.is_set()

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Return the other side's addresses."""
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Say whether it is direct or relayed."""
        return self.secured_conn.get_connection_type()

    async def start(self) -> None:
        """Run until the connection is over."""
        async with trio.open_nursery() as nursery:
            for task in (self._read, self._write, self._watch):
                nursery.start_soon(self._guard, task)
            self.event_started.set()
            await self._closed.wait()
            nursery.cancel_scope.cancel()

    async def open_stream(self) -> Stream:
        """Open a stream; it is the other side that may refuse it."""
        if self._closed.is_set():
            raise MuxedConnUnavailable("the connection is over")
        stream = Stream(self, self._next_number)
        self._next_number += 2
        self._streams[stream.number] = stream
        self.say(_WINDOW, _SYN, stream.number, 0)
        await trio.lowlevel.checkpoint()
        return stream

    async def accept_stream(self) -> Stream:
        """Wait for a stream that the other side opens."""
        while not self._accepted:
            if self._closed.is_set():
                raise MuxedConnUnavailable("the connection is over")
            await self._arrived.park()
        return self._accepted.popleft()

    async def close(self) -> None:
        """End the connection and all streams."""
        if self._closed.is_set():
            return
        self._closed.set()
        for stream in list(self._streams.values()):
            self.break_stream(stream)
        for lot in (self._arrived, self._to_write, self._room):
            lot.unpark_all()
        with trio.CancelScope(shield=True):
            try:
                await self.secured_conn.close()
            except (BaseLibp2pError, OSError):
                pass
            if self.on_close is not None:
                await self.on_close()

    # --- for streams --------------------------------------------------------------------------

    def say(self, kind: int, flags: int, number: int, value: int) -> None:
        """Queue a frame without data; it goes before all data."""
        self._control += _HEADER.pack(0, kind, flags, number, value)
        self._to_write.unpark_all()

    def say_last(self, kind: int, flags: int, number: int) -> None:
        """Queue a frame without data behind all data that is queued."""
        self._frames.append(_HEADER.pack(0, kind, flags, number, 0))
        self._frames_bytes += _HEADER.size
        self._to_write.unpark_all()

    async def send(self, frame: bytes) -> None:
        """Queue a frame of data; wait while too many are queued."""
        while self._frames_bytes >= _QUEUE_BYTES and not self._closed.is_set():
            await self._room.park()
        if self._closed.is_set():
            raise MuxedStreamReset
        self._frames.append(frame)
        self._frames_bytes += len(frame)
        self._to_write.unpark_all()
        await trio.lowlevel.checkpoint()

    def forget_if_over(self, stream: Stream) -> None:
        """Forget a stream that has ended both ways."""
        if stream.broken or (stream.ended_here and stream.ended_there):
            self._streams.pop(stream.number, None)

    def break_stream(self, stream: Stream) -> None:
        """A stream is over, both ways."""
        stream.broken = True
        stream.buffer.clear()
        stream.changed.unpark_all()
        self._streams.pop(stream.number, None)

    # --- tasks --------------------------------------------------------------------------------

    async def _guard(self, task: Any) -> None:
        """Run a task; whatever goes wrong in it ends this connection and nothing else."""
        try:
            await task()
        except (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError, OSError, EOFError):
            pass
        except Exception:
            # A fault in decryption has the classes of three libraries.
            pass
        finally:
            await self.close()

    async def _read(self) -> None:
        buffer = bytearray()
        while True:
            buffer += await self.secured_conn.read(None)
            self._heard_at_s = trio.current_time()
            start = 0
            while len(buffer) - start >= _HEADER.size:
                version, kind, flags, number, value = _HEADER.unpack_from(buffer, start)
                if version or kind > _GO_AWAY:
                    raise ProtocolBroken("no frame of Yamux")
                size = value if kind == _DATA else 0
                if size:
                    self._check_window(flags, number, size)
                    if len(buffer) - start < _HEADER.size + size:
                        break
                start += _HEADER.size
                self._take(kind, flags, number, value, bytes(buffer[start : start + size]))
                start += size
            del buffer[:start]

    def _check_window(self, flags: int, number: int, size: int) -> None:
        """End the connection of who sends more than it was granted, before any of it is kept."""
        stream = self._streams.get(number)
        window = WINDOW_BYTES if stream is None else stream.receive_window
        if size > window:
            raise ProtocolBroken(f"{size} bytes in a window of {window}")

    def _take(self, kind: int, flags: int, number: int, value: int, data: bytes) -> None:
        if kind == _PING:
            if flags & _SYN:
                self._answer(_PING, _ACK, 0, value)
            return
        if kind == _GO_AWAY:
            raise EOFError
        stream = self._streams.get(number)
        if flags & _SYN:
            stream = self._open_for(number, stream)
        if stream is None:
            return
        if kind == _WINDOW:
            stream.send_window += value
            if stream.send_window >= 2**32:
                raise ProtocolBroken("a window beyond all bounds")
        elif not stream.ended_there:
            stream.receive_window -= len(data)
            stream.buffer += data
        if flags & _RST:
            self.break_stream(stream)
            return
        if flags & _FIN:
            stream.ended_there = True
            self.forget_if_over(stream)
        stream.changed.unpark_all()

    def _open_for(self, number: int, known: Stream | None) -> Stream | None:
        of_the_peer = 0 if self.is_initiator else 1
        if known is not None or number % 2 != of_the_peer or not number:
            raise ProtocolBroken("a stream opened twice, or in the other side's name")
        theirs = sum(1 for open_number in self._streams if open_number % 2 == of_the_peer)
        if theirs >= STREAMS_OF_A_PEER:
            self._answer(_WINDOW, _RST, number, 0)
            return None
        stream = self._streams[number] = Stream(self, number)
        self._answer(_WINDOW, _ACK, number, 0)
        self._accepted.append(stream)
        self._arrived.unpark_all()
        return stream

    def _answer(self, kind: int, flags: int, number: int, value: int) -> None:
        """Queue what the other side makes us say; one that reads none of it is ended."""
        if len(self._control) > _MAX_CONTROL_BYTES:
            raise ProtocolBroken("it asks and does not listen")
        self.say(kind, flags, number, value)

    async def _write(self) -> None:
        while not self._closed.is_set():
            if not self._control and not self._frames:
                await self._to_write.park()
                continue
            message = self._control
            self._control = bytearray()
            while self._frames and len(message) + len(self._frames[0]) <= _MESSAGE_BYTES:
                frame = self._frames.popleft()
                self._frames_bytes -= len(frame)
                message += frame
            self._room.unpark_all()
            await self.secured_conn.write(bytes(message))

    async def _watch(self) -> None:
        """Ping, and end the connection when nothing has been heard for three periods."""
        while True:
            await trio.sleep(self._keepalive_s)
            now_s = trio.current_time()
            if now_s - self._heard_at_s >= 3 * self._keepalive_s:
                return
            self.say(_PING, _SYN, 0, 0)
            for stream in list(self._streams.values()):
                if stream.ended_here and now_s - stream.closed_at_s > _LINGER_S and not stream.broken:
                    self.say(_WINDOW, _RST, stream.number, 0)
                    self.break_stream(stream)

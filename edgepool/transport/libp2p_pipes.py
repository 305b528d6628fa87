"""Byte streams of libp2p as sockets: for data between peers that only a libp2p relay joins.

What goes through is TLS between the two ends, as on any other way (dial.py); neither the relay nor libp2p's
children can read it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import cast

BYTES_STREAM = "/edgepool/bytes/1"
"""The protocol of plain bytes, which the listener of the other side takes as if they had come to its port."""


class StreamSide(asyncio.BufferedProtocol):
    """The libp2p end of a pipe; nothing more is read of it until its socket is there."""

    def __init__(self) -> None:
        self._stream: asyncio.Transport | None = None
        self._socket_side: asyncio.Transport | None = None
        self._buffer = bytearray(64 * 1024)
        self._early = bytearray()

    async def as_socket(self) -> socket.socket:
        """Return a connected, non-blocking TCP socket: what goes in comes out of the stream, and back."""
        ours, theirs = tcp_pair()
        try:
            made, _ = await asyncio.get_running_loop().create_connection(lambda: _SocketSide(self), sock=ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        self._socket_side = made
        if self._early:
            made.write(bytes(self._early))
            self._early.clear()
        if self._stream is None:
            made.abort()
        else:
            self._stream.resume_reading()
        return theirs

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Both sides have proved their membership."""
        self._stream = cast("asyncio.Transport", transport)
        self._stream.pause_reading()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where to read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Pass bytes on to the socket; what came together with the proof waits for it."""
        data = memoryview(self._buffer)[:nbytes]
        if self._socket_side is not None:
            self._socket_side.write(bytes(data))
        else:
            self._early += data

    def eof_received(self) -> bool:
        """Pass the end on; our direction may go on."""
        if self._socket_side is not None and self._socket_side.can_write_eof():
            self._socket_side.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream is over, and with it the pipe."""
        self._stream = None
        if self._socket_side is not None:
            self._socket_side.close()

    def pause_writing(self) -> None:
        """libp2p is slower than who writes."""
        if self._socket_side is not None:
            self._socket_side.pause_reading()

    def resume_writing(self) -> None:
        """There is room again."""
        if self._socket_side is not None and not self._socket_side.is_closing():
            self._socket_side.resume_reading()

    # --- for the socket's side ----------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Pass bytes on to the stream."""
        if self._stream is not None:
            self._stream.write(data)

    def hold(self, held: bool) -> None:
        """Take no more of the stream, or go on."""
        if self._stream is not None:
            (self._stream.pause_reading if held else self._stream.resume_reading)()

    def end(self) -> None:
        """The socket was closed: nothing more will be said."""
        if self._stream is not None:
            self._stream.close()


class _SocketSide(asyncio.Protocol):
    def __init__(self, stream_side: StreamSide) -> None:
        self._stream_side = stream_side

    def data_received(self, data: bytes) -> None:
        self._stream_side.send(data)

    def pause_writing(self) -> None:
        self._stream_side.hold(True)

    def resume_writing(self) -> None:
        self._stream_side.hold(False)

    def eof_received(self) -> bool:
        self._stream_side.end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._stream_side.end()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a connection on loopback, both non-blocking; nobody else can be at either."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        ours = socket.create_connection(listener.getsockname())
        while True:
            theirs, where = listener.accept()
            if where == ours.getsockname():
                break
            theirs.close()
    for end in (ours, theirs):
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs

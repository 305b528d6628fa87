"""The bare things beside links and transfers: TLS 1.3 with asyncio's BufferedProtocol and nothing else.

They use the certificates, ciphers and processes of the links that they stand beside, and do the least
that does the same: an echo without frames, and a file's bytes, hashed as they come.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import cast

from blake3 import blake3

ECHO_BYTES = 1024
_PIECE_BYTES = 256 * 1024
_READ_BYTES = 1024 * 1024
_WRITE_AHEAD_BYTES = 512 * 1024


class _Bare(asyncio.BufferedProtocol):
    """A connection that reads into one buffer of `size_bytes` and says when it is full."""

    def __init__(self, size_bytes: int) -> None:
        self._buffer = bytearray(size_bytes)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self.transport = transport
        transport.set_write_buffer_limits(high=_WRITE_AHEAD_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled == len(self._buffer):
            self._filled = 0
            self.full(self._view)

    def full(self, data: memoryview) -> None:
        raise NotImplementedError


class EchoServer(_Bare):
    """Sends back every 1 KB that it gets."""

    def __init__(self) -> None:
        super().__init__(ECHO_BYTES)

    def full(self, data: memoryview) -> None:
        """Answer."""
        assert self.transport is not None
        self.transport.write(bytes(data))


class EchoClient(_Bare):
    """Asks with 1 KB and tells when the same has come back."""

    def __init__(self) -> None:
        super().__init__(ECHO_BYTES)
        self._answered: asyncio.Future[bytes] | None = None

    def ask(self, data: bytes) -> asyncio.Future[bytes]:
        """Send 1 KB; the future is the answer."""
        assert self.transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self._answered

    def full(self, data: memoryview) -> None:
        """Take the answer."""
        assert self._answered is not None
        self._answered.set_result(bytes(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody answers any more."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError("the echo ended"))


class FileSender(_Bare):
    """Sends a file whenever it is sent a byte, as fast as it is taken."""

    def __init__(self, path: Path) -> None:
        super().__init__(1)
        self._fd = os.open(path, os.O_RDONLY)
        self._size_bytes = os.fstat(self._fd).st_size
        self._offset = self._size_bytes
        self._paused = False

    def full(self, data: memoryview) -> None:
        """Begin."""
        self._offset = 0
        self._send()

    def pause_writing(self) -> None:
        """Wait."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        os.close(self._fd)
        self._offset = self._size_bytes

    def _send(self) -> None:
        assert self.transport is not None
        while not self._paused and self._offset < self._size_bytes:
            piece = os.pread(self._fd, _PIECE_BYTES, self._offset)
            self._offset += len(piece)
            self.transport.write(piece)


class FileReceiver(asyncio.BufferedProtocol):
    """Receives a file and hashes it as it comes with BLAKE3."""

    def __init__(self, size_bytes: int, digest: bytes) -> None:
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._size_bytes = size_bytes
        self._digest = digest
        self._missing_bytes = 0
        self._hash = blake3()
        self._whole: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport | None = None

    def receive(self) -> asyncio.Future[None]:
        """Ask for the file; the future is done once it is here and its hash is right."""
        assert self.transport is not None
        self._missing_bytes = self._size_bytes
        self._hash = blake3()
        self._whole = asyncio.get_running_loop().create_future()
        self.transport.write(b"!")
        return self._whole

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Hash what came."""
        self._hash.update(self._view[:nbytes])
        self._missing_bytes -= nbytes
        if self._missing_bytes <= 0 and self._whole is not None and not self._whole.done():
            if self._missing_bytes or self._hash.digest() != self._digest:
                self._whole.set_exception(ConnectionError("other bytes came than were sent"))
            else:
                self._whole.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing comes any more."""
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(ConnectionError("the copy ended"))

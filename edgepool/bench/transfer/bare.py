"""The ceiling: a file over asyncio's TLS 1.3 by BufferedProtocol, hashed with BLAKE3 as it comes.

The certificates, the cipher and the event loop are those of edgepool's own connections. Nothing is
framed, asked, chunked or resumed; with `keep` the bytes are written to a file and synced.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any

from edgepool.bench.bare import FileReceiver, FileSender
from edgepool.bench.transfer.side import Where
from edgepool.config import load_peer_settings
from edgepool.transport.identity import Identity, load_identity


class Sender:
    """Sends the file whenever a byte comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: asyncio.Server | None = None

    def context(self, identity: Identity) -> ssl.SSLContext | None:
        """Return what secures the connection."""
        return identity.server_context

    async def open(self, host: str, path: Path) -> Where:
        """Listen."""
        context = self.context(load_identity(load_peer_settings(self._folder)))
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: FileSender(path), host, 0, ssl=context)
        return {"port": self._server.sockets[0].getsockname()[1]}

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()


class Receiver:
    """Receives the file over one connection, which stays open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._where: Where = {}
        self._data = (0, b"")
        self._receiver: _KeepingReceiver | None = None

    def context(self, identity: Identity) -> ssl.SSLContext | None:
        """Return what secures the connection."""
        return identity.link_context

    async def open(self, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Connect to the first of them."""
        self._where, self._data = senders[0], (size_bytes, bytes.fromhex(digest))
        await self.dial()

    async def dial(self) -> None:
        """Connect, again if need be."""
        await self.close()
        context = self.context(load_identity(load_peer_settings(self._folder)))
        _, self._receiver = await asyncio.get_running_loop().create_connection(
            lambda: _KeepingReceiver(*self._data, self._folder / "kept"),
            self._where["host"],
            self._where["port"],
            ssl=context,
            server_hostname="" if context is not None else None,
        )

    async def receive(self, keep: bool = False, **_: Any) -> dict[str, Any]:
        """Receive all; into a file that is synced if it is to be kept."""
        assert self._receiver is not None
        if keep:
            await self._receiver.keep()
        else:
            await self._receiver.receive()
        return {}

    async def close(self) -> None:
        """Disconnect."""
        if self._receiver is not None and self._receiver.transport is not None:
            self._receiver.transport.abort()


class _KeepingReceiver(FileReceiver):
    """A FileReceiver that may write what comes into a file."""

    def __init__(self, size_bytes: int, digest: bytes, path: Path) -> None:
        super().__init__(size_bytes, digest)
        self._path = path
        self._fd = -1

    async def keep(self) -> None:
        """Receive into the file, and sync it; it is removed again."""
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            await self.receive()
            await asyncio.to_thread(os.fsync, self._fd)
        finally:
            os.close(self._fd)
            self._fd = -1
            self._path.unlink()

    def buffer_updated(self, nbytes: int) -> None:
        """Write what came, if it is to be kept, and hash it."""
        if self._fd >= 0:
            os.write(self._fd, self.get_buffer(-1)[:nbytes])
        super().buffer_updated(nbytes)

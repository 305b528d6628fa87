"""The other end of the links that are measured: echoes frames and serves a file, ours and bare.

Run as a helper process (see processes.py).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from time import process_time
from typing import Any

from edgepool.bench.bare import EchoServer, FileSender
from edgepool.bench.processes import Answer, serve
from edgepool.config import load_peer_settings
from edgepool.model.crypto import data_hash
from edgepool.model.ids import PeerId
from edgepool.model.transfer import TransferRequest
from edgepool.model.twin import Manifest, chunk_bytes_for
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.dial import Way
from edgepool.transport.identity import load_identity
from edgepool.transport.serving import TransferSource
from edgepool.transport.tls import TlsTransport
from edgepool.transport.transfer_server import TransferServer


class Answerer:
    """A transport that sends every frame back, a transfer server, and their bare counterparts."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        settings = load_peer_settings(folder / "answerer")
        self._identity = load_identity(settings)
        counters: dict[str, int] = {}
        transfers = TransferServer(self._serve_data, settings.limits, counters)
        self._transport = TlsTransport(settings, self._identity, counters, transfers)
        self._manifest: Manifest | None = None
        self._servers: list[asyncio.Server] = []

    async def open(self, size_bytes: int) -> dict[str, Any]:
        """Listen with everything; the data has `size_bytes`."""
        self._manifest = _make_data(self._data, size_bytes)
        await self._transport.start(self)
        loop = asyncio.get_running_loop()
        context = self._identity.server_context
        for protocol in (EchoServer, lambda: FileSender(self._data)):
            self._servers.append(await loop.create_server(protocol, "127.0.0.1", 0, ssl=context))
        echo_port, file_port = (server.sockets[0].getsockname()[1] for server in self._servers)
        return {
            "addresses": self._transport.addresses,
            "root": self._manifest.root.hex(),
            "chunk": self._manifest.chunks[0].hex(),
            "digest": data_hash(self._data.read_bytes()).hex(),
            "echo_port": echo_port,
            "file_port": file_port,
        }

    async def cpu_s(self) -> float:
        """Return how much processor time this process has had."""
        return process_time()

    async def end(self) -> None:
        """Close everything."""
        for server in self._servers:
            server.close()
        await self._transport.close()

    def link_up(self, identity: PeerIdentity) -> None:
        """A link stands."""

    def link_down(self, peer: PeerId, reason: str) -> None:
        """The link is gone."""

    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        """Send the frame back."""
        self._transport.send(peer, frame)

    def _serve_data(self, identity: PeerIdentity, request: TransferRequest, _: Way) -> TransferSource | str:
        if self._manifest is None:
            return "nothing to serve"
        return TransferSource(self._manifest, self._data, lambda size_bytes: None, lambda sent, failure: None)


def _make_data(path: Path, size_bytes: int) -> Manifest:
    """Make the file, of one chunk that does not compress, again and again."""
    chunk_bytes = min(chunk_bytes_for(size_bytes), size_bytes)
    chunk = os.urandom(chunk_bytes)
    with path.open("wb") as file:
        for _ in range(0, size_bytes, chunk_bytes):
            file.write(chunk)
    return Manifest(
        size_bytes, chunk_bytes_for(size_bytes), (data_hash(chunk),) * (size_bytes // chunk_bytes)
    )


def _answers(folder: Path) -> dict[str, Answer]:
    answerer = Answerer(folder)
    return {"open": answerer.open, "cpu_s": answerer.cpu_s, "end": answerer.end}


if __name__ == "__main__":
    serve(_answers)

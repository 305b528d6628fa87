"""The product's own transfers between the two sides; the only room of this bench that knows their API.

A requester asks by a confirmation that the holder has signed, as after a fetch on chain; every chunk is
checked. With `keep` the data goes into a blob store, synced, otherwise it is checked and thrown away.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edgepool.bench.material import NETWORK
from edgepool.bench.transfer.material import files_of
from edgepool.bench.transfer.side import Where
from edgepool.config import load_peer_settings
from edgepool.errors import Unavailable
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import data_hash
from edgepool.model.ids import ChainId, PeerId, format_address
from edgepool.model.record import SignedRecord, TransmissionConfirmation, sign_record
from edgepool.model.transfer import TransferRequest, confirmation_of
from edgepool.model.twin import DataKey, Manifest, chunk_bytes_for
from edgepool.runtime.ports import PeerIdentity
from edgepool.storage.blobs import BlobStore
from edgepool.storage.partial import PartialBlob
from edgepool.transport.fetching import Fetch
from edgepool.transport.identity import load_identity
from edgepool.transport.receiving import ChunkSink
from edgepool.transport.serving import TransferSource
from edgepool.transport.tls import TlsTransport
from edgepool.transport.transfer import TransferClient
from edgepool.transport.transfer_server import TransferServer

_STORE_BYTES = 64 * 1024**3


class Sender:
    """A holder of one file."""

    def __init__(self, folder: Path) -> None:
        self._settings = load_peer_settings(folder)
        self._transport: TlsTransport | None = None
        self._held: dict[bytes, tuple[Manifest, Path]] = {}

    async def open(self, host: str, path: Path) -> Where:
        """Listen, holding the file, or all files of a folder."""
        settings = replace(self._settings, listen=format_address(host, 0))
        identity = load_identity(settings)
        counters: dict[str, int] = {}
        transfers = TransferServer(self._serve, settings.limits, counters)
        self._transport = TlsTransport(settings, identity, counters, transfers)
        files = []
        for file in files_of(path):
            manifest = _manifest(file)
            self._held[manifest.root] = manifest, file
            files.append((manifest.root.hex(), manifest.size_bytes))
        await self._transport.start(self)
        return {
            "peer": identity.peer,
            "port": int(self._transport.addresses[0].rpartition("/")[2]),
            "files": files,
            "pid": os.getpid(),
        }

    async def close(self) -> None:
        """End everything."""
        if self._transport is not None:
            await self._transport.close()

    def link_up(self, identity: PeerIdentity) -> None:
        """A link stands."""

    def link_down(self, peer: PeerId, reason: str) -> None:
        """The link is gone."""

    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        """Nobody asks over links here."""

    def _serve(self, identity: PeerIdentity, request: TransferRequest) -> TransferSource | str:
        manifest, path = self._held[confirmation_of(request.confirmation).root]
        return TransferSource(manifest, path, lambda size_bytes: None, lambda sent, failure: None)


class Receiver:
    """A requester of what one or more holders have."""

    def __init__(self, folder: Path) -> None:
        self._settings = load_peer_settings(folder)
        self._identity = load_identity(self._settings)
        self._client = TransferClient(self._identity, self._settings.limits)
        self._folder = folder
        self._senders: list[Where] = []
        self._size_bytes = 0

    async def open(self, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Remember whom to ask; the root that they name is checked by whoever compares digests."""
        self._senders, self._size_bytes = senders, size_bytes

    async def receive(self, keep: bool = False, kill_at: float = 0.0, **_: Any) -> dict[str, Any]:
        """Fetch all, from all holders at once; kill the first holder's process once that share has come."""
        killer = _Killer(self._senders[0]["pid"], kill_at) if kill_at else None
        files = self._senders[0]["files"]
        came_bytes = sum([await self._fetch(bytes.fromhex(root), size, keep, killer) for root, size in files])
        if came_bytes != self._size_bytes:
            raise Unavailable(f"{came_bytes} of {self._size_bytes} bytes arrived")
        return {}

    async def close(self) -> None:
        """End the connections."""
        await self._client.close()

    async def _fetch(self, root: bytes, size_bytes: int, keep: bool, killer: _Killer | None) -> int:
        sink = _Kept(self._folder / "store") if keep else _Sink()

        def moved(holder: PeerId, size_bytes: int) -> None:
            if killer is not None:
                killer(fetch.done_bytes, fetch.size_bytes)

        fetch = Fetch(self._client, root, size_bytes, sink.open, moved)
        draws = [
            fetch.draw_from(
                PeerId(sender["peer"]),
                (format_address(sender["host"], sender["port"]),),
                self._confirmation(sender, root, size_bytes),
            )
            for sender in self._senders
        ]
        ends = await asyncio.gather(*draws, return_exceptions=True)
        await fetch.finish()
        if not fetch.whole:
            raise Unavailable("; ".join(str(end) for end in ends if end is not None))
        return await asyncio.to_thread(sink.finish)

    def _confirmation(self, sender: Where, root: bytes, size_bytes: int) -> SignedRecord:
        terms = TransmissionConfirmation(
            DataKey("bench", "data"),
            root,
            size_bytes,
            self._identity.peer,
            PeerId(sender["peer"]),
            2**50,
            bytes(64),
        )
        record = sign_record(self._identity.signer, NETWORK, ChainId("0" * 40), terms, 0, 0)
        return decode(SignedRecord, encode(record))


class _Sink:
    """A ChunkSink that keeps nothing but the count."""

    def __init__(self) -> None:
        self._size_bytes = 0

    def open(self, manifest: Manifest) -> ChunkSink:
        """Want all of it."""
        return self

    def has(self, index: int) -> bool:
        """Nothing is there."""
        return False

    def write(self, index: int, data: memoryview) -> None:
        """Count a chunk."""
        self._size_bytes += len(data)

    def finish(self) -> int:
        """Return how many bytes came."""
        return self._size_bytes


class _Kept(_Sink):
    """Data into a blob store, from which it is deleted again."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._store = BlobStore(folder, _STORE_BYTES)
        self._writer: PartialBlob | None = None

    def open(self, manifest: Manifest) -> ChunkSink:
        """Open the writer."""
        self._writer = self._store.writer(manifest)
        return self._writer

    def finish(self) -> int:
        """Make it durable; return how many bytes are held."""
        assert self._writer is not None
        size_bytes = self._writer.finish().stat().st_size
        self._store.delete(self._writer.manifest.root)
        return size_bytes


class _Killer:
    """Is told of progress, and kills a process once the given share has come."""

    def __init__(self, pid: int, share: float) -> None:
        self._pid = pid
        self._share = share

    def __call__(self, done_bytes: int, size_bytes: int) -> None:
        if self._pid and done_bytes >= size_bytes * self._share:
            os.kill(self._pid, signal.SIGKILL)
            self._pid = 0


def _manifest(path: Path) -> Manifest:
    size_bytes = path.stat().st_size
    chunk_bytes = chunk_bytes_for(size_bytes)
    with path.open("rb") as file:
        hashes = [data_hash(file.read(chunk_bytes)) for _ in range(0, size_bytes, chunk_bytes)]
    return Manifest(size_bytes, chunk_bytes, tuple(hashes))

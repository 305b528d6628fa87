"""The product's own transfers between the two sides; the only room of this bench that knows their API.

A requester asks by a confirmation that the holder has signed, as after a fetch on chain; every chunk is
checked. With `keep` the data goes into a blob store, synced, otherwise it is checked and thrown away.
"""

from __future__ import annotations

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
from edgepool.model.message import TransferRequest, confirmation_of
from edgepool.model.record import SignedRecord, TransmissionConfirmation, sign_record
from edgepool.model.twin import DataKey, Manifest, chunk_bytes_for
from edgepool.runtime.ports import PeerIdentity
from edgepool.storage.blobs import BlobStore, BlobWriter
from edgepool.transport.identity import load_identity
from edgepool.transport.tls import TlsTransport
from edgepool.transport.transfer import fetch
from edgepool.transport.transfer_server import TransferServer, TransferSource

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
        self._folder = folder
        self._senders: list[Where] = []
        self._size_bytes = 0

    async def open(self, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Remember whom to ask; the root that they name is checked by whoever compares digests."""
        self._senders, self._size_bytes = senders, size_bytes

    async def receive(self, keep: bool = False, kill_at: float = 0.0, **_: Any) -> dict[str, Any]:
        """Fetch all; kill the process of the first holder once that share has come."""
        if len(self._senders) > 1:
            raise Unavailable("this version fetches from one holder at a time")
        sender = self._senders[0]
        killer = _Killer(sender["pid"], kill_at) if kill_at else None
        came_bytes = 0
        for root, size_bytes in sender["files"]:
            sink = _Kept(self._folder / "store") if keep else _Sink()
            await fetch(
                self._identity,
                (format_address(sender["host"], sender["port"]),),
                PeerId(sender["peer"]),
                TransferRequest(self._confirmation(sender, bytes.fromhex(root), size_bytes), 0),
                sink,
                limits=self._settings.limits,
                progress=killer,
            )
            came_bytes += sink.finish()
        if came_bytes != self._size_bytes:
            raise Unavailable(f"{came_bytes} of {self._size_bytes} bytes arrived")
        return {}

    async def close(self) -> None:
        """Nothing is left open."""

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
    """A ChunkWriter that keeps nothing but the count."""

    def __init__(self) -> None:
        self._size_bytes = 0

    def begin(self, manifest: Manifest) -> int:
        """Want all of it."""
        return 0

    def put(self, index: int, data: memoryview) -> None:
        """Count a chunk."""
        self._size_bytes += len(data)

    def finish(self) -> int:
        """Return how many bytes came."""
        return self._size_bytes


class _Kept(_Sink):
    """A ChunkWriter into a blob store, from which the data is deleted again."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._store = BlobStore(folder, _STORE_BYTES)
        self._writer: BlobWriter | None = None
        self._root = b""

    def begin(self, manifest: Manifest) -> int:
        """Open the writer."""
        self._root, self._writer = manifest.root, self._store.writer(manifest)
        return 0

    def put(self, index: int, data: memoryview) -> None:
        """Write a chunk."""
        assert self._writer is not None
        self._writer.put(index, data)

    def finish(self) -> int:
        """Make it durable; return how many bytes are held."""
        assert self._writer is not None
        size_bytes = self._writer.finish().stat().st_size
        self._store.delete(self._root)
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

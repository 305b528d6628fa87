"""The product's own transfers between the sides; the only room of this bench that knows their API.

A requester asks by a signed confirmation, which the holder verifies as after a fetch on chain; every chunk
is checked. With `keep` the data goes into a blob store, synced, otherwise it is checked and thrown away.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from time import perf_counter
from typing import Any

from msgspec.structs import replace

from edgepool.bench.figures import percentile
from edgepool.bench.material import NETWORK
from edgepool.bench.transfer.material import files_of
from edgepool.bench.transfer.side import Where
from edgepool.config import load_peer_settings
from edgepool.errors import Unavailable
from edgepool.model.crypto import data_hash
from edgepool.model.ids import ChainId, PeerId, format_address
from edgepool.model.record import SignedRecord, TransmissionConfirmation, sign_record
from edgepool.model.transfer import INLINE_BYTES, TransferRequest, confirmation_of
from edgepool.model.twin import DataKey, Manifest, chunk_bytes_for
from edgepool.runtime.ports import PeerIdentity
from edgepool.storage.blobs import BlobStore
from edgepool.storage.partial import PartialBlob
from edgepool.transport.bundles import fetch_bundle
from edgepool.transport.dial import Way
from edgepool.transport.fetching import Fetch, fetch_small
from edgepool.transport.identity import load_identity
from edgepool.transport.packing import open_base
from edgepool.transport.receiving import ChunkSink
from edgepool.transport.serving import TransferSource
from edgepool.transport.tls import TlsTransport
from edgepool.transport.transfer import TransferClient
from edgepool.transport.transfer_server import TransferServer
from edgepool.transport.vouching import Vouched

FILES_AT_ONCE = 128
_STORE_BYTES = 64 * 1024**3


class Sender:
    """A holder of one file, or of all files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._settings = load_peer_settings(folder)
        self._transport: TlsTransport | None = None
        self._vouched = Vouched()
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

    def _serve(self, identity: PeerIdentity, request: TransferRequest, _: Way) -> TransferSource | str:
        if not self._vouched.authentic(request.confirmation):
            return "the confirmation is not signed"
        manifest, path = self._held[confirmation_of(request.confirmation).root]
        bases = [self._held[root] for root in request.bases if root in self._held]
        return TransferSource(manifest, path, _moved, _done, base=bases[0] if bases else None)


class Receiver:
    """A requester of what one or more holders have, over connections that stay open."""

    def __init__(self, folder: Path) -> None:
        settings = load_peer_settings(folder)
        self._identity = load_identity(settings)
        self._client = TransferClient(self._identity, settings.limits)
        self._folder, self._kept = folder, 0
        self._store = BlobStore(folder / "store", _STORE_BYTES)
        self._senders: list[Where] = []
        self._confirmations: dict[tuple[str, int], SignedRecord] = {}
        self._size_bytes = 0

    async def open(self, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Make the confirmations; what comes is checked against the roots that the senders name."""
        self._senders, self._size_bytes = senders, size_bytes
        for sender in senders:
            sender["addresses"] = (format_address(sender["host"], sender["port"]),)
            for place, (root, file_bytes) in enumerate(sender["files"]):
                made = self._confirmation(sender, bytes.fromhex(root), file_bytes)
                self._confirmations[sender["peer"], place] = made

    async def receive(
        self, keep: bool = False, kill_at: float = 0.0, trips: int = 0, old: str = "", **_: Any
    ) -> dict[str, Any]:
        """Fetch all files, some at a time.

        With `kill_at` the first holder's process is killed once that share has come. With `trips` the
        first file is fetched so often, one after the other, and 'p50_s' is told. With `old` that file is
        an older version of the first one, which alone is fetched; 'wire_bytes' is told.
        """
        if old:
            return await self._fetch_new(Path(old))
        if trips:
            return {"p50_s": percentile([await self._trip() for _ in range(trips)], 50)}
        killer = _Killer(self._senders[0]["pid"], kill_at * self._size_bytes) if kill_at else None
        if len(self._senders[0]["files"]) > 1 and not killer:
            return await self._fetch_bundle(keep)
        places = iter(range(len(self._senders[0]["files"])))

        async def some() -> int:
            return sum([await self._fetch(place, keep, killer) for place in places])

        came = await asyncio.gather(*(some() for _ in range(FILES_AT_ONCE)))
        if sum(came) != self._size_bytes:
            raise Unavailable(f"{sum(came)} of {self._size_bytes} bytes arrived")
        return {}

    async def close(self) -> None:
        """End the connections."""
        await self._client.close()

    async def _fetch_new(self, old: Path) -> dict[str, Any]:
        base = open_base(_manifest(old), old)
        try:
            fetch = Fetch(self._client, *self._named(0), lambda _: _Sink(), _nothing, bases=(base,))
            try:
                await self._draw(fetch, self._senders[0], 0)
            finally:
                await fetch.stop()
            await fetch.finish()
        finally:
            base.close()
        return {"wire_bytes": fetch.wire_bytes}

    async def _trip(self) -> float:
        start_s = perf_counter()
        await self._fetch(0, False, None)
        return perf_counter() - start_s

    async def _fetch(self, place: int, keep: bool, killer: _Killer | None) -> int:
        """Fetch the file at `place` from all holders; return how many bytes there are."""
        sink = _Sink()
        root, size_bytes = self._named(place)
        if size_bytes <= INLINE_BYTES and len(self._senders) == 1 and not keep:
            return await self._fetch_small(place)
        writers: list[PartialBlob] = []

        def open_sink(manifest: Manifest) -> ChunkSink:
            if keep:
                writers.append(self._store.writer(manifest))
            return writers[0] if keep else sink

        def moved(holder: PeerId, moved_bytes: int) -> None:
            if killer is not None:
                killer.moved(moved_bytes)

        fetch = Fetch(self._client, root, size_bytes, open_sink, moved)
        try:
            draws = [self._draw(fetch, sender, place) for sender in self._senders]
            ends = await asyncio.gather(*draws, return_exceptions=True)
            await fetch.finish()
        finally:
            await fetch.stop()
        if not fetch.whole:
            raise next(end for end in ends if isinstance(end, BaseException))
        if keep:
            path = await asyncio.to_thread(writers[0].finish)
            sink.size_bytes = path.stat().st_size
            self._store.delete(root)
        return sink.size_bytes

    def _named(self, place: int) -> tuple[bytes, int]:
        """Return the root and the size of the file at `place`."""
        root, size_bytes = self._senders[0]["files"][place]
        return bytes.fromhex(root), size_bytes

    async def _fetch_small(self, place: int) -> int:
        sender = self._senders[0]
        confirmation = self._confirmations[sender["peer"], place]
        holder, addresses = PeerId(sender["peer"]), sender["addresses"]
        _, data = await fetch_small(self._client, holder, addresses, confirmation)
        return len(data)

    async def _fetch_bundle(self, keep: bool) -> dict[str, Any]:
        """Fetch all files, which are small, in one exchange; with `keep` all are durable together."""
        sender = self._senders[0]
        came: list[int] = []
        group = None
        if keep:  # a new folder each time: files that were just deleted make new ones slow on ext4
            self._kept += 1
            store = BlobStore(self._folder / f"many-{self._kept}", _STORE_BYTES)
            group = store.group(self._size_bytes)

        def take(index: int, manifest: Manifest, data: memoryview) -> None:
            came.append(len(data))
            if group is not None:
                group.put(manifest, data)

        confirmations = [self._confirmations[sender["peer"], place] for place in range(len(sender["files"]))]
        holder, addresses = PeerId(sender["peer"]), sender["addresses"]
        failures = await fetch_bundle(self._client, holder, addresses, confirmations, take)
        if sum(came) != self._size_bytes:
            why = next(iter(failures.values()), "the holder has no more")
            raise Unavailable(f"{sum(came)} of {self._size_bytes} bytes arrived: {why}")
        if group is not None:
            await asyncio.to_thread(group.finish)
        return {}

    async def _draw(self, fetch: Fetch, sender: Where, place: int) -> None:
        confirmation = self._confirmations[sender["peer"], place]
        await fetch.draw_from(PeerId(sender["peer"]), sender["addresses"], confirmation)

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
        return sign_record(self._identity.signer, NETWORK, ChainId("0" * 40), terms, 0, 0)


class _Sink:
    """A ChunkSink that keeps nothing but the count; `again_bytes` came though they were there."""

    def __init__(self) -> None:
        self.size_bytes = self.again_bytes = 0
        self._there: set[int] = set()

    def has(self, index: int) -> bool:
        """Nothing is there: all is wanted."""
        return False

    def write(self, index: int, data: memoryview) -> None:
        """Count a chunk."""
        if index in self._there:
            self.again_bytes += len(data)
            return
        self._there.add(index)
        self.size_bytes += len(data)


class _Killer:
    """Kills a process once so many bytes have come."""

    def __init__(self, pid: int, at_bytes: float) -> None:
        self._pid = pid
        self._left_bytes = at_bytes

    def moved(self, size_bytes: int) -> None:
        """So many more have come."""
        self._left_bytes -= size_bytes
        if self._pid and self._left_bytes <= 0:
            os.kill(self._pid, signal.SIGKILL)
            self._pid = 0


def _moved(size_bytes: int) -> None:
    """Nobody counts."""


def _done(sent_bytes: int, failure: str) -> None:
    """Nobody wants to know."""


def _nothing(holder: PeerId, size_bytes: int) -> None:
    """Nobody wants to know."""


def _manifest(path: Path) -> Manifest:
    size_bytes = path.stat().st_size
    chunk_bytes = chunk_bytes_for(size_bytes)
    with path.open("rb") as file:
        hashes = [data_hash(file.read(chunk_bytes)) for _ in range(0, size_bytes, chunk_bytes)]
    return Manifest(size_bytes, chunk_bytes, tuple(hashes))

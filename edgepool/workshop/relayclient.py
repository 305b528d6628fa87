"""The other mover: all twin data goes up to the relay and down again (see relay.py).

The chains get the same offers and demands as with direct transfer, so that the two ways differ in
nothing but the path of the bytes. There is no countersigned confirmation, for the holder is not
asked: that is what a cloud in the middle means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic, time

import aiohttp
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from edgepool.errors import DecodeError, LocalError, Refused, RemoteError, Unavailable
from edgepool.model.codec import decode, encode
from edgepool.model.ids import ChainId
from edgepool.model.record import DataDemand, DataOffer
from edgepool.model.twin import DataKey, Manifest
from edgepool.peer.peer import Peer
from edgepool.peer.values import Totals
from edgepool.storage.blobs import BlobStore
from edgepool.transport.identity import Identity
from edgepool.workshop.events import MoverReport
from edgepool.workshop.relay import MAX_MANIFEST_BYTES, STALL_S, Found


class RelayClient:
    """Talks to one relay. The relay's certificate is pinned; ours is `identity`'s."""

    def __init__(self, url: str, relay_certificate: Path, identity: Identity) -> None:
        self.url = url
        self._context = identity.transfer_context
        self._fingerprint = _fingerprint(relay_certificate)
        self._session: aiohttp.ClientSession | None = None

    async def upload(self, key: DataKey, version: int, manifest: Manifest, path: Path) -> None:
        """Bring the data at `path`, whose manifest is `manifest`, to the relay."""
        query = {"part": key.part, "kind": key.kind, "version": str(version)}
        url = f"{self.url}/v1/data/{manifest.root.hex()}"
        await self._call("PUT", url, query, data=_frames(manifest, path))

    async def find(self, key: DataKey, version: int) -> Found:
        """Ask the relay for the newest version of `key` (0), or for a certain one."""
        query = {"part": key.part, "kind": key.kind, "version": str(version)}
        return msgspec.json.decode(await self._call("GET", f"{self.url}/v1/find", query), type=Found)

    async def download(self, root: bytes, blobs: BlobStore, transfer: Transfer) -> Path:
        """Get the data of `root` into `blobs`, each chunk checked as it arrives."""
        session = self._open()
        url = f"{self.url}/v1/data/{root.hex()}"
        try:
            async with session.get(url, ssl=self._context, allow_redirects=False) as response:
                if response.status != 200:
                    raise _error_of(response.status, await response.read())
                return await _receive(response.content, root, blobs, transfer)
        except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise Unavailable(f"the relay did not hand over the data: {error!r}") from None
        except DecodeError as error:
            raise RemoteError(self.url, str(error)) from None

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _call(
        self, method: str, url: str, query: dict[str, str], data: AsyncIterator[bytes] | None = None
    ) -> bytes:
        session = self._open()
        try:
            async with session.request(
                method, url, params=query, data=data, ssl=self._context, allow_redirects=False
            ) as response:
                body = await response.read()
                if response.status != 200:
                    raise _error_of(response.status, body)
                return body
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"the relay does not answer: {error!r}") from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # The connector checks the pinned certificate, the context of each request shows ours.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._fingerprint, limit=16),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=STALL_S),
                read_bufsize=1024 * 1024,
            )
        return self._session


class Transfer:
    """Counts one download as it comes: `done_bytes` of `size_bytes`."""

    def __init__(self, totals: RelayTotals, kind: str) -> None:
        self._totals = totals
        self._kind = kind

    def moved(self, size_bytes: int) -> None:
        """Count a chunk."""
        totals = self._totals
        if not totals.first_data_ms:
            totals.first_data_ms = int(time() * 1000)
        totals.bytes_received += size_bytes
        totals.by_kind[self._kind] = totals.by_kind.get(self._kind, 0) + size_bytes


class RelayTotals:
    """What one station has moved through the relay."""

    def __init__(self) -> None:
        self.demands = self.answered = self.failed = 0
        self.bytes_sent = self.bytes_received = 0
        self.upload_ms = self.download_ms = self.first_data_ms = 0
        self.by_kind: dict[str, int] = {}
        self.waits_ms: list[int] = []

    def report(self, relay: str) -> MoverReport:
        """Return the counts; the relay stands as the one holder of all that came."""
        totals = Totals(
            demands=self.demands,
            answered=self.answered,
            failed=self.failed,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            transfer_ms=self.upload_ms + self.download_ms,
            received_by_kind=dict(self.by_kind),
            received_by_holder={relay: self.bytes_received} if self.bytes_received else {},
            refused={},
            first_data_ms=self.first_data_ms,
        )
        return MoverReport(totals, self.upload_ms, tuple(self.waits_ms))


class RelayData:
    """Twin data by way of the relay; a DataMover. `blobs` keeps this station's own copies."""

    def __init__(self, peer: Peer, client: RelayClient, blobs: BlobStore) -> None:
        self._peer = peer
        self._client = client
        self._blobs = blobs
        self._totals = RelayTotals()

    async def publish(self, key: DataKey, version: int, data: bytes, chain: ChainId) -> None:
        """Keep `data`, upload it, and offer it on `chain` at the relay's address."""
        manifest = await asyncio.to_thread(self._blobs.import_bytes, data)
        started = monotonic()
        await self._client.upload(key, version, manifest, self._blobs.path(manifest.root))
        self._totals.upload_ms += _since_ms(started)
        self._totals.bytes_sent += manifest.size_bytes
        offer = DataOffer(key, version, manifest.root, manifest.size_bytes, self._client.url, 100)
        await self._peer.submit(offer, chain=chain)

    async def fetch(self, key: DataKey, version: int, chain: ChainId, *, composition: str = "") -> int:
        """Demand data on `chain` and download it; the chain's root decides where it names one."""
        started = monotonic()
        self._totals.demands += 1
        try:
            demand = DataDemand(key, version, "", composition)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._peer.submit(demand, chain=chain))
                finding = group.create_task(self._find(key, version, chain))
            root, size_bytes = finding.result()
            if not self._blobs.has(root):
                began = monotonic()
                await self._client.download(root, self._blobs, Transfer(self._totals, key.kind))
                self._totals.download_ms += _since_ms(began)
        except ExceptionGroup as group_error:
            self._totals.failed += 1
            raise group_error.exceptions[0] from None
        except BaseException:
            self._totals.failed += 1
            raise
        self._totals.answered += 1
        self._totals.waits_ms.append(_since_ms(started))
        return size_bytes

    async def _find(self, key: DataKey, version: int, chain: ChainId) -> tuple[bytes, int]:
        entries = self._peer.chain_state(chain).offers(key, version)
        if entries:
            return entries[0].offer.root, entries[0].offer.size_bytes
        found = await self._client.find(key, version)
        return bytes.fromhex(found.root), found.size_bytes

    def report(self) -> MoverReport:
        """Return what went up and came down."""
        return self._totals.report("relay")

    async def close(self) -> None:
        """End the connections to the relay."""
        await self._client.close()


async def _frames(manifest: Manifest, path: Path) -> AsyncIterator[bytes]:
    encoded = encode(manifest)
    yield len(encoded).to_bytes(4, "big") + encoded
    with path.open("rb") as file:
        for index in range(len(manifest.chunks)):
            yield await asyncio.to_thread(file.read, manifest.chunk_size_bytes(index))


async def _receive(stream: aiohttp.StreamReader, root: bytes, blobs: BlobStore, transfer: Transfer) -> Path:
    length = int.from_bytes(await stream.readexactly(4), "big")
    if length > MAX_MANIFEST_BYTES:
        raise DecodeError("the manifest is too large")
    manifest = decode(Manifest, await stream.readexactly(length))
    if manifest.root != root:
        raise DecodeError("the manifest is not the one that was asked for")
    writer = await asyncio.to_thread(blobs.writer, manifest)
    try:
        for index in range(len(manifest.chunks)):
            chunk = await stream.readexactly(manifest.chunk_size_bytes(index))
            transfer.moved(len(chunk))
            if not writer.has(index):
                await asyncio.to_thread(writer.put, index, chunk)
        return await asyncio.to_thread(writer.finish)
    except BaseException:
        writer.abort()
        raise


def _error_of(status: int, body: bytes) -> Refused | Unavailable:
    try:
        reason = str(msgspec.json.decode(body, type=dict[str, str])["error"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        reason = f"HTTP status {status}"
    if status in (404, 503, 507):
        return Unavailable(f"the relay: {reason}")
    return Refused("the relay", reason)


def _fingerprint(certificate: Path) -> aiohttp.Fingerprint:
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError):
        raise LocalError(f"{certificate} is not the relay's certificate (PEM): check the path") from None
    return aiohttp.Fingerprint(loaded.fingerprint(hashes.SHA256()))


def _since_ms(started: float) -> int:
    return round(1000 * (monotonic() - started))

"""The data plane of a peer: publish, serve, and fetch as the paper's contracts have it [S3.13].

A fetch is: demand on chain, holders by Algorithm 2, ranking by load, confirmation signed by both,
direct transfer, every chunk checked, stored durably. If a holder fails the next one is tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgepool.core.machine import ConfirmTransfer, FindData, RankedOffer
from edgepool.errors import EdgepoolError, LocalError, RemoteError, Unavailable
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import TransferRequest
from edgepool.model.record import DataDemand, DataOffer, SignedRecord, TransmissionConfirmation
from edgepool.model.twin import DataKey, Manifest
from edgepool.peer.accounting import Accounting, TransferProgress
from edgepool.peer.values import Fetched, Published, TransferEnded
from edgepool.runtime.ports import Clock, PeerIdentity
from edgepool.storage.blobs import BlobStore, BlobWriter
from edgepool.storage.space import size_of
from edgepool.transport.certificates import Identity
from edgepool.transport.dial import OpenStream
from edgepool.transport.transfer import TransferSource
from edgepool.transport.transfer import fetch as transfer_fetch

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

ProgressCallback = Callable[[int, int], None]
"""Called with (done_bytes, size_bytes)."""

CONFIRMATION_VALID_MS = 300_000
CONFIRM_TIMEOUT_MS = 10_000
FIND_TIMEOUT_MS = 5_000
LOOK_AGAIN_MS = (50, 250)
COMMAND_SLACK_MS = 2_000


class DataPlane:
    """Moves one peer's data. `peer` gives commands to the node; `blobs` keeps the bytes."""

    def __init__(
        self,
        peer: Peer,
        identity: Identity,
        blobs: BlobStore,
        accounting: Accounting,
        clock: Clock,
        open_stream: OpenStream,
    ) -> None:
        self._peer = peer
        self._identity = identity
        self._blobs = blobs
        self._accounting = accounting
        self._clock = clock
        self._open_stream = open_stream

    # --- publish ----------------------------------------------------------------------------

    async def publish(
        self, key: DataKey, data: bytes | None, path: Path | None, version: int, chain: ChainId
    ) -> Published:
        """Store data, then offer it on `chain`; see Peer.publish."""
        if (data is None) == (path is None):
            raise LocalError("publish takes either data or a path, one of the two")
        if path is not None:
            await self._peer.storage.make_room(await asyncio.to_thread(size_of, path))
            manifest = await asyncio.to_thread(self._blobs.import_file, path)
        else:
            assert data is not None
            await self._peer.storage.make_room(len(data))
            manifest = await asyncio.to_thread(self._blobs.import_bytes, data)
        with self._peer.storage.publishing(manifest.root, key, version):
            return await self._offer(key, manifest, version, chain)

    async def _offer(self, key: DataKey, manifest: Manifest, version: int, chain: ChainId) -> Published:
        root = manifest.root
        self._peer.holding(root, manifest.size_bytes)
        if not version:
            known = self._peer.chain_state(chain).offers(key)
            version = 1 + max((entry.offer.version for entry in known), default=0)
        addresses = self._peer.addresses
        load = self._accounting.network_load_percent(self._clock.now().monotonic_ms)
        offer = DataOffer(
            key, version, root, manifest.size_bytes, addresses[0] if addresses else "", 100 - load
        )
        ref = await self._peer.submit(offer, chain=chain)
        return Published(key, version, root, manifest.size_bytes, ref)

    # --- serve ------------------------------------------------------------------------------

    def serve(self, identity: PeerIdentity, request: TransferRequest) -> TransferSource | str:
        """Decide on a transfer request; a string is the condition that failed."""
        record = request.confirmation
        body = record.record.body
        if not isinstance(body, TransmissionConfirmation):
            return "the request names no confirmation"
        if record.record.author != self._peer.id or not record.authentic():
            return "this holder has not countersigned the confirmation"
        if body.requester != identity.peer:
            return "the confirmation is for another requester"
        if body.valid_until_ms < self._clock.now().wall_ms:
            return "the confirmation has expired"
        manifest = self._blobs.manifest(body.root)
        if manifest is None:
            return "this holder does not have the data any more"
        transfer = self._begin(body.key, identity.peer, True, manifest.size_bytes)

        def moved(size_bytes: int) -> None:
            now = self._clock.now()
            self._accounting.moved(transfer, size_bytes, now.monotonic_ms, now.wall_ms)

        def done(_: int, failure: str) -> None:
            self._end(transfer, failure)

        return TransferSource(manifest, self._blobs.path(body.root), moved, done)

    # --- fetch ------------------------------------------------------------------------------

    async def fetch(
        self,
        key: DataKey,
        version: int,
        features: str,
        composition: str,
        chain: ChainId,
        timeout_ms: int,
        progress: ProgressCallback | None,
    ) -> Fetched:
        """Get data from its best holder; see Peer.fetch."""
        self._accounting.demands += 1
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                fetched = await self._fetch(key, version, features, composition, chain, progress)
        except TimeoutError:
            self._accounting.failed += 1
            raise Unavailable(f"{key} did not arrive within {timeout_ms / 1000:g} s") from None
        except BaseException:
            self._accounting.failed += 1
            raise
        self._accounting.answered += 1
        return fetched

    async def _fetch(
        self,
        key: DataKey,
        version: int,
        features: str,
        composition: str,
        chain: ChainId,
        progress: ProgressCallback | None,
    ) -> Fetched:
        started_ms = self._clock.now().monotonic_ms
        demand = DataDemand(key, version, features, composition)
        # The demand becomes final while holders are looked for: neither waits for the other.
        _, offers = await asyncio.gather(
            self._peer.submit(demand, chain=chain), self.find(key, version, FIND_TIMEOUT_MS)
        )
        failures: list[str] = []
        for offer in offers:
            try:
                path = await self._from(offer, key, progress)
            except (RemoteError, EdgepoolError) as error:
                failures.append(f"{offer.holder.name}: {error}")
                continue
            body = offer.proof.record.record.body
            assert isinstance(body, DataOffer)
            duration_ms = self._clock.now().monotonic_ms - started_ms
            return Fetched(
                key,
                body.version,
                body.root,
                body.size_bytes,
                path,
                offer.holder.peer,
                duration_ms,
            )
        if failures:
            raise Unavailable(f"no holder of {key} could hand it over ({'; '.join(failures)[:600]})")
        raise Unavailable(f"nobody within reach offers {key}: has it been published in a pool?")

    async def refetch(self, key: DataKey, version: int, root: bytes) -> PeerId:
        """Get the data with this root again; return who had it. Unavailable if nobody hands it over."""
        failures: list[str] = []
        for offer in await self.find(key, version, FIND_TIMEOUT_MS):
            body = offer.proof.record.record.body
            assert isinstance(body, DataOffer)
            if body.root != root or offer.holder.peer == self._peer.id:
                continue
            try:
                await self._from(offer, key, None)
            except EdgepoolError as error:
                failures.append(f"{offer.holder.name}: {error}")
            else:
                return PeerId(offer.holder.peer)
        raise Unavailable("; ".join(failures)[:600] or "no other holder can be reached")

    async def find(self, key: DataKey, version: int, timeout_ms: int) -> tuple[RankedOffer, ...]:
        """Find holders; look again shortly if there are none.

        What was just published may be final on its holder's side and still on its way here.
        """
        started_ms = self._clock.now().monotonic_ms
        offers: tuple[RankedOffer, ...] = ()
        for pause_ms in (*LOOK_AGAIN_MS, 0):
            budget_ms = started_ms + timeout_ms - self._clock.now().monotonic_ms
            command = FindData(key, version, max(1, budget_ms))
            found = await self._peer.command(command, max(1, budget_ms) + COMMAND_SLACK_MS)
            assert isinstance(found, tuple)
            offers = found
            if offers or not pause_ms or budget_ms <= pause_ms:
                break
            await asyncio.sleep(pause_ms / 1000)
        return offers

    async def _from(self, offer: RankedOffer, key: DataKey, progress: ProgressCallback | None) -> Path:
        """Confirm with one holder and transfer; the path of the stored data."""
        body = offer.proof.record.record.body
        assert isinstance(body, DataOffer)
        if self._blobs.has(body.root):
            self._peer.storage.used(body.root)
            return self._blobs.path(body.root)
        if not offer.reachable:
            raise Unavailable("does not answer")
        until_ms = self._clock.now().wall_ms + CONFIRMATION_VALID_MS
        command = ConfirmTransfer(offer.holder, key, body.root, until_ms)
        confirmation = await self._peer.command(command, CONFIRM_TIMEOUT_MS)
        assert isinstance(confirmation, SignedRecord)
        await self._peer.storage.make_room(body.size_bytes)
        transfer = self._begin(key, offer.holder.peer, False, body.size_bytes)
        failure = "stopped"
        try:
            path = await self._transfer(transfer, offer, body, confirmation, progress)
            failure = ""
        except EdgepoolError as error:
            failure = str(error)
            raise
        finally:
            self._end(transfer, failure)
        self._peer.storage.used(body.root, key, body.version)
        self._peer.holding(body.root, body.size_bytes)
        return path

    async def _transfer(
        self,
        transfer: TransferProgress,
        offer: RankedOffer,
        body: DataOffer,
        confirmation: SignedRecord,
        progress: ProgressCallback | None,
    ) -> Path:
        writer = _Receiver(self._blobs)

        def moved(done_bytes: int, size_bytes: int) -> None:
            now = self._clock.now()
            step = done_bytes - transfer.done_bytes
            self._accounting.moved(transfer, step, now.monotonic_ms, now.wall_ms)
            if progress is not None:
                progress(done_bytes, size_bytes)

        try:
            await transfer_fetch(
                self._identity,
                offer.holder.addresses,
                PeerId(offer.holder.peer),
                TransferRequest(confirmation, 0),
                writer,
                limits=self._peer.settings.limits,
                progress=moved,
                open_stream=self._open_stream,
            )
            return await asyncio.to_thread(writer.finish)
        except BaseException:
            writer.abort()
            raise

    # --- accounting -------------------------------------------------------------------------

    def _begin(self, key: DataKey, peer: PeerId, outgoing: bool, size_bytes: int) -> TransferProgress:
        started_ms = self._clock.now().monotonic_ms
        transfer = TransferProgress(key, peer, outgoing, size_bytes, started_ms)
        self._accounting.under_way.append(transfer)
        return transfer

    def _end(self, transfer: TransferProgress, failure: str) -> None:
        self._accounting.under_way = [t for t in self._accounting.under_way if t is not transfer]
        duration_ms = self._clock.now().monotonic_ms - transfer.started_ms
        if not transfer.outgoing and not failure:
            self._accounting.transfer_ms += duration_ms
        self._peer.tell(
            TransferEnded(
                transfer.key,
                transfer.peer,
                transfer.outgoing,
                transfer.size_bytes,
                duration_ms,
                failure,
            )
        )


def checked_key(key: DataKey | str) -> DataKey:
    """Return `key`, or the key that it is written as; LocalError says what is wrong with it."""
    if isinstance(key, str):
        return DataKey.parse(key)
    problem = key.problem()
    if problem:
        raise LocalError(f"'{key}' is not a data key: {problem}")
    return key


class _Receiver:
    """Hands verified chunks to a blob writer, which exists once the manifest is known."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._writer: BlobWriter | None = None

    def begin(self, manifest: Manifest) -> int:
        """Open the writer; all chunks are wanted, those it has already are skipped in `put`."""
        self._writer = self._blobs.writer(manifest)
        return 0

    def put(self, index: int, data: memoryview) -> None:
        """Write chunk `index`, unless an earlier attempt left it on disk."""
        assert self._writer is not None
        if index >= self._writer.next_chunk:
            self._writer.put(index, data)

    def finish(self) -> Path:
        """Make the data durable and visible."""
        assert self._writer is not None
        return self._writer.finish()

    def abort(self) -> None:
        """Keep what has come for another attempt."""
        if self._writer is not None:
            self._writer.abort()

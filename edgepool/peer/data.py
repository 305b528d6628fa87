"""The data plane of a peer: publish, serve, and fetch as the paper's contracts have it [S3.13].

A fetch is: demand on chain, holders by Algorithm 2, ranking by load, confirmation signed by both,
direct transfer from all who have it (fetches.py), every chunk checked, stored durably.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgepool.core.machine import FindData, RankedOffer
from edgepool.errors import LocalError, Refused, Unavailable
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.live import is_live
from edgepool.model.record import DataDemand, DataOffer, TransmissionConfirmation
from edgepool.model.transfer import TransferRequest
from edgepool.model.twin import DataKey, Manifest
from edgepool.peer.accounting import Accounting, Transfers
from edgepool.peer.budgets import PeerPace
from edgepool.peer.fetches import EXPIRED, Fetches, ProgressCallback, offer_of
from edgepool.peer.manyfetches import MAX_KEYS, ManyFetches
from edgepool.peer.values import Fetched, FetchedMany, FetchProgress, Published
from edgepool.runtime.ports import Clock, PeerIdentity
from edgepool.storage.blobs import BlobStore
from edgepool.storage.space import size_of
from edgepool.transport.dial import OpenStream, Way
from edgepool.transport.identity import Identity
from edgepool.transport.serving import TransferSource
from edgepool.transport.transfer import TransferClient
from edgepool.transport.vouching import Vouched

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

T = TypeVar("T")

FIND_TIMEOUT_MS = 5_000
LOOK_AGAIN_MS = (50, 250)
COMMAND_SLACK_MS = 2_000
NOT_HERE = "this holder does not have the data any more"


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
        self._blobs = blobs
        self._accounting = accounting
        self._clock = clock
        self._transfers = Transfers(accounting, clock, peer.tell)
        client = TransferClient(identity, peer.settings.limits, open_stream)
        self._vouched = Vouched()
        self._fetches = Fetches(peer, client, blobs, self._transfers, clock)

        self._many = ManyFetches(peer, self._fetches, client, blobs, self._transfers, clock)

    async def close(self) -> None:
        """Wait a moment for receipts that are on their way, and end all connections to holders."""
        await self._fetches.close()

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
            published = await self._offer(key, manifest, version, chain)
        self._peer.storage.used(manifest.root, key, published.version)
        return published

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

    def serve(self, identity: PeerIdentity, request: TransferRequest, way: Way) -> TransferSource | str:
        """Decide on a transfer request that came this way; a string is the condition that failed."""
        record = request.confirmation
        body = record.record.body
        if not isinstance(body, TransmissionConfirmation):
            return "the request names no confirmation"
        if record.record.author != self._peer.id or not self._vouched.authentic(record):
            return "this holder has not countersigned the confirmation"
        if body.requester != identity.peer:
            return "the confirmation is for another requester"
        if body.valid_until_ms < self._clock.now().wall_ms:
            return EXPIRED
        refused = self._peer.rights.refused_transfer(identity, body)
        if refused:
            return refused
        manifest = self._blobs.manifest(body.root)
        if manifest is None:
            return NOT_HERE
        transfer = self._transfers.begin(body.key, identity.peer, True, manifest.size_bytes, way)

        def refusal() -> str:
            if body.valid_until_ms < self._clock.now().wall_ms:
                return EXPIRED
            if not self._blobs.has(body.root):
                return NOT_HERE
            return self._peer.rights.problem(identity, body)

        return TransferSource(
            manifest,
            self._blobs.path(body.root),
            moved=lambda size_bytes: self._transfers.moved(transfer, size_bytes),
            done=lambda _, failure: self._transfers.end(transfer, failure),
            refusal=refusal,
            pace=PeerPace(self._peer.budgets.sending, identity.peer, body.key.kind),
            base=self._blobs.first_of(request.bases),
            doubted=lambda index: self._peer.storage.doubt(body.root, index),
        )

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
        purpose: str = "",
    ) -> Fetched:
        """Get data from its best holder; see Peer.fetch."""
        demand = (key, version, features, composition, chain)
        return await self._watched(
            str(key), timeout_ms, progress, lambda moved: self._fetch(*demand, moved, purpose)
        )

    async def fetch_many(
        self,
        keys: Iterable[DataKey],
        chain: ChainId,
        timeout_ms: int,
        progress: ProgressCallback | None,
        purpose: str,
    ) -> FetchedMany:
        """Get much data at once; see Peer.fetch_many."""
        wanted = tuple(dict.fromkeys(keys))
        what = f"{len(wanted)} keys"
        return await self._watched(
            what, timeout_ms, progress, lambda moved: self._many.get(wanted, chain, purpose, moved)
        )

    async def _watched(
        self,
        what: str,
        timeout_ms: int,
        progress: ProgressCallback | None,
        work: Callable[[ProgressCallback], Awaitable[T]],
    ) -> T:
        """Do `work`, which tells how it goes, counted; give it up when nothing comes for `timeout_ms`."""
        refused = self._peer.rights.refused_reader()
        if refused:
            raise Refused(refused)
        self._accounting.demands += 1
        timeout_s = timeout_ms / 1000
        try:
            async with asyncio.timeout(timeout_s) as deadline:

                def moved(now: FetchProgress) -> None:
                    whole = now.done_bytes == now.size_bytes  # the disk takes as long as it takes
                    until_s = asyncio.get_running_loop().time() + timeout_s
                    deadline.reschedule(None if whole else until_s)
                    if progress is not None:
                        progress(now)

                done = await work(moved)
        except TimeoutError:
            self._accounting.failed += 1
            raise Unavailable(
                f"nothing of {what} has come for {timeout_s:g} s: what had come before is kept"
            ) from None
        except BaseException:
            self._accounting.failed += 1
            raise
        self._accounting.answered += 1
        return done

    async def _fetch(
        self,
        key: DataKey,
        version: int,
        features: str,
        composition: str,
        chain: ChainId,
        progress: ProgressCallback | None,
        purpose: str,
    ) -> Fetched:
        started_ms = self._clock.now().monotonic_ms
        offers = await self.find_demanded(DataDemand(key, version, features, composition), chain, purpose)
        if not offers:
            raise Unavailable(f"nobody within reach offers {key}: has it been published in a pool?")
        body = offer_of(offers[0])
        if is_live(self._peer.settings.network, body, PeerId(offers[0].holder.peer)):
            raise LocalError(f"{key} is a live stream: follow it, with subscribe or 'edgepool live follow'")
        same = [offer for offer in offers if offer_of(offer).root == body.root]
        got = await self._fetches.get(
            key,
            same,
            lambda: self.find(key, body.version, purpose=purpose),
            chain,
            progress,
            purpose,
        )
        duration_ms = self._clock.now().monotonic_ms - started_ms
        holder = max(got.shares, key=lambda peer: got.shares[peer], default=PeerId(same[0].holder.peer))
        return Fetched(
            key,
            body.version,
            body.root,
            body.size_bytes,
            got.path,
            holder,
            duration_ms,
            got.shares,
            got.wire_bytes,
        )

    async def refetch(self, key: DataKey, version: int, root: bytes) -> PeerId:
        """Get the data with this root again; return who had it. Unavailable if nobody hands it over."""
        others = [
            offer
            for offer in await self.find(key, version)
            if offer_of(offer).root == root and offer.holder.peer != self._peer.id
        ]
        if not others:
            raise Unavailable("no other holder can be reached")
        got = await self._fetches.get(key, others, lambda: self.find(key, version))
        return max(got.shares, key=lambda peer: got.shares[peer], default=PeerId(others[0].holder.peer))

    async def find_demanded(
        self, demand: DataDemand, chain: ChainId, purpose: str
    ) -> tuple[RankedOffer, ...]:
        """Put a demand on `chain`, and find holders meanwhile: neither waits for the other.

        Where the demand stands, all that was acknowledged on that chain before it stands, too. So what a slow
        peer has looked for in vain before, it looks for once more then.
        """

        async def find() -> tuple[tuple[RankedOffer, ...], bool]:
            offers = await self.find(demand.key, demand.version, purpose=purpose)
            return offers, demanding.done()

        demanding = asyncio.ensure_future(self._peer.submit(demand, chain=chain))
        _, (offers, was_final) = await asyncio.gather(demanding, find())
        if offers or was_final:
            return offers
        return await self.find(demand.key, demand.version, purpose=purpose)

    async def find(
        self, key: DataKey, version: int = 0, timeout_ms: int = FIND_TIMEOUT_MS, purpose: str = ""
    ) -> tuple[RankedOffer, ...]:
        """Find holders; look again shortly if there are none.

        What was just published may be final on its holder's side and still on its way here.
        """
        started_ms = self._clock.now().monotonic_ms
        offers: tuple[RankedOffer, ...] = ()
        for pause_ms in (*LOOK_AGAIN_MS, 0):
            budget_ms = started_ms + timeout_ms - self._clock.now().monotonic_ms
            command = FindData(key, version, max(1, budget_ms), purpose)
            found = await self._peer.command(command, max(1, budget_ms) + COMMAND_SLACK_MS)
            assert isinstance(found, tuple)
            offers = found
            if offers or not pause_ms or budget_ms <= pause_ms:
                break
            await asyncio.sleep(pause_ms / 1000)
        return offers


def checked_purpose(purpose: str) -> str:
    """Return `purpose`; LocalError says what is wrong with it."""
    if len(purpose) > 64 or not purpose.isprintable():
        raise LocalError(f"'{purpose[:80]}' is no purpose: write up to 64 printable characters")
    return purpose


def checked_key(key: DataKey | str) -> DataKey:
    """Return `key`, or the key that it is written as; LocalError says what is wrong with it."""
    if isinstance(key, str):
        return DataKey.parse(key)
    problem = key.problem()
    if problem:
        raise LocalError(f"'{key}' is not a data key: {problem}")
    return key


def checked_keys(keys: Iterable[DataKey | str]) -> tuple[DataKey, ...]:
    """Return `keys`, each once; LocalError says what is wrong with them."""
    wanted = tuple(dict.fromkeys(checked_key(key) for key in keys))
    if not 0 < len(wanted) <= MAX_KEYS:
        raise LocalError(f"{len(wanted)} keys were named: name 1 to {MAX_KEYS} of them at a time")
    return wanted

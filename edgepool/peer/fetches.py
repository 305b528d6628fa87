"""Getting data from all who have it [S3.13 to S3.15]: confirm with each, draw from all, check, store.

Small data comes from the best holder, and from the next one if that fails. Larger data comes from several at
once; one that fails is replaced by the next, and one whose confirmation has run out confirms again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgepool.core.machine import ConfirmTransfer, RankedOffer
from edgepool.errors import EdgepoolError, Refused, RemoteError, Unavailable
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import DataOffer, SignedRecord
from edgepool.model.transfer import MAX_BASES
from edgepool.model.twin import DataKey, Manifest
from edgepool.peer.accounting import TransferProgress, Transfers
from edgepool.peer.budgets import PeerPace
from edgepool.peer.receipts import Receipts
from edgepool.peer.values import FetchProgress, PeerMisbehaved
from edgepool.runtime.ports import Clock
from edgepool.storage.blobs import BlobStore
from edgepool.storage.partial import PartialBlob
from edgepool.transport.fetching import Fetch
from edgepool.transport.packing import Base, open_base
from edgepool.transport.receiving import DamagedBase, WrongChunk
from edgepool.transport.session import BUSY
from edgepool.transport.transfer import TransferClient

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

CONFIRMATION_VALID_MS = 300_000
CONFIRM_TIMEOUT_MS = 10_000
BYTES_FOR_EACH = 4 * 1024 * 1024
"""One more holder is asked for each so many bytes of data."""
MAX_SOURCES = 8
"""Data is drawn from at most so many holders at a time."""
LOOK_AGAIN_S = 5.0
LOOK_AGAIN_MOST_S = 60.0
"""After such pauses, each twice as long as the one before, others are looked for that offer the data now."""
MAX_TRIES = 5
PAUSE_S = 0.5
"""A holder that is busy, or was lost in the middle, is tried so often, with pauses of 1, 2 and then 4 s.

One that was lost before it had sent a chunk is, too, if there is nobody else to try."""
EXPIRED = "the confirmation has expired"
"""The condition that a holder names when a transfer has to be confirmed again."""

ProgressCallback = Callable[[FetchProgress], None]
"""Called on the event loop as data comes."""
FindOffers = Callable[[], Awaitable[Sequence[RankedOffer]]]


@dataclass(frozen=True, slots=True)
class Got:
    """Data is stored at `path`; `shares` says how many bytes came from whom, by `wire_bytes` on the way."""

    path: Path
    shares: dict[PeerId, int]
    wire_bytes: int = 0


@dataclass(eq=False)
class _Gathering:
    """One piece of data on its way: its offers, who is being drawn from, who has failed and why.

    `denied` are those who say that this peer may not have it.
    """

    key: DataKey
    body: DataOffer
    fetch: Fetch
    offers: list[RankedOffer]
    chain: ChainId | None
    drawing: dict[asyncio.Task[None], RankedOffer] = field(default_factory=dict)
    transfers: dict[PeerId, TransferProgress] = field(default_factory=dict)
    tried: set[PeerId] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    purpose: str = ""
    denied: set[PeerId] = field(default_factory=set)

    @property
    def is_last(self) -> bool:
        """Whether nobody is left of whom it is known that they have the data, and who was not tried."""
        return all(offer.holder.peer in self.tried for offer in self.offers)

    @property
    def is_answered(self) -> bool:
        """Whether somebody who has said that we may have it is being drawn from, or was not tried yet."""
        rest = (offer for offer in self.offers if offer.holder.peer not in self.tried)
        return any(one.reachable and not one.refusal for one in (*self.drawing.values(), *rest))

    def is_next(self, offer: RankedOffer, at_once: int) -> bool:
        """Whether to begin to draw from a holder; where nobody has answered all are tried at once."""
        many = at_once if offer.reachable or self.is_answered else MAX_SOURCES
        return len(self.drawing) < many and offer.holder.peer not in self.tried


class Fetches:
    """Draws one peer's data from others. `peer` gives commands to the node; `blobs` keeps the bytes."""

    def __init__(
        self, peer: Peer, client: TransferClient, blobs: BlobStore, transfers: Transfers, clock: Clock
    ) -> None:
        self._peer = peer
        self._client = client
        self._blobs = blobs
        self._transfers = transfers
        self._clock = clock
        self._receipts = Receipts(peer)

    async def close(self) -> None:
        """Wait a moment for receipts that are on their way, and end all connections to holders."""
        await self._receipts.close()
        await self._client.close()

    async def get(
        self,
        key: DataKey,
        offers: Sequence[RankedOffer],
        find_more: FindOffers,
        chain: ChainId | None = None,
        progress: ProgressCallback | None = None,
        purpose: str = "",
    ) -> Got:
        """Get the data that `offers` (all of one root, best first) offer.

        `find_more` finds who has it by now; on `chain` stands who sent what. Raises Unavailable, saying of
        each holder why it did not hand it over, Refused if all of them say that this peer may not have it,
        or StorageError.
        """
        body = offer_of(offers[0])
        if self._blobs.has(body.root):
            self._peer.storage.used(body.root)
            return Got(self._blobs.path(body.root), {})
        await self._peer.storage.make_room(body.size_bytes)
        writers: list[PartialBlob] = []

        bases = await asyncio.to_thread(self._open_versions, key, body.root)

        def open_sink(manifest: Manifest) -> PartialBlob:
            writers.append(self._blobs.writer(manifest))
            for base in bases:
                writers[-1].copy_from(base.manifest, base.descriptor)
            return writers[-1]

        def moved(holder: PeerId, size_bytes: int) -> None:
            transfer = gathering.transfers[holder]
            transfer.way = self._client.way_to(holder)
            self._transfers.moved(transfer, size_bytes)
            if progress is not None:
                progress(FetchProgress(fetch.done_bytes, body.size_bytes, max(1, len(fetch.sources))))

        def pace(holder: PeerId) -> PeerPace:
            return PeerPace(self._peer.budgets.receiving, holder, key.kind)

        fetch = Fetch(self._client, body.root, body.size_bytes, open_sink, moved, pace, bases)
        gathering = _Gathering(key, body, fetch, list(offers), chain, purpose=purpose)
        started_ms = self._clock.now().monotonic_ms
        try:
            await self._gather(gathering, find_more)
            await fetch.finish()
            path = await asyncio.to_thread(writers[0].finish)
        finally:
            await self._stop(gathering)
            for writer in writers:
                writer.abort()
            for base in bases:
                base.close()
        duration_ms = self._clock.now().monotonic_ms - started_ms
        await self.arrived(key, body, fetch.shares, duration_ms, chain)
        return Got(path, dict(fetch.shares), fetch.wire_bytes)

    async def arrived(
        self,
        key: DataKey,
        body: DataOffer,
        shares: dict[PeerId, int],
        duration_ms: int,
        chain: ChainId | None,
    ) -> None:
        """Take note that data is here, durably; a receipt on `chain` says what came from whom."""
        self._peer.storage.used(body.root, key, body.version)
        self._peer.holding(body.root, body.size_bytes)
        if chain is not None and shares:
            await self._receipts.receipt(chain, body, shares, duration_ms)

    def _open_versions(self, key: DataKey, root: bytes) -> list[Base]:
        """Open the newest versions of the data under `key` that are here, other than `root`."""
        bases: list[Base] = []
        for other in self._peer.storage.versions(key):
            manifest = self._blobs.manifest(other)
            if other == root or manifest is None or len(bases) == MAX_BASES:
                continue
            with suppress(OSError):  # then it does not help
                bases.append(open_base(manifest, self._blobs.path(other)))
        return bases

    async def _gather(self, gathering: _Gathering, find_more: FindOffers) -> None:
        """Draw from holders until all is there; Unavailable if there is none left to draw from."""
        fetch, drawing = gathering.fetch, gathering.drawing
        at_once = max(1, min(MAX_SOURCES, gathering.body.size_bytes // BYTES_FOR_EACH))
        pause_s = LOOK_AGAIN_S
        while not fetch.whole:
            for offer in gathering.offers:
                if gathering.is_next(offer, at_once):
                    gathering.tried.add(PeerId(offer.holder.peer))
                    drawing[asyncio.create_task(self._draw(gathering, offer))] = offer
            if not drawing:
                why = "; ".join(gathering.failures)[:600]
                if len(gathering.denied) == len(gathering.failures) > 0:
                    raise Refused(why)
                if await self._others(gathering, find_more) or await self._heirs_to_come(gathering):
                    continue
                raise Unavailable(f"no holder of {gathering.key} could hand it over ({why})")
            done, _ = await asyncio.wait(drawing, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                holder = drawing.pop(task).holder
                try:
                    await task
                except (RemoteError, Refused, Unavailable) as error:
                    denied = holder.peer in gathering.denied
                    gathering.failures.append(str(error) if denied else f"{holder.name}: {error}")
            if not done and len(drawing) < at_once:
                pause_s = min(2 * pause_s, LOOK_AGAIN_MOST_S)
                await self._others(gathering, find_more)  # those who send go on
        ending = [task for task, offer in drawing.items() if offer.holder.peer in fetch.sources]
        if ending:
            await asyncio.wait(ending, timeout=1)

    async def _others(self, gathering: _Gathering, find_more: FindOffers) -> bool:
        """Look who has the data by now; say whether there is anybody who was not tried."""
        with suppress(Unavailable, Refused):
            offers = [one for one in await find_more() if offer_of(one).root == gathering.body.root]
            fresh = [one for one in offers if one.holder.peer not in gathering.tried]
            gathering.offers += fresh
            return bool(fresh)
        return False

    async def _heirs_to_come(self, gathering: _Gathering) -> bool:
        """Pause and say True if a holder goes on under another key, which has not offered the data yet."""
        directory = self._peer.node.directory
        if all(directory.heir(holder) in gathering.tried for holder in gathering.tried):
            return False
        await asyncio.sleep(PAUSE_S)
        return True

    async def _stop(self, gathering: _Gathering) -> None:
        for task in gathering.drawing:
            task.cancel()
        await asyncio.gather(*gathering.drawing, return_exceptions=True)
        await gathering.fetch.stop()

    async def _draw(self, gathering: _Gathering, offer: RankedOffer) -> None:
        """Draw from one holder until all is there.

        Confirms again whenever the confirmation has run out; tries again, after a pause, if the holder is
        busy, or its link or what it had begun was lost: then that, or a conduit on the way, may come back.
        One that has not said in time how busy it is may only be slow: it is tried where nobody else is left.
        """
        if not offer.reachable and not offer.refusal and gathering.is_answered:
            raise Unavailable("does not answer")
        shares, holder = gathering.fetch.shares, PeerId(offer.holder.peer)
        tries = 0
        while True:
            before_bytes = shares.get(holder, 0)
            linked = self._peer.node.directory.connected(holder)
            try:
                return await self._draw_once(gathering, offer)
            except DamagedBase:
                continue  # without it, this time
            except (Refused, Unavailable) as error:
                got_bytes = shares.get(holder, 0)
                tries = 0 if got_bytes > before_bytes else tries + 1
                reason = error.reason if isinstance(error, Refused) else ""
                if reason == EXPIRED and not tries:
                    continue
                gone = self._peer.node.directory.heir(holder) != holder  # it goes on under another key
                met = linked or holder in gathering.transfers
                was_lost = not reason and (got_bytes or (met and gathering.is_last))
                again = not gone and (reason == BUSY or was_lost)
                if not again or tries > MAX_TRIES:
                    raise
                await asyncio.sleep(PAUSE_S * 2 ** min(tries, 3))

    async def _draw_once(self, gathering: _Gathering, offer: RankedOffer) -> None:
        holder, body = PeerId(offer.holder.peer), gathering.body
        confirmation = await self._confirm(gathering, offer)
        transfer = self._transfers.begin(gathering.key, holder, False, body.size_bytes)
        gathering.transfers[holder] = transfer
        failure = "it was not needed any more"
        try:
            addresses = self._peer.node.rendezvous.where_now(offer.holder).addresses
            await gathering.fetch.draw_from(holder, addresses, confirmation)
            failure = ""
        except EdgepoolError as error:
            failure = str(error)
            if isinstance(error, WrongChunk):
                await self._blame(gathering, error, confirmation)
            raise
        finally:
            self._transfers.end(transfer, failure)

    async def _confirm(self, gathering: _Gathering, offer: RankedOffer) -> SignedRecord:
        try:
            return await self.confirm(gathering.key, gathering.body, offer, gathering.purpose)
        except Refused:
            gathering.denied.add(PeerId(offer.holder.peer))
            raise

    async def confirm(self, key: DataKey, body: DataOffer, offer: RankedOffer, purpose: str) -> SignedRecord:
        """Have a holder countersign a transfer. Raises Refused or Unavailable."""
        until_ms = self._clock.now().wall_ms + CONFIRMATION_VALID_MS
        command = ConfirmTransfer(offer.holder, key, body.root, until_ms, purpose)
        confirmation = await self._peer.command(command, CONFIRM_TIMEOUT_MS)
        assert isinstance(confirmation, SignedRecord)
        await self._peer.rights.keep_origin(body.root)
        return confirmation

    async def _blame(self, gathering: _Gathering, error: WrongChunk, confirmation: SignedRecord) -> None:
        """Tell watchers, and the chain, who sent a wrong chunk."""
        holder = PeerId(error.peer)
        self._peer.tell(PeerMisbehaved(holder, f"{gathering.key}: {error.reason}"))
        if gathering.chain is not None:
            await self._receipts.complain(
                gathering.chain, gathering.body, holder, error.index, confirmation.id
            )


def offer_of(ranked: RankedOffer) -> DataOffer:
    """Return what is offered."""
    body = ranked.proof.record.record.body
    assert isinstance(body, DataOffer)
    return body

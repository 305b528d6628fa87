"""Many fetches at once [S3.13 to S3.15]: searched and confirmed side by side; small data comes in bundles.

Everything is demanded, confirmed and receipted for itself, as by a fetch of its own. What one holder has of
small data comes in one exchange and is made durable together. What is large, or did not come that way, is
fetched alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from edgepool.core.machine import RankedOffer
from edgepool.errors import EdgepoolError, Refused, RemoteError, Unavailable
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.live import is_live
from edgepool.model.record import DataDemand, DataOffer, SignedRecord
from edgepool.model.transfer import INLINE_BYTES
from edgepool.model.twin import DataKey, Manifest
from edgepool.peer.accounting import TransferProgress, Transfers
from edgepool.peer.budgets import PeerPace
from edgepool.peer.fetches import MAX_TRIES, PAUSE_S, Fetches, Got, ProgressCallback, offer_of
from edgepool.peer.values import Fetched, FetchedMany, FetchProgress
from edgepool.runtime.ports import Clock
from edgepool.storage.blobs import BlobStore
from edgepool.storage.group import BlobGroup
from edgepool.transport.bundles import fetch_bundle
from edgepool.transport.transfer import TransferClient

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

MAX_KEYS = 4096
"""So many keys are fetched at once at most."""
BUNDLE_ITEMS = 1024
"""So much is confirmed, fetched and made durable together: what a failure of this machine may cost."""
AT_ONCE = 32
"""So many searches, or confirmations, are under way at a time; a node takes `limits.queries` of them."""
ALONE_AT_ONCE = 4

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Wanted:
    """One key: who offers it, who was asked in a bundle, what came of it, or why nothing did."""

    key: DataKey
    offers: list[RankedOffer] = field(default_factory=list)
    got: Got | None = None
    problem: str = ""
    confirmation: SignedRecord | None = None
    transfer: TransferProgress | None = None
    asked: set[str] = field(default_factory=set)

    @property
    def body(self) -> DataOffer:
        """What is offered."""
        return offer_of(self.offers[0])

    def forget(self, lost: set[PeerId]) -> bool:
        """Ask those who are lost no more; say whether nobody else has it."""
        rest = [one for one in self.offers if one.holder.peer not in lost]
        if rest:
            self.offers = rest
        else:
            self.problem = self.problem or "its holder was lost meanwhile: try again"
        return not rest

    def holder(self, lost: set[PeerId]) -> RankedOffer | None:
        """The best holder that may have it in a bundle and was not asked for it; None if there is none."""
        if self.got is not None or self.body.size_bytes > INLINE_BYTES:
            return None
        beside = self.asked | lost
        good = (one for one in self.offers if one.reachable and not one.refusal)
        return next((one for one in good if one.holder.peer not in beside), None)


class ManyFetches:
    """Fetches of many keys for one peer, whose data plane finds holders; `fetches` gets what comes alone."""

    def __init__(
        self,
        peer: Peer,
        fetches: Fetches,
        client: TransferClient,
        blobs: BlobStore,
        transfers: Transfers,
        clock: Clock,
    ) -> None:
        self._peer = peer
        self._fetches = fetches
        self._client = client
        self._blobs = blobs
        self._transfers = transfers
        self._clock = clock

    async def get(
        self, keys: Iterable[DataKey], chain: ChainId, purpose: str, progress: ProgressCallback
    ) -> FetchedMany:
        """Get the newest version of each of `keys`; `progress` counts the bytes of all together."""
        started_ms = self._now_ms()
        wanted = [_Wanted(key) for key in dict.fromkeys(keys)]
        await _side_by_side(AT_ONCE, wanted, lambda one: self._find(one, chain, purpose))
        found = [one for one in wanted if not one.problem]
        count = _Counting(found, progress)
        for one in found:
            if self._blobs.has(one.body.root):
                self._peer.storage.used(one.body.root)
                one.got = Got(self._blobs.path(one.body.root), {})
                count.came(one.body.size_bytes)
        lost, cut = set[PeerId](), dict[PeerId, int]()
        while groups := _bundles(found, lost):
            for offer, theirs in groups:
                await self._bundle(offer, theirs, lost, cut, chain, purpose, count)
            if not _bundles(found, lost):
                await _give_time(found, lost, cut)
        alone = [one for one in found if one.got is None and not one.forget(lost)]
        await _side_by_side(ALONE_AT_ONCE, alone, lambda one: self._alone(one, chain, purpose, count))
        duration_ms = self._now_ms() - started_ms
        fetched = [_fetched(one, one.got, duration_ms) for one in wanted if one.got is not None]
        failed = {one.key: one.problem for one in wanted if one.got is None}
        return FetchedMany(tuple(fetched), failed, duration_ms)

    async def _find(self, one: _Wanted, chain: ChainId, purpose: str) -> None:
        """Demand a key on the chain, and look who has it."""
        try:
            demand = DataDemand(one.key, 0, "", "")
            offers = await self._peer.data.find_demanded(demand, chain, purpose)
        except EdgepoolError as error:
            one.problem = str(error)
            return
        if not offers:
            one.problem = f"nobody within reach offers {one.key}: has it been published in a pool?"
            return
        root = offer_of(offers[0]).root
        one.offers = [offer for offer in offers if offer_of(offer).root == root]
        if is_live(self._peer.settings.network, one.body, PeerId(offers[0].holder.peer)):
            one.problem = f"{one.key} is a live stream: follow it, with subscribe or 'edgepool live follow'"

    async def _bundle(
        self,
        offer: RankedOffer,
        wanted: Sequence[_Wanted],
        lost: set[PeerId],
        cut: dict[PeerId, int],
        chain: ChainId,
        purpose: str,
        count: _Counting,
    ) -> None:
        """Get small data from the holder of `offer`; what does not come is left, with the reason.

        A holder that is lost in the middle gets into `cut`, and begins there anew once it has sent something.
        """
        holder = PeerId(offer.holder.peer)
        await _side_by_side(AT_ONCE, wanted, lambda one: self._confirm(one, offer, lost, purpose))
        confirmed = [one for one in wanted if one.confirmation is not None]
        if not confirmed:
            return
        size_bytes = sum(one.body.size_bytes for one in confirmed)
        await self._peer.storage.make_room(size_bytes)
        for one in confirmed:
            one.transfer = self._transfers.begin(one.key, holder, False, one.body.size_bytes)
        group = await asyncio.to_thread(self._blobs.group, size_bytes)
        started_ms = self._now_ms()
        failures: dict[int, EdgepoolError] = dict.fromkeys(range(len(confirmed)), Unavailable("given up"))
        try:
            failures = await self._draw(offer, confirmed, group, count)
            await asyncio.to_thread(group.finish)
        except (Refused, RemoteError, Unavailable) as error:
            failures = dict.fromkeys(range(len(confirmed)), error)
        except BaseException as error:
            failures = dict.fromkeys(range(len(confirmed)), Unavailable(str(error) or "given up"))
            raise
        finally:
            await asyncio.shield(asyncio.to_thread(group.abort))
            self._end_transfers(confirmed, failures)
        duration_ms = self._now_ms() - started_ms
        if holder in cut and len(failures) < len(confirmed):
            cut[holder] = 0
        for index, one in enumerate(confirmed):
            one.confirmation = None
            if index in failures:
                one.problem = str(failures[index])
                if isinstance(failures[index], Unavailable):
                    lost.add(holder)
                    cut.setdefault(holder, 0)
                continue
            shares = {holder: one.body.size_bytes}
            one.got = Got(self._blobs.path(one.body.root), shares, one.body.size_bytes)
            await self._fetches.arrived(one.key, one.body, shares, duration_ms, chain)

    async def _draw(
        self, offer: RankedOffer, wanted: Sequence[_Wanted], group: BlobGroup, count: _Counting
    ) -> dict[int, EdgepoolError]:
        """Have a holder send what it has confirmed, into `group`; return what did not come, and why."""
        loop, receiving = asyncio.get_running_loop(), self._peer.budgets.receiving
        holder, addresses = PeerId(offer.holder.peer), offer.holder.addresses

        def keep(index: int, manifest: Manifest, data: memoryview) -> None:
            group.put(manifest, data)
            loop.call_soon_threadsafe(count.came, len(data))

        def pace(index: int) -> PeerPace:
            return PeerPace(receiving, holder, wanted[index].key.kind)

        records = [one.confirmation for one in wanted if one.confirmation is not None]
        return await fetch_bundle(self._client, holder, addresses, records, keep, pace)

    async def _confirm(self, one: _Wanted, offer: RankedOffer, lost: set[PeerId], purpose: str) -> None:
        """Have the holder of `offer` countersign, unless it was lost meanwhile."""
        holder = PeerId(offer.holder.peer)
        one.asked.add(holder)
        if holder in lost:
            return
        try:
            one.confirmation = await self._fetches.confirm(one.key, one.body, offer, purpose)
        except (Refused, RemoteError, Unavailable) as error:
            one.problem = str(error)
            if isinstance(error, Unavailable):
                lost.add(holder)

    def _end_transfers(self, wanted: Sequence[_Wanted], failures: dict[int, EdgepoolError]) -> None:
        for index, one in enumerate(wanted):
            if one.transfer is None:
                continue
            failure = str(failures[index]) if index in failures else ""
            if not failure:
                one.transfer.way = self._client.way_to(one.transfer.peer)
                self._transfers.moved(one.transfer, one.body.size_bytes)
            self._transfers.end(one.transfer, failure)

    async def _alone(self, one: _Wanted, chain: ChainId, purpose: str, count: _Counting) -> None:
        """Get one key by a fetch of its own."""

        def progress(now: FetchProgress) -> None:
            count.stands(one, now)

        def find_more() -> Awaitable[Sequence[RankedOffer]]:
            return self._peer.data.find(one.key, purpose=purpose)

        try:
            one.got = await self._fetches.get(one.key, one.offers, find_more, chain, progress, purpose)
        except (Refused, RemoteError, Unavailable) as error:
            one.problem = str(error)

    def _now_ms(self) -> int:
        return self._clock.now().monotonic_ms


class _Counting:
    """How far all is together, as one FetchProgress."""

    def __init__(self, wanted: Sequence[_Wanted], progress: ProgressCallback) -> None:
        self._size_bytes = sum(one.body.size_bytes for one in wanted)
        self._progress = progress
        self._came_bytes = 0
        self._alone: dict[DataKey, int] = {}

    def came(self, size_bytes: int) -> None:
        """So much more is here and checked."""
        self._came_bytes += size_bytes
        self._tell(1)

    def stands(self, one: _Wanted, now: FetchProgress) -> None:
        """So far is what comes alone."""
        self._alone[one.key] = now.done_bytes
        self._tell(now.sources)

    def _tell(self, sources: int) -> None:
        done_bytes = self._came_bytes + sum(self._alone.values())
        self._progress(FetchProgress(min(done_bytes, self._size_bytes), self._size_bytes, sources))


def _bundles(wanted: Sequence[_Wanted], lost: set[PeerId]) -> list[tuple[RankedOffer, list[_Wanted]]]:
    """Return what to ask from whom in bundles: of each key from its best holder, and two keys or more."""
    groups: dict[PeerId, tuple[RankedOffer, list[_Wanted]]] = {}
    for one in wanted:
        offer = one.holder(lost)
        if offer is not None:
            groups.setdefault(PeerId(offer.holder.peer), (offer, []))[1].append(one)
    return [
        (offer, theirs[start : start + BUNDLE_ITEMS])
        for offer, theirs in groups.values()
        for start in range(0, len(theirs), BUNDLE_ITEMS)
        if len(theirs) > 1
    ]


async def _give_time(wanted: Sequence[_Wanted], lost: set[PeerId], cut: dict[PeerId, int]) -> None:
    """After a pause, have holders asked again that were lost in the middle, where nobody else has the data.

    `cut` says how often each was given time. A conduit on the way, or a link, may come back.
    """
    rest = [
        one for one in wanted if one.got is None and all(offer.holder.peer in lost for offer in one.offers)
    ]
    holders = {PeerId(offer.holder.peer) for one in rest for offer in one.offers}
    back = {holder for holder in holders if cut.get(holder, MAX_TRIES) < MAX_TRIES}
    if not back:
        return
    await asyncio.sleep(PAUSE_S * 2 ** min(1 + min(cut[holder] for holder in back), 3))
    lost -= back
    for holder in back:
        cut[holder] += 1
    for one in rest:
        one.asked -= back


def _fetched(one: _Wanted, got: Got, duration_ms: int) -> Fetched:
    holder = max(got.shares, key=lambda peer: got.shares[peer], default=PeerId(one.offers[0].holder.peer))
    body = one.body
    return Fetched(
        one.key,
        body.version,
        body.root,
        body.size_bytes,
        got.path,
        holder,
        duration_ms,
        got.shares,
        got.wire_bytes,
    )


async def _side_by_side(at_once: int, wanted: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do `work` for all of `wanted`, so many at a time; the first that raises ends all."""
    rest = iter(wanted)

    async def some() -> None:
        for one in rest:
            await work(one)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(some())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None

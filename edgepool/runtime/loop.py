"""The one loop that performs what a node decides.

Events queue up; the loop steps the node through all that wait, writes everything they persist,
makes it durable with one sync, and only then lets messages and notices go. So `Persist` is a
barrier, and under load many steps share one sync. The node has a single writer: this loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor

from edgepool.core.machine import (
    BlockSource,
    Broadcast,
    CommitBlock,
    Effect,
    Event,
    Item,
    KeptRecord,
    Misbehaved,
    Notice,
    Notify,
    PeerDown,
    PeerUp,
    Persist,
    Received,
    SavedSnapshot,
    Send,
    UnwantLink,
    VoteState,
    WantLink,
    Woke,
)
from edgepool.core.node import Node
from edgepool.core.rights import Subject
from edgepool.errors import DecodeError, EdgepoolError, LocalError, StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import encode
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Records, decode_message
from edgepool.model.record import SignedRecord
from edgepool.runtime.collector import paused_collector
from edgepool.runtime.ports import Clock, PeerIdentity, Store, Transport

MAX_QUEUED_EVENTS = 20_000
MAX_QUEUED_BYTES = 64 * 1024 * 1024
MAX_BATCH_EVENTS = 256
AHEAD_RECORDS = 8
"""So many signatures are checked while the disk works before the loop looks up."""
MAX_JOINED_RECORDS = 128
MAX_JOINED_BYTES = 60 * 1024
"""Records of one message, which fits into the smallest frame that anybody may have set."""


_log = logging.getLogger(__name__)


class FreshBlocks:
    """Reads blocks from the store, and those that are decided but still being written."""

    def __init__(self, store: BlockSource) -> None:
        self._store = store
        self._fresh: dict[tuple[ChainId, int], CertifiedBlock] = {}

    def block(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        """Return the block at `height`, or None."""
        return self._fresh.get((chain, height)) or self._store.block(chain, height)

    def record_ids(self, chain: ChainId, height: int) -> tuple[bytes, ...] | None:
        """Return the ids of the records of the block at `height` that is stored, or None."""
        return self._store.record_ids(chain, height)

    def snapshot(self, chain: ChainId) -> SavedSnapshot | None:
        """Return the stored snapshot of the chain, or None."""
        return self._store.snapshot(chain)

    def kept(self, chain: ChainId, height: int, index: int) -> KeptRecord | None:
        """Return a record whose block is pruned, if it was to be kept."""
        return self._store.kept(chain, height, index)

    def size_bytes(self, chain: ChainId) -> int:
        """Return how much the stored blocks of the chain take, in bytes."""
        return self._store.size_bytes(chain)

    def add(self, certified: CertifiedBlock) -> None:
        """Remember a block until `written` is called for it."""
        header = certified.block.header
        self._fresh[(header.chain, header.height)] = certified

    def written(self, certified: CertifiedBlock) -> None:
        """The store has the block now."""
        header = certified.block.header
        self._fresh.pop((header.chain, header.height), None)


class NodeLoop:
    """Feeds one node and performs its effects. It is the transport's LinkHandler.

    `on_notice` gets the node's notices, `on_link` link changes, `on_failure` the error that stops the
    loop, most often the disk's: a peer that cannot store may not speak.
    """

    def __init__(
        self,
        node: Node,
        *,
        store: Store,
        fresh: FreshBlocks,
        transport: Transport,
        clock: Clock,
        counters: dict[str, int],
        on_notice: Callable[[Notice], None],
        on_link: Callable[[PeerIdentity | PeerId, str], None],
        on_failure: Callable[[EdgepoolError], None],
    ) -> None:
        self.node = node
        self._store = store
        self._fresh = fresh
        self._transport = transport
        self._clock = clock
        self._counters = counters
        self._on_notice = on_notice
        self._on_link = on_link
        self._on_failure = on_failure
        self._events: deque[tuple[Event, int]] = deque()
        self._queued_bytes = 0
        self._ready = asyncio.Event()
        self._cancel_timer: Callable[[], None] | None = None
        self._timer_at_ms: int | None = None
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgepool-disk")
        self._task: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Open the store and have the node take up the chains in it, before `start`. Raises StorageError."""
        with paused_collector():
            for saved in self._store.open():
                self.node.load(saved.genesis, saved.height, saved.vote_state)

    async def start(self) -> None:
        """Start the node, then take events."""
        if await self._perform(self.node.start(self._clock.now())):
            self._arm()
        self._task = asyncio.create_task(self._run(), name=f"node {self.node.peer}")

    def post(self, event: Event, size_bytes: int = 0) -> None:
        """Queue an event. Received messages are dropped (and counted) when too much waits."""
        full = len(self._events) >= MAX_QUEUED_EVENTS or self._queued_bytes + size_bytes > MAX_QUEUED_BYTES
        if full and isinstance(event, Received):
            self._count("dropped_events")
            return
        self._events.append((event, size_bytes))
        self._queued_bytes += size_bytes
        self._ready.set()

    def forget(self, peers: Container[PeerId]) -> None:
        """Drop what waits and was received from `peers`: they are let in no more, and were not read yet."""
        kept = [(event, size) for event, size in self._events if _sender(event) not in peers]
        self._events = deque(kept)
        self._queued_bytes = sum(size for _, size in kept)

    async def close(self) -> None:
        """Stop taking events; what is being written is finished first."""
        if self._cancel_timer is not None:
            self._cancel_timer()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._disk.shutdown(wait=True)

    # --- LinkHandler ------------------------------------------------------------------------

    def link_up(self, identity: PeerIdentity) -> None:
        """Tell node and owner that a link stands."""
        self._on_link(identity, "")
        self.post(PeerUp(Subject(identity.peer, identity.role, identity.organisation)))

    def link_down(self, peer: PeerId, reason: str) -> None:
        """Tell node and owner that a link is gone."""
        self._on_link(peer, reason)
        self.post(PeerDown(peer))

    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        """Decode a frame; garbage ends the link and changes nothing but a counter."""
        try:
            message = decode_message(frame)
        except DecodeError as error:
            self._count("refused_garbage")
            self._transport.close_link(peer, f"sent garbage: {error}")
            return
        self.post(Received(peer, message), len(frame))

    # --- the loop ---------------------------------------------------------------------------

    async def _run(self) -> None:
        """Take events until the store fails, or a fault of ours shows: then say so and fall silent.

        A peer that only seemed to live would be worse: others would count on its vote.
        """
        try:
            while await self._batch():
                pass
        except StorageError as error:
            self._on_failure(error)
        except Exception as fault:
            _log.exception("the node of %s has failed", self.node.peer)
            what = f"{type(fault).__name__}: {fault}"
            self._on_failure(LocalError(f"an internal fault has stopped this peer ({what}): restart it"))

    async def _batch(self) -> bool:
        await self._ready.wait()
        self._ready.clear()
        effects: list[Effect] = []
        for _ in range(min(len(self._events), MAX_BATCH_EVENTS)):
            event, size_bytes = self._events.popleft()
            self._queued_bytes -= size_bytes
            effects += self._step(event)
        if self._events:
            self._ready.set()
        going_on = await self._perform(effects)
        self._arm()
        return going_on

    def _step(self, event: Event) -> list[Effect]:
        effects = self.node.step(event, self._clock.now())
        for effect in effects:
            if isinstance(effect, Persist) and isinstance(effect.item, CommitBlock):
                self._fresh.add(effect.item.certified)
        return effects

    async def _perform(self, effects: Sequence[Effect]) -> bool:
        """Store first, then speak; False if the store failed, and nothing was said then."""
        items = [effect.item for effect in effects if isinstance(effect, Persist)]
        if items:
            try:
                await self._make_durable(_latest(items))
            except StorageError as error:
                self._on_failure(error)
                return False
            for item in items:
                if isinstance(item, CommitBlock):
                    self._fresh.written(item.certified)
        for effect in join_records(effects):
            self._speak(effect)
        return True

    async def _make_durable(self, items: list[Item]) -> None:
        """Write and sync: here if that is quick, for a thread's hand-over and back costs more; else aside."""
        if self._store.quick(items):
            self._write(items)
            return
        work = asyncio.get_running_loop().run_in_executor(self._disk, self._write, items)
        await self._check_ahead(work)
        await asyncio.shield(work)

    async def _check_ahead(self, work: asyncio.Future[None]) -> None:
        """Check signatures of records that wait, until `work` is done: they remember the verdict.

        Only time goes into it in which there is nothing else to do, so whoever sends forgeries gains nothing.
        """
        work.add_done_callback(lambda _: self._ready.set())
        place = 0
        while not work.done():
            if place >= min(len(self._events), MAX_BATCH_EVENTS):
                self._ready.clear()
                await self._ready.wait()
                continue
            event, _ = self._events[place]
            place += 1
            if isinstance(event, Received) and isinstance(event.message, Records):
                await _check_signatures(event.message.records, work)
        if self._events:
            self._ready.set()

    def _write(self, items: list[Item]) -> None:
        self._store.write(items)
        self._store.sync()

    def _speak(self, effect: Effect) -> None:
        match effect:
            case Send(peer, message):
                self._transport.send(peer, encode(message))
            case Broadcast(peers, message):
                frame = encode(message)
                for peer in peers:
                    self._transport.send(peer, frame)
            case WantLink(member, instead_of):
                if instead_of:
                    self._transport.unwant(instead_of)
                self._transport.want(member)
            case UnwantLink(peer):
                self._transport.unwant(peer)
            case Notify(Misbehaved() as notice):
                self._count("refused_misbehaviour")
                self._on_notice(notice)
            case Notify(notice):
                self._on_notice(notice)
            case Persist():
                pass

    def _count(self, reason: str) -> None:
        self._counters[reason] = self._counters.get(reason, 0) + 1

    def _arm(self) -> None:
        """Re-arm the one timer for the node's next deadline."""
        deadline = self.node.wakeup_at()
        if deadline == self._timer_at_ms:
            return
        if self._cancel_timer is not None:
            self._cancel_timer()
        self._timer_at_ms = deadline
        self._cancel_timer = None
        if deadline is not None:
            self._cancel_timer = self._clock.call_at(deadline, self._wake)

    def _wake(self) -> None:
        self._cancel_timer = None
        self._timer_at_ms = None
        self.post(Woke())


def _sender(event: Event) -> PeerId | None:
    return event.peer if isinstance(event, Received) else None


async def _check_signatures(records: Sequence[SignedRecord], work: asyncio.Future[None]) -> None:
    """Check them in turn, until one is forged or `work` is done."""
    for number, signed in enumerate(records):
        if number % AHEAD_RECORDS == 0:
            await asyncio.sleep(0)  # frames may come in, or word of the disk
            if work.done():
                return
        if not signed.authentic():
            return


def join_records(effects: Sequence[Effect]) -> list[Effect]:
    """Return `effects` with records for the same peers in few messages, ahead of everything else.

    Records of one batch were submitted one by one; a message for each would cost more than they do.
    """
    joined: dict[tuple[tuple[PeerId, ...], ChainId], list[list[SignedRecord]]] = {}
    room_bytes: dict[tuple[tuple[PeerId, ...], ChainId], int] = {}
    others: list[Effect] = []
    for effect in effects:
        if not isinstance(effect, Broadcast) or not isinstance(effect.message, Records):
            others.append(effect)
            continue
        to = (effect.peers, effect.message.chain)
        records = effect.message.records
        size_bytes = sum(signed.size_bytes for signed in records)
        parcels = joined.setdefault(to, [])
        if parcels and len(parcels[-1]) + len(records) <= MAX_JOINED_RECORDS and size_bytes <= room_bytes[to]:
            parcels[-1] += records
            room_bytes[to] -= size_bytes
        else:
            parcels.append(list(records))
            room_bytes[to] = MAX_JOINED_BYTES - size_bytes
    return [
        *(
            Broadcast(peers, Records(chain, tuple(parcel)))
            for (peers, chain), parcels in joined.items()
            for parcel in parcels
        ),
        *others,
    ]


def _latest(
    items: list[Item],
) -> list[Item]:
    """Drop vote states that a later one of the same chain replaces within one batch."""
    last: dict[ChainId, int] = {
        item.chain: index for index, item in enumerate(items) if isinstance(item, VoteState)
    }
    return [
        item
        for index, item in enumerate(items)
        if not isinstance(item, VoteState) or last[item.chain] == index
    ]

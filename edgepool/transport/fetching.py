"""Drawing one piece of data from many holders at once: performs the plan of core/transfer/plan.py.

The event loop plans and asks; a thread for each holder receives and checks, one more writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from edgepool.config import Limits
from edgepool.core.transfer.plan import Plan
from edgepool.errors import DecodeError, EdgepoolError, Refused, RemoteError
from edgepool.model.crypto import data_hash
from edgepool.model.ids import PeerId
from edgepool.model.record import SignedRecord
from edgepool.model.transfer import INLINE_BYTES, chunks_of, confirmation_of
from edgepool.model.twin import Manifest, chunk_bytes_for
from edgepool.transport.lane import LaneKey
from edgepool.transport.packing import Base
from edgepool.transport.receiving import ChunkSink, DamagedBase, Receiver, Spool, WrongChunk
from edgepool.transport.serving import Pace
from edgepool.transport.transfer import TransferClient
from edgepool.transport.transfer_connection import OpenTransfer

TICK_S = 0.1
"""How often the plan is looked at when nothing arrives."""

SAYS_WHY_S = 0.2
"""How long a holder whose stream has ended is given to say why."""

OpenSink = Callable[[Manifest], ChunkSink]
"""Makes, in a thread, where chunks of the checked manifest go; it may have some already."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """What there is once a first holder has sent the manifest."""

    manifest: Manifest
    sink: ChunkSink
    plan: Plan


class Fetch:
    """One piece of data on its way here, from as many holders as `draw_from` is called for.

    `moved(holder, size_bytes)` is called on the event loop for what is new; `pace` says what keeps
    that which comes from a holder within a budget. `bases` are other versions that are here, open for as long
    as this lasts: a holder that has one of them, too, tells what differs from it.
    """

    def __init__(
        self,
        client: TransferClient,
        root: bytes,
        size_bytes: int,
        open_sink: OpenSink,
        moved: Callable[[PeerId, int], None],
        pace: Callable[[PeerId], Pace] | None = None,
        bases: Sequence[Base] = (),
    ) -> None:
        self.wire_bytes = 0
        self._bases = {base.manifest.root: base for base in bases}
        self.root = root
        self.size_bytes = size_bytes
        self.shares: dict[PeerId, int] = {}
        self._client = client
        self._limits: Limits = client.limits
        self._open_sink = open_sink
        self._moved = moved
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._opening = asyncio.Lock()
        self._begun: _Begun | None = None
        self._spool: Spool | None = None
        self._asked: dict[PeerId, tuple[OpenTransfer, Receiver]] = {}
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._tick: asyncio.TimerHandle | None = None
        if size_bytes > self._limits.data_bytes:
            why = f"{size_bytes} bytes, limits.data_bytes is {self._limits.data_bytes}"
            raise Refused("data too large", why)

    @property
    def whole(self) -> bool:
        """Whether every chunk is there; they may still be on their way to the sink."""
        return self._begun is not None and self._begun.plan.whole

    @property
    def done_bytes(self) -> int:
        """How many bytes are there and checked."""
        if self._begun is None:
            return 0
        done = self._begun.plan.count - self._begun.plan.missing
        return min(done * self._begun.manifest.chunk_bytes, self.size_bytes)

    @property
    def sources(self) -> tuple[PeerId, ...]:
        """Who sends now."""
        return tuple(self._asked)

    async def draw_from(self, holder: PeerId, addresses: Sequence[str], confirmation: SignedRecord) -> None:
        """Take chunks from one more holder until all are there.

        Raises what ended it: Refused, RemoteError (WrongChunk if it sent one) or Unavailable for this
        holder alone; what the sink raised for all.
        """
        if self.size_bytes <= INLINE_BYTES:
            manifest, data = await fetch_small(self._client, holder, addresses, confirmation)
            await self._keep(await self._begin(holder, manifest), holder, data)
            return
        bases = tuple(self._bases)
        transfer = await self._client.open(holder, addresses, confirmation, self._begun is None, bases)
        wrong: int | None = None
        try:
            begun = await self._begin(holder, transfer.accept.manifest)
            if transfer.key is None:
                raise RemoteError(holder, "its answer has no part of a key")
            if not begun.plan.whole and not self._over.done():
                await self._draw(begun, holder, transfer, transfer.key)
        except WrongChunk as error:
            wrong = error.index
            raise
        finally:
            transfer.end(self.whole, wrong)
        self.check_sink()

    async def finish(self) -> None:
        """Return once everything is written to the sink; raises what the sink raised."""
        await self.stop()
        self.check_sink()

    async def stop(self) -> None:
        """Give up, or end: what has come is written, then nothing more is."""
        if self._tick is not None:
            self._tick.cancel()
        if not self._over.done():
            self._over.set_result(None)
        for _, receiver in self._asked.values():
            receiver.stop()
        if self._spool is not None:
            await asyncio.to_thread(self._spool.end)

    # --- the beginning ------------------------------------------------------------------------

    async def _begin(self, holder: PeerId, manifest: Manifest | None) -> _Begun:
        """Take the manifest of the first holder that answers; the others mean the same data."""
        async with self._opening:
            if self._begun is None:
                if manifest is None:
                    raise RemoteError(holder, "its answer has no manifest")
                _check_manifest(holder, manifest, self.root, self.size_bytes)
                sink = await asyncio.to_thread(self._open_sink, manifest)
                have = {index for index in range(len(manifest.chunks)) if sink.has(index)}
                self._begun = _Begun(manifest, sink, Plan(len(manifest.chunks), have))
                if self.whole:
                    self._settle()
            return self._begun

    async def _keep(self, begun: _Begun, holder: PeerId, data: bytes) -> None:
        """Take small data that came, checked, inside an answer."""
        manifest, sink = begun.manifest, begun.sink
        self.wire_bytes += len(data)

        def write() -> None:
            for index in range(len(manifest.chunks)):
                start = index * manifest.chunk_bytes
                if not sink.has(index):
                    sink.write(index, memoryview(data)[start : start + manifest.chunk_bytes])

        async with self._opening:  # one thread at a time writes
            await asyncio.to_thread(write)
        now_s = self._loop.time()
        self._arrived(begun, holder, [(index, now_s) for index in range(len(manifest.chunks))])

    # --- the lane -----------------------------------------------------------------------------

    async def _draw(self, begun: _Begun, holder: PeerId, transfer: OpenTransfer, key: LaneKey) -> None:
        """Take chunks over a data connection until all are there, or the holder or the stream ends."""
        manifest = begun.manifest
        has = None
        if transfer.accept.have:
            try:
                has = chunks_of(transfer.accept.have, len(manifest.chunks))
            except DecodeError as error:
                raise RemoteError(holder, f"it sent {error}") from None
        connection = await transfer.connect()
        if self._over.done() or holder in self._asked:
            connection.close()
            return
        if self._spool is None:
            chunk_bytes = min(manifest.chunk_bytes, manifest.size_bytes)
            self._spool = Spool(begun.sink, chunk_bytes, self._spool_failed)
        ended: asyncio.Future[Exception | None] = self._loop.create_future()
        receiver = Receiver(
            holder,
            connection,
            key,
            manifest,
            self._spool,
            self._limits.transfer_stall_ms / 1000,
            self._pace(holder) if self._pace is not None else None,
            arrived=lambda came: self._arrived(begun, holder, came),
            ended=ended.set_result,
            base=self._bases.get(transfer.accept.base),
        )
        self._asked[holder] = transfer, receiver
        begun.plan.add(holder, has)
        try:
            self._ask()
            await asyncio.wait((self._over, ended, transfer.lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._asked[holder]
            begun.plan.lose(holder)
            receiver.stop()
            self.wire_bytes += receiver.wire_bytes
            self._ask()
        if ended.done() and isinstance(damaged := ended.result(), DamagedBase):
            self._bases.pop(damaged.root, None)
        if not self._over.done():
            await _raise_reason(ended, transfer.lost)

    def _arrived(self, begun: _Begun, holder: PeerId, came: list[tuple[int, float]]) -> None:
        """Chunks came and were right; nobody is told once this has ended or was given up."""
        if self._over.done():
            return
        new_bytes = 0
        for index, at_s in came:
            if begun.plan.arrived(holder, index, at_s * 1000):
                new_bytes += begun.manifest.chunk_size_bytes(index)
        if new_bytes:
            self.shares[holder] = self.shares.get(holder, 0) + new_bytes
            self._moved(holder, new_bytes)
        if begun.plan.whole:
            self._settle()
        else:
            self._ask()

    def _ask(self) -> None:
        """Ask for what the plan says, in ranges where chunks follow each other."""
        if self._begun is None or self._over.done():
            return
        ranges: dict[str, list[list[int]]] = {}
        for ask in self._begun.plan.asks(self._now_ms()):
            of_source = ranges.setdefault(ask.source, [])
            if of_source and of_source[-1][0] + of_source[-1][1] == ask.index:
                of_source[-1][1] += 1
            else:
                of_source.append([ask.index, 1])
        for source, asked in ranges.items():
            transfer, receiver = self._asked[PeerId(source)]
            for first, count in asked:
                for index in range(first, first + count):
                    receiver.expect(index)
                transfer.ask(first, count)
        if self._tick is not None:
            self._tick.cancel()
        self._tick = self._loop.call_later(TICK_S, self._ask) if self._asked else None

    def _now_ms(self) -> float:
        return self._loop.time() * 1000

    # --- the end ------------------------------------------------------------------------------

    def _settle(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _spool_failed(self) -> None:
        """Called in the writing thread: nothing can be kept any more."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._settle)

    def check_sink(self) -> None:
        """Raise what the sink raised, if it did."""
        failure = self._spool.failure if self._spool is not None else None
        if failure is not None:
            raise failure


def _check_manifest(holder: PeerId, manifest: Manifest, root: bytes, size_bytes: int) -> None:
    if manifest.root != root:
        raise RemoteError(holder, "the root of its manifest is not the confirmed one")
    if manifest.size_bytes != size_bytes:
        raise RemoteError(holder, "the size in its manifest is not the confirmed one")
    try:
        manifest.check()
    except DecodeError as error:
        raise RemoteError(holder, f"it sent {error}") from None
    # A chunk is held in memory until it is checked, so its size is not the holder's to choose.
    if manifest.chunk_bytes > chunk_bytes_for(manifest.size_bytes):
        raise RemoteError(holder, f"its chunks of {manifest.chunk_bytes} bytes are too large")


def _check_data(holder: PeerId, manifest: Manifest, data: bytes) -> None:
    if len(data) != manifest.size_bytes:
        raise RemoteError(holder, "the data in its answer has another size than its manifest says")
    for index, digest in enumerate(manifest.chunks):
        start = index * manifest.chunk_bytes
        if data_hash(memoryview(data)[start : start + manifest.chunk_bytes]) != digest:
            raise WrongChunk(holder, index)


async def _raise_reason(ended: asyncio.Future[Exception | None], lost: asyncio.Future[EdgepoolError]) -> None:
    """Raise why a holder sends no more: what it did wrong, else what it said, else how the stream ended."""
    error = ended.result() if ended.done() else None
    if not isinstance(error, RemoteError) and not lost.done():
        await asyncio.wait((lost,), timeout=SAYS_WHY_S)
    if isinstance(error, RemoteError):
        raise error
    if lost.done():
        raise lost.result()
    if error is not None:
        raise error


async def fetch_small(
    client: TransferClient, holder: PeerId, addresses: Sequence[str], confirmation: SignedRecord
) -> tuple[Manifest, bytes]:
    """Fetch data of at most INLINE_BYTES from one holder, checked, with its manifest.

    Many can be under way at a time.

    Raises Refused, RemoteError (WrongChunk if the data is wrong) or Unavailable.
    """
    accept = await client.ask_small(holder, addresses, confirmation)
    confirmed, manifest = confirmation_of(confirmation), accept.manifest
    if accept.share or manifest is None:
        raise RemoteError(holder, "its answer has no data, or no manifest")
    _check_manifest(holder, manifest, confirmed.root, confirmed.size_bytes)
    _check_data(holder, manifest, accept.data)
    return manifest, accept.data


async def fetch(
    client: TransferClient,
    holder: PeerId,
    addresses: Sequence[str],
    confirmation: SignedRecord,
    open_sink: OpenSink,
    moved: Callable[[PeerId, int], None] = lambda holder, size_bytes: None,
) -> Fetch:
    """Fetch the data of a confirmation from one holder, every chunk checked; see Fetch.draw_from."""
    confirmed = confirmation_of(confirmation)
    fetched = Fetch(client, confirmed.root, confirmed.size_bytes, open_sink, moved)
    try:
        await fetched.draw_from(holder, addresses, confirmation)
    finally:
        await fetched.stop()
    await fetched.finish()
    return fetched

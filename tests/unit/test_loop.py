"""The loop's promise: stored first, spoken after; a peer that cannot store falls silent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from edgepool.config import PeerSettings
from edgepool.core.machine import (
    Broadcast,
    Done,
    Effect,
    Failed,
    FormPool,
    Instant,
    Item,
    Notice,
    Notify,
    PoolJoined,
    Received,
    SubmitRecord,
    Submitted,
)
from edgepool.core.node import Node
from edgepool.errors import EdgepoolError, StorageError
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Records
from edgepool.model.pool import Invitation, Member
from edgepool.model.record import DataDemand, SignedRecord, sign_record
from edgepool.model.twin import DataKey
from edgepool.runtime.clock import SystemClock
from edgepool.runtime.loop import FreshBlocks, NodeLoop, join_records
from edgepool.runtime.ports import LinkHandler
from edgepool.storage.memory import MemoryStore

CHAINS = (ChainId("0" * 40), ChainId("1" * 40))
PEERS = (PeerId("a"), PeerId("b"))


class RecordingStore(MemoryStore):
    """Writes down the order of what it is asked; fails on request."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log
        self.broken = False

    def write(self, items: Iterable[Item]) -> None:
        items = list(items)
        if self.broken:
            raise StorageError("no space left")
        self.log.append("write " + "+".join(type(item).__name__ for item in items))
        super().write(items)

    def sync(self) -> None:
        self.log.append("sync")
        super().sync()


class SilentTransport:
    """Sends nothing, knows nobody."""

    addresses: tuple[str, ...] = ()

    async def start(self, handler: LinkHandler) -> None: ...

    def want(self, member: Member) -> None: ...

    def send(self, peer: PeerId, frame: bytes) -> bool:
        return False

    def close_link(self, peer: PeerId, reason: str) -> None: ...

    async def close(self) -> None: ...


class Bench:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.store = RecordingStore(self.log)
        self.store.open()
        self.signer = Signer(bytes(32))
        settings = PeerSettings(name="alone", network="n", role="coordinator", folder=Path())
        fresh = FreshBlocks(self.store)
        self.failures: list[EdgepoolError] = []
        self.notices: list[Notice] = []
        self.arrived = asyncio.Event()
        self.loop = NodeLoop(
            Node(settings, self.signer, fresh),
            store=self.store,
            fresh=fresh,
            transport=SilentTransport(),
            clock=SystemClock(),
            counters={},
            on_notice=self.notice,
            on_link=lambda *_: None,
            on_failure=self.fail,
        )

    def notice(self, notice: Notice) -> None:
        self.log.append(type(notice).__name__)
        self.notices.append(notice)
        self.arrived.set()

    def fail(self, error: EdgepoolError) -> None:
        self.failures.append(error)
        self.arrived.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not reached():
                self.arrived.clear()
                await self.arrived.wait()

    async def form(self) -> PoolJoined:
        me = Member(self.signer.peer, "alone", "", (), "coordinator")
        invitation = Invitation("n", "pool", "fixed", self.signer.peer, (me,), (), (), 0, 1)
        self.loop.post(Submitted(1, FormPool(invitation)))
        await self.until(lambda: any(isinstance(n, Done) for n in self.notices))
        return next(n for n in self.notices if isinstance(n, PoolJoined))

    def submit(self, joined: PoolJoined, ticket: int) -> None:
        body = DataDemand(DataKey("P", "model"), ticket, "", "")
        record = sign_record(self.signer, "n", joined.genesis.chain, body, 0, ticket)
        self.loop.post(Submitted(ticket, SubmitRecord(record)))


async def test_nothing_is_told_before_it_is_durable() -> None:
    bench = Bench()
    await bench.loop.start()
    joined = await bench.form()
    bench.submit(joined, 2)
    await bench.until(lambda: Done in [type(n) for n in bench.notices[-1:]] and len(bench.notices) > 2)
    await bench.loop.close()
    committed = bench.log.index("BlockCommitted")
    written = max(i for i, entry in enumerate(bench.log[:committed]) if "CommitBlock" in entry)
    assert bench.log[written + 1] == "sync"
    assert bench.log.index("PoolJoined") > bench.log.index("sync")


async def test_peer_that_cannot_store_tells_nothing_and_stops() -> None:
    bench = Bench()
    await bench.loop.start()
    joined = await bench.form()
    told = len(bench.notices)
    bench.store.broken = True
    bench.submit(joined, 2)
    await bench.until(lambda: bool(bench.failures))
    bench.submit(joined, 3)
    await bench.loop.close()
    assert len(bench.notices) == told
    assert [str(failure) for failure in bench.failures] == ["no space left"]


async def test_steps_that_wait_together_share_one_sync() -> None:
    bench = Bench()
    await bench.loop.start()
    joined = await bench.form()
    before = bench.log.count("sync")
    for ticket in range(2, 52):
        bench.submit(joined, ticket)
    await bench.until(lambda: sum(isinstance(n, Done) for n in bench.notices) == 51)
    await bench.loop.close()
    assert bench.log.count("sync") - before < 50


async def test_what_a_quick_store_writes_on_the_loop_is_durable_before_it_is_told() -> None:
    bench = Bench()
    threads: list[str] = []
    genuine = bench.store.sync

    def sync() -> None:
        threads.append(threading.current_thread().name)
        genuine()

    bench.store.sync = sync  # type: ignore[method-assign]
    bench.store.quick = lambda items: len(threads) > 0  # type: ignore[method-assign]
    await bench.loop.start()
    joined = await bench.form()
    bench.submit(joined, 2)
    await bench.until(lambda: Done in [type(n) for n in bench.notices[-1:]] and len(bench.notices) > 2)
    bench.store.broken = True
    bench.submit(joined, 3)
    await bench.until(lambda: bool(bench.failures))
    await bench.loop.close()
    assert threads[0].startswith("edgepool-disk")
    assert set(threads[1:]) == {threading.main_thread().name}
    committed = bench.log.index("BlockCommitted")
    written = max(i for i, entry in enumerate(bench.log[:committed]) if "CommitBlock" in entry)
    assert bench.log[written + 1] == "sync"


async def test_signatures_of_waiting_records_are_checked_while_the_disk_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    await bench.loop.start()
    joined = await bench.form()
    others = Signer(bytes([1] * 32))
    chain = joined.genesis.chain
    waiting = [
        sign_record(others, "n", chain, DataDemand(DataKey("P", "model"), number, "", ""), 0, number)
        for number in range(20)
    ]
    forged = SignedRecord(waiting[0].record, waiting[1].signature)
    checked: list[SignedRecord] = []
    at_work, all_checked, let_go = asyncio.Event(), asyncio.Event(), threading.Event()
    here = asyncio.get_running_loop()
    genuine = bench.store.sync

    def sync() -> None:
        here.call_soon_threadsafe(at_work.set)
        let_go.wait(30)
        genuine()

    def authentic(signed: SignedRecord) -> bool:
        checked.append(signed)
        if signed is forged:
            all_checked.set()
        return signed is not forged

    bench.store.sync = sync  # type: ignore[method-assign]
    monkeypatch.setattr(SignedRecord, "authentic", authentic)
    bench.submit(joined, 2)
    async with asyncio.timeout(60):
        await at_work.wait()
        bench.loop.post(Received(others.peer, Records(chain, tuple(waiting))))
        bench.loop.post(Received(others.peer, Records(chain, (forged, waiting[0]))))
        await all_checked.wait()
    let_go.set()
    await bench.until(lambda: isinstance(bench.notices[-1], Done) and len(bench.notices) > 2)
    await bench.loop.close()
    assert checked == [*waiting, forged], "who is caught with one forgery has no others checked"


def test_a_moment_has_both_clocks() -> None:
    now = SystemClock().now()
    assert isinstance(now, Instant)
    assert now.wall_ms > now.monotonic_ms


@pytest.mark.parametrize("bound", [0, 1])
async def test_messages_are_dropped_and_counted_when_too_many_wait(
    bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepool.model.message import Ping

    bench = Bench()
    monkeypatch.setattr("edgepool.runtime.loop.MAX_QUEUED_EVENTS", bound)
    for count in range(3):
        bench.loop.post(Received(bench.signer.peer, Ping(count)))
    assert bench.loop._counters["dropped_events"] == 3 - bound


def test_records_of_one_batch_travel_together() -> None:
    signer = Signer(bytes(32))

    def record(number: int) -> SignedRecord:
        body = DataDemand(DataKey("P", "model"), number, "", "c" * 256)
        return sign_record(signer, "n", CHAINS[0], body, 0, number)

    small = [record(number) for number in range(300)]
    notice = Notify(Failed(1, "no", refused=True))
    effects: list[Effect] = [Broadcast(PEERS[:2], Records(CHAINS[0], (one,))) for one in small]
    effects.insert(7, notice)
    effects.append(Broadcast(PEERS[:1], Records(CHAINS[0], (small[0],))))
    effects.append(Broadcast(PEERS[:2], Records(CHAINS[1], (small[0],))))
    *sent, last = join_records(effects)
    assert last == notice
    assert all(isinstance(effect, Broadcast) and len(encode(effect.message)) < 65_536 for effect in sent)
    parcels = [effect.message for effect in sent if isinstance(effect, Broadcast)]
    assert [len(parcel.records) for parcel in parcels[-2:]] == [1, 1]
    assert [one for parcel in parcels[:-2] for one in parcel.records] == small
    assert len(parcels) - 2 < 6
    assert all(len(parcel.records) <= 128 for parcel in parcels)


async def test_an_internal_fault_stops_the_peer_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    await bench.loop.start()
    joined = await bench.form()

    def fail(*_: object) -> None:
        raise AssertionError("impossible")

    monkeypatch.setattr(bench.loop.node, "step", fail)
    bench.submit(joined, 2)
    await bench.until(lambda: bool(bench.failures))
    await bench.loop.close()
    assert "impossible" in str(bench.failures[0])
    assert "restart it" in str(bench.failures[0])
    assert "has failed" in caplog.text


async def test_waiting_messages_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepool.model.codec import encode
    from edgepool.model.message import Ping

    bench = Bench()
    frame = encode(Ping(1))
    monkeypatch.setattr("edgepool.runtime.loop.MAX_QUEUED_BYTES", 2 * len(frame))
    for _ in range(5):
        bench.loop.frame_received(bench.signer.peer, frame)
    assert bench.loop._counters["dropped_events"] == 3


async def test_what_a_revoked_peer_has_sent_and_waits_for_the_disk_is_never_read() -> None:
    bench = Bench()
    read: list[PeerId] = []
    step = bench.loop.node.step

    def note(event: object, now: Instant) -> list[Effect]:
        if isinstance(event, Received):
            read.append(event.peer)
            bench.arrived.set()
        return step(event, now)  # type: ignore[arg-type]

    bench.loop.node.step = note  # type: ignore[method-assign, assignment]
    for peer in (PEERS[0], PEERS[1], PEERS[0]):
        bench.loop.post(Received(peer, Records(CHAINS[0], ())), 100)
    bench.loop.forget((PEERS[0],))
    await bench.loop.start()
    bench.loop.post(Received(PEERS[0], Records(CHAINS[0], ())), 100)
    await bench.until(lambda: len(read) >= 2)
    await bench.loop.close()
    assert read == [PEERS[1], PEERS[0]], "what comes later is its door's business"
    assert bench.loop._queued_bytes == 0

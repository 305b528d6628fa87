"""The loop's promise: stored first, spoken after; a peer that cannot store falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from edgepool.config import PeerSettings
from edgepool.core.machine import (
    CommitBlock,
    Done,
    FormPool,
    Instant,
    NewChain,
    Notice,
    PoolJoined,
    SubmitRecord,
    Submitted,
    VoteState,
)
from edgepool.core.node import Node
from edgepool.errors import StorageError
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId
from edgepool.model.pool import Invitation, Member
from edgepool.model.record import DataDemand, sign_record
from edgepool.model.twin import DataKey
from edgepool.runtime.clock import SystemClock
from edgepool.runtime.loop import FreshBlocks, NodeLoop
from edgepool.runtime.ports import LinkHandler
from edgepool.storage.memory import MemoryStore


class RecordingStore(MemoryStore):
    """Writes down the order of what it is asked; fails on request."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log
        self.broken = False

    def write(self, items: Iterable[VoteState | NewChain | CommitBlock]) -> None:
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
        self.failures: list[StorageError] = []
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

    def fail(self, error: StorageError) -> None:
        self.failures.append(error)
        self.arrived.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not reached():
                self.arrived.clear()
                await self.arrived.wait()

    async def form(self) -> PoolJoined:
        me = Member(self.signer.peer, "alone", "", ())
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


def test_a_moment_has_both_clocks() -> None:
    now = SystemClock().now()
    assert isinstance(now, Instant)
    assert now.wall_ms > now.monotonic_ms


@pytest.mark.parametrize("bound", [0, 1])
async def test_messages_are_dropped_and_counted_when_too_many_wait(
    bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepool.core.machine import Received
    from edgepool.model.message import Ping

    bench = Bench()
    monkeypatch.setattr("edgepool.runtime.loop.MAX_QUEUED_EVENTS", bound)
    for count in range(3):
        bench.loop.post(Received(bench.signer.peer, Ping(count)))
    assert bench.loop._counters["dropped_events"] == 3 - bound

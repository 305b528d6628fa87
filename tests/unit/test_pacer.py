from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from edgepool.core.machine import Instant
from edgepool.core.transfer.budget import BudgetPlan, burst_bytes
from edgepool.model.ids import PeerId
from edgepool.runtime.pacer import PaceEnded, Pacer

PEER = PeerId("a")
RATE = 1_000_000
BURST = burst_bytes(RATE)


class HandClock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.ms = 0

    def now(self) -> Instant:
        return Instant(self.ms, 1_700_000_000_000)

    def call_at(self, monotonic_ms: int, callback: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError("not needed")


async def turns(task: asyncio.Task[None]) -> bool:
    """Let the loop go round; say whether the task is done."""
    for _ in range(20):
        await asyncio.sleep(0)
    return task.done()


async def test_nobody_waits_while_nothing_is_limited() -> None:
    pacer = Pacer(BudgetPlan(), HandClock())
    pacer.wait(PEER, "model", 10**12)
    await pacer.take(PEER, "model", 10**12)
    assert not pacer.limits


async def test_another_plan_frees_at_once_who_waits_under_the_old_one() -> None:
    clock = HandClock()
    pacer = Pacer(BudgetPlan(RATE), clock)
    await pacer.take(PEER, "model", BURST)
    task = asyncio.create_task(pacer.take(PEER, "model", 100 * RATE))
    done = threading.Event()

    def work() -> None:
        pacer.wait(PEER, "surface", 100 * RATE)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert not await turns(task)
    assert pacer.waiting >= 1
    pacer.change(BudgetPlan())
    await task
    assert await asyncio.to_thread(done.wait, 30)
    thread.join()
    assert pacer.waiting == 0


async def test_closing_lifts_no_budget_and_giving_up_leaves_nothing_behind() -> None:
    pacer = Pacer(BudgetPlan(RATE), HandClock())
    await pacer.take(PEER, "model", BURST)
    given_up = asyncio.create_task(pacer.take(PEER, "model", RATE))
    assert not await turns(given_up)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    assert pacer.waiting == 0
    task = asyncio.create_task(pacer.take(PEER, "model", RATE))
    assert not await turns(task)
    ended: list[BaseException] = []

    def work() -> None:
        try:
            pacer.wait(PEER, "model", RATE)
        except PaceEnded as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    pacer.close()
    with pytest.raises(PaceEnded, match="this peer is closing"):
        await task
    await asyncio.to_thread(thread.join)
    assert len(ended) == 1
    assert pacer.limits, "who looks first whether there is a budget comes to know, too"
    with pytest.raises(PaceEnded):
        pacer.wait(PEER, "model", 1)
    assert pacer.waiting == 0


async def test_what_is_asked_for_comes_when_its_time_has_come() -> None:
    clock = HandClock()
    pacer = Pacer(BudgetPlan(RATE), clock)
    await pacer.take(PEER, "model", BURST)
    first = asyncio.create_task(pacer.take(PEER, "model", BURST))
    assert not await turns(first)
    clock.ms += 1000 * BURST // RATE + 1
    second = asyncio.create_task(pacer.take(PEER, "model", BURST))  # its asking grants what is due
    assert await turns(first)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)

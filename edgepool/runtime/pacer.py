"""Paces bulk data under a budget: whoever is about to move bytes asks here first, and waits.

`take` is for the event loop, `wait` for threads. Both return at once while nothing is limited. What may
move when is decided by core/transfer/budget.py; only clocks and waiting are here.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from edgepool.core.transfer.budget import Budget, BudgetPlan
from edgepool.model.ids import PeerId
from edgepool.runtime.ports import Clock

LONGEST_WAIT_MS = 1_000
"""Who waits looks again after this time: another hour of the day, or another plan, may have begun."""


class PaceEnded(OSError):
    """Nothing more moves: this peer is closing."""

    def __init__(self) -> None:
        super().__init__(errno.ECANCELED, "this peer is closing")


class Pacer:
    """One direction of a peer's bulk traffic; safe for any number of threads."""

    def __init__(self, plan: BudgetPlan, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tickets = itertools.count(1)
        self._waiting: dict[int, Callable[[], object]] = {}
        self._closed = False
        self._limits = plan.limits
        self._budget = Budget(plan, *self._now())

    @property
    def limits(self) -> bool:
        """Whether anything is limited, now or at another time of the day."""
        return self._limits

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def bytes_s(self) -> int | None:
        """Return the machine's rate that is in force now; None is any."""
        return self._budget.plan.bytes_s_at(self._now()[1])

    def change(self, plan: BudgetPlan) -> None:
        """Go on under another plan at once, also for those who wait."""
        with self._lock:
            self._budget.change(plan, *self._now())
            self._limits = plan.limits
            waiting = list(self._waiting.values())
        for wake in waiting:
            wake()

    def close(self) -> None:
        """Let nothing more move under this budget: whoever waits, or asks later, gets PaceEnded."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting.values())
        for wake in waiting:
            wake()

    def wait(self, peer: PeerId, kind: str, size_bytes: int) -> None:
        """Return when so many bytes of a kind of data may move to or from `peer`; blocks a thread.

        Raises PaceEnded.
        """
        if not self.limits:
            return
        woken = threading.Event()
        ticket = self._ask(peer, kind, size_bytes, woken.set)
        try:
            while (pause_ms := self._pause_ms(ticket)) > 0:
                woken.wait(pause_ms / 1000)
                woken.clear()
        finally:
            self._forget(ticket)

    async def take(self, peer: PeerId, kind: str, size_bytes: int) -> None:
        """Return when so many bytes of a kind of data may move to or from `peer`. Raises PaceEnded."""
        if not self.limits:
            return
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        ticket = self._ask(peer, kind, size_bytes, lambda: loop.call_soon_threadsafe(woken.set))
        try:
            while (pause_ms := self._pause_ms(ticket)) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_ms / 1000):
                        await woken.wait()
                woken.clear()
        finally:
            self._forget(ticket)

    def _ask(self, peer: PeerId, kind: str, size_bytes: int, wake: Callable[[], object]) -> int:
        with self._lock:
            ticket = next(self._tickets)
            self._waiting[ticket] = wake
            self._budget.ask(ticket, peer, kind, max(1, size_bytes))
            return ticket

    def _pause_ms(self, ticket: int) -> int:
        """Grant what may move by now; return how long `ticket` has to wait before it asks again, or 0."""
        with self._lock:
            now_ms, minute = self._now()
            for done in () if self._closed else self._budget.advance(now_ms, minute):
                self._waiting.pop(done)()
            if ticket not in self._waiting:
                return 0
            if self._closed:
                raise PaceEnded
            at_ms = self._budget.wakeup_at(now_ms)
            return LONGEST_WAIT_MS if at_ms is None else min(LONGEST_WAIT_MS, max(1, at_ms - now_ms))

    def _forget(self, ticket: int) -> None:
        with self._lock:
            if self._waiting.pop(ticket, None) is not None:
                self._budget.cancel(ticket)

    def _now(self) -> tuple[int, int]:
        now = self._clock.now()
        local = time.localtime(now.wall_ms / 1000)
        return now.monotonic_ms, 60 * local.tm_hour + local.tm_min

"""An asyncio event loop whose clock leaps to the next timer as soon as nothing is ready.

So hours pass in seconds, and the same program does the same things in the same order, every time.
Rules: no sockets and no threads. Work for an executor waits a little, runs in one piece, and its outcome
comes later, all in virtual time; so a disk that is slow costs nothing and is still slow.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgepool.core.machine import Instant
from edgepool.errors import LocalError

START_S = 1_000.0
MAX_TURNS = 100_000
"""More turns of the loop than this without time passing, and the program goes round in circles."""
_ROUNDING_MS = 1e-3
"""Sums of seconds fall short of whole milliseconds by much less."""

LEAD_S = 0.0005


class Standstill(LocalError):
    """The program waits for nothing that could ever come, or goes round in circles."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time; `lead_s` draws how long work for an executor waits until it begins.

    Raises Standstill out of `run_until_complete`.
    """

    def __init__(self, lead_s: Callable[[], float] = lambda: LEAD_S) -> None:
        super().__init__(_LeapingSelector(self._leap))
        self.lead_s = lead_s
        self._now_s = START_S
        self._turns = 0
        self._works: dict[_Work, None] = {}
        self._spent_s = 0.0

    def time(self) -> float:
        """Return the present in seconds of virtual time."""
        return self._now_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Call `func` in this thread after `lead_s`; its outcome is there when the time it spends is over."""
        work = _Work(self.create_future(), partial(func, *args))
        self._works[work] = None
        self.call_later(self.lead_s(), self._do, work)
        return work.future

    def spend(self, duration_s: float) -> None:
        """Let the work for an executor that calls this take so much longer."""
        self._spent_s += duration_s

    def finish_work(self) -> None:
        """Do at once what has been given to executors, as who shuts one down waits for it."""
        for work in list(self._works):
            self._do(work)

    def _do(self, work: _Work) -> None:
        if work not in self._works:
            return  # it was done earlier, because somebody could not wait
        del self._works[work]
        self._spent_s = 0.0
        settle: Callable[[], None]
        try:
            settle = partial(_set_result, work.future, work.call())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            settle = partial(_set_exception, work.future, error)
        self.call_later(self._spent_s, settle)

    def pending(self) -> list[str]:
        """Return what timers are still to run, as text: at the end of a program, what has leaked."""
        timers = self._scheduled  # type: ignore[attr-defined]
        return sorted(str(timer) for timer in timers if not timer.cancelled())

    def _leap(self, timeout_s: float | None) -> None:
        if timeout_s is None:
            raise Standstill("everything waits for something that cannot come: no timer is set")
        if timeout_s > 0:
            self._now_s += timeout_s
            self._turns = 0
            return
        self._turns += 1
        if self._turns > MAX_TURNS:
            self._turns = 0
            raise Standstill(f"{MAX_TURNS} turns of the event loop in one instant of virtual time")


@dataclass(eq=False, slots=True)
class _Work:
    """What was given to an executor, and the future of its outcome."""

    future: asyncio.Future[Any]
    call: Callable[[], Any]


class VirtualClock:
    """The clocks of one machine on a VirtualTimeLoop (the port Clock); its wall clock may be set wrong.

    `epoch_ms` is the wall time at the start, `offset_ms` how far this machine's is off.
    """

    def __init__(self, loop: VirtualTimeLoop, epoch_ms: int) -> None:
        self.offset_ms = 0
        self._loop = loop
        self._epoch_ms = epoch_ms

    def now(self) -> Instant:
        """Return the present."""
        monotonic_ms = now_ms(self._loop)
        return Instant(monotonic_ms, self._epoch_ms + self.offset_ms + monotonic_ms)

    def call_at(self, monotonic_ms: int, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back once at `monotonic_ms`; return what cancels it."""
        return self._loop.call_at(monotonic_ms / 1000, callback).cancel


def now_ms(loop: asyncio.AbstractEventLoop) -> int:
    """Return the loop's time in whole milliseconds; never a millisecond short of a timer that is due."""
    return int(loop.time() * 1000 + _ROUNDING_MS)


class _LeapingSelector(selectors.SelectSelector):
    """Finds nothing ready, ever, and lets time leap instead of waiting."""

    def __init__(self, leap: Callable[[float | None], None]) -> None:
        super().__init__()
        self._leap = leap

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let `timeout` seconds of virtual time pass."""
        self._leap(timeout)
        return []


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)

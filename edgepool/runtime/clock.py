"""The real clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from edgepool.core.machine import Instant


class SystemClock:
    """The machine's monotonic and wall clocks, on the running event loop."""

    def now(self) -> Instant:
        """Return the present."""
        return Instant(time.monotonic_ns() // 1_000_000, time.time_ns() // 1_000_000)

    def call_at(self, monotonic_ms: int, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back once at `monotonic_ms`; return what cancels it."""
        delay_s = max(0.0, (monotonic_ms - self.now().monotonic_ms) / 1000)
        return asyncio.get_running_loop().call_later(delay_s, callback).cancel

"""One side of a live stream that is measured: a publisher, or subscribers, with peers of their own.

Run as a helper process (see processes.py).
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from time import monotonic_ns, process_time
from typing import Any

from edgepool.bench.figures import percentile
from edgepool.bench.processes import Answer, serve
from edgepool.bench.transfer.material import memory_bytes
from edgepool.config import BudgetSettings
from edgepool.core.live.following import Missed, Sample
from edgepool.peer.peer import Peer

STAMP_BYTES = 8


class Side:
    """The peers of one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()
        self._peers: dict[str, Peer] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._delays_us: list[float] = []
        self._samples = self._missed = 0
        self._cpu_s = 0.0

    async def open(self, names: list[str]) -> None:
        """Open peers from their folders."""
        for name in names:
            self._peers[name] = await self._stack.enter_async_context(Peer.open(self._folder / name))

    async def publish_live(self, name: str, key: str, rate_hz: int, size_bytes: int) -> None:
        """Begin to put samples that carry when they were put."""
        self._tasks.append(asyncio.create_task(_put(self._peers[name], key, rate_hz, size_bytes)))

    async def follow(self, key: str) -> None:
        """Let all peers here follow a stream; return when each has its first sample."""
        firsts = [asyncio.Event() for _ in self._peers]
        for peer, first in zip(self._peers.values(), firsts, strict=True):
            self._tasks.append(asyncio.create_task(self._take(peer, key, first)))
        await asyncio.gather(*(first.wait() for first in firsts))

    async def begin(self) -> None:
        """Begin to count."""
        self._delays_us.clear()
        self._samples = self._missed = 0
        self._cpu_s = process_time()

    async def counted(self) -> dict[str, Any]:
        """Return what was counted since `begin`."""
        delays = self._delays_us or [0.0]
        return {
            "cpu_s": process_time() - self._cpu_s,
            "rss_bytes": memory_bytes("VmRSS"),
            "samples": self._samples,
            "missed": self._missed,
            "delays_us": {
                "p50": percentile(delays, 50),
                "p99": percentile(delays, 99),
                "max": max(delays),
            },
        }

    async def offer(self, name: str, key: str, size_bytes: int, mbit_s: int) -> None:
        """Publish random data, and set a budget."""
        path = self._folder / "bulk"
        await asyncio.to_thread(_random_file, path, size_bytes)
        await self._peers[name].publish(key, path=path)
        await self._peers[name].budgets.change(BudgetSettings(mbit_s=mbit_s))

    async def fetch(self, name: str, key: str) -> None:
        """Begin to fetch."""
        self._tasks.append(asyncio.create_task(self._peers[name].fetch(key, timeout_ms=600_000)))

    async def received_bytes(self, name: str) -> int:
        """Return how much data a peer has received so far."""
        return self._peers[name].status().totals.bytes_received

    async def end(self) -> None:
        """Stop everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _take(self, peer: Peer, key: str, first: asyncio.Event) -> None:
        async with aclosing(peer.subscribe(key)) as items:
            async for item in items:
                if isinstance(item, Sample):
                    self._samples += 1
                    put_ns = int.from_bytes(item.data[:STAMP_BYTES], "big")
                    self._delays_us.append((monotonic_ns() - put_ns) / 1000)
                    first.set()
                elif isinstance(item, Missed):
                    self._missed += item.last - item.first + 1


async def _put(peer: Peer, key: str, rate_hz: int, size_bytes: int) -> None:
    rest = os.urandom(size_bytes - STAMP_BYTES)
    loop = asyncio.get_running_loop()
    async with peer.live(key) as stream:
        due_s = loop.time()
        while True:
            due_s += 1 / rate_hz
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            await stream.put(monotonic_ns().to_bytes(STAMP_BYTES, "big") + rest)


def _random_file(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        for _ in range(size_bytes >> 20):
            file.write(os.urandom(1 << 20))


def answers(folder: Path) -> dict[str, Answer]:
    """Return what this helper can be asked."""
    side = Side(folder)
    names = "open publish_live follow begin counted offer fetch received_bytes end"
    return {name: getattr(side, name) for name in names.split()}


if __name__ == "__main__":
    serve(answers)

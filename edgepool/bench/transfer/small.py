"""Small things: 1 KB asked for and got beside a bare echo, and many small files beside one large one."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from edgepool.bench.bare import ECHO_BYTES
from edgepool.bench.transfer.material import Data, make_data, make_files, make_sides
from edgepool.bench.transfer.order import Order, Tell
from edgepool.bench.transfer.side import Copying, copying


async def measure_rr_1k(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return the p50 of 1 KB of data asked for and got on an open connection, and of a bare TLS echo.

    With both sides on one processor, and under 'apart' with each on one of its own.
    """
    data = make_data(folder / "data", ECHO_BYTES)
    processors = sorted(os.sched_getaffinity(0))
    async with AsyncExitStack() as stack:
        both = {means: await _pair(stack, folder, means, means, data) for means in ("lane", "bare_echo")}
        together = await _trips(both, processors[:1], order, tell)
        apart = await _trips(both, processors[:2], order, tell)
    return {**together, "apart": apart}


async def _trips(both: dict[str, Copying], processors: list[int], order: Order, tell: Tell) -> dict[str, Any]:
    """Ask over and over, by both means in turn, with the sides of each on these processors; return the p50s.

    Left to itself, a quiet machine runs the two sides of one means on one processor and those of the
    other on two, where each waking of a processor that sleeps costs more than the rest.
    """
    for made in both.values():
        os.sched_setaffinity(made.receiver.pid, {processors[0]})
        os.sched_setaffinity(made.senders[0].pid, {processors[-1]})
    p50s_s: dict[str, list[float]] = {means: [] for means in both}
    for number in range(3 * order.rounds + 1):
        tell(f"round {number} of {3 * order.rounds}, on {len(processors)} of the processors")
        for means, made in both.items():
            told = await made.once(trips=order.trips)
            if number:
                p50s_s[means].append(told["p50_s"])
    ours_s, bare_s = p50s_s.values()
    return {
        "p50_us": round(median(ours_s) * 1e6, 1),
        "bare_p50_us": round(median(bare_s) * 1e6, 1),
        "ratio": round(median(ours / bare for ours, bare in zip(ours_s, bare_s, strict=True)), 3),
    }


async def measure_small_files(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return the byte rates of many small files, asked for at once, and of one of the same size.

    'kept' has the same with everything durable at the end: the small files together.
    """
    tell("making files")
    many = make_files(folder / "many", order.files, order.file_bytes)
    one = make_data(folder / "one", many.size_bytes)
    async with AsyncExitStack() as stack:
        both = {
            name: await _pair(stack, folder, name, "lane", data)
            for name, data in (("many", many), ("one", one))
        }
        figures = await _beside_one(both, many.size_bytes, 3 * order.rounds, tell)
        kept = await _beside_one(both, many.size_bytes, order.rounds, tell, keep=True)
    return {"files": order.files, "file_bytes": order.file_bytes, **figures, "kept": kept}


async def _beside_one(
    both: dict[str, Copying], size_bytes: int, rounds: int, tell: Tell, keep: bool = False
) -> dict[str, Any]:
    """Copy many files and one in turn, so often after a round that does not count; return their figures."""
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in both}
    for number in range(rounds + 1):
        for name, made in both.items():
            tell(f"{name}{', kept' if keep else ''}, round {number} of {rounds}")
            found = await made.once(keep=keep)
            if number:
                told[name].append(found)
    many, one = told["many"], told["one"]
    took = {name: median(found["took_s"] for found in rounds) for name, rounds in told.items()}
    return {
        "MBps": round(size_bytes / took["many"] / 1e6, 1),
        "one_file_MBps": round(size_bytes / took["one"] / 1e6, 1),
        "cpu_ms": round(1e3 * median(found["cpu_s"] for found in many), 1),
        "one_file_cpu_ms": round(1e3 * median(found["cpu_s"] for found in one), 1),
        "ratio": round(median(b["took_s"] / a["took_s"] for a, b in zip(many, one, strict=True)), 3),
    }


async def _pair(stack: AsyncExitStack, folder: Path, name: str, means: str, data: Data) -> Copying:
    sender, receiver = make_sides(folder, f"{name}-sender", f"{name}-receiver")
    return await stack.enter_async_context(copying(means, data, [sender], receiver))

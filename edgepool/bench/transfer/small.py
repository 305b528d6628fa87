"""Small things: 1 KB asked for and got beside a bare echo, and many small files beside one large one."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from edgepool.bench.bare import ECHO_BYTES
from edgepool.bench.transfer.material import Data, make_data, make_files, make_sides
from edgepool.bench.transfer.order import Order, Tell
from edgepool.bench.transfer.side import Copying, copying


async def measure_rr_1k(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return the p50 of 1 KB of data asked for and got on an open connection, and of a bare TLS echo."""
    data = make_data(folder / "data", ECHO_BYTES)
    async with AsyncExitStack() as stack:
        both = {means: await _pair(stack, folder, means, means, data) for means in ("lane", "bare_echo")}
        p50s_s: dict[str, list[float]] = {means: [] for means in both}
        for number in range(3 * order.rounds + 1):
            tell(f"round {number} of {3 * order.rounds}")
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
    """Return the byte rates of many small files, some under way at a time, and of one of the same size."""
    tell("making files")
    many = make_files(folder / "many", order.files, order.file_bytes)
    one = make_data(folder / "one", many.size_bytes)
    rates: dict[str, list[float]] = {"many": [], "one": []}
    async with AsyncExitStack() as stack:
        both = {
            name: await _pair(stack, folder, name, "lane", data)
            for name, data in (("many", many), ("one", one))
        }
        for number in range(order.rounds + 1):
            for name, rate in rates.items():
                tell(f"{name}, round {number} of {order.rounds}")
                told = await both[name].once()
                if number:
                    rate.append(many.size_bytes / told["took_s"] / 1e6)
    return {
        "files": order.files,
        "file_bytes": order.file_bytes,
        "MBps": round(median(rates["many"]), 1),
        "one_file_MBps": round(median(rates["one"]), 1),
        "ratio": round(median(a / b for a, b in zip(rates["many"], rates["one"], strict=True)), 3),
    }


async def _pair(stack: AsyncExitStack, folder: Path, name: str, means: str, data: Data) -> Copying:
    sender, receiver = make_sides(folder, f"{name}-sender", f"{name}-receiver")
    return await stack.enter_async_context(copying(means, data, [sender], receiver))

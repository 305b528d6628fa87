"""Small things: 1 KB there and back beside a bare echo, and many small files beside one large one."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from edgepool.bench.link import measure_round_trips
from edgepool.bench.transfer.material import make_data, make_files, make_sides
from edgepool.bench.transfer.order import Order, Tell
from edgepool.bench.transfer.side import copying


async def measure_rr_1k(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return the p50 of 1 KB asked for and answered on an open connection, and of a bare TLS echo."""
    tell("asking and answering")
    rounds = await measure_round_trips(folder, 3 * order.rounds, order.trips)
    ratio = median(ours / bare for ours, bare in zip(rounds.ours, rounds.bare, strict=True))
    return {
        "p50_us": round(median(rounds.ours) * 1e6, 1),
        "bare_p50_us": round(median(rounds.bare) * 1e6, 1),
        "ratio": round(ratio, 3),
    }


async def measure_small_files(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return the byte rates of many small files and of one of the same size altogether."""
    tell("making files")
    many = make_files(folder / "many", order.files, order.file_bytes)
    one = make_data(folder / "one", many.size_bytes)
    rates: dict[str, list[float]] = {"many": [], "one": []}
    async with AsyncExitStack() as stack:
        made = {}
        for name, data in (("many", many), ("one", one)):
            sender, receiver = make_sides(folder, f"{name}-sender", f"{name}-receiver")
            made[name] = await stack.enter_async_context(copying("lane", data, [sender], receiver))
        for number in range(order.rounds + 1):
            for name, rate in rates.items():
                tell(f"{name}, round {number} of {order.rounds}")
                told = await made[name].once()
                if number:
                    rate.append(many.size_bytes / told["took_s"] / 1e6)
    return {
        "files": order.files,
        "file_bytes": order.file_bytes,
        "MBps": round(median(rates["many"]), 1),
        "one_file_MBps": round(median(rates["one"]), 1),
        "ratio": round(median(a / b for a, b in zip(rates["many"], rates["one"], strict=True)), 3),
    }

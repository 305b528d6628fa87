"""What a pool of four costs: peers over real TLS links, a process each (or one for all, when quick)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from edgepool.bench.figures import Figure, figure_of, percentile, timed
from edgepool.bench.material import NETWORK, check_signature, make_pool, make_records
from edgepool.bench.processes import Helper
from edgepool.config import KnownPeer
from edgepool.gateway.setup import PeerPlan, make_peer_folder

NAMES = ("mill", "lathe", "grinder", "inspector")
GENTLE_PER_S = 100.0
BURST_RECORDS = 750
"""Records of each member in a burst: what fits into a mempool of four, so that none is refused."""


async def measure_chain(quick: bool, folder: Path) -> list[Figure]:
    """Measure how long a record takes at a gentle rate, and how many a second are final in a burst."""
    async with AsyncExitStack() as stack:
        processes = 1 if quick else len(NAMES)
        helpers = await asyncio.gather(
            *(stack.enter_async_context(Helper("members", folder)) for _ in range(processes))
        )
        await form_pool(helpers, folder, NAMES)
        took_ms = await _gentle(helpers, 1.5 if quick else 6.0)
        records = 250 if quick else BURST_RECORDS
        await _burst(helpers, records)  # does not count
        bursts = [await _burst(helpers, records) for _ in range(1 if quick else 3)]
    verifying_s = [_verify_s() for _ in bursts]
    # What these processors could verify for all members, doing nothing else.
    ceilings = [min(os.cpu_count() or 1, processes) / one_s / len(NAMES) for one_s in verifying_s]
    p50, p99 = percentile(took_ms, 50), percentile(took_ms, 99)
    where = "one process" if quick else f"{len(NAMES)} processes"
    return [
        figure_of("final_p50", f"submit to final at {GENTLE_PER_S:g}/s, p50", "ms", [p50]),
        figure_of("final_p99", "the same, p99", "ms", [p99]),
        figure_of(
            "burst",
            f"final in a burst, {where}",
            "records/s",
            [burst["records_per_s"] for burst in bursts],
            ceilings,
            "verifying alone",
        ),
        figure_of("burst_block", "records in a block of it", "records", [b["per_block"] for b in bursts]),
        figure_of(
            "burst_cpu",
            "processor time a record and member",
            "us",
            [burst["cpu_us"] for burst in bursts],
            [one_s * 1e6 for one_s in verifying_s],
            "verifying it",
        ),
    ]


async def form_pool(helpers: Sequence[Helper], folder: Path, names: Sequence[str]) -> None:
    """Have the helpers open peers with these names, in turn, and make a pool of them that stands."""
    authority = folder / "authority"
    first, *others = names
    make_peer_folder(folder / first, PeerPlan(first, NETWORK, "coordinator", "Milling"), authority)
    opened: dict[str, str] = await helpers[0].ask("open", name=first)
    known = (KnownPeer(first, opened["address"]),)
    for name in others:
        plan = PeerPlan(name, NETWORK, coordinators=(opened["peer"],), known_peers=known)
        make_peer_folder(folder / name, plan, authority)
    for number, name in enumerate(others, start=1):
        await helpers[number % len(helpers)].ask("open", name=name)
    await helpers[0].ask("form", names=list(names))
    await asyncio.gather(*(helper.ask("stand") for helper in helpers))


async def _gentle(helpers: list[Helper], duration_s: float) -> list[float]:
    """Return what each record took, in ms."""
    per_s = GENTLE_PER_S / len(NAMES)
    took = await asyncio.gather(
        *(helper.ask("gentle", per_s=per_s, duration_s=duration_s) for helper in helpers)
    )
    return [ms for one in took for ms in one]


async def _burst(helpers: list[Helper], records: int) -> dict[str, float]:
    total = records * len(NAMES)
    before: dict[str, Any] = await helpers[0].ask("where", at_least=0)
    told: list[dict[str, float]] = await asyncio.gather(
        *(helper.ask("burst", records=records) for helper in helpers)
    )
    wanted = before["records"] + total
    after = (await asyncio.gather(*(helper.ask("where", at_least=wanted) for helper in helpers)))[0]
    duration_s = max(one["ended_s"] for one in told) - min(one["began_s"] for one in told)
    return {
        "records_per_s": total / duration_s,
        "per_block": total / (after["height"] - before["height"]),
        "cpu_us": sum(one["cpu_s"] for one in told) * 1e6 / (total * len(NAMES)),
    }


def _verify_s() -> float:
    """Return how many seconds of a processor the signature of a record takes."""
    records = make_records(make_pool(len(NAMES)), 4)
    return timed(lambda: [check_signature(signed) for signed in records], 0.1, len(records))()

"""A chain under load: how many records a second become final, how soon, and what that costs each member.

The members run as processes with real TLS links and disks. What they reach stands beside a ceiling: one
process that does nothing but each record's necessary work (ceiling.py), times processors, by members.
Both are measured in alternating rounds of one run, so that their ratio says something on any machine.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edgepool.bench.chain import form_pool
from edgepool.bench.figures import percentile
from edgepool.bench.link import measure_round_trip
from edgepool.bench.processes import Helper
from edgepool.config import Limits
from edgepool.errors import Unavailable
from edgepool.model.block import MAX_BLOCK_RECORDS

ROUNDS = 3
MOST_PROCESSES = 8
"""Larger pools share fewer processes: a process for each of 30 would measure the machine's memory."""
STEADY_PER_S = 500.0
OVERHEAD_S = 60.0
"""How much longer than asked for a run may take: processes, keys, the pool, the final count."""

PHASES = ROUNDS + 4
"""How often `on_phase` is called."""

_FLOOD, _WARM, _FEW, _STEADY = 0.14, 0.05, 0.1, 0.28
"""Shares of the time asked for: a round of flood, its beginning that does not count, small blocks, the
steady rate."""
_TRIPS = 300
_NOTHING_FINAL = (
    "no record became final while it was measured: give it more --seconds, or try fewer validators"
)
_AHEAD_S = 0.3


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a run gave; `processors`, `processes` and `record_bytes` say on what.

    `committed_per_s` are final records under flood, `ceiling_per_s` is what bare processes could do on as
    many processors (no more than there are processes), shared by as many members; `ratio` is the median of
    the rounds' ratios. `p50_ms` and `p99_ms` are from submit to final at `steady_per_s`: 500, or half of
    what is committed under flood if that is less. `rtt_ms` is 1 KB there and back on an idle link.
    `cpu_us_per_record` is processor time for each record and member, `bare_cpu_us` that of the bare process,
    `cpu_ms_per_block` what a block costs each member whatever is in it (see `cost_of_an_empty_block`),
    `rss_MiB` the most memory that a process held. `lost` counts acknowledged records that a member did not
    have in the end.
    """

    validators: int
    processes: int
    processors: int
    record_bytes: int
    committed_per_s: float
    ceiling_per_s: float
    ratio: float
    records_per_block: float
    steady_per_s: float
    p50_ms: float
    p99_ms: float
    rtt_ms: float
    cpu_us_per_record: float
    bare_cpu_us: float
    rss_MiB: float
    lost: int
    records_per_small_block: float = 0.0
    cpu_ms_per_block: float = 0.0


@dataclass(frozen=True, slots=True)
class Spent:
    """What members spent on blocks: `cpu_s` is processor time of one member, on the average."""

    records: float
    blocks: float
    cpu_s: float


async def measure_load(
    validators: int, seconds: float, on_phase: Callable[[str], None] = lambda phase: None
) -> LoadReport:
    """Measure a pool of `validators` for about `seconds`; `on_phase` is told what is being done.

    Leaves nothing behind. Unavailable if the machine is too slow for it.
    """
    with tempfile.TemporaryDirectory(prefix="edgepool-bench-", ignore_cleanup_errors=True) as folder:
        try:
            async with asyncio.timeout(seconds + OVERHEAD_S), AsyncExitStack() as stack:
                return await _measure(stack, Path(folder), validators, seconds, on_phase)
        except TimeoutError:
            raise Unavailable(
                f"not done {OVERHEAD_S:g} s after the {seconds:g} s that were asked for: "
                f"try fewer validators on this machine"
            ) from None


async def _measure(
    stack: AsyncExitStack, folder: Path, validators: int, seconds: float, on_phase: Callable[[str], None]
) -> LoadReport:
    processors = os.cpu_count() or 1
    processes = validators if validators <= MOST_PROCESSES else max(4, 2 * processors)
    processes = min(processes, validators)
    on_phase(f"forming a pool of {validators}")
    helpers = [await stack.enter_async_context(Helper("members", folder)) for _ in range(processes)]
    bare = await stack.enter_async_context(Helper("ceiling", folder))
    await form_pool(helpers, folder, [f"machine-{number}" for number in range(validators)])
    record_bytes = await bare.ask("prepare", validators=validators)
    rtt_ms = await measure_round_trip(folder, _TRIPS)

    floods, bares = await _in_turn(helpers, bare, validators, seconds, on_phase)
    on_phase("small blocks")
    few = await _flood(helpers, 1, _WARM * seconds, _FEW * seconds)
    ceilings = [one["per_s"] * min(processors, processes) / validators for one in bares]
    rates = [median(one["records"] / one["time_s"] for one in flood) for flood in floods]
    spent, spent_on_few = _spent(floods, validators), _spent([few], validators)

    if not median(rates):
        raise Unavailable(_NOTHING_FINAL)
    steady_per_s = min(STEADY_PER_S, median(rates) / 2)
    on_phase(f"{steady_per_s:.0f} records a second")
    per_s = steady_per_s / validators
    steady = await _all(helpers, "gentle", per_s=per_s, duration_s=_STEADY * seconds)
    took_ms = [ms for one in steady for ms in one]
    if not took_ms:
        raise Unavailable(_NOTHING_FINAL)
    on_phase("looking for lost records")
    written = {name: count for one in await _all(helpers, "written") for name, count in one.items()}
    return LoadReport(
        validators=validators,
        processes=processes,
        processors=processors,
        record_bytes=record_bytes,
        committed_per_s=median(rates),
        ceiling_per_s=median(ceilings),
        ratio=median(rate / ceiling for rate, ceiling in zip(rates, ceilings, strict=True)),
        records_per_block=spent.records / max(1, spent.blocks),
        steady_per_s=steady_per_s,
        p50_ms=percentile(took_ms, 50),
        p99_ms=percentile(took_ms, 99),
        rtt_ms=rtt_ms,
        cpu_us_per_record=spent.cpu_s * 1e6 / spent.records,
        bare_cpu_us=median(one["cpu_us"] for one in bares),
        rss_MiB=max(await _all(helpers, "rss_mib")),
        lost=sum(await _all(helpers, "missing", written=written)),
        records_per_small_block=spent_on_few.records / max(1, spent_on_few.blocks),
        cpu_ms_per_block=cost_of_an_empty_block(spent_on_few, spent) * 1e3,
    )


async def _in_turn(
    helpers: Sequence[Helper], bare: Helper, validators: int, seconds: float, on_phase: Callable[[str], None]
) -> tuple[list[list[dict[str, float]]], list[dict[str, float]]]:
    """Return what the rounds gave, floods and the bare process apart."""
    floods: list[list[dict[str, float]]] = []
    bares: list[dict[str, float]] = []
    for round in range(1, ROUNDS + 1):
        on_phase(f"flood, round {round} of {ROUNDS}")
        bares.append(await bare.ask("run"))
        under_way = _under_way(validators, bares[0]["per_s"] * (os.cpu_count() or 1))
        floods.append(await _flood(helpers, under_way, _WARM * seconds, _FLOOD * seconds))
    return floods, bares


def cost_of_an_empty_block(small: Spent, large: Spent) -> float:
    """Return what a block costs a member beside its records, in s of processor time.

    The line through the cost of small and of large blocks, at no records; the cost of a small block where
    the two sizes tell no line (they are the same, or it would fall below nothing). 0 if there were no blocks.
    """
    if not small.blocks or not large.blocks:
        return 0.0
    few, many = small.records / small.blocks, large.records / large.blocks
    block_s, large_block_s = small.cpu_s / small.blocks, large.cpu_s / large.blocks
    if many <= few:
        return block_s
    empty_s = block_s - few * (large_block_s - block_s) / (many - few)
    return empty_s if 0 < empty_s < block_s else block_s


def _spent(floods: Sequence[Sequence[dict[str, float]]], validators: int) -> Spent:
    """Add up what processes told of floods; a process counts records and blocks of one of its members."""
    return Spent(
        sum(median(one["records"] for one in flood) for flood in floods),
        sum(median(one["blocks"] for one in flood) for flood in floods),
        sum(one["cpu_s"] for flood in floods for one in flood) / validators,
    )


async def _flood(
    helpers: Sequence[Helper], under_way: int, warm_s: float, duration_s: float
) -> list[dict[str, float]]:
    return await _all(helpers, "flood", under_way=under_way, warm_s=warm_s, duration_s=duration_s)


async def _all(helpers: Sequence[Helper], question: str, **arguments: object) -> list[Any]:
    return list(await asyncio.gather(*(helper.ask(question, **arguments) for helper in helpers)))


def _under_way(validators: int, bare_per_s: float) -> int:
    """Return how many records each member keeps under way in a flood.

    Enough to fill blocks, less than a mempool takes of one author, and not so many that a slow pool
    needs long to work them off.
    """
    total = max(MAX_BLOCK_RECORDS, int(_AHEAD_S * bare_per_s / validators))
    share = Limits().mempool_records // (validators + 1)
    return max(1, min(total // validators, share // 2))

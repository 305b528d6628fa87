"""Pools of several sizes under the same load: what more members cost, and what they are good for [S2.7].

Each size goes through the load of `edgepool bench ledger`. What is measured stands beside two bounds, made of
figures of the same run: what bare processes could do, and the formula that counts the votes in too. Then
throughput stands beside security and decentralisation, which follow from the protocol by counting. The more
a pool bears, and the more hands it takes to stop or to forge it, the fewer records a second it carries:
the trade-off that chains are said to have, for this chain, on this machine.

Nothing here is a rating. `Tradeoff` says of each number how it is counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from time import monotonic

from edgepool.bench.load import OVERHEAD_S, PHASES, LoadReport, measure_load
from edgepool.core.consensus.lottery import leaders, weights
from edgepool.errors import EdgepoolError
from edgepool.model.crypto import sha256
from edgepool.model.ids import PeerId
from edgepool.model.vote import quorum

FORMAT = 1
"""Rises whenever the keys of the JSON output change their meaning."""

SIZES = (1, 4, 7, 13, 30)
"""One member is what a single server gives; each of the others is the smallest that bears as many liars,
but for the last, the largest pool that there is."""

TURNS = 10_000
"""How many heights the lottery is drawn for."""

QUOTED_PER_S: dict[str, tuple[int, int]] = {
    "Bitcoin": (1, 10),
    "Ethereum": (7, 15),
    "EOS (21 producers)": (3_000, 4_000),
}
"""Transactions a second of public chains, lowest and highest, as the review [S2] quotes them."""


@dataclass(frozen=True, slots=True)
class PoolCost:
    """What a pool of `members` costs, measured, beside what it should.

    `faults` is how many members may lie or be gone, `quorum` how many must agree, `messages_per_block` how
    many messages make a block final when nothing fails: a proposal to each other member, and two votes of
    each to each other. `committed_per_s`, `ceiling_per_s`, `cpu_us_per_record`, `records_per_block`,
    `cpu_ms_per_block`, `steady_per_s`, `p50_ms`, `p99_ms`, `rss_MiB` and `lost` are LoadReport's.
    `record_us` is the bare process's cost of a record; `formula_per_s` is `formula_per_s(...)` of these,
    `ratio` is committed by formula. `members_per_process` says how many shared one process, at most.
    """

    members: int
    faults: int
    quorum: int
    messages_per_block: int
    committed_per_s: float
    ceiling_per_s: float
    formula_per_s: float
    ratio: float
    records_per_block: float
    cpu_us_per_record: float
    record_us: float
    cpu_ms_per_block: float
    steady_per_s: float
    p50_ms: float
    p99_ms: float
    rss_MiB: float
    members_per_process: int
    lost: int


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """Throughput, security and decentralisation of a pool of `members` with one vote each [S2.7].

    `committed_per_s` is measured. The others are counted, by the rules of [S3.11] and [S3.12]:

    * `liars_borne`, `crashes_borne`: how many members may say what they like, or be gone, while the others
      go on and agree. More crashes than that stop the pool and lose nothing that was acknowledged;
    * `copies`: how many members hold the whole chain, so one more than may lose their disk for good;
    * `to_stop`: the fewest members that can keep any block from being final, by silence;
    * `to_fork`: the fewest that can make two blocks final at one height, by voting twice (the chain convicts
      them), if they also decide who hears whom;
    * `to_rewrite`: the fewest that can certify a history of their own with nobody's help;
    * `nakamoto`: the Nakamoto coefficient, the fewest that can break the pool in either of the first two
      ways; `nakamoto_share` is that by members;
    * `largest_turn_share`, `turns_gini`: how unevenly TURNS heights fall to members of equal work in the
      lottery as it is drawn: share of who packs most, and Gini coefficient (0 is even; a draw by chance
      is never quite even);
    * `sole_worker_share`: the exact chance of a turn for a member that alone has done all work, the most
      that the lottery ever gives. Turns only say who packs a block; a vote weighs the same for all.
    """

    members: int
    committed_per_s: float
    liars_borne: int
    crashes_borne: int
    copies: int
    to_stop: int
    to_fork: int
    to_rewrite: int
    nakamoto: int
    nakamoto_share: float
    largest_turn_share: float
    turns_gini: float
    sole_worker_share: float


@dataclass(frozen=True, slots=True)
class PoolsReport:
    """A run over several sizes; its fields are the keys of `--json`.

    `format` is FORMAT. `seconds` is what each size was measured for, `duration_s` what everything took.
    `processors` shared the work; `load` is what others had them do just before. `record_bytes` is the size
    of a record. `pools` and `tradeoff` have one entry for each size that was measured, in the order of
    sizes; `problems` says, by size as text, why others were not. `quoted_per_s` is QUOTED_PER_S.
    """

    format: int
    seconds: float
    duration_s: float
    processors: int
    load: float
    record_bytes: int
    pools: list[PoolCost]
    tradeoff: list[Tradeoff]
    quoted_per_s: dict[str, tuple[int, int]]
    problems: dict[str, str]

    @property
    def lost(self) -> int:
        """How many acknowledged records some member did not have in the end, over all sizes."""
        return sum(pool.lost for pool in self.pools)


def longest_s(seconds: float, sizes: Sequence[int] = SIZES) -> float:
    """Return how long a run takes at most, in s: a size that takes longer is given up."""
    return len(sizes) * (seconds + OVERHEAD_S)


async def measure_pools(
    seconds: float,
    sizes: Sequence[int] = SIZES,
    on_phase: Callable[[str, float], None] = lambda phase, share: None,
) -> PoolsReport:
    """Measure pools of these sizes one after the other, each for about `seconds`.

    `on_phase` is told what is being done and which share of everything is behind. A size that fails
    becomes a problem in the report, and the others go on.
    """
    began_s, load = monotonic(), os.getloadavg()[0]
    reports: dict[int, LoadReport] = {}
    problems: dict[str, str] = {}
    for place, members in enumerate(sizes):
        try:
            reports[members] = await measure_load(members, seconds, _teller(on_phase, place, sizes))
        except (EdgepoolError, OSError) as error:
            problems[str(members)] = str(error)
    return PoolsReport(
        format=FORMAT,
        seconds=seconds,
        duration_s=round(monotonic() - began_s, 1),
        processors=os.cpu_count() or 1,
        load=round(load, 2),
        record_bytes=max((report.record_bytes for report in reports.values()), default=0),
        pools=[cost_of(report) for report in reports.values()],
        tradeoff=[tradeoff(members, report.committed_per_s) for members, report in reports.items()],
        quoted_per_s=QUOTED_PER_S,
        problems=problems,
    )


def _teller(
    on_phase: Callable[[str, float], None], place: int, sizes: Sequence[int]
) -> Callable[[str], None]:
    """Return what passes on the phases of the size at `place`."""
    passed = count()
    return lambda phase: on_phase(
        f"{sizes[place]} members: {phase}", (place + next(passed) / PHASES) / len(sizes)
    )


# --- the cost curve -----------------------------------------------------------------------------


def messages_per_block(members: int) -> int:
    """Return how many messages a block takes that nothing disturbs: (n - 1) + 2n(n - 1)."""
    return (members - 1) + 2 * members * (members - 1)


def formula_per_s(
    cores: int, members: int, record_us: float, cpu_ms_per_block: float, records_per_block: float
) -> float:
    """Return how many records a second `cores` can make final for all members, if nothing ever waits.

    cores / (members * (c_record + c_block / records_per_block)): every member does a record's necessary work
    once, and shares the work of a block (its votes, its syncs) among the records in it.
    """
    each_us = record_us + cpu_ms_per_block * 1e3 / max(1.0, records_per_block)
    return cores * 1e6 / (members * each_us)


def cost_of(report: LoadReport) -> PoolCost:
    """Return the column of one size."""
    members = report.validators
    bound = formula_per_s(
        min(report.processors, report.processes),
        members,
        report.bare_cpu_us,
        report.cpu_ms_per_block,
        report.records_per_block,
    )
    return PoolCost(
        members=members,
        faults=(members - 1) // 3,
        quorum=quorum(members),
        messages_per_block=messages_per_block(members),
        committed_per_s=report.committed_per_s,
        ceiling_per_s=report.ceiling_per_s,
        formula_per_s=bound,
        ratio=report.committed_per_s / bound,
        records_per_block=report.records_per_block,
        cpu_us_per_record=report.cpu_us_per_record,
        record_us=report.bare_cpu_us,
        cpu_ms_per_block=report.cpu_ms_per_block,
        steady_per_s=report.steady_per_s,
        p50_ms=report.p50_ms,
        p99_ms=report.p99_ms,
        rss_MiB=report.rss_MiB,
        members_per_process=-(-members // report.processes),
        lost=report.lost,
    )


# --- the trade-off ------------------------------------------------------------------------------


def tradeoff(members: int, committed_per_s: float, turns: int = TURNS) -> Tradeoff:
    """Return what a pool of so many members gives and takes; see Tradeoff for each number."""
    needed = quorum(members)
    to_stop, to_fork = members - needed + 1, 2 * needed - members
    shares = turn_shares(members, turns)
    return Tradeoff(
        members=members,
        committed_per_s=committed_per_s,
        liars_borne=min(to_stop, to_fork) - 1,
        crashes_borne=members - needed,
        copies=members,
        to_stop=to_stop,
        to_fork=to_fork,
        to_rewrite=needed,
        nakamoto=min(to_stop, to_fork),
        nakamoto_share=min(to_stop, to_fork) / members,
        largest_turn_share=shares[-1],
        turns_gini=gini(shares),
        sole_worker_share=float(sole_worker_share(members)),
    )


def turn_shares(members: int, turns: int = TURNS) -> list[float]:
    """Return the members' shares of `turns` heights, rising, if all have done the same work [S3.11].

    Drawn by the lottery itself, over seeds that are the same on every machine.
    """
    peers = _peers(members)
    weight = weights(dict.fromkeys(peers, 60), peers)
    led = dict.fromkeys(peers, 0)
    for height in range(turns):
        led[next(leaders(sha256(b"edgepool bench turn %d" % height), weight))] += 1
    return sorted(packed / turns for packed in led.values())


def sole_worker_share(members: int) -> Fraction:
    """Return the chance of a turn for the one member that has done all work [S3.11]."""
    peers = _peers(members)
    weight = weights({peers[0]: 60}, peers)
    return Fraction(weight[peers[0]], sum(weight.values()))


def gini(values: Sequence[float]) -> float:
    """Return the Gini coefficient of `values` (not negative, not all 0): 0 if even, near 1 if one has all."""
    ordered = sorted(values)
    size = len(ordered)
    weighted = sum(place * value for place, value in enumerate(ordered, start=1))
    return 2 * weighted / (size * sum(ordered)) - (size + 1) / size


def _peers(members: int) -> list[PeerId]:
    return [PeerId(f"member-{number:02}") for number in range(members)]

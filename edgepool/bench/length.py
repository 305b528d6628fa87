"""What a chain costs when it is long: a commit, a look-up, a restart, the disk.

A long chain and a fresh one are kept by one process and measured in turn, so that their ratios hold on any
machine. That process is killed while it commits; another one opens what it has left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgepool.bench.processes import Helper
from edgepool.errors import Unavailable

BLOCK_RECORDS = 100
TERABYTES_WRITTEN = 30
YEARS = 5
"""What a small industrial flash disk is made for, and how long it should last."""

_ROUNDS = 100
_CHUNKS = 100
_WEAR_BLOCKS = 50
_GO_ON_S = 0.1


@dataclass(frozen=True, slots=True)
class LengthReport:
    """What a chain of `records` records costs; `_full` is on it and `_empty` on a fresh one beside it.

    `commit` is to judge, enter and store a block of `block_records`; `lookup` to find an offer by its key
    with its proof, reading a block not read before; `find` to find any record by its id in the index, which
    took `index_s` to make. `reopen_ms` is opening the store after the process was killed, `load_state_ms`
    its last snapshot, the window before it and the `replayed_records` after it. Snapshots are those that a
    peer takes, and the process is killed when the next one is near.

    `bytes_per_record` is what the chain's files have, `written_bytes_per_record` what the system counts as
    written to disk, votes included; `_alone` if each record has a block of its own. `records_a_day` is what a
    disk made for 30 TB of writing can take every day for five years.
    """

    records: int
    block_records: int
    commit_ms_empty: float
    commit_ms_full: float
    commit_ratio: float
    lookup_us_empty: float
    lookup_us_full: float
    lookup_ratio: float
    find_us_empty: float
    find_us_full: float
    find_ratio: float
    index_s: float
    reopen_ms: float
    load_state_ms: float
    replayed_records: int
    bytes_per_record: float
    written_bytes_per_record: float
    bytes_per_record_alone: float
    written_bytes_per_record_alone: float
    records_a_day: int
    records_a_day_alone: int


async def measure_length(
    records: int, on_phase: Callable[[str, float], None] = lambda phase, share: None
) -> LengthReport:
    """Measure a chain of about `records`; `on_phase` is told what is being done and the share of it done.

    Leaves nothing behind. Unavailable if a helper process fails.
    """
    with tempfile.TemporaryDirectory(prefix="edgepool-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        async with Helper("longchain", folder) as keeper:
            process = await keeper.ask("begin", block_records=BLOCK_RECORDS)
            await _grow(keeper, max(1, records // BLOCK_RECORDS), on_phase)
            on_phase("committing to both", 0)
            commits = await keeper.ask("commits", rounds=_ROUNDS)
            count = await keeper.ask("age")
            size_bytes = await keeper.ask("size_bytes")
            on_phase("killing it", 0)
            going_on = asyncio.create_task(keeper.ask("go_on"))
            await asyncio.sleep(_GO_ON_S)
            os.kill(process, signal.SIGKILL)
            with suppress(Unavailable):
                await going_on
        async with Helper("longchain", folder) as other:
            on_phase("opening what is left", 0)
            opened = await other.ask("reopen", block_records=BLOCK_RECORDS)
            on_phase("looking up", 0)
            look_ups = await other.ask("look_ups", rounds=_ROUNDS)
            on_phase("indexing", 0)
            finds = await other.ask("finds", rounds=_ROUNDS)
            on_phase("counting bytes", 0)
            full = await other.ask("wear", block_records=BLOCK_RECORDS, rounds=_WEAR_BLOCKS)
            alone = await other.ask("wear", block_records=1, rounds=_WEAR_BLOCKS)
    return LengthReport(
        records=count,
        block_records=BLOCK_RECORDS,
        commit_ms_empty=commits["empty"],
        commit_ms_full=commits["full"],
        commit_ratio=commits["ratio"],
        lookup_us_empty=look_ups["empty"],
        lookup_us_full=look_ups["full"],
        lookup_ratio=look_ups["ratio"],
        find_us_empty=finds["empty"],
        find_us_full=finds["full"],
        find_ratio=finds["ratio"],
        index_s=finds["index_s"],
        reopen_ms=opened["reopen_ms"],
        load_state_ms=opened["load_state_ms"],
        replayed_records=int(opened["replayed_records"]),
        bytes_per_record=size_bytes / count,
        written_bytes_per_record=full["written"],
        bytes_per_record_alone=alone["files"],
        written_bytes_per_record_alone=alone["written"],
        records_a_day=_a_day(full["written"] or full["files"]),
        records_a_day_alone=_a_day(alone["written"] or alone["files"]),
    )


async def _grow(keeper: Helper, blocks: int, on_phase: Callable[[str, float], None]) -> None:
    done = 0
    for chunk in range(1, _CHUNKS + 1):
        wanted = blocks * chunk // _CHUNKS
        await keeper.ask("grow", blocks=wanted - done)
        done = wanted
        on_phase("growing", chunk / _CHUNKS)


def _a_day(record_bytes: float) -> int:
    return int(TERABYTES_WRITTEN * 1e12 / (YEARS * 365) / record_bytes)

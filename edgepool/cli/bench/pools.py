"""`edgepool bench pools`: what more members cost, and what they are good for."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edgepool.cli.bench.screen import count_or_number, measured
from edgepool.cli.console import err, out, print_json, say

if TYPE_CHECKING:
    from edgepool.bench.pools import PoolsReport

_LABEL_COLUMNS = 29
_POOL_ROWS = (
    ("liars or crashes borne, f", "faults", ""),
    ("must agree", "quorum", ""),
    ("messages for a block", "messages_per_block", ""),
    ("final under flood", "committed_per_s", "records/s"),
    ("bare processes could do", "ceiling_per_s", "records/s"),
    ("the formula allows", "formula_per_s", "records/s"),
    ("ratio to the formula", "ratio", ""),
    ("records in a block", "records_per_block", ""),
    ("processor, record and member", "cpu_us_per_record", "us"),
    ("the same, bare", "record_us", "us"),
    ("processor, block and member", "cpu_ms_per_block", "ms"),
    ("steady rate", "steady_per_s", "records/s"),
    ("submit to final, p50", "p50_ms", "ms"),
    ("the same, p99", "p99_ms", "ms"),
    ("memory of a process", "rss_MiB", "MiB"),
    ("members in a process", "members_per_process", ""),
    ("lost records", "lost", ""),
)
_TRADEOFF_ROWS = (
    ("throughput", "committed_per_s", "records/s"),
    ("liars borne", "liars_borne", ""),
    ("crashes borne", "crashes_borne", ""),
    ("copies of the chain", "copies", ""),
    ("must collude to stop it", "to_stop", ""),
    ("must collude to fork it", "to_fork", ""),
    ("must collude to rewrite it", "to_rewrite", ""),
    ("Nakamoto coefficient", "nakamoto", ""),
    ("the same by members", "nakamoto_share", ""),
    ("largest share of turns", "largest_turn_share", ""),
    ("Gini coefficient of turns", "turns_gini", ""),
    ("turns of one who did all work", "sole_worker_share", ""),
)


def pools(
    seconds: Annotated[
        float, typer.Option(help="How long to measure each size; the rest comes on top.", min=3, max=600)
    ] = 20.0,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Measure pools of 1, 4, 7, 13 and 30 members: what more members cost, and what they are good for.

    Each size goes through the load of 'edgepool bench ledger', one after the other, and its throughput
    stands beside processors / (members x (record + block / records in a block)), a record's cost being
    that of one bare process, a block's cost found from small and large blocks of the same run. Below
    stands how many liars and crashes a pool bears, how many members must collude to stop, fork or
    rewrite it, and how evenly turns fall. It ends by itself: with 20 seconds for each size in about
    three minutes, and never later than 5 x (seconds + 60). Exit code 1 if a record was lost or a size
    could not be measured.

    Example: edgepool bench pools --seconds 20 --json
    """
    report = measured(_pools(seconds))
    if json:
        print_json(asdict(report))
    else:
        _print_pools(report)
    if report.lost or report.problems:
        raise typer.Exit(1)


async def _pools(seconds: float) -> PoolsReport:
    from edgepool.bench.pools import measure_pools

    if not err.is_terminal:
        return await measure_pools(seconds)
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description:<40}"), BarColumn(30), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("starting", total=1.0)
        return await measure_pools(
            seconds,
            on_phase=lambda phase, share: progress.update(bar, description=phase, completed=share),
        )


def _print_pools(report: PoolsReport) -> None:
    for rows, columns in ((_POOL_ROWS, report.pools), (_TRADEOFF_ROWS, report.tradeoff)):
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("members", header_style="dim", min_width=_LABEL_COLUMNS)
        for column in columns:
            table.add_column(str(column.members), header_style="bold", justify="right", no_wrap=True)
        table.add_column("")
        for what, name, unit in rows:
            table.add_row(what, *(count_or_number(getattr(column, name)) for column in columns), unit)
        if columns:
            out.print(table)
            out.print()
    quoted = ", ".join(f"{name} {low:,} to {high:,}" for name, (low, high) in report.quoted_per_s.items())
    say(f"quoted by the review [S2], not measured: transactions a second of {quoted}", "dim")
    say(
        f"{report.processors} processors for all members, load {report.load:g} before, records of "
        f"{report.record_bytes} bytes, {report.duration_s:.0f} s",
        "dim",
    )
    for members, problem in report.problems.items():
        say(f"{members} members: {problem}", "red")

"""`edgepool bench`: what a peer costs on this machine, beside the bare things it is built on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import JustifyMethod
from rich.table import Table

from edgepool.cli.console import err, out, print_json, run_async, say

if TYPE_CHECKING:
    from edgepool.bench.figures import Figure
    from edgepool.bench.length import LengthReport
    from edgepool.bench.load import LoadReport
    from edgepool.bench.pools import PoolsReport
    from edgepool.bench.run import Part, Report

TERMINATED = 143
_WIDE_COLUMNS = 116
_LOAD_ROWS = (
    ("final under flood", "committed_per_s", "records/s"),
    ("bare processes could do", "ceiling_per_s", "records/s"),
    ("ratio", "ratio", ""),
    ("records in a block", "records_per_block", ""),
    ("processor time a record and member", "cpu_us_per_record", "us"),
    ("the same, bare", "bare_cpu_us", "us"),
    ("steady rate", "steady_per_s", "records/s"),
    ("submit to final at that rate, p50", "p50_ms", "ms"),
    ("the same, p99", "p99_ms", "ms"),
    ("bare request on a link", "rtt_ms", "ms"),
    ("memory of a process", "rss_MiB", "MiB"),
    ("lost records", "lost", ""),
)

_LENGTH_ROWS = (
    ("commit of a block", "commit", "ms"),
    ("an offer with its proof", "lookup", "us"),
    ("any record by its id", "find", "us"),
)
_LENGTH_FACTS = (
    ("opening the store after kill -9", "reopen_ms", "ms"),
    ("loading the state", "load_state_ms", "ms"),
    ("indexing for queries", "index_s", "s"),
    ("files, for a record", "bytes_per_record", "bytes"),
    ("written to disk, for a record", "written_bytes_per_record", "bytes"),
    ("the same, one record to a block", "written_bytes_per_record_alone", "bytes"),
    ("records a day, 5 years on 30 TB of writing", "records_a_day", "records"),
    ("the same, one record to a block", "records_a_day_alone", "records"),
)

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

app = typer.Typer()


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer rounds, less data, one process: within 15 seconds.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Only this part (can be repeated): codec, signatures, ledger, store, link, chain.",
        ),
    ] = None,
) -> None:
    """Measure what a peer costs here: codec, signatures, ledger, store, links, and a pool of four.

    Every figure is a median of rounds that alternate with the bare thing it is built on, so that
    ratios can be compared between machines; nothing is promised. All is real: processes, TLS links,
    syncs to the disk that holds temporary folders. It takes less than a minute and leaves nothing
    behind. Exit code 1 if a part fails.

    Example: edgepool bench --quick --only link

    What a chain carries under load is measured by 'edgepool bench ledger', what more members cost and
    are good for by 'edgepool bench pools', what a long chain costs by 'edgepool bench chain'.
    """
    if context.invoked_subcommand is not None:
        return
    try:
        report = run_async(_run(only or (), quick))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None
    if json:
        print_json(_as_json(report))
    else:
        _print(report)
    if report.problems:
        raise typer.Exit(1)


@app.command()
def ledger(
    validators: Annotated[int, typer.Option(help="How many members vote.", min=1, max=30)] = 4,
    seconds: Annotated[
        float, typer.Option(help="How long to measure; beginning and ending come on top.", min=3, max=600)
    ] = 20.0,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Put a chain under load: records a second, how soon they are final, what they cost each member.

    Validators are processes with TLS links and disks of their own (larger pools share processes).
    Records of 400 bytes are signed by their authors and verified by every other member. First a
    flood, in rounds that alternate with the same necessary work done by one bare process: 'ratio' is
    what is committed by what bare processes could do on these processors, shared by as many. Then a
    steady rate, at which the time from submit to final is taken. Exit code 1 if a record was lost.

    Example: edgepool bench ledger --validators 4 --seconds 20 --json
    """
    try:
        report = run_async(_load(validators, seconds))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None
    if json:
        print_json(asdict(report))
    else:
        _print_load(report)
    if report.lost:
        raise typer.Exit(1)


@app.command()
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
    try:
        report = run_async(_pools(seconds))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None
    if json:
        print_json(asdict(report))
    else:
        _print_pools(report)
    if report.lost or report.problems:
        raise typer.Exit(1)


@app.command()
def chain(
    records: Annotated[
        int, typer.Option(help="How long the chain is made.", min=1_000, max=10_000_000)
    ] = 1_000_000,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Measure what a long chain costs a member: commits, look-ups, a restart after kill -9, and its disk.

    A chain of so many records is made, in blocks of 100, and a fresh one beside it; both are measured in
    turn. Then the process is killed while it commits, and another one opens what is left. A million
    records take some minutes and half a gigabyte of disk, which is freed again.

    Example: edgepool bench chain --records 1000000 --json
    """
    try:
        report = run_async(_length(records))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None
    if json:
        print_json(asdict(report))
    else:
        _print_length(report)


async def _length(records: int) -> LengthReport:
    from edgepool.bench.length import measure_length

    _clean_up_when_ended()
    if not err.is_terminal:
        return await measure_length(records)
    with err.status("starting") as status:
        return await measure_length(
            records, lambda phase, share: status.update(f"{phase} {share:.0%}" if share else phase)
        )


def _print_length(report: LengthReport) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in (f"{report.records:,} records", "a fresh chain", "ratio"):
        table.add_column(name, header_style="dim", justify="right")
    table.add_column("")
    for what, name, unit in _LENGTH_ROWS:
        full, empty, ratio = (
            getattr(report, key) for key in (f"{name}_{unit}_full", f"{name}_{unit}_empty", f"{name}_ratio")
        )
        table.add_row(what, _number(full), _number(empty), f"{ratio:.2f}", unit)
    for what, name, unit in _LENGTH_FACTS:
        table.add_row(what, _number(getattr(report, name)), "", "", unit)
    out.print(table)
    say(
        f"blocks of {report.block_records}; the state is that of a snapshot, its window of records and "
        f"{report.replayed_records:,} records behind it",
        "dim",
    )


async def _load(validators: int, seconds: float) -> LoadReport:
    from edgepool.bench.load import measure_load

    _clean_up_when_ended()
    if not err.is_terminal:
        return await measure_load(validators, seconds)
    with err.status("starting") as status:
        return await measure_load(validators, seconds, status.update)


async def _pools(seconds: float) -> PoolsReport:
    from edgepool.bench.pools import measure_pools

    _clean_up_when_ended()
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
            table.add_row(what, *(_count_or_number(getattr(column, name)) for column in columns), unit)
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


def _count_or_number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else _number(value)


def _clean_up_when_ended() -> None:
    """Let processes and folders be cleaned up when somebody ends this process."""
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _print_load(report: LoadReport) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for what, name, unit in _LOAD_ROWS:
        table.add_row(what, _number(getattr(report, name)) if name != "lost" else str(report.lost), unit)
    out.print(table)
    say(
        f"{report.validators} validators in {report.processes} processes on {report.processors} processors, "
        f"records of {report.record_bytes} bytes",
        "dim",
    )


async def _run(names: Sequence[str], quick: bool) -> Report:
    from edgepool.bench.run import PARTS, run

    _clean_up_when_ended()
    wanted = [part for part in PARTS.values() if not names or part.name in names]
    if not err.is_terminal:
        return await run(names, quick=quick)
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description:<30}"), BarColumn(30), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("starting", total=sum(part.about_s for part in wanted))
        return await run(names, quick=quick, on_part=_advance(progress, bar))


def _advance(progress: Any, bar: Any) -> Callable[[Part], None]:
    """Return what moves the bar on by the part that has ended when the next one begins."""
    before: list[Part] = []

    def on_part(part: Part) -> None:
        if before:
            progress.advance(bar, before[-1].about_s)
        before.append(part)
        progress.update(bar, description=f"{part.name}: {part.what}")

    return on_part


def _as_json(report: Report) -> dict[str, Any]:
    """Return the report with figures keyed by part and name."""
    figures = {
        f"{part}.{figure.name}": {key: value for key, value in asdict(figure).items() if key != "name"}
        for part, of_part in report.figures.items()
        for figure in of_part
    }
    return {**asdict(report), "figures": figures}


def _print(report: Report) -> None:
    wide = out.width >= _WIDE_COLUMNS
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("part", "figure", "median", "unit", "lowest", "highest", "bare", "ratio", "beside"):
        if wide or name not in ("lowest", "highest"):
            justify: JustifyMethod = "left" if name in ("part", "figure", "unit", "beside") else "right"
            folds = name in ("figure", "beside")
            table.add_column(name, header_style="dim", justify=justify, no_wrap=not folds, overflow="fold")
    for part, figures in report.figures.items():
        for number, figure in enumerate(figures):
            table.add_row(*_cells("" if number else part, figure, wide))
    out.print(table)
    machine = report.machine
    say(
        f"{machine.processors} x {machine.processor or 'processor'}, {machine.python} with "
        f"{machine.event_loop}, {machine.filesystem or 'unknown'} file system, load {machine.load:g} before",
        "dim",
    )
    say(f"medians; ratio is median by bare, compare that. {report.duration_s:.1f} s", "dim")
    if machine.filesystem == "tmpfs":
        say("temporary folders are in memory here, so syncs cost nothing: set TMPDIR to a disk", "yellow")
    for part, problem in report.problems.items():
        say(f"{part}: {problem}", "red")


def _cells(part: str, figure: Figure, wide: bool) -> tuple[str, ...]:
    cells = [part, figure.what, _number(figure.value), figure.unit]
    if wide:
        many = figure.lowest != figure.highest
        cells += [_number(figure.lowest), _number(figure.highest)] if many else ["", ""]
    if figure.bare is None or figure.ratio is None:
        return (*cells, "", "", "")
    ratio = f"{figure.ratio:.2f}" if figure.ratio < 100 else f"{figure.ratio:.0f}"
    return (*cells, _number(figure.bare), ratio, figure.beside)


def _number(value: float) -> str:
    """Return three digits or more: 0.412, 41.2, 412, 4,120."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}" if value < 1 else f"{value:.2f}"

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
    from edgepool.bench.run import Part, Report

TERMINATED = 143
_WIDE_COLUMNS = 116


def bench(
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
    """
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


async def _run(names: Sequence[str], quick: bool) -> Report:
    from edgepool.bench.run import PARTS, run

    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):
        # So that processes and folders are cleaned up when somebody ends this one.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
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

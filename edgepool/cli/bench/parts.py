"""`edgepool bench` itself: a few figures of every part, beside the bare things it is built on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import JustifyMethod
from rich.table import Table

from edgepool.cli.bench.screen import measured, number
from edgepool.cli.console import err, out, print_json, say

if TYPE_CHECKING:
    from edgepool.bench.figures import Figure
    from edgepool.bench.run import Part, Report

_WIDE_COLUMNS = 116


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
    show(measured(_run(only or (), quick)), json)


async def _run(names: Sequence[str], quick: bool) -> Report:
    from edgepool.bench.run import PARTS, run

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


def show(report: Report, json: bool) -> None:
    """Print a report, as JSON if so wished; end with exit code 1 if a part failed."""
    if json:
        print_json(_as_json(report))
    else:
        _print(report)
    if report.problems:
        raise typer.Exit(1)


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
        for place, figure in enumerate(figures):
            table.add_row(*_cells("" if place else part, figure, wide))
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
    cells = [part, figure.what, number(figure.value), figure.unit]
    if wide:
        many = figure.lowest != figure.highest
        cells += [number(figure.lowest), number(figure.highest)] if many else ["", ""]
    if figure.bare is None or figure.ratio is None:
        return (*cells, "", "", "")
    ratio = f"{figure.ratio:.2f}" if figure.ratio < 100 else f"{figure.ratio:.0f}"
    return (*cells, number(figure.bare), ratio, figure.beside)

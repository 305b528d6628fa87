"""The demo: the workshop run with edge pools, its coordinator killed half-way, then with a cloud.

report = await run_demo(DemoOptions(hour_seconds=0.5))
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
from rich.console import Console

import edgepool
from edgepool.config import Road
from edgepool.errors import LocalError
from edgepool.workshop.orders import Orders, Workshop, expand, load_workshop
from edgepool.workshop.report import build_report
from edgepool.workshop.run import Outcome, RunPlan, run_workshop
from edgepool.workshop.screen import LiveScreen, PlainScreen, SilentScreen
from edgepool.workshop.tables import print_report
from edgepool.workshop.twindata import TwinData

EXAMPLE = Path("examples") / "rocket_motor.toml"
FILE_COLUMNS = 160
MARKER = ".edgepool-demo"
"""Stands in a folder that a demo has made, and that the next one may clear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What to run. `workshop` None is the example; `tasks` 0 is all of them.

    `cloud` runs the orders a second time through the relay; `kill` kills the coordinator half-way.
    `plain` prints lines even on a terminal; with `quiet` nothing is printed. `keep_data` leaves
    the twin data in the folder; else it goes at the end, and chains and reports stay.
    """

    workshop: Path | None = None
    folder: Path = Path("build/demo")
    hour_seconds: float = 0.5
    seed: int = 1
    tasks: int = 0
    one_process_per_machine: bool = False
    cloud: bool = True
    kill: bool = True
    plain: bool = False
    quiet: bool = False
    keep_data: bool = False
    transport: Road = "tls"


async def run_demo(options: DemoOptions, console: Console | None = None) -> dict[str, Any]:
    """Run the demo and return its report, which is also in FOLDER/report.json.

    `report["ok"]` says whether all went as it must. Raises LocalError or ConfigError for bad
    options, before anything is started.
    """
    started = monotonic()
    source = options.workshop or _example()
    workshop = load_workshop(source)
    orders = _orders(workshop, options)
    TwinData(workshop.twin_data, options.seed)  # so that a missing numpy is told before anything starts
    text = source.read_bytes()
    _clear(options.folder)
    (options.folder / "workshop.toml").write_bytes(text)
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else FILE_COLUMNS)
    screen = _screen(options, console)
    cloud: Outcome | None = None
    with screen.running():
        screen.say(_opening(workshop, orders, options))
        direct = await run_workshop(_plan(options, workshop, orders, cloud=False), screen)
        if options.cloud and not direct.problems:
            screen.say("Now the same orders with a cloud in the middle: all data goes up and down again.")
            cloud = await run_workshop(_plan(options, workshop, orders, cloud=True), screen)
    report = build_report(direct, cloud, [*orders.assumptions, *_notes(options)])
    report["total_s"] = round(monotonic() - started, 3)
    report["options"] = _told_options(options, source)
    json = msgspec.json.format(msgspec.json.encode(report), indent=2)
    await asyncio.to_thread((options.folder / "report.json").write_bytes, json + b"\n")
    if not options.keep_data:
        await asyncio.to_thread(_drop_data, options.folder)
    if not options.quiet:
        print_report(console, report, options.folder)
    return report


def _plan(options: DemoOptions, workshop: Workshop, orders: Orders, *, cloud: bool) -> RunPlan:
    return RunPlan(
        folder=options.folder / ("cloud" if cloud else "edge-pools"),
        workshop_file=options.folder / "workshop.toml",
        workshop=workshop,
        tasks=orders.tasks,
        task_limit=options.tasks,
        hour_seconds=options.hour_seconds,
        seed=options.seed,
        one_process_per_machine=options.one_process_per_machine,
        cloud=cloud,
        kill=options.kill and not cloud,
        transport=options.transport,
    )


def _orders(workshop: Workshop, options: DemoOptions) -> Orders:
    if not 0.01 <= options.hour_seconds <= 3600:
        raise LocalError(f"an hour can take 0.01 to 3600 seconds, not {options.hour_seconds:g}")
    if options.tasks < 0:
        raise LocalError(f"{options.tasks} tasks cannot be run: name 1 or more, or 0 for all")
    orders = expand(workshop)
    return Orders(orders.tasks[: options.tasks or None], orders.assumptions)


def _screen(options: DemoOptions, console: Console) -> LiveScreen | PlainScreen | SilentScreen:
    if options.quiet:
        return SilentScreen()
    return LiveScreen(console) if console.is_terminal and not options.plain else PlainScreen(console)


def _opening(workshop: Workshop, orders: Orders, options: DemoOptions) -> str:
    machines = len(workshop.function_of)
    road = "mutual TLS" if options.transport == "tls" else options.transport
    processes = machines if options.one_process_per_machine else len(workshop.fixed_pools)
    return (
        f"edgepool: {machines} machines in {len(workshop.fixed_pools)} fixed pools make "
        f"{len(orders.tasks)} parts, in {processes} processes beside the coordinator's, "
        f"over {road} on this machine; an hour of machining takes {options.hour_seconds:g} s, and all "
        "else is real: keys, links, chains, files of up to 64 MB."
    )


def _notes(options: DemoOptions) -> list[str]:
    notes = []
    if options.cloud:
        notes.append(
            "Both modes ran over loopback, which no workshop has: the bytes compare, the times only "
            "hint. In cloud mode a holder is not asked, so there are no transmission confirmations."
        )
    return notes


def _told_options(options: DemoOptions, source: Path) -> dict[str, Any]:
    return {
        "workshop": str(source),
        "hour_seconds": options.hour_seconds,
        "seed": options.seed,
        "tasks": options.tasks,
        "one_process_per_machine": options.one_process_per_machine,
        "cloud": options.cloud,
        "kill": options.kill,
        "transport": options.transport,
    }


def _example() -> Path:
    """Return the example that comes with the sources."""
    for root in (Path(), Path(edgepool.__file__).parents[1]):
        if (root / EXAMPLE).is_file():
            return root / EXAMPLE
    raise LocalError(f"{EXAMPLE} is not here: run this in a checkout of edgepool, or name a workshop file")


def _drop_data(folder: Path) -> None:
    """Remove the twin data, some 2 GB; chains, settings and reports stay."""
    for data in (*folder.glob("*/peers/*/*blobs"), folder / "cloud" / "relay"):
        shutil.rmtree(data, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Make `folder` anew; LocalError if it holds anything that no demo has made."""
    if folder.exists():
        if not folder.is_dir():
            raise LocalError(f"{folder} is not a folder: name another one")
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise LocalError(f"{folder} holds files that no demo has made: name another folder, or empty it")
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / MARKER).touch()
    except OSError as error:
        raise LocalError(f"{folder} cannot be made anew: {error.strerror}") from None

"""The report on the screen: tables that line up, and a last line that says how it went."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepool.workshop.screen import megabytes


def print_report(console: Console, report: dict[str, Any], folder: Path) -> None:
    """Print the whole report; the most telling comes last, where the eye is."""
    console.print(_tasks(report))
    console.print(_chains(report))
    console.print(_kinds(report))
    console.print(_comparison(report))
    for note in report["notes"]:
        console.print(f"Note: {note}")
    console.print(_verdict(report, folder))


def _tasks(report: dict[str, Any]) -> Table:
    table = _table("What was made")
    for name, justify in (
        ("task", "left"),
        ("part", "left"),
        ("pool", "left"),
        ("", "left"),
        ("given at", "right"),
        ("done at", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("route", overflow="fold")
    for route in report["routes"]:
        table.add_row(
            route["task"],
            route["part"],
            route["pool"],
            "used again" if route["reused"] else "new",
            _seconds(route["allotted_s"]),
            _seconds(route["completed_s"]),
            " → ".join(f"{step['operation']} ({step['station']})" for step in route["steps"]),
        )
    return table


def _chains(report: dict[str, Any]) -> Table:
    table = _table("The chains, each copy checked block by block: hashes, signatures, Merkle roots, votes")
    table.add_column("pool", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("height", justify="right")
    table.add_column("copies", justify="right")
    table.add_column("check", no_wrap=True)
    table.add_column("members", overflow="fold")
    for chain in report["chains"]:
        check = Text("passed", style="green") if chain["verified"] else Text(chain["problem"], style="red")
        table.add_row(
            chain["name"],
            chain["kind"],
            str(chain["height"]),
            str(chain["copies"]),
            check,
            ", ".join(chain["members"]),
        )
    return table


def _kinds(report: dict[str, Any]) -> Table:
    table = _table("Twin data that was fetched, by kind")
    table.add_column("kind")
    table.add_column("straight from the holder", justify="right")
    cloud = report["cloud"]
    if cloud is not None:
        table.add_column("in cloud mode, from the relay", justify="right")
    for kind, size_bytes in report["bytes_by_kind"].items():
        row = [kind, megabytes(size_bytes)]
        if cloud is not None:
            row.append(megabytes(cloud["bytes_by_kind"].get(kind, 0)))
        table.add_row(*row)
    return table


def _comparison(report: dict[str, Any]) -> Table:
    modes = [report] + ([report["cloud"]] if report["cloud"] is not None else [])
    title = "The same orders: edge pools against a cloud in the middle" if len(modes) > 1 else "In figures"
    table = _table(title)
    table.add_column("")
    table.add_column("edge pools", justify="right")
    if len(modes) > 1:
        table.add_column("cloud", justify="right")
    rows: list[tuple[str, list[str]]] = [
        ("parts made", [f"{m['tasks_done']} of {m['tasks']}" for m in modes]),
        (
            "pools formed, and used again instead",
            [f"{m['pools_formed']}, {m['pools_reused']}" for m in modes],
        ),
        (
            "demands asked, answered, failed",
            [f"{m['demands']}, {m['answered']}, {m['failed']}" for m in modes],
        ),
        ("data straight from machine to machine", [megabytes(m["bytes_direct"]) for m in modes]),
        ("data through the cloud, in and out", [megabytes(m["bytes_via_coordinator"]) for m in modes]),
        ("time spent moving data, all stations", [_seconds(m["transfer_s"]) for m in modes]),
        ("from demand to data, median", [_milliseconds(m["demand_to_data_median_ms"]) for m in modes]),
        (
            "from demand to data, 95 % within",
            [_milliseconds(m["demand_to_data_95_percent_ms"]) for m in modes],
        ),
        ("first data after", [_seconds(m["first_data_s"]) for m in modes]),
        ("all parts made after", [_seconds(m["wall_s"]) for m in modes]),
        ("coordinator killed at", [_seconds(m["coordinator_killed_at_s"]) for m in modes]),
        ("parts finished while it was down", [_while_down(m, "tasks_done_while_down") for m in modes]),
        (
            "transfers agreed while it was down",
            [_while_down(m, "transfers_confirmed_while_down") for m in modes],
        ),
    ]
    for name, values in rows:
        table.add_row(name, *values)
    return table


def _verdict(report: dict[str, Any], folder: Path) -> Text:
    where = f"All figures: {folder / 'report.json'}.\n"
    where += f"Check all chains yourself: {_command()} chain verify {folder}"
    if report["ok"]:
        return Text.assemble(("Everything went as it must. ", "bold green"), where)
    problems = "\n".join(f"  - {problem}" for problem in report["problems"])
    return Text.assemble(("This did not go as it must:\n", "bold red"), f"{problems}\n{where}")


def _command() -> str:
    """Name this command by its place: whoever typed `make demo` has not activated the environment."""
    called = Path(sys.argv[0])
    if called.name != "edgepool" or shutil.which("edgepool"):
        return "edgepool"
    return os.path.relpath(called)


def _while_down(mode: dict[str, Any], key: str) -> str:
    return str(mode[key]) if mode["coordinator_killed_at_s"] is not None else "-"


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        header_style="dim",
    )


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.1f} s"


def _milliseconds(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:,.0f} ms"

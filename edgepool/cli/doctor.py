"""`edgepool doctor`: what would keep a gateway from working, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from edgepool.cli.console import columns, out, print_json, run_async, say

if TYPE_CHECKING:
    from edgepool.gateway.examination import Examination

STYLES = {"ok": "green", "warn": "yellow", "fault": "red"}


def doctor(
    folder: Annotated[Path, typer.Argument(help="A peer's folder; the peer may run or not.")] = Path("."),
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Examine a gateway: identity, clock, ports, disk, versions, chains, and whether the others are reached.

    Below it stands what firewalls must let through. Exit code 0 if there are warnings at most, 1 if there
    is a fault, 2 if FOLDER is no gateway's folder.

    Example: edgepool doctor plant/mill-1
    """
    from edgepool.gateway.examination import examine

    found = run_async(examine(folder))
    if json:
        print_json({"faults": found.count("fault"), "warnings": found.count("warn"), "examination": found})
    else:
        _print(found)
    if found.count("fault"):
        raise typer.Exit(1)


def _print(found: Examination) -> None:
    table = columns("check", "result", "found", "what to do", title=f"{found.name or found.folder}")
    for finding in found.findings:
        result = Text(finding.level, style=STYLES[finding.level])
        table.add_row(finding.check, result, finding.found, finding.advice)
    out.print(table)
    if found.firewall:
        out.print()
        rows = columns("direction", "protocol", "port", "peers", title="What firewalls must let through")
        for row in found.firewall:
            rows.add_row(row.direction, row.protocol, row.port, row.peers)
        out.print(rows)
    out.print()
    faults, warnings = found.count("fault"), found.count("warn")
    if faults or warnings:
        counts = f"{_number(faults, 'fault')} and {_number(warnings, 'warning')}"
        say(counts, "red" if faults else "yellow")
    else:
        say("Nothing is wrong.", "green")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"

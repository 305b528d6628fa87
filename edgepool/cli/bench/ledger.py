"""`edgepool bench ledger`: what a chain carries under load."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edgepool.cli.bench.screen import measured, number
from edgepool.cli.console import err, out, print_json, say

if TYPE_CHECKING:
    from edgepool.bench.load import LoadReport

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
    report = measured(_load(validators, seconds))
    if json:
        print_json(asdict(report))
    else:
        _print_load(report)
    if report.lost:
        raise typer.Exit(1)


async def _load(validators: int, seconds: float) -> LoadReport:
    from edgepool.bench.load import measure_load

    if not err.is_terminal:
        return await measure_load(validators, seconds)
    with err.status("starting") as status:
        return await measure_load(validators, seconds, status.update)


def _print_load(report: LoadReport) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for what, name, unit in _LOAD_ROWS:
        table.add_row(what, number(getattr(report, name)) if name != "lost" else str(report.lost), unit)
    out.print(table)
    say(
        f"{report.validators} validators in {report.processes} processes on {report.processors} processors, "
        f"records of {report.record_bytes} bytes",
        "dim",
    )

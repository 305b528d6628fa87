"""`edgepool bench chain`: what a long chain costs a member."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edgepool.cli.bench.screen import measured, number
from edgepool.cli.console import err, out, print_json, say

if TYPE_CHECKING:
    from edgepool.bench.length import LengthReport

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
    report = measured(_length(records))
    if json:
        print_json(asdict(report))
    else:
        _print_length(report)


async def _length(records: int) -> LengthReport:
    from edgepool.bench.length import measure_length

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
        table.add_row(what, number(full), number(empty), f"{ratio:.2f}", unit)
    for what, name, unit in _LENGTH_FACTS:
        table.add_row(what, number(getattr(report, name)), "", "", unit)
    out.print(table)
    say(
        f"blocks of {report.block_records}; the state is that of a snapshot, its window of records and "
        f"{report.replayed_records:,} records behind it",
        "dim",
    )

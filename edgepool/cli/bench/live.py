"""`edgepool bench live`: how late the samples of a live stream are, and what it costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edgepool.cli.bench.screen import measured, number
from edgepool.cli.console import err, out, print_json, say

if TYPE_CHECKING:
    from edgepool.bench.live import LiveReport


def live(
    rate: Annotated[int, typer.Option(help="Samples a second.", min=1, max=10_000)] = 1_000,
    size: Annotated[int, typer.Option(help="Bytes of a sample.", min=8, max=64 * 1024)] = 1_024,
    subscribers: Annotated[int, typer.Option(help="How many follow.", min=1, max=20)] = 8,
    seconds: Annotated[
        float, typer.Option(help="How long to measure, three times over.", min=0.5, max=600)
    ] = 10.0,
    budget: Annotated[
        int, typer.Option(help="Mbit/s of the bulk that runs beside it the third time.", min=1, max=10_000)
    ] = 200,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Publish a live stream to several subscribers, and see how late samples are and what they cost.

    Publisher and subscribers are processes of their own, with TLS connections on loopback. Records go on
    the pool's chain all the time: the p99 of how soon they are final is taken without the stream, with it,
    and with bulk data on a budget beside it. Exit code 1 if a sample was lost.

    Example: edgepool bench live --json
    """
    report = measured(_measure(rate, size, subscribers, seconds, budget))
    if json:
        print_json(asdict(report))
    else:
        _print(report)
    if report.missed:
        raise typer.Exit(1)


async def _measure(rate: int, size: int, subscribers: int, seconds: float, budget: int) -> LiveReport:
    from edgepool.bench.live import measure_live

    what = rate, size, subscribers, seconds, budget
    if not err.is_terminal:
        return await measure_live(*what, lambda text: None)
    with err.status("starting") as status:
        return await measure_live(*what, status.update)


def _print(report: LiveReport) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for column in range(3):
        table.add_column(justify="right" if column == 1 else "left")
    rows = (
        ("samples that arrived", report.samples, ""),
        ("samples lost", report.missed, ""),
        ("from put to reader, p50", report.delay_p50_us / 1000, "ms"),
        ("  p99", report.delay_p99_us / 1000, "ms"),
        ("  the latest", report.delay_max_us / 1000, "ms"),
        ("  p99 beside bulk", report.delay_p99_us_with_bulk / 1000, "ms"),
        ("publisher's processor time", report.publisher_cpu_percent, "% of one"),
        (f"that of {report.subscribers} subscribers", report.subscribers_cpu_percent, "% of one"),
        ("publisher's memory", report.publisher_rss_MiB, "MiB"),
        ("record to final alone, p99", report.records["calm"], "ms"),
        ("  beside the stream", report.records["live"], "ms"),
        ("  and beside bulk", report.records["live_and_bulk"], "ms"),
        ("bulk", report.bulk_mbit_s, f"Mbit/s of {report.budget_mbit_s}"),
    )
    for name, value, unit in rows:
        table.add_row(name, f"{value:,}" if isinstance(value, int) else number(value), unit)
    say(f"{report.rate_hz} samples of {report.sample_bytes} bytes a second, {report.seconds:g} s")
    out.print(table)

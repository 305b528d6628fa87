"""`edgepool bench transfer`: what a transfer reaches and costs, beside bare copies and what others do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from edgepool.cli.bench.screen import measured, number
from edgepool.cli.console import err, out, print_json, say
from edgepool.errors import LocalError

if TYPE_CHECKING:
    from edgepool.bench.transfer.order import Order
    from edgepool.bench.transfer.run import TransferReport

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_SMALLEST_BYTES = 1024**2
_ROWS = (
    ("1 GiB from one holder, checked", "single.MBps", "MB/s"),
    ("  the ceiling: asyncio TLS 1.3, BLAKE3", "single.ceiling_MBps", "MB/s"),
    ("  processor time, both sides", "single.cpu_s_per_GiB", "s/GiB"),
    ("  the same, ceiling", "single.ceiling_cpu_s_per_GiB", "s/GiB"),
    ("the same into a file, synced", "single.file.MBps", "MB/s"),
    ("  ceiling into a file, synced", "single.file.ceiling_MBps", "MB/s"),
    ("  processor time, both sides", "single.file.cpu_s_per_GiB", "s/GiB"),
    ("8 GiB into a file", "single.large.MBps", "MB/s"),
    ("1 KB there and back, p50", "rr_1k.p50_us", "us"),
    ("  bare TLS echo", "rr_1k.bare_p50_us", "us"),
    ("  1 KB, each side on its own processor", "rr_1k.apart.p50_us", "us"),
    ("  bare TLS echo, the same", "rr_1k.apart.bare_p50_us", "us"),
    ("small files", "small_files.MBps", "MB/s"),
    ("  one file of as many bytes", "small_files.one_file_MBps", "MB/s"),
    ("  small files, durable", "small_files.kept.MBps", "MB/s"),
    ("  the one file, durable", "small_files.kept.one_file_MBps", "MB/s"),
    ("over 20 Mbit/s", "slow_link.MBps", "MB/s"),
    ("  bare TCP", "slow_link.bare_MBps", "MB/s"),
    ("over 50 ms with 1 % loss", "delay_loss.MBps", "MB/s"),
    ("  bare TCP", "delay_loss.bare_MBps", "MB/s"),
    ("difference: bytes that travel", "delta.bytes_fraction", ""),
    ("  new version there", "delta.MBps", "MB/s"),
)


def transfer(
    size: Annotated[
        str,
        typer.Option(
            metavar="BYTES", help="How much one copy moves: bytes, or with K, M or G for KiB, MiB, GiB."
        ),
    ] = "1G",
    rounds: Annotated[int, typer.Option(help="Rounds of everything; medians count.", min=1, max=50)] = 5,
    large: Annotated[
        bool, typer.Option("--large", help="Also 8 GiB into a file: takes 16 GiB of disk and a minute.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Little data, few rounds: to see that it runs.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PARTS",
            help="Only these, by commas: single, peers, rr_1k, small_files, multi, mixed, one_dies, "
            "slow_link, delay_loss, delta.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Measure what transfers reach and cost here, beside bare copies and beside what others do.

    Holder and requester are processes of their own; the data cannot be compressed and every chunk is
    checked. A copy of 1 GiB alternates with a bare TLS copy that hashes what comes (the ceiling), and with
    gRPC, Zenoh, pyzmq, aiohttp and py-libp2p, each secured, if 'pip install edgepool[bench]' has brought
    them; what is not there is named. Holders behind links of 20 MB/s, slow and lossy links are hosts in
    network namespaces, which needs root; elsewhere proxies limit the rates, and the report says so.

    It ends by itself, after some minutes, and removes processes, files and namespaces. Exit code 1 if a
    part could not be measured; a bar that is not reached is shown.

    Example: edgepool bench transfer --only single,multi --json
    """
    report = measured(_transfer(_order(size, rounds, large, quick), _names(only or [])))
    if json:
        print_json(report.as_json())
    else:
        _print(report)
    if report.problems:
        raise typer.Exit(1)


def _order(size: str, rounds: int, large: bool, quick: bool) -> Order:
    from edgepool.bench.transfer.order import QUICK, Order

    if quick:
        return QUICK
    found = re.fullmatch(r"(\d{1,15})([KMG]?)(?:i?B)?", size.strip(), re.IGNORECASE)
    size_bytes = int(found[1]) * _UNITS[found[2].upper()] if found else 0
    if size_bytes < _SMALLEST_BYTES:
        raise LocalError(f"--size '{size}' is no size of 1 MiB or more: write it as 256M or 1G")
    return Order(size_bytes=size_bytes, rounds=rounds, large=large)


def _names(only: list[str]) -> list[str]:
    return [name.strip() for text in only for name in text.split(",") if name.strip()]


async def _transfer(order: Order, names: list[str]) -> TransferReport:
    from edgepool.bench.transfer.run import measure_transfer

    if not err.is_terminal:
        return await measure_transfer(order, names)
    with err.status("starting") as status:
        return await measure_transfer(order, names, status.update)


def _print(report: TransferReport) -> None:
    from edgepool.bench.transfer.bars import find

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("measured", "", ""):
        table.add_column(name, header_style="dim", justify="left" if name else "right")
    for what, path, unit in _ROWS:
        value = find(report.figures, path)
        if value is not None:
            table.add_row(what, number(value), unit)
    if table.row_count:
        out.print(table)
    _print_peers(report.figures.get("peers", {}))
    _print_verdicts(report)
    machine = report.machine
    say(
        f"{machine.processors} x {machine.processor or 'processor'}, {machine.python} with "
        f"{machine.event_loop}, {machine.filesystem or 'unknown'} file system, load {machine.load:g} before, "
        f"{report.duration_s:.0f} s",
        "dim",
    )
    for part, why in report.skipped.items():
        say(f"{part} skipped: {why}", "yellow")
    for part in ("multi", "mixed", "one_dies", "slow_link"):
        if why := _forbidden(report.figures.get(part, {})):
            say(f"{part}: rates were limited by proxies, not by links: {why}", "yellow")
    for part, problem in report.problems.items():
        say(f"{part}: {problem}", "red")


def _print_peers(peers: dict[str, Any]) -> None:
    if not peers:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("beside", "MB/s", "s/GiB", "ours by it", ""):
        table.add_column(name, header_style="dim", justify="left" if name in ("beside", "") else "right")
    for name, peer in peers.items():
        table.add_row(
            name, number(peer["MBps"]), number(peer["cpu_s_per_GiB"]), number(peer["ratio"]), peer["what"]
        )
    out.print()
    out.print(table)


def _print_verdicts(report: TransferReport) -> None:
    if not report.verdicts:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("bar", "measured", "wanted", ""):
        table.add_column(
            name, header_style="dim", justify="right" if name in ("measured", "wanted") else "left"
        )
    for verdict in report.verdicts:
        wanted = f"{'<=' if verdict.most else '>='} {number(verdict.limit)}"
        reached = Text("reached") if verdict.reached else Text("missed", "red")
        table.add_row(verdict.what, number(verdict.value), wanted, reached)
    out.print()
    out.print(table)
    out.print()


def _forbidden(figures: dict[str, Any]) -> str:
    """Return why there were no namespaces, from a part's figures or from those of its first count."""
    nested = next((one for one in figures.values() if isinstance(one, dict)), figures)
    return str(nested.get("forbidden", ""))

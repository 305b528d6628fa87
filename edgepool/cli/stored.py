"""`edgepool data list|pin|unpin|evict|scrub`: the data that a running peer keeps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from edgepool.cli.console import columns, moment, out, print_json, run_async, say, size
from edgepool.errors import LocalError

if TYPE_CHECKING:
    from edgepool.peer.datavalues import ScrubReport, StoredData
    from edgepool.peer.values import PeerStatus

_UNITS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}

app = typer.Typer(
    no_args_is_help=True,
    help="See and look after the data that a running peer keeps.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="The folder of a running peer.")]
What = Annotated[
    str, typer.Argument(metavar="DATA", help="A key, as PART/KIND, or the first 8 or more digits of a root.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("list")
def list_(folder: Folder, json: Json = False) -> None:
    """Show all data that is kept: its keys, size, last use, and why it may not go.

    What has nothing under 'kept because' goes when room is needed, what was used least recently first.

    Example: edgepool data list plant/mill-1
    """

    async def work() -> tuple[list[StoredData], PeerStatus]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.stored(), await client.status()

    rows, status = run_async(work())
    if json:
        print_json({"data": rows, "storage": status.storage})
        return
    if rows:
        table = columns("data", "root", "size", "last use", "state", "kept because")
        for row in rows:
            state = row.state if row.state == "whole" else Text(row.state, style="red")
            table.add_row(
                ", ".join(row.keys) or "?",
                row.root[:16],
                size(row.size_bytes),
                moment(row.used_ms),
                state,
                row.kept,
            )
        out.print(table)
    held = status.storage
    say(
        f"{size(held.used_bytes)} of {size(held.quota_bytes)} in use: {size(held.kept_bytes)} pinned or "
        f"promised, {size(held.evictable_bytes)} may go; {size(held.incomplete_bytes)} incomplete, "
        f"{size(held.quarantined_bytes)} damaged"
    )


@app.command()
def pin(folder: Folder, data: What, json: Json = False) -> None:
    """Keep data whatever comes: it is never evicted, also after a restart.

    Example: edgepool data pin plant/mill-1 PTVA10212-03/model
    """
    _pin(folder, data, True, json)


@app.command()
def unpin(folder: Folder, data: What, json: Json = False) -> None:
    """Let pinned data go again when room is needed, unless it is promised.

    Example: edgepool data unpin plant/mill-1 PTVA10212-03/model
    """
    _pin(folder, data, False, json)


@app.command()
def evict(
    folder: Folder,
    data: Annotated[str, typer.Argument(metavar="[DATA]", help="What to drop: a key or a root.")] = "",
    free: Annotated[
        str, typer.Option(metavar="BYTES", help="Instead: how many bytes to free, such as 800M or 2G.")
    ] = "",
    json: Json = False,
) -> None:
    """Drop data now, to make room; never what is pinned or promised.

    Exit code 1 with the reason if that is refused.

    Example: edgepool data evict plant/mill-1 --free 2G
    """
    free_bytes = _bytes(free) if free else 0
    if bool(data) == bool(free):
        raise LocalError("name the data to drop, or say with --free how many bytes to free, one of the two")

    async def work() -> list[StoredData]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.evict(data, free_bytes)

    gone = run_async(work())
    if json:
        print_json(gone)
        return
    for row in gone:
        say(f"dropped {', '.join(row.keys) or row.root[:16]} ({size(row.size_bytes)})")


@app.command()
def scrub(
    folder: Folder,
    data: Annotated[str, typer.Argument(metavar="[DATA]", help="Only this: a key or a root.")] = "",
    json: Json = False,
) -> None:
    """Read data again from the disk, now and at full speed, and compare it with its hashes.

    A running peer does the same by itself, slowly (see [storage] in its settings). What is damaged is moved
    aside and got again from another holder. Exit code 1 if something is damaged.

    Example: edgepool data scrub plant/mill-1
    """

    async def work() -> ScrubReport:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.scrub(data)

    report = run_async(work())
    if json:
        print_json(report)
    else:
        say(f"{report.checked} data ({size(report.checked_bytes)}) read again")
        for root in report.damaged:
            say(f"damaged, in quarantine: {root[:16]}", style="red")
    if report.damaged:
        raise typer.Exit(1)


def _pin(folder: Path, data: str, pinned: bool, json: bool) -> None:
    async def work() -> list[StoredData]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.pin(data, pinned)

    rows = run_async(work())
    if json:
        print_json(rows)
        return
    for row in rows:
        name = ", ".join(row.keys) or row.root[:16]
        say(f"{name} is pinned" if pinned else f"{name} is not pinned any more: {row.kept or 'it may go'}")


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,15})([kMGT]?)B?", text)
    if found is None:
        raise LocalError(f"'{text[:40]}' is no number of bytes: write it as 800M or 2G")
    return int(found[1]) * _UNITS[found[2]]

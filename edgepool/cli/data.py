"""`edgepool publish`, `request` and `fetch`: clients of a running peer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from edgepool.cli.console import columns, duration, err, out, print_json, run_async, say, size
from edgepool.errors import LocalError

Folder = Annotated[Path, typer.Argument(help="The folder of a running peer.")]
Key = Annotated[str, typer.Argument(help="The part and the kind of data, as PART/KIND.")]
MAX_VERSION = 2**31
LONGEST_FETCH_S = 24 * 3600
Version = Annotated[
    int, typer.Option(min=0, max=MAX_VERSION, help="The version of the data; 0 is the newest.")
]
Chain = Annotated[
    str, typer.Option(help="The chain to record it on: a pool's name or an id (default: the first).")
]
Purpose = Annotated[
    str, typer.Option(help="What the data is wanted for, which is signed; policies may ask for it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def publish(
    folder: Folder,
    key: Key,
    file: Annotated[Path, typer.Argument(help="The file whose content is published.")],
    version: Annotated[
        int, typer.Option(min=0, max=MAX_VERSION, help="Its version; 0 is one above the newest.")
    ] = 0,
    chain: Chain = "",
    json: Json = False,
) -> None:
    """Offer a file's content as twin data of a part: stored here, its hash on chain.

    Kinds of data are features, requirements, model, error, surface, cases, equipment, decisions,
    control and tools; others are allowed.

    Example: edgepool publish plant/mill-1 PTVA10212-03/model part.stl
    """
    _check_key(key)
    if not file.is_file():
        raise LocalError(f"'{file}' is not a file: check the path")

    async def work() -> dict[str, Any]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.publish(key, file, version=version, chain=chain)

    done = run_async(work())
    if json:
        print_json(done)
    else:
        say(
            f"{done['key']} version {done['version']} ({size(done['size_bytes'])}) is offered "
            f"in block {done['height']} of chain {done['chain'][:8]}"
        )


def request(
    folder: Folder,
    key: Key,
    version: Version = 0,
    timeout: Annotated[float, typer.Option(min=0.1, max=60, help="How long to look, in seconds.")] = 5,
    purpose: Purpose = "",
    json: Json = False,
) -> None:
    """Show who has the data, best first, without moving it.

    The peer looks in its own chains and then outward through its pools. Each offer is proven by a
    block and its votes; what this peer may not have comes last, with the condition that fails. Exit code 1
    if nobody has it.

    Example: edgepool request plant/lathe-2 PTVA10212-03/model
    """
    _check_key(key)

    async def work() -> list[dict[str, Any]]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.request(key, version=version, timeout_ms=int(timeout * 1000), purpose=purpose)

    offers = run_async(work())
    if json:
        print_json(offers)
    elif offers:
        out.print(_offers(offers))
    else:
        say(f"nobody that can be reached offers {key}")
    if not offers:
        raise typer.Exit(1)


def fetch(
    folder: Folder,
    key: Key,
    out_file: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; it is replaced.")],
    version: Version = 0,
    chain: Chain = "",
    timeout: Annotated[
        float,
        typer.Option(min=1, max=LONGEST_FETCH_S, help="Give up when nothing comes for so many seconds."),
    ] = 60,
    purpose: Purpose = "",
    json: Json = False,
) -> None:
    """Get data straight from all who have it, every chunk checked against the hash on chain.

    The file appears when all of it is there and checked, or not at all; what has come stays, and the next
    fetch goes on from there. A receipt on chain says what came from whom ('edgepool chain query FOLDER
    --kind receipt'). If the owner's policy says no, the error names the condition that failed.

    Example: edgepool fetch plant/lathe-2 PTVA10212-03/model part.stl
    """
    _check_key(key)
    if out_file.is_dir():
        raise LocalError(f"'{out_file}' is a folder: name the file to write")
    if not out_file.absolute().parent.is_dir():
        raise LocalError(f"'{out_file.parent}' does not exist: make the folder first")
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[sources]}"),
        TimeRemainingColumn(compact=True),
        console=err,
        disable=json or not err.is_terminal,
        transient=True,
    )

    async def work() -> dict[str, Any]:
        from edgepool.gateway.client import ApiClient

        task = bar.add_task(f"looking for {key}", total=None, sources="")

        def progress(done_bytes: int, size_bytes: int, sources: int) -> None:
            held = f"checked, from {sources} holder{'s' if sources > 1 else ''}"
            bar.update(task, description=key, completed=done_bytes, total=size_bytes, sources=held)

        async with ApiClient.of(folder) as client:
            return await client.fetch(
                key,
                out_file,
                version=version,
                chain=chain,
                purpose=purpose,
                timeout_ms=int(timeout * 1000),
                progress=progress,
            )

    with bar:
        done = run_async(work())
    if json:
        print_json(done)
    else:
        say(
            f"{done['key']} version {done['version']} ({size(done['size_bytes'])}) {_came_from(done)} "
            f"in {duration(done['duration_ms'])} and is whole: {out_file}"
        )


def _came_from(done: dict[str, Any]) -> str:
    """Say from whom data came, and how much from each if there are several."""
    shares = done["shares"]
    names = [share["holder_name"] or share["holder"] for share in shares]
    if not shares:
        return "was here already, was written"
    if len(shares) == 1:
        return f"came from {names[0]}"
    parts = [f"{name} ({size(share['size_bytes'])})" for name, share in zip(names, shares, strict=True)]
    return f"came from {', '.join(parts[:-1])} and {parts[-1]}"


def _check_key(key: str) -> None:
    from edgepool.model.twin import DataKey

    DataKey.parse(key)


def _offers(offers: list[dict[str, Any]]) -> Table:
    names = ("holder", "machine", "version", "size", "network", "processors", "round trip", "proof", "")
    table = columns(*names)
    for offer in offers:
        proof = offer["proof"]
        answered = offer["reachable"]
        table.add_row(
            offer["holder_name"],
            offer["machine_type"],
            str(offer["version"]),
            size(offer["size_bytes"]),
            f"{offer['network_load_percent']} %" if answered else "no answer",
            f"{offer['processing_load_percent']} %" if answered else "",
            f"{offer['round_trip_ms']} ms" if answered else "",
            f"{proof['pool']}, block {proof['height']}, {proof['votes']} of {proof['members']} votes",
            f"not for you: {offer['refusal']}" if offer.get("refusal") else "",
            style="" if answered and not offer.get("refusal") else "dim",
        )
    return table

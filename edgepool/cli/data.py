"""`edgepool publish`, `request` and `fetch`: clients of a running peer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
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
MAX_SAID = 20
"""So many keys that did not come are named on the screen."""
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
    keys: Annotated[
        list[str],
        typer.Argument(metavar="KEY", help="PART/KIND; several, or patterns with * and ?, in quotes."),
    ],
    out_file: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The file to write (it is replaced); for several keys a folder."),
    ],
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

    Several keys, or a pattern of what the chains of this peer offer, go into the folder OUT as PART/KIND, the
    newest version of each; small data comes many pieces at a time. Exit code 1 if a part of it did not come.

    Example: edgepool fetch plant/lathe-2 PTVA10212-03/model part.stl
    """
    several = len(keys) > 1 or any(sign in keys[0] for sign in "*?")
    if several:
        _check_keys(keys)
        if version:
            raise LocalError("--version is for one key: of several the newest version is fetched")
        if not out_file.is_dir():
            raise LocalError(f"'{out_file}' is not a folder: several keys go into one, make it first")
    else:
        _check_key(keys[0])
        if out_file.is_dir():
            raise LocalError(f"'{out_file}' is a folder: name the file to write")
        if not out_file.absolute().parent.is_dir():
            raise LocalError(f"'{out_file.parent}' does not exist: make the folder first")
    what = f"{len(keys)} keys" if len(keys) > 1 else keys[0]
    more: dict[str, Any] = {"chain": chain, "purpose": purpose, "timeout_ms": int(timeout * 1000)}

    async def work(progress: Callable[[int, int, int], None]) -> dict[str, Any]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            if several:
                return await client.fetch_many(keys, out_file, progress=progress, **more)
            return await client.fetch(keys[0], out_file, version=version, progress=progress, **more)

    done = _with_bar(what, work, shown=not json and err.is_terminal)
    if json:
        print_json(done)
    elif several:
        _say_many(done, out_file)
    else:
        say(
            f"{done['key']} version {done['version']} ({size(done['size_bytes'])}) {_came_from(done)} "
            f"in {duration(done['duration_ms'])} and is whole: {out_file}"
        )
    if done.get("failed"):
        raise typer.Exit(1)


def _with_bar(
    what: str, work: Callable[[Callable[[int, int, int], None]], Awaitable[dict[str, Any]]], shown: bool
) -> dict[str, Any]:
    """Do `work`, which tells how far it is, beside a progress bar."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[sources]}"),
        TimeRemainingColumn(compact=True),
        console=err,
        disable=not shown,
        transient=True,
    )
    task = bar.add_task(f"looking for {what}", total=None, sources="")

    def progress(done_bytes: int, size_bytes: int, sources: int) -> None:
        held = f"checked, from {sources} holder{'s' if sources > 1 else ''}"
        bar.update(task, description=what, completed=done_bytes, total=size_bytes, sources=held)

    async def run() -> dict[str, Any]:
        return await work(progress)

    with bar:
        return run_async(run())


def _say_many(done: dict[str, Any], folder: Path) -> None:
    fetched, failed = done["fetched"], done["failed"]
    size_bytes = sum(one["size_bytes"] for one in fetched)
    came = sum(1 for one in fetched if one["shares"])
    here = f", {len(fetched) - came} of them from this peer's disk" if came < len(fetched) else ""
    say(
        f"{len(fetched)} of {len(fetched) + len(failed)} keys ({size(size_bytes)}{here}) came "
        f"in {duration(done['duration_ms'])} and are whole: {folder}"
    )
    for one in failed[:MAX_SAID]:
        say(f"not {one['key']}: {one['problem']}")
    if len(failed) > MAX_SAID:
        say(f"and {len(failed) - MAX_SAID} more did not come: see --json")


def _came_from(done: dict[str, Any]) -> str:
    """Say from whom data came, and how much from each if there are several."""
    shares = done["shares"]
    names = [share["holder_name"] or share["holder"] for share in shares]
    if not shares:
        return "was here already, was written"
    saved = done["wire_bytes"] < done["size_bytes"]
    travelled = f", {size(done['wire_bytes'])} of which travelled," if saved else ""
    if len(shares) == 1:
        return f"came from {names[0]}{travelled}"
    parts = [f"{name} ({size(share['size_bytes'])})" for name, share in zip(names, shares, strict=True)]
    return f"came from {', '.join(parts[:-1])} and {parts[-1]}{travelled}"


def _check_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if not any(sign in key for sign in "*?"):
            _check_key(key)


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

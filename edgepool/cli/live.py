"""`edgepool live publish|follow|list`: streams of small samples through a running peer."""

from __future__ import annotations

import asyncio
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepool.cli.console import (
    columns,
    err,
    out,
    print_json,
    print_json_line,
    printable,
    run_async,
    say,
    size,
)

if TYPE_CHECKING:
    from edgepool.peer.values import PeerStatus

_LINES_AHEAD = 256

app = typer.Typer(
    no_args_is_help=True,
    help="Publish and follow streams of small samples, such as telemetry.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="The folder of a running peer.")]
Key = Annotated[str, typer.Argument(help="The stream's key, as PART/KIND, such as MILL-1/telemetry.")]


@app.command()
def publish(
    folder: Folder,
    key: Key,
    chain: Annotated[
        str, typer.Option(help="The chain on which it is offered: a pool's name or an id.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Publish each line of standard input as a sample, at once, until the input ends.

    The stream is offered on chain the first time; samples never go there. Who follows gets them in order.

    Example: sensor --every 1ms | edgepool live publish plant/mill-1 MILL-1/telemetry
    """
    _check_key(key)

    async def work() -> int:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.publish_live(key, _input(), chain=chain)

    put = run_async(work())
    if json:
        print_json({"key": key, "put": put})
    else:
        say(f"{put} samples of {key} were published")


@app.command()
def follow(
    folder: Folder,
    key: Key,
    cursor: Annotated[
        str,
        typer.Option(help="Go on where another call stopped: the cursor that --json shows with each sample."),
    ] = "",
    oldest: Annotated[
        bool, typer.Option("--oldest", help="Begin with the oldest sample that the publisher still has.")
    ] = False,
    number: Annotated[int, typer.Option("--count", min=1, help="Stop after so many samples.")] = 2**53,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each sample.")] = False,
) -> None:
    """Print each sample of a live stream as a line, until Ctrl-C.

    Lost connections are made again, and nothing is lost that the publisher still has; what is lost is told on
    standard error. While nobody publishes the stream it waits.

    Example: edgepool live follow plant/lathe-2 MILL-1/telemetry --count 10
    """
    _check_key(key)

    async def work() -> None:
        from edgepool.gateway.client import ApiClient

        left = number
        async with (
            ApiClient.of(folder) as client,
            aclosing(client.follow(key, cursor=cursor, oldest=oldest)) as items,
        ):
            async for item in items:
                _show(item, json)
                left -= "data" in item
                if not left:
                    return

    run_async(work())


@app.command("list")
def list_(
    folder: Folder,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show the live streams that a peer publishes, what it holds of them, and how many follow.

    Example: edgepool live list plant/mill-1
    """

    async def work() -> PeerStatus:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.status()

    streams = run_async(work()).live
    if json:
        print_json(streams)
        return
    table = columns("stream", "samples put", "held", "subscribers")
    for one in streams:
        held = f"{one.held} ({size(one.held_bytes)})"
        table.add_row(one.key, str(one.put), held, str(one.subscribers))
    if streams:
        out.print(table)
    else:
        say("this peer publishes no live stream now")


def _show(item: dict[str, Any], json: bool) -> None:
    if json:
        print_json_line(item)
    elif "data" in item:
        sys.stdout.write(printable(b64decode(item["data"]).decode(errors="replace")) + "\n")
        sys.stdout.flush()
    elif "missed" in item:
        first, last = item["missed"]
        err.print(f"missed samples {first} to {last}: this reader was too slow, or away for too long")
    else:
        err.print(f"the publisher has begun anew; sample {item['next_was']} of before would have come next")


async def _input() -> AsyncIterator[bytes]:
    """Yield the lines of standard input; a thread reads them, which does not hold up the end."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes] = asyncio.Queue(_LINES_AHEAD)

    def read() -> None:
        while True:
            line = sys.stdin.buffer.readline()
            asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()
            if not line:
                return

    Thread(target=read, daemon=True, name="standard input").start()
    while line := await lines.get():
        yield line if line.endswith(b"\n") else line + b"\n"


def _check_key(key: str) -> None:
    from edgepool.model.twin import DataKey

    DataKey.parse(key)

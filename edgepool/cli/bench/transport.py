"""`edgepool bench transport`: what a message costs on each road."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgepool.cli.bench.parts import show
from edgepool.cli.bench.screen import measured

if TYPE_CHECKING:
    from edgepool.bench.run import Report


def transport(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: some seconds.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Measure links in memory, over TLS and over libp2p side by side: latency, rate, processor and memory.

    Two peers are processes of their own on loopback. libp2p is left out if its extra is not installed.
    It takes some 20 s and leaves nothing behind. Exit code 1 if it fails.

    Example: edgepool bench transport --json
    """
    show(measured(_run(quick)), json)


async def _run(quick: bool) -> Report:
    from edgepool.bench.run import Part, run
    from edgepool.bench.transport import measure_transport

    part = Part("transport", "links on each road", 20, measure_transport)
    return await run(quick=quick, parts={part.name: part})

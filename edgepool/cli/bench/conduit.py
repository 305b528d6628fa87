"""`edgepool bench conduit`: what the way through a conduit costs, beside the direct one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgepool.cli.bench.parts import show
from edgepool.cli.bench.screen import measured

if TYPE_CHECKING:
    from edgepool.bench.run import Report


def conduit(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds, less data: some seconds.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Measure links and transfers through a conduit, each beside the same over the direct path.

    Two peers and the conduit are processes of their own on loopback. It takes half a minute and leaves
    nothing behind. Exit code 1 if it fails.

    Example: edgepool bench conduit --json
    """
    show(measured(_run(quick)), json)


async def _run(quick: bool) -> Report:
    from edgepool.bench.conduit import measure_conduit
    from edgepool.bench.run import Part, run

    part = Part("conduit", "the way through a conduit", 20, measure_conduit)
    return await run(quick=quick, parts={part.name: part})

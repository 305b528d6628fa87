"""`edgepool join`: makes a gateway's folder with nothing but a code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepool.cli.console import print_json, run_async, say


def join(
    code: Annotated[str, typer.Argument(help="What 'edgepool invite' printed.")],
    folder: Annotated[Path, typer.Argument(help="The folder to make; it must be new or empty.")],
    listen: Annotated[
        str,
        typer.Option(help="Where to listen, as /ip4/ADDRESS/tcp/PORT (default: all addresses, a free port)."),
    ] = "",
    outbound: Annotated[
        bool,
        typer.Option(
            "--outbound", help="Accept nothing from outside: be reached through the coordinator of CODE."
        ),
    ] = False,
    conduit: Annotated[
        list[str] | None,
        typer.Option(help="The same, through this conduit instead, as ADDRESS/p2p/PEER. May be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Join a network: make this gateway's key, and have the coordinator that made CODE certify it.

    The key never leaves this machine. If the answer is lost on the way, run the same command again.

    Example: edgepool join AEAQIF...7Q plant/mill-4
    """
    from edgepool.gateway.newcomer import join_network
    from edgepool.transport.joincode import read_code

    folder = Path(str(folder).rstrip("/") or "/")
    settings, joined = run_async(join_network(read_code(code), folder, listen, outbound, conduit or ()))
    if json:
        print_json(
            {
                "folder": str(folder),
                "id": joined.identity.peer,
                "name": settings.name,
                "network": settings.network,
                "role": settings.role,
                "listen": settings.listen,
                "coordinator": joined.registrar.name,
                "pool": joined.pool,
            }
        )
        return
    say(f"{settings.name} is {settings.role} of network '{settings.network}', peer {joined.identity.peer}")
    if joined.pool:
        say(f"{joined.registrar.name} proposes it for pool '{joined.pool}' as soon as it runs")
    say(f"run it with: edgepool run {folder}")

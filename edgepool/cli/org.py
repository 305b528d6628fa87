"""`edgepool org init`: makes an organisation's authority, and its first coordinator if wanted."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from edgepool.cli.console import print_json, say

app = typer.Typer(
    no_args_is_help=True,
    help="Make the authority of an organisation, and say which organisations a network trusts.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def org() -> None:
    """Make the authority of an organisation, and say which organisations a network trusts."""


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="Where the authority's key and certificate are to be.")],
    name: Annotated[str, typer.Option(help="The organisation's name, as certificates show it.")],
    network: Annotated[str, typer.Option(help="The network's name (default: the organisation's).")] = "",
    coordinator: Annotated[
        Path | None,
        typer.Option(help="Also make this folder: a coordinator that invites others with the authority."),
    ] = None,
    listen: Annotated[
        str,
        typer.Option(help="Where that coordinator listens (default: loopback, a free port)."),
    ] = "",
    pool: Annotated[
        list[str] | None,
        typer.Option(help="A fixed pool that this coordinator forms, for others to join (may be repeated)."),
    ] = None,
    serve_conduit: Annotated[
        bool,
        typer.Option(
            "--serve-conduit",
            help="That coordinator is a conduit for peers that accept nothing from outside.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make an organisation's authority, and say what to do next.

    Whoever can read the authority's folder can admit peers: keep it on one machine, with a copy offline.

    Example:

      edgepool org init plant/authority --name "Mould Works" --coordinator plant/cloud --pool milling

      edgepool run plant/cloud
    """
    from edgepool.config import FixedPool
    from edgepool.errors import LocalError
    from edgepool.gateway.setup import (
        PeerPlan,
        check_plan,
        free_ports,
        make_peer_folder,
        refuse_authority_inside,
        refuse_used_folder,
    )
    from edgepool.transport.certificates import create_authority

    network, pools = network or name, pool or []
    options = {"--listen": listen, "--pool": pool, "--serve-conduit": serve_conduit}
    if coordinator is None and (given := [option for option, value in options.items() if value]):
        raise LocalError(f"{given[0]} is for the coordinator: name its folder with --coordinator, too")
    plan = None
    if coordinator is not None:
        coordinator = Path(str(coordinator).rstrip("/") or "/")
        plan = PeerPlan(
            name=coordinator.absolute().name,
            network=network,
            role="coordinator",
            listen=listen or f"/ip4/127.0.0.1/tcp/{free_ports(1)[0]}",
            authority_folder=os.path.relpath(folder.absolute(), coordinator.absolute()),
            serve_conduit=serve_conduit,
            fixed_pools=tuple(FixedPool(one, (coordinator.absolute().name,)) for one in dict.fromkeys(pools)),
        )
        check_plan(coordinator, plan)
        refuse_used_folder(coordinator)
        refuse_authority_inside(coordinator, folder)
    create_authority(folder, name)
    if coordinator is not None and plan is not None:
        make_peer_folder(coordinator, plan, folder)
    if json:
        made = str(coordinator) if coordinator is not None else ""
        print_json({"authority": str(folder), "organisation": name, "network": network, "coordinator": made})
        return
    say(f"made the authority of '{name}' in {folder}: whoever has this folder can admit peers, keep it safe")
    if coordinator is None:
        place = folder.absolute().parent / "cloud"
        say("next, make a coordinator that invites others:")
        say(f"  edgepool init {place} --role coordinator --authority {folder} --network '{network}'")
        say(f'  and write into {place}/edgepool.toml: [authority] folder = "{folder.absolute()}"')
        coordinator = place
    say(f"start the coordinator with: edgepool run {coordinator}")
    into = f" --pool {shlex.quote(pools[0])}" if pools else ""
    invited = f"--name mill-1 --machine-type Milling{into}"
    say(f"then invite a gateway with: edgepool invite {coordinator} {invited}")

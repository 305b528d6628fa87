"""`edgepool invite`: makes the code with which a gateway joins, and shows or revokes invitations."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from edgepool.cli.console import columns, err, moment, out, print_json, printable, run_async, say, span_ms
from edgepool.errors import LocalError

if TYPE_CHECKING:
    from edgepool.gateway.invitationview import InvitationView


def invite(
    folder: Annotated[Path, typer.Argument(help="The folder of a running coordinator that invites others.")],
    name: Annotated[str, typer.Option(help="What the new gateway is called.")] = "",
    role: Annotated[
        str, typer.Option(help="machine, coordinator, witness, inspector, regulator or client.")
    ] = "machine",
    machine_type: Annotated[str, typer.Option(help="What the machine is, such as 'Milling'.")] = "",
    pool: Annotated[str, typer.Option(help="A pool that it is proposed for as soon as it is linked.")] = "",
    expires: Annotated[str, typer.Option(help="How long the code is good for: 90s, 15m, 1h, 7d.")] = "1h",
    list_: Annotated[bool, typer.Option("--list", help="Show all invitations instead.")] = False,
    revoke: Annotated[
        str, typer.Option(metavar="ID", help="Make an open invitation worthless instead.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a code with which ONE gateway joins: 'edgepool join CODE FOLDER' on its machine.

    The code holds a secret and is shown this once: whoever has it first can join, so send it as you would
    send a password. It says where the coordinator listens, so that must be reachable from there.

    Example: edgepool invite plant/cloud --name mill-4 --machine-type Milling --pool milling
    """
    from edgepool.transport.joincode import read_code

    if list_:
        _show(run_async(_call(folder, "invitations")), json)
    elif revoke:
        one = run_async(_call(folder, "revoke", revoke))
        if json:
            print_json(one)
        else:
            say(f"the invitation for {one.name} is revoked: its code is worthless")
    else:
        if not name:
            raise LocalError("say what the new gateway is called: --name mill-4")
        wish = {"name": name, "role": role, "machine_type": machine_type, "pool": pool}
        made = run_async(_call(folder, "invite", **wish, valid_ms=span_ms(expires)))
        if json:
            print_json(made)
            return
        say(made.code)
        one = made.invitation
        told = (
            f"invitation {one.id} lets {one.name} join once, until {moment(one.expires_ms)}; on its machine: "
            "edgepool join CODE FOLDER"
        )
        err.print(Text(printable(told), style="dim"), soft_wrap=True)
        if all(_is_loopback(address) for address in read_code(made.code).addresses):
            err.print(
                Text("it listens on loopback: only gateways on this machine can join", style="yellow"),
                soft_wrap=True,
            )


async def _call(folder: Path, method: str, *arguments: Any, **named: Any) -> Any:
    from edgepool.gateway.client import ApiClient

    async with ApiClient.of(folder) as client:
        return await getattr(client, method)(*arguments, **named)


def _is_loopback(address: str) -> bool:
    return address.startswith(("/ip4/127.", "/ip6/::1/"))


def _show(invitations: list[InvitationView], json: bool) -> None:
    if json:
        print_json(invitations)
        return
    if not invitations:
        say("nobody was invited yet")
        return
    table = columns("invitation", "name", "role", "machine", "pool", "until", "")
    for one in invitations:
        state = one.state
        if one.peer:
            state = f"used by {one.peer}"
            if one.pool:
                state += ", admitted" if one.admitted else ", to be admitted"
        elif state == "open" and one.expires_ms - time.time() * 1000 < 60_000:
            state = "open, for less than a minute"
        table.add_row(one.id, one.name, one.role, one.machine_type, one.pool, moment(one.expires_ms), state)
    out.print(table)

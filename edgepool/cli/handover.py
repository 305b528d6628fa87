"""`edgepool org hand-over|take-over`: one organisation's authority at a second registrar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepool.cli.console import print_json, run_async, say
from edgepool.errors import LocalError

if TYPE_CHECKING:
    from edgepool.peer.pathvalues import LinkStatus

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def hand_over(
    folder: Annotated[Path, typer.Argument(help="The folder of the running registrar.")],
    to: Annotated[str, typer.Argument(help="The other coordinator, linked now: its name or peer id.")],
    file: Annotated[Path, typer.Argument(help="The new file that is to carry the authority there.")],
    json: Json = False,
) -> None:
    """Hand the organisation's authority to another coordinator, sealed for its key.

    That one invites and certifies like this one afterwards; say it again after 'edgepool org rotate'. The
    file opens with that peer's key alone, so it may travel by any way. If the authority's key is under a
    passphrase it stays so, and the other one needs that passphrase as well.

    Example: edgepool org hand-over plant/cloud cloud-2 cloud-2.sealed
    """
    from edgepool.config import load_peer_settings
    from edgepool.gateway.handover import hand_over as seal
    from edgepool.model.ids import PeerId

    found = run_async(_receiver(folder, to))
    root = seal(load_peer_settings(folder), PeerId(found.peer), file)
    if json:
        print_json({"peer": found.peer, "root": root.fingerprint.hex(), "file": str(file)})
        return
    say(f"the authority of '{root.organisation}' is in {file}, sealed for {found.name} alone")
    say("carry it there, end that peer, and say there:")
    say(f"  edgepool org take-over {found.name} {file.name}")


def take_over(
    folder: Annotated[Path, typer.Argument(help="The folder of a coordinator that does not run.")],
    file: Annotated[Path, typer.Argument(help="The file that 'edgepool org hand-over' has made for it.")],
    json: Json = False,
) -> None:
    """Take the organisation's authority that another registrar has handed over, and issue with it.

    The settings name it afterwards. Codes that this coordinator has made for an older root are void.

    Example: edgepool org take-over plant/cloud-2 cloud-2.sealed
    """
    from edgepool.gateway.handover import take_over as unseal

    found = unseal(folder, file)
    if json:
        told = {"root": found.root.fingerprint.hex(), "folder": found.folder, "void": found.void}
        print_json(told)
        return
    say(f"{folder} issues with root {found.root.fingerprint.hex()[:16]} of '{found.root.organisation}' now,")
    say(f"whose authority is {found.folder} from there: keep it safe, and remove {file}")
    if found.void:
        say(f"codes made before are void, invite again: {', '.join(found.void)}", "yellow")
    say(f"start it again: edgepool run {folder}")


async def _receiver(folder: Path, to: str) -> LinkStatus:
    """Return the link to the coordinator that is meant; LocalError if it is not one of the same organisation.

    Its certificate has been checked on that link.
    """
    from edgepool.gateway.client import ApiClient

    async with ApiClient.of(folder) as client:
        status = await client.status()
    own = next((root.organisation for root in status.roots if root.own), "")
    meant = [link for link in status.links if to in (link.name, link.peer)]
    if len(meant) != 1:
        fault = "is not linked now" if not meant else "is the name of several linked peers: write a peer id"
        raise LocalError(f"'{to[:80]}' {fault}; 'edgepool status {folder}' shows who is")
    (found,) = meant
    if found.role != "coordinator" or found.organisation != own:
        raise LocalError(
            f"{found.name} is a {found.role} of '{found.organisation}': the authority of '{own}' is for its "
            "own coordinators alone"
        )
    return found

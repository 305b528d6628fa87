"""`edgepool init`: makes the folder of a new gateway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepool.cli.console import print_json, say
from edgepool.errors import ConfigError

if TYPE_CHECKING:
    from edgepool.config import KnownPeer
    from edgepool.gateway.setup import PeerPlan

_DEFAULT_NETWORK = "workshop"


def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make; it must be new or empty.")],
    name: Annotated[str, typer.Option(help="What the peer is called (default: the folder's name).")] = "",
    network: Annotated[
        str,
        typer.Option(help="The network's name (default: that of --known, of the authority, or 'workshop')."),
    ] = "",
    role: Annotated[
        str, typer.Option(help="machine, coordinator, witness, inspector, regulator or client.")
    ] = "machine",
    machine_type: Annotated[str, typer.Option(help="What the machine is, such as 'Milling'.")] = "",
    authority: Annotated[
        Path | None,
        typer.Option(
            help="The authority's folder; made if it is missing (default: 'authority' beside FOLDER)."
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(help="Where to listen, as /ip4/ADDRESS/tcp/PORT (default: loopback, a free port).")
    ] = "",
    conduit: Annotated[
        list[str] | None,
        typer.Option(
            help="Accept nothing from outside, and be reached through this conduit: its folder, or "
            "ADDRESS/p2p/PEER. May be repeated."
        ),
    ] = None,
    serve_conduit: Annotated[
        bool, typer.Option("--serve-conduit", help="Be a conduit for peers that accept nothing from outside.")
    ] = False,
    known: Annotated[
        list[str] | None,
        typer.Option(
            help="Another peer's folder, or NAME=ADDRESS/p2p/PEER, to keep a link to. May be repeated."
        ),
    ] = None,
    coordinator: Annotated[
        list[str] | None,
        typer.Option(help="Peer id of a coordinator whose folder is not on this machine. May be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a gateway's folder: its key, its certificate, and a configuration that explains itself.

    The first call also makes a small authority. Whoever has its folder can admit peers: keep it safe.

    Example, a coordinator and a mill that knows it:

      edgepool init plant/cloud --role coordinator

      edgepool init plant/mill-1 --machine-type Milling --known plant/cloud

    Then 'edgepool run plant/cloud' and 'edgepool run plant/mill-1', each in a window of its own.
    """
    from edgepool.config import CONFIG_FILE
    from edgepool.gateway.setup import make_peer_folder, read_peer_id
    from edgepool.transport.certificates import organisation_of

    folder = Path(str(folder).rstrip("/") or "/")
    authority = authority or folder.absolute().parent / "authority"
    if not network and not known:
        # Peers of another network could not talk to those that this authority has admitted before.
        network = organisation_of(authority)
    plan = plan_of(folder, name, network, role, machine_type, listen, known or [], coordinator or [])
    if conduit:
        plan = replace(plan, listen=listen, conduits=tuple(_conduit(text) for text in conduit))
    plan = replace(plan, serve_conduit=serve_conduit)
    new_authority = not authority.exists()
    settings = make_peer_folder(folder, plan, authority)
    peer = read_peer_id(settings)
    if json:
        print_json(
            {
                "folder": str(folder),
                "id": peer,
                "name": settings.name,
                "network": settings.network,
                "role": settings.role,
                "listen": settings.listen,
                "authority": str(authority),
            }
        )
        return
    say(f"{settings.name} is {settings.role} of network '{settings.network}', peer {peer}")
    if new_authority:
        say(f"made the authority {authority}: whoever has this folder can admit peers, so keep it safe")
    say(f"settings, each explained: {folder / CONFIG_FILE}")
    say(f"start it with: edgepool run {folder}")


def plan_of(
    folder: Path,
    name: str,
    network: str,
    role: str,
    machine_type: str,
    listen: str,
    known: list[str],
    coordinators: list[str],
) -> PeerPlan:
    """Return what a new peer is to be by the options of a command; ConfigError if they make no sense."""
    from edgepool.config import ROLES
    from edgepool.errors import DecodeError
    from edgepool.gateway.setup import PeerPlan, free_ports
    from edgepool.model.ids import PeerId, public_key_of

    if role not in ROLES:
        raise ConfigError(f"'{role}' is not a role: use one of {', '.join(ROLES)}")
    for peer in coordinators:
        try:
            public_key_of(PeerId(peer))
        except DecodeError as error:
            raise ConfigError(f"--coordinator: {error}") from None
    peers: list[KnownPeer] = []
    for text in known:
        peers.append(_known(text, coordinators, network))
        network = network or _network_of(text)
    return PeerPlan(
        name=name or folder.absolute().name,
        network=network or _DEFAULT_NETWORK,
        role=role,
        machine_type=machine_type,
        listen=listen or f"/ip4/127.0.0.1/tcp/{free_ports(1)[0]}",
        coordinators=tuple(dict.fromkeys(coordinators)),
        known_peers=tuple(peers),
    )


def _conduit(text: str) -> str:
    """Return the address that --conduit names: itself, or that of the peer in a folder."""
    from edgepool.gateway.setup import known_from_folder

    return (
        text
        if text.startswith("/ip") or text.startswith("/dns")
        else known_from_folder(Path(text))[0].address
    )


def _known(text: str, coordinators: list[str], network: str) -> KnownPeer:
    """Return the peer that --known names; add it to `coordinators` if it is one."""
    from edgepool.config import KnownPeer
    from edgepool.gateway.setup import known_from_folder

    its_name, equals, address = text.partition("=")
    if equals and address.startswith("/"):
        return KnownPeer(its_name, address)
    peer, settings, peer_id = known_from_folder(Path(text))
    if network and settings.network != network:
        raise ConfigError(
            f"'{text}' is of network '{settings.network}', not '{network}': they could not talk"
        )
    coordinators.extend(settings.coordinators)
    if settings.role == "coordinator":
        coordinators.append(peer_id)
    return peer


def _network_of(text: str) -> str:
    from edgepool.config import load_peer_settings

    return "" if "=" in text else load_peer_settings(Path(text)).network

"""`edgepool renew`, `edgepool csr` and `edgepool key install`: a certificate for a key that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepool.cli.console import moment, print_json, run_async, say

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def renew(
    folder: Annotated[Path, typer.Argument(help="A peer's folder; the peer does not run.")],
    code: Annotated[str, typer.Argument(help="What 'edgepool invite' printed for this very gateway.")],
    json: Json = False,
) -> None:
    """Bring a gateway back whose certificate has lapsed while it was off, or whose root has gone.

    It keeps its key, so it is what it was in all its pools. The code is the approval: somebody who may
    invite says 'edgepool invite' with its name, role and machine type. A gateway that runs renews by itself.

    Example: edgepool renew plant/mill-4 AEAQIF...7Q
    """
    from edgepool.gateway.renewing import renew_folder
    from edgepool.transport.joincode import read_code

    found = run_async(renew_folder(folder, read_code(code)))
    if json:
        print_json({"id": found.peer, "name": found.name, "valid_until_ms": found.valid_until_ms})
    else:
        say(f"{found.name} has a certificate until {moment(found.valid_until_ms)}")
        say(f"run it with: edgepool run {folder}")


def csr(
    folder: Annotated[Path, typer.Argument(help="A peer's folder; made if it is missing.")],
    name: Annotated[str, typer.Option(help="What the peer is called (default: the folder's name).")] = "",
    network: Annotated[str, typer.Option(help="The network's name (default: that of --known).")] = "",
    role: Annotated[
        str, typer.Option(help="machine, coordinator, witness, inspector, regulator or client.")
    ] = "machine",
    machine_type: Annotated[str, typer.Option(help="What the machine is, such as 'Milling'.")] = "",
    listen: Annotated[str, typer.Option(help="Where to listen, as /ip4/ADDRESS/tcp/PORT.")] = "",
    known: Annotated[
        list[str] | None,
        typer.Option(help="Another peer's folder, or NAME=ADDRESS/p2p/PEER, to keep a link to."),
    ] = None,
    coordinator: Annotated[list[str] | None, typer.Option(help="Peer id of a coordinator.")] = None,
    json: Json = False,
) -> None:
    """Write a request (PKCS#10) with which a firm's own PKI can certify this gateway's key.

    The PKI must issue it directly by a root, with the request's subject alternative name unchanged. Then say
    'edgepool key install FOLDER --certificate FILE --root FILE'.

    Example: edgepool csr plant/mill-5 --network plant --machine-type Milling
    """
    from edgepool.cli.init import plan_of
    from edgepool.config import CONFIG_FILE
    from edgepool.gateway.renewing import write_request

    folder = Path(str(folder).rstrip("/") or "/")
    plan = None
    if not (folder / CONFIG_FILE).exists():
        plan = plan_of(folder, name, network, role, machine_type, listen, known or [], coordinator or [])
    path, settings = write_request(folder, plan)
    if json:
        print_json({"request": str(path), "name": settings.name, "network": settings.network})
    else:
        say(f"the request of {settings.name} is in {path}: have it signed, then say")
        say(f"  edgepool key install {folder} --certificate FILE --root FILE")


def install(
    folder: Annotated[Path, typer.Argument(help="A peer's folder; the peer does not run.")],
    certificate: Annotated[Path, typer.Option(help="The certificate for its key (PEM).")],
    root: Annotated[Path, typer.Option(help="The root that has issued it (PEM).")],
    json: Json = False,
) -> None:
    """Take a certificate that a firm's own PKI has issued for this gateway's key, and its root.

    Example: edgepool key install plant/mill-5 --certificate mill-5.pem --root firm-root.pem
    """
    from edgepool.gateway.renewing import install_files

    found = install_files(folder, certificate, root)
    if json:
        print_json({"id": found.peer, "name": found.name, "valid_until_ms": found.valid_until_ms})
    else:
        say(f"{found.name} has a certificate until {moment(found.valid_until_ms)}")
        say(f"run it with: edgepool run {folder}")

"""A gateway joins a network with nothing but a code: its folder appears whole or not at all [S3.6].

Its key is made aside and kept there if an answer was lost: the same key may ask again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgepool.config import (
    CONFIG_FILE,
    IdentitySettings,
    KnownPeer,
    PeerSettings,
    load_peer_settings,
)
from edgepool.errors import DecodeError, EdgepoolError, LocalError, Refused
from edgepool.gateway.setup import PeerPlan, check_plan, config_text, free_ports, refuse_used_folder
from edgepool.model.crypto import Signer
from edgepool.model.ids import format_address, parse_address
from edgepool.storage.files import sync_folder
from edgepool.transport.certificates import create_key, write_new_file
from edgepool.transport.identity import load_identity
from edgepool.transport.joincode import JoinCode
from edgepool.transport.joining import AnswerLost, Joined, ask_to_join
from edgepool.transport.keyfiles import PASSPHRASE_VARIABLE, passphrase_of_environment, read_private_key


async def join_network(
    code: JoinCode, folder: Path, listen: str = "", outbound: bool = False, conduits: Sequence[str] = ()
) -> tuple[PeerSettings, Joined]:
    """Make `folder` for a gateway that `code` invites; return its settings and what it was given.

    `listen` is a multiaddr; '' takes a free port, on all addresses of this machine unless the registrar
    is on it, too. With `conduits`, or `outbound` for the registrar as the conduit, it accepts nothing from
    outside unless `listen` is given. Raises LocalError and ConfigError (here), Unavailable, RemoteError and
    Refused (there).
    """
    if listen:
        try:
            parse_address(listen)
        except DecodeError as error:
            raise LocalError(f"--listen: {error}") from None
    for address in conduits:
        try:
            if parse_address(address)[2] is None:
                raise LocalError(f"--conduit: '{address}' has no /p2p/CONDUIT at its end")
        except DecodeError as error:
            raise LocalError(f"--conduit: {error}") from None
    refuse_used_folder(folder)
    inward = bool(listen) or not (outbound or conduits)
    aside = _aside(folder)
    signer, is_new = await asyncio.to_thread(_own_key, aside)
    try:
        joined, where = await ask_to_join(
            code, signer, lambda host: listen or (_listen_near(host) if inward else "")
        )
    except EdgepoolError as error:
        if isinstance(error, Refused) or (is_new and not isinstance(error, AnswerLost)):
            shutil.rmtree(aside, ignore_errors=True)
        raise
    known = f"{joined.address}/p2p/{joined.registrar.peer}"
    through = tuple(conduits) or ((known,) if outbound else ())
    return await asyncio.to_thread(_finish, aside, folder, joined, where, through), joined


def _aside(folder: Path) -> Path:
    whole = folder.absolute()
    return whole.with_name(f".{whole.name}.joining")


def _own_key(aside: Path) -> tuple[Signer, bool]:
    """Return the key in `aside` and whether it was made just now."""
    key = aside / IdentitySettings().key
    passphrase = passphrase_of_environment(PASSPHRASE_VARIABLE, LocalError)
    is_new = not key.exists() or b"-----END" not in key.read_bytes()
    if is_new:
        # One that was cut off while being written was never shown to anybody.
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise LocalError(f"{aside} cannot be made: {error.strerror}") from None
        create_key(key, passphrase)
    remedy = f"set the environment variable {PASSPHRASE_VARIABLE} as when this gateway first asked to join"
    private = read_private_key(key, passphrase, LocalError, remedy)
    return Signer(private.private_bytes_raw()), is_new


def _listen_near(host: str) -> str:
    """Return where to listen on a machine whose address on the way to its registrar is `host`."""
    address = ipaddress.ip_address(host)
    anywhere = "0.0.0.0" if address.version == 4 else "::"
    return format_address(host if address.is_loopback else anywhere, free_ports(1)[0])


def _finish(
    aside: Path, folder: Path, joined: Joined, listen: str, conduits: tuple[str, ...]
) -> PeerSettings:
    registrar = KnownPeer(joined.registrar.name, f"{joined.address}/p2p/{joined.registrar.peer}")
    plan = PeerPlan(
        name=joined.identity.name,
        network=joined.network,
        role=joined.identity.role,
        machine_type=joined.identity.machine_type,
        listen=listen,
        conduits=conduits,
        coordinators=joined.coordinators,
        known_peers=(registrar,),
    )
    check_plan(folder, plan)
    identity = IdentitySettings()
    try:
        for name, data in (
            (identity.certificate, joined.certificate),
            (identity.authority, joined.root),
            (CONFIG_FILE, config_text(plan).encode()),
        ):
            (aside / name).unlink(missing_ok=True)
            write_new_file(aside / name, data, 0o644)
        load_identity(load_peer_settings(aside))
        for changed in (aside / "identity", aside):
            sync_folder(changed)
        os.replace(aside, folder)
        sync_folder(folder.absolute().parent)
    except OSError as error:
        raise LocalError(
            f"'{folder}' cannot be made: {error.strerror}; mend that and run the same command again"
        ) from None
    return load_peer_settings(folder)

"""Keeps the port of a peer whose settings leave it to the system (port 0): others dial the one that it had.

It is a file in the peer's folder, one for each road. If another program has that port by now, the system
gives another one.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from edgepool.config import PeerSettings
from edgepool.errors import LocalError
from edgepool.model.ids import format_address, parse_address
from edgepool.transport.door import Listener
from edgepool.transport.keyfiles import replace_file

PORT_FILE = "port"
LIBP2P_PORT_FILE = "libp2p-port"
_MAX_BYTES = 16

_log = logging.getLogger(__name__)


async def listen_as_before(listener: Listener, settings: PeerSettings) -> None:
    """Listen where the settings say; at the port of before if they leave it open. Raises LocalError."""
    if before := await address_of_before(settings.folder / PORT_FILE, settings.listen):
        with suppress(LocalError):  # another program has it by now
            await listener.start(before)
            return
    await listener.start(settings.listen)
    await keep_port(settings.folder / PORT_FILE, settings.listen, listener.addresses[0])


async def address_of_before(file: Path, listen: str) -> str:
    """Return `listen` with the port of before, '' if there is none or the settings name one."""
    host, port, _ = parse_address(listen)
    kept = 0 if port else await asyncio.to_thread(_kept_port, file)
    return format_address(host, kept) if kept else ""


async def keep_port(file: Path, listen: str, address: str) -> None:
    """Write down the port of `address` for the next start, if the settings' `listen` leaves it open."""
    if not parse_address(listen)[1]:
        await asyncio.to_thread(_keep, file, parse_address(address)[1])


def _kept_port(file: Path) -> int:
    """Return the port of before, 0 if there is none."""
    try:
        with file.open("rb") as opened:
            port = int(opened.read(_MAX_BYTES))
    except (OSError, ValueError):
        return 0
    return port if 0 < port < 65536 else 0


def _keep(file: Path, port: int) -> None:
    """Write a port down; that it cannot be is no reason not to run."""
    try:
        replace_file(file, b"%d\n" % port, 0o644)
    except LocalError as error:
        _log.warning("the port is not kept for the next start: %s", error)

"""Keeps the port of a peer whose settings leave it to the system (port 0): others dial the one that it had.

It is a file in the peer's folder. If another program has that port by now, the system gives another one.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from edgepool.config import PeerSettings
from edgepool.errors import LocalError
from edgepool.model.ids import format_address, parse_address
from edgepool.transport.door import Listener
from edgepool.transport.keyfiles import replace_file

PORT_FILE = "port"
_MAX_BYTES = 16

_log = logging.getLogger(__name__)


async def listen_as_before(listener: Listener, settings: PeerSettings) -> None:
    """Listen where the settings say; at the port of before if they leave it open. Raises LocalError."""
    host, port, _ = parse_address(settings.listen)
    if port:
        await listener.start(settings.listen)
        return
    if kept := await asyncio.to_thread(_kept_port, settings):
        with suppress(LocalError):  # another program has it by now
            await listener.start(format_address(host, kept))
            return
    await listener.start(settings.listen)
    await asyncio.to_thread(_keep, settings, parse_address(listener.addresses[0])[1])


def _kept_port(settings: PeerSettings) -> int:
    """Return the port of before, 0 if there is none."""
    try:
        with open(settings.folder / PORT_FILE, "rb") as file:
            port = int(file.read(_MAX_BYTES))
    except (OSError, ValueError):
        return 0
    return port if 0 < port < 65536 else 0


def _keep(settings: PeerSettings, port: int) -> None:
    """Write a port down for the next start; that it cannot be is no reason not to run."""
    try:
        replace_file(settings.folder / PORT_FILE, b"%d\n" % port, 0o644)
    except LocalError as error:
        _log.warning("the port is not kept for the next start: %s", error)

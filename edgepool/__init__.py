"""edgepool: peer-to-peer data exchange between machines on the shop floor.

async with Peer.open("gateway") as peer:
    await peer.publish("PTVA10212-03/model", path=Path("part.stl"))
    fetched = await peer.fetch("PTVA10212-02/surface")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepool.config import PeerSettings, load_peer_settings
    from edgepool.errors import (
        ConfigError,
        EdgepoolError,
        LocalError,
        Refused,
        RemoteError,
        StorageError,
        Unavailable,
    )
    from edgepool.model.twin import DataKey
    from edgepool.peer.peer import Peer

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DataKey",
    "EdgepoolError",
    "LocalError",
    "Peer",
    "PeerSettings",
    "Refused",
    "RemoteError",
    "StorageError",
    "Unavailable",
    "load_peer_settings",
]

_HOMES = {
    "Peer": "edgepool.peer.peer",
    "DataKey": "edgepool.model.twin",
    "PeerSettings": "edgepool.config",
    "load_peer_settings": "edgepool.config",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import edgepool` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'edgepool' has no attribute '{name}'")
    return getattr(import_module(_HOMES.get(name, "edgepool.errors")), name)

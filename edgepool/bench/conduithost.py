"""A conduit in a process of its own, for measurements (see processes.py)."""

from __future__ import annotations

from pathlib import Path
from time import process_time

from edgepool.bench.processes import Answer, serve
from edgepool.config import load_peer_settings
from edgepool.model.ids import PeerId, with_peer
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.identity import load_identity
from edgepool.transport.tls import TlsTransport


class ConduitHost:
    """A transport that is a conduit and wants no links."""

    def __init__(self, folder: Path) -> None:
        settings = load_peer_settings(folder / "conduit")
        self._identity = load_identity(settings)
        self._transport = TlsTransport(settings, self._identity, {})

    async def open(self) -> str:
        """Serve; return the address of this conduit."""
        await self._transport.start(self)
        return with_peer(self._transport.addresses[0], self._identity.peer)

    async def cpu_s(self) -> float:
        """Return how much processor time this process has had."""
        return process_time()

    async def end(self) -> None:
        """Serve no more."""
        await self._transport.close()

    def link_up(self, identity: PeerIdentity) -> None:
        """A link stands."""

    def link_down(self, peer: PeerId, reason: str) -> None:
        """The link is gone."""

    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        """Nothing is said to a conduit."""


def _answers(folder: Path) -> dict[str, Answer]:
    host = ConduitHost(folder)
    return {"open": host.open, "cpu_s": host.cpu_s, "end": host.end}


if __name__ == "__main__":
    serve(_answers)

"""How twin data moves between stations: directly from peer to peer, or through the relay.

Both movers put the same offers and demands on the same chains and check data against the same
manifest; they differ in the way that the bytes take [S3.3, S3.15]. `DirectData` is edgepool itself;
the other one, `RelayData`, is in relayclient.py.
"""

from __future__ import annotations

from typing import Protocol

from edgepool.model.ids import ChainId
from edgepool.model.twin import DataKey
from edgepool.peer.peer import Peer
from edgepool.workshop.events import MoverReport

FETCH_TIMEOUT_MS = 60_000


class DataMover(Protocol):
    """Brings data to where others get it from, and gets theirs. Raises what a Peer raises."""

    async def publish(self, key: DataKey, version: int, data: bytes, chain: ChainId) -> None:
        """Make `data` available and offer it on `chain`; the offer is final on return."""
        ...

    async def fetch(self, key: DataKey, version: int, chain: ChainId, *, composition: str = "") -> int:
        """Demand data on `chain`, get it, check and keep it; return its size in bytes."""
        ...

    def report(self) -> MoverReport:
        """Return what was moved so far."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class DirectData:
    """Twin data stays with its station, and goes straight to the one that needs it [S3.15]."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._waits_ms: list[int] = []

    async def publish(self, key: DataKey, version: int, data: bytes, chain: ChainId) -> None:
        """Keep `data` in this peer and offer it on `chain`."""
        await self._peer.publish(key, data, version=version, chain=chain)

    async def fetch(self, key: DataKey, version: int, chain: ChainId, *, composition: str = "") -> int:
        """Demand, find by Algorithm 2, confirm, transfer and check."""
        fetched = await self._peer.fetch(
            key,
            version=version,
            chain=chain,
            composition=composition,
            timeout_ms=FETCH_TIMEOUT_MS,
        )
        self._waits_ms.append(fetched.duration_ms)
        return fetched.size_bytes

    def report(self) -> MoverReport:
        """Return the peer's own counts."""
        return MoverReport(self._peer.status().totals, 0, tuple(self._waits_ms))

    async def close(self) -> None:
        """Do nothing: the peer closes itself."""

"""What resolution may see of the peer that it works for; the node implements it."""

from __future__ import annotations

from typing import Protocol

from edgepool.core.rights import Subject
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import OfferProof
from edgepool.model.pool import Member
from edgepool.model.twin import DataKey


class Directory(Protocol):
    """A peer's chains, neighbours and data; every answer has the same order each time."""

    def main_chains(self) -> tuple[ChainId, ...]:
        """Return the chains of the fixed pools that this peer follows."""
        ...

    def sub_chains(self) -> tuple[ChainId, ...]:
        """Return the chains of the manufacturing pools that this peer follows."""
        ...

    def offers(self, chain: ChainId, key: DataKey, version: int, *, outward: bool) -> tuple[OfferProof, ...]:
        """Return the offers of `key` on `chain` with their proofs; version 0 means the newest.

        `outward` is for others: without what policies hide from other pools.
        """
        ...

    def height(self, chain: ChainId) -> int:
        """Return the height of a chain that this peer follows."""
        ...

    def neighbours(self, chain: ChainId) -> tuple[PeerId, ...]:
        """Return the other members of `chain` that are connected."""
        ...

    def member(self, peer: PeerId) -> Member | None:
        """Return what is known of `peer`, or None."""
        ...

    def connected(self, peer: PeerId) -> bool:
        """Say whether a link to `peer` stands."""
        ...

    def holds(self, root: bytes) -> bool:
        """Say whether this peer holds the data with manifest root `root`."""
        ...

    def size_bytes(self, root: bytes) -> int:
        """Return the size of data that this peer holds."""
        ...

    def load(self) -> tuple[int, int]:
        """Return how busy this peer's uplink and processors are, both in percent."""
        ...

    def subject(self, peer: PeerId) -> Subject:
        """Return who a linked peer is by its certificate."""
        ...

    def policy(self, chain: ChainId, key: DataKey, root: bytes) -> OfferProof | None:
        """Return the proof of the policy under which this peer hands on data that `chain` offers, or None."""
        ...

    def admit(
        self, requester: PeerId, key: DataKey, root: bytes, purpose: str, now_ms: int
    ) -> tuple[ChainId | None, str]:
        """Return the chain on which this holder records a transfer to `requester`.

        None, and the condition that failed, if `requester` may not have the data.
        """
        ...

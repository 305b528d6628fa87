"""What a chain can read back of what was persisted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from msgspec import Meta

from edgepool.model.block import MAX_BLOCK_RECORDS, CertifiedBlock, Handover, Header
from edgepool.model.codec import Wire
from edgepool.model.fields import Height, MaybeHash
from edgepool.model.ids import ChainId
from edgepool.model.record import SignedRecord
from edgepool.model.vote import Certificate


@dataclass(frozen=True, slots=True)
class SavedSnapshot:
    """A stored snapshot: the state after `height`, and the handovers up to it."""

    height: int
    handovers: tuple[Handover, ...]
    state: bytes


class KeptRecord(Wire, frozen=True):
    """What stays of a pruned block: one record with all that shows it to stand."""

    header: Header
    certificate: Certificate
    record: SignedRecord
    index: Annotated[int, Meta(ge=0, lt=MAX_BLOCK_RECORDS)]
    path: Annotated[tuple[MaybeHash, ...], Meta(max_length=20)]


class BlockSource(Protocol):
    """Reads what was persisted; used to help those who are behind and to prove records."""

    def block(self, chain: ChainId, height: Height) -> CertifiedBlock | None:
        """Return the stored block at `height`, or None if it is not there (yet, or any more)."""
        ...

    def record_ids(self, chain: ChainId, height: Height) -> tuple[bytes, ...] | None:
        """Return the ids of the records of the stored block at `height`, or None if it is not there."""
        ...

    def snapshot(self, chain: ChainId) -> SavedSnapshot | None:
        """Return the stored snapshot of the chain, or None."""
        ...

    def kept(self, chain: ChainId, height: Height, index: int) -> KeptRecord | None:
        """Return a record whose block is pruned, if it was to be kept."""
        ...

    def size_bytes(self, chain: ChainId) -> int:
        """Return how much the stored blocks of the chain take, in bytes."""
        ...

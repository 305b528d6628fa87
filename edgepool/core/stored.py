"""What a peer must not forget, and what a chain can read back of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from msgspec import Meta

from edgepool.model.block import MAX_BLOCK_RECORDS, CertifiedBlock, Handover, Header
from edgepool.model.codec import Wire
from edgepool.model.fields import Height, MaybeHash
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis
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


# --- what is stored -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VoteState:
    """What a member has said on a chain; `state` replaces what was stored before for `chain`."""

    chain: ChainId
    state: bytes


@dataclass(frozen=True, slots=True)
class NewChain:
    """A chain begins."""

    genesis: Genesis


@dataclass(frozen=True, slots=True)
class CommitBlock:
    """A block stands; it goes behind the last one of its chain."""

    certified: CertifiedBlock


@dataclass(frozen=True, slots=True)
class SaveSnapshot:
    """The state of a chain after `height`, which replaces any earlier snapshot of it.

    `state` is what `ChainState.snapshot` returned, `handovers` are those up to `height`. `adopted`: it comes
    from another peer, and the chain's blocks begin at `height` + 1 here.
    """

    chain: ChainId
    height: int
    handovers: tuple[Handover, ...]
    state: bytes
    adopted: bool


@dataclass(frozen=True, slots=True)
class Prune:
    """Blocks up to `height` may go (a snapshot at or above it is stored).

    The records at `keep`, pairs of height and index, stay provable: see `BlockSource.kept`.
    """

    chain: ChainId
    height: int
    keep: tuple[tuple[int, int], ...]


Item = VoteState | NewChain | CommitBlock | SaveSnapshot | Prune
"""What a peer must not forget."""

"""What a contract sees, and what a contract is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from edgepool.core.ledger.roster import Roster
from edgepool.core.ledger.trust import Trust
from edgepool.core.rights import Standing, Subject
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import PoolKind
from edgepool.model.record import SignedRecord
from edgepool.model.twin import DataKey

if TYPE_CHECKING:
    from edgepool.core.ledger.facts import OfferEntry, PolicyEntry, TaskState

VERDICTS_KEPT = 1024
"""How many verdicts on signatures inside records a contract remembers, for its several drafts."""


class View(Protocol):
    """What a contract may read, and never change: the chain's state, or a draft's layer over it.

    `height` is that of the last block, `horizon` the height above which records are still known by
    their ids.
    """

    network: str
    chain: ChainId
    kind: PoolKind
    height: int
    horizon: int
    roster: Roster
    trust: Trust

    @property
    def coordinator(self) -> PeerId:
        """Whoever formed the pool, under its present key."""
        ...

    def is_member(self, peer: PeerId) -> bool:
        """Say whether `peer` votes on the next height."""
        ...

    def may_write(self, peer: PeerId) -> bool:
        """Say whether `peer` votes on the next height, or on the one after it."""
        ...

    def author(self, peer: PeerId) -> tuple[Subject, tuple[Standing, ...]]:
        """Return who `peer` is by this chain, and on what footings it may write here; () if on none."""
        ...

    def has_record(self, record_id: bytes) -> bool:
        """Say whether a record above the horizon is on the chain already."""
        ...

    def task(self, task: str) -> TaskState | None:
        """Return a task, or None."""
        ...

    def newest_version(self, key: DataKey) -> int:
        """Return the newest version offered of `key`; 0 if none is."""
        ...

    def offers(self, key: DataKey, version: int = 0) -> tuple[OfferEntry, ...]:
        """Return the offers of one version of `key` (0: of the newest)."""
        ...

    def policies(self) -> Mapping[PeerId, Mapping[DataKey, PolicyEntry]]:
        """Return all data policies by author and pattern."""
        ...

    def policies_of(self, owner: PeerId) -> Mapping[DataKey, PolicyEntry]:
        """Return the data policies of one author by their patterns."""
        ...

    def anchored(self, author: PeerId, sub_chain: ChainId) -> int:
        """Return the height up to which `author` has anchored `sub_chain`; 0 if it has not."""
        ...

    def values(self, contract: str) -> Mapping[str, bytes]:
        """Return what the users' contract of this name has written, by key, in the order of the keys."""
        ...


class Contract(Protocol):
    """The rule for one kind of record."""

    name: str
    version: int

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why `signed` may not stand after what `view` knows, or return ''."""
        ...

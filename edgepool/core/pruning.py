"""When a peer takes a snapshot of a chain and drops old blocks [S3.9]: its own policy, no rule of the chain.

Snapshots are taken so that a restart has little to replay, but not so often that they are most of what is
written: flash wears out. Blocks up to the last snapshot may go once the chain's horizon has passed them,
because the ids of all records that could come again are in the blocks behind the horizon.

A snapshot replaces the one before, and the block behind it certifies it, so it is stored with that block:
until then, which may be long, nobody could be handed any.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgepool.core.ledger.snapshot import read_snapshot
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import BlockSource, Effect, Persist, Prune, SavedSnapshot, SaveSnapshot
from edgepool.core.snapshots import transferable
from edgepool.errors import DecodeError
from edgepool.model.block import Handover
from edgepool.model.ids import ChainId

SNAPSHOT_RECORDS = 8_192
SNAPSHOT_BLOCKS = 1_024
"""A snapshot is due when so many records or blocks have come since the last one."""
CHECK_BLOCKS = 64
"""How many blocks lie between two looks at the size of what is stored."""


class Pruner:
    """Keeps what a chain takes on disk near `limit_bytes`; its effects go behind the commit of the block."""

    def __init__(self, source: BlockSource, chain: ChainId, limit_bytes: int) -> None:
        self._source = source
        self._chain = chain
        self._limit_bytes = limit_bytes
        saved = source.snapshot(chain)
        self._saved_height = 0 if saved is None else saved.height
        self._saved_bytes = 0 if saved is None else len(saved.state)
        self._coming: SaveSnapshot | None = None
        self._pruned_height = 0
        self._first: int | None = None
        self._look_at = 0

    def adopted(self, height: int, size_bytes: int) -> None:
        """The chain goes on from a stored snapshot at `height`; blocks up to it are not here."""
        self._saved_height, self._saved_bytes = height, size_bytes
        self._coming = None
        self._pruned_height = height
        self._first = height + 1

    def after_block(self, state: ChainState, handovers: Sequence[Handover]) -> list[Effect]:
        """Return what is to be stored or dropped now that `state` has grown by a block.

        `handovers` are those up to the height of `state`.
        """
        coming, self._coming = self._coming, None
        if coming is not None:
            self._saved_height, self._saved_bytes = coming.height, len(coming.state)
            return [Persist(coming)]
        height = state.height
        due = self._due(state) and height >= self._look_at
        if not due and height % CHECK_BLOCKS:
            return []
        if due:
            self._look_at = height + CHECK_BLOCKS
        stored_bytes = self._source.size_bytes(self._chain)
        effects = self._prune(state, stored_bytes)
        grown_bytes = self._share(stored_bytes, height - self._saved_height, height)
        if grown_bytes > self._limit_bytes // 4 or (due and grown_bytes >= self._saved_bytes):
            self._take(state, handovers)
        return effects

    def _due(self, state: ChainState) -> bool:
        if state.height - self._saved_height >= SNAPSHOT_BLOCKS:
            return True
        return state.records_above(self._saved_height) >= SNAPSHOT_RECORDS

    def _take(self, state: ChainState, handovers: Sequence[Handover]) -> None:
        snapshot = SavedSnapshot(state.height, tuple(handovers), state.snapshot())
        # Else, without its blocks, nobody could join the pool any more, nor this peer start again.
        if transferable(snapshot) and _readable(snapshot):
            self._coming = SaveSnapshot(
                self._chain, state.height, snapshot.handovers, snapshot.state, adopted=False
            )

    def _prune(self, state: ChainState, stored_bytes: int) -> list[Effect]:
        """Drop what may go if all takes too much, and enough may go that it is worth the while."""
        height = min(self._saved_height, state.horizon)
        first = max(self._first_stored(), self._pruned_height + 1)
        droppable_bytes = self._share(stored_bytes, height - first + 1, state.height)
        if stored_bytes <= self._limit_bytes // 2 or droppable_bytes <= self._limit_bytes // 16:
            return []
        self._pruned_height, self._first = height, None
        return [Persist(Prune(self._chain, height, state.standing_places(height)))]

    def _share(self, stored_bytes: int, blocks: int, height: int) -> int:
        """Return about how much so many blocks take, by their share of all up to `height`."""
        return stored_bytes * max(0, blocks) // (height - self._first_stored() + 1)

    def _first_stored(self) -> int:
        """Return the lowest height whose block is stored: the store drops whole segments only."""
        if self._first is None:
            missing, stored = 0, self._saved_height + 1
            while stored - missing > 1:
                middle = (missing + stored) // 2
                if self._source.block(self._chain, middle) is None:
                    missing = middle
                else:
                    stored = middle
            self._first = stored
        return self._first


def _readable(snapshot: SavedSnapshot) -> bool:
    """Say whether a state is within the bounds of its form; one that was taken over may have come to them."""
    try:
        read_snapshot(snapshot.state)
    except DecodeError:
        return False
    return True

"""When a peer takes a snapshot of a chain and drops old blocks [S3.9]: its own policy, no rule of the chain.

A snapshot is of use once the chain's horizon has passed it: whoever starts from it then finds the ids of all
records that could come again in the blocks after it. So the blocks up to it go only then, and no other one is
taken before: a chain that grows by a snapshot's worth within one window would never be pruned else.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import BlockSource, Effect, Persist, Prune, SavedSnapshot, SaveSnapshot
from edgepool.core.snapshots import transferable
from edgepool.model.block import Handover
from edgepool.model.ids import ChainId

CHECK_BLOCKS = 64
"""How many blocks lie between two looks at the size of what is stored."""


class Pruner:
    """Keeps what a chain takes on disk near `limit_bytes`; its effects go behind the commit of the block."""

    def __init__(self, source: BlockSource, chain: ChainId, limit_bytes: int) -> None:
        self._source = source
        self._chain = chain
        self._quarter_bytes = limit_bytes // 4
        saved = source.snapshot(chain)
        self._saved_height = 0 if saved is None else saved.height
        self._pruned_height = 0
        self._first = 1
        if saved is not None and source.block(chain, saved.height) is None:
            self.adopted(saved.height)

    def adopted(self, height: int) -> None:
        """The chain goes on from a snapshot at `height` that is stored; blocks up to it are not here."""
        self._saved_height = self._pruned_height = height
        self._first = height + 1

    def after_block(self, state: ChainState, handovers: Sequence[Handover]) -> list[Effect]:
        """Return what is to be stored or dropped now that `state` has grown by a block.

        `handovers` are those up to the height of `state`.
        """
        saved = self._saved_height
        if saved > self._pruned_height:
            if saved > state.horizon:
                return []
            self._pruned_height = saved
            return [Persist(Prune(self._chain, saved, tuple(state.standing_places(saved))))]
        if state.height % CHECK_BLOCKS or self._grown_bytes(state.height) <= self._quarter_bytes:
            return []
        snapshot = SavedSnapshot(state.height, tuple(handovers), state.snapshot())
        if not transferable(snapshot):
            return []  # without its blocks nobody could join the pool any more
        self._saved_height = state.height
        return [Persist(SaveSnapshot(self._chain, state.height, snapshot.handovers, snapshot.state, False))]

    def _grown_bytes(self, height: int) -> int:
        """Return about how much the blocks after the last snapshot take, by their share of all blocks."""
        self._first = self._first_stored()
        grown = height - self._saved_height
        return self._source.size_bytes(self._chain) * grown // (height - self._first + 1)

    def _first_stored(self) -> int:
        """Return the lowest height whose block is stored; those up to the last snapshot may be gone."""
        missing, stored = self._first - 1, self._saved_height + 1
        while stored - missing > 1:
            middle = (missing + stored) // 2
            if self._source.block(self._chain, middle) is None:
                missing = middle
            else:
                stored = middle
        return stored

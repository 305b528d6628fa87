"""The records of the window, for a peer that has taken over a state without the blocks before it [S3.9].

Until it knows all ids that could come again it votes for no block with a record that might stand there
already, and a pool that waits for its vote makes no blocks that would move the horizon on. So it asks for the
blocks between the horizon and the snapshot, which everybody keeps, and takes them backwards: each is the one
that the block after it names, whoever sends it.
Nothing of them is stored; after a restart they are fetched again.
"""

from __future__ import annotations

from edgepool.core.consensus.catchup import MAX_BATCH_BLOCKS
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import BlockSource, Effect, Misbehaved, Notify, Send
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Blocks, Status

ASK_MS = 250
MOST_ASK_MS = 8_000
"""How often somebody is asked, one after the other; twice as long whenever all were asked in vain."""


class WindowFetcher:
    """Fetches the blocks whose records a state does not know, for one chain of `me`."""

    def __init__(self, me: PeerId, source: BlockSource, chain: ChainId) -> None:
        self.deadline: int | None = None
        """The monotonic time in ms at which to call `wake`, if any."""
        self._me = me
        self._source = source
        self._chain = chain
        self._pause_ms = ASK_MS
        self._asked = 0
        self._peer = PeerId("")
        self._span = MAX_BATCH_BLOCKS
        self._wanted: tuple[int, bytes] = (0, b"")

    def begin(self, state: ChainState, now_ms: int) -> None:
        """See whether records are unknown to `state`, and fetch them from now on."""
        self.deadline = now_ms + ASK_MS if state.unknown_height else None
        self._pause_ms, self._asked, self._span = ASK_MS, 0, MAX_BATCH_BLOCKS

    def wake(self, state: ChainState, now_ms: int) -> list[Effect]:
        """Ask the next member for the blocks up to the one that is wanted."""
        self.deadline = None
        height = state.unknown_height
        others = [peer for peer in state.members if peer != self._me]
        if not height or not others:
            return []
        peer = self._peer = others[self._asked % len(others)]
        self._asked += 1
        if self._asked % len(others) == 0:
            self._pause_ms = min(2 * self._pause_ms, MOST_ASK_MS)
        self.deadline = now_ms + self._pause_ms
        first = max(state.horizon + 1, height - self._span + 1)
        return [Send(peer, Status(self._chain, first, 0, 0, 0))]

    def take(self, peer: PeerId, message: Blocks, state: ChainState, now_ms: int) -> list[Effect]:
        """Let `state` know the records of the blocks that fit."""
        if self.deadline is None:
            return []
        blocks = {certified.block.header.height: certified.block for certified in message.blocks}
        height = state.unknown_height
        if height not in blocks:
            if height and peer == self._peer and min(blocks) <= height:
                self._span = max(1, self._span // 2)  # such a batch does not reach so far
            return []
        wanted = self._id_of(state, height)
        while height and height in blocks:
            block = blocks[height]
            if block.header.id != wanted or block.body_problem():
                return [Notify(Misbehaved(peer, "a block that is not the chain's"))]
            state.recall(block)
            wanted, height = block.header.previous, state.unknown_height
            self._wanted = (height, wanted)
        self._pause_ms = ASK_MS
        self.deadline = now_ms + ASK_MS if height else None
        return []

    def _id_of(self, state: ChainState, height: int) -> bytes:
        """Return the id of the block at `height`, which the one behind it names."""
        if self._wanted[0] == height:
            return self._wanted[1]
        if height == state.height:
            return state.last_block_id
        after = self._source.block(self._chain, height + 1)
        assert after is not None, "the blocks behind an adopted state are stored"
        return after.block.header.previous

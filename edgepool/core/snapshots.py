"""A chain's state in pages, for peers that need blocks which are pruned: the side that serves them.

What is sent is believed by nobody: the other side (adoption.py) checks the head's votes and recomputes the
state's root. So all that is bounded here is what a peer can make this one load and send.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgepool.core.consensus.catchup import Ration
from edgepool.core.machine import BlockSource, Effect, SavedSnapshot, Send
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import (
    MAX_HANDOVERS,
    MAX_SNAPSHOT_BYTES,
    SNAPSHOT_PAGE_BYTES,
    SnapshotHead,
    SnapshotPage,
    SnapshotRequest,
)

IDLE_MS = 30_000
"""How long a snapshot stays in memory after it was last asked for."""

WINDOW_MS = 60_000
SPARE_PAGES = 16
"""In WINDOW_MS a peer is sent as many pages as the snapshot has, and SPARE_PAGES that were lost."""
MAX_BUDGETS = 256
"""How many peers may ask for pages at a time: the last ones that were sent a head."""

HEAD_PAUSE_MS = 1_000
HEAD_MOST_MS = 30_000


def pages_of(size_bytes: int) -> int:
    """Return into how many pages a snapshot of `size_bytes` is cut."""
    return -(-size_bytes // SNAPSHOT_PAGE_BYTES)


def transferable(saved: SavedSnapshot) -> bool:
    """Say whether a snapshot can be handed to other peers at all, its size and handovers being bounded."""
    return 0 < len(saved.state) <= MAX_SNAPSHOT_BYTES and len(saved.handovers) <= MAX_HANDOVERS


@dataclass(slots=True)
class _Budget:
    """How many pages a peer may still be sent until `until_ms`; none before it was sent a head."""

    granted: bool = False
    until_ms: int = 0
    pages: int = 0

    def spend(self, whole: int, now_ms: int) -> bool:
        """Say whether one more page may be sent, of a snapshot with `whole` pages."""
        if self.until_ms <= now_ms:
            self.until_ms, self.pages = now_ms + WINDOW_MS, whole + SPARE_PAGES
        self.pages -= 1
        return self.pages >= 0


class SnapshotServer:
    """Offers and sends the stored snapshot of one chain, of which at most one is held in memory."""

    def __init__(self, source: BlockSource, chain: ChainId) -> None:
        self._source = source
        self._chain = chain
        self._heads = Ration(HEAD_PAUSE_MS, HEAD_MOST_MS)
        self._budgets: dict[PeerId, _Budget] = {}
        self._saved: SavedSnapshot | None = None
        self._used_ms = 0

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which to call `wake`, if any."""
        return None if self._saved is None else self._used_ms + IDLE_MS

    def offer(self, peer: PeerId, first: int, now_ms: int) -> list[Effect]:
        """Send `peer`, which lacks the blocks from `first` on, a head if they are pruned here."""
        if self._source.block(self._chain, first) is not None:
            return []
        return self._send_head(peer, first, now_ms)

    def page(self, peer: PeerId, request: SnapshotRequest, now_ms: int) -> list[Effect]:
        """Send the page asked for, to a peer that was sent a head on this link.

        A head again if a newer snapshot has replaced that one.
        """
        budget = self._budgets.get(peer)
        if budget is None or not budget.granted:
            return []
        saved = self._held(now_ms)
        if saved is None:
            return []
        if saved.height != request.height:
            return self._send_head(peer, request.height + 1, now_ms)
        start = request.page * SNAPSHOT_PAGE_BYTES
        if start >= len(saved.state) or not budget.spend(pages_of(len(saved.state)), now_ms):
            return []
        data = saved.state[start : start + SNAPSHOT_PAGE_BYTES]
        return [Send(peer, SnapshotPage(self._chain, saved.height, request.page, data))]

    def forget(self, peer: PeerId) -> None:
        """A link to `peer` has come up: what was sent before may have been lost."""
        self._heads.forget(peer)
        if peer in self._budgets:
            self._budgets[peer].granted = False

    def wake(self, now_ms: int) -> None:
        """Drop from memory what nobody asks for any more."""
        if self._saved is not None and self._used_ms + IDLE_MS <= now_ms:
            self._saved = None

    def _send_head(self, peer: PeerId, first: int, now_ms: int) -> list[Effect]:
        if not self._heads.allows(peer, first, now_ms, at_once=False):
            return []
        if self._saved is not None and self._source.block(self._chain, self._saved.height + 1) is None:
            self._saved = None  # what followed it is pruned, so there is a newer one
        saved = self._held(now_ms)
        if saved is None or saved.height < first or not transferable(saved):
            return []
        after = self._source.block(self._chain, saved.height + 1)
        if after is None:
            return []
        header, certificate = after.block.header, after.certificate
        size_bytes = len(saved.state)
        head = SnapshotHead(self._chain, saved.height, size_bytes, header, certificate, saved.handovers)
        if peer not in self._budgets:
            if len(self._budgets) >= MAX_BUDGETS:
                del self._budgets[next(iter(self._budgets))]
            self._budgets[peer] = _Budget()
        self._budgets[peer].granted = True
        return [Send(peer, head)]

    def _held(self, now_ms: int) -> SavedSnapshot | None:
        """Return the snapshot in memory, read first if there is none there."""
        if self._saved is None:
            self._saved = self._source.snapshot(self._chain)
        self._used_ms = now_ms
        return self._saved

"""A chain's state in pages, for peers that need blocks which are pruned: the side that takes it over.

Rules. A head is checked before a page is asked for: its votes must be those of the roster to which its
handovers lead from the genesis, and they may not contradict the handovers that this peer has seen itself. All
pages of one attempt come from one peer, one at a time, so that it is clear who has lied. Taking a snapshot
over costs this peer its older blocks, so it does that only if no blocks come for a while. One head is fetched
at a time, a few others wait; at most one snapshot is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgepool.core.consensus.catchup import Ration
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import Effect, Misbehaved, Notify, Send
from edgepool.core.snapshots import pages_of
from edgepool.errors import DecodeError
from edgepool.model.block import Handover, certified_by, changed_roster, roster_after
from edgepool.model.ids import PeerId
from edgepool.model.message import (
    MAX_SNAPSHOT_BYTES,
    SNAPSHOT_PAGE_BYTES,
    SnapshotHead,
    SnapshotPage,
    SnapshotRequest,
)
from edgepool.model.pool import Genesis, Member

PATIENCE_MS = 2_000
"""How long no block may have come before a snapshot is fetched instead."""
MOST_PATIENCE_MS = 30_000
"""When it is fetched anyway: somebody may hand out blocks one by one to keep this peer behind."""

PAGE_TIMEOUT_MS = 2_000
MOST_TIMEOUT_MS = 16_000
TRIES = 4
"""How often a page is asked for before its peer counts as silent; the timeout doubles each time."""

START_ALLOWANCE_MS = 90_000
PAGE_ALLOWANCE_MS = 4_000
"""How long a whole fetch from one peer may take: an allowance, and one more for each page."""

SILENT_PAUSE_MS = 30_000
LIAR_PAUSE_MS = 600_000
"""How long a peer is not asked again that fell silent (twice as long each time), or that lied."""
MAX_PAUSED = 256

MOST_HEIGHT = 2**40
"""No chain comes so far; and near the last height that can be written, this peer could not go on."""

MAX_HEADS = 4
"""Heads of other peers that wait for their turn."""
MAX_REPLACED = 3
"""How often a peer may replace its snapshot by a newer one while it is fetched."""
KEPT_MS = 60_000
"""How long the pages of a fetch that broke off are kept for going on with it."""
HEAD_PAUSE_MS = 5_000
HEAD_MOST_MS = 40_000


@dataclass(frozen=True, slots=True)
class Adopted:
    """The state after `height`, as its pool has certified it; `data` is `state` encoded.

    `handovers` are those up to `height`. Persist SaveSnapshot(adopted=True), and go on from there.
    """

    height: int
    handovers: tuple[Handover, ...]
    state: ChainState
    data: bytes


Output = Effect | Adopted
Restore = Callable[[Genesis, bytes], ChainState]
"""Returns the state that bytes encode; DecodeError if they encode none. Costs a pass over all of it."""


@dataclass(slots=True)
class _Fetch:
    """Pages of one snapshot from one peer, as far as they have come."""

    peer: PeerId
    head: SnapshotHead
    ends_ms: int
    replaced: int
    pages: list[bytes] = field(default_factory=list)
    tries: int = 0
    timeout_ms: int = PAGE_TIMEOUT_MS

    @property
    def snapshot(self) -> tuple[PeerId, bytes, int]:
        """What is fetched, and from whom."""
        return self.peer, self.head.header.id, self.head.size_bytes

    @property
    def missing_bytes(self) -> int:
        """How many bytes have not come yet; all pages but the last are full."""
        return self.head.size_bytes - len(self.pages) * SNAPSHOT_PAGE_BYTES


class SnapshotFetcher:
    """Fetches one snapshot of one chain at a time, for a peer that lacks blocks which others have pruned."""

    def __init__(self, genesis: Genesis, restore: Restore = ChainState.restore) -> None:
        self._genesis = genesis
        self._chain = genesis.chain
        self._restore = restore
        self._own: tuple[int, tuple[Handover, ...]] = (0, ())
        self._fetch: _Fetch | None = None
        self._asking = False
        self._at_ms = 0
        self._patient_until_ms = 0
        self._waiting: dict[PeerId, SnapshotHead] = {}
        self._broken: _Fetch | None = None
        self._broken_until_ms = 0
        self._paused: dict[PeerId, tuple[int, int]] = {}
        self._heads = Ration(HEAD_PAUSE_MS, HEAD_MOST_MS)

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which to call `wake`, if any."""
        if self._fetch is not None:
            return self._at_ms
        return None if self._broken is None else self._broken_until_ms

    # --- inputs ---------------------------------------------------------------------------------

    def head(
        self,
        peer: PeerId,
        message: SnapshotHead,
        own_height: int,
        own_handovers: Sequence[Handover],
        now_ms: int,
    ) -> list[Output]:
        """Take what `peer` has instead of blocks; `own_handovers` are this peer's, up to `own_height`.

        A head that does not hold is told as misbehaviour. Costs the votes of each handover that is new.
        """
        self._own = (own_height, tuple(own_handovers))
        if message.height <= own_height or self._paused.get(peer, (0, 0))[0] > now_ms:
            return []
        fetch = self._fetch
        if fetch is not None and fetch.peer != peer:
            if peer in self._waiting or len(self._waiting) < MAX_HEADS:
                self._waiting[peer] = message
            return []
        if fetch is not None and message.height <= fetch.head.height:
            return []
        if not self._heads.allows(peer, message.height, now_ms, at_once=False):
            return []
        if fetch is None:
            self._patient_until_ms = now_ms + MOST_PATIENCE_MS
            self._at_ms = now_ms + PATIENCE_MS
            return self._take_up(peer, message, 0, now_ms)
        if fetch.replaced == MAX_REPLACED:
            return self._leave(SILENT_PAUSE_MS, now_ms)
        return self._take_up(peer, message, fetch.replaced + 1, now_ms)

    def page(self, peer: PeerId, message: SnapshotPage, now_ms: int) -> list[Output]:
        """Take a page; the last one ends in Adopted, or is told as misbehaviour."""
        fetch = self._fetch
        if fetch is None or not self._asking or (peer, message.height) != (fetch.peer, fetch.head.height):
            return []
        if message.page != len(fetch.pages):
            return []  # of an earlier request, come twice or late
        if len(message.data) != min(SNAPSHOT_PAGE_BYTES, fetch.missing_bytes):
            return self._blame("a page of a snapshot has another size than the head says", now_ms)
        fetch.pages.append(message.data)
        fetch.tries = 0
        if fetch.missing_bytes <= 0:
            return self._finish(fetch, now_ms)
        if now_ms >= fetch.ends_ms:
            return self._leave(SILENT_PAUSE_MS, now_ms)
        return self._ask(fetch, now_ms)

    def advanced(self, own_height: int, now_ms: int) -> None:
        """This peer's chain has grown by blocks: a snapshot can wait, or is not wanted any more."""
        self._waiting = {peer: head for peer, head in self._waiting.items() if head.height > own_height}
        fetch = self._fetch
        if fetch is not None and fetch.head.height <= own_height:
            self._stop()
        elif fetch is not None and not self._asking:
            self._at_ms = min(now_ms + PATIENCE_MS, self._patient_until_ms)

    def peer_down(self, peer: PeerId, now_ms: int) -> list[Output]:
        """The link to `peer` is gone: go on with another one, if there is one."""
        self._waiting.pop(peer, None)
        if self._fetch is None or self._fetch.peer != peer:
            return []
        return self._leave(0, now_ms)

    def wake(self, now_ms: int) -> list[Output]:
        """Do what is due: ask, ask again, or go on with another peer."""
        if self._broken is not None and self._broken_until_ms <= now_ms:
            self._broken = None
        fetch = self._fetch
        if fetch is None or self._at_ms > now_ms:
            return []
        if self._asking:
            fetch.tries += 1
            fetch.timeout_ms = min(2 * fetch.timeout_ms, MOST_TIMEOUT_MS)
        self._asking = True
        if fetch.tries == TRIES or now_ms >= fetch.ends_ms:
            return self._leave(SILENT_PAUSE_MS, now_ms)
        return self._ask(fetch, now_ms)

    # --- the fetch under way --------------------------------------------------------------------

    def _take_up(self, peer: PeerId, head: SnapshotHead, replaced: int, now_ms: int) -> list[Output]:
        """Begin with a head if it holds; ask for its next page unless this peer is patient yet."""
        ends_ms = now_ms + START_ALLOWANCE_MS + PAGE_ALLOWANCE_MS * pages_of(head.size_bytes)
        fetch = self._fetch = _Fetch(peer, head, ends_ms, replaced)
        own_height, own_handovers = self._own
        problem = head_problem(head, self._genesis, own_height, own_handovers)
        if problem:
            return self._blame(f"a snapshot that does not hold: {problem}", now_ms)
        if self._broken is not None and self._broken.snapshot == fetch.snapshot:
            fetch.pages = self._broken.pages
        self._broken = None
        return self._ask(fetch, now_ms) if self._asking else []

    def _ask(self, fetch: _Fetch, now_ms: int) -> list[Output]:
        self._at_ms = now_ms + fetch.timeout_ms
        request = SnapshotRequest(self._chain, fetch.head.height, len(fetch.pages))
        return [Send(fetch.peer, request)]

    def _finish(self, fetch: _Fetch, now_ms: int) -> list[Output]:
        """Make a state of the pages, and believe it if the header does."""
        header = fetch.head.header
        data = b"".join(fetch.pages)
        fetch.pages.clear()
        try:
            state = self._restore(self._genesis, data)
        except DecodeError as error:
            return self._blame(f"a snapshot that cannot be read: {error}", now_ms)
        problem = "its root is not the header's" if state.root != header.state_root else ""
        problem = problem or state.header_problem(header)
        # Two that cancel each other could be left out unseen; then honest heads would seem to contradict us.
        decided = state.change_number - 1 - (state.pending_change is not None)
        if not problem and len(fetch.head.handovers) != decided:
            problem = f"{decided} changes of the roster are in force, its head has other handovers"
        if problem:
            return self._blame(f"a snapshot that its header does not certify: {problem}", now_ms)
        self._stop()
        return [Adopted(fetch.head.height, fetch.head.handovers, state, data)]

    def _blame(self, reason: str, now_ms: int) -> list[Output]:
        """Tell that the present peer has lied, believe nothing of it, and go on with another one."""
        assert self._fetch is not None
        fault = Notify(Misbehaved(self._fetch.peer, reason))
        self._fetch.pages.clear()
        return [fault, *self._leave(LIAR_PAUSE_MS, now_ms)]

    def _leave(self, pause_ms: int, now_ms: int) -> list[Output]:
        """Ask the present peer nothing for `pause_ms`, keep what it has sent, and go on with another one."""
        left = self._fetch
        assert left is not None
        if pause_ms:
            self._pause(left.peer, pause_ms, now_ms)
        if left.pages:
            self._broken, self._broken_until_ms = left, now_ms + KEPT_MS
        for peer, head in tuple(self._waiting.items()):
            del self._waiting[peer]
            return self._take_up(peer, head, 0, now_ms)
        self._stop()
        return []

    def _pause(self, peer: PeerId, pause_ms: int, now_ms: int) -> None:
        """Ask `peer` nothing for that long; longer if it was left before, so that others have a turn."""
        _, before_ms = self._paused.pop(peer, (0, 0))
        length_ms = min(max(pause_ms, 2 * before_ms), LIAR_PAUSE_MS)
        if len(self._paused) >= MAX_PAUSED:
            del self._paused[next(iter(self._paused))]
        self._paused[peer] = (now_ms + length_ms, length_ms)

    def _stop(self) -> None:
        self._fetch, self._asking = None, False
        self._waiting.clear()


def head_problem(
    head: SnapshotHead, genesis: Genesis, own_height: int, own_handovers: Sequence[Handover]
) -> str:
    """Say why a head is not to be believed by a peer with that height and those handovers, or return ''.

    Costs the signature checks of a certificate for each handover above the own height, and of the head's.
    """
    network, chain = genesis.invitation.network, genesis.chain
    heights = [handover.header.height for handover in head.handovers]
    if head.chain != chain:
        return "it is of another chain"
    if head.header.height != head.height + 1:
        return "its header is not that of the next height"
    if head.height > MOST_HEIGHT:
        return "no chain comes to its height"
    if not 1 <= head.size_bytes <= MAX_SNAPSHOT_BYTES:
        return f"it has more than {MAX_SNAPSHOT_BYTES} bytes"
    if heights != sorted(heights) or any(height > head.height for height in heights):
        return "its handovers are out of order"
    if any(handover.header.members_hash == handover.header.next_members_hash for handover in head.handovers):
        return "one of its handovers changes nothing"
    shared = sum(height <= own_height for height in heights)
    if [_change(one) for one in head.handovers[:shared]] != [_change(one) for one in own_handovers]:
        return "its handovers contradict this peer's own chain"
    present: Sequence[Member] = genesis.invitation.members
    for own in own_handovers:
        present = changed_roster(present, own.outgoing, own.incoming)
    roster = roster_after(network, chain, present, head.handovers[shared:])
    if isinstance(roster, str):
        return roster
    return certified_by(head.header, head.certificate, network, chain, roster)


def _change(handover: Handover) -> tuple[bytes, str, Member | None]:
    return handover.header.id, handover.outgoing, handover.incoming

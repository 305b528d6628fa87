"""Helping those who are behind, and being behind oneself: certified blocks in and out.

A batch is taken only from its first missing height on, and only while it continues what is queued;
a bad block empties the queue, so a liar costs one batch. Answers to Status are rationed for each
peer: one for each place it says it is at, and again only after a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from edgepool.config import ConsensusSettings
from edgepool.core.consensus.application import Application
from edgepool.core.machine import BlockSource, Broadcast, Effect, Send
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import encode
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Blocks, Polka, Proposal, Status, Votes

MAX_BATCH_BLOCKS = 32
MAX_BATCH_BYTES = 512 * 1024
EARLY_VOTES = 64
EARLY_BLOCKS = 1
"""Votes, and proposals or polkas, of the next height that are kept for each sender."""
PEERS_RATIONED = 1024
"""How many peers' last answers are remembered; strangers may ask too."""


class Company:
    """Who is on a chain at one height, in the eyes of `me`, and how far each has been heard to be.

    `members` vote on this height, `members_before` did on the last, `peers` are the members but for `me`;
    `listeners` are told of blocks up to the height that stands with each.
    """

    def __init__(self, me: PeerId, app: Application) -> None:
        self.members: tuple[PeerId, ...] = app.members()
        self.members_before = self.members
        self.peers: tuple[PeerId, ...] = ()
        self.listeners: Mapping[PeerId, int] = {}
        self._me = me
        self._app = app
        self._ahead: dict[PeerId, int] = {}
        self.meet()

    def meet(self) -> list[PeerId]:
        """Learn who is there from the present height on; return who was not known before."""
        known = {**dict.fromkeys(self.peers), **self.listeners}
        self.members_before, self.members = self.members, self._app.members()
        self.peers = tuple(peer for peer in self.members if peer != self._me)
        self.listen()
        self._ahead = {peer: height for peer, height in self._ahead.items() if self.knows(peer)}
        return [peer for peer in (*self.peers, *self.listeners) if peer not in known]

    def listen(self) -> None:
        """Learn who is told of blocks without a vote."""
        self.listeners = {
            peer: last
            for peer, last in self._app.listeners().items()
            if peer != self._me and peer not in self.members
        }

    def knows(self, peer: PeerId) -> bool:
        """Say whether `peer` votes or listens."""
        return peer in self.peers or peer in self.listeners

    def heard(self, peer: PeerId, height: int) -> None:
        """Note that `peer` says it is at `height`; what strangers say is not kept."""
        if self.knows(peer):
            self._ahead[peer] = height

    def height_of(self, peer: PeerId) -> int:
        """Return where `peer` was last heard to be; 0 if nowhere."""
        return self._ahead.get(peer, 0)

    def anybody_past(self, height: int) -> bool:
        """Say whether anybody has been heard of at a later height."""
        return any(heard > height for heard in self._ahead.values())

    def gone_past(self, height: int) -> bool:
        """Say whether more members than may lie have been heard of at a later height."""
        past = [peer for peer in self.peers if self.height_of(peer) > height]
        return len(past) > (len(self.members) - 1) // 3


class BlockQueue:
    """Certified blocks in rising order that wait to be decided one at a time."""

    def __init__(self) -> None:
        self._queue: deque[tuple[PeerId, CertifiedBlock]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def offer(self, peer: PeerId, blocks: Sequence[CertifiedBlock], height: int) -> None:
        """Queue what continues the queue, or starts at `height` if it is empty; drop the rest."""
        for certified in blocks:
            wanted = self._queue[-1][1].block.header.height + 1 if self._queue else height
            if certified.block.header.height == wanted and len(self._queue) < MAX_BATCH_BLOCKS:
                self._queue.append((peer, certified))

    def take(self, height: int) -> tuple[PeerId, CertifiedBlock] | None:
        """Return the block of `height` and who sent it, if it is queued; drop what is older."""
        while self._queue and self._queue[0][1].block.header.height < height:
            self._queue.popleft()
        return self._queue.popleft() if self._queue else None

    def clear(self) -> None:
        """Drop everything: what follows a bad block is not to be believed."""
        self._queue.clear()


def certified_problem(
    certified: CertifiedBlock, network: str, chain: ChainId, members: Sequence[PeerId], height: int
) -> str:
    """Say why `certified` is not a decision of `members` for `height`, or return ''.

    What only the chain can judge (parent, records, proposer) is not looked at.
    """
    header, certificate = certified.block.header, certified.certificate
    if (header.network, header.chain, header.height) != (network, chain, height):
        return "it belongs to another network, chain or height"
    if (certificate.height, certificate.block_id) != (height, header.id):
        return "the certificate is for another block"
    return certified.block.body_problem() or certificate.problem(network, chain, members)


def batch(source: BlockSource, chain: ChainId, first: int, last: int) -> Blocks | None:
    """Return the stored blocks from `first` to at most `last`, as many as one message may hold."""
    blocks: list[CertifiedBlock] = []
    size_bytes = 0
    for height in range(first, min(last, first + MAX_BATCH_BLOCKS - 1) + 1):
        certified = source.block(chain, height)
        if certified is None:
            break
        size_bytes += len(encode(certified))
        if blocks and size_bytes > MAX_BATCH_BYTES:
            break
        blocks.append(certified)
    return Blocks(chain, tuple(blocks)) if blocks else None


class Ration:
    """Lets one answer through for each peer and place, and the same again only after a pause.

    The pause doubles while the place stays the same, up to `most_ms`.
    """

    def __init__(self, pause_ms: int, most_ms: int) -> None:
        self._pause_ms = pause_ms
        self._most_ms = most_ms
        self._last: dict[PeerId, tuple[object, int, int]] = {}

    def allows(self, peer: PeerId, place: object, now_ms: int, *, at_once: bool) -> bool:
        """Say whether to answer `peer` about `place`, and remember that it was answered.

        `at_once` lets a new place skip the pause; not for places that a peer can make up.
        """
        last, next_ms, pause_ms = self._last.get(peer, (None, now_ms, 0))
        if now_ms < next_ms and not (at_once and place != last):
            return False
        pause_ms = min(2 * pause_ms, self._most_ms) if place == last else self._pause_ms
        if len(self._last) >= PEERS_RATIONED:
            del self._last[next(iter(self._last))]
        self._last[peer] = (place, now_ms + pause_ms, pause_ms)
        return True

    def forget(self, peer: PeerId) -> None:
        """Answer `peer` at once again: what was sent before may have been lost."""
        self._last.pop(peer, None)


class StatusTeller:
    """Says where a member stands: to all now and then, to one peer when that may help either of them."""

    def __init__(self, settings: ConsensusSettings) -> None:
        self.deadline: int | None = None
        """The monotonic time in ms at which to call `tick`, if any."""
        self.stalled = False
        """Whether nothing had moved between the last two ticks, though a round was under way."""
        self._settings = settings
        self._told = Ration(settings.status_ms // 2, settings.idle_status_ms)
        self._mark: tuple[int, ...] = ()

    def tick(self, peers: tuple[PeerId, ...], status: Status, votes: int, now_ms: int) -> list[Effect]:
        """Tell all `peers`; `votes` is how many of this height are known here."""
        mark = (status.height, status.round, status.step, votes)
        self.stalled = status.step > 0 and mark == self._mark
        self._mark = mark
        self.deadline = now_ms + self._settings.idle_status_ms if peers else None
        return [Broadcast(peers, status)] if peers else []

    def may_tell(self, peer: PeerId, height: int, now_ms: int) -> bool:
        """Say whether to tell `peer` now: not if it was told of `height` a moment ago."""
        return self._told.allows(peer, height, now_ms, at_once=True)

    def hurry(self, now_ms: int) -> None:
        """Something is under way: do not wait as long as on an idle chain."""
        if self.deadline is not None:
            self.deadline = min(self.deadline, now_ms + self._settings.status_ms)

    def forget(self, peer: PeerId) -> None:
        """What `peer` was told may have been lost."""
        self._told.forget(peer)


class BlockServer:
    """Sends stored blocks to peers who say that they are behind."""

    def __init__(self, source: BlockSource, chain: ChainId, ration: Ration) -> None:
        self._source = source
        self._chain = chain
        self._ration = ration
        self._next: dict[PeerId, int] = {}

    def serve(self, peer: PeerId, first: int, last: int, now_ms: int) -> list[Effect] | None:
        """Send a batch from `first` on; at once if the peer has come past what it was sent.

        None if the block at `first` is not stored here.
        """
        at_once = first >= self._next.get(peer, 0)
        if not self._ration.allows(peer, first, now_ms, at_once=at_once):
            return []
        blocks = batch(self._source, self._chain, first, last)
        if blocks is None:
            return None
        self._next[peer] = first + len(blocks.blocks)
        return [Send(peer, blocks)]

    def forget(self, peer: PeerId) -> None:
        """What was sent to `peer` may have been lost."""
        self._ration.forget(peer)
        self._next.pop(peer, None)


class EarlyMessages:
    """Messages of the next height, kept until it begins: a bounded number from each sender."""

    def __init__(self) -> None:
        self._kept: list[tuple[PeerId, Proposal | Votes | Polka]] = []
        self._counts: dict[tuple[PeerId, bool], int] = {}

    def keep(self, peer: PeerId, message: Proposal | Votes | Polka) -> None:
        """Keep `message` (votes come one by one) unless `peer` has filled its share."""
        light = isinstance(message, Votes)
        count = self._counts.get((peer, light), 0)
        if count < (EARLY_VOTES if light else EARLY_BLOCKS):
            self._counts[peer, light] = count + 1
            self._kept.append((peer, message))

    def take(self) -> list[tuple[PeerId, Proposal | Votes | Polka]]:
        """Return all that was kept, in the order of arrival, and forget it."""
        kept, self._kept, self._counts = self._kept, [], {}
        return kept

"""When this peer anchors heads of its sub-chains on a main chain, so that no pool rewrites its past [S3.6].

The packer of a head anchors it after QUIET_MS without a newer block; the other members after WAIT_MS, one
after the other, unless they have seen an anchor for it on a main chain of their own. A chain that is never
quiet is anchored every MOST_MS. Of each sub-chain one anchor is under way at a time, and it is tried again
ever more seldom, so that a main chain that stands still is not flooded when it goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepool.core.chain import Chain
from edgepool.core.deadlines import earliest
from edgepool.core.machine import Instant
from edgepool.model.block import CertifiedBlock
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import PoolKind
from edgepool.model.record import ChainAnchor, SignedRecord, sign_record
from edgepool.model.vote import Certificate

QUIET_MS = 2_000
WAIT_MS = 10_000
TURN_MS = 2_000
"""How long after one another those who did not pack a head would anchor it."""
MOST_MS = 60_000
RETRY_MS = 60_000
MOST_RETRY_MS = 3_600_000
"""How long an anchor may take to stand on its main chain before one is written again; doubles each time."""


@dataclass(slots=True)
class _Head:
    """The newest block of a sub-chain, how far the chain is anchored, and the anchor under way, if any.

    `since_ms` is when the first block came that is not anchored; `due_ms` is None without a main chain.
    """

    network: str
    members: tuple[PeerId, ...]
    certificate: Certificate
    since_ms: int
    due_ms: int | None
    anchored_height: int = 0
    sent: Certificate | None = None
    retry_at_ms: int = 0
    pause_ms: int = RETRY_MS
    tries: int = 0

    @property
    def anchored(self) -> bool:
        """Say whether a main chain has an anchor for this very block."""
        return self.anchored_height == self.certificate.height

    @property
    def at_ms(self) -> int | None:
        """When an anchor is to be written, if at all."""
        if self.anchored or self.due_ms is None:
            return None
        return self.due_ms if self.sent is None else max(self.due_ms, self.retry_at_ms)


class Anchoring:
    """Watches this peer's chains, `limit` sub-chains at most, and says which heads to anchor where."""

    def __init__(self, own: PeerId, limit: int) -> None:
        self._own = own
        self._limit = limit
        self._heads: dict[ChainId, _Head] = {}

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which to call `wake`, if any."""
        return earliest(*[head.at_ms for head in self._heads.values()])

    def block_committed(
        self,
        chain: ChainId,
        kind: PoolKind,
        certified: CertifiedBlock,
        members: Sequence[PeerId],
        now_ms: int,
    ) -> None:
        """Take note of a new block of a chain on which this peer votes; `members` voted on it.

        A sub-chain's ('manufacturing') is a head to be anchored; a main chain's ('fixed') may hold anchors.
        """
        if kind == "manufacturing":
            self._sub_block(chain, certified, tuple(members), now_ms)
        else:
            self._main_block(certified, now_ms)

    def wake(self, now_ms: int, main_chains: Sequence[ChainId]) -> list[tuple[ChainId, ChainAnchor]]:
        """Return the anchors to be written now, each with its main chain, one of `main_chains`.

        Those are the main chains on which this peer votes, in an order that does not change.
        """
        anchors: list[tuple[ChainId, ChainAnchor]] = []
        for chain, head in self._heads.items():
            if head.at_ms is None or head.at_ms > now_ms:
                continue
            if not main_chains:
                head.due_ms = None
                continue
            anchors.append((main_chains[head.tries % len(main_chains)], ChainAnchor(chain, head.certificate)))
            head.sent = head.certificate
            head.retry_at_ms = now_ms + head.pause_ms
            head.pause_ms = min(2 * head.pause_ms, MOST_RETRY_MS)
            head.tries += 1
        return anchors

    def records(
        self, signer: Signer, main_chains: Sequence[Chain], now: Instant
    ) -> list[tuple[Chain, SignedRecord]]:
        """Return what `wake` returns, as records of `signer`'s, each with the chain that it is for."""
        if self.deadline is None or self.deadline > now.monotonic_ms:
            return []
        chains = {chain.id: chain for chain in main_chains}
        made = list[tuple[Chain, SignedRecord]]()
        for main, anchor in self.wake(now.monotonic_ms, tuple(chains)):
            state = chains[main].state
            nonce = int.from_bytes(sha256(anchor.certificate.block_id)[:6], "big")
            record = sign_record(signer, state.network, main, anchor, now.wall_ms, nonce, state.height)
            made.append((chains[main], record))
        return made

    def _sub_block(
        self, chain: ChainId, certified: CertifiedBlock, members: tuple[PeerId, ...], now_ms: int
    ) -> None:
        header = certified.block.header
        head = self._heads.get(chain)
        if head is None:
            if len(self._heads) >= self._limit:
                del self._heads[next(iter(self._heads))]
            head = _Head(header.network, members, certified.certificate, now_ms, None)
            self._heads[chain] = head
        elif head.anchored:
            head.since_ms = now_ms
        head.members, head.certificate = members, certified.certificate
        wait_ms = self._wait_ms(header.proposer, members)
        latest_ms = head.since_ms + MOST_MS + wait_ms - QUIET_MS
        head.due_ms = min(now_ms + wait_ms, max(now_ms, latest_ms))

    def _wait_ms(self, packer: PeerId, members: tuple[PeerId, ...]) -> int:
        """Return how long this peer leaves a head alone; who follows the packer in the roster is first."""
        if packer == self._own:
            return QUIET_MS
        count = len(members)
        turn = count
        if packer in members and self._own in members:
            turn = (members.index(self._own) - members.index(packer) - 1) % count
        return WAIT_MS + TURN_MS * turn

    def _main_block(self, certified: CertifiedBlock, now_ms: int) -> None:
        for signed in certified.block.records:
            body = signed.record.body
            head = self._heads.get(body.sub_chain) if isinstance(body, ChainAnchor) else None
            if isinstance(body, ChainAnchor) and head is not None:
                self._anchor(body, head, now_ms)
        for head in self._heads.values():
            if head.due_ms is None and not head.anchored:
                head.due_ms = now_ms + WAIT_MS

    def _anchor(self, anchor: ChainAnchor, head: _Head, now_ms: int) -> None:
        """Count an anchor on a main chain, if it is a genuine one of what this peer knows itself."""
        certificate, newest = anchor.certificate, head.certificate
        if not head.anchored_height < certificate.height <= newest.height:
            return
        if certificate.height == newest.height and certificate.block_id != newest.block_id:
            return
        # The chain does not judge an anchor: a false one must not keep the members from writing a true one.
        if certificate not in (newest, head.sent) and certificate.problem(
            head.network, anchor.sub_chain, head.members
        ):
            return
        head.anchored_height = certificate.height
        head.since_ms = now_ms
        if head.sent is None or head.sent.height <= certificate.height:
            head.sent, head.pause_ms, head.tries = None, RETRY_MS, 0

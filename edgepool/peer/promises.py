"""Why this peer keeps data: what it has promised on its chains, and what it is promising now.

A promise is an own offer that stands and is the newest of its key, one that is under way to its chain, and a
confirmation that is still valid. Older versions are promised no more: whoever has a confirmation for
one is served until that ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from edgepool.core.node import Node
from edgepool.core.resolution.confirmation import MAX_VALIDITY_MS
from edgepool.model.record import DataOffer, TransmissionConfirmation
from edgepool.model.twin import DataKey
from edgepool.runtime.loop import FreshBlocks

MAX_BLOCKS_READ = 2_000


class Promises:
    """What the peer of `node` has promised; `source` has its blocks."""

    def __init__(self, node: Node, source: FreshBlocks) -> None:
        self._node = node
        self._source = source
        self._until_ms: dict[bytes, int] = {}
        self._publishing: Counter[bytes] = Counter()

    def recall(self, now_ms: int) -> None:
        """Find the confirmations that this peer gave before it was started and that are still valid.

        Packers' clocks only say how far to look back.
        """
        for chain in self._node.chains.values():
            height = chain.state.height
            for back in range(height, max(0, height - MAX_BLOCKS_READ), -1):
                certified = self._source.block(chain.id, back)
                if certified is None or certified.block.header.time_ms < now_ms - 2 * MAX_VALIDITY_MS:
                    break
                for signed in certified.block.records:
                    body = signed.record.body
                    if isinstance(body, TransmissionConfirmation) and body.holder == self._node.peer:
                        self.confirmed(body, now_ms)

    def confirmed(self, confirmation: TransmissionConfirmation, now_ms: int) -> None:
        """This peer has countersigned a transfer."""
        root, until_ms = confirmation.root, confirmation.valid_until_ms
        self._until_ms = {one: ms for one, ms in self._until_ms.items() if ms > now_ms}
        if until_ms > now_ms:
            self._until_ms[root] = max(until_ms, self._until_ms.get(root, 0))

    @contextmanager
    def publishing(self, root: bytes) -> Iterator[None]:
        """Keep `root` inside: its offer is being made."""
        self._publishing[root] += 1
        try:
            yield
        finally:
            self._publishing[root] -= 1
            self._publishing += Counter()  # drops what is zero

    def reasons(self, now_ms: int) -> dict[bytes, str]:
        """Return for each root that is promised why it is, in a few words."""
        reasons = {root: "confirmed to a requester" for root, ms in self._until_ms.items() if ms > now_ms}
        for chain in self._node.chains.values():
            for body in chain.own_waiting:
                if isinstance(body, DataOffer | TransmissionConfirmation):
                    reasons[body.root] = f"about to be recorded in {chain.genesis.invitation.name}"
            if not chain.member:
                continue
            for offer, holder in chain.state.newest_offers():
                if holder == self._node.peer:
                    reasons[offer.root] = f"offered in {chain.genesis.invitation.name}"
        reasons.update((root, "being published") for root in self._publishing)
        return reasons

    def keys(self) -> dict[bytes, list[tuple[DataKey, int]]]:
        """Return under which keys and versions each root is offered on this peer's chains, by anybody."""
        keys: dict[bytes, list[tuple[DataKey, int]]] = {}
        for chain in self._node.chains.values():
            for offer, _ in chain.state.standing_offers():
                known = keys.setdefault(offer.root, [])
                if (offer.key, offer.version) not in known:
                    known.append((offer.key, offer.version))
        return keys

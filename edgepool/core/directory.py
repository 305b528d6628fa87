"""What the resolution room may see of this peer: its chains, their offers, whom it can ask."""

from __future__ import annotations

from edgepool.core.chain import Chain
from edgepool.core.ledger.proof import prove, prove_kept
from edgepool.core.machine import BlockSource
from edgepool.core.rights import Subject, refusal
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import OfferProof
from edgepool.model.pool import Member
from edgepool.model.twin import DataKey

MAX_PROOFS = 8


class ChainDirectory:
    """Looks things up in a node's chains; the node keeps `connected`, `held` and `load` true."""

    def __init__(self, me: PeerId, source: BlockSource) -> None:
        self.chains: dict[ChainId, Chain] = {}
        self.connected_peers: dict[PeerId, Subject] = {}
        self.addresses: dict[PeerId, tuple[str, ...]] = {}
        self.held: dict[bytes, int] = {}
        self.load_percent = (0, 0)
        self._me = me
        self._source = source

    def main_chains(self) -> tuple[ChainId, ...]:
        """Return the chains of the fixed pools that this peer is in."""
        return self._of_kind("fixed")

    def sub_chains(self) -> tuple[ChainId, ...]:
        """Return the chains of the manufacturing pools that this peer is in."""
        return self._of_kind("manufacturing")

    def offers(self, chain: ChainId, key: DataKey, version: int) -> tuple[OfferProof, ...]:
        """Return the offers of `key` on one chain with their proofs, the newest version if 0."""
        known = self.chains.get(chain)
        if known is None:
            return ()
        proofs = []
        for entry in known.state.offers(key, version)[:MAX_PROOFS]:
            height, index = entry.ref.height, entry.ref.index
            certified = self._source.block(chain, height)
            kept = self._source.kept(chain, height, index) if certified is None else None
            if certified is not None:
                proofs.append(prove(known.genesis, known.handovers, certified, index))
            elif kept is not None:
                proofs.append(prove_kept(known.genesis, known.handovers, kept))
        return tuple(proof for proof in proofs if proof is not None)

    def height(self, chain: ChainId) -> int:
        """Return the height of a chain that this peer is on."""
        return self.chains[chain].state.height

    def neighbours(self, chain: ChainId) -> tuple[PeerId, ...]:
        """Return the connected people of a chain, without this peer."""
        known = self.chains.get(chain)
        people = known.people if known else ()
        return tuple(p for p in people if p != self._me and p in self.connected_peers)

    def member(self, peer: PeerId) -> Member | None:
        """Return what the pools say of `peer`, with its addresses."""
        for chain in self.chains.values():
            found = chain.people.get(peer)
            if found is not None:
                return found
        return None

    def connected(self, peer: PeerId) -> bool:
        """Say whether a link to `peer` stands."""
        return peer in self.connected_peers

    def holds(self, root: bytes) -> bool:
        """Say whether this peer has the data with manifest root `root`."""
        return root in self.held

    def size_bytes(self, root: bytes) -> int:
        """Return the size of held data."""
        return self.held[root]

    def load(self) -> tuple[int, int]:
        """Return network and processing load in percent."""
        return self.load_percent

    def admit(self, requester: PeerId, key: DataKey, root: bytes) -> tuple[ChainId | None, str]:
        """Return the chain on which this holder records a transfer to `requester`, or why there is none.

        Best is a chain that both are on and that has the offer; else one that has the offer (a
        requester from another pool). What no chain of this peer has is not for sharing.
        """
        subject = self.connected_peers.get(requester) or Subject(requester)
        refused = refusal("read data", subject, ("default",))
        if refused:
            return None, refused
        fallback: ChainId | None = None
        for chain_id, chain in self.chains.items():
            if not chain.member:
                continue
            if not any(entry.offer.root == root for entry in chain.state.offers_of(key)):
                continue
            if requester in chain.people:
                return chain_id, ""
            fallback = fallback or chain_id
        return fallback, "" if fallback else "it is offered in no pool of this holder"

    def _of_kind(self, kind: str) -> tuple[ChainId, ...]:
        return tuple(
            chain_id for chain_id, chain in self.chains.items() if chain.genesis.invitation.kind == kind
        )

"""What the resolution room may see of this peer: its chains, their offers, whom it can ask."""

from __future__ import annotations

from collections.abc import Callable

from edgepool.config import Default
from edgepool.core.access import Access
from edgepool.core.chain import Chain
from edgepool.core.ledger.proof import prove, prove_kept
from edgepool.core.ledger.succession import has_own
from edgepool.core.machine import BlockSource, Holding, Load
from edgepool.core.rights import Subject
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import OfferProof
from edgepool.model.pool import Member
from edgepool.model.twin import DataKey

MAX_PROOFS = 8


class ChainDirectory:
    """Looks things up in a node's chains; the node keeps `connected`, `held` and `load` true.

    `where_now` returns a member with the addresses that it has said since its pool was formed.
    """

    def __init__(self, me: PeerId, source: BlockSource, default: Default = "network") -> None:
        self.chains: dict[ChainId, Chain] = {}
        self.access = Access(me, self.chains, default)
        self.connected_peers: dict[PeerId, Subject] = {}
        self.where_now: Callable[[Member], Member] = lambda member: member
        self.held: dict[bytes, int] = {}
        self.load_percent = (0, 0)
        self._me = me
        self._source = source

    def told(self, event: Holding | Load) -> None:
        """Take what the shell says of data that is held, and of the load."""
        match event:
            case Holding(root, size_bytes, held=True):
                self.held[root] = size_bytes
            case Holding(root):
                self.held.pop(root, None)
            case Load(network_percent, processing_percent):
                self.load_percent = (network_percent, processing_percent)

    def main_chains(self) -> tuple[ChainId, ...]:
        """Return the chains of the fixed pools that this peer is in."""
        return self._of_kind("fixed")

    def sub_chains(self) -> tuple[ChainId, ...]:
        """Return the chains of the manufacturing pools that this peer is in."""
        return self._of_kind("manufacturing")

    def offers(
        self, chain: ChainId, key: DataKey, version: int, *, outward: bool = False
    ) -> tuple[OfferProof, ...]:
        """Return the offers of `key` on one chain with their proofs, the newest version if 0.

        `outward` is for others: without what policies hide from other pools.
        """
        known = self.chains.get(chain)
        if known is None:
            return ()
        proofs = []
        # What a holder's old key has signed leads to nobody: it says the same again under its new one.
        own = [one for one in known.state.offers(key, version) if has_own(known.state, one)]
        for entry in own[:MAX_PROOFS]:
            if not (outward and self.access.hides(chain, key, entry.offer.root)):
                proofs.append(self._proof(known, entry.ref.height, entry.ref.index))
        return tuple(proof for proof in proofs if proof is not None)

    def policy(self, chain: ChainId, key: DataKey, root: bytes) -> OfferProof | None:
        """Return the proof of the policy under which this peer hands on data that `chain` offers, or None.

        What came to this peer under a policy of a chain that it does not follow goes on under that one.
        """
        origin = self.access.origins.get(root)
        if origin is not None and origin.chain not in self.chains:
            return origin.proof
        found = self.access.policy_for(chain, key, root)
        return self._proof(self.chains[found[0]], found[1].height, found[1].index) if found else None

    def _proof(self, chain: Chain, height: int, index: int) -> OfferProof | None:
        certified = self._source.block(chain.id, height)
        kept = self._source.kept(chain.id, height, index) if certified is None else None
        if certified is not None:
            return prove(chain.genesis, chain.handovers, certified, index, chain.state.adoption)
        if kept is None:
            return None
        return prove_kept(chain.genesis, chain.handovers, kept, chain.state.adoption)

    def height(self, chain: ChainId) -> int:
        """Return the height of a chain that this peer is on."""
        return self.chains[chain].state.height

    def neighbours(self, chain: ChainId) -> tuple[PeerId, ...]:
        """Return the connected people of a chain, without this peer."""
        known = self.chains.get(chain)
        people = known.people if known else ()
        return tuple(p for p in people if p != self._me and p in self.connected_peers)

    def member(self, peer: PeerId) -> Member | None:
        """Return what the pools say of `peer`, with the addresses that it has said last."""
        for chain in self.chains.values():
            found = chain.people.get(peer)
            if found is not None:
                return self.where_now(found)
        return None

    def heir(self, peer: PeerId) -> PeerId:
        """Return the key that `peer` has by now, as far as this peer's chains say: its own or a later one."""
        heirs = (chain.state.heir(peer) for chain in self.chains.values())
        return next((heir for heir in heirs if heir != peer), peer)

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

    def subject(self, peer: PeerId) -> Subject:
        """Return who a linked peer is; of one whose link has just gone no more is known than its id."""
        return self.connected_peers.get(peer) or Subject(peer)

    def admit(
        self, requester: PeerId, key: DataKey, root: bytes, purpose: str, now_ms: int
    ) -> tuple[ChainId | None, str]:
        """Return the chain on which this holder records a transfer to `requester`, or why there is none."""
        return self.access.admit(self.subject(requester), key, root, purpose, now_ms)

    def _of_kind(self, kind: str) -> tuple[ChainId, ...]:
        return tuple(
            chain_id for chain_id, chain in self.chains.items() if chain.genesis.invitation.kind == kind
        )

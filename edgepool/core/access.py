"""Who may have which data of this peer [S2.3]: the owner's policy, found on the chains or kept with the data.

The owner of data on a chain is who first offered it there; its policies there are those that count. Who only
holds the data serves it on under the owner's policy, and where it is not on that chain, under the policy
with which the data came. If several have offered the same bytes first, each on another chain, all of them
must agree, unless the bytes are this peer's own: then only its own policies count.
"""

from __future__ import annotations

from edgepool.config import Default
from edgepool.core.chain import Chain
from edgepool.core.ledger.facts import PolicyEntry
from edgepool.core.rights import Reading, Subject, data_refusal
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Origin
from edgepool.model.policy import PolicyTerms
from edgepool.model.twin import DataKey

SEALED = "the policy under which this data came cannot be read any more: fetch it again"
UNOFFERED = "this holder does not offer it under this key in a pool"


class Access:
    """Judges who may have data, by the chains of the peer `me` and by what came with the data.

    `origins` is of data that this peer was handed under a policy, by manifest root; None if it is not known
    any more under which, and then nobody has the data.
    """

    def __init__(self, me: PeerId, chains: dict[ChainId, Chain], default: Default) -> None:
        self.origins: dict[bytes, Origin | None] = {}
        self._me = me
        self._chains = chains
        self._default = default

    def admit(
        self, subject: Subject, key: DataKey, root: bytes, purpose: str, now_ms: int
    ) -> tuple[ChainId | None, str]:
        """Return the chain on which this holder records that it hands data to `subject`.

        Best is one that both are on. None, and the condition that failed, if `subject` may not have it.
        """
        if root in self.origins and self.origins[root] is None:
            return None, SEALED
        pools = [one for one, chain in self._chains.items() if _belongs(subject.peer, chain)]
        owners = self._owners(key, root) if self._offers(key, root) else {}
        origin = self.origins.get(root)
        if self._me in owners and origin is None:
            owners = {self._me: owners[self._me]}
        allowed: list[ChainId] = []
        for owner, chains in owners.items():
            refusals: dict[ChainId, str] = {}
            for chain in chains:
                entry = self._policy(chain, owner, key)
                reading = Reading(purpose, now_ms, pools, chain, self._default)
                refusals[chain] = data_refusal(subject, _terms(entry), reading)
            if all(refusals.values()):
                return None, next(iter(refusals.values()))
            allowed += [chain for chain, refused in refusals.items() if not refused]
        if not allowed:
            return None, UNOFFERED
        chosen = next((chain for chain in allowed if chain in pools), allowed[0])
        if origin is not None and self.owner_of(origin) not in owners:
            reading = Reading(purpose, now_ms, pools, chosen, self._default)
            refused = data_refusal(subject, self._origin_terms(origin), reading)
            if refused:
                return None, refused
        return chosen, ""

    def policy_for(self, chain: ChainId, key: DataKey, root: bytes) -> tuple[ChainId, PolicyEntry] | None:
        """Return the policy under which this peer hands on data that `chain` offers, and where it stands.

        None if no chain of this peer has one.
        """
        origin = self.origins.get(root)
        if origin is not None:
            chain, key, owner = origin.chain, origin.key, self.owner_of(origin)
        else:
            owner = self._owner(chain, key, root) or self._me
        entry = self._policy(chain, owner, key) if chain in self._chains else None
        return (chain, entry) if entry is not None else None

    def hides(self, chain: ChainId, key: DataKey, root: bytes) -> bool:
        """Say whether an offer on `chain` is to be kept out of answers to others by its owner's policy."""
        owner = self._owner(chain, key, root)
        terms = _terms(self._policy(chain, owner, key)) if owner is not None else None
        return terms is not None and terms.hidden

    def _offers(self, key: DataKey, root: bytes) -> bool:
        """Say whether this peer itself offers the data under this key, on a chain where it is a member.

        Else somebody could offer others' data under another key, for which there is no policy, and have it.
        """
        return any(
            self._mine(chain) in chain.state.holders(key, root)
            for chain in self._chains.values()
            if self._votes(chain)
        )

    def _mine(self, chain: Chain) -> PeerId:
        """Return the key that this peer has on a chain: its next one, where that has its place already."""
        return chain.state.heir(self._me)

    def _votes(self, chain: Chain) -> bool:
        return self._mine(chain) in chain.state.members

    def _policy(self, chain: ChainId, owner: PeerId, key: DataKey) -> PolicyEntry | None:
        state = self._chains[chain].state
        return state.policy(state.heir(owner), key)

    def _owners(self, key: DataKey, root: bytes) -> dict[PeerId, list[ChainId]]:
        """Return who owns data on chains where this peer is a member, with those chains."""
        owners: dict[PeerId, list[ChainId]] = {}
        for chain in self._chains:
            owner = self._owner(chain, key, root) if self._votes(self._chains[chain]) else None
            if owner is not None:
                owners.setdefault(owner, []).append(chain)
        return owners

    def _owner(self, chain: ChainId, key: DataKey, root: bytes) -> PeerId | None:
        known = self._chains[chain]
        owner = next(iter(known.state.holders(key, root)), None)
        return self._me if owner == self._mine(known) else owner

    def _origin_terms(self, origin: Origin) -> PolicyTerms | None:
        """Return the policy under which data came; the one that stands now, if this peer can see it."""
        chain, owner = self._chains.get(origin.chain), self.owner_of(origin)
        if chain is None:
            return origin.terms
        entry = chain.state.policy(owner, origin.key)
        if entry is None and not chain.state.may_write(owner):
            return origin.terms  # who has left takes nothing back, and its policies are forgotten
        return _terms(entry)

    def owner_of(self, origin: Origin) -> PeerId:
        """Return whose the data is that came under a policy: the author's, under its present key."""
        chain = self._chains.get(origin.chain)
        return origin.owner if chain is None else chain.state.heir(origin.owner)


def _belongs(peer: PeerId, chain: Chain) -> bool:
    """Say whether `peer` is in a pool: it votes, is about to, or observes; not who left or is only named."""
    state = chain.state
    return state.may_write(peer) or any(one.peer == peer for one in state.observers)


def _terms(entry: PolicyEntry | None) -> PolicyTerms | None:
    return entry.policy.terms if entry is not None else None

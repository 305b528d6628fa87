"""How many pools a peer has room for, and which of them it is in, or may come into [S3.6]."""

from __future__ import annotations

from collections.abc import Mapping

from edgepool.core.chain import Chain
from edgepool.core.people import has_ended
from edgepool.core.rights import Subject, refusal
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis

MOST = 2
"""So many times limits.chains a peer keeps at most, with those that it has left."""
TOO_MANY = "forms more pools than limits.chains allows"
FULL = "it is in as many pools as limits.chains allows"


class Room:
    """Of the peer `own`, which keeps `chains` and takes part in `limit` of them at most."""

    def __init__(self, own: Subject, chains: Mapping[ChainId, Chain], limit: int) -> None:
        self._own = own
        self._chains = chains
        self._limit = limit

    def full(self) -> str:
        """Say why this peer comes into no more pools, or return ''. Those that it has left do not count."""
        if len(self._chains) < self._limit:
            return ""
        follows_all = not refusal("follow chain", self._own)
        taking_part = sum(follows_all or self.takes_part(chain) for chain in self._chains.values())
        has_room = taking_part < self._limit and len(self._chains) < MOST * self._limit
        return "" if has_room else FULL

    def takes_part(self, chain: Chain) -> bool:
        """Say whether this peer is one of a pool's people now, or soon; nobody is when the pool has ended."""
        me = self._own.peer
        if has_ended(chain.state):
            return False
        return chain.state.names(me) or chain.present(me) is not None

    def has_left(self, chain: Chain) -> bool:
        """Say whether this peer once voted in a pool and has no part in it any more."""
        me = self._own.peer
        return me in chain.state.former and not chain.state.names(me) and chain.present(me) is None

    def tells(self, chain: Chain, other: Subject) -> bool:
        """Say whether this peer is to tell another one, which is linked now, that a pool stands.

        Not who has left, and has nothing to do with it, nor who is to come, which is asked first. The
        coordinator tells, and is told; where it is out each member tells.
        """
        state, coordinator = chain.state, chain.state.coordinator
        out = chain.member and chain.present(coordinator) is None
        if has_ended(state) or not (out or coordinator in (self._own.peer, other.peer)):
            return False
        return state.names(other.peer) or not refusal("follow chain", other)

    def has_none_for(self, genesis: Genesis) -> bool:
        """Say whether the chain of a pool that was formed cannot be kept.

        Who has agreed to vote keeps its word as long as there is any room: the pool counts on it.
        """
        agreed = any(member.peer == self._own.peer for member in genesis.invitation.members)
        return len(self._chains) >= MOST * self._limit if agreed else bool(self.full())

    def problem(self, genesis: Genesis, closed: str) -> str:
        """Say why this peer may not come into a standing pool of a genesis that is believed, or return ''.

        `closed` is why it comes into no pool now, '' if it does.
        """
        chain = self._chains.get(genesis.chain)
        if chain is None:
            return closed or self.full()
        voting = any(member.peer == self._own.peer for member in chain.state.next_roster)
        return "it is a member already" if voting else ""

    def undecided(self) -> list[Chain]:
        """Return the chains whose members have not decided yet whether this peer comes in."""
        me = self._own.peer
        return [
            chain
            for chain in self._chains.values()
            if any(one.peer == me for one in chain.state.newcomers()) and not chain.state.may_write(me)
        ]

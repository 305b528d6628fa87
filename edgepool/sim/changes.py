"""What owners want of their pool's members: the wishes of a plan, as far as a careful plant would have them.

A plan may ask for anything; what would leave a pool with more liars than it can bear is not done, so that
a plan can lose any of its faults and stay one that the protocol must survive. What is not decided yet may be
decided at any time, so the worst is assumed of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepool.core.machine import ApproveChange, ChangeMembers
from edgepool.model.ids import ChainId, PeerId
from edgepool.sim.plan import Fault

if TYPE_CHECKING:
    from edgepool.sim.chaos import Chaos
    from edgepool.sim.world import SimPeer

MOST_MEMBERS = 12
"""Nobody is admitted to larger pools: they take long."""
REASON = "its owner wants it"


@dataclass(frozen=True, slots=True)
class Wish:
    """That `outgoing` leaves and `incoming` comes ('' for nobody); `by` has proposed it."""

    chain: ChainId
    by: PeerId
    outgoing: str
    incoming: str

    def names(self, peer: str) -> bool:
        """Say whether this wish is about `peer`."""
        return peer in (self.outgoing, self.incoming)


class Changes:
    """The wishes of honest owners in `world`."""

    def __init__(self, world: Chaos) -> None:
        self._world = world
        self._open: list[Wish] = []
        self._gone: dict[str, None] = {}
        """Whom others wanted to leave: they do not come again, since somebody may still want it."""

    def inject(self, fault: Fault) -> bool:
        """Let an owner propose a change of the members; False if nobody careful would."""
        world = self._world
        chain = world.chains[int(str(fault.arguments["chain"])) % len(world.chains)]
        peer = self._person(fault, "peer")
        outgoing = "" if fault.kind == "admit" else peer.id
        coming = peer if fault.kind == "admit" else None
        if fault.kind == "replace":
            coming = self._person(fault, "other")
        by = peer if fault.kind == "leave" else self.proposer(chain, self._person(fault, "by"))
        if by is None or not self._can_write(chain, by):
            return False
        wish = Wish(chain, by.id, outgoing, coming.id if coming is not None else "")
        if not self._careful(wish):
            return False
        self._open.append(wish)
        leaver = next((one for one in world.people if one.id == outgoing), None)
        heir = world.keys.heir(leaver) if leaver is not None else None
        world.caught.pop((chain, PeerId(wish.incoming)), None)  # what it did when it was a member before
        if fault.kind != "leave" and outgoing:
            self._gone[outgoing] = None
        assert world.judge.wishes is not None
        world.judge.wishes[chain, wish.outgoing, wish.incoming] = None
        if heir is not None:  # whoever is to leave may have another key before that is decided
            world.judge.wishes[chain, heir.peer, wish.incoming] = None
        member = coming.member if coming is not None else None
        world.ask(by, ChangeMembers(chain, outgoing, member, REASON))
        return True

    def may_lie(self, peer: PeerId) -> bool:
        """Say whether every pool can bear it that `peer` turns bad too."""
        return all(self._bearable(chain, peer) for chain in self._world.chains)

    def may_be_wiped(self, peer: SimPeer) -> bool:
        """Say whether `peer` has never had a vote to forget, or is bad anyway."""
        world = self._world
        if not peer.up or peer is world.cloud or world.keys.is_under_way(peer):
            return False
        never = not any(world.judge.oracles[chain].has_voted(peer.id) for chain in world.chains)
        return peer.id in world.liars or (never and not any(wish.names(peer.id) for wish in self._open))

    def may_be_revoked(self, peer: PeerId) -> bool:
        """Say whether every pool can bear it that `peer` is cut off, and has no vote after that."""
        world = self._world
        if peer == world.cloud.id or peer in world.trust.revoked:
            return False
        if any(wish.names(peer) for chain in world.chains for wish in self._pending(chain)):
            return False
        return all(self._bearable(chain, peer) for chain in world.chains)

    def may_change_key(self, peer: SimPeer) -> bool:
        """Say whether `peer` is somebody whose key can change, and nobody wants anything else of it."""
        world = self._world
        if peer.id in world.trust.revoked:
            return False
        # Who has lost its disk waits until it is told of its pools: nobody there would hear of the new key.
        if any(peer in world.followers(chain) and chain not in peer.node.chains for chain in world.chains):
            return False
        return not any(wish.names(peer.id) for chain in world.chains for wish in self._pending(chain))

    def approval(self, peer: SimPeer, chain: ChainId) -> ApproveChange | None:
        """Return the word of the owner of `peer` for a change on `chain` that some other owner wants."""
        state = peer.node.chains[chain].state
        if peer.id not in state.members:
            return None
        for change, authors in state.open_changes():
            if peer.id in authors or change.outgoing == peer.id:
                continue
            incoming = change.incoming.peer if change.incoming is not None else ""
            for wish in self._pending(chain):
                if wish.by in authors and (wish.outgoing, wish.incoming) == (change.outgoing, incoming):
                    return ApproveChange(chain, wish.by)
        return None

    # --- what is careful ------------------------------------------------------------------------

    def _careful(self, wish: Wish) -> bool:
        """Say whether a wish is possible, and the pool bears it and all that is undecided."""
        world = self._world
        members = world.judge.oracles[wish.chain].newest_members
        pending = self._pending(wish.chain)
        if any(one.names(peer) for one in pending for peer in (wish.outgoing, wish.incoming) if peer):
            return False
        if wish.outgoing and (wish.outgoing not in members or wish.outgoing == world.cloud.id):
            return False
        if wish.incoming and (wish.incoming in members or wish.incoming in self._gone):
            return False
        if wish.incoming in [one.id for one in world.people if world.keys.heir(one) is not None]:
            return False
        if any(peer in world.trust.revoked for peer in (wish.outgoing, wish.incoming)):
            return False
        if wish.incoming and len(members) + sum(bool(one.incoming) for one in pending) >= MOST_MEMBERS:
            return False
        return self._bearable(wish.chain, wish.incoming, wish)

    def _bearable(self, chain: ChainId, liar: str, wish: Wish | None = None) -> bool:
        """Say whether the pool bears all liars if every honest member goes that may go.

        `liar` may become one more; `wish` is added to what is undecided.
        """
        world = self._world
        pending = self._pending(chain) + ([wish] if wish is not None else [])
        members = world.judge.oracles[chain].newest_members
        inside = (*members, *(one.incoming for one in pending if one.incoming))
        # Whoever is to be revoked may be cut off at any time, and have its vote still.
        bad = dict.fromkeys(peer for peer in inside if peer in world.liars or peer in world.trust.revoked)
        if wish is None and liar in inside:
            bad[PeerId(liar)] = None
        leaving = [one for one in pending if not one.incoming and one.outgoing not in bad]
        left = len(members) - len(leaving)
        return left >= 1 and (not bad or 3 * len(bad) < left)

    def _pending(self, chain: ChainId) -> list[Wish]:
        """Return what is wanted of a chain and may still come; forget what has come about."""
        world = self._world
        still = []
        for one in self._open:
            oracle = world.judge.oracles[one.chain]
            by, outgoing = oracle.newest_key(one.by), oracle.newest_key(one.outgoing)
            members, wish = oracle.newest_members, replace(one, by=by, outgoing=outgoing)
            gone = wish.outgoing and wish.outgoing not in members
            if not gone and not (wish.incoming and wish.incoming in members):
                still.append(wish)
        self._open = still
        return [wish for wish in still if wish.chain == chain]

    # --- people ---------------------------------------------------------------------------------

    def _person(self, fault: Fault, name: str) -> SimPeer:
        return self._world.people[int(str(fault.arguments[name]))]

    def proposer(self, chain: ChainId, wanted: SimPeer) -> SimPeer | None:
        """Return who proposes: whom the plan names, or else the coordinator."""
        cloud = self._world.cloud
        return next((peer for peer in (wanted, cloud) if self._can_write(chain, peer)), None)

    def _can_write(self, chain: ChainId, peer: SimPeer) -> bool:
        world = self._world
        known = peer.node.chains.get(chain)
        if not peer.up or peer.id in world.liars or known is None:
            return False
        return known.member or peer is world.cloud

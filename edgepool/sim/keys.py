"""Peers of a simulated pool that go on under another key, step by step, as peer/rotation.py has it.

What a real peer keeps in files outlives its lives here too: the next key, whether it has taken the place of
the present one, and which key was before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from edgepool.core.chain import Chain
from edgepool.core.ledger.succession import inherited_offers
from edgepool.core.machine import ApproveChange, ChangeTrust, Succeed
from edgepool.core.pools.joining import succession
from edgepool.core.succeeding import lacks_revocation, place_to_pass_on, places
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import DataOffer
from edgepool.model.succession import key_succession
from edgepool.model.trust import TrustChange, own_revocation
from edgepool.sim.plan import Fault
from edgepool.sim.world import NETWORK

if TYPE_CHECKING:
    from edgepool.sim.chaos import Chaos
    from edgepool.sim.world import SimPeer

LOOK_MS = 50
PAUSE_MS = 500
"""How long a peer waits after something was refused."""
PATIENCE_MS = 15_000
REASON = "its key was changed"
CLOSED = "its key is being changed"


@dataclass(slots=True)
class _Change:
    """The files of one change: the next key, and, once it is made, the key that was before."""

    heir: Signer
    former: Signer | None = None


@dataclass(slots=True)
class _Life:
    """What one life of a peer has done for its change; a power cut forgets it."""

    number: int
    ticket: int = 0
    asked_ms: int = 0
    durable: int = 0


class KeyChanges:
    """The changes of keys in `world`, by the names of those whose keys change."""

    def __init__(self, world: Chaos) -> None:
        self._world = world
        self._changes: dict[str, _Change] = {}
        self._numbers: dict[str, int] = {}

    def inject(self, fault: Fault) -> bool:
        """Let a peer begin to change its key; False if nobody careful would."""
        world = self._world
        peer = world.people[int(str(fault.arguments["peer"]))]
        if not peer.up or peer.name in self._changes or not world.changes.may_change_key(peer):
            return False
        number = self._numbers[peer.name] = self._numbers.get(peer.name, 0) + 1
        heir = world.new_key(f"{peer.name}/{number}")
        self._changes[peer.name] = _Change(heir)
        world.judge.names[heir.peer] = peer.name
        assert world.judge.wishes is not None
        for chain in world.chains:
            world.judge.wishes[chain, peer.id, heir.peer] = None
        if peer.id in world.liars:
            world.corrupt(peer, world.liars[peer.id].role)
        self.begin_life(peer)
        return True

    def heir(self, peer: SimPeer) -> Signer | None:
        """Return the key that `peer` is to have, until it has it."""
        change = self._changes.get(peer.name)
        return change.heir if change is not None and change.former is None else None

    def is_under_way(self, peer: SimPeer) -> bool:
        """Say whether `peer` changes its key, or has still to settle that."""
        return peer.name in self._changes

    def passing(self) -> list[str]:
        """Return the honest peers that are still under a key which is to go."""
        return [peer.name for peer in self._honest() if self.heir(peer) is not None]

    def unsettled(self) -> list[str]:
        """Return the honest peers that have something left to do because of a change."""
        return [peer.name for peer in self._honest() if peer.name in self._changes]

    def begin_life(self, peer: SimPeer) -> None:
        """`peer` is there, perhaps again: whatever is left to do goes on."""
        if peer.name not in self._changes:
            return
        if self._changes[peer.name].former is None:
            peer.node.pools.closed = CLOSED
        self._look(peer, _Life(peer.life))

    def _honest(self) -> list[SimPeer]:
        return [peer for peer in self._world.honest if not self._world.is_cut(peer.id)]

    def _look(self, peer: SimPeer, life: _Life) -> None:
        world, change = self._world, self._changes.get(peer.name)
        if change is None or not peer.up or peer.life != life.number:
            return
        if not self._waits(life):
            if change.former is None:
                self._pass_on(peer, change, life)
            else:
                self._settle(peer, change.former, life)
        if peer.life == life.number:
            world.at(world.now_ms + LOOK_MS, partial(self._look, peer, life))

    def _waits(self, life: _Life) -> bool:
        """Say whether what was asked for last has no answer yet, or was refused just now."""
        world = self._world
        if not life.ticket:
            return False
        age_ms = world.now_ms - life.asked_ms
        if not world.settled(life.ticket):
            return age_ms < PATIENCE_MS
        return bool(world.refusal(life.ticket)) and age_ms < PAUSE_MS

    def _pass_on(self, peer: SimPeer, change: _Change, life: _Life) -> None:
        world = self._world
        if world.now_ms < peer.node.pools.settled_ms:
            return
        waiting = places(peer.node.chains.values(), peer.id)
        chain = place_to_pass_on(waiting, peer.id)
        if chain is not None:
            member = msgspec.structs.replace(peer.member, peer=change.heir.peer)
            if chain.state.may_write(peer.id):
                number = chain.state.change_number
                follows = succession(peer.signer, change.heir, NETWORK, chain.id, number, member)
                self._asked(life, world.ask(peer, Succeed(chain.id, follows)))
            else:
                said = key_succession(change.heir, NETWORK, chain.id, peer.id, member)
                self._asked(life, world.put(peer, said, chain.id, world.settling))
        elif not waiting and self._is_durable(peer, life):
            change.former = peer.signer
            world.change_key(peer, change.heir)

    def _is_durable(self, peer: SimPeer, life: _Life) -> bool:
        """Say whether all is stored that has happened up to now; ask for it first."""
        world = self._world
        if not life.durable:
            # It is answered when all that came before it is stored.
            life.durable = world.ask(peer, ApproveChange(ChainId(""), PeerId("")))
        return world.settled(life.durable)

    def _settle(self, peer: SimPeer, former: Signer, life: _Life) -> None:
        """Offer again what the former key has offered, and revoke it on main chains; then forget it."""
        world = self._world
        chains = peer.node.chains.values()
        for chain in [one for one in chains if one.member]:
            offers = inherited_offers(chain.state, peer.id)
            if offers:
                self._asked(life, self._offer(peer, chain, offers[0]))
                return
        revocation = own_revocation(former, NETWORK)
        heard = [chain for chain in chains if chain.member or chain.state.coordinator == peer.id]
        for chain in [one for one in heard if one.genesis.invitation.kind == "fixed"]:
            if lacks_revocation(chain, peer.id, revocation):
                world.trust.want(revocation, peer)
                self._asked(life, world.ask(peer, ChangeTrust(chain.id, TrustChange(revocation, REASON))))
                return
            if not chain.state.trust.is_revoked(former.peer):
                return
        del self._changes[peer.name]

    def _offer(self, peer: SimPeer, chain: Chain, offer: DataOffer) -> int:
        return self._world.put(peer, offer, chain.id, self._world.settling)

    def _asked(self, life: _Life, ticket: int) -> None:
        life.ticket, life.asked_ms = ticket, self._world.now_ms

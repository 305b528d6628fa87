"""The owners of a simulated pool's peers: each asks for one thing after the other, and approves wishes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from edgepool.core.machine import Command
from edgepool.model.ids import ChainId, PeerId
from edgepool.sim.workload import THINK_MS, Owner, due

if TYPE_CHECKING:
    from edgepool.sim.chaos import Chaos
    from edgepool.sim.world import SimPeer


class Owners:
    """The owners of all people of `world`, in their order."""

    def __init__(self, world: Chaos) -> None:
        self._world = world
        self._owners = [
            Owner(world.plan.seed, place, peer.id, peer is world.cloud)
            for place, peer in enumerate(world.people)
        ]
        self._working = False

    def renamed(self, place: int, peer: PeerId) -> None:
        """The peer at a place has another key."""
        self._owners[place].me = peer

    def work(self, working: bool) -> None:
        """Let them ask for records from now on, or let them rest."""
        world = self._world
        if working and not self._working:
            for place in range(len(self._owners)):
                world.at(world.now_ms + 1 + place, partial(self._turn, place))
        self._working = working

    def unanswered(self) -> list[str]:
        """Return the names of honest peers whose owners wait for an answer that can still come."""
        world = self._world
        return [
            peer.name
            for peer, owner in zip(world.people, self._owners, strict=True)
            if owner.ticket and not world.settled(owner.ticket) and owner.life == peer.life
            if peer.id not in world.liars and not world.is_cut(peer.id)
        ]

    def _turn(self, place: int) -> None:
        """An owner's turn: ask for something if the last wish is settled; think; have a turn again."""
        if not self._working:
            return
        world = self._world
        owner, peer = self._owners[place], world.people[place]
        pause_ms = 1 + owner.random.randrange(THINK_MS)
        second = owner.random.random() < 0.08
        if peer.up and due(owner, world.now_ms, world.settled):
            chain = peer.node.chains.get(world.chains[-1 if second else 0])
            word = self._word(peer, chain.id) if chain is not None else None
            body = owner.next_body(chain) if chain is not None and word is None else None
            if chain is not None and (word is not None or body is not None):
                owner.asked_ms, owner.life = world.now_ms, peer.life
                if body is not None:
                    owner.ticket = world.put(peer, body, chain.id, owner.random)
                elif word is not None:
                    owner.ticket = world.ask(peer, word)
        world.at(world.now_ms + pause_ms, partial(self._turn, place))

    def _word(self, peer: SimPeer, chain: ChainId) -> Command | None:
        """Return what the owner of `peer` approves that another wants, if there is something."""
        return self._world.changes.approval(peer, chain) or self._world.trust.approval(peer, chain)

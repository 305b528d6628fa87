"""Who has to do with a chain: members, observers, who is to come, and who has left [S3.6]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from edgepool.core.ledger.state import ChainState
from edgepool.core.ledger.succession import heirs_to_come
from edgepool.core.machine import Effect, UnwantLink, WantLink
from edgepool.core.rosters import RosterHistory
from edgepool.model.block import Handover
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member

ALL_HEIGHTS = 2**53
"""The last height that somebody is told of who is told of all."""


class People:
    """The people of one chain as its state says, in the eyes of `me`; `known` has them by peer id.

    `linked` says to whom there is a link.
    """

    def __init__(
        self,
        me: PeerId,
        state: ChainState,
        handovers: Sequence[Handover],
        linked: Callable[[PeerId], bool] = lambda _: False,
    ) -> None:
        self.known: dict[PeerId, Member] = {}
        self._me = me
        self._linked = linked
        self._present: tuple[Member, ...] = ()
        self._formers: dict[PeerId, PeerId] = {}
        self._wanted: dict[PeerId, None] = {}
        self.meet(state, handovers)

    def meet(self, state: ChainState, handovers: Sequence[Handover]) -> list[Effect]:
        """Take in who has to do with the chain by now; say to whom links are wanted, and to whom no more."""
        everybody = (*state.roster, *state.next_roster, *state.observers, *state.newcomers())
        self.known = {member.peer: member for member in everybody}
        if state.former:
            left = RosterHistory(state.genesis, tuple(handovers)).former()
            self.known = _former_observers(state) | {one.member.peer: one.member for one in left} | self.known
        self._formers = {one.heir: one.former for one in state.successions}
        # A new key that has no vote yet is nobody of its own.
        heirs, voting = heirs_to_come(state), state.members
        self._present = tuple(one for one in everybody if one.peer in voting or one.peer not in heirs)
        if self._has_left(state):
            self._present = ()
        return [*self._new_links(), *self._let_go()]

    def present(self, peer: PeerId) -> Member | None:
        """Return `peer` as it is named last if it is to be linked with; nobody is if this peer has left."""
        return next((member for member in reversed(self._present) if member.peer == peer), None)

    def links(self) -> list[WantLink]:
        """Ask for links to all who are to come together; who has left comes by itself if it needs to.

        A member that has changed its key is where it was: it is not looked for under the new key while it is
        linked under the old one, and then no more under that.
        """
        self._wanted = {}
        return self._new_links()

    def link_lost(self, peer: PeerId) -> list[WantLink]:
        """Ask for a link to the new key of who was linked under its old one."""
        return self._new_links() if peer in self._formers.values() else []

    def _has_left(self, state: ChainState) -> bool:
        """Say whether this peer has left, and not only its key: then the pool needs no link of it."""
        here = any(one.peer == self._me for one in self._present)
        return not here and self._me in state.former and state.heir(self._me) == self._me

    def _let_go(self) -> list[UnwantLink]:
        """Return whom the chain names no more; a key that another one has followed is given up with that."""
        present = {member.peer for member in self._present}
        gone = [one for one in self._wanted if one not in present and one not in self._formers.values()]
        for peer in gone:
            del self._wanted[peer]
        return [UnwantLink(peer) for peer in gone]

    def _new_links(self) -> list[WantLink]:
        effects = []
        for peer, member in {member.peer: member for member in self._present}.items():
            former = self._formers.get(peer, PeerId(""))
            still_former = former == self._me or (bool(former) and self._linked(former))
            if peer != self._me and peer not in self._wanted and not still_former:
                self._wanted[peer] = None
                effects.append(WantLink(member, former or None))
        return effects


def _former_observers(state: ChainState) -> dict[PeerId, Member]:
    """Return observers under the keys that they had before: each is told up to where its next key begins.

    One that was cut off then learns that way that its key has changed.
    """
    now = {one.peer: one for one in state.observers}
    heirs = {former: now.get(state.heir(former)) for former in state.former}
    return {former: replace(heir, peer=former) for former, heir in heirs.items() if heir is not None}


def has_ended(state: ChainState) -> bool:
    """Say whether a manufacturing pool is over: all but its last member have left, and nobody is to come.

    That one cannot leave. Its chain stays what it is, and nobody counts on anybody for it.
    """
    settled = state.next_roster == state.roster and not state.newcomers()
    return state.genesis.invitation.has_ended(len(state.roster)) and settled


def listeners(state: ChainState) -> dict[PeerId, int]:
    """Return who is told of blocks without a vote, each with the last height to be told of.

    Those are observers, who is to come, and who has left.
    """
    follow = (*state.observers, *state.newcomers())
    return state.former | {one.peer: ALL_HEIGHTS for one in follow}

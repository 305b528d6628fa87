"""Who has to do with a chain: members, observers, who is to come, and who has left [S3.6]."""

from __future__ import annotations

from collections.abc import Sequence

from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import Effect, WantLink
from edgepool.core.rosters import RosterHistory
from edgepool.model.block import Handover
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member

ALL_HEIGHTS = 2**53
"""The last height that somebody is told of who is told of all."""


class People:
    """The people of one chain as its state says, in the eyes of `me`; `known` has them by peer id."""

    def __init__(self, me: PeerId, state: ChainState, handovers: Sequence[Handover]) -> None:
        self.known: dict[PeerId, Member] = {}
        self._me = me
        self._present: tuple[Member, ...] = ()
        self.meet(state, handovers)

    def meet(self, state: ChainState, handovers: Sequence[Handover]) -> list[Effect]:
        """Take in who has to do with the chain by now; ask for links to those who are new."""
        before = self.known
        observers = state.genesis.invitation.observers
        self._present = (*state.roster, *state.next_roster, *observers, *state.newcomers())
        self.known = {member.peer: member for member in self._present}
        if state.former:
            left = RosterHistory(state.genesis, tuple(handovers)).former()
            self.known = {one.member.peer: one.member for one in left} | self.known
        return [effect for effect in self.links() if effect.member.peer not in before]

    def present(self, peer: PeerId) -> Member | None:
        """Return `peer` as it is named last if it is to be linked with: not who has left."""
        return next((member for member in reversed(self._present) if member.peer == peer), None)

    def links(self) -> list[WantLink]:
        """Ask for links to all who are to come together; who has left comes by itself if it needs to."""
        people = {member.peer: member for member in self._present}
        return [WantLink(member) for peer, member in people.items() if peer != self._me]


def listeners(state: ChainState) -> dict[PeerId, int]:
    """Return who is told of blocks without a vote, each with the last height to be told of.

    Those are observers, who is to come, and who has left.
    """
    follow = (*state.genesis.invitation.observers, *state.newcomers())
    return state.former | {one.peer: ALL_HEIGHTS for one in follow}

"""The rosters of one chain, height by height, from its genesis and its handovers [S3.6].

Nothing here is checked: handovers come from a store, from a state, or from a proof that was checked
before. Who has nothing but a chain's blocks finds the handovers in them with `RosterFollower`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepool.model.block import CertifiedBlock, Handover, changed_roster
from edgepool.model.ids import PeerId
from edgepool.model.pool import Genesis, Member, members_hash
from edgepool.model.record import MembershipChange
from edgepool.model.succession import KeySuccession


@dataclass(frozen=True, slots=True)
class Former:
    """A member that votes no more; `last_height` is the last one on which it had a vote."""

    member: Member
    last_height: int


@dataclass(frozen=True, slots=True)
class RosterHistory:
    """Who votes at which height of a chain; `handovers` are its own, the oldest first.

    `observers` are those of them whose keys have changed, under the later ones, as far as they are known.
    """

    genesis: Genesis
    handovers: tuple[Handover, ...] = ()
    observers: tuple[Member, ...] = ()

    @property
    def present(self) -> tuple[Member, ...]:
        """The roster behind the last handover."""
        return self.at(self.handovers[-1].header.height + 1) if self.handovers else self.at(1)

    def at(self, height: int) -> tuple[Member, ...]:
        """Return the roster that votes on `height`."""
        roster = self.genesis.invitation.members
        for handover in self.handovers:
            if handover.header.height >= height:
                break
            roster = changed_roster(roster, handover.outgoing, handover.incoming)
        return roster

    def since(self) -> dict[PeerId, int]:
        """Return the first height on which each present member votes, in the order of the roster."""
        first = dict.fromkeys(self.genesis.members, 1)
        for handover in self.handovers:
            first.pop(handover.outgoing, None)
            if handover.incoming is not None:
                first[handover.incoming.peer] = handover.header.height + 1
        return {member.peer: first[member.peer] for member in self.present}

    def former(self) -> tuple[Former, ...]:
        """Return who has left and has not come back, in the order of leaving."""
        known = {member.peer: member for member in self.everybody()}
        left: dict[PeerId, Former] = {}
        for handover in self.handovers:
            if handover.outgoing in known:
                left.pop(handover.outgoing, None)
                left[handover.outgoing] = Former(known[handover.outgoing], handover.header.height)
            if handover.incoming is not None:
                left.pop(handover.incoming.peer, None)
        return tuple(left.values())

    def everybody(self) -> tuple[Member, ...]:
        """Return all who were ever in the pool, each once and as it was named last: members and observers."""
        people = {one.peer: one for one in (*self.genesis.invitation.people(), *self.observers)}
        for handover in self.handovers:
            if handover.incoming is not None:
                people[handover.incoming.peer] = handover.incoming
        return tuple(people.values())

    def names(self) -> dict[PeerId, str]:
        """Return the names of all who were ever in the pool, by peer id."""
        return {member.peer: member.name for member in self.everybody()}


class RosterFollower:
    """Finds the handovers of a chain in its blocks, taken in order, and who has approved which change.

    Begins at the genesis; or behind a snapshot at `height`, with the `handovers` up to it, the roster that
    votes on the height after the next (`following`), the changes that are `open`, with their authors, and the
    `observers` under their keys of then. Blocks up to `height` are passed over.
    """

    def __init__(
        self,
        genesis: Genesis,
        height: int = 0,
        handovers: Sequence[Handover] = (),
        following: Sequence[Member] = (),
        open: Sequence[tuple[MembershipChange, Sequence[PeerId]]] = (),
        observers: Sequence[Member] = (),
    ) -> None:
        self._genesis = genesis
        self.height = height
        """The height of the last block taken, or of the snapshot."""
        self._handovers = list(handovers)
        self._observers = list(observers)
        self._roster = self.history.present
        self._following = tuple(following)
        self._open = {change: list(authors) for change, authors in open}

    @property
    def history(self) -> RosterHistory:
        """The rosters up to the height after the last block."""
        return RosterHistory(self._genesis, tuple(self._handovers), tuple(self._observers))

    def authors(self, change: MembershipChange) -> tuple[PeerId, ...]:
        """Return who has written `change` so far, be it with a vote or without."""
        return tuple(dict.fromkeys(self._open.get(change, ())))

    def take(self, certified: CertifiedBlock) -> None:
        """Look at the next block: a header that names another roster as the next one is a handover."""
        header = certified.block.header
        if header.height <= self.height:
            return
        self.height = header.height
        if header.next_members_hash != header.members_hash:
            found = self._change_to(header.next_members_hash)
            if found is not None:
                self._handovers.append(Handover(header, certified.certificate, *found))
                self._roster = changed_roster(self._roster, *found)
        self._following = ()
        for signed in certified.block.records:
            body = signed.record.body
            if isinstance(body, MembershipChange):
                self._open.setdefault(body, []).append(signed.record.author)
            elif isinstance(body, KeySuccession):
                self._observers.append(body.incoming)

    def _change_to(self, target: bytes) -> tuple[PeerId, Member | None] | None:
        """Return who goes and who comes on the way to the roster with the hash `target`."""
        changes = [(change.outgoing, change.incoming) for change in self._open]
        if self._following:
            changes.append(difference(self._roster, self._following))
        for outgoing, incoming in changes:
            if members_hash(changed_roster(self._roster, outgoing, incoming)) == target:
                return outgoing, incoming
        return None


def difference(roster: Sequence[Member], following: Sequence[Member]) -> tuple[PeerId, Member | None]:
    """Return who goes and who comes between two rosters of which one change makes the second."""
    staying = {member.peer for member in following}
    before = {member.peer for member in roster}
    outgoing = next((member.peer for member in roster if member.peer not in staying), PeerId(""))
    return outgoing, next((member for member in following if member.peer not in before), None)

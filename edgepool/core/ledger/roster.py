"""Who votes on a chain, and what is under way to change that [S3.6].

A `Roster` is a value: a record or the end of a block makes another one, so that a draft can share the
chain's until it changes something. Nothing here judges: whether a record may be entered is for the
contracts. What is decided in block h is in force from block h + 2, and a block decides one change at
most, so that one handover leads from each roster to the next.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from edgepool.core.ledger.support import (
    MAX_OPENED,
    first_decided,
    is_full_for,
    renamed,
    supporters,
    with_support,
)
from edgepool.model.block import changed_roster
from edgepool.model.codec import Wire, once
from edgepool.model.fields import KnownHeight, PeerText
from edgepool.model.identity import Role
from edgepool.model.ids import PeerId
from edgepool.model.pool import MAX_MEMBERS, MAX_OBSERVERS, Genesis, Member, members_hash
from edgepool.model.record import MembershipChange
from edgepool.model.succession import Adoption, KeySuccession

MAX_OPEN = (MAX_MEMBERS + 2) * MAX_OPENED
"""How many changes can be open: under one number write one roster, one newcomer and the coordinator."""
MAX_FORMER = 256
"""How many of those who have left are remembered, the newest."""

MAX_HEIGHT = 2**53
MAX_SUCCESSIONS = 256
"""How many keys that have been succeeded are remembered, the newest."""
MAX_VOTELESS = 16
"""How many keys are remembered that one peer without a vote has had, the newest."""
MAX_PASSING = MAX_OBSERVERS + 1
"""How many can go on under new keys at the end of one block that have no vote."""

_Members = Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
_Authors = Annotated[tuple[PeerText, ...], Meta(min_length=1, max_length=MAX_MEMBERS + 2)]


class Succession(Wire, frozen=True):
    """A peer with a new key: it was `former` up to height `last`, and is `heir` now.

    It voted as `former` above height `after` up to `last`; if these are the same it had no vote.
    """

    former: PeerText
    heir: PeerText
    after: KnownHeight
    last: KnownHeight

    @property
    def voteless(self) -> bool:
        """Whether it had no vote as `former`."""
        return self.after == self.last


class Roster(Wire, frozen=True, dict=True, gc=True):
    """The members of a chain after its block at some height h.

    `present` votes on h + 1 and `following` on h + 2; `pending` is the change between the two, None if
    there is none. `number` is that of the next change to be decided; `open` has the changes on the chain
    under it, the oldest first, each with who wrote it, in their order. `decided` is what the block under
    way has decided; None between blocks. `admitted` says after which height each member of the two that
    the genesis does not name votes; of `convicted` there is evidence on the chain; `former` says up to
    which height those who have left voted, the newest last; `successions` are the keys whose place others
    have by succession, each with the key that has it by now.

    `coordinator` and `observers` are those of the genesis, under their present keys; `passing` is who of them
    goes on under a new key when the block under way ends, () between blocks. `adoption` is what the
    coordinator's present key has said of the chain, None if it is that of the genesis.
    """

    present: _Members
    following: _Members
    pending: MembershipChange | None
    number: Annotated[int, Meta(ge=1, le=2**31)]
    open: Annotated[tuple[tuple[MembershipChange, _Authors], ...], Meta(max_length=MAX_OPEN)]
    decided: MembershipChange | None
    admitted: Annotated[tuple[tuple[PeerText, KnownHeight], ...], Meta(max_length=2 * MAX_MEMBERS)]
    convicted: Annotated[tuple[PeerText, ...], Meta(max_length=2 * MAX_MEMBERS)]
    former: Annotated[tuple[tuple[PeerText, KnownHeight], ...], Meta(max_length=MAX_FORMER)]
    successions: Annotated[tuple[Succession, ...], Meta(max_length=MAX_SUCCESSIONS)]
    coordinator: PeerText
    observers: Annotated[tuple[Member, ...], Meta(max_length=MAX_OBSERVERS)]
    passing: Annotated[tuple[Adoption, ...], Meta(max_length=MAX_PASSING)]
    adoption: Adoption | None

    @once
    def members(self) -> tuple[PeerId, ...]:
        """Who votes on the next height, in order."""
        return tuple(member.peer for member in self.present)

    @once
    def next_members(self) -> tuple[PeerId, ...]:
        """Who votes on the height after the next, in order."""
        return tuple(member.peer for member in self.following)

    @once
    def members_hash(self) -> bytes:
        """The hash of the roster that votes on the next height."""
        return members_hash(self.present)

    @once
    def next_members_hash(self) -> bytes:
        """The hash of the roster that votes on the height after the next."""
        return members_hash(self.following)

    @once
    def roles(self) -> dict[PeerId, Role]:
        """The roles of who votes on the next height or the one after it.

        A new key of a member is not among them before it has all that the old one has.
        """
        new = self.pending.heir if self.pending is not None else ""
        return {member.peer: member.role for member in (*self.present, *self.following) if member.peer != new}

    @once
    def voters(self) -> dict[PeerId, None]:
        """Who votes on the next height, to be looked up."""
        return dict.fromkeys(self.members)

    @once
    def observing(self) -> dict[PeerId, Member]:
        """The observers by peer id."""
        return {one.peer: one for one in self.observers}

    def names(self, peer: PeerId) -> bool:
        """Say whether `peer` is a member now or next, an observer, or the coordinator."""
        return self.may_write(peer) or peer in self.observing or peer == self.coordinator

    @property
    def passed_on(self) -> tuple[tuple[PeerId, PeerId], ...]:
        """Who goes on under which key when the block under way ends."""
        change = self.pending
        first = ((change.outgoing, change.heir),) if change is not None and change.heir else ()
        return (*first, *((one.former, one.incoming.peer) for one in self.passing))

    def is_member(self, peer: PeerId) -> bool:
        """Say whether `peer` votes on the next height."""
        return peer in self.voters

    def may_write(self, peer: PeerId) -> bool:
        """Say whether `peer` is a member on the next height or the one after it.

        A change that is decided comes into force with one more block, which may be the newcomer's own.
        """
        return peer in self.voters or peer in self.next_members

    def admitted_at(self, peer: PeerId) -> int:
        """Return the height after which `peer` votes; 0 for members from the beginning."""
        return dict(self.admitted).get(peer, 0)

    def heir(self, peer: PeerId) -> PeerId:
        """Return the key that has the place of `peer` by now: its own, unless it was succeeded."""
        found = self._successions.get(peer)
        return peer if found is None or self.may_write(peer) else found.heir

    def votes_of(self, peer: PeerId) -> tuple[int, int]:
        """Return (a, b): what `peer` signs at heights above a, up to b, it signs as a member."""
        found = self._successions.get(peer)
        if found is None or self.may_write(peer):
            return self.admitted_at(peer), MAX_HEIGHT
        return found.after, found.last

    def is_known(self, peer: PeerId) -> bool:
        """Say whether `peer` has left, or was succeeded, as far as that is remembered."""
        return peer in self._successions or any(one == peer for one, _ in self.former)

    @once
    def _successions(self) -> dict[PeerId, Succession]:
        return {one.former: one for one in self.successions}

    def repeats(self, change: MembershipChange, author: PeerId) -> bool:
        """Say whether `author`, whose old key is to go with the next block, says once more that it is so.

        The block that this makes brings the change into force also where nobody else has anything to say.
        """
        return change == self.pending and bool(change.heir) and author == change.outgoing

    def supporters(self, change: MembershipChange) -> tuple[PeerId, ...]:
        """Return who has written `change`, if it is open."""
        return supporters(self.open, change)

    def misfit(self, change: MembershipChange) -> str:
        """Say why the members cannot change like that after all that is decided, or return ''."""
        if change.outgoing and change.outgoing not in self.next_members:
            return f"{change.outgoing} is no member, so it cannot leave"
        if change.incoming is not None and change.incoming.peer in self.next_members:
            return f"{change.incoming.peer} is a member already"
        size = len(changed_roster(self.following, change.outgoing, change.incoming))
        if not 1 <= size <= MAX_MEMBERS:
            return f"the pool would have {size} members, it can have 1 to {MAX_MEMBERS}"
        return ""

    def problem(self) -> str:
        """Say why no blocks can have led to this, as far as later blocks rely on it, or return ''."""
        if self.decided is not None or self.passing:
            return "its roster is not one between two blocks"
        if any(len(dict.fromkeys(one)) != len(one) for one in (self.members, self.next_members)):
            return "a member stands in its roster twice"
        change, following = self.pending, self.present
        if change is not None:
            following = changed_roster(following, change.outgoing, change.incoming)
        if following != self.following or (change is not None and following == self.present):
            return "its next roster does not come of its last change"
        if any(one.number != self.number or self.misfit(one) for one, _ in self.open):
            return "a change is open that cannot be decided"
        return ""

    def newcomers(self) -> tuple[Member, ...]:
        """Return who is to come: by the decided change that is not in force yet, then by open ones."""
        changes = [self.pending, self.decided, *(change for change, _ in self.open)]
        coming: dict[PeerId, Member] = {}
        for change in changes:
            if change is not None and change.incoming is not None:
                coming.setdefault(change.incoming.peer, change.incoming)
        return tuple(coming.values())

    def full_for(self, author: PeerId) -> bool:
        """Say whether `author` can open no other change, since others support all that it has opened."""
        return is_full_for(self.open, author)

    def supported(self, author: PeerId, change: MembershipChange) -> Roster:
        """Return what this becomes when `author` writes `change`, which may decide it."""
        return replace(self, open=with_support(self.open, author, change)).counted()

    def convict(self, member: PeerId) -> Roster:
        """Return what this becomes when there is evidence against `member`."""
        return replace(self, convicted=(*self.convicted, member))

    def with_new_key(self, author: PeerId, body: KeySuccession) -> Roster:
        """Return what this becomes when `author`, who has no vote, says that it goes on under a new key."""
        return replace(self, passing=(*self.passing, body.adoption(author)))

    def counted(self) -> Roster:
        """Return what this becomes if an open change has a quorum of the present roster behind it."""
        change = first_decided(self.open, self.voters)
        return self if change is None else replace(self, decided=change, number=self.number + 1, open=())

    def closed(self, height: int) -> Roster:
        """Return what this becomes when the block at `height`, on which `present` voted, ends.

        Votes are counted once more: the roster may have become smaller under an open change.
        """
        counted = self.counted()
        if counted.pending is None and counted.decided is None:
            return counted._passed(height)
        counted = counted._succeeded(height)._passed(height)
        present, change = counted.following, counted.decided
        following = present
        admitted, former = dict(counted.admitted), dict(counted.former)
        if change is not None:
            following = changed_roster(present, change.outgoing, change.incoming)
        staying = dict.fromkeys(member.peer for member in (*present, *following))
        for peer in counted.members:
            if peer not in staying:
                former[peer] = height
        if change is not None and change.incoming is not None:
            admitted[change.incoming.peer] = height + 1
        return replace(
            counted,
            present=present,
            following=following,
            pending=change,
            decided=None,
            admitted=tuple((peer, at) for peer, at in admitted.items() if peer in staying),
            convicted=tuple(peer for peer in counted.convicted if peer in staying),
            former=tuple((peer, at) for peer, at in former.items() if peer not in staying)[-MAX_FORMER:],
        )

    def _succeeded(self, height: int) -> Roster:
        """Return what this becomes when its pending change, if it is a succession, comes into force.

        Whoever was convicted under the old key is so under the new one.
        """
        change = self.pending
        if change is None or not change.heir or change.incoming is None:
            return self
        former, incoming = change.outgoing, change.incoming
        said = Adoption(change.number, former, incoming, change.beacon_tip, change.incoming_signature)
        renamed_now = self._renamed(said, Succession(former, incoming.peer, self.admitted_at(former), height))
        return replace(renamed_now, convicted=renamed(self.convicted, former, incoming.peer))

    def _passed(self, height: int) -> Roster:
        """Return what this becomes when those without a vote go on under the keys that they have named.

        Their old keys are told of this block, and of no other. Nobody approves such a change, so of each peer
        few are remembered: else it could push out what is remembered of members.
        """
        if not self.passing:
            return self
        passed = replace(self, passing=())
        for said in self.passing:
            passed = passed._renamed(said, Succession(said.former, said.incoming.peer, height, height))
            own = [one for one in passed.successions if one.heir == said.incoming.peer and one.voteless]
            gone, earlier = own[:-MAX_VOTELESS], {one.former for one in own[:-1]}
            former = [one for one in passed.former if one[0] not in earlier]
            passed = replace(
                passed,
                successions=tuple(one for one in passed.successions if one not in gone),
                former=(*former, (said.former, height))[-MAX_FORMER:],
            )
        return passed

    def _renamed(self, said: Adoption, new: Succession) -> Roster:
        """Return this with the new key in the place of the old one, except among the members.

        What the old key has written for changes that are open is the new key's word.
        """
        former, heir = new.former, new.heir
        earlier = (replace(one, heir=heir) if one.heir == former else one for one in self.successions)
        return replace(
            self,
            successions=(*(one for one in earlier if one.former != former), new)[-MAX_SUCCESSIONS:],
            open=tuple((one, renamed(authors, former, heir)) for one, authors in self.open),
            observers=tuple(said.incoming if one.peer == former else one for one in self.observers),
            coordinator=heir if self.coordinator == former else self.coordinator,
            adoption=said if self.coordinator == former else self.adoption,
        )


def first_roster(genesis: Genesis) -> Roster:
    """Return the roster with which a chain begins."""
    plan = genesis.invitation
    people = (plan.coordinator, plan.observers, (), None)
    return Roster(plan.members, plan.members, None, 1, (), None, (), (), (), (), *people)

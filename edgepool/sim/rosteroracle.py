"""A second opinion about who votes at which height, told apart from the core.

Written from decision 0007, with other means: it remembers every word said under the present number and
counts anew at the end of each block, judges changes and evidence itself, and keeps a roster for each
height at which one begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgepool.core.ledger.state import ChainState
from edgepool.model.codec import encode
from edgepool.model.crypto import sha256, verify
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis, Member
from edgepool.model.record import MembershipChange, SignedRecord
from edgepool.model.succession import KeySuccession
from edgepool.model.vote import PROPOSAL, Equivocation
from edgepool.sim.words import passed_on, room_for

# Bound here, so that a canary that swaps it in the core does not swap it here.
_verify = verify


class KeyPassed(NamedTuple):
    """Who goes on as whom."""

    old: PeerId
    member: Member


class RosterOracle:
    """Follows the records of one chain, block by block."""

    def __init__(self, genesis: Genesis) -> None:
        self.tips: dict[tuple[PeerId, int], bytes] = {
            (yes.member, 1): yes.beacon_tip for yes in genesis.acceptances
        }
        """The beacon tip of each admission: who, and the first height on which it votes."""
        self.news: list[Equivocation | MembershipChange | KeyPassed] = []
        """Evidence that stands, and changes that are decided, since somebody last took them."""
        self.passed: list[KeyPassed] = []
        """Who has another key from the height after the last block on."""
        self.coordinator: PeerId = genesis.invitation.coordinator
        self.observers: list[Member] = list(genesis.invitation.observers)
        self.convicted: list[PeerId] = []
        """Those of whom the pool knows that they have lied, while they are in it."""
        self._network: str = genesis.invitation.network
        self._chain: ChainId = genesis.chain
        self._height = self._horizon = 0
        self._rosters: dict[int, tuple[Member, ...]] = {1: genesis.invitation.members}
        self._voters: dict[int, tuple[PeerId, ...]] = {1: genesis.members}
        self._number = 1
        self._words: list[tuple[MembershipChange, PeerId]] = []
        self._new_keys: dict[int, MembershipChange] = {}
        """The changes by which members go on under new keys, by the first height of these."""
        self._keys: dict[PeerId, PeerId] = {}
        """Which key has followed which."""
        self._adopted: tuple[PeerId, Member] | None = None
        """Which coordinator's key the present one has followed, and how that is named."""

    def copy(self) -> RosterOracle:
        """Return another one that knows the same."""
        other: RosterOracle = object.__new__(RosterOracle)
        other.__dict__.update(self.__dict__)
        for name in (
            "tips",
            "news",
            "convicted",
            "observers",
            "_rosters",
            "_voters",
            "_words",
            "_new_keys",
            "_keys",
        ):
            setattr(other, name, getattr(self, name).copy())
        return other

    def members(self, height: int) -> tuple[PeerId, ...]:
        """Return who votes on `height`, as far as is known by now."""
        return self._voters[self._first(height)]

    def roster(self, height: int) -> tuple[Member, ...]:
        """Return the members who vote on `height`, as far as is known by now."""
        return self._rosters[self._first(height)]

    def has_voted(self, peer: PeerId) -> bool:
        """Say whether `peer` has a vote at some height, or had one."""
        return any(peer in voters for voters in self._voters.values())

    def roster_hash(self, height: int) -> bytes:
        """Return what headers call the roster that votes on `height`."""
        return sha256(encode(["edgepool/1/members", self.roster(height)]))

    def person(self, peer: PeerId, newest: bool = False) -> PeerId:
        """Return the present key of who once voted with the key `peer`; or the `newest` that is decided."""
        while peer in self._keys:
            peer = self._keys[peer]
        coming = [one.heir for one in self._new_keys.values() if newest and one.outgoing == peer]
        return coming[-1] if coming else peer

    def says_again(self, height: int, signed: SignedRecord) -> bool:
        """Say whether by this record an old key tells on `height`, its last one, that it goes."""
        return self.passing(height) == (signed.record.author, signed.record.body)

    def passing(self, height: int) -> tuple[PeerId, MembershipChange] | None:
        """Return which key votes on `height` last, and the change by which another follows it."""
        change = self._new_keys.get(height + 1)
        return None if change is None else (change.outgoing, change)

    def take(self, height: int, records: Sequence[SignedRecord], horizon: int) -> str:
        """Count what the block at `height` says of the members; or say what of it may not stand.

        The window of records begins above `horizon`.
        """
        self._height, self._horizon = height, horizon
        self.passed = []
        number = self._number
        for signed in records:
            body = signed.record.body
            if self.says_again(height, signed):
                continue
            if isinstance(body, MembershipChange):
                problem = self._change_problem(height, body, signed.record.author)
                if problem or self._number != number:
                    return problem or "a second change is decided in one block"
                problem = self._make_room(body, signed.record.author)
                if problem:
                    return problem
                self._words.append((body, signed.record.author))
                self._count(height)
            elif isinstance(body, KeySuccession):
                problem = self._observer_problem(body, signed.record.author)
                if problem:
                    return problem
                self.passed.append(KeyPassed(signed.record.author, body.incoming))
                self.news.append(self.passed[-1])
            elif isinstance(body, Equivocation):
                problem = self._evidence_problem(height, body)
                if problem:
                    return problem
                self.convicted.append(self.person(body.member))
                self.news.append(body)
        self._count(height)
        self._change_keys(height)
        left = (*self.members(height + 1), *self.members(height + 2))
        self.convicted = [peer for peer in self.convicted if peer in left]
        return ""

    def _first(self, height: int) -> int:
        """Return the height at which the roster of `height` begins."""
        return next(first for first in reversed(self._rosters) if first <= max(1, height))

    def _change_problem(self, height: int, change: MembershipChange, author: PeerId) -> str:
        newest = self.members(height + 1)
        if author not in (*self.members(height), *newest) and author != self.coordinator:
            return "a change of the members by somebody who is none"
        if change.number != self._number:
            return f"change {change.number} of the members, where the next is {self._number}"
        if (change, author) in self._words:
            return "the same word for a change twice"
        if change.outgoing and change.outgoing not in newest:
            return "somebody is to leave who is no member"
        coming = change.incoming
        if coming is None:
            return "" if change.outgoing else "a change of nothing"
        if coming.peer in newest:
            return "somebody is to come who is a member"
        if change.succession:
            return self._key_problem(change, coming)
        terms = [self._network, self._chain, change.number, coming, change.beacon_tip]
        agreed = _verify(coming.peer, "join", terms, change.incoming_signature)
        return "" if agreed else "somebody is to come who has not agreed"

    def _key_problem(self, change: MembershipChange, coming: Member) -> str:
        """Say why a member cannot go on under the key of `coming`, or return ''."""
        member = next((one for one in self.roster(self._height + 1) if one.peer == change.outgoing), None)
        if member is None or member.peer in self.convicted:
            return "a new key for somebody who cannot have one"
        if _as_named(member) != _as_named(coming):
            return "a new key for somebody who is somebody else then"
        if self._is_known(coming.peer):
            return "a new key that somebody has"
        terms = [
            self._network,
            self._chain,
            change.number,
            change.outgoing,
            coming,
            change.beacon_tip,
        ]
        signed = ((change.outgoing, change.succession), (coming.peer, change.incoming_signature))
        held = all(_verify(peer, "succession", terms, signature) for peer, signature in signed)
        return "" if held else "a new key that one of the two has not signed"

    def _change_keys(self, height: int) -> None:
        """Put new keys in the places of those that have their last height."""
        change = self._new_keys.get(height + 1)
        if change is not None and change.incoming is not None:
            self.passed.append(KeyPassed(change.outgoing, change.incoming))
        for old, member in self.passed:
            new = self._keys[old] = member.peer
            self._words = passed_on(self._words, old, new)
            self.convicted = [new if peer == old else peer for peer in self.convicted]
            self.observers = [member if one.peer == old else one for one in self.observers]
            if self.coordinator == old:
                self.coordinator, self._adopted = new, (old, member)

    def standing_problem(self, state: ChainState) -> str:
        """Say how those without a vote are others in `state` than they were counted here, or return ''."""
        if (state.coordinator, list(state.observers)) != (self.coordinator, self.observers):
            return "its coordinator or its observers are not those that its records have set"
        said = state.adoption
        adopted = None if said is None else (said.former, said.incoming)
        return "" if adopted == self._adopted else "its coordinator has not said that the chain is its own"

    def _observer_problem(self, body: KeySuccession, author: PeerId) -> str:
        """Say why somebody without a vote cannot go on under another key, or return ''."""
        heights = (self._height, self._height + 1, self._height + 2)
        voting = [peer for height in heights for peer in self.members(height)]
        coming = [change.incoming.peer for change, _ in self._words if change.incoming is not None]
        if author in (*voting, *coming) or author in [old for old, _ in self.passed]:
            return "a new key, by its own word, for somebody who votes, will vote, or has one already"
        before = next((one for one in self.observers if one.peer == author), None)
        if before is None:
            before = Member(author, body.incoming.name, body.incoming.machine_type, (), "coordinator")
        if _as_named(before) != _as_named(body.incoming):
            return "a new key for somebody who is somebody else then"
        if self._is_known(body.incoming.peer) or body.incoming.peer in coming:
            return "a new key that somebody has"
        terms = [self._network, self._chain, 0, author, body.incoming, b""]
        held = _verify(body.incoming.peer, "succession", terms, body.signature)
        return "" if held else "a new key that has not signed that it is one"

    def _is_known(self, peer: PeerId) -> bool:
        """Say whether a key is, or was, somebody's on this chain."""
        named = [self.coordinator, *(one.peer for one in self.observers)]
        named += [member.peer for _, member in self.passed]
        return peer in named or peer in self._keys or self.has_voted(peer)

    def _make_room(self, change: MembershipChange, author: PeerId) -> str:
        """Drop a change that `author` opened before, if this is one too many; say why there is none."""
        words = room_for(self._words, change, author)
        if words is None:
            return "one change too many"
        self._words = words
        return ""

    def _evidence_problem(self, height: int, found: Equivocation) -> str:
        person = self.person(found.member)
        if person not in self.members(height + 1):
            return "evidence against somebody who is no member"
        if person in self.convicted:
            return "evidence against somebody who is convicted"
        last = self._last(found.member)
        if not self._admitted(found.member) <= found.height <= min(height, last):
            return "evidence of a height that its member did not vote on"
        if last <= self._horizon:
            return "evidence against a key that was changed long ago"
        said = {(one.block_id, one.valid_round) for one in (found.first, found.second)}
        if len(said) < 2:
            return "evidence of one value only"
        for one in (found.first, found.second):
            place = [self._network, self._chain, found.height, found.round, one.block_id, one.valid_round]
            domain = "proposal"
            if found.kind != PROPOSAL:
                place, domain = [*place[:2], found.kind, *place[2:5]], "vote"
            if not _verify(found.member, domain, place, one.signature):
                return "evidence that its member has not signed on this chain"
        return ""

    def _last(self, peer: PeerId) -> int:
        """Return the last height of a key that is succeeded, or is to be; no other one has any."""
        ends = (first - 1 for first, change in self._new_keys.items() if change.outgoing == peer)
        return min(ends, default=2**53)

    def is_past(self, peer: PeerId, horizon: int) -> bool:
        """Say whether `peer` is a former key whose last height is not in the window above `horizon`."""
        return self._last(peer) <= horizon

    def _admitted(self, peer: PeerId) -> int:
        """Return the first height of the newest time of `peer` as a member."""
        return max(first for one, first in self.tips if one == peer)

    def _count(self, height: int) -> None:
        voters = self.members(height)
        for change in [change for change, _ in self._words]:
            said = [voter for voter in voters if (change, voter) in self._words]
            if 3 * len(said) > 2 * len(voters):
                self._decide(height + 2, change)
                return

    def _decide(self, first: int, change: MembershipChange) -> None:
        self._number += 1
        self._words.clear()
        self.news.append(change)
        roster = list(self.roster(first))
        place = [member.peer for member in roster].index(change.outgoing) if change.outgoing else len(roster)
        coming = [] if change.incoming is None else [change.incoming]
        self._rosters[first] = (*roster[:place], *coming, *roster[place + 1 :])
        self._voters[first] = tuple(member.peer for member in self._rosters[first])
        if change.succession:
            self._new_keys[first] = change
        for member in coming:
            self.tips[member.peer, first] = change.beacon_tip


def _as_named(member: Member) -> tuple[str, str, str]:
    return (member.name, member.machine_type, member.role)

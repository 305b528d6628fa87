"""What a member says of its own pool without being told: evidence, and which changes it approves [S3.6].

Policy, not protocol. It approves the exclusion of whoever is convicted by evidence or revoked, what the one
who leaves asks for itself, a member's new key in the place of its old one, and, unless `approve` is 'manual',
what the pool's coordinator proposes. It never approves that it be excluded itself, except where it asked for
that. What it says under one number is stale once a change is decided, so all is worked out anew from the
chain's state after each block; bodies are the same for all members, or they would not count together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from edgepool.config import Approve
from edgepool.core.intake import Intake
from edgepool.core.ledger.state import ChainState
from edgepool.core.ledger.succession import newest_key
from edgepool.core.ledger.trust import UnitedTrust
from edgepool.core.machine import ChangeMembers, Effect, Instant
from edgepool.core.rights import Subject
from edgepool.core.trusting import TrustPolicy
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member
from edgepool.model.record import MembershipChange, SignedRecord, sign_record
from edgepool.model.trust import TrustChange
from edgepool.model.vote import Equivocation

CONVICTED = "convicted by evidence on this chain"
REVOKED = "its membership was revoked"
"""The reason in the exclusion of a convicted or revoked member; the same from everybody."""

SOON_MS = 1_000
"""How long after a restart, or while it is behind, a member looks again what it has to say."""
RETRY_MS = 10_000
"""How long after a record of its own was refused here."""

MAX_ASKED = 8
"""How many exclusions of its owner's a peer keeps asking for, the newest."""
MAX_WISHES = 8
"""How many newcomers a peer keeps proposing for its owner, the newest."""


def exclusion(number: int, outgoing: str, reason: str) -> MembershipChange:
    """Return the change by which `outgoing` leaves and nobody comes."""
    return MembershipChange(number, PeerId(outgoing), None, b"", b"", reason)


class MembershipPolicy:
    """What one peer, `me`, says of the members of one pool; `who` tells what certificates say."""

    def __init__(
        self,
        me: PeerId,
        approve: Approve,
        who: Callable[[PeerId], Subject | None] = lambda _: None,
    ) -> None:
        self._me = me
        self._who = who
        self._approve = approve
        self._asked: dict[str, str] = {}

    def ask(self, outgoing: str, reason: str) -> None:
        """Keep asking that `outgoing` leaves, for as long as it is a member: its owner wants it."""
        self._asked.pop(outgoing, None)
        self._asked[outgoing] = reason
        if len(self._asked) > MAX_ASKED:
            del self._asked[next(iter(self._asked))]

    def changes(self, state: ChainState, revoked: Collection[PeerId] = ()) -> list[MembershipChange]:
        """Return what this peer has to say under the present number and has not said on the chain yet.

        `revoked` are those whose membership in the network was revoked, here or on another chain.
        """
        staying = {member.peer: None for member in state.next_roster}
        # Who is to leave does not stay by changing its key.
        asked = {newest_key(state, PeerId(peer)): reason for peer, reason in self._asked.items()}
        self._asked = {peer: reason for peer, reason in asked.items() if peer in staying}
        number, opened = state.change_number, state.open_changes()
        wanted = {exclusion(number, peer, reason): None for peer, reason in self._asked.items()}
        convicted = [peer for peer in state.convicted() if peer in staying]
        # One after the other, in the same order everywhere: everybody says the same at the same time.
        lapsed = [peer for peer in sorted(revoked) if peer in staying and peer not in convicted]
        guilty = dict.fromkeys(convicted, CONVICTED) | dict.fromkeys(lapsed, REVOKED)
        votes = self._me in state.members
        for peer in [peer for peer in guilty if peer != self._me][:1]:
            if votes or (self._me == state.coordinator and guilty[peer] == REVOKED):
                wanted.setdefault(exclusion(number, peer, guilty[peer]))
        if votes:
            # A thief must not flee into another key while its coordinator asks for its revocation.
            accused = [peer for peer, by in state.trust.to_be_revoked() if state.coordinator in by]
            for change, authors in opened:
                if self._approves(state.coordinator, change, authors, (*guilty, *revoked), accused):
                    wanted.setdefault(change)
        said = [change for change, authors in opened if self._me in authors]
        return [change for change in wanted if change not in said]

    def _approves(
        self,
        coordinator: PeerId,
        change: MembershipChange,
        authors: Collection[PeerId],
        guilty: Collection[PeerId],
        accused: Collection[str],
    ) -> bool:
        if change.outgoing == self._me:
            return False  # what it asked for itself is said already
        if change.heir:  # both of its keys have signed
            return not {change.outgoing, change.heir}.intersection((*guilty, *accused))
        if change.incoming is not None and (
            change.incoming.peer in guilty or not self._is_as_named(change.incoming)
        ):
            return False
        trusted = coordinator in authors and coordinator not in guilty
        if trusted and self._approve == "coordinator":
            return True
        # Who is convicted does not choose who takes its place.
        return change.outgoing in authors and change.outgoing not in guilty

    def _is_as_named(self, member: Member) -> bool:
        """Say whether a newcomer's certificate, if it has been seen, has the role that the change names."""
        subject = self._who(member.peer)
        return subject is None or subject.role == member.role


class Governance:
    """Writes down what one peer has to say of one pool, through the `intake` of its chain."""

    def __init__(
        self,
        signer: Signer,
        approve: Approve,
        intake: Intake,
        who: Callable[[PeerId], Subject | None] = lambda _: None,
    ) -> None:
        self.deadline: int | None = None
        """The monotonic time in ms at which to call `say`, if any."""
        self._signer = signer
        self._policy = MembershipPolicy(signer.peer, approve, who)
        self._trust = TrustPolicy(signer.peer, approve)
        self.elsewhere = UnitedTrust()
        """What all main chains of this peer say of trust; its node keeps it up to date."""
        self._intake = intake
        self._caught: dict[PeerId, Equivocation] = {}
        self._wanted: dict[bytes, MembershipChange] = {}
        self._wishes: dict[PeerId, MembershipChange] = {}

    def start(self, now: Instant) -> None:
        """Look soon what is to be said: what was said before a restart may be lost."""
        self.deadline = now.monotonic_ms + SOON_MS

    def caught(self, found: Equivocation) -> None:
        """Keep what convicts a member until somebody's evidence stands; the next `say` writes it."""
        self._caught.setdefault(found.member, found)

    def change(self, ticket: int, change: MembershipChange, now: Instant) -> tuple[list[Effect], bool]:
        """Write this peer's word for a change that its owner wants; say whether it was taken.

        Once it stands, and if another change is decided before it, it is said again under the next number: at
        once if nobody comes, else when the newcomer has agreed to that number too, see `outdated`.
        """
        signed = self._sign(change, now)
        effects, taken = self._intake.submit(ticket, signed, now)
        if taken:
            self._wanted[signed.id] = change
        return effects, taken

    def outdated(self) -> list[ChangeMembers]:
        """Return whom this peer has proposed in vain, another change being decided: to be asked again.

        Each is returned once.
        """
        state, again = self._intake.state, list[ChangeMembers]()
        voting = [member.peer for member in state.next_roster]
        for peer, change in tuple(self._wishes.items()):
            if change.number == state.change_number:
                continue
            del self._wishes[peer]
            outgoing = newest_key(state, change.outgoing)
            if peer not in voting and (not outgoing or outgoing in voting):
                wish = ChangeMembers(state.chain, outgoing, change.incoming, change.reason)
                again.append(wish)
        return again

    def approve(self, ticket: int, change: MembershipChange, now: Instant) -> tuple[list[Effect], bool]:
        """Write this peer's word for a change that somebody else wants; say whether it was taken."""
        return self._intake.submit(ticket, self._sign(change, now), now)

    def trust(self, ticket: int, change: TrustChange, now: Instant) -> tuple[list[Effect], bool]:
        """Write this peer's word for a change of trust; say whether it was taken."""
        return self._intake.submit(ticket, self._sign(change, now), now)

    def say(self, now: Instant, *, behind: bool) -> tuple[list[Effect], bool]:
        """Write evidence and approvals that are missing; say whether any were taken.

        Nothing while this peer is `behind`: all that it knows of may be settled by now.
        """
        state, self.deadline = self._intake.state, None
        self._note_standing(state)
        if behind:
            self.deadline = now.monotonic_ms + SOON_MS
            return [], False
        if self._signer.peer not in state.members and self._signer.peer != state.coordinator:
            return [], False
        effects: list[Effect] = []
        any_taken = False
        revoked = dict.fromkeys((*(PeerId(peer) for peer, _ in state.trust.revoked), *self.elsewhere.revoked))
        bodies: list[MembershipChange | TrustChange | Equivocation] = [
            *self._evidence(state),
            *self._policy.changes(state, revoked),
            *_leaving(self._signer.peer, state),
            *self._trust.changes(state, self.elsewhere),
        ]
        for body in bodies:
            if self._intake.mine(body):
                continue
            said, taken = self._intake.submit(0, self._sign(body, now), now)
            effects, any_taken = effects + said, any_taken or taken
            if not taken:
                self.deadline = now.monotonic_ms + RETRY_MS
        return effects, any_taken

    def _note_standing(self, state: ChainState) -> None:
        """Keep wanting what the owner wants and the chain has; who was refused has been told so."""
        for record_id, change in tuple(self._wanted.items()):
            if state.has_record(record_id):
                del self._wanted[record_id]
                self._keep_wanting(change)
            elif not self._intake.mine(change):
                del self._wanted[record_id]

    def _keep_wanting(self, change: MembershipChange) -> None:
        if change.incoming is None:
            self._policy.ask(change.outgoing, change.reason)
            return
        self._wishes.pop(change.incoming.peer, None)
        self._wishes[change.incoming.peer] = change
        if len(self._wishes) > MAX_WISHES:
            del self._wishes[next(iter(self._wishes))]

    def _evidence(self, state: ChainState) -> list[Equivocation]:
        """Return the evidence that neither stands nor waits; forget what is settled."""
        guilty, staying = state.convicted(), [member.peer for member in state.next_roster]
        for caught in tuple(self._caught):
            member = newest_key(state, caught)
            late = state.draft().expiry_problem(self._caught[caught])
            if late or member in guilty or member not in staying:
                del self._caught[caught]
        # Against a key that is just going it can stand when the next one is there.
        found = [one for one in self._caught.values() if state.heir(one.member) in staying]
        return [one for one in found if not self._intake.accuses(one.member)]

    def _sign(self, body: MembershipChange | TrustChange | Equivocation, now: Instant) -> SignedRecord:
        """Return `body` as this peer's record, of which there is one at each height."""
        state = self._intake.state
        nonce = int.from_bytes(sha256(encode([state.height, body]))[:6], "big")
        return sign_record(self._signer, state.network, state.chain, body, now.wall_ms, nonce, state.height)


def _leaving(me: PeerId, state: ChainState) -> list[MembershipChange]:
    """Return what an old key says once more, in the one block on which it still votes: that it is succeeded.

    So that there is such a block soon, on a chain that is idle else.
    """
    change = state.pending_change
    return [change] if change is not None and change.heir and change.outgoing == me else []

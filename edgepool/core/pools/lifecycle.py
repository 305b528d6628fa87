"""How a pool comes to be: invitation, dialling of partners, acceptance, genesis [S3.5].

The coordinator invites; every member dials its partners, and only when it has a link to each (who
has thereby proved its identity) does it sign its acceptance. All acceptances together are the
genesis. Nothing here is durable: what is formed leaves as `Formed`, and a pool that was not formed
in time is forgotten by all. Invitations are believed from trusted coordinators only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from edgepool.core.deadlines import earliest
from edgepool.core.machine import (
    Broadcast,
    Done,
    Effect,
    Failed,
    Instant,
    Misbehaved,
    Notify,
    Send,
    WantLink,
)
from edgepool.core.rights import Subject, named, refusal
from edgepool.errors import DecodeError
from edgepool.model.beacon import BeaconChain
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import Signer, verify
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import PoolAccept, PoolDecline, PoolFormed, PoolInvite
from edgepool.model.pool import Acceptance, Genesis, Invitation, Member, accept, sign_invitation
from edgepool.model.succession import is_trusted

FORM_TIMEOUT_MS = 10_000
"""How long a coordinator waits for all acceptances."""
DIAL_TIMEOUT_MS = 5_000
"""How long an invited member tries to reach its partners."""
_REASON_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Formed:
    """A pool with this peer in it stands: the node starts its chain."""

    genesis: Genesis


Output = Effect | Formed


@dataclass(slots=True)
class _Forming:
    """A pool that this coordinator is forming."""

    ticket: int
    invite: PoolInvite
    deadline_ms: int
    acceptances: dict[PeerId, Acceptance] = field(default_factory=dict)

    def missing(self) -> list[Member]:
        return [m for m in self.invite.invitation.members if m.peer not in self.acceptances]


@dataclass(slots=True)
class _Invited:
    """An invitation that this member will accept once it has reached its partners."""

    invitation: Invitation
    deadline_ms: int

    def unreached(self, links: Collection[PeerId], own: PeerId) -> list[Member]:
        return [m for m in self.invitation.members if m.peer != own and m.peer not in links]


def beacon_secret(signer: Signer, invitation: Invitation) -> bytes:
    """Return the 32-byte secret of `signer`'s beacon chain in the pool of `invitation`.

    It is made from the key alone, so that a restarted member makes the same chain again.
    """
    return signer.derive("beacon", invitation.hash)


def beacon_chain(secret: bytes) -> BeaconChain:
    """Return a member's beacon chain over `secret`; that is 16,384 hashes."""
    return BeaconChain(secret)


class PoolLifecycle:
    """One peer's part in the forming of pools, as coordinator and as member.

    `coordinators` may form pools; `known` says whether a chain has been started already, and `full` why this
    peer comes into no more pools, or ''; `formers` are the keys that this peer had before. At most
    `chains_limit` pools are formed, and as many invitations considered, at the same time.
    """

    def __init__(
        self,
        *,
        signer: Signer,
        network: str,
        coordinators: Collection[PeerId],
        known: Callable[[ChainId], bool],
        who: Callable[[PeerId], Subject | None],
        chains_limit: int,
        formers: Collection[str] = (),
        full: Callable[[], str] = str,
    ) -> None:
        self._signer = signer
        self._own = signer.peer
        self._keys = frozenset((signer.peer, *formers))
        self._network = network
        self._coordinators = coordinators
        self._known = known
        self._who = who
        self._limit = chains_limit
        self._full = full
        self._links: dict[PeerId, None] = {}
        self._forming: dict[bytes, _Forming] = {}
        self._invited: dict[bytes, _Invited] = {}
        self.remembered: Collection[ChainId] = ()
        """Chains of pools that this peer is said to be in, by what it has noted beside them."""
        self.closed = ""
        """Why this peer comes into no pool now, '' if it does."""
        self._open_until: dict[bytes, int] = {}
        """Until when what was agreed to can bring this peer into a pool, in monotonic ms, by invitation."""

    @property
    def settled_ms(self) -> int:
        """From when on nothing that this peer has agreed to, or asked for, makes a pool, in monotonic ms."""
        made = [forming.deadline_ms for forming in self._forming.values()]
        return max((*self._open_until.values(), *made), default=0)

    def agreed(self, invitation: Invitation, until_ms: int, now: Instant) -> None:
        """Note that this peer's yes to the pool of `invitation` may be used until then, in monotonic ms."""
        still = {one: at for one, at in self._open_until.items() if at > now.monotonic_ms}
        self._open_until = still | {invitation.hash: until_ms}

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which to call `wake`, if any."""
        if not self._forming and not self._invited:
            return None
        forming = [forming.deadline_ms for forming in self._forming.values()]
        return earliest(*forming, *[invited.deadline_ms for invited in self._invited.values()])

    def form(self, ticket: int, invitation: Invitation, now: Instant) -> list[Output]:
        """Invite everybody in `invitation`; the end is Done(ticket, Genesis) or Failed within 10 s."""
        problem = self._form_problem(invitation)
        if problem:
            return [Notify(Failed(ticket, problem, refused=True))]
        invite = PoolInvite(invitation, sign_invitation(self._signer, invitation))
        self._forming[invitation.hash] = _Forming(ticket, invite, now.monotonic_ms + FORM_TIMEOUT_MS)
        others = [member for member in invitation.people() if member.peer != self._own]
        linked = tuple(member.peer for member in others if member.peer in self._links)
        effects: list[Output] = [WantLink(member) for member in others]
        if linked:
            effects.append(Broadcast(linked, invite))
        if len(others) < len(invitation.people()):
            effects += self._consider(invitation, now)
        return effects

    def receive(
        self, peer: PeerId, message: PoolInvite | PoolAccept | PoolDecline | PoolFormed, now: Instant
    ) -> list[Output]:
        """Take a message of `peer`."""
        match message:
            case PoolInvite():
                return self._receive_invite(peer, message, now)
            case PoolAccept():
                return self._receive_accept(peer, message)
            case PoolDecline():
                return self._receive_decline(peer, message)
            case PoolFormed():
                return self._receive_formed(peer, message)

    def peer_up(self, peer: PeerId, now: Instant) -> list[Output]:
        """A link stands: invite who waits to be invited, accept what waited for this partner."""
        self._links[peer] = None
        effects: list[Output] = []
        for forming in self._forming.values():
            people = [member.peer for member in forming.invite.invitation.people()]
            if peer in people and peer not in forming.acceptances:
                effects.append(Send(peer, forming.invite))
        for invited in list(self._invited.values()):
            effects += self._accept_if_reached(invited)
        return effects

    def peer_down(self, peer: PeerId, now: Instant) -> list[Output]:
        """A link is gone; it may come back before the deadlines."""
        self._links.pop(peer, None)
        return []

    def wake(self, now: Instant) -> list[Output]:
        """Give up what has waited too long."""
        effects: list[Output] = []
        for invitation_hash, invited in list(self._invited.items()):
            if invited.deadline_ms <= now.monotonic_ms:
                del self._invited[invitation_hash]
                names = _names(invited.unreached(self._links, self._own))
                effects += self._decline(invited.invitation, f"it did not reach its partners {names}")
        for invitation_hash, forming in list(self._forming.items()):
            if forming.deadline_ms <= now.monotonic_ms:
                del self._forming[invitation_hash]
                effects.append(Notify(Failed(forming.ticket, self._timeout_reason(forming), refused=False)))
        return effects

    # --- coordinator ----------------------------------------------------------------------------

    def _form_problem(self, invitation: Invitation) -> str:
        if invitation.coordinator != self._own:
            return "the invitation names another coordinator than this peer"
        problem = self._former_problem(self._own)
        if problem:
            return problem
        if self.closed:
            return self.closed
        if invitation.hash in self._forming:
            return "this pool is being formed already"
        if len(self._forming) >= self._limit:
            return f"{self._limit} pools are being formed already"
        try:
            decode(Invitation, encode(invitation))
        except DecodeError as error:
            return f"the invitation is not well formed: {error}"
        if any(one.peer == self._own for one in invitation.people()) and (problem := self._full()):
            return problem
        return self._content_problem(invitation)

    def _receive_accept(self, peer: PeerId, message: PoolAccept) -> list[Output]:
        forming = self._forming.get(message.invitation_hash)
        if forming is None:
            return []
        if message.acceptance.member != peer or peer not in [m.peer for m in forming.missing()]:
            return (
                []
                if peer in forming.acceptances
                else [_misbehaved(peer, "its acceptance is not that of a member for itself")]
            )
        if not message.acceptance.authentic(forming.invite.invitation):
            return [_misbehaved(peer, "the signature of its acceptance does not hold")]
        return self._accepted(forming, message.acceptance)

    def _accepted(self, forming: _Forming, acceptance: Acceptance) -> list[Output]:
        forming.acceptances[acceptance.member] = acceptance
        if forming.missing():
            return []
        invitation = forming.invite.invitation
        del self._forming[invitation.hash]
        self._open_until.pop(invitation.hash, None)
        acceptances = tuple(forming.acceptances[member.peer] for member in invitation.members)
        genesis = Genesis(invitation, forming.invite.coordinator_signature, acceptances)
        people = [member.peer for member in invitation.people()]
        # Formed comes first: the node stores the chain before anybody hears of it.
        effects: list[Output] = [Formed(genesis)] if self._own in people else []
        watching = [peer for peer in self._links if self._follows_all(peer)]
        others = tuple(dict.fromkeys(peer for peer in (*people, *watching) if peer != self._own))
        if others:
            effects.append(Broadcast(others, PoolFormed(genesis)))
        effects.append(Notify(Done(forming.ticket, genesis)))
        return effects

    def _follows_all(self, peer: PeerId) -> bool:
        """Say whether `peer` may follow the chains of pools that it is not in."""
        subject = self._who(peer)
        return subject is not None and not refusal("follow chain", subject)

    def _receive_decline(self, peer: PeerId, message: PoolDecline) -> list[Output]:
        forming = self._forming.get(message.invitation_hash)
        # An observer's no stops nothing: the pool votes without it.
        decliner = next((m for m in forming.missing() if m.peer == peer), None) if forming else None
        return (
            [] if forming is None or decliner is None else self._declined(forming, decliner, message.reason)
        )

    def _declined(self, forming: _Forming, member: Member, reason: str) -> list[Output]:
        del self._forming[forming.invite.invitation.hash]
        return [Notify(Failed(forming.ticket, f"{member.name} declined: {reason}", refused=True))]

    def _timeout_reason(self, forming: _Forming) -> str:
        missing = [
            f"{m.name} ({'no answer' if m.peer in self._links or m.peer == self._own else 'not connected'})"
            for m in forming.missing()
        ]
        return f"not accepted within {FORM_TIMEOUT_MS // 1000} s by {', '.join(missing)}"

    # --- member ---------------------------------------------------------------------------------

    def _receive_invite(self, peer: PeerId, message: PoolInvite, now: Instant) -> list[Output]:
        invitation = message.invitation
        if invitation.hash in self._invited:
            return []
        problem, forged = self._invite_problem(peer, message)
        if problem:
            decline = PoolDecline(invitation.hash, problem[:_REASON_CHARACTERS])
            return [Send(peer, decline), *([_misbehaved(peer, problem)] if forged else [])]
        return self._consider(invitation, now)

    def _invite_problem(self, peer: PeerId, message: PoolInvite) -> tuple[str, bool]:
        """Say why an invitation is not believed, and whether no honest peer would have sent it."""
        invitation = message.invitation
        if peer != invitation.coordinator:
            return "the invitation does not come from its coordinator", True
        problem = self._former_problem(peer)
        if problem:
            return problem, False
        if not verify(peer, "invite", [invitation.hash], message.coordinator_signature):
            return "the coordinator's signature does not hold", True
        if all(member.peer != self._own for member in invitation.people()):
            return "this peer is neither a member nor an observer of the pool", False
        if problem := self.closed or self._full():
            return problem, False
        if len(self._invited) >= self._limit:
            return f"{self._limit} invitations wait here already", False
        return self._content_problem(invitation), False

    def _content_problem(self, invitation: Invitation) -> str:
        if invitation.network != self._network:
            return f"the invitation is for network '{invitation.network}', not '{self._network}'"
        people = [member.peer for member in invitation.people()]
        if len(dict.fromkeys(people)) != len(people):
            return "a peer stands in the invitation twice"
        for member in invitation.members:
            problem = refusal("vote", Subject(member.peer, member.role))
            if problem:
                return f"{member.name}: {problem}"
        return ""

    def _former_problem(self, peer: PeerId) -> str:
        """Say why `peer` may not form pools in the eyes of this one, or return ''."""
        subject = self._who(peer)
        if subject is None:
            return "its certificate has not been seen"
        return refusal("form pool", subject, ("trusted",) if peer in self._coordinators else ())

    def _misnamed(self, invitation: Invitation) -> str:
        """Say whose certificate has another role than the invitation says, or return ''."""
        for member in invitation.members:
            subject = self._who(member.peer)
            if subject is not None and subject.role != member.role:
                return f"{member.name} is invited as {named(member.role)}, and is {named(subject.role)}"
        return ""

    def _consider(self, invitation: Invitation, now: Instant) -> list[Output]:
        """Dial the partners of an invitation that is believed; observers need no more than that."""
        partners = [member for member in invitation.members if member.peer != self._own]
        effects: list[Output] = []
        if invitation.coordinator != self._own:
            effects += [WantLink(partner) for partner in partners]
        if len(partners) < len(invitation.members):
            invited = _Invited(invitation, now.monotonic_ms + DIAL_TIMEOUT_MS)
            self._invited[invitation.hash] = invited
            self.agreed(invitation, invited.deadline_ms + FORM_TIMEOUT_MS, now)
            effects += self._accept_if_reached(invited)
        return effects

    def _accept_if_reached(self, invited: _Invited) -> list[Output]:
        if invited.unreached(self._links, self._own):
            return []
        invitation = invited.invitation
        del self._invited[invitation.hash]
        misnamed = self._misnamed(invitation)
        if misnamed:
            return self._decline(invitation, misnamed)
        tip = beacon_chain(beacon_secret(self._signer, invitation)).tip
        acceptance = accept(self._signer, invitation, tip)
        if invitation.coordinator != self._own:
            return [Send(invitation.coordinator, PoolAccept(invitation.hash, acceptance))]
        forming = self._forming.get(invitation.hash)
        return self._accepted(forming, acceptance) if forming else []

    def _decline(self, invitation: Invitation, reason: str) -> list[Output]:
        if invitation.coordinator != self._own:
            decline = PoolDecline(invitation.hash, reason[:_REASON_CHARACTERS])
            return [Send(invitation.coordinator, decline)]
        forming = self._forming.get(invitation.hash)
        own = next(member for member in invitation.members if member.peer == self._own)
        return self._declined(forming, own, reason) if forming else []

    def _receive_formed(self, peer: PeerId, message: PoolFormed) -> list[Output]:
        genesis, invitation = message.genesis, message.genesis.invitation
        # Not ours to judge, or no longer trusted: whoever passes it on does no wrong.
        if self._known(genesis.chain):
            return []
        if not is_trusted(genesis, message.adoption, self._network, self._coordinators):
            return []
        # Whoever has lost its disk may have had another key when the pool was formed, or have come later.
        named = any(member.peer in self._keys for member in invitation.people())
        if not named and genesis.chain not in self.remembered and not self._follows_all(self._own):
            return []
        problem = genesis.problem(self._network)
        if problem:
            return [_misbehaved(peer, f"false genesis: {problem}")]
        self._invited.pop(invitation.hash, None)
        self._open_until.pop(invitation.hash, None)
        return [Formed(genesis)]


def _misbehaved(peer: PeerId, reason: str) -> Notify:
    return Notify(Misbehaved(peer, reason))


def _names(members: list[Member]) -> str:
    return ", ".join(member.name for member in members)

"""How somebody comes into a pool that stands already [S3.5, S3.6]: it is asked first, and agrees or not.

Whoever wants the change asks the newcomer for its signature and its first beacon tip, under the number of
the change; then it proposes the change on the chain. The newcomer believes a pool that a coordinator formed
whom it trusts, whoever asks: that its members want it they say on the chain, and until then nobody tells
it anything. From its yes on it follows the chain, so that it is ready when its vote begins.

Each admission has a beacon chain of its own: what was revealed in an earlier one would be no secret.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from edgepool.core.deadlines import earliest
from edgepool.core.machine import (
    ChangeMembers,
    Effect,
    Failed,
    Instant,
    Misbehaved,
    Notify,
    Send,
    WantLink,
)
from edgepool.core.pools.lifecycle import beacon_chain, beacon_secret
from edgepool.errors import DecodeError
from edgepool.model.beacon import BeaconChain
from edgepool.model.block import Handover
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Join, JoinAnswer
from edgepool.model.pool import Genesis, Member
from edgepool.model.record import MembershipChange, join_terms
from edgepool.model.succession import SUCCESSION_DOMAIN, Adoption, is_trusted, succession_terms

JOIN_TIMEOUT_MS = 10_000
"""How long somebody who is to come has to answer."""
MAX_ASKING = 16
"""How many newcomers are asked at the same time."""
JOINS_A_WINDOW = 8
WINDOW_MS = 10_000
"""How often one peer may ask this one: each yes costs the checks of a genesis, and a beacon chain."""
TIPS_KEPT = 64
PEERS_COUNTED = 1024
SUCCEEDED = "its key was changed"
"""The reason in the change of the members by which one goes on under a new key."""
_REASON_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Agreed:
    """The newcomer of `command` has agreed: the node puts `change` on the chain and answers `ticket`."""

    ticket: int
    command: ChangeMembers
    change: MembershipChange


@dataclass(frozen=True, slots=True)
class Following:
    """This peer has agreed to come into a pool: the node follows its chain from now on."""

    genesis: Genesis


Output = Effect | Agreed | Following


@dataclass(frozen=True, slots=True)
class _Asking:
    """A newcomer that has been asked."""

    ticket: int
    command: ChangeMembers
    newcomer: Member
    join: Join
    deadline_ms: int


def later_secret(signer: Signer, chain: ChainId, number: int) -> bytes:
    """Return the 32-byte secret of `signer`'s beacon chain if change `number` admits it to `chain`."""
    return signer.derive("beacon", bytes.fromhex(chain) + number.to_bytes(4, "big"))


def present_secret(signer: Signer, genesis: Genesis, handovers: Sequence[Handover]) -> bytes:
    """Return the secret of `signer`'s present beacon chain: that of its last admission.

    The k-th handover of a chain, from 1, is that of the change with number k.
    """
    number = 0
    for place, handover in enumerate(handovers, start=1):
        if handover.incoming is not None and handover.incoming.peer == signer.peer:
            number = place
    return (
        later_secret(signer, genesis.chain, number) if number else beacon_secret(signer, genesis.invitation)
    )


def succession(
    old: Signer, new: Signer, network: str, chain: ChainId, number: int, member: Member
) -> MembershipChange:
    """Return the change with `number` by which `new` takes the place of `old`; `member` names the new key.

    Costs a beacon chain of 16,384 hashes.
    """
    tip = beacon_chain(later_secret(new, chain, number)).tip
    terms = succession_terms(network, chain, number, old.peer, member, tip)
    by_new, by_old = (one.sign(SUCCESSION_DOMAIN, terms) for one in (new, old))
    return MembershipChange(number, old.peer, member, tip, by_new, SUCCEEDED, by_old)


class OwnBeacon:
    """A member's own beacon chain, made anew whenever it is admitted anew."""

    def __init__(self, signer: Signer, genesis: Genesis) -> None:
        self._signer = signer
        self._genesis = genesis
        self._made: tuple[bytes, BeaconChain] | None = None

    def reveal(self, handovers: Sequence[Handover], count: int) -> bytes:
        """Return what to reveal after `count` earlier reveals since the last admission."""
        secret = present_secret(self._signer, self._genesis, handovers)
        if self._made is None or self._made[0] != secret:
            self._made = (secret, beacon_chain(secret))
        return self._made[1].reveal(count)


class Joining:
    """One peer's part in admissions, as the one who asks and as the one who is asked.

    `own` says who this peer is; `problem` why it may not follow the chain of a genesis that is
    believed, or ''. Links are wanted from whoever is asked.
    """

    def __init__(
        self,
        *,
        signer: Signer,
        network: str,
        coordinators: Collection[PeerId],
        own: Callable[[], Member],
        problem: Callable[[Genesis], str],
    ) -> None:
        self._signer = signer
        self._network = network
        self._coordinators = coordinators
        self._own = own
        self._problem = problem
        self._links: dict[PeerId, None] = {}
        self._asking: dict[tuple[ChainId, int, PeerId], _Asking] = {}
        self._tips: dict[tuple[ChainId, int], bytes] = {}
        self._asked_by: dict[PeerId, tuple[int, int]] = {}

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which to call `wake`, if any."""
        return earliest(*[asking.deadline_ms for asking in self._asking.values()])

    # --- who asks -------------------------------------------------------------------------------

    def ask(
        self,
        ticket: int,
        genesis: Genesis,
        number: int,
        command: ChangeMembers,
        now: Instant,
        adoption: Adoption | None = None,
    ) -> list[Output]:
        """Ask the newcomer of `command`; the end is Agreed, or Failed within 10 s.

        `adoption` is by whom the pool was taken over whose genesis it is, see there.
        """
        newcomer = command.incoming
        assert newcomer is not None, "nobody is to be asked"
        place = (command.chain, number, newcomer.peer)
        reason = f"{newcomer.name} is being asked already" if place in self._asking else ""
        if len(self._asking) >= MAX_ASKING:
            reason = f"{MAX_ASKING} newcomers are being asked already, try again later"
        if reason:
            return _failed(ticket, reason, refused=True)
        join = Join(genesis, number, adoption)
        asking = _Asking(ticket, command, newcomer, join, now.monotonic_ms + JOIN_TIMEOUT_MS)
        if newcomer.peer == self._signer.peer:
            refusal = self._problem(genesis)
            return self._answered(asking, self._answer(genesis, number, refusal))
        self._asking[place] = asking
        outputs: list[Output] = [WantLink(newcomer)]
        return [*outputs, Send(newcomer.peer, join)] if newcomer.peer in self._links else outputs

    def _receive_answer(self, peer: PeerId, message: JoinAnswer) -> list[Output]:
        asking = self._asking.pop((message.chain, message.number, peer), None)
        return [] if asking is None else self._answered(asking, message)

    def _answered(self, asking: _Asking, answer: JoinAnswer) -> list[Output]:
        command, newcomer = asking.command, asking.newcomer
        if answer.refusal or not answer.beacon_tip:
            reason = answer.refusal or "without saying why"
            return _failed(asking.ticket, f"{newcomer.name} declined: {reason}", refused=True)
        said, meant = answer.member, newcomer
        if _as_named(said) != _as_named(meant):
            what = said.machine_type if said.role == "machine" else said.role
            reason = f"{newcomer.name} answered as '{said.name}' ({what}): name it as it is"
            return _failed(asking.ticket, reason, refused=True)
        change = MembershipChange(
            answer.number,
            PeerId(command.outgoing),
            said,
            answer.beacon_tip,
            answer.signature,
            command.reason,
        )
        problem = _unreadable(change) or change.terms_problem(self._network, command.chain)
        if problem:
            return _failed(asking.ticket, f"the answer of {newcomer.name}: {problem}", refused=True)
        following: list[Output] = []
        if newcomer.peer == self._signer.peer:
            following.append(Following(asking.join.genesis))
        return [*following, Agreed(asking.ticket, command, change)]

    # --- who is asked ---------------------------------------------------------------------------

    def _receive_join(self, peer: PeerId, message: Join, now: Instant) -> list[Output]:
        if not self._may_ask(peer, now.monotonic_ms):
            return []
        genesis = message.genesis
        if not is_trusted(genesis, message.adoption, self._network, self._coordinators):
            refusal = "the pool's coordinator is not among those that this peer trusts"
            return [Send(peer, self._answer(genesis, message.number, refusal))]
        problem = genesis.problem(self._network)
        if problem:
            fault = f"false genesis: {problem}"
            answer = self._answer(genesis, message.number, fault)
            return [Send(peer, answer), Notify(Misbehaved(peer, fault))]
        refusal = self._problem(genesis)
        answer = self._answer(genesis, message.number, refusal)
        # The chain comes first: it is stored before anybody hears of the yes.
        return [Send(peer, answer)] if refusal else [Following(genesis), Send(peer, answer)]

    def _answer(self, genesis: Genesis, number: int, refusal: str) -> JoinAnswer:
        member, chain = self._own(), genesis.chain
        if refusal:
            return JoinAnswer(chain, number, member, b"", b"", refusal[:_REASON_CHARACTERS])
        tip = self._tips.get((chain, number))
        if tip is None:
            if len(self._tips) >= TIPS_KEPT:
                del self._tips[next(iter(self._tips))]
            secret = later_secret(self._signer, chain, number)
            tip = self._tips[chain, number] = beacon_chain(secret).tip
        signature = self._signer.sign("join", join_terms(self._network, chain, number, member, tip))
        return JoinAnswer(chain, number, member, tip, signature, "")

    def _may_ask(self, peer: PeerId, now_ms: int) -> bool:
        until_ms, count = self._asked_by.pop(peer, (0, 0))
        if until_ms <= now_ms:
            until_ms, count = now_ms + WINDOW_MS, 0
        if len(self._asked_by) >= PEERS_COUNTED:
            del self._asked_by[next(iter(self._asked_by))]
        self._asked_by[peer] = (until_ms, count + 1)
        return count < JOINS_A_WINDOW

    # --- both -----------------------------------------------------------------------------------

    def receive(self, peer: PeerId, message: Join | JoinAnswer, now: Instant) -> list[Output]:
        """Take a message of `peer`."""
        if isinstance(message, Join):
            return self._receive_join(peer, message, now)
        return self._receive_answer(peer, message)

    def peer_up(self, peer: PeerId) -> list[Output]:
        """A link stands: ask whoever waits to be asked."""
        self._links[peer] = None
        return [Send(peer, asking.join) for (_, _, who), asking in self._asking.items() if who == peer]

    def peer_down(self, peer: PeerId) -> None:
        """A link is gone; it may come back before the deadlines."""
        self._links.pop(peer, None)

    def wake(self, now: Instant) -> list[Output]:
        """Give up on who has not answered in time."""
        outputs: list[Output] = []
        for place, asking in tuple(self._asking.items()):
            if asking.deadline_ms <= now.monotonic_ms:
                del self._asking[place]
                how = "did not answer" if place[2] in self._links else "was not reached"
                reason = f"{asking.newcomer.name} {how} within {JOIN_TIMEOUT_MS // 1000} s"
                outputs += _failed(asking.ticket, reason, refused=False)
        return outputs


def _failed(ticket: int, reason: str, *, refused: bool) -> list[Output]:
    return [Notify(Failed(ticket, reason, refused))] if ticket else []


def _as_named(member: Member) -> tuple[str, ...]:
    return (member.peer, member.name, member.machine_type, member.role)


def _unreadable(change: MembershipChange) -> str:
    """Say why others could not decode a change made here, or return ''."""
    try:
        decode(MembershipChange, encode(change))
    except DecodeError as error:
        return str(error)
    return ""

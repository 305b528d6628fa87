"""Transmission confirmation: both sides sign before data moves [S3.13].

The requester signs the terms; the holder checks them against what it holds and who may have it,
countersigns by making them a record, and answers with it. Neither side can say afterwards that it
did not agree. A refusal names the condition that failed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgepool.core.deadlines import earliest
from edgepool.core.machine import (
    AccessRefused,
    CameUnder,
    Confirmed,
    ConfirmTransfer,
    Done,
    Effect,
    Failed,
    Instant,
    Misbehaved,
    Notify,
    Send,
    WantLink,
)
from edgepool.core.resolution.directory import Directory
from edgepool.model.crypto import Signer, verify
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import ConfirmAnswer, ConfirmRequest, OfferProof, Origin
from edgepool.model.policy import DataPolicy, fits
from edgepool.model.record import SignedRecord, TransmissionConfirmation, confirmation_terms, sign_record

CONFIRM_TIMEOUT_MS = 5_000
MAX_VALIDITY_MS = 10 * 60_000
NOT_HELD = "does not hold this data"


@dataclass(frozen=True, slots=True)
class Countersigned:
    """This holder has countersigned a transfer: the node puts the record on its chain."""

    record: SignedRecord


Output = Effect | Countersigned


@dataclass(slots=True)
class _Asked:
    """A confirmation that this requester waits for."""

    ticket: int
    command: ConfirmTransfer
    request: ConfirmRequest
    deadline_ms: int
    sent: bool


class Confirmations:
    """Both sides of confirmations: at most `limit` requests of this peer wait at a time.

    `check_policy` says what is wrong with the proof of a policy, or returns ''.
    """

    def __init__(
        self,
        *,
        signer: Signer,
        network: str,
        directory: Directory,
        check_policy: Callable[[OfferProof], str],
        limit: int,
    ) -> None:
        self._check_policy = check_policy
        self._signer = signer
        self._own = signer.peer
        self._network = network
        self._directory = directory
        self._limit = limit
        self._asked: dict[int, _Asked] = {}
        self._given: dict[tuple[PeerId, bytes], SignedRecord] = {}

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which to call `wake`, if any."""
        return earliest(*[asked.deadline_ms for asked in self._asked.values()])

    # --- requester ------------------------------------------------------------------------------

    def begin(self, query: int, ticket: int, command: ConfirmTransfer, now: Instant) -> list[Output]:
        """Ask the holder; Done(ticket, SignedRecord) or Failed follows within 5 s."""
        holder = command.holder
        if holder.peer == self._own:
            return [Notify(Failed(ticket, "this peer holds the data itself", refused=True))]
        terms = confirmation_terms(
            self._network,
            command.key,
            command.root,
            self._own,
            holder.peer,
            command.valid_until_ms,
            command.purpose,
        )
        request = ConfirmRequest(
            query=query,
            key=command.key,
            root=command.root,
            requester=self._own,
            valid_until_ms=command.valid_until_ms,
            requester_signature=self._signer.sign("confirmation", terms),
            purpose=command.purpose,
        )
        linked = self._directory.connected(holder.peer)
        deadline_ms = now.monotonic_ms + CONFIRM_TIMEOUT_MS
        self._asked[query] = _Asked(ticket, command, request, deadline_ms, sent=linked)
        effects: list[Output] = [Send(holder.peer, request) if linked else WantLink(holder)]
        if len(self._asked) > self._limit:
            oldest = self._asked.pop(next(iter(self._asked)))
            reason = f"the request was given up for newer ones: {self._limit} can wait at a time"
            effects.append(Notify(Failed(oldest.ticket, reason, refused=False)))
        return effects

    def receive_answer(self, peer: PeerId, message: ConfirmAnswer) -> list[Output]:
        """Take the holder's answer; only one that is waited for counts."""
        asked = self._asked.get(message.query)
        if asked is None or peer != asked.command.holder.peer or message.root != asked.command.root:
            return []
        del self._asked[message.query]
        name = asked.command.holder.name
        if message.record is None:
            return [Notify(Failed(asked.ticket, f"refused by {name}: {message.refusal}", refused=True))]
        problem = self._record_problem(asked, message.record) or self._policy_problem(asked, message.policy)
        if problem:
            reason = f"the confirmation of {name} is not valid: {problem}"
            return [Notify(Misbehaved(peer, reason)), Notify(Failed(asked.ticket, reason, refused=True))]
        done = Notify(Done(asked.ticket, message.record))
        if message.policy is None:
            return [done]
        return [Notify(CameUnder(message.root, Origin(asked.command.key, message.policy))), done]

    def peer_up(self, peer: PeerId) -> list[Output]:
        """Ask a holder to which there was no link."""
        effects: list[Output] = []
        for asked in self._asked.values():
            if asked.command.holder.peer == peer and not asked.sent:
                asked.sent = True
                effects.append(Send(peer, asked.request))
        return effects

    def peer_down(self, peer: PeerId) -> list[Output]:
        """Give up what a lost holder was asked."""
        effects: list[Output] = []
        for query, asked in list(self._asked.items()):
            if asked.command.holder.peer == peer and asked.sent:
                del self._asked[query]
                reason = f"the link to {asked.command.holder.name} was lost before it confirmed"
                effects.append(Notify(Failed(asked.ticket, reason, refused=False)))
        return effects

    def wake(self, now: Instant) -> list[Output]:
        """Give up what has waited too long."""
        effects: list[Output] = []
        for query, asked in list(self._asked.items()):
            if asked.deadline_ms <= now.monotonic_ms:
                del self._asked[query]
                what = "did not confirm" if asked.sent else "could not be reached"
                reason = f"{asked.command.holder.name} {what} within {CONFIRM_TIMEOUT_MS // 1000} s"
                effects.append(Notify(Failed(asked.ticket, reason, refused=False)))
        return effects

    def _record_problem(self, asked: _Asked, signed: SignedRecord) -> str:
        record, body, request = signed.record, signed.record.body, asked.request
        if record.author != asked.command.holder.peer:
            return "it is not the holder's record"
        if record.network != self._network:
            return f"it is for network '{record.network}'"
        if not isinstance(body, TransmissionConfirmation):
            return "it is another kind of record"
        agreed = TransmissionConfirmation(
            key=request.key,
            root=request.root,
            size_bytes=body.size_bytes,
            requester=self._own,
            holder=asked.command.holder.peer,
            valid_until_ms=request.valid_until_ms,
            requester_signature=request.requester_signature,
            purpose=request.purpose,
        )
        if body != agreed:
            return "its terms are not those that were asked for"
        return "" if signed.authentic() else "its signature does not hold"

    def _policy_problem(self, asked: _Asked, proof: OfferProof | None) -> str:
        """Say why the policy under which a holder confirms is not one for the data, or return ''."""
        if proof is None:
            return ""
        problem = self._check_policy(proof)
        body = proof.record.record.body
        if problem or not isinstance(body, DataPolicy) or body.terms is None:
            return f"its policy is not proven: {problem or 'it is none'}"
        return "" if fits(body.pattern, asked.command.key) else "its policy is for other data"

    # --- holder ---------------------------------------------------------------------------------

    def receive_request(self, peer: PeerId, message: ConfirmRequest, now: Instant) -> list[Output]:
        """Countersign what `peer` asks for, or refuse and name the condition that failed."""
        chain, refusal = self._judge(peer, message, now)
        if chain is None:
            answer = ConfirmAnswer(message.query, message.root, None, refusal[:256], None)
            wanted = (message.key, message.root, message.purpose)
            subject = self._directory.subject(peer)
            return [Send(peer, answer), Notify(AccessRefused(subject, *wanted, refusal))]
        policy = self._directory.policy(chain, message.key, message.root)
        terms_id = (peer, message.requester_signature)
        record = self._given.get(terms_id)
        if record is not None:  # The same terms need no second record.
            return [Send(peer, ConfirmAnswer(message.query, message.root, record, "", policy))]
        confirmation = TransmissionConfirmation(
            key=message.key,
            root=message.root,
            size_bytes=self._directory.size_bytes(message.root),
            requester=peer,
            holder=self._own,
            valid_until_ms=message.valid_until_ms,
            requester_signature=message.requester_signature,
            purpose=message.purpose,
        )
        since = self._directory.height(chain)
        record = sign_record(
            self._signer, self._network, chain, confirmation, now.wall_ms, message.query, since
        )
        self._given[terms_id] = record
        if len(self._given) > self._limit:
            del self._given[next(iter(self._given))]
        return [
            Countersigned(record),
            Send(peer, ConfirmAnswer(message.query, message.root, record, "", policy)),
            Notify(Confirmed(confirmation)),
        ]

    def _judge(self, peer: PeerId, message: ConfirmRequest, now: Instant) -> tuple[ChainId | None, str]:
        """Return the chain that records the confirmation, or None and the condition that failed."""
        if not self._directory.holds(message.root):
            return None, NOT_HELD
        if message.requester != peer:
            return None, "requester is not the sender"
        terms = confirmation_terms(
            self._network,
            message.key,
            message.root,
            peer,
            self._own,
            message.valid_until_ms,
            message.purpose,
        )
        if not verify(peer, "confirmation", terms, message.requester_signature):
            return None, "the requester's signature does not hold"
        if message.valid_until_ms <= now.wall_ms:
            return None, "expired by the holder's clock"
        if message.valid_until_ms > now.wall_ms + MAX_VALIDITY_MS:
            return None, f"valid for more than {MAX_VALIDITY_MS // 60_000} minutes by the holder's clock"
        return self._directory.admit(peer, message.key, message.root, message.purpose, now.wall_ms)

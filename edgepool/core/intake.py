"""How records come to one chain: the door, those that wait, those of this peer's owner [S3.9].

A record is let in if it is authentic and its author may write here; whether it may stand is judged when a
block is made or checked, so a record that overtook its predecessor waits instead of being lost. What
waits while no block comes is sent to the members again, and what may not stand for long is given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from edgepool.config import Limits
from edgepool.core.deadlines import earliest
from edgepool.core.ledger.mempool import DUPLICATE, Mempool
from edgepool.core.ledger.state import ChainState
from edgepool.core.ledger.succession import heirs_to_come
from edgepool.core.machine import (
    Broadcast,
    Done,
    Effect,
    Failed,
    Instant,
    Misbehaved,
    Notify,
    RecordRef,
    Send,
)
from edgepool.core.underway import RESEND_MS, Underway
from edgepool.errors import DecodeError
from edgepool.model.block import MAX_BLOCK_BYTES, MAX_BLOCK_RECORDS, Block
from edgepool.model.codec import decode, encode
from edgepool.model.ids import PeerId
from edgepool.model.message import Records, RecordsRefused
from edgepool.model.pool import Member
from edgepool.model.record import (
    MAX_RECORD_BYTES,
    Body,
    DataOffer,
    MembershipChange,
    SignedRecord,
)
from edgepool.model.trust import TrustChange
from edgepool.model.vote import Equivocation

UNFIT_MS = 10_000
"""How long a record that no contract lets stand is kept waiting for what it depends on."""

JUDGE_MS = 2_500
"""How often waiting records are judged again."""

RESEND_RECORDS = 64
"""How many records one message has when they are sent again."""


class Intake:
    """The records that wait for one chain. `state` is the chain's, replaced when the chain takes another."""

    def __init__(self, state: ChainState, me: PeerId, limits: Limits) -> None:
        self.state = state
        self._me = me
        self._mempool = Mempool(limits.mempool_records, _authors(state))
        self._underway = Underway(limits.mempool_records)
        self._unfit_since_ms: dict[bytes, int] = {}
        self._gossip_at_ms: int | None = None
        self._judge_at_ms: int | None = None
        self._others: tuple[tuple[PeerId, ...], tuple[Member, ...], tuple[PeerId, ...]] | None = None

    def __len__(self) -> int:
        return len(self._mempool)

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which to call `wake`, if any."""
        return earliest(self._underway.deadline, self._gossip_at_ms, self._judge_at_ms)

    @property
    def others(self) -> tuple[PeerId, ...]:
        """Who keeps waiting records beside this peer: the members, and who is about to be one."""
        members, following = self.state.members, self.state.next_roster
        if self._others is None or members is not self._others[0] or following is not self._others[1]:
            people = dict.fromkeys((*members, *(member.peer for member in following)))
            self._others = (members, following, tuple(peer for peer in people if peer != self._me))
        return self._others[2]

    def _keeps_records(self) -> bool:
        return self.state.may_write(self._me)

    # --- records come ---------------------------------------------------------------------------

    def submit(self, ticket: int, signed: SignedRecord, now: Instant) -> tuple[list[Effect], bool]:
        """Take a record of this peer's owner (`ticket` 0 wants no answer); say whether it was taken."""
        # This peer has signed it a moment ago, so its signature is not checked again.
        reason = "" if signed.record.author == self._me else "the record is another peer's"
        reason = reason or _unreadable(signed) or self._door(signed) or self.state.draft().add_new(signed)
        reason = reason or self._underway.problem()
        if not reason and self._keeps_records():
            reason = self._mempool.add(signed)
        if reason:
            return ([Notify(Failed(ticket, reason, refused=True))] if ticket else []), False
        self._underway.add(ticket, signed, now.monotonic_ms)
        self._judge_by(now.monotonic_ms + JUDGE_MS)
        others = self.others
        return ([Broadcast(others, Records(self.state.chain, (signed,)))] if others else []), True

    def receive(self, peer: PeerId, message: Records, now: Instant) -> tuple[list[Effect], bool]:
        """Take records that `peer` has sent; say whether any were new."""
        effects: list[Effect] = []
        added = False
        for signed in message.records if self._keeps_records() else ():
            record_id = signed.id
            if self._mempool.has(record_id) or self.state.has_record(record_id):
                continue
            reason = self._door(signed)
            if not reason and not signed.authentic():
                effects.append(Notify(Misbehaved(peer, "forged record")))
                break
            reason = reason or self._mempool.add(signed)
            if reason and reason != DUPLICATE:
                effects.append(Send(peer, RecordsRefused(self.state.chain, record_id, reason[:256])))
            added = added or not reason
        if added:
            if self._gossip_at_ms is None:
                self._gossip_at_ms = now.monotonic_ms + RESEND_MS
            self._judge_by(now.monotonic_ms + JUDGE_MS)
        return effects, added

    def receive_refusal(self, peer: PeerId, message: RecordsRefused) -> list[Effect]:
        """Believe a refusal when more members than can be faulty say so."""
        if peer not in self.others or message.record_id not in self._underway:
            return []
        if self._underway.refused(message.record_id, peer) <= (len(self.state.members) - 1) // 3:
            return []
        return self._give_up(message.record_id, message.reason)

    def for_peer(self, peer: PeerId) -> list[Effect]:
        """Tell a peer whose link has come up what of this peer's own waits."""
        records = tuple(islice(self._underway, RESEND_RECORDS))
        return [Send(peer, Records(self.state.chain, records))] if records and peer in self.others else []

    def _door(self, signed: SignedRecord) -> str:
        """Say why a record may not even wait here, or return ''. Its signature is not looked at."""
        record, state = signed.record, self.state
        if record.network != state.network or record.chain != state.chain:
            return "the record is for another chain"
        problem = state.author_problem(record)
        if problem and record.author not in heirs_to_come(state):  # others may be a block ahead
            return problem
        if record.since < state.horizon:
            return f"the record was signed at height {record.since}, which is forgotten: sign it anew"
        if signed.size_bytes > MAX_RECORD_BYTES:
            return f"the record has more than {MAX_RECORD_BYTES} bytes"
        return ""

    # --- records go -----------------------------------------------------------------------------

    def has(self, record_id: bytes) -> bool:
        """Say whether the record with this id waits here, so its signature has been checked."""
        return self._mempool.has(record_id)

    def any_fit(self) -> bool:
        """Say whether a record waits that may stand now."""
        draft = self.state.draft()
        return any(not draft.add_new(signed) for signed in self._judged())

    def _judged(self) -> Iterator[SignedRecord]:
        """Yield the waiting records of which this peer would know if they stood on the chain already."""
        unknown = self.state.unknown_height
        return (signed for signed in self._mempool.in_order() if signed.record.since >= unknown)

    def pick(self, now: Instant) -> list[SignedRecord]:
        """Return the records for a block: those that may stand, fairly between their authors."""
        draft = self.state.draft()
        records: list[SignedRecord] = []
        size_bytes = 0
        for signed in self._judged():
            if draft.add_new(signed):
                self._unfit_since_ms.setdefault(signed.id, now.monotonic_ms)
                continue
            records.append(signed)
            size_bytes += signed.size_bytes
            if len(records) == MAX_BLOCK_RECORDS or size_bytes > MAX_BLOCK_BYTES - MAX_RECORD_BYTES:
                break
        return records

    def committed(self, block: Block, now: Instant) -> list[Effect]:
        """Let the records of a block go that `state` has taken in; tell their owner where they stand."""
        if self._gossip_at_ms is not None:
            self._gossip_at_ms = now.monotonic_ms + RESEND_MS
        self._underway.block_committed(now.monotonic_ms)
        effects: list[Effect] = []
        ids = [signed.id for signed in block.records]
        surprises = [
            _said(signed.record.body)
            for signed in block.records
            if signed.record.author == self._me and signed.id not in self._underway
        ]
        self._mempool.discard(ids)
        for index, record_id in enumerate(ids):
            self._unfit_since_ms.pop(record_id, None)
            ticket = self._underway.take(record_id)
            if ticket:
                ref = RecordRef(self.state.chain, block.header.height, index)
                effects.append(Notify(Done(ticket, ref)))
        governs = (MembershipChange, TrustChange, Equivocation)
        if any(isinstance(signed.record.body, governs) for signed in block.records):
            self._mempool.share_among(_authors(self.state))
            effects += self._drop_outdated(governs)
        return effects + (self._drop_repeated(surprises) if surprises else [])

    def _drop_repeated(self, surprises: Sequence[object]) -> list[Effect]:
        """Give up what this peer says once more because it did not know that it was on its way already.

        Before it died it had sent the record, which stands now.
        """
        effects: list[Effect] = []
        for signed in list(self._underway):
            if _said(signed.record.body) in surprises and (reason := self.state.draft().add_new(signed)):
                effects += self._give_up(signed.id, reason)
        return effects

    def _drop_outdated(self, kinds: tuple[type[Body], ...]) -> list[Effect]:
        """Give up what says of the pool something that is said or settled by now."""
        waiting = {signed.id: signed for signed in self._mempool.in_order()}
        waiting.update((signed.id, signed) for signed in self._underway)
        effects: list[Effect] = []
        for record_id, signed in waiting.items():
            reason = self.state.draft().add_new(signed) if isinstance(signed.record.body, kinds) else ""
            if reason:
                effects += self._give_up(record_id, reason)
        return effects

    @property
    def own(self) -> tuple[Body, ...]:
        """The bodies of this peer's records that are under way."""
        return tuple(signed.record.body for signed in self._underway)

    def mine(self, body: Body) -> bool:
        """Say whether a record of this peer with this body is under way."""
        return any(signed.record.body == body for signed in self._underway)

    def accuses(self, member: PeerId) -> bool:
        """Say whether evidence against `member` waits here that may stand."""
        return any(
            isinstance(signed.record.body, Equivocation)
            and signed.record.body.member == member
            and not self.state.draft().add_new(signed)
            for signed in (*self._mempool.in_order(), *self._underway)
        )

    def adopted(self, state: ChainState) -> list[Effect]:
        """Go on with another state, to which all that waits may have led already: let it go."""
        self.state = state
        self._mempool.share_among(_authors(state))
        self._mempool.discard([signed.id for signed in self._mempool.in_order()])
        self._unfit_since_ms.clear()
        reason = "not known: this peer has taken over the pool's state without all of its blocks"
        ids = [signed.id for signed in self._underway]
        return [effect for one in ids for effect in self._underway.fail(one, reason, refused=False)]

    # --- records wait ---------------------------------------------------------------------------

    def wake(self, now: Instant, leaders: tuple[PeerId, ...]) -> list[Effect]:
        """Do what is due; `leaders` are those of the present round and the next."""
        return self._pass_on(now, leaders) + self._drop_unfit(now)

    def _pass_on(self, now: Instant, leaders: tuple[PeerId, ...]) -> list[Effect]:
        """Send again what waits while no block is committed: a leader may not have it yet.

        Own records go to all, others' to the leaders only: if everybody sent everything to everybody, a
        large pool that is late would have no time for anything else, and be later still.
        """
        parcels = [(self.others, self._underway.due(now.monotonic_ms))]
        if self._gossip_at_ms is not None and self._gossip_at_ms <= now.monotonic_ms:
            rest = [signed for signed in self._mempool.in_order() if signed.id not in self._underway]
            parcels.append((tuple(peer for peer in leaders if peer != self._me), rest))
            self._gossip_at_ms = now.monotonic_ms + RESEND_MS if len(self._mempool) else None
        return [
            Broadcast(peers, Records(self.state.chain, part))
            for peers, records in parcels
            if peers
            for part in _parts(records)
        ]

    def _drop_unfit(self, now: Instant) -> list[Effect]:
        """Give up on records that no contract has let stand for long, and tell their owner.

        Also on those that only pass through here, as an observer's do. This goes by a clock of its
        own: it is due however busy the chain is.
        """
        if self._judge_at_ms is None or self._judge_at_ms > now.monotonic_ms:
            return []
        draft = self.state.draft()
        reasons = {signed.id: draft.add_new(signed) for signed in self._mempool.in_order()}
        for signed in self._underway:
            if signed.id not in reasons:
                reasons[signed.id] = draft.add_new(signed)
        self._judge_at_ms = now.monotonic_ms + JUDGE_MS if reasons else None
        effects: list[Effect] = []
        for record_id, reason in reasons.items():
            if not reason:
                self._unfit_since_ms.pop(record_id, None)
                continue
            since = self._unfit_since_ms.setdefault(record_id, now.monotonic_ms)
            if now.monotonic_ms - since >= UNFIT_MS:
                effects += self._give_up(record_id, reason)
        return effects

    def _give_up(self, record_id: bytes, reason: str) -> list[Effect]:
        self._mempool.discard([record_id])
        self._unfit_since_ms.pop(record_id, None)
        return self._underway.fail(record_id, reason)

    def _judge_by(self, at_ms: int) -> None:
        if self._judge_at_ms is None:
            self._judge_at_ms = at_ms


def _authors(state: ChainState) -> int:
    """Return among how many the room for waiting records is shared: members, observers and one more."""
    return len(state.next_roster) + len(state.observers) + 1


def _said(body: Body) -> object:
    """Return what a record says: of an offer which data, wherever it is had from."""
    return (body.key, body.version) if isinstance(body, DataOffer) else body


def _parts(records: Sequence[SignedRecord]) -> list[tuple[SignedRecord, ...]]:
    starts = range(0, len(records), RESEND_RECORDS)
    return [tuple(records[start : start + RESEND_RECORDS]) for start in starts]


def _unreadable(signed: SignedRecord) -> str:
    """Say why other peers could not decode a record made here, or return ''.

    Bounds of values are checked when they are decoded, not when they are made.
    """
    try:
        decode(SignedRecord, encode(signed), MAX_RECORD_BYTES)
    except DecodeError as error:
        return str(error)
    return ""

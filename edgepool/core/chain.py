"""One chain of one peer: what ties the consensus engine to the ledger.

The engine decides which block stands; the ledger decides what may be in it. A record enters the
mempool if it is authentic and its author may write here; whether it may stand is judged when a
block is made or checked, so a record that overtook its predecessor waits instead of being lost.
"""

from __future__ import annotations

from itertools import islice

from edgepool.config import ConsensusSettings, Limits
from edgepool.core.consensus.engine import Decided, Engine, Output
from edgepool.core.consensus.lottery import leader_order, lottery_seed, weights
from edgepool.core.ledger.mempool import Mempool
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import (
    BlockCommitted,
    BlockSource,
    Broadcast,
    CommitBlock,
    Done,
    Effect,
    Failed,
    Instant,
    Misbehaved,
    Notify,
    Persist,
    RecordRef,
    Send,
)
from edgepool.core.underway import RESEND_MS, Underway
from edgepool.errors import DecodeError, StorageError
from edgepool.model.beacon import BeaconChain
from edgepool.model.block import (
    MAX_BLOCK_BYTES,
    MAX_BLOCK_RECORDS,
    Block,
    CertifiedBlock,
    Header,
    records_root,
)
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId
from edgepool.model.message import Blocks, Polka, Proposal, Records, RecordsRefused, Status, Votes
from edgepool.model.pool import Genesis
from edgepool.model.record import MAX_RECORD_BYTES, MachiningRequirement, SignedRecord

UNFIT_MS = 30_000
"""How long a record that no contract lets stand is kept waiting for what it depends on."""

JUDGE_MS = 10_000
"""How often waiting records are judged again."""

_RESEND_RECORDS = 64


class Chain:
    """One chain: engine, state and mempool. `member` says whether this peer votes on it."""

    def __init__(
        self,
        genesis: Genesis,
        *,
        signer: Signer,
        beacon_secret: bytes,
        settings: ConsensusSettings,
        limits: Limits,
        source: BlockSource,
        height: int,
        vote_state: bytes,
    ) -> None:
        self.genesis = genesis
        self.id = genesis.chain
        self.state = ChainState(genesis)
        self.member = signer.peer in genesis.members
        self.people = tuple(member.peer for member in genesis.invitation.people())
        self._me = signer.peer
        self._others = tuple(peer for peer in genesis.members if peer != self._me)
        self._beacon_secret = beacon_secret
        self._beacon: BeaconChain | None = None
        self._mempool = Mempool(limits.mempool_records, len(self.people) + 1)
        self._underway = Underway(limits.mempool_records)
        self._unfit_since_ms: dict[bytes, int] = {}
        self._gossip_at_ms: int | None = None
        self._judge_at_ms: int | None = None
        self._order_height = -1
        self._order: tuple[PeerId, ...] = ()
        for past in range(1, height + 1):
            certified = source.block(self.id, past)
            if certified is None:
                raise StorageError(f"chain {self.id} lacks block {past}: it is missing in the store")
            self.state.apply(certified.block)
        self.engine = Engine(
            network=genesis.invitation.network,
            chain=self.id,
            members=genesis.members,
            observers=tuple(member.peer for member in genesis.invitation.observers),
            signer=signer,
            settings=settings,
            app=self,
            source=source,
            height=height,
            vote_state=vote_state,
        )

    # --- what the node calls ----------------------------------------------------------------

    @property
    def waiting_records(self) -> int:
        """How many records wait to be packed."""
        return len(self._mempool)

    def start(self, now: Instant) -> list[Effect]:
        """Begin, or go on after a restart."""
        return self._settle(self.engine.start(now), now)

    def submit(self, ticket: int, signed: SignedRecord, now: Instant) -> list[Effect]:
        """Take a record of this peer's owner; `ticket` 0 wants no answer."""
        # This peer has signed it a moment ago, so its signature is not checked again.
        own = signed.record.author == self._me
        reason = "" if own else "the record is another peer's"
        reason = reason or _unreadable(signed) or self._door(signed) or self.state.draft().add(signed)
        reason = reason or self._underway.problem()
        if not reason and self.member:
            reason = self._mempool.add(signed)
        if reason:
            return [Notify(Failed(ticket, reason, refused=True))] if ticket else []
        self._underway.add(ticket, signed, now.monotonic_ms)
        if self._judge_at_ms is None:
            self._judge_at_ms = now.monotonic_ms + JUDGE_MS
        effects: list[Effect] = []
        if self._others:
            effects.append(Broadcast(self._others, Records(self.id, (signed,))))
        return effects + self._settle(self.engine.nudge(now), now)

    def receive(
        self,
        peer: PeerId,
        message: Records | RecordsRefused | Proposal | Votes | Polka | Status | Blocks,
        now: Instant,
    ) -> list[Effect]:
        """Take a message about this chain from one of its people."""
        if isinstance(message, Records):
            return self._receive_records(peer, message, now)
        if isinstance(message, RecordsRefused):
            return self._receive_refusal(peer, message)
        return self._settle(self.engine.receive(peer, message, now), now)

    def peer_up(self, peer: PeerId, now: Instant) -> list[Effect]:
        """A link to one of this chain's people stands: tell it where we are and what waits."""
        effects = self._settle(self.engine.peer_up(peer, now), now)
        records = tuple(islice(self._underway, _RESEND_RECORDS))
        if peer in self._others and records:
            effects.append(Send(peer, Records(self.id, records)))
        return effects

    def wake(self, now: Instant) -> list[Effect]:
        """Do what is due."""
        effects: list[Effect] = []
        if self.engine.deadline is not None and self.engine.deadline <= now.monotonic_ms:
            effects += self._settle(self.engine.wake(now), now)
        return effects + self._pass_on(now) + self._drop_unfit(now)

    def wakeup_at(self) -> int | None:
        """Return when to call `wake`, in monotonic ms."""
        deadlines = (self.engine.deadline, self._underway.deadline, self._gossip_at_ms, self._judge_at_ms)
        return min((at for at in deadlines if at is not None), default=None)

    # --- Application: what the engine asks ---------------------------------------------------

    def leader(self, round: int) -> PeerId:
        """Return who may propose at the next height in `round` [S3.11]."""
        if self._order_height != self.state.height:
            self._order = next_leaders(self.state)
            self._order_height = self.state.height
        return self._order[round % len(self._order)]

    def has_waiting(self) -> bool:
        """Say whether the mempool has a record that may stand now."""
        draft = self.state.draft()
        return any(not draft.add(signed) for signed in self._mempool.in_order())

    def has_enough(self) -> bool:
        """Say whether the mempool has as many records as a block can hold."""
        return len(self._mempool) >= MAX_BLOCK_RECORDS

    def make_block(self, round: int, now: Instant) -> Block | None:
        """Pack the records that may stand, fairly between their authors."""
        draft = self.state.draft()
        records: list[SignedRecord] = []
        size_bytes = 0
        for signed in self._mempool.in_order():
            if draft.add(signed):
                self._unfit_since_ms.setdefault(signed.id, now.monotonic_ms)
                continue
            records.append(signed)
            size_bytes += len(encode(signed))
            if len(records) == MAX_BLOCK_RECORDS or size_bytes > MAX_BLOCK_BYTES - MAX_RECORD_BYTES:
                break
        if not records:
            return None
        header = Header(
            self.state.network,
            self.id,
            self.state.height + 1,
            round,
            self.state.last_block_id,
            records_root(records),
            len(records),
            self._me,
            self._own_beacon().reveal(self.state.reveals[self._me]),
            now.wall_ms,
        )
        return Block(header, tuple(records))

    def check_block(self, block: Block) -> str:
        """Say why `block` may not stand at the next height, or return ''."""
        header = block.header
        reason = self.state.header_problem(header) or block.body_problem()
        if reason:
            return reason
        if header.proposer != self.leader(header.round):
            return f"the lottery gave round {header.round} to {self.leader(header.round)}"
        size_bytes = sum(len(encode(signed)) for signed in block.records)
        if size_bytes > MAX_BLOCK_BYTES:
            return f"the records have {size_bytes} bytes, more than the {MAX_BLOCK_BYTES} of a block"
        draft = self.state.draft()
        for index, signed in enumerate(block.records):
            reason = draft.add(signed)
            if reason:
                return f"record {index}: {reason}"
            if not self._mempool.has(signed.id) and not signed.authentic():
                return f"the signature of record {index} does not hold"
        return ""

    # --- records ----------------------------------------------------------------------------

    def _door(self, signed: SignedRecord) -> str:
        """Say why a record may not even wait here, or return ''. Its signature is not looked at."""
        record = signed.record
        if record.network != self.state.network or record.chain != self.id:
            return "the record is for another chain"
        if record.author not in self.state.members and not (
            record.author == self.genesis.invitation.coordinator
            and isinstance(record.body, MachiningRequirement)
        ):
            return "the author may not write on this chain"
        if len(encode(signed)) > MAX_RECORD_BYTES:
            return f"the record has more than {MAX_RECORD_BYTES} bytes"
        return ""

    def _receive_records(self, peer: PeerId, message: Records, now: Instant) -> list[Effect]:
        if not self.member:
            return []
        effects: list[Effect] = []
        added = False
        for signed in message.records:
            record_id = signed.id
            if self._mempool.has(record_id) or self.state.has_record(record_id):
                continue
            reason = self._door(signed)
            if not reason and not signed.authentic():
                return [*effects, Notify(Misbehaved(peer, "forged record"))]
            reason = reason or self._mempool.add(signed)
            if reason and reason != "duplicate":
                effects.append(Send(peer, RecordsRefused(self.id, record_id, reason[:256])))
            added = added or not reason
        if added:
            if self._gossip_at_ms is None:
                self._gossip_at_ms = now.monotonic_ms + RESEND_MS
            if self._judge_at_ms is None:
                self._judge_at_ms = now.monotonic_ms + JUDGE_MS
            effects += self._settle(self.engine.nudge(now), now)
        return effects

    def _receive_refusal(self, peer: PeerId, message: RecordsRefused) -> list[Effect]:
        """Believe a refusal when more members than can be faulty say so."""
        if peer not in self._others or message.record_id not in self._underway:
            return []
        if self._underway.refused(message.record_id, peer) <= (len(self.state.members) - 1) // 3:
            return []
        self._unfit_since_ms.pop(message.record_id, None)
        self._mempool.discard([message.record_id])
        return self._underway.fail(message.record_id, message.reason)

    def _pass_on(self, now: Instant) -> list[Effect]:
        """Send again what waits while no block is committed: the leader may not have it yet."""
        due = self._underway.due(now.monotonic_ms)
        effects: list[Effect] = []
        if self._gossip_at_ms is not None and self._gossip_at_ms <= now.monotonic_ms:
            due += [signed for signed in self._mempool.in_order() if signed.id not in self._underway]
            self._gossip_at_ms = now.monotonic_ms + RESEND_MS if len(self._mempool) else None
        for start in range(0, len(due) if self._others else 0, _RESEND_RECORDS):
            records = Records(self.id, tuple(due[start : start + _RESEND_RECORDS]))
            effects.append(Broadcast(self._others, records))
        return effects

    def _drop_unfit(self, now: Instant) -> list[Effect]:
        """Give up on records that no contract has let stand for long, and tell their owner.

        Also on those that only pass through here, as an observer's do. This goes by a clock of its
        own: it is due however busy the chain is.
        """
        if self._judge_at_ms is None or self._judge_at_ms > now.monotonic_ms:
            return []
        draft = self.state.draft()
        reasons = {signed.id: draft.add(signed) for signed in self._mempool.in_order()}
        for signed in self._underway:
            if signed.id not in reasons:
                reasons[signed.id] = draft.add(signed)
        self._judge_at_ms = now.monotonic_ms + JUDGE_MS if reasons else None
        effects: list[Effect] = []
        for record_id, reason in reasons.items():
            if not reason:
                self._unfit_since_ms.pop(record_id, None)
                continue
            since = self._unfit_since_ms.setdefault(record_id, now.monotonic_ms)
            if now.monotonic_ms - since < UNFIT_MS:
                continue
            self._mempool.discard([record_id])
            self._unfit_since_ms.pop(record_id)
            effects += self._underway.fail(record_id, reason)
        return effects

    # --- decisions --------------------------------------------------------------------------

    def _settle(self, outputs: list[Output], now: Instant) -> list[Effect]:
        """Turn the engine's outputs into effects; apply what it has decided."""
        effects: list[Effect] = []
        while outputs:
            following: list[Output] = []
            for output in outputs:
                if isinstance(output, Decided):
                    effects += self._commit(output.certified, now)
                    following = self.engine.advance(now)
                else:
                    effects.append(output)
            outputs = following
        return effects

    def _commit(self, certified: CertifiedBlock, now: Instant) -> list[Effect]:
        block = certified.block
        self.state.apply(block)
        if self._gossip_at_ms is not None:
            self._gossip_at_ms = now.monotonic_ms + RESEND_MS
        self._underway.block_committed(now.monotonic_ms)
        effects: list[Effect] = [
            Persist(CommitBlock(certified)),
            Notify(BlockCommitted(self.id, certified)),
        ]
        ids = [signed.id for signed in block.records]
        self._mempool.discard(ids)
        for index, record_id in enumerate(ids):
            self._unfit_since_ms.pop(record_id, None)
            ticket = self._underway.take(record_id)
            if ticket:
                ref = RecordRef(self.id, block.header.height, index)
                effects.append(Notify(Done(ticket, ref)))
        return effects

    def _own_beacon(self) -> BeaconChain:
        if self._beacon is None:
            self._beacon = BeaconChain(self._beacon_secret)
        return self._beacon


def next_leaders(state: ChainState) -> tuple[PeerId, ...]:
    """Return who may propose at the height after that of `state`: round r is led by [r % n]."""
    seed = lottery_seed(state.network, state.chain, state.height + 1, state.beacon)
    return leader_order(seed, weights(state.work(), state.members))


def _unreadable(signed: SignedRecord) -> str:
    """Say why other peers could not decode a record made here, or return ''.

    Bounds of values are checked when they are decoded, not when they are made.
    """
    try:
        decode(SignedRecord, encode(signed), MAX_RECORD_BYTES)
    except DecodeError as error:
        return str(error)
    return ""

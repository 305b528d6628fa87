"""A chain's state: what its blocks say, up to a height [S3.7 to S3.11].

`apply` enters a block that was checked before; it is deterministic, so members with the same blocks
have the same state. A `Draft` tries records in order on top of a state without touching it: that is
how a block is put together, and how a proposed one is judged.
"""

from __future__ import annotations

from edgepool.core.ledger.contracts import record_problem
from edgepool.core.ledger.credit import CYCLE_BLOCKS, WorkAccount, take_credit
from edgepool.core.ledger.facts import Facts, OfferEntry, StepState, TaskState
from edgepool.model.beacon import first_beacon, next_beacon
from edgepool.model.block import Block, Header
from edgepool.model.crypto import sha256
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import BEACON_LENGTH, Genesis
from edgepool.model.record import (
    RECORD_KINDS,
    MachiningCompletion,
    MachiningProcedure,
    QualityInspection,
    SignedRecord,
    kind_of,
)
from edgepool.model.twin import DataKey

__all__ = ["CYCLE_BLOCKS", "STATE_VERSION", "ChainState", "Draft", "OfferEntry", "StepState", "TaskState"]

STATE_VERSION = 1
"""Which rules make a state of blocks; it rises whenever the same blocks would make another state."""


class ChainState:
    """What one chain says after its block at `height`.

    `last_block_id` is the id of that block (the 20 bytes of the chain's id before the first), `beacon`
    the 32 bytes that the next lottery draws from, `time_ms` the last packer's clock. `tips` and
    `reveals` are each member's beacon tip and how often it has revealed, `counts` the records by kind,
    `packed` the blocks that each member has packed, `tasks` the tasks by number.
    """

    def __init__(self, genesis: Genesis) -> None:
        self._facts = Facts(genesis)
        self.genesis = genesis
        self.chain: ChainId = self._facts.chain
        self.network: str = self._facts.network
        self.members: tuple[PeerId, ...] = genesis.members
        self.height = 0
        self.last_block_id: bytes = bytes.fromhex(self.chain)
        self.beacon: bytes = first_beacon(genesis)
        self.time_ms: int = genesis.invitation.created_ms
        self.last_packer: PeerId | None = None
        self.tips: dict[PeerId, bytes] = {yes.member: yes.beacon_tip for yes in genesis.acceptances}
        self.reveals: dict[PeerId, int] = dict.fromkeys(self.members, 0)
        self.counts: dict[str, int] = dict.fromkeys(RECORD_KINDS, 0)
        self.packed: dict[PeerId, int] = dict.fromkeys(self.members, 0)
        self.tasks: dict[str, TaskState] = self._facts.tasks
        self._work = WorkAccount(self.members)

    @property
    def demands(self) -> int:
        """How many data demands the chain holds."""
        return self.counts["demand"]

    def draft(self) -> Draft:
        """Return an empty draft on top of this state, good until the next block is applied."""
        return Draft(self, self._facts.layer())

    def apply(self, block: Block) -> None:
        """Enter a block that was checked; AssertionError if it is not the next one of this chain."""
        header = block.header
        assert header.chain == self.chain, "a block of another chain"
        assert header.height == self.height + 1, f"block {header.height} after height {self.height}"
        for index, signed in enumerate(block.records):
            body = signed.record.body
            self._facts.enter(header.height, index, signed)
            self.counts[kind_of(body)] += 1
            if isinstance(body, MachiningProcedure | MachiningCompletion | QualityInspection):
                credit = take_credit(self.tasks[body.task], body)
                if credit is not None:
                    self._work.add(header.height, *credit)
        self._work.close(header.height)
        self.height = header.height
        self.last_block_id = header.id
        self.time_ms = header.time_ms
        self.last_packer = header.proposer
        self.packed[header.proposer] += 1
        self.beacon = next_beacon(self.beacon, header.reveal)
        if header.reveal:
            self.tips[header.proposer] = header.reveal
            self.reveals[header.proposer] += 1

    def header_problem(self, header: Header) -> str:
        """Say why `header` cannot be that of the next block, or return ''.

        Whether its proposer has won the lottery of the round is for the chain to check.
        """
        if header.network != self.network:
            return "the block is for another network"
        if header.chain != self.chain:
            return "the block is for another chain"
        if header.height != self.height + 1:
            return f"the block has height {header.height}, the next one is {self.height + 1}"
        if header.previous != self.last_block_id:
            return "the block does not stand on the last one"
        if header.proposer not in self.tips:
            return "the proposer is no member"
        if self.reveals[header.proposer] >= BEACON_LENGTH:
            return "the proposer's beacon is used up, yet the block reveals one" if header.reveal else ""
        if not header.reveal:
            return "the block reveals nothing of the proposer's beacon"
        if sha256(header.reveal) != self.tips[header.proposer]:
            return "what the block reveals does not lead to the proposer's beacon tip"
        return ""

    def has_record(self, record_id: bytes) -> bool:
        """Say whether the record with this id is on the chain."""
        return self._facts.has_record(record_id)

    def offers(self, key: DataKey, version: int = 0) -> tuple[OfferEntry, ...]:
        """Return the offers of one version of `key`, the oldest first; version 0 is the newest here."""
        return self._facts.offers(key, version)

    def offers_of(self, key: DataKey) -> tuple[OfferEntry, ...]:
        """Return the offers of all versions of `key`, the oldest version first."""
        return self._facts.offers_of(key)

    def work(self) -> dict[PeerId, int]:
        """Return the credited minutes of each member that count for the lottery of the next height.

        They are of the cycle before last, a cycle having CYCLE_BLOCKS heights; empty before there
        is one. Who has earned none is left out [S3.11].
        """
        return self._work.for_height(self.height + 1)


class Draft:
    """Records tried in order on top of a state, which they do not change."""

    def __init__(self, state: ChainState, facts: Facts) -> None:
        self._state = state
        self._facts = facts
        self._height = state.height + 1
        self._count = 0

    def add(self, signed: SignedRecord) -> str:
        """Add a record and return ''; or return why it may not stand after those added before.

        A refused record changes nothing. AssertionError if the state has grown since.
        """
        assert self._state.height + 1 == self._height, "a draft on a state that has grown"
        problem = record_problem(self._facts, signed)
        if not problem:
            self._facts.enter(self._height, self._count, signed)
            self._count += 1
        return problem

"""A chain's state: what its blocks say, up to a height [S3.7 to S3.11].

`apply` enters a block that was checked before; it is deterministic, so members with the same blocks
have the same state. A `Draft` (draft.py) tries records on top of a state without touching it. What the
state commits to, and how it is written down and taken up again, is said in root.py and snapshot.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgepool.core.ledger.chainfacts import ChainFacts
from edgepool.core.ledger.contracts import author_problem
from edgepool.core.ledger.credit import CYCLE_BLOCKS, WorkAccount
from edgepool.core.ledger.draft import Draft
from edgepool.core.ledger.facts import OfferEntry, PolicyEntry, StepState, TaskState
from edgepool.core.ledger.roster import Succession
from edgepool.core.ledger.snapshot import (
    Core,
    Turns,
    load_facts,
    load_work,
    read_snapshot,
    saved_work,
    write_snapshot,
)
from edgepool.core.ledger.statements import check_registered, effects_of
from edgepool.core.ledger.support import rekeyed
from edgepool.core.ledger.trust import Trust, state_root
from edgepool.errors import DecodeError
from edgepool.model.beacon import first_beacon, next_beacon
from edgepool.model.block import Block, Header
from edgepool.model.codec import encode
from edgepool.model.crypto import sha256
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import BEACON_LENGTH, Genesis, Member
from edgepool.model.record import (
    RECORD_KINDS,
    DataOffer,
    MachiningProcedure,
    MachiningRequirement,
    MembershipChange,
    QualityInspection,
    Record,
    kind_of,
)
from edgepool.model.succession import Adoption
from edgepool.model.twin import DataKey

__all__ = ["CYCLE_BLOCKS", "STATE_VERSION", "ChainState", "OfferEntry", "StepState", "TaskState"]

STATE_VERSION = 7
"""Which rules make a state of blocks; it rises whenever the same blocks would make another state."""

_WORK_RECORDS = (MachiningRequirement, MachiningProcedure, QualityInspection)
"""What the work account looks at."""


class ChainState:
    """What one chain says after its block at `height`.

    `last_block_id` is the id of that block (the 20 bytes of the chain's id before the first), `beacon`
    the 32 bytes that the next lottery draws from, `time_ms` the last packer's clock. `tips` and
    `reveals` are each member's beacon tip and how often it has revealed, `counts` the records by kind,
    `packed` the blocks that each member has packed, `tasks` the tasks by number.
    """

    def __init__(self, genesis: Genesis) -> None:
        self._facts = ChainFacts(genesis)
        self.genesis = genesis
        self.chain: ChainId = self._facts.chain
        self.network: str = self._facts.network
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
        self._work = WorkAccount()
        self._rest: bytes | None = None
        self.explained: tuple[Trust, bytes] | None = None
        """What the state root in the last header is made of, see `state_root`; None if that is not known."""

    # --- who votes

    @property
    def roster(self) -> tuple[Member, ...]:
        """The members that vote on the next height."""
        return self._facts.roster.present

    @property
    def next_roster(self) -> tuple[Member, ...]:
        """The members that vote on the height after the next."""
        return self._facts.roster.following

    @property
    def members(self) -> tuple[PeerId, ...]:
        """Who votes on the next height, in the order of the roster."""
        return self._facts.roster.members

    def may_write(self, peer: PeerId) -> bool:
        """Say whether `peer` votes on the next height, or on the one after it."""
        return self._facts.may_write(peer)

    def author_problem(self, record: Record) -> str:
        """Say why the author of `record` may not write records of its kind here, or return ''."""
        return author_problem(self._facts, record)

    @property
    def members_hash(self) -> bytes:
        """The hash of the roster that votes on the next height."""
        return self._facts.roster.members_hash

    @property
    def next_members_hash(self) -> bytes:
        """The hash of the roster that votes on the height after the next."""
        return self._facts.roster.next_members_hash

    @property
    def pending_change(self) -> MembershipChange | None:
        """The change that makes `next_roster` of `roster`; None if they are the same."""
        return self._facts.roster.pending

    @property
    def change_number(self) -> int:
        """The number of the next change: 1 + those decided so far."""
        return self._facts.roster.number

    @property
    def former(self) -> dict[PeerId, int]:
        """Up to which height each of those who left last has voted, and may be served."""
        return dict(self._facts.roster.former)

    def heir(self, peer: PeerId) -> PeerId:
        """Return the key that has the place of `peer` by now: its own, unless it was succeeded."""
        return self._facts.roster.heir(peer)

    @property
    def coordinator(self) -> PeerId:
        """Whoever formed the pool, under its present key."""
        return self._facts.coordinator

    @property
    def observers(self) -> tuple[Member, ...]:
        """Who follows the chain without a vote, under their present keys."""
        return self._facts.roster.observers

    @property
    def adoption(self) -> Adoption | None:
        """What the coordinator's present key has said of this chain; None if it is that of the genesis."""
        return self._facts.roster.adoption

    def names(self, peer: PeerId) -> bool:
        """Say whether `peer` is a member now or next, an observer, or the coordinator."""
        return self._facts.roster.names(peer)

    @property
    def successions(self) -> tuple[Succession, ...]:
        """The keys that were succeeded, the newest last, as far as they are remembered."""
        return self._facts.roster.successions

    def open_changes(self) -> tuple[tuple[MembershipChange, tuple[PeerId, ...]], ...]:
        """Return the changes that are on the chain and not decided, each with who has written it.

        The coordinator is among these even if it has no vote.
        """
        return self._facts.roster.open

    def newcomers(self) -> tuple[Member, ...]:
        """Return who is to come, by open changes or by the one that is decided and not in force."""
        return self._facts.roster.newcomers()

    def convicted(self) -> tuple[PeerId, ...]:
        """Return the members of `next_roster` against whom there is evidence on the chain."""
        roster = self._facts.roster
        return tuple(peer for peer in roster.convicted if peer in roster.next_members)

    @property
    def trust(self) -> Trust:
        """Which roots the members trust beside their own, whom they have revoked, and what is open."""
        return self._facts.trust

    # --- what the chain holds

    @property
    def horizon(self) -> int:
        """The height before the window of records known by id; a record signed below it is too old."""
        return self._facts.horizon

    @property
    def knows_window(self) -> bool:
        """Say whether a replay of any record would be noticed.

        Not so after `restore`, until the horizon has come to the snapshot's height or `recall` has been
        told of the blocks between the two.
        """
        return self._facts.window.complete

    @property
    def unknown_height(self) -> int:
        """The height of the block to `recall` next; 0 if no records of the window are unknown."""
        return self._facts.window.unknown_height

    def records_above(self, height: int) -> int:
        """Return how many records stand above `height`; above the horizon if that is higher."""
        return self._facts.window.records_above(height)

    @property
    def root(self) -> bytes:
        """The 32-byte hash of this state, which the next header carries."""
        if self._rest is None:
            self._rest = sha256(self._facts.sum.value() + encode(self._core()))
        return state_root(self.trust, self._rest)

    def has_record(self, record_id: bytes) -> bool:
        """Say whether the record with this id is on the chain, above the horizon."""
        return self._facts.has_record(record_id)

    def offers(self, key: DataKey, version: int = 0) -> tuple[OfferEntry, ...]:
        """Return the offers of one version of `key`, the oldest first; version 0 is the newest here."""
        return self._facts.offers(key, version)

    def offers_of(self, key: DataKey) -> tuple[OfferEntry, ...]:
        """Return the offers of all versions of `key`, the oldest version first."""
        return self._facts.offers_of(key)

    def standing_offers(self) -> tuple[tuple[DataOffer, PeerId], ...]:
        """Return the offers that stand, each with its holder, by their place."""
        return tuple((offer, holder) for _, _, offer, holder in self._facts.offered())

    def newest_offers(self) -> Iterator[tuple[DataOffer, PeerId]]:
        """Yield the offers of the newest version of each key, with their holders."""
        return ((offer, holder) for _, _, offer, holder in self._facts.newest_offers())

    def holders(self, key: DataKey, root: bytes) -> list[PeerId]:
        """Return who offers the data of this root under `key`, who did so first before the others."""
        return self._facts.holders(key, root)

    def offers_by(self, holder: PeerId) -> list[tuple[int, int, DataOffer]]:
        """Return (height, index, offer) of the offers of `holder` that stand, the oldest first."""
        return [one[:3] for one in self._facts.offered() if one[3] == holder]

    def standing_places(self, height: int) -> tuple[tuple[int, int], ...]:
        """Return (height, index) of the offers that stand at or below `height`, rising."""
        return self._facts.standing_places(height)

    def policy(self, owner: PeerId, key: DataKey) -> PolicyEntry | None:
        """Return the most precise policy of `owner` that is for `key`, or None [S2.3]."""
        return self._facts.policy(owner, key)

    def policies(self) -> list[tuple[PeerId, PolicyEntry]]:
        """Return all policies, each with its author, by author and pattern."""
        return self._facts.ruled()

    def values(self, contract: str) -> Mapping[str, bytes]:
        """Return what the users' contract of this name has written, by key."""
        return self._facts.values(contract)

    # --- how it grows

    def draft(self) -> Draft:
        """Return an empty draft on top of this state, good until the next block is applied."""
        return Draft(self, self._facts.layer())

    def apply(self, block: Block, missed: tuple[PeerId, ...] = ()) -> None:
        """Enter a block that was checked; AssertionError if it is not the next one of this chain.

        `missed` is who led the rounds before the block's: the first `header.round` in the order of the
        lottery at this height, and nobody for a block of round 0. LocalError, and nothing is changed, if
        a contract is not registered here that the block's statements name.
        """
        header = block.header
        assert len(missed) == min(header.round, len(self.members)), "who led the rounds before is not told"
        assert header.chain == self.chain, "a block of another chain"
        assert header.height == self.height + 1, f"block {header.height} after height {self.height}"
        check_registered(self.chain, block.records)
        faulty = (len(self.members) - 1) // 3
        self.explained = None if self._rest is None else (self.trust, self._rest)
        for index, signed in enumerate(block.records):
            body = signed.record.body
            self._facts.enter(header.height, index, signed, effects_of(self._facts, signed))
            self.counts[kind_of(body)] += 1
            if isinstance(body, _WORK_RECORDS):
                self._work.enter(header.height, self.tasks[body.task], signed.record, faulty)
        self._work.miss(header.height, missed)
        self.height = header.height
        self.last_block_id = header.id
        self.time_ms = header.time_ms
        self.last_packer = header.proposer
        self.packed[header.proposer] += 1
        self.beacon = next_beacon(self.beacon, header.reveal)
        if header.reveal:
            self.tips[header.proposer] = header.reveal
            self.reveals[header.proposer] += 1
        self._close(tuple(signed.id for signed in block.records))

    def _close(self, ids: tuple[bytes, ...]) -> None:
        """End the block: the roster moves on, and with it everything that is kept for each member."""
        change = self._facts.roster.pending
        for former, heir in self._facts.close(self.height, ids):
            self._work.pass_on(former, heir)
            self.packed = rekeyed(self.packed, former, heir)
        if change is not None:
            self.tips = {member: self.tips.get(member, change.beacon_tip) for member in self.members}
            self.reveals = {member: self.reveals.get(member, 0) for member in self.members}
            self.packed = {member: self.packed.get(member, 0) for member in self.members}
        self._work.close(self.height, self.members)
        self._rest = None

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
        if header.members_hash != self.members_hash or header.next_members_hash != self.next_members_hash:
            return "the block is of another roster"
        if header.state_root != self.root:
            return "the block stands on another state than this member's: are their versions different?"
        if header.proposer not in self.tips:
            return "the proposer is no member"
        if self.reveals[header.proposer] >= BEACON_LENGTH:
            return "the proposer's beacon is used up, yet the block reveals one" if header.reveal else ""
        if not header.reveal:
            return "the block reveals nothing of the proposer's beacon"
        if sha256(header.reveal) != self.tips[header.proposer]:
            return "what the block reveals does not lead to the proposer's beacon tip"
        return ""

    def work(self) -> dict[PeerId, int]:
        """Return the credited minutes of each member that count for the lottery of the next height.

        They are of the cycle before last, a cycle having CYCLE_BLOCKS heights; empty before there
        is one. Who has earned none is left out [S3.11].
        """
        return self._work.work_for(self.height + 1, self.members)

    def missed(self) -> tuple[PeerId, ...]:
        """Return who missed a turn in that same cycle, which halves its weight at the next height."""
        return self._work.missed_for(self.height + 1, self.members)

    # --- snapshots

    def snapshot(self) -> bytes:
        """Return this state as bytes, the same ones wherever it is the same; see `restore`.

        They can be more than MAX_SNAPSHOT_BYTES if very much stands; such a one cannot be restored.
        """
        return write_snapshot(self._core(), self._facts)

    @classmethod
    def restore(cls, genesis: Genesis, data: bytes) -> ChainState:
        """Return the state that `snapshot` made `data` of; DecodeError, in one clause, if none did.

        Believe it if its `root` is the one in a header of the next height that is certified. It knows
        the ids of no records up to its height, see `knows_window`.
        """
        core = (snapshot := read_snapshot(data)).core
        if core.version != STATE_VERSION:
            raise DecodeError(f"it is of state version {core.version}, this edgepool has {STATE_VERSION}")
        state = cls(genesis)
        if core.chain != state.chain:
            raise DecodeError(f"it is of the chain {core.chain}")
        load_facts(snapshot, state._facts)
        state.height = core.height
        state.last_block_id = core.last_block_id
        state.beacon = core.beacon
        state.time_ms = core.time_ms
        state.last_packer = core.last_packer or None
        turns = dict(zip(state.members, core.turns, strict=True))
        state.tips = {member: turn.beacon_tip for member, turn in turns.items()}
        state.reveals = {member: turn.reveals for member, turn in turns.items()}
        state.packed = {member: turn.packed for member, turn in turns.items()}
        state.counts = dict(zip(RECORD_KINDS, core.counts, strict=True))
        state._work = load_work(core.work)
        return state

    def recall(self, block: Block) -> None:
        """Know the records of a block again that a restored state has forgotten.

        The block at the snapshot's height is the first, and then always the one before; AssertionError
        for any other, or one at or below the horizon.
        """
        assert block.header.chain == self.chain, "a block of another chain"
        self.recall_ids(block.header.height, tuple(signed.id for signed in block.records))

    def recall_ids(self, height: int, ids: tuple[bytes, ...]) -> None:
        """Know the records of the block at `height` again, which have these ids; see `recall`."""
        self._facts.window.recall(height, ids)

    def _core(self) -> Core:
        return Core(
            STATE_VERSION,
            self.chain,
            self.height,
            self.last_block_id,
            self.beacon,
            self.time_ms,
            self.last_packer or PeerId(""),
            self.horizon,
            self._facts.roster,
            tuple(Turns(self.tips[one], self.reveals[one], self.packed[one]) for one in self.members),
            saved_work(self._work),
            tuple(self.counts[kind] for kind in RECORD_KINDS),
        )

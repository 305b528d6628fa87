"""One chain of one peer: what ties the consensus engine to the ledger.

The engine decides which block stands; the ledger decides what may be in it and, by that, who votes on the
next ones. How records come is in intake.py; how a peer without the blocks comes by the state in
snapshots.py and adoption.py; what this member has to say of the pool itself in membership.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from edgepool.config import ConsensusSettings, Limits
from edgepool.core.adoption import Adopted, SnapshotFetcher
from edgepool.core.adoption import Output as FetchOutput
from edgepool.core.consensus.engine import Caught, Decided, Engine, Output
from edgepool.core.deadlines import earliest
from edgepool.core.intake import Intake
from edgepool.core.ledger.trust import UnitedTrust
from edgepool.core.machine import (
    BlockCommitted,
    BlockSource,
    ChangeMembers,
    CommitBlock,
    Effect,
    Instant,
    Notify,
    Persist,
    PoolJoined,
    SaveSnapshot,
)
from edgepool.core.membership import Governance
from edgepool.core.people import ALL_HEIGHTS, People, listeners
from edgepool.core.pools.joining import OwnBeacon
from edgepool.core.pruning import Pruner
from edgepool.core.recalling import WindowFetcher
from edgepool.core.replay import handover_of, load_state, missed_turns, next_leaders
from edgepool.core.rights import Subject
from edgepool.core.rosters import RosterHistory
from edgepool.core.snapshots import SnapshotServer
from edgepool.model.block import (
    MAX_BLOCK_BYTES,
    MAX_BLOCK_RECORDS,
    Block,
    CertifiedBlock,
    Header,
    records_root,
)
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId
from edgepool.model.message import (
    Blocks,
    Polka,
    Proposal,
    Records,
    RecordsRefused,
    SnapshotHead,
    SnapshotPage,
    SnapshotRequest,
    Status,
    Votes,
)
from edgepool.model.pool import Genesis, Member
from edgepool.model.record import Body, MembershipChange, SignedRecord
from edgepool.model.trust import TrustChange

ChainMessage = (
    Records
    | RecordsRefused
    | Proposal
    | Votes
    | Polka
    | Status
    | Blocks
    | SnapshotHead
    | SnapshotRequest
    | SnapshotPage
)
"""What is said about one chain."""


class Chain:
    """One chain: engine, state and waiting records.

    `handovers` lead from the genesis to the roster that votes on the next height. `who` says what the
    certificate of a linked peer says of it.
    """

    def __init__(
        self,
        genesis: Genesis,
        *,
        signer: Signer,
        settings: ConsensusSettings,
        limits: Limits,
        source: BlockSource,
        height: int,
        vote_state: bytes,
        who: Callable[[PeerId], Subject | None] = lambda _: None,
    ) -> None:
        self.genesis = genesis
        self.id = genesis.chain
        self.state, self.handovers = load_state(genesis, source, height)
        self._people = People(signer.peer, self.state, self.handovers, lambda peer: who(peer) is not None)
        self._me = signer.peer
        self._watchers: dict[PeerId, None] = {}
        self._beacon = OwnBeacon(signer, genesis)
        self._intake = Intake(self.state, self._me, limits)
        self._governance = Governance(signer, settings.approve, self._intake, who)
        self._server = SnapshotServer(source, self.id)
        self._fetcher = SnapshotFetcher(genesis)
        self._window = WindowFetcher(self._me, source, self.id)
        self._pruner = Pruner(source, self.id, limits.chain_bytes)
        self._order_height = -1
        self._order: tuple[PeerId, ...] = ()
        self.engine = Engine(
            network=genesis.invitation.network,
            chain=self.id,
            signer=signer,
            settings=settings,
            app=self,
            source=source,
            height=height,
            vote_state=vote_state,
        )

    # --- what the node calls ----------------------------------------------------------------

    @property
    def member(self) -> bool:
        """Say whether this peer votes on the next height."""
        return self._me in self.state.members

    @property
    def rosters(self) -> RosterHistory:
        """Who votes at which height."""
        return RosterHistory(self.genesis, tuple(self.handovers), self.state.observers)

    @property
    def people(self) -> dict[PeerId, Member]:
        """All who have to do with the chain now: members, observers, who comes and who has left."""
        return self._people.known

    def present(self, peer: PeerId) -> Member | None:
        """Return `peer` as the chain names it, if it is to be linked with: not who has left."""
        return self._people.present(peer)

    @property
    def waiting_records(self) -> int:
        """How many records wait to be packed."""
        return len(self._intake)

    @property
    def own_waiting(self) -> tuple[Body, ...]:
        """What this peer itself is about to have on the chain."""
        return self._intake.own

    def start(self, now: Instant) -> list[Effect]:
        """Begin, or go on after a restart."""
        self._governance.start(now)
        self._window.begin(self.state, now.monotonic_ms)
        return [*self._people.links(), *self._settle(self.engine.start(now), now)]

    def submit(self, ticket: int, signed: SignedRecord, now: Instant) -> list[Effect]:
        """Take a record of this peer's owner; `ticket` 0 wants no answer."""
        effects, taken = self._intake.submit(ticket, signed, now)
        return effects + self._settle(self.engine.nudge(now), now) if taken else effects

    def change(self, ticket: int, change: MembershipChange, now: Instant) -> list[Effect]:
        """Put this peer's word for a change of the members on the chain; see Governance.change."""
        effects, taken = self._governance.change(ticket, change, now)
        return effects + self._settle(self.engine.nudge(now), now) if taken else effects

    def approve(self, ticket: int, change: MembershipChange, now: Instant) -> list[Effect]:
        """Put this peer's word for a change that somebody else wants on the chain."""
        effects, taken = self._governance.approve(ticket, change, now)
        return effects + self._settle(self.engine.nudge(now), now) if taken else effects

    def trust(self, ticket: int, change: TrustChange, now: Instant) -> list[Effect]:
        """Put this peer's word for a change of trust on the chain."""
        effects, taken = self._governance.trust(ticket, change, now)
        return effects + self._settle(self.engine.nudge(now), now) if taken else effects

    def trust_known(self, united: UnitedTrust) -> None:
        """Begin with what all main chains of this peer say of trust."""
        self._governance.elsewhere = united

    def trust_elsewhere(self, united: UnitedTrust, now: Instant) -> list[Effect]:
        """Take in what all main chains of this peer say of trust, and say what follows of it here."""
        self.trust_known(united)
        return self._settle([], now, govern=True)

    def outdated_wishes(self) -> list[ChangeMembers]:
        """Return which newcomers are to be asked again, another change having been decided first."""
        return self._governance.outdated()

    def receive(self, peer: PeerId, message: ChainMessage, now: Instant) -> list[Effect]:
        """Take a message about this chain: from its people, or what proves itself from anybody."""
        now_ms = now.monotonic_ms
        match message:
            case Records():
                effects, added = self._intake.receive(peer, message, now)
                return effects + self._settle(self.engine.nudge(now), now) if added else effects
            case RecordsRefused():
                return self._intake.receive_refusal(peer, message)
            case SnapshotHead():
                found = self._fetcher.head(peer, message, self.state.height, self.handovers, now_ms)
                return self._take(found, now)
            case SnapshotPage():
                return self._take(self._fetcher.page(peer, message, now_ms), now)
            case SnapshotRequest():
                return self._server.page(peer, message, now_ms)
            case Blocks():
                recalled = self._window.take(peer, message, self.state, now_ms)
                return recalled + self._settle(self.engine.receive(peer, message, now), now)
            case Proposal() | Votes() | Polka() | Status():
                return self._settle(self.engine.receive(peer, message, now), now)
            case _:
                assert_never(message)

    def watch(self, peer: PeerId) -> None:
        """Tell a linked peer that may follow this chain of its blocks, if it is none of its people."""
        if peer not in self.people:
            self._watchers[peer] = None

    def peer_up(self, peer: PeerId, now: Instant) -> list[Effect]:
        """A link to one of this chain's people stands: tell it where we are and what waits."""
        self._server.forget(peer)
        return self._settle(self.engine.peer_up(peer, now), now) + self._intake.for_peer(peer)

    def peer_down(self, peer: PeerId, now: Instant) -> list[Effect]:
        """The link to `peer` is gone."""
        self._watchers.pop(peer, None)
        fetching = self._take(self._fetcher.peer_down(peer, now.monotonic_ms), now)
        return [*fetching, *self._people.link_lost(peer)]

    def wake(self, now: Instant) -> list[Effect]:
        """Do what is due."""
        now_ms = now.monotonic_ms
        effects: list[Effect] = []
        if _due(self.engine.deadline, now_ms):
            effects += self._settle(self.engine.wake(now), now)
        if _due(self._fetcher.deadline, now_ms):
            effects += self._take(self._fetcher.wake(now_ms), now)
        if _due(self._server.deadline, now_ms):
            self._server.wake(now_ms)
        if _due(self._window.deadline, now_ms):
            effects += self._window.wake(self.state, now_ms)
        if _due(self._governance.deadline, now_ms):
            effects += self._settle([], now, govern=True)
        round = self.engine.round
        leaders = dict.fromkeys((self.leader(round), self.leader(round + 1)))
        return effects + self._intake.wake(now, tuple(leaders))

    def wakeup_at(self) -> int | None:
        """Return when to call `wake`, in monotonic ms."""
        return earliest(
            self.engine.deadline,
            self._intake.deadline,
            self._governance.deadline,
            self._fetcher.deadline,
            self._server.deadline,
            self._window.deadline,
        )

    # --- Application: what the engine asks ---------------------------------------------------

    def members(self) -> tuple[PeerId, ...]:
        """Return who votes on the next height."""
        return self.state.members

    def next_members(self) -> tuple[PeerId, ...]:
        """Return who votes on the height after the next."""
        return tuple(member.peer for member in self.state.next_roster)

    def listeners(self) -> dict[PeerId, int]:
        """Return observers, who is to come, and who has left, each with the last height to be told of.

        Also those who may follow every chain, for as long as they are linked.
        """
        return dict.fromkeys(self._watchers, ALL_HEIGHTS) | listeners(self.state)

    def may_prevote(self, block: Block) -> bool:
        """Say whether this peer would notice if a record of `block` stood already, and none is outdated.

        It knows no records up to the unknown height, but whatever stands there was signed below it.
        """
        unknown, draft = self.state.unknown_height, self.state.draft()
        late = any(draft.expiry_problem(signed.record.body) for signed in block.records)
        return not late and all(signed.record.since >= unknown for signed in block.records)

    def pruned(self, peer: PeerId, first: int, now: Instant) -> list[Effect]:
        """Offer a snapshot to a peer that needs blocks which are pruned here."""
        return self._server.offer(peer, first, now.monotonic_ms)

    def leader(self, round: int) -> PeerId:
        """Return who may propose at the next height in `round` [S3.11]."""
        if self._order_height != self.state.height:
            self._order = next_leaders(self.state)
            self._order_height = self.state.height
        return self._order[round % len(self._order)]

    def has_waiting(self) -> bool:
        """Say whether a record waits that may stand now."""
        return self._intake.any_fit()

    def has_enough(self) -> bool:
        """Say whether as many records wait as a block can hold."""
        return len(self._intake) >= MAX_BLOCK_RECORDS

    def make_block(self, round: int, now: Instant) -> Block | None:
        """Pack the records that may stand, fairly between their authors."""
        records = self._intake.pick(now)
        if not records:
            return None
        state = self.state
        header = Header(
            state.network,
            self.id,
            state.height + 1,
            round,
            state.last_block_id,
            state.members_hash,
            state.next_members_hash,
            state.root,
            records_root(records),
            len(records),
            self._me,
            self._beacon.reveal(self.handovers, state.reveals[self._me]),
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
        size_bytes = sum(signed.size_bytes for signed in block.records)
        if size_bytes > MAX_BLOCK_BYTES:
            return f"the records have {size_bytes} bytes, more than the {MAX_BLOCK_BYTES} of a block"
        draft = self.state.draft()
        for index, signed in enumerate(block.records):
            reason = draft.add(signed)
            if reason:
                return f"record {index}: {reason}"
            if not self._intake.has(signed.id) and not signed.authentic():
                return f"the signature of record {index} does not hold"
        return ""

    # --- decisions --------------------------------------------------------------------------

    def _settle(self, outputs: list[Output], now: Instant, *, govern: bool = False) -> list[Effect]:
        """Turn the engine's outputs into effects; apply what it has decided, and say what follows of it."""
        effects: list[Effect] = []
        while outputs or govern:
            following: list[Output] = []
            for output in outputs:
                match output:
                    case Decided(certified):
                        effects += self._commit(certified, now)
                        following = self.engine.advance(now)
                        govern = True
                    case Caught(found):
                        self._governance.caught(found)
                        govern = True
                    case _:
                        effects.append(output)
            if govern and not following:
                govern = False
                said, taken = self._governance.say(now, behind=self.engine.behind)
                effects += said
                following = self.engine.nudge(now) if taken else []
            outputs = following
        return effects

    def _commit(self, certified: CertifiedBlock, now: Instant) -> list[Effect]:
        block = certified.block
        handover = handover_of(self.state, certified)
        if handover is not None:
            self.handovers.append(handover)
        voted = self.member
        self.state.apply(block, missed_turns(self.state, block.header))
        self._fetcher.advanced(self.state.height, now.monotonic_ms)
        effects: list[Effect] = [Persist(CommitBlock(certified))]
        effects += self._pruner.after_block(self.state, self.handovers)
        effects.append(Notify(BlockCommitted(self.id, certified)))
        if self.member and not voted:
            effects.append(Notify(PoolJoined(self.genesis)))
        return effects + self._intake.committed(block, now) + self._people.meet(self.state, self.handovers)

    def _take(self, outputs: list[FetchOutput], now: Instant) -> list[Effect]:
        """Turn the fetcher's outputs into effects; go on from the snapshot that it has brought."""
        effects: list[Effect] = []
        for output in outputs:
            if not isinstance(output, Adopted):
                effects.append(output)
                continue
            self.state, self.handovers = output.state, list(output.handovers)
            self._order_height = -1
            self._pruner.adopted(output.height, len(output.data))
            self._window.begin(self.state, now.monotonic_ms)
            saved = SaveSnapshot(self.id, output.height, output.handovers, output.data, adopted=True)
            effects += [
                Persist(saved),
                *self._intake.adopted(self.state),
                *self._people.meet(self.state, self.handovers),
            ]
            effects += self._settle(self.engine.jump(output.height, now), now)
        return effects


def _due(at_ms: int | None, now_ms: int) -> bool:
    return at_ms is not None and at_ms <= now_ms

"""Engines in a row, with a toy chain each and a network that the test holds in its hands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgepool.config import ConsensusSettings
from edgepool.core.consensus.engine import Caught, Decided, Engine, Output
from edgepool.core.consensus.lottery import leader_order, lottery_seed
from edgepool.core.machine import Broadcast, Effect, Instant, Notify, Persist, Send, VoteState
from edgepool.model.block import Block, CertifiedBlock, Header, records_root
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import MachiningCompletion, SignedRecord, sign_record
from edgepool.model.vote import Equivocation

NETWORK = "plant"
CHAIN = ChainId("ab" * 20)
SIGNERS = sorted((Signer(bytes([i]) * 32) for i in range(1, 33)), key=lambda signer: signer.peer)
PEERS = tuple(signer.peer for signer in SIGNERS)
AT_ONCE = ConsensusSettings(gather_ms=0)
_BODY = MachiningCompletion("task", 10, "lathe", 1)
RECORDS = tuple(sign_record(SIGNERS[0], NETWORK, CHAIN, _BODY, 1, nonce) for nonce in range(3))


def at(ms: int) -> Instant:
    return Instant(ms, 1_700_000_000_000 + ms)


def make_block(
    height: int,
    round: int,
    previous: bytes,
    proposer: PeerId,
    records: tuple[SignedRecord, ...] = RECORDS[:1],
    time_ms: int = 0,
    network: str = NETWORK,
    chain: ChainId = CHAIN,
) -> Block:
    root = records_root(records)
    header = Header(
        network, chain, height, round, previous, *(bytes(32),) * 3, root, len(records), proposer, b"", time_ms
    )
    return Block(header, records)


class ToyChain:
    """An application and a store of one peer: blocks by height; records wait until `goal` is reached.

    Leaders take turns by round ('a' leads round 0), or are drawn by the lottery. `changes` says from which
    height on which other roster votes: decided two heights before, as on a real chain.
    """

    def __init__(
        self,
        members: tuple[PeerId, ...],
        me: PeerId,
        lottery: bool = False,
        changes: dict[int, tuple[PeerId, ...]] | None = None,
    ) -> None:
        self.rosters = {1: members, **(changes or {})}
        self.observers: tuple[PeerId, ...] = ()
        self.judging = True
        self.me = me
        self.lottery = lottery
        self.blocks: dict[int, CertifiedBlock] = {}
        self.goal = 0
        self._order: tuple[int, tuple[PeerId, ...]] = (0, ())

    @property
    def height(self) -> int:
        return len(self.blocks)

    def roster(self, height: int) -> tuple[PeerId, ...]:
        return self.rosters[max(first for first in self.rosters if first <= max(1, height))]

    def members(self) -> tuple[PeerId, ...]:
        return self.roster(self.height + 1)

    def next_members(self) -> tuple[PeerId, ...]:
        return self.roster(self.height + 2)

    def listeners(self) -> dict[PeerId, int]:
        told = {peer: last for last in range(1, self.height + 1) for peer in self.roster(last)}
        told = {peer: last for peer, last in told.items() if peer not in self.next_members()}
        return told | dict.fromkeys((*self.next_members(), *self.observers), 2**53)

    def may_prevote(self, block: Block) -> bool:
        return self.judging

    def pruned(self, peer: PeerId, first: int, now: Instant) -> list[Effect]:
        return []

    def previous(self) -> bytes:
        top = self.blocks.get(self.height)
        return top.block.header.id if top else bytes.fromhex(CHAIN)

    def make_block(self, round: int, now: Instant) -> Block | None:
        if not self.has_waiting():
            return None
        return make_block(self.height + 1, round, self.previous(), self.me, time_ms=now.wall_ms)

    def check_block(self, block: Block) -> str:
        header = block.header
        if header.height != self.height + 1 or header.previous != self.previous():
            return "another parent"
        if header.proposer != self.leader(header.round):
            return "not its turn"
        return "" if all(record in RECORDS for record in block.records) else "a bad record"

    def leader(self, round: int) -> PeerId:
        members = self.members()
        if not self.lottery:
            return members[round % len(members)]
        if self._order[0] != self.height + 1:
            seed = lottery_seed(NETWORK, CHAIN, self.height + 1, self.previous())
            weights = {peer: 1 + 3 * place for place, peer in enumerate(members)}
            self._order = (self.height + 1, leader_order(seed, weights))
        return self._order[1][round % len(members)]

    def has_waiting(self) -> bool:
        return self.height < self.goal

    def has_enough(self) -> bool:
        return False

    def block(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        return self.blocks.get(height)


def new_engine(
    place: int,
    app: ToyChain,
    *,
    observers: tuple[PeerId, ...] = (),
    vote_state: bytes = b"",
    settings: ConsensusSettings = AT_ONCE,
) -> Engine:
    app.observers = observers
    return Engine(
        network=NETWORK,
        chain=CHAIN,
        signer=SIGNERS[place],
        settings=settings,
        app=app,
        source=app,
        height=app.height,
        vote_state=vote_state,
    )


@dataclass
class Seat:
    """One peer of a cluster; what it persisted is in `states`, what it was told in `notices`."""

    place: int
    app: ToyChain
    engine: Engine
    states: list[bytes] = field(default_factory=list)
    notices: list[Any] = field(default_factory=list)
    caught: list[Equivocation] = field(default_factory=list)
    up: bool = True


class Cluster:
    """Engines whose messages wait in `wire` (in order) until `deliver` is called."""

    def __init__(
        self,
        members: int,
        observers: int = 0,
        goal: int = 0,
        changes: dict[int, tuple[PeerId, ...]] | None = None,
    ) -> None:
        self.now_ms = 0
        self.wire: list[tuple[int, int, Any]] = []
        self.lost: Callable[[int, int, Any], bool] = lambda sender, to, message: False
        self.trace: Callable[[int, Output], None] = lambda place, output: None
        self.observers = PEERS[members : members + observers]
        self.seats: list[Seat] = []
        everybody = dict.fromkeys(PEERS[: members + observers])
        for roster in (changes or {}).values():
            everybody.update(dict.fromkeys(roster))
        for place in range(len(everybody)):
            app = ToyChain(PEERS[:members], PEERS[place], changes=changes)
            app.goal = goal
            self.seats.append(Seat(place, app, new_engine(place, app, observers=self.observers)))

    def start(self) -> None:
        for seat in self.seats:
            self.perform(seat, seat.engine.start(at(self.now_ms)))

    def restart(self, place: int, state: bytes | None = None) -> None:
        """Bring a peer back with what it stored last (or with `state`)."""
        seat = self.seats[place]
        state = state if state is not None else (seat.states[-1] if seat.states else b"")
        seat.engine = new_engine(place, seat.app, observers=self.observers, vote_state=state)
        seat.up = True
        self.perform(seat, seat.engine.start(at(self.now_ms)))

    def submit(self, place: int, goal: int = 1) -> None:
        self.seats[place].app.goal = goal
        self.perform(self.seats[place], self.seats[place].engine.nudge(at(self.now_ms)))

    def perform(self, seat: Seat, outputs: list[Output]) -> None:
        for output in outputs:
            self.trace(seat.place, output)
            match output:
                case Persist(VoteState(_, state)):
                    seat.states.append(state)
                case Send(peer, message):
                    self.wire.append((seat.place, PEERS.index(peer), message))
                case Broadcast(peers, message):
                    self.wire += [(seat.place, PEERS.index(peer), message) for peer in peers]
                case Notify(notice):
                    seat.notices.append(notice)
                case Caught(found):
                    seat.caught.append(found)
                case Decided(certified):
                    assert output is outputs[-1]
                    seat.app.blocks[seat.app.height + 1] = certified
                    self.perform(seat, seat.engine.advance(at(self.now_ms)))

    def deliver(self) -> int:
        """Deliver until nothing is on the wire; return how many messages arrived."""
        count = 0
        while self.wire:
            sender, to, message = self.wire.pop(0)
            seat = self.seats[to]
            if seat.up and self.seats[sender].up and not self.lost(sender, to, message):
                count += 1
                assert count < 100_000, "a storm of messages"
                self.perform(seat, seat.engine.receive(PEERS[sender], message, at(self.now_ms)))
        return count

    def run_until(self, ms: int) -> None:
        """Let time pass to `ms`, waking engines at their deadlines and delivering at once."""
        self.deliver()
        while True:
            due = [
                (seat.engine.deadline, seat.place)
                for seat in self.seats
                if seat.up and seat.engine.deadline is not None and seat.engine.deadline <= ms
            ]
            if not due:
                self.now_ms = ms
                return
            when, place = min(due)
            self.now_ms = max(self.now_ms, when)
            self.perform(self.seats[place], self.seats[place].engine.wake(at(self.now_ms)))
            self.deliver()

    def heights(self) -> list[int]:
        return [seat.app.height for seat in self.seats]

    def agreed(self) -> bool:
        """Say whether no two peers hold different blocks at one height."""
        held: dict[int, bytes] = {}
        return all(
            held.setdefault(height, certified.block.header.id) == certified.block.header.id
            for seat in self.seats
            for height, certified in seat.app.blocks.items()
        )

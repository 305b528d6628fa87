"""Consensus under seeded faults, in virtual time, with real signatures.

Each seed loses, delays and doubles messages, cuts the network, crashes peers in the middle of a
step (what was not yet persisted is gone) and may turn one member in four into a liar. Judged all
along: no two blocks at one height, no honest member signs two values, nobody votes who is no member.
After healing every honest peer must go on; in some runs the members change meanwhile. Canaries break the
protocol on purpose and must be found by the same judges.
"""

from __future__ import annotations

import random
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any

import nacl.bindings
import pytest
from consensus_cluster import CHAIN, NETWORK, PEERS, SIGNERS, Seat, ToyChain, at, make_block, new_engine

from edgepool.config import ConsensusSettings
from edgepool.core.consensus import votes as votes_module
from edgepool.core.consensus.engine import Decided, Output
from edgepool.core.machine import Broadcast, Notify, Persist, Send, VoteState
from edgepool.model.block import CertifiedBlock
from edgepool.model.ids import PeerId
from edgepool.model.message import Blocks, Proposal, Status, Votes, sign_proposal
from edgepool.model.vote import PRECOMMIT, PREVOTE, Certificate, sign_vote

HEAL_MS = 50_000
LIARS = ("none", "silent", "equivocate", "withhold", "flood", "forge")
SETTINGS = ConsensusSettings(gather_ms=5)


class Violation(AssertionError):
    """Something that must never happen has happened."""


@pytest.fixture(autouse=True)
def _verify_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify each distinct signature once for all peers of the simulation."""
    monkeypatch.setattr(
        nacl.bindings, "crypto_sign_open", lru_cache(maxsize=200_000)(nacl.bindings.crypto_sign_open)
    )


class World:
    """Members, their disks and a network, driven by one heap of events and one seed."""

    def __init__(
        self,
        seed: int,
        members: int,
        liar: str,
        observers: int = 1,
        amnesia: bool = False,
        changes: dict[int, tuple[PeerId, ...]] | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.members = members
        self.amnesia = amnesia
        self.now_ms = 0
        self.heap: list[tuple[int, int, str, Any]] = []
        self.count = 0
        self.healthy = False
        self.liar_place = -1 if liar == "none" else self.random.randrange(members)
        self.liar = liar
        self.group = dict.fromkeys(range(members + observers), 0)
        self.decided: dict[int, bytes] = {}
        self.signed: dict[tuple[Any, ...], bytes] = {}
        self.observers = PEERS[members : members + observers]
        self.seats: list[Seat] = []
        for place in range(members + observers):
            app = ToyChain(PEERS[:members], PEERS[place], lottery=True, changes=changes)
            app.goal = 1
            engine = new_engine(place, app, observers=self.observers, settings=SETTINGS)
            self.seats.append(Seat(place, app, engine))
        for seat in self.seats:
            self.perform(seat, seat.engine.start(at(0)))
        self.plan()

    def plan(self) -> None:
        """Lay out partitions, crashes and submissions until the healing."""
        draw = self.random
        everybody = len(self.seats)
        for start in range(draw.randrange(4_000), HEAL_MS, 7_000):
            groups = {place: draw.randrange(2) for place in range(everybody)}
            self.later(start, "cut", groups)
            self.later(start + draw.randrange(500, 4_000), "cut", dict.fromkeys(range(everybody), 0))
        for _ in range(16):
            start, place = draw.randrange(HEAL_MS - 3_000), draw.randrange(everybody)
            self.later(start, "crash", place)
            self.later(start + draw.choice((1, 50, 2_500)), "restart", place)
        for start in range(500, HEAL_MS, 700):
            self.later(start + draw.randrange(300), "submit", draw.randrange(everybody))
        self.later(HEAL_MS, "heal", None)

    def later(self, when_ms: int, what: str, argument: Any) -> None:
        self.count += 1
        heappush(self.heap, (max(when_ms, self.now_ms), self.count, what, argument))

    def run(self, until_ms: int) -> None:
        """Take events until `until_ms`, or until all honest peers have reached their goal after healing."""
        while self.heap and self.heap[0][0] <= until_ms:
            self.now_ms, _, what, argument = heappop(self.heap)
            getattr(self, "_" + what)(argument)
            if self.healthy and all(s.app.height >= self.goal(s) for s in self.honest()):
                return

    def goal(self, seat: Seat) -> int:
        """Return the height that a peer must come to: who has left is told of no more than its last vote."""
        rosters, peer = seat.app.rosters, PEERS[seat.place]
        newest = seat.app.roster(max(rosters))
        if peer in newest or peer in self.observers:
            return seat.app.goal
        left = next(first for first in sorted(rosters) if peer not in rosters[first])
        return min(seat.app.goal, left - 1)

    def honest(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.place != self.liar_place]

    # --- events -----------------------------------------------------------------------------------

    def _message(self, argument: tuple[int, int, Any]) -> None:
        sender, to, message = argument
        seat = self.seats[to]
        if seat.up and self.group[sender] == self.group[to]:
            self.perform(seat, seat.engine.receive(PEERS[sender], message, at(self.now_ms)))

    def _wake(self, place: int) -> None:
        seat = self.seats[place]
        if seat.up and seat.engine.deadline is not None and seat.engine.deadline <= self.now_ms:
            self.perform(seat, seat.engine.wake(at(self.now_ms)))

    def _cut(self, groups: dict[int, int]) -> None:
        self.group = groups

    def _submit(self, place: int) -> None:
        """A record reaches some members; more only when the chain has come near."""
        goal = max(seat.app.height for seat in self.honest()) + 1
        for seat in self.seats:
            if seat.place == place or self.random.random() < 0.7:
                self._nudge(seat, goal)

    def _nudge(self, seat: Seat, goal: int) -> None:
        seat.app.goal = max(goal, seat.app.goal)
        if seat.up:
            self.perform(seat, seat.engine.nudge(at(self.now_ms)))

    def _crash(self, place: int) -> None:
        self.seats[place].up = False

    def _restart(self, place: int) -> None:
        seat = self.seats[place]
        if seat.up:
            return
        state = seat.states[-1] if seat.states and not self.amnesia else b""
        seat.engine = new_engine(
            place, seat.app, observers=self.observers, vote_state=state, settings=SETTINGS
        )
        seat.up = True
        self.perform(seat, seat.engine.start(at(self.now_ms)))
        for other in self.seats:
            if other.up and other.place != place:
                self.perform(other, other.engine.peer_up(PEERS[place], at(self.now_ms)))

    def _heal(self, _: None) -> None:
        self.group = dict.fromkeys(self.group, 0)
        self.healthy = True
        for seat in self.seats:
            self._restart(seat.place)
        goal = max(seat.app.height for seat in self.honest()) + 3
        for seat in self.seats:
            self._nudge(seat, goal)

    # --- what engines want ------------------------------------------------------------------------

    def perform(self, seat: Seat, outputs: list[Output]) -> None:
        if seat.place == self.liar_place:
            outputs = self.lie(seat, outputs)
        elif not self.healthy and self.random.random() < 0.002:
            outputs = outputs[: self.random.randrange(len(outputs) + 1)]
            seat.up = False
            self.later(self.now_ms + self.random.choice((1, 1_000)), "restart", seat.place)
        for output in outputs:
            match output:
                case Persist(VoteState(_, state)):
                    seat.states.append(state)
                case Send(peer, message):
                    self.send(seat, PEERS.index(peer), message)
                case Broadcast(peers, message):
                    for peer in peers:
                        self.send(seat, PEERS.index(peer), message)
                case Notify(notice):
                    seat.notices.append(notice)
                case Decided(certified):
                    self.commit(seat, certified)
        if seat.up and seat.engine.deadline is not None:
            self.later(seat.engine.deadline, "wake", seat.place)

    def commit(self, seat: Seat, certified: CertifiedBlock) -> None:
        height, block_id = seat.app.height + 1, certified.block.header.id
        seat.app.blocks[height] = certified
        if seat.place != self.liar_place and self.decided.setdefault(height, block_id) != block_id:
            raise Violation(f"two blocks at height {height}")
        if seat.up:
            self.perform(seat, seat.engine.advance(at(self.now_ms)))

    def send(self, seat: Seat, to: int, message: Any) -> None:
        if seat.place != self.liar_place:
            self.judge(seat, message)
        draw = self.random
        if not self.healthy and draw.random() < 0.05:
            return
        delay_ms = draw.randrange(2, 30)
        if not self.healthy and draw.random() < 0.05:
            delay_ms += draw.randrange(3_000)
        self.later(self.now_ms + delay_ms, "message", (seat.place, to, message))
        if not self.healthy and draw.random() < 0.05:
            self.later(self.now_ms + 2 * delay_ms, "message", (seat.place, to, message))

    def judge(self, seat: Seat, message: Any) -> None:
        """No honest member may ever say two values for one kind, height and round."""
        said: list[tuple[tuple[Any, ...], bytes]] = []
        if isinstance(message, Votes):
            said = [((v.voter, v.kind, v.height, v.round), v.block_id) for v in message.votes]
        elif isinstance(message, Proposal) and seat.app.leader(message.round) == PEERS[seat.place]:
            header = message.block.header
            said = [((PEERS[seat.place], "proposal", header.height, message.round), header.id)]
        for key, value in said:
            if key[0] == PEERS[seat.place] and PEERS[seat.place] not in seat.app.roster(key[2]):
                raise Violation(f"{seat.place} votes at height {key[2]}, where it is no member")
            if key[0] == PEERS[seat.place] and self.signed.setdefault(key, value) != value:
                raise Violation(f"{seat.place} signed two values: {key[1:]}")

    # --- lies -------------------------------------------------------------------------------------

    def lie(self, seat: Seat, outputs: list[Output]) -> list[Output]:
        lies: list[Output] = []
        for output in outputs:
            message = getattr(output, "message", None)
            if isinstance(output, (Send, Broadcast)) and not isinstance(message, Status):
                peers = output.peers if isinstance(output, Broadcast) else (output.peer,)
                lies += [lie for peer in peers for lie in self.lies_to(seat, peer, message)]
            else:
                lies.append(output)
        return lies

    def lies_to(self, seat: Seat, peer: Any, message: Any) -> list[Output]:
        me, draw = SIGNERS[seat.place], self.random
        own_votes = isinstance(message, Votes) and message.votes[0].voter == me.peer
        own_proposal = isinstance(message, Proposal) and message.block.header.proposer == me.peer
        if self.liar == "silent":
            return []
        if self.liar == "withhold" and own_proposal and draw.random() < 0.5:
            return []
        if self.liar == "equivocate" and own_proposal and message.valid_round == -1:
            height, round, previous = message.block.header.height, message.round, seat.app.previous()
            other = make_block(height, round, previous, me.peer, time_ms=draw.randrange(3))
            return [
                Send(peer, sign_proposal(me, NETWORK, CHAIN, round, block, -1, ()))
                for block in draw.sample((message.block, other), draw.randrange(1, 3))
            ]
        if self.liar in ("equivocate", "flood") and own_votes:
            vote = message.votes[0]
            ids = [b"", *seat.engine._ballot.blocks]
            if self.liar == "flood":
                ids = [draw.randbytes(32) for _ in range(4)] + ids
            return [
                Send(peer, Votes(CHAIN, (sign_vote(me, NETWORK, CHAIN, kind, vote.height, vote.round, id),)))
                for kind in (PREVOTE, PRECOMMIT)
                for id in ids
                if self.liar == "flood" or draw.random() < 0.5
            ]
        if self.liar == "forge":
            height = seat.app.height + 1
            block = make_block(height, 0, seat.app.previous(), seat.app.leader(0), time_ms=7)
            vote = sign_vote(me, NETWORK, CHAIN, PRECOMMIT, height, 0, block.header.id)
            signatures = tuple((place, vote.signature) for place in range(self.members))
            forged = CertifiedBlock(block, Certificate(height, 0, block.header.id, signatures))
            return [Send(peer, Blocks(CHAIN, (forged,))), Send(peer, message)]
        return [Send(peer, message)]


def judge_run(
    seed: int, members: int, liar: str, changes: dict[int, tuple[PeerId, ...]] | None = None
) -> World:
    world = World(seed, members, liar, changes=changes)
    world.run(HEAL_MS + 60_000)
    for seat in world.honest():
        assert seat.app.height >= world.goal(seat), (
            f"seed {seed}, {liar}: {seat.place} is at {seat.app.height}, not {world.goal(seat)}"
        )
        if liar == "none":
            assert seat.notices == [], "nobody is to blame for the network's faults"
    return world


@pytest.mark.parametrize("seed", range(42))
def test_agreement_and_progress_under_faults(seed: int) -> None:
    world = judge_run(seed, 7 if seed % 6 == 5 else 4, LIARS[seed % len(LIARS)])
    assert len(world.decided) >= 10


@pytest.mark.parametrize("seed", range(100, 118))
def test_agreement_and_progress_while_members_change(seed: int) -> None:
    """At height 5 an observer gets a vote, at 9 the first member leaves, at 12 the third."""
    changes = {5: PEERS[:5], 9: PEERS[1:5], 12: PEERS[1:2] + PEERS[3:5]}
    if LIARS[seed % len(LIARS)] != "none":
        del changes[12]  # three bear no liar
    world = judge_run(seed, 4, LIARS[seed % len(LIARS)], changes)
    assert len(world.decided) >= 10


def test_a_run_can_be_repeated_exactly() -> None:
    runs = [judge_run(2, 4, "equivocate") for _ in range(2)]
    assert runs[0].decided == runs[1].decided
    assert (runs[0].count, runs[0].now_ms) == (runs[1].count, runs[1].now_ms)


def run_many(liar: str, amnesia: bool) -> None:
    for seed in range(20):
        World(seed, 4, liar, amnesia=amnesia).run(HEAL_MS)


def test_canary_a_quorum_that_is_too_small_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(votes_module, "quorum", lambda members: members // 2)
    with pytest.raises(Violation, match="two blocks"):
        run_many("equivocate", amnesia=False)


def test_canary_votes_that_are_forgotten_are_found() -> None:
    with pytest.raises(Violation, match="signed two values"):
        run_many("none", amnesia=True)

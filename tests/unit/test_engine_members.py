"""The engine when members change: who counts at which height, who is told what, and who is caught lying."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from consensus_cluster import CHAIN, NETWORK, PEERS, SIGNERS, Cluster, ToyChain, at, make_block, new_engine

from edgepool.core.consensus.ballot import SavedBallot
from edgepool.core.consensus.engine import Caught, Decided, Engine, Output
from edgepool.core.machine import Broadcast, Misbehaved, Notify, Send
from edgepool.model.block import Block, CertifiedBlock
from edgepool.model.codec import decode, encode
from edgepool.model.ids import PeerId
from edgepool.model.message import Blocks, Proposal, Status, Votes, sign_proposal
from edgepool.model.vote import (
    NIL,
    PRECOMMIT,
    PREVOTE,
    PROPOSAL,
    Certificate,
    Equivocation,
    Vote,
    quorum,
    sign_vote,
)

A, B, C, D, E = range(5)
ABCD, ABC = PEERS[:4], PEERS[:3]


class Shuffled(Cluster):
    """A cluster whose messages overtake each other."""

    def __init__(self, seed: int, members: int, changes: dict[int, tuple[PeerId, ...]], goal: int) -> None:
        self.random = Random(seed)
        super().__init__(members, goal=goal, changes=changes)

    def deliver(self) -> int:
        count = 0
        while self.wire:
            sender, to, message = self.wire.pop(self.random.randrange(len(self.wire)))
            seat = self.seats[to]
            if seat.up and self.seats[sender].up and not self.lost(sender, to, message):
                count += 1
                assert count < 100_000, "a storm of messages"
                self.perform(seat, seat.engine.receive(PEERS[sender], message, at(self.now_ms)))
        return count


CHANGES = {
    "admit": {4: PEERS[:5]},
    "exclude": {4: ABC},
    "replace": {4: (*ABC, PEERS[E])},
    "several": {3: PEERS[:5], 5: PEERS[1:5], 6: PEERS[1:4], 9: (*PEERS[1:4], PEERS[A], PEERS[5])},
}
SPOKEN = 12


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", CHANGES)
def test_each_height_is_decided_by_its_own_members(name: str, seed: int) -> None:
    changes = CHANGES[name]
    cluster = Shuffled(seed, 4, changes, SPOKEN)
    voted: dict[int, dict[PeerId, None]] = {}

    def note(sender: int, to: int, message: Any) -> bool:
        for vote in message.votes if isinstance(message, Votes) else ():
            voted.setdefault(vote.height, {})[vote.voter] = None
        return False

    cluster.lost = note
    cluster.start()
    cluster.run_until(4_000)
    victim = seed % len(cluster.seats)
    cluster.seats[victim].up = False
    cluster.run_until(8_000)
    cluster.restart(victim)
    cluster.run_until(200_000)
    app = cluster.seats[B].app
    for seat in cluster.seats:
        last = max(height for height in range(1, SPOKEN + 1) if PEERS[seat.place] in app.roster(height))
        assert seat.app.height == last, "everybody is told of all heights up to its last one, and of no more"
        for height, certified in seat.app.blocks.items():
            roster = app.roster(height)
            assert certified.certificate.problem(NETWORK, CHAIN, roster) == ""
            assert len(certified.certificate.signatures) == quorum(len(roster))
    assert cluster.agreed()
    for height, voters in voted.items():
        assert set(voters) <= set(app.roster(height)), "nobody votes on a height that is not its own"
        assert len(voters) >= quorum(len(app.roster(height)))
    assert all(not isinstance(notice, Misbehaved) for seat in cluster.seats for notice in seat.notices)


class Lone:
    """One engine at a height that its peers, played by the test, have decided up to."""

    def __init__(self, place: int, height: int, changes: dict[int, tuple[PeerId, ...]] | None = None) -> None:
        self.app: ToyChain = ToyChain(ABCD, PEERS[place], changes=changes)
        for _ in range(1, height):
            self.app.blocks[self.app.height + 1] = self.certified()
        self.engine: Engine = new_engine(place, self.app)
        self.engine.start(at(0))

    def block(self, round: int = 0, mark: int = 0) -> Block:
        height, leader = self.app.height + 1, self.app.leader(round)
        return make_block(height, round, self.app.previous(), leader, time_ms=mark)

    def certified(self, places: tuple[int, ...] = ()) -> CertifiedBlock:
        block = self.block()
        header, roster = block.header, self.app.members()
        voters = places or tuple(range(quorum(len(roster))))
        signed = tuple(
            (place, vote(PEERS.index(roster[place]), PRECOMMIT, 0, header.id, header.height).signature)
            for place in voters
        )
        return CertifiedBlock(block, Certificate(header.height, 0, header.id, signed))

    def hear(self, sender: int, message: Any, ms: int = 0) -> list[Output]:
        return self.engine.receive(PEERS[sender], message, at(ms))

    def hear_votes(self, places: tuple[int, ...], kind: int, block_id: bytes) -> list[Output]:
        outputs: list[Output] = []
        for place in places:
            outputs += self.hear(place, Votes(CHAIN, (vote(place, kind, 0, block_id, self.engine.height),)))
        return outputs

    def propose(self, block: Block, round: int = 0) -> list[Output]:
        return self.hear(PEERS.index(self.app.leader(round)), proposal(self.app, block, round))

    def apply(self, outputs: list[Output]) -> list[Output]:
        decided = outputs[-1]
        assert isinstance(decided, Decided)
        self.app.blocks[self.app.height + 1] = decided.certified
        return self.engine.advance(at(0))


def vote(place: int, kind: int, round: int, block_id: bytes, height: int = 1) -> Vote:
    return sign_vote(SIGNERS[place], NETWORK, CHAIN, kind, height, round, block_id)


def proposal(app: ToyChain, block: Block, round: int = 0) -> Proposal:
    return sign_proposal(SIGNERS[PEERS.index(app.leader(round))], NETWORK, CHAIN, round, block, -1, ())


def decides(outputs: list[Output]) -> bool:
    return any(isinstance(output, Decided) for output in outputs)


def blamed(outputs: list[Output]) -> list[PeerId]:
    notices = [output.notice for output in outputs if isinstance(output, Notify)]
    return [notice.peer for notice in notices if isinstance(notice, Misbehaved)]


def caught(outputs: list[Output]) -> list[Equivocation]:
    return [output.equivocation for output in outputs if isinstance(output, Caught)]


def sent(outputs: list[Output], kind: type) -> list[Any]:
    return [
        out.message for out in outputs if isinstance(out, (Send, Broadcast)) and isinstance(out.message, kind)
    ]


LEAVES = {4: (*ABC, PEERS[E])}
"""D leaves and E comes, from height 4 on."""


def test_the_last_vote_of_who_leaves_counts_and_the_first_of_who_comes_does_not_yet() -> None:
    lone = Lone(B, 3, LEAVES)
    block = lone.block()
    lone.propose(block)
    assert not decides(lone.hear_votes((A, C, E), PRECOMMIT, block.header.id)), "E is no member yet"
    assert decides(lone.hear_votes((D,), PRECOMMIT, block.header.id)), "A, C and D are a quorum"


def test_from_its_height_on_who_comes_counts_and_who_left_does_not() -> None:
    lone = Lone(B, 4, LEAVES)
    block = lone.block()
    lone.propose(block)
    lone.hear_votes((A, C), PRECOMMIT, block.header.id)
    outputs = lone.hear_votes((D,), PRECOMMIT, block.header.id)
    assert not decides(outputs)
    assert decides(lone.hear_votes((E,), PRECOMMIT, block.header.id))


def test_a_vote_of_who_left_is_the_fault_of_who_sends_it() -> None:
    """Nobody comes to a height without knowing who votes on it."""
    late = Votes(CHAIN, (vote(D, PREVOTE, 0, NIL, 4),))
    for sender in (A, D):
        assert blamed(Lone(B, 4, LEAVES).hear(sender, late)) == [PEERS[sender]]


def test_a_block_is_judged_by_the_members_of_its_height() -> None:
    old = Lone(A, 3, LEAVES)
    blocks = []
    for places in ((A, B, D), (A, B, D)):  # D is the fourth of the roster before, E is after
        blocks.append(old.certified(places))
        old.app.blocks[old.app.height + 1] = blocks[-1]
    lone = Lone(C, 3, LEAVES)
    outputs = lone.hear(A, Blocks(CHAIN, tuple(blocks)))
    outputs = lone.apply(outputs)
    assert decides(outputs), "the fourth signature of height 4 is E's"
    lone.apply(outputs)
    assert lone.engine.height == 5


def test_votes_of_a_newcomer_that_come_early_are_kept_for_its_first_height() -> None:
    lone = Lone(B, 3, LEAVES)
    third = lone.certified()
    lone.app.blocks[3] = third
    fourth = lone.block()
    del lone.app.blocks[3]
    for place in (A, C, E):
        early = vote(place, PRECOMMIT, 0, fourth.header.id, 4)
        assert not blamed(lone.hear(place, Votes(CHAIN, (early,))))
    lone.apply(lone.hear(A, Blocks(CHAIN, (third,))))
    assert decides(lone.propose(fourth))


def test_a_newcomer_keeps_what_is_said_on_its_first_height_while_it_waits_for_the_block_before() -> None:
    lone = Lone(E, 3, LEAVES)
    third = lone.certified()
    lone.app.blocks[3] = third
    fourth = lone.block()
    proposed = proposal(lone.app, fourth)
    del lone.app.blocks[3]
    outputs = lone.hear(A, proposed)
    assert [status.height for status in sent(outputs, Status)] == [3], "it asks for the block"
    outputs = lone.apply(lone.hear(B, Blocks(CHAIN, (third,))))
    votes = [one for message in sent(outputs, Votes) for one in message.votes]
    assert [(one.height, one.voter, one.block_id) for one in votes] == [(4, PEERS[E], fourth.header.id)]


def test_who_has_left_says_nothing_more_on_the_chain() -> None:
    lone = Lone(D, 3, LEAVES)
    block = lone.block()
    lone.propose(block)
    outputs = lone.apply(lone.hear_votes((A, B, C), PRECOMMIT, block.header.id))
    lone.app.goal = 99
    outputs += lone.engine.nudge(at(10))
    outputs += lone.propose(lone.block())
    outputs += lone.engine.wake(at(60_000))
    assert sent(outputs, Votes) == []
    assert sent(outputs, Proposal) == []


def test_who_has_left_is_served_up_to_its_last_height() -> None:
    lone = Lone(A, 7, LEAVES)
    (blocks,) = sent(lone.hear(D, Status(CHAIN, 2, 0, 0, 0)), Blocks)
    assert [one.block.header.height for one in blocks.blocks] == [2, 3]
    assert sent(lone.hear(D, Status(CHAIN, 4, 0, 0, 0), 60_000), Blocks) == []
    (blocks,) = sent(lone.hear(E, Status(CHAIN, 4, 0, 0, 0), 60_000), Blocks)
    assert [one.block.header.height for one in blocks.blocks] == [4, 5, 6]


def test_a_stranger_leads_on_to_later_blocks_and_to_nothing_else() -> None:
    """Whoever was away for long may know none of the present members any more."""
    lone = Lone(D, 3)
    assert [one.height for one in sent(lone.hear(9, Status(CHAIN, 50, 0, 3, 1)), Status)] == [3]
    assert sent(lone.hear(9, Status(CHAIN, 1, 0, 0, 0)), Blocks) == []
    assert lone.hear(9, Votes(CHAIN, (vote(A, PREVOTE, 0, NIL, 3),))) == []
    assert lone.engine.step == 0
    assert decides(lone.hear(9, Blocks(CHAIN, (lone.certified(),))))


def test_a_liar_that_says_it_is_ahead_does_not_make_others_feel_behind() -> None:
    lone = Lone(A, 2)
    lone.hear(D, Status(CHAIN, 2**53, 3, 3, 1))
    assert not lone.engine.behind
    lone.hear(C, Status(CHAIN, 3, 0, 0, 0))
    assert lone.engine.behind, "one of two is honest"


# --- going on from a snapshot ---------------------------------------------------------------------


def test_a_jump_leads_on_at_the_height_after_the_snapshot() -> None:
    lone = Lone(D, 2)
    lone.hear(A, Blocks(CHAIN, (Lone(D, 5).certified(),)))
    for _ in range(8):
        lone.app.blocks[lone.app.height + 1] = lone.certified()
    outputs = lone.engine.jump(lone.app.height, at(0))
    assert lone.engine.height == lone.app.height + 1 == 10
    block = lone.block()
    assert [one.height for one in sent(lone.propose(block), Votes)[0].votes] == [10]
    assert not decides(outputs)


def test_a_jump_does_not_forget_what_was_said_at_a_later_height() -> None:
    before = Lone(D, 10)
    block = before.block()
    before.propose(block)
    saved = encode(before.engine._rounds.save())
    lone = Lone(D, 2)
    lone.engine = new_engine(D, lone.app, vote_state=saved)
    lone.engine.start(at(0))
    for _ in range(8):
        lone.app.blocks[lone.app.height + 1] = lone.certified()
    lone.engine.jump(lone.app.height, at(0))
    other = lone.block(mark=7)
    votes = [one for message in sent(lone.propose(other), Votes) for one in message.votes]
    assert votes == [], "it has prevoted the other block in an earlier life"
    again = decode(SavedBallot, encode(lone.engine._rounds.save()))
    assert [one.block_id for one in again.votes] == [block.header.id]


def prevoted(outputs: list[Output]) -> list[bytes]:
    said = [one for message in sent(outputs, Votes) for one in message.votes]
    return [one.block_id for one in said if one.kind == PREVOTE]


def test_a_block_that_cannot_be_judged_gets_nil_but_stands_if_others_decide_it() -> None:
    lone = Lone(D, 2)
    lone.app.judging = False
    block = lone.block()
    assert prevoted(lone.propose(block)) == [NIL]
    lone.hear_votes((A, B, C), PREVOTE, block.header.id)
    said = [one for one in lone.engine._rounds.ballot.book.votes_of(PEERS[D]) if one.kind == PRECOMMIT]
    assert [one.block_id for one in said] == [block.header.id], "three others have judged it"
    assert decides(lone.hear_votes((A, B), PRECOMMIT, block.header.id))


def test_a_block_with_a_polka_was_judged_by_others() -> None:
    lone = Lone(D, 2)
    lone.app.judging = False
    block = lone.block()
    polka = tuple(vote(place, PREVOTE, 0, block.header.id, 2) for place in (A, B, C))
    for place in (A, B):
        lone.hear(place, Votes(CHAIN, (vote(place, PREVOTE, 1, NIL, 2),)))  # D joins their round
    leader = lone.app.leader(1)
    again = sign_proposal(SIGNERS[PEERS.index(leader)], NETWORK, CHAIN, 1, block, 0, polka)
    assert prevoted(lone.hear(PEERS.index(leader), again)) == [block.header.id]


def test_a_certified_block_needs_no_judgement() -> None:
    lone = Lone(D, 2)
    lone.app.judging = False
    assert decides(lone.hear(A, Blocks(CHAIN, (lone.certified(),))))


# --- evidence --------------------------------------------------------------------------------------


def test_a_voter_of_two_values_is_convicted_by_both_its_votes() -> None:
    lone = Lone(A, 1)
    outputs = lone.hear(B, Votes(CHAIN, (vote(D, PREVOTE, 0, NIL), vote(D, PREVOTE, 0, b"x" * 32))))
    (evidence,) = caught(outputs)
    assert evidence.problem(NETWORK, CHAIN) == ""
    assert (evidence.member, evidence.kind, evidence.height, evidence.round) == (PEERS[D], PREVOTE, 1, 0)
    assert blamed(outputs) == [PEERS[D]]


def test_a_leader_of_two_blocks_is_convicted_although_one_of_them_may_not_stand() -> None:
    for previous in (b"y" * 32, bytes.fromhex(CHAIN)):
        lone = Lone(B, 1)
        assert caught(lone.propose(lone.block())) == []
        (evidence,) = caught(lone.propose(make_block(1, 0, previous, PEERS[A], time_ms=1)))
        assert evidence.problem(NETWORK, CHAIN) == ""
        assert (evidence.member, evidence.kind) == (PEERS[A], PROPOSAL)


def test_a_leader_is_convicted_also_by_what_somebody_else_has_spoiled() -> None:
    lone = Lone(B, 1)
    lone.propose(lone.block())
    second = proposal(lone.app, lone.block(mark=1))
    spoiled = msgspec.structs.replace(second, polka=(vote(C, PREVOTE, 0, NIL),))
    outputs = lone.hear(C, spoiled)
    assert [one.member for one in caught(outputs)] == [PEERS[A]]
    assert set(blamed(outputs)) == {PEERS[A], PEERS[C]}


def test_filling_all_slots_hides_no_second_value() -> None:
    lone = Lone(B, 1)
    outputs = [out for n in range(9) for out in lone.hear_votes((D,), PREVOTE, bytes([n]) * 32)]
    assert len(caught(outputs)) == 1
    lone = Lone(B, 1)
    same = proposal(lone.app, lone.block())
    for _ in range(9):
        lone.hear(A, same)
    assert len(caught(lone.propose(lone.block(mark=1)))) == 1


def test_a_liar_is_told_of_once_for_as_long_as_it_is_a_member() -> None:
    changes = {3: ABC, 5: ABCD}
    lone = Lone(A, 1, changes)
    found = 0
    for height in range(1, 7):
        pair = tuple(vote(D, PREVOTE, 0, block_id, height) for block_id in (NIL, b"x" * 32))
        if PEERS[D] in lone.app.members():
            found += len(caught(lone.hear(D, Votes(CHAIN, pair))))
            found += len(caught(lone.hear(D, Votes(CHAIN, pair))))
        lone.apply(lone.hear(B, Blocks(CHAIN, (lone.certified(),))))
    assert found == 2, "once, and once again after it has come back"


def test_nobody_is_convicted_for_saying_one_thing_often() -> None:
    lone = Lone(B, 1)
    block = lone.block()
    outputs: list[Output] = []
    for _ in range(3):
        outputs += lone.propose(block)
        outputs += lone.hear_votes((A, C), PREVOTE, block.header.id)
    assert caught(outputs) == []
    assert blamed(outputs) == []

"""One engine at a time, its peers played by the test; then clusters; then golden transcripts.

The transcripts in `transcripts/` are documentation: commands and the whole message flow. After a
wanted change, rewrite them with EDGEPOOL_REWRITE=1 and read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from consensus_cluster import (
    CHAIN,
    NETWORK,
    PEERS,
    RECORDS,
    SIGNERS,
    Cluster,
    ToyChain,
    at,
    make_block,
    new_engine,
)

from edgepool.config import ConsensusSettings
from edgepool.core.consensus.ballot import SavedBallot
from edgepool.core.consensus.engine import Decided, Engine, Output
from edgepool.core.machine import Broadcast, Misbehaved, Notify, Persist, Send, VoteState
from edgepool.errors import StorageError
from edgepool.model.block import Block, CertifiedBlock
from edgepool.model.codec import decode, encode
from edgepool.model.ids import ChainId
from edgepool.model.message import Blocks, Polka, Proposal, Status, Votes, sign_proposal
from edgepool.model.vote import NIL, PRECOMMIT, PREVOTE, Certificate, Vote, sign_vote

A, B, C, D = range(4)
GENESIS = bytes.fromhex(CHAIN)


def vote(place: int, kind: int, round: int, block_id: bytes, height: int = 1) -> Vote:
    return sign_vote(SIGNERS[place], NETWORK, CHAIN, kind, height, round, block_id)


def votes(places: tuple[int, ...], kind: int, round: int, block_id: bytes) -> tuple[Vote, ...]:
    return tuple(vote(place, kind, round, block_id) for place in places)


def propose(
    place: int, round: int, block: Block, valid_round: int = -1, polka: tuple[Vote, ...] = ()
) -> Proposal:
    return sign_proposal(SIGNERS[place], NETWORK, CHAIN, round, block, valid_round, polka)


def block_of(place: int, round: int, mark: int = 0) -> Block:
    return make_block(1, round, GENESIS, PEERS[place], time_ms=mark)


def certify(block: Block, places: tuple[int, ...] = (A, B, C), round: int = 0) -> CertifiedBlock:
    height, block_id = block.header.height, block.header.id
    signed = tuple((p, vote(p, PRECOMMIT, round, block_id, height).signature) for p in places)
    return CertifiedBlock(block, Certificate(height, round, block_id, signed))


class Lone:
    """An engine (the fourth of four unless said) whose peers are played by the test."""

    def __init__(self, place: int = D, members: int = 4, state: bytes = b"", goal: int = 0) -> None:
        self.place = place
        self.app = ToyChain(PEERS[:members], PEERS[place])
        self.app.goal = goal
        self.engine: Engine = new_engine(place, self.app, vote_state=state)
        self.now_ms = 0
        self.outputs: list[Output] = []
        self.take(self.engine.start(at(0)))

    def take(self, outputs: list[Output]) -> list[Output]:
        self.outputs += outputs
        return outputs

    def hear(self, sender: int, message: Any) -> list[Output]:
        return self.take(self.engine.receive(PEERS[sender], message, at(self.now_ms)))

    def hear_votes(self, places: tuple[int, ...], kind: int, round: int, block_id: bytes) -> list[Output]:
        outputs: list[Output] = []
        for v in votes(places, kind, round, block_id):
            outputs += self.hear(PEERS.index(v.voter), Votes(CHAIN, (v,)))
        return outputs

    def wait(self, ms: int) -> list[Output]:
        outputs: list[Output] = []
        until = self.now_ms + ms
        while self.engine.deadline is not None and self.engine.deadline <= until:
            self.now_ms = self.engine.deadline
            outputs += self.take(self.engine.wake(at(self.now_ms)))
        self.now_ms = until
        return outputs

    def states(self) -> list[bytes]:
        return [out.item.state for out in self.outputs if isinstance(out, Persist)]


def cast(outputs: list[Output], place: int = D) -> list[tuple[int, int, bytes]]:
    """Return (kind, round, block id) of the votes that the engine has sent of its own."""
    sent = [out.message for out in outputs if isinstance(out, (Broadcast, Send))]
    return [
        (v.kind, v.round, v.block_id)
        for message in sent
        if isinstance(message, Votes)
        for v in message.votes
        if v.voter == PEERS[place]
    ]


def decided(outputs: list[Output]) -> bytes | None:
    return next((out.certified.block.header.id for out in outputs if isinstance(out, Decided)), None)


def blamed(outputs: list[Output]) -> list[Any]:
    return [
        out.notice.peer for out in outputs if isinstance(out, Notify) and isinstance(out.notice, Misbehaved)
    ]


def sent(outputs: list[Output], kind: type) -> list[Any]:
    return [
        out.message for out in outputs if isinstance(out, (Send, Broadcast)) and isinstance(out.message, kind)
    ]


# --- the happy path -----------------------------------------------------------------------------


@pytest.mark.parametrize("members", [1, 2, 3, 4, 7, 30])
def test_all_members_commit_the_same_blocks(members: int) -> None:
    cluster = Cluster(members, goal=2)
    cluster.start()
    cluster.deliver()
    assert cluster.heights() == [2] * members
    assert cluster.agreed()
    assert all(not seat.notices for seat in cluster.seats)
    for seat in cluster.seats:
        for certified in seat.app.blocks.values():
            assert certified.certificate.problem(NETWORK, CHAIN, PEERS[:members]) == ""


def test_a_single_member_commits_without_a_message() -> None:
    lone = Lone(A, members=1)
    assert lone.outputs == []
    lone.app.goal = 1
    outputs = lone.take(lone.engine.nudge(at(0)))
    assert [type(out) for out in outputs] == [Decided]
    assert lone.engine.receive(PEERS[B], Status(CHAIN, 1, 0, 0, 0), at(0)) == []


def test_a_block_costs_what_the_protocol_says() -> None:
    cluster = Cluster(4)
    cluster.start()
    cluster.deliver()
    for place in range(4):
        cluster.submit(place)
    assert cluster.deliver() == 3 + 2 * 4 * 3


def test_what_is_said_is_stored_before() -> None:
    lone = Lone()
    outputs = lone.hear(A, propose(A, 0, block_of(A, 0)))
    kinds = [type(out) for out in outputs]
    assert kinds == [Persist, Broadcast]
    item = outputs[0].item  # type: ignore[union-attr]
    assert isinstance(item, VoteState)
    assert decode(SavedBallot, item.state).votes == sent(outputs, Votes)[0].votes


def test_nothing_happens_between_decision_and_advance() -> None:
    lone = Lone()
    block = block_of(A, 0)
    lone.hear(A, propose(A, 0, block))
    lone.hear_votes((A, B), PREVOTE, 0, block.header.id)
    outputs = lone.hear_votes((A, B), PRECOMMIT, 0, block.header.id)
    assert isinstance(outputs[-1], Decided)
    assert lone.hear(C, Status(CHAIN, 1, 0, 1, 0)) == []
    assert lone.engine.deadline is None
    assert lone.engine.height == 1
    lone.app.blocks[1] = outputs[-1].certified
    lone.engine.advance(at(0))
    assert (lone.engine.height, lone.engine.round, lone.engine.step) == (2, 0, 0)


# --- idling -------------------------------------------------------------------------------------


def test_an_idle_chain_says_where_it_stands_and_stores_nothing() -> None:
    lone = Lone()
    lone.outputs.clear()
    lone.wait(60_000)
    assert len(lone.outputs) == 12
    assert all(isinstance(m, Status) for m in sent(lone.outputs, object))
    assert lone.engine.step == 0


def test_a_vote_wakes_an_idle_member() -> None:
    lone = Lone()
    lone.hear_votes((A,), PREVOTE, 0, NIL)
    assert lone.engine.step == 1


def test_a_leader_waits_for_records_to_gather_but_not_for_long() -> None:
    app = ToyChain(PEERS[:4], PEERS[A])
    engine = new_engine(A, app, settings=ConsensusSettings(gather_ms=20))
    engine.start(at(0))
    app.goal = 1
    for ms in range(100, 120):  # records keep coming
        assert sent(engine.nudge(at(ms)), Proposal) == []
        assert engine.deadline == min(ms + 2, 120)
    assert len(sent(engine.wake(at(120)), Proposal)) == 1


def test_a_leader_proposes_once_no_more_records_come() -> None:
    app = ToyChain(PEERS[:4], PEERS[A])
    engine = new_engine(A, app, settings=ConsensusSettings(gather_ms=20))
    engine.start(at(0))
    app.goal = 1
    engine.nudge(at(100))
    engine.nudge(at(101))
    assert sent(engine.wake(at(102)), Proposal) == []
    assert len(sent(engine.wake(at(103)), Proposal)) == 1


def test_a_leader_who_can_fill_a_block_gathers_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    app = ToyChain(PEERS[:4], PEERS[A])
    engine = new_engine(A, app, settings=ConsensusSettings(gather_ms=20))
    engine.start(at(0))
    app.goal = 1
    engine.nudge(at(100))
    monkeypatch.setattr(app, "has_enough", lambda: True)
    assert len(sent(engine.nudge(at(101)), Proposal)) == 1


def test_rounds_without_anything_to_pack_come_to_rest() -> None:
    cluster = Cluster(4)
    cluster.start()
    cluster.deliver()
    cluster.seats[B].app.goal = 1
    cluster.perform(cluster.seats[B], cluster.seats[B].engine.nudge(at(0)))
    cluster.seats[B].app.goal = 0
    cluster.run_until(30_000)
    assert cluster.heights() == [0] * 4
    assert all(seat.engine.step == 0 for seat in cluster.seats)


# --- rounds, locks, polkas ----------------------------------------------------------------------


def test_a_silent_leader_costs_a_round() -> None:
    cluster = Cluster(4, goal=1)
    cluster.seats[A].up = False
    cluster.start()
    cluster.run_until(4_000)
    assert cluster.heights() == [0, 1, 1, 1]
    certified = cluster.seats[B].app.blocks[1]
    assert (certified.certificate.round, certified.block.header.proposer) == (1, PEERS[B])


def locked_on_first(lone: Lone) -> Block:
    first = block_of(A, 0)
    lone.hear(A, propose(A, 0, first))
    outputs = lone.hear_votes((A, B), PREVOTE, 0, first.header.id)
    assert cast(outputs) == [(PRECOMMIT, 0, first.header.id)]
    lone.hear_votes((A, B), PRECOMMIT, 1, NIL)  # two are in round 1: so are we
    assert lone.engine.round == 1
    return first


def test_a_lock_holds_against_a_new_block() -> None:
    lone = Lone()
    locked_on_first(lone)
    assert cast(lone.hear(B, propose(B, 1, block_of(B, 1)))) == [(PREVOTE, 1, NIL)]


def test_a_newer_polka_frees_and_binds_anew_but_an_older_one_does_not() -> None:
    lone = Lone()
    locked_on_first(lone)
    second = block_of(B, 1)
    lone.hear(B, propose(B, 1, second))
    lone.hear_votes((A, B), PREVOTE, 2, NIL)
    polka = votes((A, B, C), PREVOTE, 1, second.header.id)
    assert cast(lone.hear(C, propose(C, 2, second, 1, polka))) == [(PREVOTE, 2, second.header.id)]
    outputs = lone.hear_votes((A, C), PREVOTE, 2, second.header.id)
    assert cast(outputs) == [(PRECOMMIT, 2, second.header.id)]
    saved = decode(SavedBallot, lone.states()[-1])
    assert (saved.locked_round, saved.locked_id) == (2, second.header.id)
    lone.hear_votes((A, B), PRECOMMIT, 4, NIL)
    first = block_of(A, 0)
    older = votes((A, B, D), PREVOTE, 0, first.header.id)
    assert cast(lone.hear(A, propose(A, 4, first, 0, older))) == [(PREVOTE, 4, NIL)]


def test_the_locked_block_is_prevoted_again_with_its_polka() -> None:
    lone = Lone()
    first = locked_on_first(lone)
    polka = votes((A, B, C), PREVOTE, 0, first.header.id)
    assert cast(lone.hear(B, propose(B, 1, first, 0, polka))) == [(PREVOTE, 1, first.header.id)]


def test_a_leader_proposes_the_block_of_a_polka_that_it_was_told_of() -> None:
    """The proof of a lock travels: any newer polka becomes the valid block of any leader."""
    lone = Lone(B)
    block = block_of(A, 0)
    lone.hear(C, Polka(CHAIN, block, votes((A, C, D), PREVOTE, 0, block.header.id)))
    outputs = lone.hear_votes((C, D), PRECOMMIT, 1, NIL)
    (proposal,) = sent(outputs, Proposal)
    assert (proposal.block, proposal.valid_round, len(proposal.polka)) == (block, 0, 3)


@pytest.mark.parametrize(
    ("polka_of", "valid_round"),
    [((A, B), 0), ((A, B, B), 0), ((A, B, C), 1), ((), 0)],
    ids=["too few", "one twice", "round not before", "none"],
)
def test_a_proposal_without_a_proof_of_its_polka_is_not_taken(
    polka_of: tuple[int, ...], valid_round: int
) -> None:
    lone = Lone()
    lone.hear_votes((A, C), PRECOMMIT, 1, NIL)
    block = block_of(A, 0)
    polka = votes(polka_of, PREVOTE, valid_round, block.header.id)
    outputs = lone.hear(B, propose(B, 1, block, valid_round, polka))
    assert (PREVOTE, 1, block.header.id) not in cast(outputs)
    assert blamed(outputs) == [PEERS[B]]


def test_a_quorum_of_an_earlier_round_still_decides() -> None:
    lone = Lone()
    block = block_of(A, 0)
    lone.hear(A, propose(A, 0, block))
    lone.hear_votes((A, B), PRECOMMIT, 1, NIL)
    assert decided(lone.hear_votes((A, B, C), PRECOMMIT, 0, block.header.id)) == block.header.id


def test_timeouts_grow_with_the_round() -> None:
    lone = Lone(goal=1)
    assert lone.engine.round == 0
    assert cast(lone.wait(999)) == []
    assert cast(lone.wait(1)) == [(PREVOTE, 0, NIL)]
    lone.hear_votes((A, B), PRECOMMIT, 2, NIL)
    assert cast(lone.wait(1_999)) == []
    assert cast(lone.wait(1)) == [(PREVOTE, 2, NIL)]


# --- restarts -----------------------------------------------------------------------------------


def eventful_run() -> Lone:
    """Lead through prevote, lock, a nil round, and the freeing by a newer polka, as member b."""
    lone = Lone(B, goal=1)
    first = block_of(A, 0)
    lone.hear(A, propose(A, 0, first))
    lone.wait(1_200)
    lone.hear_votes((A, C), PREVOTE, 0, NIL)
    lone.wait(700)
    lone.hear_votes((A, C), PRECOMMIT, 0, NIL)
    lone.wait(700)
    assert sent(lone.outputs, Proposal)
    own = sent(lone.outputs, Proposal)[0].block
    lone.hear_votes((C, D), PREVOTE, 1, own.header.id)
    lone.hear_votes((C, D), PRECOMMIT, 1, NIL)
    lone.wait(1_500)
    assert lone.engine.round == 2
    second = block_of(C, 2)
    lone.hear(C, propose(C, 2, second))
    lone.hear_votes((A, C, D), PREVOTE, 2, second.header.id)
    lone.wait(2_000)
    return lone


def test_no_restart_from_any_stored_state_signs_a_second_value() -> None:
    """Whatever it stored last, and whatever it is then told, it says nothing else than before."""
    past = eventful_run()
    states = past.states()
    assert len(states) >= 5
    for state in states:
        saved = decode(SavedBallot, state)
        said = {(v.kind, v.round): v.block_id for v in saved.votes}
        for lie in range(1, 4):
            again = Lone(B, state=state, goal=1)
            for round in range(4):
                block = block_of(round % 4, round, mark=lie)
                if round != B:
                    again.hear(round % 4, propose(round % 4, round, block))
                for kind in (PREVOTE, PRECOMMIT):
                    again.hear_votes((A, C, D)[:lie], kind, round, block.header.id if lie > 1 else NIL)
                again.wait(2_000)
            for kind, round, block_id in cast(again.outputs, B):
                assert said.setdefault((kind, round), block_id) == block_id or round > saved.round
            for proposal in sent(again.outputs, Proposal):
                assert proposal.round > saved.round or proposal == saved.proposal
            said = {(v.kind, v.round): v.block_id for v in saved.votes}


def test_votes_are_spoken_again_after_a_restart() -> None:
    lone = Lone()
    lone.hear(A, propose(A, 0, block_of(A, 0)))
    again = Lone(state=lone.states()[-1])
    assert cast(again.outputs) == cast(lone.outputs) == [(PREVOTE, 0, block_of(A, 0).header.id)]
    assert again.engine.step == 2


def test_a_lock_survives_a_restart_with_its_block() -> None:
    lone = Lone()
    first = locked_on_first(lone)
    again = Lone(state=lone.states()[-1])
    again.hear_votes((A, B), PRECOMMIT, 1, NIL)
    assert cast(again.hear(B, propose(B, 1, block_of(B, 1)))) == [(PREVOTE, 1, NIL)]
    again.hear_votes((A, B), PREVOTE, 3, NIL)
    (proposal,) = sent(again.outputs, Proposal)  # round 3 is its own
    assert (proposal.block, proposal.valid_round) == (first, 0)


def test_own_votes_that_come_back_from_others_bind_even_without_memory() -> None:
    block = block_of(A, 0)
    again = Lone()
    again.hear(B, Votes(CHAIN, (vote(D, PREVOTE, 0, block.header.id),)))
    again.wait(5_000)
    assert (PREVOTE, 0, NIL) not in cast(again.outputs)


def test_a_state_of_a_height_that_stands_is_ignored() -> None:
    lone = Lone()
    lone.hear(A, propose(A, 0, block_of(A, 0)))
    app = ToyChain(PEERS[:4], PEERS[D])
    app.blocks[1] = certify(block_of(A, 0))
    engine = new_engine(D, app, vote_state=lone.states()[-1])
    assert (engine.height, engine.round, engine.step) == (2, 0, 0)
    assert sent(engine.start(at(0)), Votes) == []


def test_who_lost_blocks_but_not_votes_only_follows_until_it_is_back() -> None:
    lone = Lone()
    lone.hear(A, propose(A, 0, block_of(A, 0)))
    ahead = msgspec.structs.replace(decode(SavedBallot, lone.states()[-1]), height=2, votes=())
    again = Lone(state=encode(ahead), goal=1)
    block = block_of(A, 0)
    again.hear(A, propose(A, 0, block))
    again.hear_votes((A, B, C), PREVOTE, 0, block.header.id)
    again.wait(10_000)
    assert cast(again.outputs) == []
    assert again.states() == []


def test_a_broken_state_is_an_error_and_not_a_fresh_start() -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        Lone(state=b"\x93garbage")


# --- liars --------------------------------------------------------------------------------------


def test_a_forged_vote_is_the_senders_fault_and_changes_nothing() -> None:
    lone = Lone()
    genuine = vote(A, PREVOTE, 0, NIL)
    forged = Vote(PREVOTE, 1, 0, b"x" * 32, PEERS[A], genuine.signature)
    assert blamed(lone.hear(C, Votes(CHAIN, (forged,)))) == [PEERS[C]]
    assert lone.engine.step == 0


def test_votes_of_another_chain_network_kind_or_stranger_are_refused() -> None:
    lone = Lone()
    block_id = block_of(A, 0).header.id
    elsewhere = [
        sign_vote(SIGNERS[A], NETWORK, ChainId("cd" * 20), PREVOTE, 1, 0, block_id),
        sign_vote(SIGNERS[A], "other", CHAIN, PREVOTE, 1, 0, block_id),
        Vote(PRECOMMIT, 1, 0, block_id, PEERS[A], vote(A, PREVOTE, 0, block_id).signature),
        vote(7, PREVOTE, 0, block_id),
    ]
    for replayed in elsewhere:
        assert blamed(lone.hear(B, Votes(CHAIN, (replayed,)))) == [PEERS[B]]
    assert lone.hear(B, Votes(ChainId("cd" * 20), (vote(A, PREVOTE, 0, block_id),))) == []
    assert lone.hear(9, Votes(CHAIN, (vote(A, PREVOTE, 0, block_id),))) == []
    assert lone.engine.step == 0


def test_a_bad_block_is_the_leaders_fault_and_gets_nil_at_once() -> None:
    lone = Lone()
    outputs = lone.hear(A, propose(A, 0, make_block(1, 0, b"y" * 32, PEERS[A])))
    assert blamed(outputs) == [PEERS[A]]
    assert cast(outputs) == [(PREVOTE, 0, NIL)]


def test_a_proposal_whose_records_were_swapped_on_the_way_harms_only_who_did_it() -> None:
    lone = Lone()
    genuine = propose(A, 0, block_of(A, 0))
    swapped = Block(genuine.block.header, RECORDS[1:2])
    tampered = Proposal(CHAIN, 0, swapped, -1, (), genuine.signature)
    assert blamed(lone.hear(C, tampered)) == [PEERS[C]]
    assert cast(lone.hear(A, genuine)) == [(PREVOTE, 0, genuine.block.header.id)]


def test_a_block_proposed_out_of_turn_is_refused() -> None:
    lone = Lone()
    assert blamed(lone.hear(B, propose(B, 0, block_of(B, 0)))) == [PEERS[B]]
    assert cast(lone.outputs) == []


def test_an_equivocating_voter_is_named_and_the_vote_that_matters_counts() -> None:
    """Slots for unknown values are bounded, but a vote for a block at hand always counts."""
    lone = Lone()
    block = block_of(A, 0)
    lone.hear(A, propose(A, 0, block))
    outputs = [out for n in range(9) for out in lone.hear_votes((B,), PREVOTE, 0, bytes([n]) * 32)]
    assert blamed(outputs) == [PEERS[B]]
    lone.hear_votes((C,), PREVOTE, 0, block.header.id)
    outputs = lone.hear_votes((B,), PREVOTE, 0, block.header.id)
    assert cast(outputs) == [(PRECOMMIT, 0, block.header.id)]


def test_a_polka_counts_although_all_slots_of_a_voter_are_full() -> None:
    lone = Lone()
    block = block_of(A, 0)
    for n in range(9):
        lone.hear_votes((B,), PREVOTE, 0, bytes([n]) * 32)
    lone.wait(1_000)
    lone.hear_votes((A,), PREVOTE, 0, block.header.id)
    outputs = lone.hear(C, Polka(CHAIN, block, votes((A, B, C), PREVOTE, 0, block.header.id)))
    assert cast(outputs) == [(PRECOMMIT, 0, block.header.id)]


def test_an_equivocating_leader_splits_nobody_for_long() -> None:
    cluster = Cluster(4, goal=1)
    cluster.seats[A].up = False
    cluster.start()
    cluster.deliver()
    one, other = block_of(A, 0, mark=1), block_of(A, 0, mark=2)
    for place, block in ((B, one), (C, other), (D, other)):
        seat = cluster.seats[place]
        for message in (
            propose(A, 0, block),
            Votes(CHAIN, votes((A,), PREVOTE, 0, block.header.id)),
            Votes(CHAIN, votes((A,), PRECOMMIT, 0, block.header.id)),
        ):
            cluster.perform(seat, seat.engine.receive(PEERS[A], message, at(0)))
    cluster.run_until(20_000)
    assert cluster.heights() == [0, 1, 1, 1]
    assert cluster.agreed()


def test_rounds_far_ahead_do_not_fill_memory_but_are_followed() -> None:
    lone = Lone()
    for round in range(40, 400, 3):
        lone.hear_votes((A,), PREVOTE, round, NIL)
    assert lone.engine.round == 0
    assert lone.engine._ballot.book.count == 0
    lone.hear_votes((B,), PREVOTE, 90, NIL)
    assert lone.engine.round == 90


# --- being behind -------------------------------------------------------------------------------


def chain_of(height: int) -> list[CertifiedBlock]:
    blocks: list[CertifiedBlock] = []
    for h in range(1, height + 1):
        previous = blocks[-1].block.header.id if blocks else GENESIS
        blocks.append(certify(make_block(h, 0, previous, PEERS[A])))
    return blocks


def test_a_late_member_takes_blocks_one_at_a_time() -> None:
    lone = Lone()
    outputs = lone.hear(A, Blocks(CHAIN, tuple(chain_of(3))))
    for height in (1, 2, 3):
        assert isinstance(outputs[-1], Decided)
        lone.app.blocks[height] = outputs[-1].certified
        outputs = lone.take(lone.engine.advance(at(0)))
    assert lone.engine.height == 4
    assert [m.height for m in sent(outputs, Status)] == [4], "asks its helper for more"


@pytest.mark.parametrize("fault", ["few", "twice", "forged", "other block", "other body", "other parent"])
def test_blocks_that_do_not_stand_are_refused(fault: str) -> None:
    good = chain_of(1)[0]
    block, certificate = good.block, good.certificate
    header_id = block.header.id
    signed = certificate.signatures
    bad = {
        "few": CertifiedBlock(block, Certificate(1, 0, header_id, signed[:2])),
        "twice": CertifiedBlock(block, Certificate(1, 0, header_id, (*signed[:2], signed[1]))),
        "forged": CertifiedBlock(block, Certificate(1, 1, header_id, signed)),
        "other block": CertifiedBlock(block_of(A, 0, mark=9), certificate),
        "other body": CertifiedBlock(Block(block.header, RECORDS[1:2]), certificate),
        "other parent": certify(make_block(1, 0, b"z" * 32, PEERS[A])),
    }[fault]
    lone = Lone()
    outputs = lone.hear(B, Blocks(CHAIN, (bad, chain_of(2)[1])))
    assert decided(outputs) is None
    assert blamed(outputs) == [PEERS[B]]
    assert decided(lone.hear(C, Blocks(CHAIN, (good,)))) == header_id


def test_who_is_behind_gets_a_batch_once_and_the_next_when_it_has_advanced() -> None:
    lone = Lone()
    for height, certified in enumerate(chain_of(40), start=1):
        lone.app.blocks[height] = certified
    lone.engine = new_engine(D, lone.app)
    lone.engine.start(at(0))
    batch = sent(lone.hear(B, Status(CHAIN, 1, 0, 0, 0)), Blocks)
    assert [certified.block.header.height for certified in batch[0].blocks] == list(range(1, 33))
    assert sent(lone.hear(B, Status(CHAIN, 1, 0, 0, 0)), Blocks) == []
    batch = sent(lone.hear(B, Status(CHAIN, 33, 0, 0, 0)), Blocks)
    assert [certified.block.header.height for certified in batch[0].blocks] == list(range(33, 41))
    lone.now_ms += 10_000
    assert sent(lone.hear(B, Status(CHAIN, 33, 0, 0, 0)), Blocks), "it may have been lost"
    assert sent(lone.hear(9, Status(CHAIN, 1, 0, 0, 0)), Blocks) == [], "a stranger gets nothing"


def test_who_sees_a_greater_height_says_where_it_stands_itself() -> None:
    lone = Lone()
    lone.outputs.clear()
    assert [m.height for m in sent(lone.hear(B, Status(CHAIN, 9, 0, 0, 0)), Status)] == [1]
    assert sent(lone.hear(B, Status(CHAIN, 9, 0, 0, 0)), Status) == []


def test_messages_of_the_next_height_wait_for_it() -> None:
    lone = Lone()
    first, second = (certified.block for certified in chain_of(2))
    lone.hear(A, sign_proposal(SIGNERS[A], NETWORK, CHAIN, 0, second, -1, ()))
    for place in (A, B, C):
        v = vote(place, PRECOMMIT, 0, second.header.id, height=2)
        lone.hear(place, Votes(CHAIN, (v,)))
    outputs = lone.hear(B, Blocks(CHAIN, (certify(first),)))
    lone.app.blocks[1] = certify(first)
    assert decided(outputs) == first.header.id
    assert decided(lone.engine.advance(at(0))) == second.header.id


def test_a_member_that_was_away_comes_back_and_catches_up() -> None:
    cluster = Cluster(4, goal=50)
    cluster.seats[D].up = False
    cluster.start()
    cluster.run_until(120_000)
    assert cluster.heights() == [50, 50, 50, 0]
    cluster.restart(D)
    cluster.run_until(121_000)
    assert cluster.heights() == [50] * 4
    assert cluster.agreed()


def test_an_observer_follows_without_a_voice() -> None:
    cluster = Cluster(4, observers=1, goal=3)
    spoken: list[Any] = []
    cluster.lost = lambda sender, to, message: sender == 4 and not isinstance(spoken.append(message), int)
    cluster.start()
    cluster.run_until(1_000)
    assert cluster.heights() == [3] * 5
    assert all(isinstance(message, Status) for message in spoken)
    assert cluster.seats[4].states == []


def test_an_observer_that_missed_a_block_gets_it_with_the_next() -> None:
    cluster = Cluster(4, observers=1)
    cluster.lost = lambda sender, to, message: to == 4
    cluster.start()
    for goal in (1, 2):
        for place in range(4):
            cluster.submit(place, goal)
        cluster.deliver()
        cluster.lost = lambda sender, to, message: False
    assert cluster.heights() == [2] * 5


@pytest.mark.parametrize("down", [(C, D), (B, C, D)])
def test_members_without_a_quorum_stay_calm(down: tuple[int, ...]) -> None:
    cluster = Cluster(4, goal=1)
    for place in down:
        cluster.seats[place].up = False
    cluster.start()
    cluster.run_until(60_000)
    seen = sum(cluster.deliver() for _ in range(2))
    before = len(cluster.seats[A].states)
    messages: list[Any] = []
    cluster.trace = lambda place, out: messages.append(out) if isinstance(out, Send) else None
    cluster.run_until(120_000)
    assert seen == 0
    assert len(messages) < 120, "repairs are rationed while nothing changes"
    assert len(cluster.seats[A].states) == before


# --- golden transcripts -------------------------------------------------------------------------

NAMES = "abcdefgh"
STEPS = ("new", "propose", "prevoted", "precommitted")


def block_name(block: Block) -> str:
    return f"block {NAMES[PEERS.index(block.header.proposer)]}{block.header.round}"


class Transcript:
    """Runs the commands of a transcript and writes down all that engines put out."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[bytes, str] = {NIL: "nil"}
        self.deaf: dict[int, None] = {}

    def run(self, command: str) -> str:
        self.lines = []
        name, *words = command.split()
        getattr(self, "_" + name)(*words)
        return "\n".join(self.lines) or "(nothing)"

    def _members(self, count: str, _: str = "", observers: str = "0") -> None:
        self.cluster = Cluster(int(count), int(observers))
        self.cluster.lost = lambda sender, to, message: sender in self.deaf or to in self.deaf
        self.cluster.trace = self.note
        self.cluster.start()

    def _submit(self, names: str, goal: str) -> None:
        for name in names:
            self.cluster.submit(NAMES.index(name), int(goal))

    def _deliver(self) -> None:
        self.cluster.deliver()

    def _pass(self, ms: str) -> None:
        self.cluster.run_until(self.cluster.now_ms + int(ms))

    def _isolate(self, name: str) -> None:
        self.deaf[NAMES.index(name)] = None

    def _rejoin(self, name: str) -> None:
        del self.deaf[NAMES.index(name)]

    def _crash(self, name: str) -> None:
        self.cluster.seats[NAMES.index(name)].up = False

    def _restart(self, name: str) -> None:
        self.cluster.restart(NAMES.index(name))

    def _polka(self, sender: str, to: str, proposer: str) -> None:
        """A liar's hand: c passes on a polka that it says it has."""
        block = make_block(1, 0, GENESIS, PEERS[NAMES.index(proposer)])
        message = Polka(CHAIN, block, votes((A, B), PREVOTE, 0, block.header.id))
        seat = self.cluster.seats[NAMES.index(to)]
        outputs = seat.engine.receive(PEERS[NAMES.index(sender)], message, at(self.cluster.now_ms))
        self.cluster.perform(seat, outputs)

    def note(self, place: int, output: Output) -> None:
        me = NAMES[place]
        match output:
            case Persist(VoteState(_, state)):
                saved = decode(SavedBallot, state)
                lock = f", locked on {self.id_name(saved.locked_id)}" if saved.locked_round >= 0 else ""
                self.lines.append(f"{me} stores h{saved.height} r{saved.round} {STEPS[saved.step]}{lock}")
            case Send(peer, message):
                self.lines.append(f"{me} -> {NAMES[PEERS.index(peer)]}: {self.describe(message)}")
            case Broadcast(peers, message):
                to = "".join(NAMES[PEERS.index(peer)] for peer in peers)
                self.lines.append(f"{me} -> {to}: {self.describe(message)}")
            case Decided(certified):
                block, round = certified.block, certified.certificate.round
                self.lines.append(f"{me} DECIDES h{block.header.height} {block_name(block)} in r{round}")
            case Notify(Misbehaved(peer, reason)):
                self.lines.append(f"{me} blames {NAMES[PEERS.index(peer)]}: {reason}")

    def id_name(self, block_id: bytes) -> str:
        return self.names.get(block_id, "an unknown block")

    def describe(self, message: Any) -> str:
        match message:
            case Status():
                return f"status h{message.height} r{message.round} {STEPS[message.step]}"
            case Votes():
                said = (
                    f"{'prevote' if v.kind == PREVOTE else 'precommit'} r{v.round} {self.id_name(v.block_id)}"
                    + (f" of {NAMES[PEERS.index(v.voter)]}" if len(message.votes) > 1 else "")
                    for v in message.votes
                )
                return f"h{message.votes[0].height} " + ", ".join(said)
            case Proposal():
                self.names[message.block.header.id] = name = block_name(message.block)
                proof = f" with its polka of r{message.valid_round}" if message.polka else ""
                return f"proposal h{message.block.header.height} r{message.round} {name}{proof}"
            case Polka():
                return f"polka r{message.votes[0].round} {block_name(message.block)}"
            case Blocks():
                heights = [f"h{certified.block.header.height}" for certified in message.blocks]
                return "blocks " + " ".join(heights)
        raise TypeError(message)


TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    """Each stanza: comments, one command after '>', and what came of it."""
    transcript = Transcript()
    wanted = path.read_text()
    stanzas = []
    for stanza in wanted.strip().split("\n\n"):
        lines = stanza.splitlines()
        kept = [line for line in lines if line.startswith(("#", ">"))]
        commands = [line[1:].strip() for line in kept if line.startswith(">")]
        stanzas.append("\n".join(kept + [transcript.run(command) for command in commands]))
    written = "\n\n".join(stanzas) + "\n"
    if os.environ.get("EDGEPOOL_REWRITE"):
        path.write_text(written)
    assert written == wanted


def test_saved_state_stays_small_and_decodes() -> None:
    lone = Lone()
    locked_on_first(lone)
    for state in lone.states():
        assert encode(decode(SavedBallot, state)) == state
        assert len(state) < 4_000

"""Which votes of one height are worth a signature check, and what they add up to."""

from __future__ import annotations

import pytest
from consensus_cluster import CHAIN, NETWORK, PEERS, SIGNERS

from edgepool.core.consensus.votes import VoteBook
from edgepool.model.vote import NIL, PRECOMMIT, PREVOTE, Vote, sign_vote

BLOCK, OTHER = b"b" * 32, b"o" * 32
A, B, C, D = range(4)


def vote(place: int, block_id: bytes = BLOCK, round: int = 0, kind: int = PREVOTE) -> Vote:
    return sign_vote(SIGNERS[place], NETWORK, CHAIN, kind, 1, round, block_id)


def book_of(*votes: Vote, me: int = A, members: int = 4) -> VoteBook:
    book = VoteBook(PEERS[:members], PEERS[me])
    for one in votes:
        assert book.wants(one, ())
        book.add(one)
    return book


@pytest.mark.parametrize("kind", [PREVOTE, PRECOMMIT])
@pytest.mark.parametrize("block_id", [BLOCK, NIL])
def test_one_more_vote_for_what_has_a_quorum_is_not_wanted(kind: int, block_id: bytes) -> None:
    book = book_of(*(vote(place, block_id, 0, kind) for place in (A, B)))
    assert book.wants(vote(D, block_id, 0, kind), ())
    book.add(vote(C, block_id, 0, kind))
    assert not book.wants(vote(D, block_id, 0, kind), ())
    assert book.wants(vote(D, OTHER, 0, kind), ()), "another value may be evidence, or free others"
    assert book.wants(vote(D, block_id, 1, kind), ())
    assert book.wants(vote(D, block_id, 0, PREVOTE + PRECOMMIT - kind), ())


def test_who_has_said_something_else_is_heard_out() -> None:
    book = book_of(vote(D, OTHER), vote(A), vote(B), vote(C))
    assert book.wants(vote(D), ())
    assert book.add(vote(D)), "it has signed two values"
    late = book_of(vote(A), vote(B), vote(C), vote(D, OTHER))
    assert late.wants(vote(D), ())
    assert late.add(vote(D))


def test_own_votes_come_back_and_bind_although_there_is_a_quorum() -> None:
    book = book_of(vote(A), vote(B), vote(C), me=D)
    assert book.wants(vote(D), ())
    book.add(vote(D))
    said = book.said(PREVOTE, 0, PEERS[D])
    assert said is not None
    assert said.block_id == BLOCK


def test_votes_that_were_not_wanted_make_no_difference_to_the_round_to_join() -> None:
    members = 7
    for late in (5, 6):
        heard = book_of(*(vote(place, NIL, 3) for place in range(5)), members=members)
        whole = book_of(*(vote(place, NIL, 3) for place in range(5)), members=members)
        whole.add(vote(late, NIL, 3))
        for place in (0, 5, 6):
            assert heard.round_to_join() == whole.round_to_join()
            assert heard.active_from(3) == whole.active_from(3)
            for book in (heard, whole):
                book.add(vote(place, NIL, 4))
        assert heard.round_to_join() == whole.round_to_join() == 4


def test_a_quorum_certifies_whoever_else_votes() -> None:
    book = book_of(vote(A, kind=PRECOMMIT), vote(B, kind=PRECOMMIT), vote(D, kind=PRECOMMIT))
    assert not book.wants(vote(C, kind=PRECOMMIT), ())
    assert [one.voter for one in book.votes_for(PRECOMMIT, 0, BLOCK)] == [PEERS[A], PEERS[B], PEERS[D]]
    assert len(book.votes_in([0])) == book.quorum, "enough for whoever lacks them"

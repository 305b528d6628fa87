"""Anchors: who writes one, when and where; and what a copy of a chain has against one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from changing_pool import ChangingPool, twice_changed

from edgepool.core.anchoring import (
    MOST_MS,
    MOST_RETRY_MS,
    QUIET_MS,
    RETRY_MS,
    TURN_MS,
    WAIT_MS,
    Anchoring,
)
from edgepool.core.anchors import anchor_fault
from edgepool.model.block import CertifiedBlock
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import ChainAnchor
from edgepool.model.vote import Certificate

SUB = ChangingPool(name="liner")
MAIN = ChangingPool(name="mills", kind="fixed")
OTHER_MAIN = ChainId("cd" * 20)
for _ in range(90):
    SUB.block()
PACKER = SUB.roster[0].peer  # who has packed all blocks of these toy pools


def member(place: int) -> PeerId:
    return SUB.roster[place].peer


def watch(own: PeerId = PACKER, limit: int = 4) -> Anchoring:
    return Anchoring(own, limit)


def sub_block(anchoring: Anchoring, height: int, now_ms: int) -> None:
    members = [one.peer for one in SUB.roster]
    anchoring.block_committed(SUB.chain, "manufacturing", SUB.blocks[height - 1], members, now_ms)


def anchor_of(height: int) -> ChainAnchor:
    return ChainAnchor(SUB.chain, SUB.blocks[height - 1].certificate)


def main_block(anchoring: Anchoring, anchor: ChainAnchor | None, now_ms: int) -> None:
    record = MAIN.demand() if anchor is None else MAIN.record(MAIN.signer(1), anchor)
    certified: CertifiedBlock = MAIN.block(record)
    members = [one.peer for one in MAIN.roster]
    anchoring.block_committed(MAIN.chain, "fixed", certified, members, now_ms)


def first_anchor_ms(anchoring: Anchoring) -> int | None:
    at = anchoring.deadline
    if at is not None:
        assert anchoring.wake(at - 1, [MAIN.chain]) == []
        assert anchoring.wake(at, [MAIN.chain])
    return at


# --- when and by whom -----------------------------------------------------------------------------


def test_the_packer_anchors_a_head_after_two_quiet_seconds() -> None:
    anchoring = watch()
    sub_block(anchoring, 1, 0)
    sub_block(anchoring, 2, 1_500)
    assert anchoring.deadline == 1_500 + QUIET_MS
    assert anchoring.wake(3_499, [MAIN.chain]) == []
    assert anchoring.wake(3_500, [MAIN.chain]) == [(MAIN.chain, anchor_of(2))]


def test_the_others_follow_one_after_the_other() -> None:
    at = []
    for place in range(1, 4):
        anchoring = watch(member(place))
        sub_block(anchoring, 1, 0)
        at.append(first_anchor_ms(anchoring))
    assert at == [WAIT_MS, WAIT_MS + TURN_MS, WAIT_MS + 2 * TURN_MS]


def test_the_order_goes_round_from_the_packer_on() -> None:
    order = [member(1), member(2), PACKER, member(3)]
    at = {}
    for own in (1, 2, 3):
        anchoring = watch(member(own))
        anchoring.block_committed(SUB.chain, "manufacturing", SUB.blocks[0], order, 0)
        at[own] = first_anchor_ms(anchoring)
    assert at == {3: WAIT_MS, 1: WAIT_MS + TURN_MS, 2: WAIT_MS + 2 * TURN_MS}


def test_nobody_anchors_what_an_anchor_on_its_main_chain_holds() -> None:
    for place in range(4):
        anchoring = watch(member(place))
        sub_block(anchoring, 1, 0)
        main_block(anchoring, anchor_of(1), 1_000)
        assert anchoring.deadline is None
        sub_block(anchoring, 2, 5_000)
        assert anchoring.deadline is not None, "the next head is another matter"


def test_an_anchor_of_an_older_block_leaves_the_head_to_be_anchored() -> None:
    anchoring = watch(member(1))
    sub_block(anchoring, 1, 0)
    sub_block(anchoring, 2, 100)
    main_block(anchoring, anchor_of(1), 1_000)
    assert anchoring.deadline == 100 + WAIT_MS


def test_an_anchor_that_nobody_has_signed_does_not_count() -> None:
    genuine = anchor_of(1).certificate
    few = Certificate(genuine.height, genuine.round, genuine.block_id, genuine.signatures[:1])
    false = tuple((index, bytes(64)) for index, _ in genuine.signatures)
    forged = Certificate(genuine.height, genuine.round, genuine.block_id, false)
    for certificate in (few, forged, anchor_of(2).certificate):
        anchoring = watch(member(1))
        sub_block(anchoring, 1, 0)
        main_block(anchoring, ChainAnchor(SUB.chain, certificate), 1_000)
        assert anchoring.deadline == WAIT_MS


def test_an_anchor_of_another_block_at_the_same_height_does_not_count() -> None:
    fork = ChangingPool(name="liner")
    certificate = fork.block(fork.demand(fork.signer(1))).certificate
    anchoring = watch(member(1))
    sub_block(anchoring, 1, 0)
    main_block(anchoring, ChainAnchor(SUB.chain, certificate), 1_000)
    assert anchoring.deadline == WAIT_MS


def test_an_older_anchor_that_comes_late_is_not_answered_with_another_one() -> None:
    anchoring = watch(member(1))
    sub_block(anchoring, 1, 0)
    sub_block(anchoring, 2, 100)
    main_block(anchoring, anchor_of(2), 1_000)
    main_block(anchoring, anchor_of(1), 2_000)
    assert anchoring.deadline is None


def test_votes_of_other_members_for_the_same_head_count() -> None:
    block = SUB.blocks[0].block
    votes = SUB.certify(block.header, SUB.roster)
    others = tuple(
        (index, SUB.signer(index).sign("vote", ["works", SUB.chain, 2, 1, 0, block.header.id]))
        for index in (1, 2, 3)
    )
    certificate = Certificate(1, 0, block.header.id, others)
    assert certificate != votes
    anchoring = watch(member(1))
    sub_block(anchoring, 1, 0)
    main_block(anchoring, ChainAnchor(SUB.chain, certificate), 1_000)
    assert anchoring.deadline is None


def test_a_chain_that_is_never_quiet_is_anchored_once_a_minute() -> None:
    anchoring = watch()
    written = []
    for now in range(0, 90_000, 1_000):
        sub_block(anchoring, 1 + now // 1_000, now)
        for _, anchor in anchoring.wake(now, [MAIN.chain]):
            written.append((now, anchor.certificate.height))
            main_block(anchoring, anchor, now + 500)
    assert written == [(MOST_MS, 1 + MOST_MS // 1_000)]


# --- where, and again -----------------------------------------------------------------------------


def test_a_peer_without_a_main_chain_does_nothing_until_it_has_one() -> None:
    anchoring = watch()
    sub_block(anchoring, 1, 0)
    assert anchoring.wake(QUIET_MS, []) == []
    assert anchoring.deadline is None
    main_block(anchoring, None, 50_000)
    assert anchoring.deadline == 50_000 + WAIT_MS
    assert anchoring.wake(50_000 + WAIT_MS, [MAIN.chain]) == [(MAIN.chain, anchor_of(1))]


def test_an_anchor_that_does_not_come_to_stand_is_tried_ever_more_seldom_and_elsewhere() -> None:
    anchoring = watch()
    sub_block(anchoring, 1, 0)
    at, chains = [], []
    for _ in range(9):
        assert anchoring.deadline is not None
        at.append(anchoring.deadline)
        [(chain, anchor)] = anchoring.wake(at[-1], [MAIN.chain, OTHER_MAIN])
        assert anchor == anchor_of(1)
        chains.append(chain)
    pauses = [b - a for a, b in pairwise(at)]
    assert pauses == [min(RETRY_MS * 2**i, MOST_RETRY_MS) for i in range(8)]
    assert chains[:4] == [MAIN.chain, OTHER_MAIN, MAIN.chain, OTHER_MAIN]


def test_a_main_chain_that_stands_still_is_not_flooded_by_a_sub_chain_that_goes_on() -> None:
    anchoring = watch()
    written = []
    for now in range(0, 270_000, 3_000):
        sub_block(anchoring, 1 + now // 3_000, now)
        written += [(now, anchor) for _, anchor in anchoring.wake(now + 2_999, [MAIN.chain])]
    assert [now for now, _ in written] == [0, 60_000, 180_000]
    main_block(anchoring, written[-1][1], 270_000)
    sub_block(anchoring, 90, 270_000)
    assert anchoring.deadline == 270_000 + QUIET_MS, "it stands again, so nothing is put off"


def test_the_number_of_chains_watched_is_bounded() -> None:
    anchoring = watch(limit=2)
    certified, members = SUB.blocks[0], [one.peer for one in SUB.roster]
    for number in range(5):
        chain = ChainId(f"{number:040}")
        anchoring.block_committed(chain, "manufacturing", certified, members, 0)
    assert [anchor.sub_chain[-1] for _, anchor in anchoring.wake(QUIET_MS, [MAIN.chain])] == ["3", "4"]


# --- what a copy has against an anchor ------------------------------------------------------------

POOL = twice_changed()
for _ in range(3):
    POOL.block()
ROSTERS = (
    (2, POOL.genesis.invitation.members),
    (4, (*POOL.genesis.invitation.members, POOL.handovers[0].incoming)),
)


def fault(anchor: ChainAnchor, *, head_height: int = 7, pruned: int = 0) -> str:
    def roster_at(height: int) -> object:
        return next((roster for last, roster in ROSTERS if height <= last), POOL.roster)

    def block_id_at(height: int) -> bytes | None:
        return None if height <= pruned else POOL.blocks[height - 1].block.header.id

    return anchor_fault(anchor, POOL.genesis, roster_at, block_id_at, head_height)  # type: ignore[arg-type]


def anchored(height: int) -> ChainAnchor:
    return ChainAnchor(POOL.chain, POOL.blocks[height - 1].certificate)


def rewritten(height: int) -> ChainAnchor:
    """Return an anchor of a block that the pool has signed at a height at which the copy has another."""
    fork = twice_changed()
    for _ in range(3):
        fork.block(fork.demand(fork.signer(1)))
    return ChainAnchor(POOL.chain, fork.blocks[height - 1].certificate)


@pytest.mark.parametrize("height", range(1, 8))
def test_anchors_of_the_chain_itself_hold_whoever_voted(height: int) -> None:
    assert fault(anchored(height)) == ""


def test_an_anchor_shows_that_the_past_was_rewritten() -> None:
    assert fault(rewritten(6)) == "contradicts: the chain has another block at height 6"
    assert fault(rewritten(6), pruned=6) == ""


def test_an_anchor_shows_that_the_end_is_missing() -> None:
    assert fault(anchored(7), head_height=6) == "lies beyond the end of this copy"


@pytest.mark.parametrize("height", [2, 6, 7])
def test_an_anchor_that_the_members_have_not_signed_says_nothing(height: int) -> None:
    genuine = anchored(height).certificate
    pairs = ((0, bytes(64)), *genuine.signatures[1:])
    certificate = Certificate(genuine.height, genuine.round, genuine.block_id, pairs)
    assert fault(ChainAnchor(POOL.chain, certificate), head_height=6).startswith("not genuine (the signature")
    elsewhere = ChainAnchor(ChainId("ab" * 20), genuine)
    assert fault(elsewhere) == "not genuine (it is of another chain)"


def test_votes_of_a_roster_that_this_copy_cannot_know_are_called_so() -> None:
    fork = twice_changed()
    fork.change(incoming=fork.person("n9"))
    fork.change(outgoing=fork.roster[0].peer)
    beyond = ChainAnchor(POOL.chain, fork.block().certificate)
    assert fault(beyond, head_height=6).endswith("; members may have changed since the end of this copy)")

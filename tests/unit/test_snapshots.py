"""A snapshot on its way: what a server gives away, and what a fetcher believes and of whom it asks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from ledger_world import World
from msgspec.structs import replace
from snapshot_pool import ROOM, A, B, C, D, E, F, SnapshotPool, state_bytes

from edgepool.core.adoption import (
    LIAR_PAUSE_MS,
    MAX_REPLACED,
    MOST_HEIGHT,
    MOST_PATIENCE_MS,
    PATIENCE_MS,
    SILENT_PAUSE_MS,
    Adopted,
    Output,
    SnapshotFetcher,
    head_problem,
)
from edgepool.core.machine import (
    CommitBlock,
    Misbehaved,
    NewChain,
    Notify,
    Prune,
    SavedSnapshot,
    SaveSnapshot,
    Send,
)
from edgepool.core.replay import load_state
from edgepool.core.snapshots import IDLE_MS, SPARE_PAGES, WINDOW_MS, SnapshotServer
from edgepool.model.block import Handover
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import (
    MAX_HANDOVERS,
    SNAPSHOT_PAGE_BYTES,
    SnapshotHead,
    SnapshotPage,
    SnapshotRequest,
)
from edgepool.storage.memory import MemoryStore

POOL = SnapshotPool()
LATER = SnapshotPool(blocks=20)


@dataclass
class Told:
    """What a call put out, taken apart."""

    sent: list[tuple[PeerId, Any]]
    blamed: list[tuple[PeerId, str]]
    adopted: list[Adopted]


def told(outputs: list[Output]) -> Told:
    blamed = [one.notice for one in outputs if isinstance(one, Notify)]
    return Told(
        [(one.peer, one.message) for one in outputs if isinstance(one, Send)],
        [(one.peer, one.reason) for one in blamed if isinstance(one, Misbehaved)],
        [one for one in outputs if isinstance(one, Adopted)],
    )


def only(outputs: list[Output]) -> Any:
    """Return the one message sent."""
    [(_, message)] = told(outputs).sent
    return message


def page(height: int, number: int, data: bytes | None = None) -> SnapshotPage:
    whole = state_bytes(height) if data is None else data
    start = number * SNAPSHOT_PAGE_BYTES
    return SnapshotPage(POOL.chain, height, number, whole[start : start + SNAPSHOT_PAGE_BYTES])


def started(*heads: tuple[PeerId, SnapshotHead], pool: SnapshotPool = POOL) -> SnapshotFetcher:
    """Return a fetcher that has just asked the first of the peers for page 0."""
    fetcher = pool.fetcher()
    for peer, head in heads:
        assert fetcher.head(peer, head, 0, (), 0) == []
    [(peer, message)] = told(fetcher.wake(PATIENCE_MS)).sent
    assert (peer, message) == (heads[0][0], SnapshotRequest(POOL.chain, heads[0][1].height, 0))
    return fetcher


def deliver(fetcher: SnapshotFetcher, peer: PeerId, height: int, now_ms: int, data: bytes = b"") -> Told:
    """Hand in all three pages; return what the last one brings."""
    outputs: list[Output] = []
    for number in range(3):
        outputs = fetcher.page(peer, page(height, number, data or None), now_ms)
    return told(outputs)


# --- the server -----------------------------------------------------------------------------------


def test_who_lacks_pruned_blocks_is_offered_what_there_is() -> None:
    server = SnapshotServer(POOL.store(8), POOL.chain)
    head = only(server.offer(A, 3, 0))
    assert head == POOL.head(8)
    assert head_problem(head, POOL.genesis, 0, ()) == ""


@pytest.mark.parametrize("first", [9, 12, 13, 99])
def test_nothing_is_offered_for_blocks_that_are_here_or_not_yet(first: int) -> None:
    server = SnapshotServer(POOL.store(8), POOL.chain)
    assert server.offer(A, first, 0) == []


def test_nothing_is_offered_while_the_blocks_are_not_pruned_yet() -> None:
    store = POOL.store(8)
    store.blocks = {one.block.header.height: one for one in POOL.blocks}
    assert SnapshotServer(store, POOL.chain).offer(A, 3, 0) == []


def test_nothing_is_offered_without_a_snapshot_or_the_block_after_it() -> None:
    store = POOL.store(8)
    store.saved = None
    assert SnapshotServer(store, POOL.chain).offer(A, 3, 0) == []
    store = POOL.store(8)
    del store.blocks[9]
    assert SnapshotServer(store, POOL.chain).offer(A, 3, 0) == []


def test_a_snapshot_that_no_message_can_describe_is_not_offered() -> None:
    store = POOL.store(8)
    handovers: tuple[Handover, ...] = POOL.handovers * MAX_HANDOVERS
    store.saved = SavedSnapshot(8, handovers, state_bytes(8))
    assert SnapshotServer(store, POOL.chain).offer(A, 3, 0) == []


def test_heads_are_rationed_for_each_peer_until_its_link_is_a_new_one() -> None:
    server = SnapshotServer(POOL.store(8), POOL.chain)
    assert server.offer(A, 3, 0)
    assert not server.offer(A, 3, 999)
    assert not server.offer(A, 4, 999), "another place does not help: a peer can make it up"
    assert server.offer(B, 3, 999)
    assert server.offer(A, 3, 1_000)
    assert not server.offer(A, 3, 2_999)
    server.forget(A)
    assert server.offer(A, 3, 2_999)


def test_pages_are_sent_whole_and_the_last_one_is_what_is_left() -> None:
    server = SnapshotServer(POOL.store(8), POOL.chain)
    server.offer(A, 3, 0)
    pages = [only(server.page(A, SnapshotRequest(POOL.chain, 8, number), 0)) for number in range(3)]
    assert b"".join(one.data for one in pages) == state_bytes(8)
    assert [len(one.data) for one in pages] == [SNAPSHOT_PAGE_BYTES, SNAPSHOT_PAGE_BYTES, 1000]
    assert server.page(A, SnapshotRequest(POOL.chain, 8, 3), 0) == []


def test_one_peer_cannot_draw_more_than_a_snapshot_in_a_minute() -> None:
    server = SnapshotServer(POOL.store(8), POOL.chain)
    for peer in (A, B):
        server.offer(peer, 3, 0)
    request = SnapshotRequest(POOL.chain, 8, 1)
    assert sum(len(server.page(A, request, now)) for now in range(WINDOW_MS)) == 3 + SPARE_PAGES
    server.forget(A)  # a new link brings a new head, but no more pages
    assert server.offer(A, 3, WINDOW_MS - 1)
    assert not server.page(A, request, WINDOW_MS - 1)
    assert server.page(B, request, WINDOW_MS - 1)
    assert server.page(A, request, WINDOW_MS)


def test_pages_are_only_for_peers_that_were_offered_them_on_this_link() -> None:
    store = POOL.store(8)
    server = SnapshotServer(store, POOL.chain)
    assert server.page(A, SnapshotRequest(POOL.chain, 8, 0), 0) == []
    assert store.loads == 0
    server.offer(A, 3, 0)
    assert server.page(A, SnapshotRequest(POOL.chain, 8, 0), 0)
    server.forget(A)
    assert server.page(A, SnapshotRequest(POOL.chain, 8, 0), 0) == []


def test_a_snapshot_is_read_once_and_forgotten_when_nobody_asks() -> None:
    store = POOL.store(8)
    server = SnapshotServer(store, POOL.chain)
    assert server.deadline is None
    server.offer(B, 3, 0)
    for now in range(0, 50_000, 10_000):
        server.offer(A, 3, now)
        server.page(B, SnapshotRequest(POOL.chain, 8, 0), now)
    assert store.loads == 1
    assert server.deadline == 40_000 + IDLE_MS
    server.wake(40_000 + IDLE_MS)
    assert server.deadline is None
    server.page(B, SnapshotRequest(POOL.chain, 8, 0), 80_000)
    assert store.loads == 2


def test_requests_for_heights_that_were_never_offered_do_not_make_the_server_read() -> None:
    store = POOL.store(8)
    server = SnapshotServer(store, POOL.chain)
    server.offer(A, 3, 0)
    for height in range(1, 2_000):
        server.page(A, SnapshotRequest(POOL.chain, height, 0), 0)
    assert store.loads == 1


def test_who_asks_for_a_snapshot_that_was_replaced_gets_the_new_head() -> None:
    store = LATER.store(8)
    server = SnapshotServer(store, LATER.chain)
    assert only(server.offer(A, 3, 0)).height == 8
    newer = LATER.store(16)
    store.blocks, store.saved = newer.blocks, newer.saved
    assert only(server.page(A, SnapshotRequest(LATER.chain, 8, 0), 1)).data, "it is in memory yet"
    assert only(server.offer(B, 3, 2)).height == 16
    assert only(server.page(A, SnapshotRequest(LATER.chain, 8, 1), 2_000)).height == 16


# --- heads that are not believed ------------------------------------------------------------------


def forged() -> dict[str, SnapshotHead]:
    """Return heads that an honest peer would never send, by what is wrong."""
    stranger = SnapshotPool(blocks=0)
    stranger.roster = tuple(stranger.person(f"x{i}") for i in range(4))
    header = POOL.blocks[8].block.header
    second = POOL.handovers[1]
    return {
        "another chain": POOL.head(8, chain=ChainId("ab" * 20)),
        "the header of another height": POOL.head(8, height=7),
        "votes for another block": POOL.head(8, certificate=POOL.blocks[9].certificate),
        "votes of strangers": POOL.head(8, certificate=stranger.certify(header, stranger.roster)),
        "votes of the first roster": POOL.head(8, certificate=POOL.certify(header, POOL.rosters[0])),
        "a handover left out": POOL.head(8, handovers=POOL.handovers[:1]),
        "no handovers": POOL.head(8, handovers=()),
        "handovers out of order": POOL.head(8, handovers=POOL.handovers[::-1]),
        "a handover that is none": POOL.head(8, handovers=(POOL.handovers[0], null_handover(), second)),
        "a handover that is none, behind all": POOL.head(8, handovers=(*POOL.handovers, null_handover(6))),
        "a handover twice": POOL.head(8, handovers=(*POOL.handovers, second)),
        "a handover behind the snapshot": POOL.head(3, handovers=POOL.handovers),
        "a handover to somebody else": POOL.head(
            8, handovers=(Handover(POOL.handovers[0].header, POOL.handovers[0].certificate, "", LIAR), second)
        ),
        "a handover without votes": POOL.head(
            8,
            handovers=(POOL.handovers[0], Handover(second.header, header_votes(), second.outgoing, None)),
        ),
    }


LIAR = POOL.person("liar")


def null_handover(height: int = 3) -> Handover:
    """Return a genuine block as if it changed the roster."""
    certified = POOL.blocks[height - 1]
    return Handover(certified.block.header, certified.certificate, PeerId(""), None)


def header_votes() -> Any:
    """Return a certificate for the second handover by one member alone, many times over."""
    genuine = POOL.handovers[1].certificate
    return type(genuine)(genuine.height, genuine.round, genuine.block_id, genuine.signatures[:1])


@pytest.mark.parametrize("fault", forged())
def test_a_head_that_does_not_hold_is_blamed_at_once_and_its_sender_left_alone(fault: str) -> None:
    fetcher = POOL.fetcher()
    [(peer, reason)] = told(fetcher.head(A, forged()[fault], 0, (), 0)).blamed
    assert peer == A
    assert reason.startswith("a snapshot that does not hold: ")
    assert fetcher.deadline is None
    assert fetcher.head(A, POOL.head(8), 0, (), LIAR_PAUSE_MS - 1) == []
    assert fetcher.deadline is None
    fetcher.head(A, POOL.head(8), 0, (), LIAR_PAUSE_MS)
    assert fetcher.deadline == LIAR_PAUSE_MS + PATIENCE_MS


def test_no_head_is_believed_at_a_height_behind_which_nothing_could_be_written() -> None:
    def head_at(height: int) -> SnapshotHead:
        header = replace(POOL.head(8).header, height=height + 1)
        certificate = POOL.certify(header, POOL.rosters[8])
        return POOL.head(8, height=height, header=header, certificate=certificate)

    assert head_problem(head_at(MOST_HEIGHT), POOL.genesis, 0, ()) == ""
    assert head_problem(head_at(MOST_HEIGHT + 1), POOL.genesis, 0, ()) == "no chain comes to its height"


def test_a_head_that_brings_nothing_new_is_ignored() -> None:
    fetcher = POOL.fetcher()
    assert fetcher.head(A, POOL.head(8), 8, POOL.handovers, 0) == []
    assert fetcher.deadline is None


def test_handovers_may_not_contradict_those_of_this_peers_own_chain() -> None:
    other = SnapshotPool(blocks=3)
    other.change(incoming=other.person("n9"))  # the same genesis, another past from height 4 on
    assert head_problem(POOL.head(8), POOL.genesis, 4, other.handovers) == (
        "its handovers contradict this peer's own chain"
    )
    assert head_problem(POOL.head(8), POOL.genesis, 4, POOL.handovers) == ""
    assert head_problem(POOL.head(8), POOL.genesis, 2, POOL.handovers[:1]) == ""
    assert head_problem(POOL.head(8), POOL.genesis, 4, ()) != ""


# --- fetching -------------------------------------------------------------------------------------


def test_a_snapshot_is_adopted_when_its_pages_make_the_certified_root() -> None:
    fetcher = started((A, POOL.head(8)))
    assert only(fetcher.page(A, page(8, 0), 2_100)).page == 1
    assert only(fetcher.page(A, page(8, 1), 2_200)).page == 2
    [adopted] = told(fetcher.page(A, page(8, 2), 2_300)).adopted
    assert (adopted.height, adopted.handovers, adopted.data) == (8, POOL.handovers, state_bytes(8))
    assert adopted.state.root == POOL.blocks[8].block.header.state_root
    assert fetcher.deadline is None


def test_blocks_that_come_after_all_are_better_than_a_snapshot() -> None:
    fetcher = POOL.fetcher()
    fetcher.head(A, POOL.head(8), 0, (), 0)
    fetcher.advanced(1, 1_500)
    assert fetcher.wake(2_000) == []
    assert fetcher.deadline == 1_500 + PATIENCE_MS
    fetcher.advanced(8, 3_000)
    assert fetcher.deadline is None
    assert fetcher.wake(60_000) == []


def test_blocks_in_drops_do_not_keep_a_peer_behind_for_ever() -> None:
    fetcher = POOL.fetcher()
    fetcher.head(A, POOL.head(8), 0, (), 0)
    now = 0
    while not fetcher.wake(now):
        now += 1_000
        fetcher.advanced(1, now)
    assert now == MOST_PATIENCE_MS


def test_blocks_up_to_the_snapshot_end_a_fetch_under_way() -> None:
    fetcher = started((A, POOL.head(8)))
    fetcher.advanced(5, 2_100)
    assert only(fetcher.page(A, page(8, 0), 2_200)).page == 1
    fetcher.advanced(9, 2_300)
    assert fetcher.page(A, page(8, 1), 2_400) == []
    assert fetcher.deadline is None


def test_pages_that_come_twice_late_or_out_of_order_change_nothing() -> None:
    fetcher = started((A, POOL.head(8)))
    assert fetcher.page(A, page(8, 2), 2_100) == []
    assert fetcher.page(A, page(8, 1), 2_100) == []
    assert fetcher.page(B, page(8, 0), 2_100) == [], "from somebody who was not asked"
    assert fetcher.page(A, page(7, 0), 2_100) == [], "of another snapshot"
    fetcher.page(A, page(8, 0), 2_100)
    assert fetcher.page(A, page(8, 0), 2_100) == []
    fetcher.page(A, page(8, 1), 2_100)
    assert told(fetcher.page(A, page(8, 2), 2_100)).adopted


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (state_bytes(8)[:-8] + b"       9", "its root is not the header's"),
        (state_bytes(7), "its root is not the header's"),
        (b"rubbish!" * (ROOM // 8), "cannot be read"),
    ],
)
def test_pages_that_make_another_state_are_blamed_on_their_sender(data: bytes, reason: str) -> None:
    fetcher = started((A, POOL.head(8)))
    [(peer, told_reason)] = deliver(fetcher, A, 8, 2_100, data).blamed
    assert peer == A
    assert reason in told_reason
    assert fetcher.head(A, POOL.head(8), 0, (), 100_000) == []
    assert fetcher.deadline is None


def test_a_state_that_does_not_fit_its_header_is_blamed_though_its_root_is_right() -> None:
    fetcher = started((A, POOL.head(8)))
    POOL.rosters[8], kept = POOL.rosters[0], POOL.rosters[8]
    try:
        [(_, reason)] = deliver(fetcher, A, 8, 2_100).blamed
    finally:
        POOL.rosters[8] = kept
    assert "another roster" in reason


def test_a_head_that_leaves_out_handovers_which_cancel_each_other_is_found_out() -> None:
    """Its roster is right, but whoever believed it would take the heads of honest peers for false."""
    pool = SnapshotPool(leaves=-1)
    fetcher = started((A, pool.head(8, handovers=())), pool=pool)
    [(_, reason)] = deliver(fetcher, A, 8, 2_100).blamed
    assert "2 changes of the roster are in force" in reason


@pytest.mark.parametrize("data", [b"x", bytes(SNAPSHOT_PAGE_BYTES - 1)])
def test_a_page_of_another_size_is_blamed(data: bytes) -> None:
    fetcher = started((A, POOL.head(8)))
    [(peer, reason)] = told(fetcher.page(A, SnapshotPage(POOL.chain, 8, 0, data), 2_100)).blamed
    assert (peer, reason) == (A, "a page of a snapshot has another size than the head says")


@pytest.mark.parametrize("size_bytes", [ROOM - 8, ROOM + 8])
def test_a_head_with_another_size_leads_nowhere(size_bytes: int) -> None:
    fetcher = started((A, POOL.head(8, size_bytes=size_bytes)))
    assert deliver(fetcher, A, 8, 2_100).blamed


def test_after_a_lie_another_peer_is_asked_from_the_start() -> None:
    fetcher = started((A, POOL.head(8)), (B, POOL.head(8)))
    result = deliver(fetcher, A, 8, 2_100, state_bytes(7))
    assert [peer for peer, _ in result.blamed] == [A]
    assert result.sent == [(B, SnapshotRequest(POOL.chain, 8, 0))]
    assert deliver(fetcher, B, 8, 2_200).adopted


def test_a_false_head_in_the_queue_is_blamed_when_its_turn_comes() -> None:
    fetcher = started((A, POOL.head(8)), (B, POOL.head(8, handovers=())), (C, POOL.head(8)))
    result = told(fetcher.peer_down(A, 2_100))
    assert [peer for peer, _ in result.blamed] == [B]
    assert result.sent == [(C, SnapshotRequest(POOL.chain, 8, 0))]


def test_a_silent_peer_is_asked_ever_more_slowly_and_then_another_one() -> None:
    fetcher = started((A, POOL.head(8)), (B, POOL.head(8)))
    at = [fetcher.deadline]
    for _ in range(3):
        assert told(fetcher.wake(at[-1])).sent == [(A, SnapshotRequest(POOL.chain, 8, 0))]
        at.append(fetcher.deadline)
    assert [b - a for a, b in pairwise(at)] == [4_000, 8_000, 16_000]
    assert told(fetcher.wake(at[-1])).sent == [(B, SnapshotRequest(POOL.chain, 8, 0))]
    assert fetcher.wake(at[-1]) == []
    silent_ms = at[-1]
    fetcher.peer_down(B, silent_ms)
    assert fetcher.head(A, POOL.head(8), 0, (), silent_ms + SILENT_PAUSE_MS - 1) == []
    assert fetcher.deadline is None
    fetcher.head(A, POOL.head(8), 0, (), silent_ms + SILENT_PAUSE_MS)
    assert fetcher.deadline is not None


def test_pages_that_come_in_the_end_count_as_an_answer() -> None:
    fetcher = started((A, POOL.head(8)), (B, POOL.head(8)))
    for number in range(3):
        for _ in range(2):
            now = fetcher.deadline
            assert now is not None
            assert told(fetcher.wake(now)).sent == [(A, SnapshotRequest(POOL.chain, 8, number))]
        outputs = fetcher.page(A, page(8, number), now + 1)
    assert told(outputs).adopted


def test_who_went_while_waiting_for_its_turn_is_not_asked() -> None:
    fetcher = started((A, POOL.head(8)), (B, POOL.head(8)), (C, POOL.head(8)))
    assert fetcher.peer_down(B, 2_100) == []
    assert told(fetcher.peer_down(A, 2_200)).sent == [(C, SnapshotRequest(POOL.chain, 8, 0))]


def test_only_so_many_heads_wait_for_their_turn() -> None:
    fetcher = started(*((peer, POOL.head(8)) for peer in (A, B, C, D, E, F)))
    asked = []
    for peer in (A, B, C, D, E):
        asked += [to for to, _ in told(fetcher.peer_down(peer, 2_100)).sent]
    assert asked == [B, C, D, E]
    assert fetcher.deadline is None


def test_at_most_one_snapshot_is_in_memory() -> None:
    fetcher = started((A, POOL.head(8)), (B, POOL.head(8)))
    fetcher.page(A, page(8, 0), 2_100)
    fetcher.peer_down(A, 2_200)
    fetcher.page(B, page(8, 0), 2_300)
    kept = [one for one in (fetcher._fetch, fetcher._broken) if one is not None]
    assert sum(len(data) for one in kept for data in one.pages) == SNAPSHOT_PAGE_BYTES


def test_a_peer_that_is_silent_again_and_again_is_left_alone_for_ever_longer() -> None:
    fetcher = POOL.fetcher()
    pauses, now, left_ms = [], 0, 0
    for _ in range(8):
        fetcher.head(A, POOL.head(8), 0, (), now)
        while fetcher.deadline is None:
            now += 10_000
            fetcher.head(A, POOL.head(8), 0, (), now)
        pauses.append(now - left_ms)
        while fetcher.deadline is not None:
            now = left_ms = fetcher.deadline
            fetcher.wake(now)
    assert pauses == [0, 30_000, 60_000, 120_000, 240_000, 480_000, LIAR_PAUSE_MS, LIAR_PAUSE_MS]


def test_a_peer_that_drips_its_pages_is_left_in_the_end() -> None:
    fetcher = started((A, POOL.head(8)), (B, POOL.head(8)))
    fetcher.page(A, page(8, 0), 80_000)
    assert told(fetcher.page(A, page(8, 1), 110_000)).sent == [(B, SnapshotRequest(POOL.chain, 8, 0))]


def test_a_fetch_goes_on_where_its_link_broke() -> None:
    fetcher = started((A, POOL.head(8)))
    fetcher.page(A, page(8, 0), 2_100)
    fetcher.page(A, page(8, 1), 2_200)
    assert fetcher.peer_down(A, 2_300) == []
    fetcher.head(A, POOL.head(8), 0, (), 10_000)
    assert only(fetcher.wake(10_000 + PATIENCE_MS)).page == 2
    assert told(fetcher.page(A, page(8, 2), 12_100)).adopted


@pytest.mark.parametrize("other", [(A, LATER.head(9)), (B, POOL.head(8))])
def test_pages_of_another_snapshot_or_peer_are_not_mixed_in(other: tuple[PeerId, SnapshotHead]) -> None:
    fetcher = started((A, POOL.head(8)))
    fetcher.page(A, page(8, 0), 2_100)
    fetcher.peer_down(A, 2_300)
    fetcher.head(*other, 0, (), 10_000)
    assert only(fetcher.wake(10_000 + PATIENCE_MS)).page == 0


def test_pages_of_a_broken_fetch_are_forgotten_after_a_while() -> None:
    fetcher = started((A, POOL.head(8)))
    fetcher.page(A, page(8, 0), 2_100)
    fetcher.peer_down(A, 2_300)
    assert fetcher.deadline == 62_300
    assert fetcher.wake(62_300) == []
    assert fetcher.deadline is None
    fetcher.head(A, POOL.head(8), 0, (), 70_000)
    assert only(fetcher.wake(72_000)).page == 0


def test_a_snapshot_that_is_replaced_while_it_is_fetched_is_fetched_anew() -> None:
    fetcher = started((A, LATER.head(8)), pool=LATER)
    fetcher.page(A, page(8, 0), 2_100)
    assert fetcher.head(A, LATER.head(7), 0, (), 20_000) == [], "an old one is not wanted"
    assert only(fetcher.head(A, LATER.head(16), 0, (), 20_000)) == SnapshotRequest(LATER.chain, 16, 0)
    assert fetcher.page(A, page(8, 1), 20_100) == []
    assert deliver(fetcher, A, 16, 20_200).adopted


def test_a_peer_that_replaces_its_snapshot_again_and_again_is_left() -> None:
    fetcher = started((A, LATER.head(8)), (B, LATER.head(8)), pool=LATER)
    now = 2_000
    for height in range(9, 9 + MAX_REPLACED):
        now += 5_000
        assert only(fetcher.head(A, LATER.head(height), 0, (), now)).height == height
    result = told(fetcher.head(A, LATER.head(15), 0, (), now + 5_000))
    assert result.sent == [(B, SnapshotRequest(LATER.chain, 8, 0))]


def test_a_flood_of_heads_costs_one_check_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[SnapshotHead] = []

    def counted(head: SnapshotHead, *rest: Any) -> str:
        checks.append(head)
        return head_problem(head, *rest)

    monkeypatch.setattr("edgepool.core.adoption.head_problem", counted)
    fetcher = POOL.fetcher()
    for now in range(100):
        for peer in (A, B, C, D, E, F):
            fetcher.head(peer, POOL.head(8), 0, (), now)
    assert len(checks) == 1
    fetcher = POOL.fetcher()
    for now in range(100):  # whoever breaks off and comes again has to wait
        fetcher.head(A, POOL.head(8), 0, (), now)
        fetcher.peer_down(A, now)
    assert len(checks) == 2


# --- with a real ledger ---------------------------------------------------------------------------


def test_a_real_state_goes_from_store_to_store_and_the_chain_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("snapshots", "adoption"):
        monkeypatch.setattr(f"edgepool.core.{module}.SNAPSHOT_PAGE_BYTES", 500)
    world = World()
    chain = world.genesis.chain
    blocks = [world.pack(*world.step_records(0, station=1), packer=0), world.pack(world.offer(2), packer=1)]
    blocks.append(world.decide(world.change(incoming=world.newcomer("new"))))
    blocks += [world.pack(world.demand(0), packer=2) for _ in range(4)]
    saved, handovers = world.state.snapshot(), tuple(world.handovers)
    blocks += [world.pack(world.demand(1), packer=3) for _ in range(3)]
    there, here = MemoryStore(), MemoryStore()
    there.write([NewChain(world.genesis), *(CommitBlock(world.certify(block)) for block in blocks)])
    there.write([SaveSnapshot(chain, 7, handovers, saved, adopted=False), Prune(chain, 7, ())])
    server, fetcher = SnapshotServer(there, chain), SnapshotFetcher(world.genesis)
    outputs = fetcher.head(A, only(server.offer(A, 1, 0)), 0, (), 0) + fetcher.wake(PATIENCE_MS)
    pages = 0
    while told(outputs).sent:
        outputs = fetcher.page(A, only(server.page(A, only(outputs), PATIENCE_MS)), PATIENCE_MS)
        pages += 1
    [adopted] = told(outputs).adopted
    assert (adopted.height, adopted.handovers, adopted.data) == (7, handovers, saved)
    assert pages > 3
    here.write([NewChain(world.genesis)])
    here.write([SaveSnapshot(chain, 7, adopted.handovers, adopted.data, adopted=True)])
    here.write([CommitBlock(one) for height in range(8, 11) if (one := there.block(chain, height))])
    state, _ = load_state(world.genesis, here, 10)
    assert state.root == world.state.root
    assert state.members == world.state.members

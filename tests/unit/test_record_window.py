from __future__ import annotations

import pytest
from ledger_world import NETWORK, World

from edgepool.core.ledger import window as window_module
from edgepool.core.ledger.state import ChainState
from edgepool.core.ledger.window import WINDOW_BLOCKS, WINDOW_RECORDS, RecordWindow
from edgepool.model.record import SignedRecord, sign_record


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose window has four blocks, or ten records."""
    monkeypatch.setattr(window_module, "WINDOW_BLOCKS", 4)
    monkeypatch.setattr(window_module, "WINDOW_RECORDS", 10)
    return World()


def signed_at(world: World, since: int) -> SignedRecord:
    body = world.demand(0).record.body
    return sign_record(world.signers[0], NETWORK, world.state.chain, body, 1, 99, since)


def test_a_million_records_leave_no_more_ids_than_the_window_has() -> None:
    window = RecordWindow()
    for height in range(1, 2501):
        window.close(tuple(height.to_bytes(4, "big") + number.to_bytes(4, "big") for number in range(400)))
        assert len(window.ids) <= WINDOW_RECORDS
    assert sum(window.counts) == len(window.ids) == WINDOW_RECORDS // 400 * 400
    assert window.horizon == 2500 - len(window.counts)


def test_records_above_a_height_are_counted_as_far_as_the_window_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window_module, "WINDOW_BLOCKS", 5)
    counts = [3, 1, 4, 1, 5, 9, 2, 6]
    for window in (RecordWindow(), RecordWindow(10, (2, 7))):
        seen = [*window.counts]
        begin = window.horizon + len(seen)
        for height, count in enumerate(counts, begin + 1):
            window.close(tuple(b"%d %d" % (height, number) for number in range(count)))
            seen.append(count)
            kept = seen[-5:]
            assert window.counts == tuple(kept)
            for back in range(len(seen) + 2):
                assert window.records_above(height - back) == sum(kept[len(kept) - min(back, len(kept)) :])
            assert window.records_above(height + 3) == 0


def test_window_ends_by_blocks_or_by_records_whichever_is_less() -> None:
    window = RecordWindow()
    for height in range(1, WINDOW_BLOCKS + 1):
        assert window.close((bytes([0]) + height.to_bytes(4, "big"),)) == []
    assert window.close((b"next",)) == [(1, 1)]
    assert (window.horizon, len(window.counts)) == (1, WINDOW_BLOCKS)
    many = tuple(bytes([1]) + number.to_bytes(4, "big") for number in range(WINDOW_RECORDS - 1))
    gone = window.close(many)
    assert window.counts == (1, len(many))
    assert [height for height, _ in gone] == list(range(2, window.horizon + 1))


def test_record_is_known_until_its_block_leaves_the_window(small: World) -> None:
    first = small.demand(0)
    small.pack(first)
    small.pack_until(4)
    assert (small.state.horizon, small.state.has_record(first.id)) == (0, True)
    assert "already" in small.state.draft().add(first)
    small.pack_until(5)
    assert (small.state.horizon, small.state.has_record(first.id)) == (1, False)
    assert small.state.draft().add(first) == (
        "it was written at height 0, this chain takes records from height 1 on: submit it again"
    )


def test_records_move_the_horizon_too(small: World) -> None:
    for _ in range(3):
        small.pack(*(small.demand(0) for _ in range(4)))
    assert (small.state.height, small.state.horizon) == (3, 1)


@pytest.mark.parametrize(
    ("since", "reason"), [(1, "written at height 1"), (2, ""), (6, ""), (7, "not reached")]
)
def test_record_stands_if_it_was_signed_inside_the_window(small: World, since: int, reason: str) -> None:
    small.pack_until(6)
    problem = small.state.draft().add(signed_at(small, since))
    assert (reason in problem) if reason else problem == ""


def test_restored_state_knows_records_again_by_the_blocks_after_it_or_before_it(small: World) -> None:
    blocks = [small.pack(small.demand(0)) for _ in range(6)]
    early, late = ChainState(small.genesis), ChainState(small.genesis)
    for block in blocks:
        late.apply(block)
    for block in blocks[:5]:
        early.apply(block)
    restored = ChainState.restore(small.genesis, early.snapshot())
    assert not restored.knows_window
    restored.apply(blocks[5])
    ids = [block.records[0].id for block in blocks]
    assert [restored.has_record(one) for one in ids] == [False] * 5 + [True]
    assert (restored.root, restored.horizon) == (late.root, late.horizon) == (late.root, 2)

    restored = ChainState.restore(small.genesis, early.snapshot())
    with pytest.raises(AssertionError):
        restored.recall(blocks[3])
    for height in (5, 4, 3, 2):
        assert not restored.knows_window
        restored.recall(blocks[height - 1])
    assert restored.knows_window
    with pytest.raises(AssertionError):
        restored.recall(blocks[0])
    restored.apply(blocks[5])
    assert [restored.has_record(one) for one in ids] == [late.has_record(one) for one in ids]
    assert [restored.has_record(one) for one in ids] == [False] * 2 + [True] * 4


def test_restored_state_knows_its_window_once_the_horizon_has_passed_it(small: World) -> None:
    small.pack_until(3)
    restored = ChainState.restore(small.genesis, small.state.snapshot())
    for _ in range(4):
        assert not restored.knows_window
        restored.apply(small.pack(small.demand(0)))
    assert restored.knows_window
    assert restored.horizon == 3

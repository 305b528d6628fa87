from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_world import KEY, World

from edgepool.core.ledger import state as state_module
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import RecordRef
from edgepool.model.beacon import next_beacon
from edgepool.model.ids import ChainId
from edgepool.model.record import SignedRecord
from edgepool.model.twin import DataKey


@pytest.fixture
def world() -> World:
    return World()


def test_new_state_stands_on_its_genesis(world: World) -> None:
    state = world.state
    assert state.height == 0
    assert state.last_block_id == bytes.fromhex(state.chain)
    assert state.members == tuple(world.peers)
    assert state.work() == {}
    assert state.last_packer is None


def test_block_moves_the_state_on(world: World) -> None:
    before = world.state.beacon
    demand = world.demand(2)
    block = world.pack(demand, packer=1)
    state = world.state
    assert (state.height, state.last_block_id, state.last_packer) == (1, block.header.id, world.peers[1])
    assert state.time_ms == block.header.time_ms
    assert state.beacon == next_beacon(before, block.header.reveal)
    assert state.tips[world.peers[1]] == block.header.reveal
    assert [state.reveals[peer] for peer in world.peers] == [0, 1, 0, 0]
    assert [state.packed[peer] for peer in world.peers] == [0, 1, 0, 0]
    assert state.counts["demand"] == 1
    assert state.has_record(demand.id)
    assert not state.has_record(world.demand(2).id)


def test_block_of_the_wrong_height_is_misuse(world: World) -> None:
    block = world.pack(world.demand(0))
    with pytest.raises(AssertionError):
        world.state.apply(block)


def test_same_blocks_make_the_same_state(world: World) -> None:
    blocks = [world.pack(*world.step_records(0, 0)), world.pack(world.offer(1), world.offer(2))]
    again = ChainState(world.genesis)
    for block in blocks:
        again.apply(block)
    for name in ("height", "last_block_id", "beacon", "tips", "reveals", "counts", "packed", "tasks"):
        assert getattr(again, name) == getattr(world.state, name)
    assert again.offers(KEY) == world.state.offers(KEY)


# --- headers


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("network", "other works", "another network"),
        ("chain", ChainId("a" * 40), "another chain"),
        ("height", 3, "the next one is 2"),
        ("previous", bytes(32), "last one"),
        ("proposer", World().outsider.peer, "no member"),
        ("proposer", World().peers[2], "beacon tip"),
        ("reveal", bytes(32), "beacon tip"),
        ("reveal", b"", "reveals nothing"),
    ],
)
def test_header_that_does_not_follow_is_named(world: World, field: str, value: object, reason: str) -> None:
    world.pack(world.demand(0))
    header = world.header([world.demand(0)])
    assert world.state.header_problem(header) == ""
    assert reason in world.state.header_problem(msgspec.structs.replace(header, **{field: value}))


def test_used_up_beacon_reveals_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "BEACON_LENGTH", 2)
    world = World(beacon_length=2)
    world.pack(world.demand(0))
    world.pack(world.demand(0))
    header = world.header([world.demand(0)])
    assert header.reveal == b""
    assert world.state.header_problem(header) == ""
    forged = msgspec.structs.replace(header, reveal=bytes(32))
    assert "used up" in world.state.header_problem(forged)
    tips, beacon = dict(world.state.tips), world.state.beacon
    world.pack(world.demand(0))
    assert world.state.tips == tips
    assert world.state.beacon != beacon


# --- drafts


def test_draft_leaves_the_state_alone(world: World) -> None:
    world.pack(world.requirement(0, 0), world.requirement(1, 1), world.offer(0))
    before = repr(world.state.tasks)
    draft = world.state.draft()
    late = [
        world.procedure(0, 0),
        world.inspection(0, 0),
        world.completion(0, 0),
        world.requirement(2, 2),
        world.offer(1),
        world.offer(2, 2),
    ]
    assert [draft.add(signed) for signed in late] == [""] * len(late)
    assert repr(world.state.tasks) == before
    assert len(world.state.offers(KEY)) == 1
    assert not world.state.has_record(late[0].id)
    other = world.state.draft()
    assert [other.add(signed) for signed in late] == [""] * len(late)


def test_refused_record_leaves_the_draft_alone(world: World) -> None:
    draft = world.state.draft()
    assert draft.add(world.procedure(0, 0))
    assert draft.add(world.requirement(0, 0)) == ""
    assert draft.add(world.requirement(0, 1))
    assert draft.add(world.procedure(0, 0)) == ""


def test_draft_on_a_state_that_has_grown_is_misuse(world: World) -> None:
    draft = world.state.draft()
    world.pack(world.demand(0))
    with pytest.raises(AssertionError):
        draft.add(world.demand(0))


# A record as a number: what it is about, a small place, a small author. Most are refused somewhere.
ATTEMPTS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 1), st.integers(1, 2)), max_size=25
)


def written(world: World, attempt: tuple[int, int, int, int]) -> SignedRecord:
    kind, step, author, version = attempt
    task = f"T{version}"
    match kind:
        case 0:
            return world.requirement(step, author, steps=2, task=task)
        case 1:
            return world.procedure(step, author, task)
        case 2:
            return world.completion(step, author, task)
        case 3:
            return world.inspection(step, author, task=task)
        case _:
            return world.offer(author, version, b"data" if kind == 4 else b"other")


@given(ATTEMPTS, st.sets(st.integers(0, 24)))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_draft_judges_as_the_chain_itself_would(
    attempts: list[tuple[int, int, int, int]], block_ends: set[int]
) -> None:
    """The same records get the same answers in one long draft and block by block, at any block size."""
    whole, by_block = World(), World()
    records = [written(whole, attempt) for attempt in attempts]
    long_draft = whole.state.draft()
    draft, packed = by_block.state.draft(), []
    for index, signed in enumerate(records):
        answer = draft.add(signed)
        assert answer == long_draft.add(signed)
        packed += [] if answer else [signed]
        if packed and index in block_ends:
            by_block.pack(*packed)
            draft, packed = by_block.state.draft(), []


# --- offers and tasks


def test_offers_are_of_the_newest_version_and_the_oldest_comes_first(world: World) -> None:
    world.pack(world.offer(1), world.demand(0), world.offer(0))
    chain = world.state.chain
    assert [entry.ref for entry in world.state.offers(KEY)] == [
        RecordRef(chain, 1, 0),
        RecordRef(chain, 1, 2),
    ]
    assert [entry.holder for entry in world.state.offers(KEY)] == [world.peers[1], world.peers[0]]
    world.pack(world.offer(2, 2, b"new"))
    assert [entry.holder for entry in world.state.offers(KEY)] == [world.peers[2]]
    assert len(world.state.offers(KEY, 1)) == 2
    assert world.state.offers(KEY, 3) == ()
    assert [entry.offer.version for entry in world.state.offers_of(KEY)] == [1, 1, 2]
    assert world.state.offers(DataKey("PTVA10212-03", "error")) == ()


def test_task_is_complete_when_all_its_steps_are(world: World) -> None:
    world.pack(*world.step_records(0, 0), *world.step_records(1, 1))
    task = world.state.tasks["T1"]
    assert task.steps[1].done
    assert not task.complete
    world.pack(*world.step_records(2, 2))
    assert task.complete

"""What a step earns, for whom, once; it shows in the lottery two cycles later [S3.11]."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
from ledger_world import World
from msgspec.structs import replace

from edgepool.core.ledger.credit import (
    CYCLE_BLOCKS,
    MAX_BOOKED,
    MAX_STEP_MINUTES,
    PAIR_MINUTES,
    WorkAccount,
)
from edgepool.model.block import Block
from edgepool.model.record import SignedRecord

HOUR_MS = 3_600_000


@pytest.fixture
def world() -> World:
    return World()


def earned(world: World) -> list[int]:
    """Return what each member has earned, read when the lottery comes to use it."""
    world.pack_until((world.state.height // CYCLE_BLOCKS + 2) * CYCLE_BLOCKS)
    work = world.state.work()
    return [work.get(peer, 0) for peer in world.peers]


def alone(world: World, station: int, task: str, **given: int) -> list[SignedRecord]:
    """Return a task of a single step, done."""
    return [
        world.requirement(0, station, steps=1, task=task, **given),  # type: ignore[arg-type]
        world.procedure(0, station, task),
        world.completion(0, station, task),
    ]


# --- who stands for a step


def test_step_is_credited_when_another_member_starts_the_next(world: World) -> None:
    world.pack(*world.step_records(0, 0, minutes=120), world.requirement(1, 1), world.procedure(1, 1))
    assert earned(world) == [120, 0, 0, 0]


def test_step_is_credited_by_an_accepted_inspection_of_another_member_once(world: World) -> None:
    world.pack(*alone(world, 0, "A", minutes=60), world.inspection(0, 2, task="A"))
    world.pack(world.inspection(0, 3, task="A"), world.inspection(0, 2, "Feature-4", task="A"))
    assert earned(world) == [60, 0, 0, 0]


def test_start_of_the_next_step_and_an_inspection_credit_once(world: World) -> None:
    world.pack(*world.step_records(0, 0, minutes=60), world.inspection(0, 2))
    world.pack(world.requirement(1, 1), world.procedure(1, 1), world.inspection(0, 1))
    assert earned(world) == [60, 0, 0, 0]


def test_nobody_stands_for_itself(world: World) -> None:
    world.pack(*world.step_records(0, 0, steps=2), world.inspection(0, 0))
    world.pack(*world.step_records(1, 0, steps=2), world.inspection(1, 0))
    assert earned(world) == [0, 0, 0, 0]


def test_last_step_earns_nothing_by_its_own_inspection(world: World) -> None:
    world.pack(*world.step_records(0, 0, steps=2, minutes=60))
    world.pack(*world.step_records(1, 1, steps=2), world.inspection(1, 1))
    assert earned(world) == [60, 0, 0, 0]


def test_step_that_its_own_station_released_earns_nothing() -> None:
    world = World(coordinator_votes=True)
    world.pack(*alone(world, 3, "A"), world.inspection(0, 0, task="A"))
    assert earned(world) == [0, 0, 0, 0]


def test_who_rejects_a_feature_cannot_stand_for_the_step(world: World) -> None:
    world.pack(*alone(world, 0, "A", minutes=60), world.inspection(0, 1, "F1", accepted=False, task="A"))
    world.pack(world.inspection(0, 1, "F2", task="A"))
    assert world.state.tasks["A"].steps[0].credit is None
    world.pack(world.inspection(0, 2, "F2", task="A"))
    assert earned(world) == [60, 0, 0, 0]


def test_step_that_a_third_rejects_is_not_credited(world: World) -> None:
    against = [world.inspection(0, one, "F1", accepted=False, task="A") for one in (1, 2)]
    world.pack(*alone(world, 0, "A"), *against, world.inspection(0, 3, task="A"))
    assert earned(world) == [0, 0, 0, 0]


# --- scrap


def test_countersigner_takes_credit_back(world: World) -> None:
    world.pack(*alone(world, 0, "A", minutes=60), *alone(world, 0, "B", minutes=30))
    world.pack(world.inspection(0, 1, task="A"), world.inspection(0, 1, task="B"))
    world.pack(world.inspection(0, 1, "F2", accepted=False, task="A"))
    world.pack(world.inspection(0, 1, "F3", accepted=False, task="A"), world.inspection(0, 2, task="A"))
    assert world.state.tasks["A"].steps[0].credit == (world.peers[1], 0)
    assert earned(world) == [30, 0, 0, 0]


def test_a_single_other_member_cannot_take_credit_back_but_a_third_can(world: World) -> None:
    bad = partial(world.inspection, 0, accepted=False, task="A")
    world.pack(*alone(world, 0, "A", minutes=60), world.inspection(0, 1, task="A"))
    world.pack(bad(2, "F1"), bad(2, "F2"), bad(0, "F1"))
    assert world.state.tasks["A"].steps[0].credit == (world.peers[1], 60)
    world.pack(bad(3, "F1"))
    assert world.state.tasks["A"].steps[0].credit == (world.peers[1], 0)
    assert earned(world) == [0, 0, 0, 0]


def test_what_is_taken_back_in_a_later_cycle_is_owed_until_it_is_earned(world: World) -> None:
    world.pack(*alone(world, 0, "A", minutes=60), world.inspection(0, 1, task="A"))
    world.pack_until(CYCLE_BLOCKS)
    world.pack(world.inspection(0, 1, "F2", accepted=False, task="A"))
    world.pack_until(2 * CYCLE_BLOCKS)
    assert world.state.work() == {world.peers[0]: 60}
    world.pack(*alone(world, 0, "B", minutes=100), world.inspection(0, 1, task="B"))
    world.pack_until(3 * CYCLE_BLOCKS)
    assert world.state.work() == {world.peers[0]: -60}
    assert earned(world)[0] == 0
    assert world.state.height == 5 * CYCLE_BLOCKS


def test_debt_lowers_what_is_earned_in_the_next_cycle(world: World) -> None:
    world.pack(*alone(world, 0, "A", minutes=60), world.inspection(0, 1, task="A"))
    world.pack_until(CYCLE_BLOCKS)
    world.pack(world.inspection(0, 1, "F2", accepted=False, task="A"))
    world.pack_until(2 * CYCLE_BLOCKS)
    world.pack(*alone(world, 0, "B", minutes=100), world.inspection(0, 1, task="B"))
    assert earned(world) == [40, 0, 0, 0]


# --- planned time, capacity, pairs


def test_credit_for_a_step_is_capped_at_a_day(world: World) -> None:
    world.pack(*alone(world, 0, "A", minutes=9_000_000), world.inspection(0, 1, task="A"))
    assert earned(world) == [MAX_STEP_MINUTES, 0, 0, 0]


def test_planned_time_counts_once_for_a_station_in_whichever_order_it_is_proved(world: World) -> None:
    world.pack(
        *alone(world, 0, "A", minutes=120, ends_ms=12 * HOUR_MS),
        *alone(world, 0, "B", minutes=120, ends_ms=13 * HOUR_MS),  # an hour of it is A's
        *alone(world, 0, "C", minutes=120, ends_ms=12 * HOUR_MS),  # all of it is
        *alone(world, 0, "D", minutes=120, ends_ms=2 * HOUR_MS),  # before all others, stated later
        *alone(world, 1, "E", minutes=120, ends_ms=12 * HOUR_MS),  # another station's
    )
    world.pack(*[world.inspection(0, 2, task=task) for task in "EDCBA"])
    assert [world.state.tasks[task].steps[0].earns for task in "ABCDE"] == [120, 60, 0, 120, 120]
    assert earned(world) == [300, 120, 0, 0]


def test_plan_that_reaches_back_before_all_time_counts_from_there(world: World) -> None:
    world.pack(*alone(world, 0, "A", minutes=120, ends_ms=HOUR_MS), world.inspection(0, 1, task="A"))
    assert earned(world) == [60, 0, 0, 0]


def test_booked_intervals_are_bounded_and_the_oldest_become_one(world: World) -> None:
    hours = range(2, 2 * (MAX_BOOKED + 3), 2)
    world.pack(
        *[world.requirement(0, 0, task=f"T{h}", minutes=60, ends_ms=h * HOUR_MS, steps=1) for h in hours]
    )
    booked = world.state._work.booked[world.peers[0]]
    assert len(booked) == MAX_BOOKED
    assert booked[0] == (HOUR_MS, 6 * HOUR_MS)
    assert all(before[1] < after[0] for before, after in pairwise(booked))
    late = [("gap", 5), ("between", 11)]
    world.pack(*[world.requirement(0, 0, task=t, minutes=60, ends_ms=h * HOUR_MS, steps=1) for t, h in late])
    assert [world.state.tasks[task].steps[0].earns for task, _ in late] == [0, 60]


def test_pair_is_limited_in_a_cycle_and_another_may_stand_for_the_rest(world: World) -> None:
    world.pack(*[r for task in "ABCD" for r in alone(world, 0, task, minutes=1000)])
    world.pack(*[world.inspection(0, 1, task=task) for task in "ABCD"])
    credits = [world.state.tasks[task].steps[0].credit for task in "ABCD"]
    one = world.peers[1]
    assert credits == [(one, 1000), (one, 1000), (one, PAIR_MINUTES - 2000), None]
    world.pack(world.inspection(0, 2, task="D"))
    assert earned(world) == [PAIR_MINUTES + 1000, 0, 0, 0]
    world.pack(world.inspection(0, 1, "F2", task="D"))  # credited already
    world.pack(*alone(world, 0, "E", minutes=1000), world.inspection(0, 1, task="E"))
    assert earned(world) == [1000, 0, 0, 0]


# --- cycles


def test_work_is_that_of_the_cycle_before_last(world: World) -> None:
    world.pack(*world.step_records(0, 0, minutes=50), world.requirement(1, 1), world.procedure(1, 1))
    world.pack_until(CYCLE_BLOCKS)
    world.pack(world.completion(1, 1), world.requirement(2, 2), world.procedure(2, 2))
    seen = {}
    while world.state.height < 4 * CYCLE_BLOCKS:
        seen[world.state.height + 1] = world.state.work()
        world.pack(world.demand(3))
    seen[world.state.height + 1] = world.state.work()
    first, second = {world.peers[0]: 50}, {world.peers[1]: 120}
    for height, work in seen.items():
        expected = [{}, {}, first, second, {}][(height - 1) // CYCLE_BLOCKS]
        assert work == expected, height


def test_missed_turns_count_in_the_cycle_after_next(world: World) -> None:
    account, members = WorkAccount(), world.peers
    for height in range(1, 4 * CYCLE_BLOCKS + 1):
        account.miss(height, (members[2], members[0]) if height == CYCLE_BLOCKS else ())
        account.close(height, members)
        counts = 2 * CYCLE_BLOCKS <= height < 3 * CYCLE_BLOCKS
        assert account.missed_for(height + 1, members) == ((members[0], members[2]) if counts else ())
    assert account.missed == {}


def test_account_forgets_who_is_no_member_any_more(world: World) -> None:
    world.pack(*alone(world, 0, "A", minutes=60), world.inspection(0, 1, task="A"))
    account = world.state._work
    account.minutes[0][world.peers[0]] = -5
    account.close(CYCLE_BLOCKS, world.peers[1:])
    assert (account.booked, account.pairs) == ({}, {})
    assert account.minutes == {0: {world.peers[0]: -5}}


def test_applying_a_block_of_a_later_round_needs_to_know_who_led_before(world: World) -> None:
    record = world.demand(0)
    header = replace(world.header([record]), round=2)
    with pytest.raises(AssertionError, match="rounds before"):
        world.state.apply(Block(header, (record,)))
    world.state.apply(Block(header, (record,)), (world.peers[3], world.peers[1]))
    assert world.state._work.missed == {0: {world.peers[3]: 1, world.peers[1]: 1}}

"""Work that was not done earns nothing, or at most a stated bound: members 0, 1, ... lie, others do not."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_world import World

from edgepool.core.consensus.lottery import weights
from edgepool.core.ledger.credit import CYCLE_BLOCKS, PAIR_MINUTES
from edgepool.model.ids import PeerId
from edgepool.model.record import MachiningRequirement, SignedRecord

DAY_MS = 24 * 3_600_000


def step(world: World, task: str, station: int, **given: int) -> list[SignedRecord]:
    return [
        world.requirement(0, station, steps=1, task=task, **given),  # type: ignore[arg-type]
        world.procedure(0, station, task),
        world.completion(0, station, task),
    ]


def packed(world: World, attempts: list[SignedRecord]) -> int:
    """Pack what may stand of `attempts`, as an honest leader would; return how many were refused."""
    draft = world.state.draft()
    standing = [signed for signed in attempts if not draft.add(signed)]
    if standing:
        world.pack(*standing)
    return len(attempts) - len(standing)


def shares(world: World) -> list[int]:
    """Return everybody's minutes of the cycle that has just begun to count."""
    world.pack_until((world.state.height // CYCLE_BLOCKS + 2) * CYCLE_BLOCKS)
    return [world.state.work().get(peer, 0) for peer in world.peers]


def test_invented_tasks_and_work_for_oneself_earn_nothing() -> None:
    world = World(7)
    liar = world.signers[0]
    invented = [
        world.requirement(0, 0, steps=1, task="X", author=liar),
        world.requirement(0, 1, steps=1, task="X", author=liar),
        world.procedure(0, 0, "X"),
        world.completion(0, 0, "X"),
        world.inspection(0, 1, task="X"),
    ]
    assert packed(world, invented) == len(invented)
    # Real tasks: said to be done, inspected by itself, done again, under another number, as another's.
    assert packed(world, [*step(world, "R", 0), world.inspection(0, 0, task="R")]) == 0
    assert packed(world, [*step(world, "R", 0), world.requirement(0, 0, steps=1, task="R", number=77)]) == 4
    assert packed(world, [world.requirement(0, 5, task="Q"), world.procedure(0, 0, "Q")]) == 1
    assert shares(world) == [0] * 7


def test_a_coordinator_that_votes_earns_nothing_by_tasks_for_itself() -> None:
    world = World(4, coordinator_votes=True)
    for number in range(5):
        packed(world, [*step(world, f"X{number}", 3), world.inspection(0, 0, task=f"X{number}")])
    assert shares(world) == [0, 0, 0, 0]


@pytest.mark.parametrize("liars", [2, 3])
def test_liars_who_stand_for_each_other_get_no_further_than_the_limit_of_each_pair(liars: int) -> None:
    """Even with a coordinator among them, who releases whatever they like, planned one after another."""
    world = World(7)
    for number in range(40):
        station = number % liars
        task = f"X{number}"
        standing = [world.inspection(0, other, task=task) for other in range(liars) if other != station]
        # Work in turns, so that each pair is used up.
        standing = standing[number % len(standing) :] + standing
        packed(world, [*step(world, task, station, minutes=1440), *standing])
    assert world.state.height < 2 * CYCLE_BLOCKS
    by_cycle = [
        [world.state._work.minutes.get(cycle, {}).get(peer, 0) for peer in world.peers] for cycle in (0, 1)
    ]
    for earned in by_cycle:
        assert max(earned) <= (liars - 1) * PAIR_MINUTES
        assert earned[liars:] == [0] * (7 - liars)
    assert by_cycle[0][:liars] == [(liars - 1) * PAIR_MINUTES] * liars


def test_plans_on_top_of_each_other_earn_no_more_than_the_time_there_is() -> None:
    world = World(7)
    for number in range(20):
        task, ends_ms = f"O{number}", DAY_MS + number * DAY_MS // 40  # a day and a half in all
        packed(
            world,
            [
                *step(world, task, 0, minutes=1440, ends_ms=ends_ms),
                world.inspection(0, 1 + number % 6, task=task),
            ],
        )
    assert shares(world) == [1440 + 684, 0, 0, 0, 0, 0, 0]


def test_scrap_earns_nothing_and_liars_cannot_make_scrap_of_honest_work() -> None:
    world = World(7)
    packed(world, [*step(world, "bad", 0, minutes=300), world.inspection(0, 1, task="bad")])
    packed(world, [world.inspection(0, one, "F", accepted=False, task="bad") for one in (2, 3, 4)])
    packed(world, [*step(world, "good", 5, minutes=200), world.inspection(0, 6, task="good")])
    packed(world, [world.inspection(0, one, "F", accepted=False, task="good") for one in (0, 1)])
    assert shares(world) == [0, 0, 0, 0, 0, 200, 0]


def test_all_that_is_earned_counts_as_a_third_at_most() -> None:
    world = World(7)
    for number in range(2):
        packed(
            world, [*step(world, f"X{number}", 0, minutes=1440), world.inspection(0, 1, task=f"X{number}")]
        )
    for station in range(2, 7):
        packed(
            world,
            [*step(world, f"R{station}", station, minutes=60), world.inspection(0, 1, task=f"R{station}")],
        )
    earned = shares(world)
    assert earned == [PAIR_MINUTES, 0, 60, 60, 60, 60, 60]
    weight = weights(world.state.work(), world.peers)
    total = sum(earned)
    # 0.9 / 3 + 0.1 / 7 of 30 n T, however much more it has earned.
    assert (
        weight[world.peers[0]]
        == (9 * 7 + 3) * total
        == weights({world.peers[0]: 1}, world.peers)[world.peers[0]] * total
    )


ATTEMPTS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=60
)


@given(ATTEMPTS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_whatever_is_written_credit_is_for_proved_work_within_the_bounds(
    attempts: list[tuple[int, int, int, int]],
) -> None:
    world = World(4)
    for kind, task, author, more in attempts:
        name = f"T{task}"
        match kind:
            case 0:
                minutes, ends_ms = 400 * (1 + author), (1 + more + task) * DAY_MS // 2
                packed(
                    world,
                    [
                        world.requirement(
                            more % 2, author, steps=2, task=name, minutes=minutes, ends_ms=ends_ms
                        )
                    ],
                )
            case 1 | 2:
                station = [world.procedure(more % 2, author, name), world.completion(more % 2, author, name)]
                packed(world, station[: 1 + (kind == 2)])
            case _:
                packed(world, [world.inspection(more % 2, author, f"F{more}", kind < 5, name)])
    earned = dict.fromkeys(world.peers, 0)
    planned: dict[PeerId, list[MachiningRequirement]] = {peer: [] for peer in world.peers}
    for task_state in world.state.tasks.values():
        for one in task_state.steps.values():
            station_of = one.requirement.station
            planned[station_of].append(one.requirement)
            if one.credit is not None:
                assert one.done
                assert one.credit[0] != station_of
                earned[station_of] += one.credit[1]
    account = world.state._work
    totals = {peer: sum(work.get(peer, 0) for work in account.minutes.values()) for peer in world.peers}
    for peer in world.peers:
        # A debt moved on is in the tables of two cycles.
        assert totals[peer] <= earned[peer] <= _span_minutes(planned[peer])
        assert all(minutes <= PAIR_MINUTES for minutes in account.pairs.get(peer, {}).values())


def _span_minutes(plans: list[MachiningRequirement]) -> int:
    """Return how many minutes lie in at least one of `plans`."""
    marks = sorted({m for one in plans for m in (_start_ms(one), one.planned_completion_ms)})
    inside = sum(
        after - before
        for before, after in pairwise(marks)
        if any(_start_ms(one) <= before and after <= one.planned_completion_ms for one in plans)
    )
    return inside // 60_000


def _start_ms(one: MachiningRequirement) -> int:
    return max(0, one.planned_completion_ms - 60_000 * one.process_minutes)

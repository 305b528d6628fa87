from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from edgepool.core.ledger.facts import StepState, TaskState
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import MachiningCompletion, MachiningRequirement
from edgepool.workshop.board import Board, see
from edgepool.workshop.journal import Intent
from edgepool.workshop.orders import Task, Workshop, expand, load_workshop

WORKSHOP: Workshop = load_workshop(Path(__file__).parents[2] / "examples" / "rocket_motor.toml")
TASKS: tuple[Task, ...] = expand(WORKSHOP).tasks
STATIONS = ("MILLTAP700-1", "CUT220-1", "DMU50-1", "DMU50-2")


def pool(name: str, kind: str, members: tuple[str, ...], combination: tuple[str, ...] = ()) -> Any:
    people = tuple(SimpleNamespace(peer=PeerId(member), name=member) for member in members)
    invitation = SimpleNamespace(name=name, kind=kind, members=people, combination=combination)
    return SimpleNamespace(
        invitation=invitation, chain=ChainId(name), members=tuple(person.peer for person in people)
    )


def task_state(task: Task, steps_stated: int, steps_done: int) -> TaskState:
    state = TaskState(task.number, task.part, len(task.steps))
    for place, step in enumerate(task.steps[:steps_stated]):
        requirement = MachiningRequirement(
            task.number,
            task.part,
            step.operation_number,
            step.operation,
            PeerId(STATIONS[place]),
            place,
            len(task.steps),
            step.process_minutes,
            step.outside_minutes,
            0,
        )
        done = MachiningCompletion(task.number, step.operation_number, "p", 1000 + place)
        state.steps[place] = StepState(requirement, completion=done if place < steps_done else None)
    return state


def chain(
    name: str,
    kind: str,
    members: tuple[str, ...],
    combination: tuple[str, ...] = (),
    tasks: Sequence[TaskState] = (),
    left: str = "",
) -> tuple[Any, Any]:
    genesis = pool(name, kind, members, combination)
    roster = tuple(member for member in genesis.invitation.members if member.name != left)
    return genesis, SimpleNamespace(tasks={task.task: task for task in tasks}, next_roster=roster)


def board(
    intents: dict[str, Intent] | None = None,
    witnesses: tuple[str, ...] = (),
    left: str = "",
    **pools: list[TaskState],
) -> Board:
    """Look at three fixed pools and one manufacturing pool for each keyword."""
    chains: list[Any] = [
        chain(plan.name, "fixed", (*WORKSHOP.machines_of(plan.name), "coordinator"))
        for plan in WORKSHOP.fixed_pools
    ]
    for name, tasks in pools.items():
        combination = TASKS[0].combination
        chains.append(chain(name, "manufacturing", (*STATIONS, *witnesses), combination, tasks, left))
    connected = [PeerId(name) for name in WORKSHOP.function_of if name != "DMU60-1"]
    return see(WORKSHOP, TASKS, cast(Any, chains), intents or {}, connected)


def machine(seen: Board, name: str) -> tuple[int, int, bool]:
    for fixed in seen.fixed_pools:
        for one in fixed.machines:
            if one.name == name:
                return one.running_tasks, one.allotted_minutes, one.connected
    raise AssertionError(name)


def test_an_idle_workshop() -> None:
    seen = board()
    assert sum(len(fixed.machines) for fixed in seen.fixed_pools) == 18
    assert len(seen.waiting) == 36
    assert machine(seen, "DMU50-1") == (0, 0, True)
    assert machine(seen, "DMU60-1") == (0, 0, False)


def test_a_running_task_holds_its_pool_and_all_its_machines() -> None:
    seen = board(first=[task_state(TASKS[0], 4, 2)])
    assert machine(seen, "MILLTAP700-1") == (1, 120, True)
    assert machine(seen, "DMU50-2") == (1, 120, True)
    assert [(formed.chain, formed.running_tasks) for formed in seen.history] == [("first", 1)]
    assert seen.history[0].stations == STATIONS
    assert TASKS[0] not in seen.waiting
    assert seen.unstated == ()


def test_an_ended_task_frees_them_and_is_told_once() -> None:
    seen = board(first=[task_state(TASKS[0], 4, 4)])
    assert machine(seen, "MILLTAP700-1") == (0, 120, True)
    assert seen.history[0].running_tasks == 0
    assert [(ended.task, ended.pool, ended.completion_ms) for ended in seen.ended] == [
        ("T001", "first", 1003)
    ]


def test_an_intent_counts_before_anything_is_on_chain() -> None:
    intent = Intent("T001", "first", STATIONS, True)
    seen = board({"T001": intent}, first=[])
    assert machine(seen, "CUT220-1") == (1, 120, True)
    assert seen.history[0].running_tasks == 1
    assert seen.unstated == (intent,)
    assert TASKS[0] not in seen.waiting


def test_an_intent_whose_pool_does_not_stand_yet_holds_its_machines() -> None:
    intent = Intent("T001", "pool-07", STATIONS, False)
    seen = board({"T001": intent})
    assert machine(seen, "CUT220-1") == (1, 120, True)
    assert seen.history == ()
    assert seen.unstated == (intent,)


def test_requirements_that_a_kill_cut_short_are_still_to_be_stated_and_count_once() -> None:
    intent = Intent("T001", "first", STATIONS, True)
    seen = board({"T001": intent}, first=[task_state(TASKS[0], 2, 0)])
    assert seen.unstated == (intent,)
    assert seen.history[0].running_tasks == 1
    assert machine(seen, "MILLTAP700-1") == (1, 120, True)


def test_a_stated_task_is_not_stated_again() -> None:
    intent = Intent("T001", "first", STATIONS, True)
    seen = board({"T001": intent}, first=[task_state(TASKS[0], 4, 4)])
    assert seen.unstated == ()
    assert machine(seen, "CUT220-1") == (0, 120, True)


def test_witnesses_stand_behind_the_stations_and_get_no_steps() -> None:
    seen = board(witnesses=("witness-1",), first=[task_state(TASKS[0], 4, 4)])
    assert seen.history[0].stations == STATIONS


def test_a_pool_that_a_station_has_left_is_not_used_again() -> None:
    seen = board(witnesses=("witness-1",), left="DMU50-1", first=[task_state(TASKS[0], 4, 4)])
    assert seen.history == ()
    assert [ended.task for ended in seen.ended] == ["T001"]

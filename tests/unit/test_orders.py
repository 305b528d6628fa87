from __future__ import annotations

from pathlib import Path

import pytest

from edgepool.errors import ConfigError
from edgepool.workshop.orders import Orders, Step, Task, Workshop, expand, load_workshop, plan

HOUR_MS = 3_600_000
ROCKET_MOTOR = Path(__file__).parents[2] / "examples" / "rocket_motor.toml"


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    return load_workshop(ROCKET_MOTOR)


@pytest.fixture(scope="module")
def orders(workshop: Workshop) -> Orders:
    return expand(workshop)


def test_the_case_study_has_18_machines_in_three_fixed_pools(workshop: Workshop) -> None:
    sizes = {pool.name: len(workshop.machines_of(pool.name)) for pool in workshop.fixed_pools}
    assert sizes == {"turning": 7, "milling": 8, "wire-cutting": 3}
    assert len(workshop.function_of) == 18


def test_36_tasks_one_for_each_part(orders: Orders) -> None:
    assert [task.number for task in orders.tasks] == [f"T{n:03d}" for n in range(1, 37)]
    assert len({task.part for task in orders.tasks}) == 36
    counts = dict.fromkeys(("PTVA10212", "PTVN10312", "PTVL10111", "PTVM10121"), 0)
    for task in orders.tasks:
        counts[task.part.rpartition("-")[0]] += 1
    assert counts == {"PTVA10212": 8, "PTVN10312": 10, "PTVL10111": 10, "PTVM10121": 8}


def test_part_numbers_take_turns(orders: Orders) -> None:
    assert [task.part for task in orders.tasks[:5]] == [
        "PTVA10212-01",
        "PTVN10312-01",
        "PTVL10111-01",
        "PTVM10121-01",
        "PTVA10212-02",
    ]


def test_heat_treatment_is_time_before_the_next_step_and_holds_no_machine(orders: Orders) -> None:
    steps = orders.tasks[0].steps
    assert [(s.operation_number, s.operation, s.process_minutes, s.outside_minutes) for s in steps] == [
        (10, "Milling", 120, 0),
        (30, "Wire cutting", 120, 180),
        (40, "Finishing", 180, 0),
        (50, "Finishing", 120, 0),
    ]
    assert [len(task.steps) for task in orders.tasks[:4]] == [4, 4, 5, 4]
    assert orders.tasks[2].combination == (
        "Milling",
        "Wire cutting",
        "Rough turning",
        "Finishing",
        "Finishing",
    )


def test_the_step_without_a_time_takes_that_of_its_kind_and_says_so(orders: Orders) -> None:
    assert orders.tasks[3].steps[-1].process_minutes == 120
    assert len(orders.assumptions) == 1
    assert "PTVM10121, operation 50 (Milling)" in orders.assumptions[0]
    assert "2 h" in orders.assumptions[0]


def test_every_step_can_have_a_machine(workshop: Workshop, orders: Orders) -> None:
    for task in orders.tasks:
        for step in task.steps:
            assert any(
                function in workshop.capabilities[step.operation]
                for function in workshop.function_of.values()
            )


SMALL = """
name = "small"
parts = [{ number = "P1", quantity = 2, route = [["Milling", 1.0], ["Oven", 2.0], ["Turning", 3]] }]
outside_operations = [{ name = "Oven" }]
machines = [
  { name = "Mill", function = "Mill", ids = ["M1"] },
  { name = "Lathe", function = "Lathe", ids = ["L1"] },
]
fixed_pools = [{ name = "all", functions = ["Mill", "Lathe"] }]
capabilities = { Milling = ["Mill"], Turning = ["Lathe"] }
"""


def test_a_small_workshop_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    tasks = expand(load_workshop(path)).tasks
    assert [task.part for task in tasks] == ["P1-01", "P1-02"]
    assert tasks[0].steps[1].outside_minutes == 120


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('["Milling", 1.0]', '["Milling", nan]', "'Milling' has no time"),
        ('["Milling", 1.0]', '["Milling", -1.0]', "'Milling' takes -1 hours"),
        ('["Milling", 1.0]', '["Milling", inf]', "'Milling' takes inf hours"),
        ('["Milling", 1.0]', '["Drilling", 1.0]', "nothing can do 'Drilling'"),
        ('["Turning", 3]', '["Turning", 3], ["Oven", 1]', "its route ends outside"),
        ('["Turning", 3]', '["Turning", 3], ["Turning", 1]', "there is none left for 'Turning'"),
        ('ids = ["L1"]', 'ids = ["M1"]', "machine 'M1' stands there twice"),
        ('ids = ["L1"]', 'ids = ["../L1"]', "machines[1].ids[0]"),
        ('ids = ["L1"]', 'ids = ["coordinator"]', "no machine can be called 'coordinator'"),
        ('functions = ["Mill", "Lathe"]', 'functions = ["Mill"]', "machine 'L1' is in none"),
        ('Turning = ["Lathe"]', 'Turning = ["Saw"]', "'Saw', which no machine has"),
        ("quantity = 2", "quantity = 0", "parts[0].quantity"),
        ("quantity = 2", "quantitiy = 2", "quantitiy"),
    ],
)
def test_a_wrong_workshop_is_refused_in_one_sentence(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in SMALL
    path = tmp_path / "wrong.toml"
    path.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(ConfigError) as refused:
        load_workshop(path)
    assert told in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_plans_follow_each_other_and_never_overlap_on_a_station() -> None:
    step = Step(10, "Milling", 60, 0)
    late = Step(20, "Turning", 30, 120)  # heat treatment in between
    task = Task("T001", "P1-01", (step, late))
    free_ms = {"busy": 10 * HOUR_MS}
    assert plan(task, ("mill", "busy"), HOUR_MS, free_ms) == (2 * HOUR_MS, 10 * HOUR_MS + HOUR_MS // 2)
    assert plan(task, ("mill", "lathe"), HOUR_MS, free_ms) == (3 * HOUR_MS, 5 * HOUR_MS + HOUR_MS // 2)
    assert plan(task, ("lathe", "mill"), HOUR_MS, free_ms)[1] == 9 * HOUR_MS
    assert free_ms == {
        "busy": 10 * HOUR_MS + HOUR_MS // 2,
        "mill": 9 * HOUR_MS,
        "lathe": 6 * HOUR_MS + HOUR_MS // 2,
    }

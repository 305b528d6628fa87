"""Whole pools of real nodes under everything at once, from seeds; see edgepool.sim for what is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from canaries import CANARIES, switched_on
from msgspec.structs import replace

from edgepool.errors import LocalError
from edgepool.model.ids import PeerId
from edgepool.model.record import MachiningRequirement
from edgepool.sim.chaos import Chaos
from edgepool.sim.memo import ideal_signatures
from edgepool.sim.plan import KINDS, ROLES, Fault, Plan, check_plan, load_plan, make_plan, parse_kinds
from edgepool.sim.run import percentile, run_plan, run_seed
from edgepool.sim.shrink import Shrinker

POOLS = {4: (range(40), 50), 5: (range(4), 30), 7: (range(6), 30), 10: (range(2), 20), 1: (range(2), 50)}
RUNS = [(seed, heights, members) for members, (seeds, heights) in POOLS.items() for seed in seeds]


@pytest.mark.parametrize(("seed", "heights", "members"), RUNS)
def test_nothing_that_must_never_happen_happens(seed: int, heights: int, members: int) -> None:
    result = run_seed(seed, heights, members)
    assert result.violations == []
    assert result.blocks >= heights
    assert result.heals_ms, "a run ends with a healing, after which all records must have come through"


@pytest.mark.parametrize("role", ROLES)
def test_a_liar_of_each_role_harms_nobody(role: str) -> None:
    plan = make_plan(11, 40, 4, parse_kinds("delay,loss,reordering,persist-crash"))
    liar = Fault(0, "byzantine", {"peer": 2, "role": role})
    result = run_plan(replace(plan, chains=2, faults=(liar, *plan.faults)))
    assert result.violations == []
    assert set(result.accused) <= {"m2", "a stranger"}


@pytest.mark.parametrize(("members", "observed"), [(4, True), (4, False), (1, True)])
def test_a_record_that_can_never_stand_is_answered(members: int, observed: bool) -> None:
    """Two owners' wishes contradict each other; both passed the door before either was final."""
    with ideal_signatures():
        world = Chaos(Plan(seed=1, heights=1, members=members, observed=observed, chains=1, faults=()))
        world.form()
        station, draw = world.members[0].id, Random(1)
        tickets = [
            world.put(world.cloud, requirement(station, minutes), world.chains[0], draw) for minutes in (1, 2)
        ]
        assert world.run_until(lambda: all(map(world.settled, tickets)), 120_000)
        assert [bool(world.refusal(ticket)) for ticket in tickets].count(True) == 1


def requirement(station: PeerId, minutes: int) -> MachiningRequirement:
    return MachiningRequirement("task", "part", 10, "milling", station, 0, 2, minutes, 0, 1)


def test_every_kind_of_fault_is_injected_by_some_seed() -> None:
    kinds = {fault.kind for seed in range(10) for fault in make_plan(seed, 50, 4).faults}
    assert kinds == {*KINDS, "heal"}


def test_same_seed_same_trace_in_another_process() -> None:
    command = [sys.executable, "-m", "edgepool", "sim", "run", "--seed", "5", "--heights", "25", "--json"]
    done = [subprocess.run(command, capture_output=True, check=True) for _ in range(2)]
    reports = [json.loads(one.stdout) for one in done]
    here = run_seed(5, 25, 4)
    assert {report["trace"] for report in reports} == {here.trace}
    assert reports[0]["violations"] == 0
    assert reports[0]["faults"] == here.faults
    assert run_seed(6, 25, 4).trace != here.trace


def test_a_failing_run_shrinks_to_a_plan_that_still_fails() -> None:
    canary = CANARIES["missing fsync of blocks"]
    with switched_on(canary.switch):
        kinds = ("loss", "delay", "partition", "crash", "persist-crash")
        plans = (make_plan(seed, 40, 4, kinds) for seed in range(10))
        found = Shrinker(most_runs=150).shrink(next(plan for plan in plans if run_plan(plan).violations))
        assert found is not None
        assert found.violation.startswith("durability")
        assert len(found.plan.faults) <= 2 < found.faults_before
        assert {fault.kind for fault in found.plan.faults} <= {"crash", "persist-crash"}
        assert run_plan(found.plan).violations == [found.violation]
    assert run_plan(found.plan).violations == []


def test_a_plan_that_does_not_fail_is_not_shrunk() -> None:
    assert Shrinker().shrink(make_plan(1, 5, 4)) is None


def test_a_plan_is_plain_data_and_is_checked(tmp_path: Path) -> None:
    import msgspec

    plan = make_plan(7, 40, 4)
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    assert load_plan(path) == plan
    for wrong, sentence in (
        (Fault(0, "flood", {}), "unknown kind"),
        (Fault(0, "crash", {"peer": 0}), "needs exactly"),
        (Fault(0, "crash", {"peer": 9, "for_ms": 1}), "does not exist"),
        (Fault(0, "byzantine", {"peer": 0, "role": "kind"}), "unknown role"),
    ):
        with pytest.raises(LocalError, match=sentence):
            check_plan(replace(plan, faults=(wrong,)))
    path.write_text("{")
    with pytest.raises(LocalError, match="not a fault plan"):
        load_plan(path)
    with pytest.raises(LocalError, match="no kind of fault"):
        parse_kinds("loss,bogus")


def test_percentiles_are_by_nearest_rank() -> None:
    assert percentile([], 99) == 0
    assert percentile([5], 99) == 5
    assert percentile(list(range(1, 201)), 99) == 198

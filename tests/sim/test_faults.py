"""Whole pools of real nodes under everything at once, from seeds; see edgepool.sim for what is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from canaries import CANARIES, Canary, switched_on
from msgspec.structs import replace
from typer.testing import CliRunner

from edgepool.cli.main import app
from edgepool.errors import LocalError
from edgepool.model.ids import PeerId
from edgepool.model.record import MachiningRequirement
from edgepool.sim.chaos import Chaos
from edgepool.sim.memo import ideal_signatures
from edgepool.sim.plan import (
    KINDS,
    ROLES,
    Fault,
    Plan,
    check_plan,
    load_plan,
    make_plan,
    parse_kinds,
    parse_members,
)
from edgepool.sim.run import percentile, run_plan, run_seed, slow_healing
from edgepool.sim.shrink import Shrinker

POOLS = {4: (range(40), 50), 5: (range(4), 30), 7: (range(6), 30), 10: (range(2), 20), 1: (range(2), 50)}
RUNS = [(seed, heights, members) for members, (seeds, heights) in POOLS.items() for seed in seeds]


@pytest.mark.parametrize(("seed", "heights", "members"), RUNS)
def test_nothing_that_must_never_happen_happens(seed: int, heights: int, members: int) -> None:
    result = run_seed(seed, heights, members)
    assert result.violations == []
    assert result.blocks >= heights
    assert result.heals_ms, "a run ends with a healing, after which all records must have come through"


def test_members_change_and_history_goes_in_these_runs() -> None:
    """What the ledger says of itself happens under faults, or nothing would be judged of it."""
    happened = set[str]()
    expected = {
        "admitted",
        "anchors",
        "convicted",
        "excluded",
        "keys changed",
        "pruned",
        "replaced",
        "revoked",
        "roots admitted",
        "roots retired",
        "snapshots adopted",
        "snapshots taken",
    }
    for seed in range(40, 60):
        result = run_seed(seed, 60, 4 + seed % 3)
        assert result.violations == []
        happened |= set(result.happened)
        if happened >= expected:
            break
    assert happened == expected


@pytest.mark.parametrize("seed", range(3))
def test_strangers_have_a_vote_in_a_pool_that_has_forgotten_its_past(seed: int) -> None:
    """Two of six have taken over a snapshot, and without them no block has a quorum."""
    canary = Canary(lambda stack: None, (), 1, admits=2, window=20, heights=70)
    result = run_plan(canary.plan(seed))
    assert result.violations == []
    assert result.happened["admitted"] == result.happened["snapshots adopted"] == 2


@pytest.mark.parametrize("kind", ["exclude", "leave"])
def test_a_plan_cannot_ask_for_more_than_the_protocol_bears(kind: str) -> None:
    """A pool of four with a liar loses no honest member; without one it does."""
    liar = Fault(0, "byzantine", {"peer": 0, "role": "silent"})
    change = Fault(
        100, kind, {"peer": 1, "by": 2, "chain": 0} if kind == "exclude" else {"peer": 1, "chain": 0}
    )
    plan = Plan(seed=1, heights=20, members=4, observed=True, chains=1, faults=(liar, change))
    assert run_plan(plan).faults == {"byzantine": 1}
    without = run_plan(replace(plan, faults=(change,)))
    assert (without.faults, without.happened["excluded"], without.violations) == ({kind: 1}, 1, [])


def test_a_revoked_member_is_cut_off_has_no_vote_and_its_word_stays_good() -> None:
    """Its coordinator, or itself, asks for it; the pool of four goes on with three."""
    for own in (0, 1):
        revoke = Fault(500, "revoke", {"peer": 1, "by": 4, "own": own})
        root = {"root": 2, "by": 4}
        roots = (Fault(400, "admit-root", root), Fault(900, "retire-root", {**root, "from_ms": 5}))
        faults = (roots[0], revoke, roots[1], Fault(1_500, "heal", {}))
        plan = Plan(seed=7, heights=30, members=4, observed=True, chains=2, faults=faults)
        result = run_plan(check_plan(plan))
        assert result.violations == []
        happened = {what: result.happened[what] for what in ("revoked", "roots admitted", "roots retired")}
        assert happened == {"revoked": 1, "roots admitted": 1, "roots retired": 1}
        assert result.happened["excluded"] == 2, "from the main chain and from the sub-chain"


def test_nobody_is_revoked_whose_pool_could_not_go_on_without_it() -> None:
    revoke = Fault(100, "revoke", {"peer": 1, "by": 3, "own": 0})
    plan = Plan(seed=7, heights=10, members=3, observed=True, chains=1, faults=(revoke,))
    assert run_plan(plan).faults == {}


def test_who_turns_bad_later_is_excluded_too() -> None:
    """The pool of five bears one liar, and when that one is gone, another."""
    liars = [
        Fault(time_ms, "byzantine", {"peer": time_ms % 5, "role": "equivocate"}) for time_ms in (0, 3001)
    ]
    faults = (liars[0], Fault(2_000, "heal", {}), liars[1], Fault(5_000, "heal", {}))
    result = run_plan(Plan(seed=3, heights=150, members=5, observed=True, chains=1, faults=faults))
    assert result.violations == []
    assert (result.faults, result.happened["convicted"]) == ({"byzantine": 2}, 2)


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
    kinds = {fault.kind for seed in range(15) for fault in make_plan(seed, 50, 4).faults}
    assert kinds == {*KINDS, "heal"}


def test_same_seed_same_trace_in_another_process() -> None:
    command = [sys.executable, "-m", "edgepool", "sim", "run", "--seed", "5", "--heights", "25", "--json"]
    worlds = [{**os.environ, "PYTHONHASHSEED": hash_seed} for hash_seed in ("1", "2")]
    done = [subprocess.run(command, capture_output=True, check=True, env=world) for world in worlds]
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
        assert {fault.kind for fault in found.plan.faults} & {"crash", "persist-crash"}
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
        (Fault(0, "admit", {"peer": 0, "by": 40, "chain": 0}), "does not exist"),
        (Fault(0, "prune", {"window": 0, "page_bytes": 4_000}), "window is at least"),
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


def test_slow_healing_is_a_violation_where_there_is_enough_of_it() -> None:
    assert slow_healing([20_000] * 99) == ""
    assert slow_healing([20_000] + [1_000] * 199) == ""
    assert slow_healing([20_000] * 3 + [1_000] * 197).startswith("liveness: 99 of 100 healings")


def test_pools_of_several_sizes_take_turns() -> None:
    assert [*parse_members("4-6")] == [4, 5, 6]
    assert [*parse_members("7")] == [7]
    for wrong in ("", "0", "6-4", "4-99", "four", "-3", "4-"):
        with pytest.raises(LocalError, match="no number of members"):
            parse_members(wrong)


def test_the_command_compares_processes_and_tells_how_to_replay() -> None:
    command = ["sim", "run", "--seeds", "2", "--members", "4-5", "--heights", "12", "--jobs", "2"]
    done = CliRunner().invoke(app, [*command, "--twice", "--json"])
    report = json.loads(done.stdout)
    assert (done.exit_code, report["differing"], report["violations"]) == (0, 0, 0)
    assert report["members"] == "4, 5"
    with switched_on(CANARIES["biased lottery"].switch):
        done = CliRunner().invoke(app, command[:-2])
    assert done.exit_code == 1
    assert "edgepool sim run --seed 0 --heights 12 --members 4 --faults all" in done.stdout
    assert "edgepool sim shrink --seed 0 --heights 12 --members 4 --faults all" in done.stdout

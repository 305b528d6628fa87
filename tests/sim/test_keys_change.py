"""Peers change their keys in pools under faults; what is judged of it all stays true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepool.sim.plan import ROLES, Fault, Plan, check_plan, load_plan, make_plan, parse_kinds
from edgepool.sim.run import Result, run_plan

BURST = tuple(Fault(time_ms, "key", {"peer": peer}) for peer, time_ms in enumerate((500, 507, 514)))
"""Three members change their keys at about the same time."""


def run(*faults: Fault, members: int = 4, heights: int = 40, chains: int = 2, seed: int = 7) -> Result:
    plan = Plan(seed=seed, heights=heights, members=members, observed=True, chains=chains, faults=faults)
    return run_plan(check_plan(plan))


@pytest.mark.parametrize("seed", range(2))
def test_all_members_of_two_pools_of_three_change_their_keys_at_once(seed: int) -> None:
    """Each pool needs everybody: nobody may be waited for in one while it waits for another in the other."""
    result = run(*BURST, Fault(1_500, "heal", {}), members=3, seed=seed)
    assert result.violations == []
    assert (result.happened["keys changed"], result.happened["revoked"]) == (6, 3)


@pytest.mark.parametrize("skip", range(0, 40, 5))
@pytest.mark.parametrize("kept", [-1, 0])
def test_the_power_fails_at_each_point_where_who_changes_its_key_stores_something(
    skip: int, kept: int
) -> None:
    """With all that it has just written, or without; in a pool that cannot do without it."""
    cut = {"peer": 0, "skip": skip, "kept": kept, "said": skip % 3, "for_ms": 100}
    faults = (Fault(500, "persist-crash", cut), Fault(500, "key", {"peer": 0}), Fault(2_500, "heal", {}))
    result = run(*faults, members=3, heights=20)
    assert result.violations == []
    assert (result.happened["keys changed"], result.happened["revoked"]) == (2, 1)


def test_a_slow_disk_forgets_no_last_vote_of_a_key() -> None:
    """In a pool that needs every vote: the doors close only when the last one is stored."""
    slow = Fault(400, "slow-disk", {"peer": 0, "sync_ms": 300, "for_ms": 3_000})
    result = run(
        slow, Fault(500, "key", {"peer": 0}), Fault(4_000, "heal", {}), members=3, chains=1, heights=20
    )
    assert (result.violations, result.happened["keys changed"]) == ([], 1)


@pytest.mark.parametrize("role", ROLES)
def test_a_liar_of_each_role_changes_its_key_and_steals_the_former_keys_of_others(role: str) -> None:
    """What it has signed with its own former key convicts it; what it signs with others' harms nobody."""
    plan = make_plan(12, 30, 4, parse_kinds("delay,loss,reordering,persist-crash"))
    keys = [Fault(300 + 400 * place, "key", {"peer": place}) for place in (2, 0, 1)]
    faults = sorted((*plan.faults, *keys), key=lambda fault: fault.time_ms)
    liar = Fault(0, "byzantine", {"peer": 2, "role": role})
    result = run(liar, *faults, heights=30)
    assert result.violations == []
    assert result.happened["keys changed"] >= 2
    former = {f"the former key of m{place}" for place in range(3)}
    assert set(result.accused) <= {"m2", "a stranger", *former}


def test_an_observer_whose_disk_is_lost_after_its_key_has_changed_is_told_of_its_pool_again() -> None:
    faults = (Fault(100, "key", {"peer": 5}), Fault(2_500, "wipe", {"peer": 5, "for_ms": 100}))
    plan = Plan(seed=7, heights=20, members=4, observed=True, chains=1, faults=faults, spares=1)
    result = run_plan(check_plan(plan))
    assert (result.violations, result.faults) == ([], {"key": 1, "wipe": 1})
    assert result.happened["keys changed"] == 1


@pytest.mark.parametrize("observed", [True, False])
def test_everybodys_key_changes_and_the_coordinators_twice(observed: bool) -> None:
    """A newcomer that has only heard of the first of them is asked by the last, and believes it."""
    people = 4 + observed
    keys = [Fault(500 + 50 * place, "key", {"peer": place}) for place in range(people + 1)]
    again = {"peer": people - 1}
    admit = {"peer": people + 1, "by": people - 1, "chain": 0}
    faults = (*keys, Fault(1_500, "heal", {}), Fault(1_600, "key", again), Fault(2_500, "heal", {}))
    faults = (*faults, Fault(2_600, "admit", admit), Fault(3_500, "heal", {}))
    plan = Plan(seed=7, heights=120, members=4, observed=observed, chains=2, faults=faults, spares=2)
    result = run_plan(check_plan(plan))
    assert (result.violations, result.happened["admitted"]) == ([], 1)
    # On two chains; the first spare observes the first of them, the other one none.
    assert result.happened["keys changed"] == 2 * people + 1 + 2


def test_nobody_is_blamed_whose_former_keys_come_twice() -> None:
    """Frames are doubled, and links are made anew while they are under way."""
    twice = Fault(0, "duplication", {"per_mille": 600, "for_ms": 3_000})
    resets = [Fault(time_ms, "reset", {"peer": 0, "other": 4}) for time_ms in range(900, 2_900, 400)]
    result = run(twice, Fault(100, "key", {"peer": 4}), *resets, Fault(3_000, "heal", {}), heights=30)
    assert result.violations == []
    assert result.happened["keys changed"] == 2


def test_who_is_to_leave_does_not_stay_by_changing_its_key() -> None:
    leave = Fault(520, "exclude", {"peer": 1, "by": 5, "chain": 0})
    result = run(Fault(500, "key", {"peer": 1}), leave, Fault(3_000, "heal", {}), members=5)
    assert result.violations == []
    assert (result.happened["keys changed"], result.happened["excluded"]) == (2, 1)


def test_nobody_changes_a_key_that_is_changing() -> None:
    again = [Fault(time_ms, "key", {"peer": 1}) for time_ms in (500, 510, 2_500)]
    result = run(*again, Fault(4_000, "heal", {}), chains=1, heights=80)
    assert (result.faults, result.happened["keys changed"], result.violations) == ({"key": 2}, 2, [])


def test_who_has_lost_its_disk_is_told_of_its_pool_by_the_members_where_the_coordinator_is_out(
    tmp_path: Path,
) -> None:
    """The coordinator, a liar, was excluded before the key changed: it knows nothing of the new one."""
    faults = [(0, "byzantine", {"peer": 9, "role": "flood"}), (1414, "key", {"peer": 10})]
    faults.append((10_317, "wipe", {"peer": 10, "for_ms": 100}))
    plan = {"seed": 69, "heights": 64, "members": 10, "observed": False, "chains": 1, "spares": 1}
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({**plan, "faults": faults}))
    assert run_plan(load_plan(file)).violations == []

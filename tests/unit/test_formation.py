"""Algorithm 1 on the workshop of the case study (18 machines, three fixed pools)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgepool.core.pools.combination import combination
from edgepool.core.pools.formation import Create, FixedPoolView, FormedPool, Machine, Reuse, Wait, choose
from edgepool.errors import LocalError
from edgepool.model.ids import ChainId, PeerId

TYPES = {
    "DMU50": 3,
    "CTXbeta": 3,
    "CUT220": 3,
    "CTV160": 2,
    "DMU60": 2,
    "CTXgamma": 2,
    "MILLTAP700": 3,
}
CENTRES = ("DMU50", "DMU60")
TURN_MILL = ("CTXbeta", "CTXgamma")
CAPABLE = {
    "Milling": (*CENTRES, *TURN_MILL, "MILLTAP700"),
    "Wire cutting": ("CUT220",),
    "Finishing": (*CENTRES, *TURN_MILL),
    "Rough turning": (*TURN_MILL, "CTV160"),
}
LINER = combination(
    ["Milling", "Heat-treatment", "Wire cutting", "Finishing", "Finishing"], outside=["Heat-treatment"]
)


def machine(name: str, kind: str, running: int = 0, minutes: int = 0, connected: bool = True) -> Machine:
    return Machine(PeerId(f"peer-{name}"), name, kind, running, minutes, connected)


def workshop() -> dict[str, Machine]:
    names = [(f"{kind}-{i}", kind) for kind, count in TYPES.items() for i in range(1, count + 1)]
    return {name: machine(name, kind) for name, kind in names}


def pools(machines: dict[str, Machine]) -> list[FixedPoolView]:
    groups = (("centres", CENTRES), ("turning", (*TURN_MILL, "CTV160")), ("others", ("CUT220", "MILLTAP700")))
    return [
        FixedPoolView(name, tuple(m for m in machines.values() if m.machine_type in kinds))
        for name, kinds in groups
    ]


def formed(name: str, *stations: str, wanted: tuple[str, ...] = LINER, running: int = 0) -> FormedPool:
    return FormedPool(
        ChainId(name), wanted, tuple(PeerId(f"peer-{station}") for station in stations), running
    )


def test_an_outside_operation_holds_no_machine() -> None:
    assert LINER == ("Milling", "Wire cutting", "Finishing", "Finishing")


def test_a_new_pool_has_a_capable_machine_of_its_own_for_each_step() -> None:
    machines = workshop()
    choice = choose(LINER, [], pools(machines), CAPABLE, 1)
    assert isinstance(choice, Create)
    assert len(set(choice.stations)) == len(LINER)
    by_peer = {m.peer: m for m in machines.values()}
    for operation, station in zip(LINER, choice.stations, strict=True):
        assert by_peer[station].machine_type in CAPABLE[operation]


def test_an_available_pool_of_the_same_combination_is_reused() -> None:
    old = formed("a", "DMU50-1", "CUT220-1", "DMU50-2", "DMU50-3")
    assert choose(LINER, [old], pools(workshop()), CAPABLE, 1) == Reuse(old)


def test_of_several_available_pools_the_one_with_the_least_allotted_minutes_is_reused() -> None:
    machines = workshop()
    machines["DMU50-1"] = replace(machines["DMU50-1"], allotted_minutes=300)
    tired = formed("a", "DMU50-1", "CUT220-1", "DMU50-2", "DMU50-3")
    rested = formed("b", "DMU60-1", "CUT220-1", "DMU50-2", "DMU50-3")
    assert choose(LINER, [tired, rested], pools(machines), CAPABLE, 1) == Reuse(rested)


@pytest.mark.parametrize(
    ("station", "running"),
    [
        (machine("CUT220-1", "CUT220", connected=False), 0),
        (machine("CUT220-1", "CUT220", running=1), 0),
        (machine("CUT220-1", "CUT220"), 1),
    ],
    ids=["a station away", "a station full", "a task in the pool"],
)
def test_a_pool_that_is_not_available_is_not_reused(station: Machine, running: int) -> None:
    machines = workshop() | {station.name: station}
    old = formed("a", "DMU50-1", "CUT220-1", "DMU50-2", "DMU50-3", running=running)
    assert isinstance(choose(LINER, [old], pools(machines), CAPABLE, 1), Create)


def test_a_pool_of_another_combination_or_with_an_unknown_station_is_not_reused() -> None:
    other = formed("a", "DMU50-1", wanted=("Milling",))
    gone = formed("b", "DMU50-1", "CUT220-9", "DMU50-2", "DMU50-3")
    assert isinstance(choose(LINER, [other, gone], pools(workshop()), CAPABLE, 1), Create)


def test_the_least_loaded_machines_are_taken() -> None:
    machines = workshop()
    for name in ("CUT220-1", "CUT220-2"):
        machines[name] = replace(machines[name], allotted_minutes=10)
    choice = choose(("Wire cutting",), [], pools(machines), CAPABLE, 1)
    assert choice == Create((machines["CUT220-3"].peer,))


def test_a_machine_that_can_do_several_steps_is_not_wasted() -> None:
    """A greedy choice gives the only finisher to the first step and then finds nobody."""
    machines = {m.name: m for m in (machine("A", "DMU50"), machine("B", "MILLTAP700"))}
    view = [FixedPoolView("all", tuple(machines.values()))]
    choice = choose(("Milling", "Finishing"), [], view, CAPABLE, 1)
    assert choice == Create((machines["B"].peer, machines["A"].peer))


def test_waiting_names_the_operation_without_a_free_machine() -> None:
    machines = workshop()
    machines["CUT220-1"] = replace(machines["CUT220-1"], running_tasks=1)
    machines["CUT220-2"] = replace(machines["CUT220-2"], running_tasks=1)
    machines["CUT220-3"] = replace(machines["CUT220-3"], connected=False)
    choice = choose(LINER, [], pools(machines), CAPABLE, 1)
    assert choice == Wait(
        "no machine is free for 'Wire cutting': of 3 that can do it 2 are busy, 1 not connected, "
        "0 needed for other steps"
    )


def test_waiting_names_an_operation_that_nobody_can_do() -> None:
    choice = choose(("Milling", "Grinding"), [], pools(workshop()), CAPABLE, 1)
    assert choice == Wait("no machine of the fixed pools can do 'Grinding'")


def test_a_route_without_machined_steps_is_refused() -> None:
    with pytest.raises(LocalError, match="without machined steps"):
        choose((), [], pools(workshop()), CAPABLE, 1)

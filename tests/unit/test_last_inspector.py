"""Who inspects the last step of a task, for which no next station stands."""

from __future__ import annotations

from edgepool.core.ledger.facts import StepState, TaskState
from edgepool.model.ids import PeerId
from edgepool.model.record import MachiningRequirement
from edgepool.workshop.station import last_inspector

MEMBERS = tuple(PeerId(name) for name in "abcd")


def route(stations: str) -> TaskState:
    task = TaskState("T", "P", len(stations))
    for place, station in enumerate(stations):
        task.steps[place] = StepState(
            MachiningRequirement(
                "T", "P", 10 * place, "Milling", PeerId(station), place, len(stations), 60, 0, 0
            )
        )
    return task


def test_the_last_other_station_of_the_route_inspects_the_last_step() -> None:
    assert last_inspector(route("abc"), MEMBERS) == "b"
    assert last_inspector(route("abcc"), MEMBERS) == "b"
    assert last_inspector(route("dbab"), MEMBERS) == "a"


def test_without_another_station_the_first_other_member_does() -> None:
    assert last_inspector(route("a"), MEMBERS) == "b"
    assert last_inspector(route("bb"), MEMBERS) == "a"
    assert last_inspector(route("a"), MEMBERS[:1]) is None


def test_a_station_that_has_left_the_pool_inspects_nothing() -> None:
    assert last_inspector(route("xb"), MEMBERS) == "a"

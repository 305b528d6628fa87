"""Algorithm 1 for any small workshop, against a search through all assignments."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgepool.core.pools.formation import Create, FixedPoolView, FormedPool, Machine, Reuse, Wait, choose
from edgepool.model.ids import ChainId, PeerId

OPERATIONS = ("turn", "mill", "cut")
TYPES = ("A", "B", "C")

wanted_steps = st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=4).map(tuple)
capabilities = st.fixed_dictionaries({op: st.frozensets(st.sampled_from(TYPES)) for op in OPERATIONS})
tasks_limits = st.integers(1, 2)


@st.composite
def machine_lists(draw: st.DrawFn) -> list[Machine]:
    return [
        Machine(
            peer=PeerId(f"p{i}"),
            name=f"m{i}",
            machine_type=draw(st.sampled_from(TYPES)),
            running_tasks=draw(st.integers(0, 2)),
            allotted_minutes=draw(st.integers(0, 3)),
            connected=draw(st.booleans()) or draw(st.booleans()),
        )
        for i in range(draw(st.integers(0, 6)))
    ]


@st.composite
def histories(draw: st.DrawFn) -> list[FormedPool]:
    pools = []
    for i in range(draw(st.integers(0, 3))):
        steps = draw(wanted_steps)
        stations = tuple(PeerId(f"p{draw(st.integers(0, 6))}") for _ in steps)
        pools.append(FormedPool(ChainId(f"c{i}"), steps, stations, draw(st.integers(0, 1))))
    return pools


def free(machine: Machine, limit: int) -> bool:
    return machine.connected and machine.running_tasks < limit


def burden(machine: Machine) -> tuple[int, int, str]:
    return machine.running_tasks, machine.allotted_minutes, machine.name


def assignments(
    wanted: tuple[str, ...], machines: list[Machine], capable: dict[str, frozenset[str]], limit: int
) -> list[tuple[Machine, ...]]:
    candidates = [m for m in machines if free(m, limit)]
    return [
        chosen
        for chosen in permutations(candidates, len(wanted))
        if all(m.machine_type in capable[op] for op, m in zip(wanted, chosen, strict=True))
    ]


@settings(max_examples=300, deadline=None)
@given(wanted_steps, histories(), machine_lists(), capabilities, tasks_limits, st.integers(0, 6))
def test_algorithm_1_keeps_its_promises(
    wanted: tuple[str, ...],
    history: list[FormedPool],
    machines: list[Machine],
    capable: dict[str, frozenset[str]],
    limit: int,
    cut: int,
) -> None:
    by_peer = {m.peer: m for m in machines}
    available = [
        pool
        for pool in history
        if pool.combination == wanted
        and pool.running_tasks == 0
        and all(peer in by_peer and free(by_peer[peer], limit) for peer in pool.stations)
    ]
    view = [FixedPoolView("one", tuple(machines[:cut])), FixedPoolView("two", tuple(machines[cut:]))]
    choice = choose(wanted, history, view, capable, limit)
    match choice:
        case Reuse(pool):
            assert pool in available
        case Create(stations):
            assert not available
            chosen = [by_peer[peer] for peer in stations]
            assert len(set(stations)) == len(stations) == len(wanted)
            assert all(free(m, limit) for m in chosen)
            assert all(m.machine_type in capable[op] for op, m in zip(wanted, chosen, strict=True))
            # Fairness: place by place, no possible choice has less loaded machines.
            ours = sorted(map(burden, chosen))
            for other in assignments(wanted, machines, capable, limit):
                assert all(a <= b for a, b in zip(ours, sorted(map(burden, other)), strict=True))
        case Wait(reason):
            assert not available
            assert not assignments(wanted, machines, capable, limit)
            assert any(f"'{operation}'" in reason for operation in wanted)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.lists(st.integers(1, 90), min_size=1, max_size=30))
def test_work_spreads_over_equal_machines(count: int, steps: int, jobs: list[int]) -> None:
    """Equal machines never differ by more than the longest step that was given out."""
    steps = min(steps, count)
    machines = {PeerId(f"p{i}"): Machine(PeerId(f"p{i}"), f"m{i}", "A", 0, 0, True) for i in range(count)}
    for minutes in jobs:
        view = [FixedPoolView("all", tuple(machines.values()))]
        choice = choose(("mill",) * steps, [], view, {"mill": ("A",)}, 1)
        assert isinstance(choice, Create)
        for peer in choice.stations:
            one = machines[peer]
            machines[peer] = replace(one, allotted_minutes=one.allotted_minutes + minutes)
    allotted = [m.allotted_minutes for m in machines.values()]
    assert max(allotted) - min(allotted) <= max(jobs)

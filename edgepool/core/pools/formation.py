"""Algorithm 1: which pool makes a task, an old one or a new one [S3.5].

Pure decisions over a view of the workshop; who makes the view and who forms the pool is not known
here. The outcome depends on nothing but the arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgepool.core.pools.combination import Combination
from edgepool.errors import LocalError
from edgepool.model.ids import ChainId, PeerId


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as the coordinator sees it: `allotted_minutes` is the work given to it so far."""

    peer: PeerId
    name: str
    machine_type: str
    running_tasks: int
    allotted_minutes: int
    connected: bool


@dataclass(frozen=True, slots=True)
class FixedPoolView:
    """A fixed pool and its machines."""

    name: str
    machines: tuple[Machine, ...]


@dataclass(frozen=True, slots=True)
class FormedPool:
    """A manufacturing pool of earlier tasks; `stations[i]` serves step i of its combination."""

    chain: ChainId
    combination: Combination
    stations: tuple[PeerId, ...]
    running_tasks: int


@dataclass(frozen=True, slots=True)
class Reuse:
    """Give the task to this pool: its chain exists already."""

    pool: FormedPool


@dataclass(frozen=True, slots=True)
class Create:
    """Form a new pool; `stations[i]` serves step i."""

    stations: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """The task cannot be given out now; `reason` names an operation without a free machine."""

    reason: str


def choose(
    wanted: Combination,
    history: Sequence[FormedPool],
    fixed_pools: Sequence[FixedPoolView],
    capable: Mapping[str, Collection[str]],
    tasks_per_machine: int,
) -> Reuse | Create | Wait:
    """Choose the pool for a task whose route needs `wanted` ([S3.5], Algorithm 1).

    A historical pool of the same combination is reused if no task runs in it and all its machines
    are free; of several, the one whose machines have the least allotted minutes. Otherwise each
    step gets a free machine of its own: the least loaded machines with which all steps can be
    served. `capable` maps an operation to the machine types that do it. A machine is free while it
    is connected and has fewer than `tasks_per_machine` running tasks. LocalError if `wanted` is
    empty, for then there is nothing to make.
    """
    if not wanted:
        raise LocalError("a route without machined steps needs no pool: check its operations")
    machines = {machine.peer: machine for pool in fixed_pools for machine in pool.machines}
    reusable = [
        pool
        for pool in history
        if pool.combination == wanted and _available(pool, machines, tasks_per_machine)
    ]
    if reusable:
        return Reuse(min(reusable, key=lambda pool: (_allotted_minutes(pool, machines), pool.chain)))
    free = [machine for machine in machines.values() if _free(machine, tasks_per_machine)]
    serving = _assign(wanted, sorted(free, key=_preference), capable)
    stations = tuple(machine.peer for machine in serving if machine is not None)
    if len(stations) == len(wanted):
        return Create(stations)
    missing = [operation for operation, machine in zip(wanted, serving, strict=True) if machine is None]
    return Wait(_shortage(missing, machines.values(), capable, tasks_per_machine))


def _free(machine: Machine, tasks_per_machine: int) -> bool:
    return machine.connected and machine.running_tasks < tasks_per_machine


def _available(pool: FormedPool, machines: Mapping[PeerId, Machine], tasks_per_machine: int) -> bool:
    stations = [machines.get(peer) for peer in pool.stations]
    return pool.running_tasks == 0 and all(
        machine is not None and _free(machine, tasks_per_machine) for machine in stations
    )


def _allotted_minutes(pool: FormedPool, machines: Mapping[PeerId, Machine]) -> int:
    return sum(machines[peer].allotted_minutes for peer in pool.stations)


def _preference(machine: Machine) -> tuple[int, int, str, str]:
    return machine.running_tasks, machine.allotted_minutes, machine.name, machine.peer


def _assign(
    wanted: Combination, free: Sequence[Machine], capable: Mapping[str, Collection[str]]
) -> list[Machine | None]:
    """Return who serves each step, None where nobody can.

    Machines come in by preference, and one that has a step never loses it without getting another
    (augmenting paths). Sets of machines that can be placed form a matroid, so that taking them
    greedily gives the most steps with, place by place, the most preferred machines.
    """
    serving: list[Machine | None] = [None] * len(wanted)

    def place(machine: Machine, tried: list[bool]) -> bool:
        for step, operation in enumerate(wanted):
            if tried[step] or machine.machine_type not in capable.get(operation, ()):
                continue
            tried[step] = True
            other = serving[step]
            if other is None or place(other, tried):
                serving[step] = machine
                return True
        return False

    for machine in free:
        if None not in serving:
            break
        place(machine, [False] * len(wanted))
    return serving


def _shortage(
    missing: Sequence[str],
    machines: Iterable[Machine],
    capable: Mapping[str, Collection[str]],
    tasks_per_machine: int,
) -> str:
    """Say for which of the `missing` operations the fewest machines are free, and why."""
    able = {
        operation: [machine for machine in machines if machine.machine_type in capable.get(operation, ())]
        for operation in missing
    }
    free = {operation: sum(_free(m, tasks_per_machine) for m in able[operation]) for operation in missing}
    scarcest = min(missing, key=lambda operation: free[operation])
    if not able[scarcest]:
        return f"no machine of the fixed pools can do '{scarcest}'"
    away = sum(not machine.connected for machine in able[scarcest])
    busy = len(able[scarcest]) - away - free[scarcest]
    return (
        f"no machine is free for '{scarcest}': of {len(able[scarcest])} that can do it {busy} are busy, "
        f"{away} not connected, {free[scarcest]} needed for other steps"
    )

"""The workshop file: orders, routes, machines and pools, and the tasks that they come to [S3.16].

One task makes one part. A step that no machine of the workshop does (an outside operation, such as
heat treatment) is no step of the task: its time stands before the next machined step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain as chained
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Annotated

import networkx as nx
from msgspec import Meta, field

from edgepool.config import Settings, convert, read_toml
from edgepool.errors import ConfigError
from edgepool.model.fields import Name
from edgepool.model.pool import MAX_MEMBERS

PlainName = Annotated[str, Meta(min_length=1, max_length=48, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Letters, digits, '.', '_' and '-': such a name can also be that of a folder or a data key."""
MAX_TASKS = 999
MINUTE_MS = 60_000


class PartOrder(Settings, frozen=True):
    """So many pieces of one part; `route` is [operation, hours for one piece] in their order.

    Hours that are not known are written nan.
    """

    number: PlainName
    quantity: Annotated[int, Meta(ge=1, le=99)]
    route: Annotated[tuple[tuple[Name, float], ...], Meta(min_length=1, max_length=32)]
    name: str = ""


class MachineGroup(Settings, frozen=True):
    """Machines of one make. `function` is the type of machine, `ids` are their names."""

    name: str
    function: Name
    ids: Annotated[tuple[PlainName, ...], Meta(min_length=1)]


class FixedPoolPlan(Settings, frozen=True):
    """A fixed pool: all machines with one of these functions [S3.4]."""

    name: PlainName
    functions: Annotated[tuple[Name, ...], Meta(min_length=1)]


class OutsideOperation(Settings, frozen=True):
    """An operation that takes time but holds no machine of the workshop."""

    name: Name


class LargestFile(Settings, frozen=True):
    """One file whose size is given instead of drawn."""

    part: Name
    operation_number: int
    kind: Name
    size_bytes: Annotated[int, Meta(ge=1024, le=2**30)]


SizeRange = tuple[Annotated[int, Meta(ge=1024, le=2**30)], Annotated[int, Meta(ge=1024, le=2**30)]]


class TwinDataSettings(Settings, frozen=True):
    """How large the files of a step are: (least, most) bytes for each kind of data."""

    sizes_bytes: dict[str, SizeRange] = field(default_factory=dict)
    largest: LargestFile | None = None


class Workshop(Settings, frozen=True):
    """Everything about one workshop, as its TOML file says it.

    `capabilities` names, for each operation, the functions of machines that can do it; `witnesses` is how
    many peers without a machine there are, for pools of fewer than four (none are needed in others).
    """

    name: PlainName
    parts: Annotated[tuple[PartOrder, ...], Meta(min_length=1)]
    machines: Annotated[tuple[MachineGroup, ...], Meta(min_length=1)]
    fixed_pools: Annotated[tuple[FixedPoolPlan, ...], Meta(min_length=1)]
    capabilities: dict[Name, tuple[Name, ...]]
    outside_operations: tuple[OutsideOperation, ...] = ()
    title: str = ""
    tasks_per_machine: Annotated[int, Meta(ge=1, le=64)] = 2
    witnesses: Annotated[int, Meta(ge=0, le=8)] = 0
    twin_data: TwinDataSettings = TwinDataSettings()

    @property
    def function_of(self) -> dict[str, str]:
        """The function of each machine, by its name, in the order of the file."""
        return {name: group.function for group in self.machines for name in group.ids}

    @property
    def pool_of(self) -> dict[str, str]:
        """The fixed pool of each machine, by its name, in the order of the file."""
        pools = {function: pool.name for pool in self.fixed_pools for function in pool.functions}
        return {name: pools[function] for name, function in self.function_of.items()}

    @property
    def witness_names(self) -> tuple[str, ...]:
        """What its witnesses are called."""
        return tuple(f"witness-{number}" for number in range(1, self.witnesses + 1))

    def machines_of(self, pool: str) -> tuple[str, ...]:
        """Return the names of the machines in a fixed pool."""
        return tuple(name for name, its_pool in self.pool_of.items() if its_pool == pool)


@dataclass(frozen=True, slots=True)
class Step:
    """One machined step. `operation_number` counts all steps of the route: 10, 20, 30.

    `outside_minutes` is what outside operations take right before it.
    """

    operation_number: int
    operation: str
    process_minutes: int
    outside_minutes: int


@dataclass(frozen=True, slots=True)
class Task:
    """One part to be made: task number (T001), part instance (PTVA10212-03), and its machined steps."""

    number: str
    part: str
    steps: tuple[Step, ...]

    @property
    def combination(self) -> tuple[str, ...]:
        """The operations that the route needs: the paper's Mg [S3.5]."""
        return tuple(step.operation for step in self.steps)


@dataclass(frozen=True, slots=True)
class Orders:
    """All tasks of a workshop, and what had to be assumed to make them, a sentence each."""

    tasks: tuple[Task, ...]
    assumptions: tuple[str, ...]


def load_workshop(path: Path) -> Workshop:
    """Read and check a workshop file; ConfigError says what is wrong, where, and what to write."""
    workshop = convert(path, read_toml(path), Workshop)
    _check_machines(path, workshop)
    _check_routes(path, workshop)
    for kind, (least, most) in workshop.twin_data.sizes_bytes.items():
        if least > most:
            raise ConfigError(
                f"{path}: twin_data.sizes_bytes.{kind}: [{least}, {most}] is the wrong way round"
            )
    return workshop


def expand(workshop: Workshop) -> Orders:
    """Return one task for each part instance, part numbers taking turns so that routes mix."""
    assumptions: list[str] = []
    instances: list[list[tuple[str, tuple[Step, ...]]]] = []
    for part in workshop.parts:
        steps = _steps(workshop, part, assumptions)
        instances.append([(f"{part.number}-{count:02d}", steps) for count in range(1, part.quantity + 1)])
    mixed = [item for item in chained.from_iterable(zip_longest(*instances)) if item is not None]
    tasks = tuple(Task(f"T{number:03d}", part, steps) for number, (part, steps) in enumerate(mixed, 1))
    return Orders(tasks, tuple(assumptions))


def plan(task: Task, stations: Sequence[str], now_ms: int, free_ms: dict[str, int]) -> tuple[int, ...]:
    """Return when each step of `task` is planned to be complete on its station, in milliseconds.

    A machine does one thing at a time: `free_ms` says from when on stations have nothing planned, and is
    brought up to date. An hour of the plan is an hour, however fast a run lets hours pass.
    """
    completions = []
    for step, station in zip(task.steps, stations, strict=True):
        start_ms = max(now_ms + MINUTE_MS * step.outside_minutes, free_ms.get(station, 0))
        now_ms = free_ms[station] = start_ms + MINUTE_MS * step.process_minutes
        completions.append(now_ms)
    return tuple(completions)


def _steps(workshop: Workshop, part: PartOrder, assumptions: list[str]) -> tuple[Step, ...]:
    outside_names = {operation.name for operation in workshop.outside_operations}
    steps: list[Step] = []
    outside_minutes = 0
    for index, (operation, hours) in enumerate(part.route, 1):
        operation_number = 10 * index
        if math.isnan(hours):
            hours, why = _assumed_hours(workshop, operation)
            assumptions.append(
                f"{part.number}, operation {operation_number} ({operation}): no time is given; "
                f"{hours:g} h taken, {why}."
            )
        minutes = round(hours * 60)
        if operation in outside_names:
            outside_minutes += minutes
        else:
            steps.append(Step(operation_number, operation, minutes, outside_minutes))
            outside_minutes = 0
    return tuple(steps)


def _family(operation: str) -> str:
    """Return what kind of work an operation is: 'Rough milling' and 'Milling' are both milling."""
    return operation.split()[-1].lower()


def _assumed_hours(workshop: Workshop, operation: str) -> tuple[float, str]:
    known = _known_hours(workshop, operation)
    middle = median(known)
    family = _family(operation)
    if len(set(known)) == 1:
        return middle, f"as the other {len(known)} {family} steps take"
    return middle, f"the middle of what the other {len(known)} {family} steps take"


def _known_hours(workshop: Workshop, operation: str) -> list[float]:
    return [
        hours
        for part in workshop.parts
        for other, hours in part.route
        if _family(other) == _family(operation) and not math.isnan(hours)
    ]


def _check_machines(path: Path, workshop: Workshop) -> None:
    _no_twice(path, "machine", (name for group in workshop.machines for name in group.ids))
    _no_twice(path, "part", (part.number for part in workshop.parts))
    _no_twice(path, "fixed pool", (pool.name for pool in workshop.fixed_pools))
    _no_twice(
        path,
        "function of a fixed pool",
        (function for pool in workshop.fixed_pools for function in pool.functions),
    )
    pooled = {function for pool in workshop.fixed_pools for function in pool.functions}
    for name, function in workshop.function_of.items():
        if name == "coordinator":
            raise ConfigError(f"{path}: machines: no machine can be called 'coordinator'")
        if name in workshop.witness_names:
            raise ConfigError(f"{path}: machines: '{name}' is what a witness is called: choose another name")
        if function not in pooled:
            raise ConfigError(
                f"{path}: fixed_pools: machine '{name}' is in none; "
                f"add its function '{function}' to the functions of a pool"
            )
    for pool in workshop.fixed_pools:
        count = len(workshop.machines_of(pool.name))
        if not 1 <= count < MAX_MEMBERS:
            raise ConfigError(
                f"{path}: fixed_pools: '{pool.name}' has {count} machines; "
                f"a pool has 1 to {MAX_MEMBERS - 1}, beside the coordinator"
            )


def _check_routes(path: Path, workshop: Workshop) -> None:
    outside = {operation.name for operation in workshop.outside_operations}
    functions = {group.function for group in workshop.machines}
    for operation, capable in workshop.capabilities.items():
        for function in capable:
            if function not in functions:
                raise ConfigError(
                    f"{path}: capabilities: '{operation}' names '{function}', which no machine has"
                )
    for part in workshop.parts:
        where = f"{path}: parts: {part.number}"
        for operation, hours in part.route:
            if operation not in outside and not workshop.capabilities.get(operation):
                raise ConfigError(
                    f"{where}: nothing can do '{operation}'; "
                    "name it under capabilities or as an outside operation"
                )
            if math.isnan(hours) and not _known_hours(workshop, operation):
                raise ConfigError(f"{where}: '{operation}' has no time, nor has any other step of its kind")
            if hours < 0 or hours > 10_000:
                raise ConfigError(f"{where}: '{operation}' takes {hours:g} hours; write 0 to 10000, or nan")
        if part.route[-1][0] in outside:
            raise ConfigError(f"{where}: its route ends outside; the last step must be done by a machine")
        _check_enough_machines(where, workshop, [name for name, _ in part.route if name not in outside])
    if sum(part.quantity for part in workshop.parts) > MAX_TASKS:
        raise ConfigError(f"{path}: parts: more than {MAX_TASKS} parts in all; order fewer")


def _check_enough_machines(where: str, workshop: Workshop, operations: list[str]) -> None:
    """Refuse a route whose steps cannot each have a machine of their own."""
    graph = nx.Graph()
    steps = list(enumerate(operations))
    graph.add_nodes_from(steps)
    for step in steps:
        for name, function in workshop.function_of.items():
            if function in workshop.capabilities[step[1]]:
                graph.add_edge(step, name)
    matched = nx.bipartite.maximum_matching(graph, top_nodes=steps)
    missing = [operation for number, operation in steps if (number, operation) not in matched]
    if missing:
        raise ConfigError(
            f"{where}: each step needs a machine of its own, and there is none left for '{missing[0]}'"
        )


def _no_twice(path: Path, what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"{path}: {what} '{name}' stands there twice; names must differ")
        seen.add(name)

"""What the coordinator sees when it allots: machines with their load, pools with theirs [S3.3].

Computed anew each time from the chains and the journal, which are all that the coordinator has to
remember; so what it sees after a restart is what it would have seen without one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from edgepool.core.ledger.state import ChainState
from edgepool.core.pools.formation import FixedPoolView, FormedPool, Machine
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis
from edgepool.workshop.journal import Intent
from edgepool.workshop.orders import Task, Workshop


@dataclass(frozen=True, slots=True)
class EndedTask:
    """A task whose last step is complete on chain."""

    task: str
    part: str
    pool: str
    completion_ms: int


@dataclass(slots=True)
class _Load:
    running_tasks: int = 0
    allotted_minutes: int = 0


@dataclass(slots=True)
class Board:
    """The state of the workshop.

    `fixed_pools` and `history` are Algorithm 1's arguments; `ended` the tasks that are done;
    `waiting` those that no pool has yet; `unstated` intents whose requirements are not all on chain.
    """

    fixed_pools: tuple[FixedPoolView, ...]
    history: tuple[FormedPool, ...]
    ended: tuple[EndedTask, ...]
    waiting: tuple[Task, ...]
    unstated: tuple[Intent, ...]


@dataclass(slots=True)
class _Tally:
    loads: dict[PeerId, _Load] = field(default_factory=dict)
    pools_running: dict[ChainId, int] = field(default_factory=dict)
    ended: list[EndedTask] = field(default_factory=list)
    stated: dict[str, int] = field(default_factory=dict)

    def add(self, station: PeerId, minutes: int, running: bool) -> None:
        load = self.loads.setdefault(station, _Load())
        load.allotted_minutes += minutes
        load.running_tasks += running


def see(
    workshop: Workshop,
    tasks: Iterable[Task],
    chains: Iterable[tuple[Genesis, ChainState]],
    intents: Mapping[str, Intent],
    connected: Collection[PeerId],
) -> Board:
    """Return the board. All machines of a pool run its task until its last step is complete.

    So a machine is free again when its pool is, and reuse comes before a new pool [S3.5].
    """
    known = list(chains)
    tally = _Tally()
    for genesis, state in known:
        if genesis.invitation.kind == "manufacturing":
            _count_chain(tally, genesis, state)
    by_number = {task.number: task for task in tasks}
    by_name = {
        genesis.invitation.name: genesis.chain
        for genesis, _ in known
        if genesis.invitation.kind == "manufacturing"
    }
    unstated = [
        intent
        for intent in intents.values()
        if intent.task in by_number and tally.stated.get(intent.task, 0) < len(by_number[intent.task].steps)
    ]
    for intent in unstated:
        if intent.task in tally.stated:
            continue  # some requirements are on chain: it has been counted there
        steps = by_number[intent.task].steps
        for station, step in zip(intent.stations, steps, strict=True):
            tally.add(PeerId(station), step.process_minutes, True)
        if intent.pool in by_name:
            tally.pools_running[by_name[intent.pool]] += 1
    return Board(
        tuple(_fixed_pool(genesis, state, workshop, tally, connected) for genesis, state in _fixed(known)),
        tuple(_formed(genesis, tally) for genesis, state in known if _reusable(genesis, state)),
        tuple(tally.ended),
        tuple(t for t in by_number.values() if t.number not in tally.stated and t.number not in intents),
        tuple(unstated),
    )


def _fixed(chains: Iterable[tuple[Genesis, ChainState]]) -> Iterable[tuple[Genesis, ChainState]]:
    return (pair for pair in chains if pair[0].invitation.kind == "fixed")


def _count_chain(tally: _Tally, genesis: Genesis, state: ChainState) -> None:
    running = 0
    for task in state.tasks.values():
        tally.stated[task.task] = len(task.steps)
        for step in task.steps.values():
            tally.add(PeerId(step.requirement.station), step.requirement.process_minutes, not task.complete)
        if task.complete:
            last = max(step.completion.completion_ms for step in task.steps.values() if step.completion)
            tally.ended.append(EndedTask(task.task, task.part, genesis.invitation.name, last))
        else:
            running += 1
    tally.pools_running[genesis.chain] = running


def _fixed_pool(
    genesis: Genesis, state: ChainState, workshop: Workshop, tally: _Tally, connected: Collection[PeerId]
) -> FixedPoolView:
    functions = workshop.function_of
    machines = []
    for member in state.next_roster:
        if member.name in functions:  # the coordinator and witnesses are members too, and no machines
            load = tally.loads.get(member.peer, _Load())
            machines.append(
                Machine(
                    member.peer,
                    member.name,
                    functions[member.name],
                    load.running_tasks,
                    load.allotted_minutes,
                    member.peer in connected,
                )
            )
    return FixedPoolView(genesis.invitation.name, tuple(machines))


def _reusable(genesis: Genesis, state: ChainState) -> bool:
    """Say whether a pool can serve its route again: all its stations are members still."""
    voting = {member.peer for member in state.next_roster}
    return genesis.invitation.kind == "manufacturing" and voting >= set(_stations(genesis))


def _stations(genesis: Genesis) -> tuple[PeerId, ...]:
    """Return who serves the steps of a pool's route, in their order; witnesses stand behind them."""
    return genesis.members[: len(genesis.invitation.combination)]


def _formed(genesis: Genesis, tally: _Tally) -> FormedPool:
    combination = tuple(genesis.invitation.combination)
    return FormedPool(genesis.chain, combination, _stations(genesis), tally.pools_running[genesis.chain])

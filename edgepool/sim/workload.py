"""Owners of simulated machines: each asks its peer for one record, and for the next when it is done.

What an owner writes follows from what its own peer knows: it starts and ends the steps that were given
to it, inspects them, and offers and demands data in between; the coordinator plans tasks. Draws come
from a stream for each peer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from random import Random
from typing import Protocol

from edgepool.core.ledger.facts import TaskState
from edgepool.core.ledger.state import ChainState
from edgepool.model.crypto import sha256
from edgepool.model.ids import PeerId
from edgepool.model.policy import DataPolicy, PolicyTerms
from edgepool.model.record import (
    Body,
    DataDemand,
    DataOffer,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    QualityInspection,
)
from edgepool.model.twin import DataKey

STEPS = 3
LONGEST_MINUTES = 600
THINK_MS = 150
PATIENCE_MS = 20_000
"""An owner whose peer does not answer (because it has died meanwhile) asks for something new."""
TASKS_OPEN = 6


class Chain(Protocol):
    """What an owner looks at: a chain of the core, or a peer's view of one."""

    @property
    def state(self) -> ChainState:
        """What the chain's records add up to."""
        ...


class Owner:
    """The owner of one peer: what it wants to write next."""

    def __init__(self, seed: int, place: int, me: PeerId, coordinator: bool) -> None:
        self.me = me
        self.random = Random(f"{seed}/owner/{place}")
        self.ticket = 0
        self.asked_ms = 0
        self.life = 0
        """Which life of the peer was asked: a peer that dies forgets what its owner waits for."""
        self._coordinator = coordinator
        self._tasks = 0

    def next_body(self, chain: Chain) -> Body | None:
        """Return what to write on `chain` now, or None if there is nothing to say."""
        plan = self._plan(chain) if self._coordinator else None
        if plan is not None or self.me not in chain.state.members:
            return plan
        if self.random.random() < 0.75:
            work = self._work(chain)
            if work is not None:
                return work
        return self._data(chain)

    def _plan(self, chain: Chain) -> Body | None:
        """Give the next missing step of an unfinished task, or begin a task."""
        for task in _recent(chain):
            if len(task.steps) < task.steps_planned:
                return self._requirement(chain, task.task, len(task.steps))
        if sum(_goes_on(chain, task) for task in _recent(chain)) >= TASKS_OPEN:
            return None
        # Counted here: tasks on the chain are forgotten.
        self._tasks += 1
        return self._requirement(chain, f"task-{self._tasks}", 0)

    def _requirement(self, chain: Chain, task: str, step: int) -> MachiningRequirement:
        # Low places get more work, so that weights differ.
        members = chain.state.members
        place = min(self.random.randrange(len(members)), self.random.randrange(len(members)))
        minutes = self.random.randrange(10, LONGEST_MINUTES)
        # Steps follow each other; at times one is planned into the time of the one before.
        slot = STEPS * int(task.rpartition("-")[2]) + step - (self.random.random() < 0.1)
        end_ms = slot * LONGEST_MINUTES * 60_000
        return MachiningRequirement(
            task, "liner", 10 * (step + 1), "milling", members[place], step, STEPS, minutes, 0, end_ms
        )

    def _work(self, chain: Chain) -> Body | None:
        for task in _recent(chain):
            for place, step in task.steps.items():
                given = step.requirement
                if given.station != self.me:
                    if step.done and not step.inspected_by(self.me) and self.random.random() < 0.2:
                        return self._inspection(given)
                    continue
                number = given.operation_number
                ready = place == 0 or (place - 1 in task.steps and task.steps[place - 1].done)
                if step.procedure is None:
                    if ready:
                        return MachiningProcedure(task.task, number, "hole", "milling", (1, 2), 1)
                elif not step.done:
                    return MachiningCompletion(task.task, number, "lathe-1", 1)
                elif not step.inspected_by(self.me):
                    return QualityInspection(task.task, number, "hole", "bore", (10_000,), True)
        return None

    def _inspection(self, given: MachiningRequirement) -> QualityInspection:
        """Say of another's work that it is good, or seldom that it is not."""
        accepted = self.random.random() < 0.85
        return QualityInspection(given.task, given.operation_number, "hole", "bore", (10_000,), accepted)

    def _data(self, chain: Chain) -> Body:
        """Demand data, or offer its next version; of owners who do so at once, one is too late."""
        key = DataKey(f"liner-{self.random.randrange(8)}", "model")
        draw = self.random.random()
        if draw < 0.45:
            return DataDemand(key, 0, "hole", "steel")
        if draw < 0.55:
            return self._policy(chain, key)
        standing = chain.state.offers(key)
        version = standing[0].offer.version + 1 if standing else 1
        root = sha256(f"{self.me}/{key}/{version}".encode())
        return DataOffer(key, version, root, 1000, "", 50)

    def _policy(self, chain: Chain, key: DataKey) -> DataPolicy:
        """Set the next policy for a key or for all, or take the standing one back."""
        pattern = key if self.random.random() < 0.5 else DataKey("liner-*", "*")
        policies = [entry.policy for owner, entry in chain.state.policies() if owner == self.me]
        standing = next((policy.version for policy in policies if policy.pattern == pattern), 0)
        back = standing > 0 and self.random.random() < 0.3
        terms = PolicyTerms(roles=("machine",), purposes=("production",))
        return DataPolicy(pattern.part, pattern.kind, standing + 1, None if back else terms)


def _recent(chain: Chain) -> list[TaskState]:
    return list(islice(reversed(chain.state.tasks.values()), 2 * TASKS_OPEN))


def _goes_on(chain: Chain, task: TaskState) -> bool:
    """Say whether a task waits for a station that is still a member."""
    undone = [place for place in sorted(task.steps) if not task.steps[place].done]
    return bool(undone) and task.steps[undone[0]].requirement.station in chain.state.members


def due(owner: Owner, now_ms: int, settled: Callable[[int], bool]) -> bool:
    """Say whether `owner` may ask for something: it has an answer, or no more patience."""
    return not owner.ticket or settled(owner.ticket) or now_ms - owner.asked_ms > PATIENCE_MS

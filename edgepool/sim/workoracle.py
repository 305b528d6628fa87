"""A second opinion about work: who has earned how much and who missed a turn, told apart from the core.

Written from the protocol page, with other means: it remembers every step and every word said about it,
and works its tables out anew where the core keeps them up to date. It speaks of persons, not of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from edgepool.core.ledger.state import ChainState
from edgepool.model.ids import PeerId
from edgepool.model.record import (
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    QualityInspection,
    Record,
)
from edgepool.sim.persons import Persons

CYCLE_BLOCKS = 32
DAY_MINUTES = 1440
PAIR_MINUTES = 2880
INTERVALS = 16


@dataclass
class _Step:
    station: int
    number: int
    worth: int
    complete: bool = False
    against: list[int] = field(default_factory=list)
    backer: int | None = None
    earned: int = 0


class WorkOracle:
    """Follows the records of one chain, block by block; `persons` says whose keys its people have."""

    def __init__(self, persons: Persons) -> None:
        self._persons = persons
        self._steps: dict[tuple[str, int], _Step] = {}
        self._numbers: dict[tuple[str, int], int] = {}
        self._plans: dict[int, list[tuple[int, int]]] = {}
        self._earned: list[tuple[int, int, int, int]] = []
        """Cycle, station, countersigner and minutes of every credit, negative where one is taken back."""
        self._missed: dict[tuple[int, int], None] = {}
        self._members: dict[int, Sequence[int]] = {}
        """Who was in the pool when each cycle ended: what others owe is forgotten."""
        self._minutes: dict[tuple[int, int], int] = {}
        """What was worked out for cycles that are over."""

    def missed(self, height: int, member: PeerId) -> bool:
        """Say whether `member` missed a turn in the cycle that counts for `height`."""
        return (_cycle(height) - 2, self._persons.of(member)) in self._missed

    def miss(self, height: int, leaders: Iterable[PeerId]) -> None:
        """Note who let a turn of `height` pass."""
        for leader in leaders:
            self._missed[_cycle(height), self._persons.of(leader)] = None

    def minutes(self, height: int, member: PeerId) -> int:
        """Return what counts for `member` in the lottery of `height`."""
        counted, person = _cycle(height) - 2, self._persons.of(member)
        known = self._minutes.get((counted, person))
        if known is None:
            known = self._minutes[counted, person] = self._balance(counted, person)
        return max(0, known)

    def _balance(self, counted: int, member: int) -> int:
        """Return the minutes of `member` in that cycle, with what it owed from those before."""
        balance = 0
        for cycle in range(counted + 1):
            # What was taken back beyond what was earned is owed; what was earned is of its cycle only.
            owed = min(0, balance) if member in self._members.get(cycle - 1, ()) else 0
            balance = owed + sum(
                minutes for one, station, _, minutes in self._earned if (one, station) == (cycle, member)
            )
        return balance

    def close(self, height: int, members: Sequence[PeerId]) -> None:
        """End `height`; when a cycle ends, what is known of those who are not `members` is forgotten."""
        if _cycle(height) != _cycle(height + 1):
            persons = self._members[_cycle(height)] = [self._persons.of(member) for member in members]
            self._plans = {one: plan for one, plan in self._plans.items() if one in persons}

    def enter(self, height: int, record: Record, members: int) -> None:
        """Take a record that stands at `height`, where `members` vote."""
        body, author = record.body, self._persons.of(record.author)
        if isinstance(body, MachiningRequirement):
            station = self._persons.of(body.station)
            worth = self._free_minutes(station, body)
            worth = 0 if author == station else min(worth, DAY_MINUTES)
            self._steps[body.task, body.step] = _Step(station, body.operation_number, worth)
            self._numbers[body.task, body.operation_number] = body.step
        elif isinstance(body, MachiningCompletion):
            self._steps[body.task, self._numbers[body.task, body.operation_number]].complete = True
        elif isinstance(body, MachiningProcedure):
            before = self._steps.get((body.task, self._numbers[body.task, body.operation_number] - 1))
            if before is not None:
                self._back(height, before, author, members)
        elif isinstance(body, QualityInspection):
            step = self._steps[body.task, self._numbers[body.task, body.operation_number]]
            if body.accepted:
                self._back(height, step, author, members)
            elif author != step.station:
                self._oppose(height, step, author, members)

    def standing_problem(self, state: ChainState) -> str:
        """Say how the steps that `state` knows are of others than those counted here, or return ''."""
        key = self._persons.key
        for task in state.tasks.values():
            for place, step in task.steps.items():
                known = self._steps[task.task, place]
                backed = None if known.backer is None else (key(known.backer), known.earned)
                against = [key(one) for one in known.against]
                if (step.requirement.station, step.credit) != (key(known.station), backed):
                    return f"step {place} of task '{task.task}' is another's, or others stand for it"
                if list(step.rejecters()) != against:
                    return f"others have rejected step {place} of task '{task.task}'"
        return ""

    def _free_minutes(self, station: int, given: MachiningRequirement) -> int:
        """Measure the plan with and without this step; the difference is what it adds."""
        end = given.planned_completion_ms
        start = max(0, end - 60_000 * given.process_minutes)
        if start >= end:
            return 0
        before = self._plans.get(station, [])
        after = _union([*before, (start, end)])
        added = sum(b - a for a, b in after) - sum(b - a for a, b in before)
        while len(after) > INTERVALS:
            after = [(after[0][0], after[1][1]), *after[2:]]
        self._plans[station] = after
        return added // 60_000

    def _back(self, height: int, step: _Step, by: int, members: int) -> None:
        if by == step.station or not step.complete or step.backer is not None:
            return
        if by in step.against or 3 * len(step.against) >= members:
            return
        cycle = _cycle(height)
        used = sum(m for c, s, w, m in self._earned if (c, s, w) == (cycle, step.station, by) and m > 0)
        minutes = min(step.worth, PAIR_MINUTES - used)
        if minutes > 0:
            step.backer, step.earned = by, minutes
            self._earned.append((cycle, step.station, by, minutes))

    def _oppose(self, height: int, step: _Step, by: int, members: int) -> None:
        if by not in step.against:
            step.against.append(by)
        if step.backer is None or not step.earned:
            return
        if step.backer == by or 3 * len(step.against) >= members:
            self._earned.append((_cycle(height), step.station, step.backer, -step.earned))
            step.earned = 0


def _cycle(height: int) -> int:
    return (height - 1) // CYCLE_BLOCKS


def _union(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined

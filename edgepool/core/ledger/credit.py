"""Work that members have proved, cycle by cycle: the M of proof of manufacturing [S3.11], formula (2).

A completed step earns its station minutes once, and only if others have a part in it:

* somebody else released it: a requirement by the station itself earns nothing;
* its planned time is its own: what overlaps with other plans for the same station counts once, and a
  step counts for a day at most. Plans are compared with each other, never with a clock;
* somebody else stands for it, once it is complete: the next step's station by starting that step, or any
  member by an accepted inspection. The station's own inspections count for nothing here;
* the minutes that one member stands for, of one station, are limited in each cycle.

Credit is taken back when who stood for a step rejects it, or more members do than can be faulty. What is
below zero at the end of a cycle is owed in the next.

Beside it stands who has missed a turn. Everything is integers in plain tables of bounded size, entered
record by record, so that whoever has the same blocks has the same account.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgepool.core.ledger.facts import StepState, TaskState
from edgepool.core.ledger.support import rekeyed
from edgepool.model.ids import PeerId
from edgepool.model.record import MachiningProcedure, MachiningRequirement, QualityInspection, Record

CYCLE_BLOCKS = 32
"""How many heights a cycle of the lottery has; cycle 0 is heights 1 to 32."""
MAX_STEP_MINUTES = 24 * 60
"""The most that one step can earn, in minutes."""
PAIR_MINUTES = 2 * MAX_STEP_MINUTES
"""The most that one member can stand for of one station's work in a cycle, in minutes.

Two of the longest steps: 32 blocks of an unhurried pool hold a few steps, so honest neighbours on a
route seldom come to it, and two who work for each other only on paper never get beyond it.
"""
MAX_BOOKED = 16
"""How many separate intervals of planned time are kept for a station; the two oldest become one."""
MINUTE_MS = 60_000


def cycle_of(height: int) -> int:
    """Return the cycle that `height` (from 1) lies in."""
    return (height - 1) // CYCLE_BLOCKS


class WorkAccount:
    """Who has earned what, and who has missed turns, as far as the lottery can still ask for it.

    `minutes` is cycle -> member -> credited minutes, below zero where more was taken back than earned;
    `missed` is cycle -> member -> turns let pass; both have the last three cycles at most. `pairs` is
    station -> countersigner -> minutes in the cycle of the next height. `booked` is station -> planned
    time as (start, end) in milliseconds: rising, apart from each other, at most MAX_BOOKED.
    """

    def __init__(self) -> None:
        self.minutes: dict[int, dict[PeerId, int]] = {}
        self.missed: dict[int, dict[PeerId, int]] = {}
        self.pairs: dict[PeerId, dict[PeerId, int]] = {}
        self.booked: dict[PeerId, tuple[tuple[int, int], ...]] = {}

    def enter(self, height: int, task: TaskState, record: Record, faulty: int) -> None:
        """Take account of a record of `task` that has just been entered into it at `height`.

        `faulty` is how many of the members may lie. Records of other kinds change nothing.
        """
        body, author = record.body, record.author
        match body:
            case MachiningRequirement():
                free = self._book(body)
                task.steps[body.step].earns = 0 if author == body.station else free
            case MachiningProcedure():
                before = task.steps.get(task.operations[body.operation_number] - 1)
                if before is not None:
                    self._stand_for(height, before, author, faulty)
            case QualityInspection():
                step = task.steps[task.operations[body.operation_number]]
                if body.accepted:
                    self._stand_for(height, step, author, faulty)
                else:
                    self._reject(height, step, author, faulty)
            case _:
                pass

    def miss(self, height: int, leaders: Sequence[PeerId]) -> None:
        """Note that `leaders` led rounds of `height` before the one whose block stands."""
        if leaders:
            missed = self.missed.setdefault(cycle_of(height), {})
            for leader in leaders:
                missed[leader] = missed.get(leader, 0) + 1

    def close(self, height: int, members: Sequence[PeerId]) -> None:
        """End `height`, and with its last height a cycle: debts move on, what is too old is forgotten.

        Of who is not among `members`, nothing is booked or owed any more.
        """
        ended, following = cycle_of(height), cycle_of(height + 1)
        if ended == following:
            return
        earned = self.minutes.get(ended, {})
        owed = {member: earned[member] for member in members if earned.get(member, 0) < 0}
        if owed:
            self.minutes[following] = owed
        self.minutes = {cycle: work for cycle, work in self.minutes.items() if cycle >= following - 2}
        self.missed = {cycle: turns for cycle, turns in self.missed.items() if cycle >= following - 2}
        self.pairs = {}
        self.booked = {member: self.booked[member] for member in members if member in self.booked}

    def pass_on(self, former: PeerId, heir: PeerId) -> None:
        """Give all that `former` has earned, missed, vouched for and booked to `heir`, its new key."""
        for tables in (self.minutes, self.missed, self.pairs):
            for name, table in tables.items():
                tables[name] = rekeyed(table, former, heir)  # type: ignore[index]
        self.pairs = rekeyed(self.pairs, former, heir)
        self.booked = rekeyed(self.booked, former, heir)

    def work_for(self, height: int, members: Sequence[PeerId]) -> dict[PeerId, int]:
        """Return the minutes that count for the lottery of `height`, in the order of `members`.

        They are those of the cycle before last, so that they were fixed before the beacon of
        `height` was known; empty before there is such a cycle. Who has earned none is left out.
        """
        work = self.minutes.get(cycle_of(height) - 2, {})
        return {member: work[member] for member in members if work.get(member)}

    def missed_for(self, height: int, members: Sequence[PeerId]) -> tuple[PeerId, ...]:
        """Return who of `members` missed a turn in the cycle that counts for `height`, in their order."""
        missed = self.missed.get(cycle_of(height) - 2, {})
        return tuple(member for member in members if member in missed)

    def _book(self, given: MachiningRequirement) -> int:
        """Book the planned time of a step; return the minutes of it that were free, at most a day."""
        end = given.planned_completion_ms
        start = max(0, end - given.process_minutes * MINUTE_MS)
        if start == end:
            return 0
        free, low, high = end - start, start, end
        apart = []
        for one in self.booked.get(given.station, ()):
            if one[1] < start or one[0] > end:
                apart.append(one)
                continue
            free -= min(one[1], end) - max(one[0], start)
            low, high = min(low, one[0]), max(high, one[1])
        booked = sorted([*apart, (low, high)])
        if len(booked) > MAX_BOOKED:
            booked[:2] = [(booked[0][0], booked[1][1])]
        self.booked[given.station] = tuple(booked)
        return min(free // MINUTE_MS, MAX_STEP_MINUTES)

    def _stand_for(self, height: int, step: StepState, by: PeerId, faulty: int) -> None:
        """Credit the station of `step`, unless `by` may not stand for it or has no more to give."""
        station = step.requirement.station
        if by == station or not step.done or step.credit is not None:
            return
        rejecters = step.rejecters()
        if by in rejecters or len(rejecters) > faulty:
            return
        given = self.pairs.get(station, {})
        minutes = min(step.earns, PAIR_MINUTES - given.get(by, 0))
        if minutes > 0:
            self.pairs.setdefault(station, given)[by] = given.get(by, 0) + minutes
            step.credit = (by, minutes)
            self._add(height, station, minutes)

    def _reject(self, height: int, step: StepState, by: PeerId, faulty: int) -> None:
        """Take the credit of `step` back if its countersigner says so, or an honest member among others."""
        if step.credit is None:
            return
        countersigner, minutes = step.credit
        if by == countersigner or len(step.rejecters()) > faulty:
            step.credit = (countersigner, 0)
            if minutes:
                self._add(height, step.requirement.station, -minutes)

    def _add(self, height: int, station: PeerId, minutes: int) -> None:
        account = self.minutes.setdefault(cycle_of(height), {})
        account[station] = account.get(station, 0) + minutes

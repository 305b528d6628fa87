"""Work that members have proved, cycle by cycle: the M of proof of manufacturing [S3.11], formula (2).

This is the first form of the rule, and it grows with the ledger. A completed step earns its station
the planned minutes of the step, at most a day, once, when somebody else stands for it:

* the station of the next step, being another member, by starting that step;
* for the last step, an accepted inspection, if the step before was another member's. A task with a
  single step earns nothing: only the station itself would speak for it.

Not yet asked for, and to come with the records that they need: an inspection by another member, a cap
by the station's capacity, a limit for each pair of members, and taking credit back on scrap.
"""

from __future__ import annotations

from edgepool.core.ledger.facts import StepState, TaskState
from edgepool.model.ids import PeerId
from edgepool.model.record import (
    Body,
    MachiningCompletion,
    MachiningProcedure,
    QualityInspection,
)

CYCLE_BLOCKS = 32
"""How many heights a cycle of the lottery has; cycle 0 is heights 1 to 32."""
MAX_STEP_MINUTES = 24 * 60
"""The most that one step can earn, in minutes."""


def cycle_of(height: int) -> int:
    """Return the cycle that `height` (from 1) lies in."""
    return (height - 1) // CYCLE_BLOCKS


class WorkAccount:
    """Credited minutes of each member in the cycles that the lottery can still ask for."""

    def __init__(self, members: tuple[PeerId, ...]) -> None:
        self._members = members
        self._minutes: dict[int, dict[PeerId, int]] = {}

    def add(self, height: int, station: PeerId, minutes: int) -> None:
        """Credit `minutes` of work to `station` in the cycle of `height`."""
        account = self._minutes.setdefault(cycle_of(height), {})
        account[station] = account.get(station, 0) + minutes

    def close(self, height: int) -> None:
        """Forget what nobody can ask for once `height` stands: what is two cycles behind the next."""
        oldest = cycle_of(height + 1) - 2
        self._minutes = {cycle: work for cycle, work in self._minutes.items() if cycle >= oldest}

    def for_height(self, height: int) -> dict[PeerId, int]:
        """Return the minutes that count for the lottery of `height`, in the order of the members.

        They are those of the cycle before last, so that they were fixed before the beacon of
        `height` was known; empty before there is such a cycle. Who has earned none is left out.
        """
        work = self._minutes.get(cycle_of(height) - 2, {})
        return {member: work[member] for member in self._members if work.get(member)}


def take_credit(task: TaskState, body: Body) -> tuple[PeerId, int] | None:
    """Return the station and the minutes that `body`, just entered into `task`, earns; None if none.

    Marks the step as credited.
    """
    match body:
        case MachiningProcedure():
            following = task.operations[body.operation_number]
            place = following - 1
            if place < 0 or _station(task, following) == _station(task, place):
                return None
        case MachiningCompletion() | QualityInspection():
            place = task.operations[body.operation_number]
            if place != task.steps_planned - 1 or place == 0:
                return None
            if _station(task, place) == _station(task, place - 1) or not _accepted(task.steps[place]):
                return None
        case _:
            return None
    step = task.steps[place]
    if step.credited or not step.done:
        return None
    step.credited = True
    return step.requirement.station, min(step.requirement.process_minutes, MAX_STEP_MINUTES)


def _station(task: TaskState, place: int) -> PeerId:
    return task.steps[place].requirement.station


def _accepted(step: StepState) -> bool:
    return any(inspection.accepted for inspection in step.inspections)

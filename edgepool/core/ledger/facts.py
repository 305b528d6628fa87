"""What the records of a chain say, as tables: tasks with their steps, offers, and which records are in.

`Facts` is the one place that enters a record. A chain's state owns one; a draft lays a second, empty
one over it, which holds only what the draft itself changed. Nothing here judges: whether a record may
be entered is for the contracts, which read facts and never write them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from edgepool.core.machine import RecordRef
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis
from edgepool.model.record import (
    DataDemand,
    DataOffer,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    QualityInspection,
    SignedRecord,
    TransmissionConfirmation,
)
from edgepool.model.twin import DataKey


@dataclass(frozen=True, slots=True)
class OfferEntry:
    """A data offer that stands on a chain: where its record is, what it says, and whose it is."""

    ref: RecordRef
    offer: DataOffer
    holder: PeerId


_Offered = tuple[int, int, DataOffer, PeerId]
"""Height, index, offer and holder: an OfferEntry as it is kept, since few of many are ever asked for."""


@dataclass(slots=True)
class StepState:
    """One machined step of a task, as far as the chain knows; `credited` once its work counted."""

    requirement: MachiningRequirement
    procedure: MachiningProcedure | None = None
    completion: MachiningCompletion | None = None
    inspections: list[QualityInspection] = field(default_factory=list)
    credited: bool = False

    @property
    def done(self) -> bool:
        """Say whether the station has reported the completion of this step."""
        return self.completion is not None

    def copy(self) -> StepState:
        """Return a step that can change without this one changing."""
        return StepState(
            self.requirement, self.procedure, self.completion, list(self.inspections), self.credited
        )


@dataclass(slots=True)
class TaskState:
    """A manufacturing task: its part, how many steps it has, and the steps known so far.

    `steps` is keyed by the step's place in the route, from 0 to `steps_planned` - 1; `operations`
    leads from an operation number to that place.
    """

    task: str
    part: str
    steps_planned: int
    steps: dict[int, StepState] = field(default_factory=dict)
    operations: dict[int, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Say whether all planned steps are known and completed."""
        return len(self.steps) == self.steps_planned and all(step.done for step in self.steps.values())

    def step_of(self, operation_number: int) -> StepState | None:
        """Return the step with this operation number, or None."""
        place = self.operations.get(operation_number)
        return None if place is None else self.steps[place]

    def copy(self) -> TaskState:
        """Return a task whose tables can change without this one's; the steps themselves are shared."""
        return TaskState(self.task, self.part, self.steps_planned, dict(self.steps), dict(self.operations))


class Facts:
    """The tables of one chain, or a layer over those of another `Facts` that leaves them untouched.

    Reading costs the same at any size; a layer costs what is entered into it.
    """

    def __init__(self, genesis: Genesis, below: Facts | None = None) -> None:
        self.network: str = genesis.invitation.network
        self.chain: ChainId = genesis.chain if below is None else below.chain
        self.coordinator: PeerId = genesis.invitation.coordinator
        self._members: dict[PeerId, None] = (
            dict.fromkeys(genesis.members) if below is None else below._members
        )
        self.tasks: dict[str, TaskState] = {}
        self._below = below
        self._genesis = genesis
        self._records: set[bytes] = set()
        self._newest: dict[DataKey, int] = {}
        self._offers: dict[DataKey, dict[int, list[_Offered]]] = {}

    def layer(self) -> Facts:
        """Return an empty layer over these facts; it is good for as long as these do not change."""
        return Facts(self._genesis, self)

    def is_member(self, peer: PeerId) -> bool:
        """Say whether `peer` votes on this chain."""
        return peer in self._members

    def has_record(self, record_id: bytes) -> bool:
        """Say whether the record with this id has been entered."""
        return record_id in self._records or (self._below is not None and self._below.has_record(record_id))

    def task(self, task: str) -> TaskState | None:
        """Return the task of this number, or None."""
        found = self.tasks.get(task)
        return self._below.task(task) if found is None and self._below is not None else found

    def newest_version(self, key: DataKey) -> int:
        """Return the newest version of `key` that is offered here; 0 if none is."""
        found = self._newest.get(key, 0)
        return found or (self._below.newest_version(key) if self._below is not None else 0)

    def offers(self, key: DataKey, version: int = 0) -> tuple[OfferEntry, ...]:
        """Return the offers of one version of `key`, the oldest first; version 0 is the newest."""
        version = version or self.newest_version(key)
        own = self._entries(self._offers.get(key, {}).get(version, ()))
        return self._below.offers(key, version) + own if self._below is not None else own

    def offers_of(self, key: DataKey) -> tuple[OfferEntry, ...]:
        """Return the offers of all versions of `key`, the oldest version first."""
        own = self._entries(offered for of_one in self._offers.get(key, {}).values() for offered in of_one)
        return self._below.offers_of(key) + own if self._below is not None else own

    def _entries(self, offered: Iterable[_Offered]) -> tuple[OfferEntry, ...]:
        return tuple(
            OfferEntry(RecordRef(self.chain, height, index), offer, holder)
            for height, index, offer, holder in offered
        )

    def enter(self, height: int, index: int, signed: SignedRecord) -> None:
        """Enter a record that the contracts have let pass; `height` and `index` are its place."""
        self._records.add(signed.id)
        body = signed.record.body
        match body:
            case MachiningRequirement():
                self._enter_requirement(body)
            case MachiningProcedure():
                self._changeable_step(body.task, body.operation_number).procedure = body
            case MachiningCompletion():
                self._changeable_step(body.task, body.operation_number).completion = body
            case QualityInspection():
                self._changeable_step(body.task, body.operation_number).inspections.append(body)
            case DataOffer():
                self._newest[body.key] = body.version
                offered = (height, index, body, signed.record.author)
                self._offers.setdefault(body.key, {}).setdefault(body.version, []).append(offered)
            case DataDemand() | TransmissionConfirmation():
                pass  # that they are on the chain is all that they do
            case _:
                assert_never(body)

    def _enter_requirement(self, body: MachiningRequirement) -> None:
        task = self._changeable_task(body.task)
        if task is None:
            task = self.tasks[body.task] = TaskState(body.task, body.part, body.steps)
        task.steps[body.step] = StepState(body)
        task.operations[body.operation_number] = body.step

    def _changeable_task(self, name: str) -> TaskState | None:
        task = self.tasks.get(name)
        if task is None and self._below is not None:
            shared = self._below.task(name)
            if shared is not None:
                task = self.tasks[name] = shared.copy()
        return task

    def _changeable_step(self, name: str, operation_number: int) -> StepState:
        task = self._changeable_task(name)
        assert task is not None, "entered before its requirement"
        place = task.operations[operation_number]
        if self._below is not None:
            task.steps[place] = task.steps[place].copy()
        return task.steps[place]

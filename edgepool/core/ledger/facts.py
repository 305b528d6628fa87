"""What the records of a chain say, as tables: tasks with their steps, offers, members, and the rest.

`Facts` is the one place that enters a record. A chain's state owns one; a draft lays a second, empty
one over it, which holds only what the draft itself changed. Nothing here judges: whether a record may
be entered is for the contracts, which read facts and never write them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import assert_never

from edgepool.core.ledger.root import Entry, Key
from edgepool.core.ledger.roster import Roster, first_roster
from edgepool.core.ledger.trust import Trust
from edgepool.core.machine import RecordRef
from edgepool.core.rights import Standing, Subject
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.policy import DataPolicy, fits, precision
from edgepool.model.pool import Genesis, PoolKind
from edgepool.model.record import (
    ChainAnchor,
    Complaint,
    DataDemand,
    DataOffer,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    MembershipChange,
    QualityInspection,
    SignedRecord,
    Statement,
    TransferReceipt,
    TransmissionConfirmation,
)
from edgepool.model.succession import KeySuccession
from edgepool.model.trust import TrustChange
from edgepool.model.twin import DataKey
from edgepool.model.vote import Equivocation

AUTHORS_KNOWN = 64
"""How many answers about who may write are kept, as long as the roster stays the same."""
MAX_ANCHORED = 256
"""How many chains of one author are known by the heights it has anchored, the last ones."""


MAX_POLICIES = 4096
"""How many policies a chain can have, of all authors."""
MAX_POLICIES_OF = 128
"""How many policies one author can have on a chain."""


@dataclass(frozen=True, slots=True)
class OfferEntry:
    """A data offer that stands on a chain: where its record is, what it says, and whose it is."""

    ref: RecordRef
    offer: DataOffer
    holder: PeerId


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A data policy that stands on a chain: where its record is, and what it says."""

    height: int
    index: int
    policy: DataPolicy


_NOTHING: Mapping[str, bytes] = MappingProxyType({})

Offered = tuple[int, int, DataOffer, PeerId]
"""Height, index, offer and holder: an OfferEntry as it is kept, since few of many are ever asked for."""


@dataclass(slots=True)
class StepState:
    """One machined step of a task, as far as the chain knows.

    `inspections` are (author, inspection) in their order. The work account sets the next two: `earns`
    is how many minutes the step can earn, `credit` is (countersigner, minutes earned) once somebody
    stood for it, with 0 minutes once that was taken back. `changed_at` is the height of its last record.
    """

    requirement: MachiningRequirement
    procedure: MachiningProcedure | None = None
    completion: MachiningCompletion | None = None
    inspections: list[tuple[PeerId, QualityInspection]] = field(default_factory=list)
    earns: int = 0
    credit: tuple[PeerId, int] | None = None
    changed_at: int = 0

    @property
    def done(self) -> bool:
        """Say whether the station has reported the completion of this step."""
        return self.completion is not None

    def inspected_by(self, author: PeerId) -> list[QualityInspection]:
        """Return the inspections of `author`, the oldest first."""
        return [inspection for one, inspection in self.inspections if one == author]

    def rejecters(self) -> tuple[PeerId, ...]:
        """Return who has not accepted something of this step, beside its own station."""
        own = self.requirement.station
        rejected = (one for one, inspection in self.inspections if not inspection.accepted and one != own)
        return tuple(dict.fromkeys(rejected))

    def copy(self) -> StepState:
        """Return a step that can change without this one changing."""
        return replace(self, inspections=list(self.inspections))


@dataclass(slots=True)
class TaskState:
    """A manufacturing task: its part, how many steps it has, and the steps known so far.

    `steps` is keyed by the step's place in the route, from 0 to `steps_planned` - 1; `operations`
    leads from an operation number to that place. `entered_at` is the height of its first record.
    """

    task: str
    part: str
    steps_planned: int
    steps: dict[int, StepState] = field(default_factory=dict)
    operations: dict[int, int] = field(default_factory=dict)
    entered_at: int = 0

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
        return replace(self, steps=dict(self.steps), operations=dict(self.operations))


class Facts:
    """The tables of one chain, or a layer over those of another `Facts` that leaves them untouched.

    Reading costs the same at any size; a layer costs what is entered into it. `height` is that of the
    last block, also while the next one is entered.
    """

    def __init__(self, genesis: Genesis, below: Facts | None = None) -> None:
        self.network: str = genesis.invitation.network
        self.chain: ChainId = genesis.chain if below is None else below.chain
        self.kind: PoolKind = genesis.invitation.kind
        self.height: int = 0 if below is None else below.height
        self.horizon: int = 0 if below is None else below.horizon
        self.roster: Roster = first_roster(genesis) if below is None else below.roster
        self.trust: Trust = Trust() if below is None else below.trust
        self.tasks: dict[str, TaskState] = {}
        self._authors_of: Roster = self.roster if below is None else below._authors_of
        self._authors: dict[PeerId, tuple[Subject, tuple[Standing, ...]]] = (
            {} if below is None else below._authors
        )
        self._below = below
        self._genesis = genesis
        self._records: set[bytes] = set()
        self._newest: dict[DataKey, int] = {}
        self._offers: dict[DataKey, dict[int, list[Offered]]] = {}
        self._anchors: dict[PeerId, dict[ChainId, int]] = {}
        self._values: dict[str, dict[str, bytes]] = {}
        self._policies: dict[PeerId, dict[DataKey, PolicyEntry]] = {}

    def layer(self) -> Facts:
        """Return an empty layer over these facts; it is good for as long as these do not change."""
        return Facts(self._genesis, self)

    @property
    def coordinator(self) -> PeerId:
        """Whoever formed the pool, under its present key."""
        return self.roster.coordinator

    def is_member(self, peer: PeerId) -> bool:
        """Say whether `peer` votes on this chain."""
        return self.roster.is_member(peer)

    def may_write(self, peer: PeerId) -> bool:
        """Say whether `peer` votes on the next height, or on the one after it."""
        return self.roster.may_write(peer)

    def author(self, peer: PeerId) -> tuple[Subject, tuple[Standing, ...]]:
        """Return who `peer` is by this chain, and on what footings it may write here; () if on none.

        Whoever forms a pool is its coordinator, whatever else it is in it.
        """
        if self._authors_of is not self.roster:
            self._authors_of, self._authors = self.roster, {}
        found = self._authors.get(peer)
        if found is None:
            found = self._author(peer)
            if len(self._authors) < AUTHORS_KNOWN:
                self._authors[peer] = found
        return found

    def _author(self, peer: PeerId) -> tuple[Subject, tuple[Standing, ...]]:
        own: tuple[Standing, ...] = ("coordinator",) if peer == self.coordinator else ()
        role = self.roster.roles.get(peer)
        if role is not None:
            return Subject(peer, "coordinator" if own else role), ("member", *own)
        if own:
            return Subject(peer, "coordinator"), own
        observer = self.roster.observing.get(peer)
        return (Subject(peer), ()) if observer is None else (Subject(peer, observer.role), ("observer",))

    def has_record(self, record_id: bytes) -> bool:
        """Say whether the record with this id has been entered, above the horizon."""
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

    def _entries(self, offered: Iterable[Offered]) -> tuple[OfferEntry, ...]:
        return tuple(
            OfferEntry(RecordRef(self.chain, height, index), offer, holder)
            for height, index, offer, holder in offered
        )

    def anchored(self, author: PeerId, sub_chain: ChainId) -> int:
        """Return the height up to which `author` has anchored `sub_chain`; 0 if that is not known."""
        return self._anchors_of(author).get(sub_chain, 0)

    def values(self, contract: str) -> Mapping[str, bytes]:
        """Return what the users' contract of this name has written, by key, in the order of the keys."""
        return MappingProxyType(self._values_of(contract))

    def policies(self) -> dict[PeerId, dict[DataKey, PolicyEntry]]:
        """Return all policies by author and pattern; what it returns must not be changed."""
        return self._policies if self._below is None else self._below.policies() | self._policies

    def policies_of(self, owner: PeerId) -> Mapping[DataKey, PolicyEntry]:
        """Return the policies of one author by their patterns."""
        found = self._policies.get(owner)
        if found is None:
            found = self._below.policies_of(owner) if self._below is not None else {}  # type: ignore[assignment]
        return found or {}

    def policy(self, owner: PeerId, key: DataKey) -> PolicyEntry | None:
        """Return the most precise policy of `owner` that is for `key`, or None [S2.3]."""
        fitting = [pattern for pattern in self.policies_of(owner) if fits(pattern, key)]
        return self.policies_of(owner)[max(fitting, key=precision)] if fitting else None

    def enter(
        self, height: int, index: int, signed: SignedRecord, effects: Mapping[str, bytes] = _NOTHING
    ) -> None:
        """Enter a record that the contracts have let pass; `height` and `index` are its place.

        `effects` is what a users' contract writes on account of a statement.
        """
        self._records.add(signed.id)
        body, author = signed.record.body, signed.record.author
        match body:
            case MachiningRequirement():
                self._enter_requirement(height, body)
            case MachiningProcedure():
                step = self._changeable_step(height, body.task, body.operation_number)
                step.procedure = body
                self._changes(("step", body.task, step.requirement.step - 1))  # it may earn credit now
            case MachiningCompletion():
                self._changeable_step(height, body.task, body.operation_number).completion = body
            case QualityInspection():
                step = self._changeable_step(height, body.task, body.operation_number)
                self._comes(inspection_entry(body.task, step, len(step.inspections), (author, body)))
                step.inspections.append((author, body))
            case DataOffer():
                self._enter_offer((height, index, body, author))
            case MembershipChange():
                if body.number == self.roster.number:  # else it says again what is decided
                    self.roster = self.roster.supported(author, body)
            case TrustChange():
                self.trust = self.trust.supported(author, body, self.roster.voters, height)
            case Equivocation():
                self.roster = self.roster.convict(self.roster.heir(body.member))
            case ChainAnchor():
                self._enter_anchor(author, body)
            case Statement():
                self._write(body.contract, effects)
            case KeySuccession():
                self.roster = self.roster.with_new_key(author, body)
            case DataPolicy():
                self._enter_policy(PolicyEntry(height, index, body), author)
            case DataDemand() | TransmissionConfirmation() | TransferReceipt() | Complaint():
                pass  # that they are on the chain is all that they do
            case _:
                assert_never(body)

    def _changes(self, key: Key) -> None:
        """Called before the entry of `key` changes, comes or goes."""

    def _comes(self, entry: Entry) -> None:
        """Called when an entry comes that will never change."""

    def _enter_requirement(self, height: int, body: MachiningRequirement) -> None:
        task = self._changeable_task(body.task)
        if task is None:
            task = TaskState(body.task, body.part, body.steps, entered_at=height)
            self._comes(task_entry(task))
            self.tasks[body.task] = task
        self._changes(("step", body.task, body.step))
        task.steps[body.step] = StepState(body, changed_at=height)
        task.operations[body.operation_number] = body.step

    def _enter_offer(self, offered: Offered) -> None:
        offer = offered[2]
        self._comes(offer_entry(offered))
        self._newest[offer.key] = max(offer.version, self.newest_version(offer.key))
        versions = self._offers.get(offer.key)
        if versions is None:
            self._offers[offer.key] = {offer.version: [offered]}
        else:
            versions.setdefault(offer.version, []).append(offered)

    def _enter_policy(self, entry: PolicyEntry, author: PeerId) -> None:
        pattern = entry.policy.pattern
        self._changes(("policy", author, pattern))
        known = dict(self.policies_of(author))
        known.pop(pattern, None)
        if entry.policy.terms is not None:
            known[pattern] = entry
        self._policies[author] = known

    def _enter_anchor(self, author: PeerId, body: ChainAnchor) -> None:
        """Note the height. The chain that was anchored last stands last; of too many the first goes."""
        self._changes(("anchors", author, ""))
        known = dict(self._anchors_of(author))
        known.pop(body.sub_chain, None)
        known[body.sub_chain] = body.certificate.height
        self._anchors[author] = dict(list(known.items())[-MAX_ANCHORED:])

    def _write(self, contract: str, effects: Mapping[str, bytes]) -> None:
        values = dict(self._values_of(contract))
        for key, value in effects.items():
            self._changes(("value", contract, key))
            values[key] = value
        self._values[contract] = {key: values[key] for key in sorted(values) if values[key]}

    def _anchors_of(self, author: PeerId) -> dict[ChainId, int]:
        found = self._anchors.get(author)
        if found is None:
            found = self._below._anchors_of(author) if self._below is not None else {}
        return found

    def _values_of(self, contract: str) -> dict[str, bytes]:
        found = self._values.get(contract)
        if found is None:
            found = self._below._values_of(contract) if self._below is not None else {}
        return found

    def _changeable_task(self, name: str) -> TaskState | None:
        task = self.tasks.get(name)
        if task is None and self._below is not None:
            shared = self._below.task(name)
            if shared is not None:
                task = self.tasks[name] = shared.copy()
        return task

    def _changeable_step(self, height: int, name: str, operation_number: int) -> StepState:
        task = self._changeable_task(name)
        assert task is not None, "entered before its requirement"
        place = task.operations[operation_number]
        self._changes(("step", name, place))
        if self._below is not None:
            task.steps[place] = task.steps[place].copy()
        step = task.steps[place]
        step.changed_at = height
        return step


def task_entry(task: TaskState) -> Entry:
    """Return the entry of a task in the state root; its steps have entries of their own."""
    return ("task", task.task, task.part, task.steps_planned, task.entered_at)


def step_entry(task: str, step: StepState) -> Entry:
    """Return the entry of a step; its inspections have entries of their own."""
    records = (step.requirement, step.procedure, step.completion)
    return ("step", task, step.requirement.step, *records, step.earns, step.credit, step.changed_at)


def inspection_entry(
    task: str, step: StepState, number: int, made: tuple[PeerId, QualityInspection]
) -> Entry:
    """Return the entry of inspection `number` (from 0) of a step."""
    return ("inspection", task, step.requirement.step, number, *made)


def offer_entry(offered: Offered) -> Entry:
    """Return the entry of an offer."""
    return ("offer", *offered)

"""A chain's state as bytes, for who cannot replay all blocks; the header after it certifies it.

The bytes depend on the state alone: every table is written in one order, and one in any other order is
no snapshot. Reading one checks its form. That it is true is for the reader to check, by the state root
that comes out, since only the pool's members can say.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any

from msgspec import Meta

from edgepool.core.ledger.chainfacts import ChainFacts
from edgepool.core.ledger.credit import MAX_BOOKED, WorkAccount
from edgepool.core.ledger.facts import MAX_ANCHORED, MAX_POLICIES, PolicyEntry, StepState, TaskState
from edgepool.core.ledger.roster import Roster
from edgepool.core.ledger.statements import MAX_KEY_CHARACTERS, MAX_NAMES, MAX_VALUE_BYTES, MAX_VALUES
from edgepool.core.ledger.trust import Trust
from edgepool.core.ledger.window import WINDOW_BLOCKS, WINDOW_RECORDS
from edgepool.errors import DecodeError
from edgepool.model.block import MAX_BLOCK_RECORDS
from edgepool.model.codec import Wire, decode, encode
from edgepool.model.fields import (
    ChainText,
    Hash,
    Height,
    KnownHeight,
    MaybePeer,
    Name,
    PeerText,
    Signed64,
    TimeMs,
)
from edgepool.model.message import MAX_SNAPSHOT_BYTES
from edgepool.model.policy import DataPolicy
from edgepool.model.pool import MAX_MEMBERS
from edgepool.model.record import (
    RECORD_KINDS,
    DataOffer,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    QualityInspection,
)

_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Cycles = Annotated[
    dict[_Count, Annotated[dict[PeerText, Signed64], Meta(max_length=256)]], Meta(max_length=4)
]
_Pairs = Annotated[
    dict[PeerText, Annotated[dict[PeerText, _Count], Meta(max_length=4096)]], Meta(max_length=4096)
]
_Booked = Annotated[
    dict[PeerText, Annotated[tuple[tuple[TimeMs, TimeMs], ...], Meta(max_length=MAX_BOOKED)]],
    Meta(max_length=4096),
]
_Place = Annotated[int, Meta(ge=0, lt=MAX_BLOCK_RECORDS)]


class Turns(Wire, frozen=True):
    """A member in the lottery: its beacon tip, how often it has revealed, and the blocks it packed."""

    beacon_tip: Hash
    reveals: _Count
    packed: _Count


class Work(Wire, frozen=True):
    """A work account, see there."""

    minutes: _Cycles
    missed: _Cycles
    pairs: _Pairs
    booked: _Booked


class Core(Wire, frozen=True):
    """What is small of a state, hashed whole into each state root.

    `turns` are those of the present members, in their order; `counts` are by RECORD_KINDS.
    """

    version: _Count
    chain: ChainText
    height: KnownHeight
    last_block_id: Annotated[bytes, Meta(min_length=20, max_length=32)]
    beacon: Hash
    time_ms: TimeMs
    last_packer: MaybePeer
    horizon: KnownHeight
    roster: Roster
    turns: Annotated[tuple[Turns, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
    work: Work
    counts: Annotated[tuple[_Count, ...], Meta(min_length=len(RECORD_KINDS), max_length=len(RECORD_KINDS))]


class _Step(Wire, frozen=True):
    requirement: MachiningRequirement
    procedure: MachiningProcedure | None
    completion: MachiningCompletion | None
    inspections: Annotated[tuple[tuple[PeerText, QualityInspection], ...], Meta(max_length=2**16)]
    earns: _Count
    credit: tuple[PeerText, _Count] | None
    changed_at: KnownHeight


class _Task(Wire, frozen=True):
    task: Name
    part: Name
    steps_planned: Annotated[int, Meta(ge=1, le=256)]
    entered_at: KnownHeight
    steps: Annotated[tuple[_Step, ...], Meta(min_length=1, max_length=256)]


_Anchors = Annotated[tuple[tuple[ChainText, Height], ...], Meta(min_length=1, max_length=MAX_ANCHORED)]
_Key = Annotated[str, Meta(min_length=1, max_length=MAX_KEY_CHARACTERS)]
_Value = Annotated[bytes, Meta(min_length=1, max_length=MAX_VALUE_BYTES)]
_Values = Annotated[tuple[tuple[_Key, _Value], ...], Meta(min_length=1, max_length=MAX_VALUES)]


class Snapshot(Wire, frozen=True):
    """A whole state. `blocks` says how many records each block of the window has."""

    core: Core
    blocks: Annotated[tuple[_Count, ...], Meta(max_length=WINDOW_BLOCKS)]
    tasks: tuple[_Task, ...]
    offers: tuple[tuple[Height, _Place, DataOffer, PeerText], ...]
    anchors: Annotated[tuple[tuple[PeerText, _Anchors], ...], Meta(max_length=MAX_MEMBERS)]
    values: Annotated[tuple[tuple[Name, _Values], ...], Meta(max_length=MAX_NAMES)]
    trust: Trust
    policies: Annotated[
        tuple[tuple[PeerText, Height, _Place, DataPolicy], ...], Meta(max_length=MAX_POLICIES)
    ]


def write_snapshot(core: Core, facts: ChainFacts) -> bytes:
    """Return the bytes of the state that consists of `core` and `facts`."""
    tasks = sorted(facts.tasks.values(), key=lambda task: (task.entered_at, task.task))
    return encode(
        Snapshot(
            core,
            facts.window.counts,
            tuple(_saved(task) for task in tasks),
            tuple(facts.offered()),
            tuple(facts.anchors()),
            tuple(facts.written()),
            facts.trust,
            tuple((author, one.height, one.index, one.policy) for author, one in facts.ruled()),
        )
    )


def read_snapshot(data: bytes) -> Snapshot:
    """Return the snapshot that `data` encodes; DecodeError if it is none in its form."""
    snapshot = decode(Snapshot, data, MAX_SNAPSHOT_BYTES)
    core = snapshot.core
    problem = core.roster.problem() or snapshot.trust.problem()
    if problem:
        raise DecodeError(problem)
    if len(core.turns) != len(core.roster.present):
        raise DecodeError("its turns in the lottery are not those of its members")
    if len(snapshot.blocks) != core.height - core.horizon or sum(snapshot.blocks) > WINDOW_RECORDS:
        raise DecodeError("its blocks are not those from its horizon to its height")
    _rising("tasks", ((task.entered_at, task.task) for task in snapshot.tasks))
    _rising("tasks' numbers", sorted(task.task for task in snapshot.tasks))
    _rising("offers", (offered[:2] for offered in snapshot.offers))
    _rising("anchors", (author for author, _ in snapshot.anchors))
    _rising("values", (name for name, _ in snapshot.values))
    _rising("policies", ((author, policy.pattern) for author, _, _, policy in snapshot.policies))
    if any(height > core.height or policy.terms is None for _, height, _, policy in snapshot.policies):
        raise DecodeError("a policy stands above its height, or is none")
    if snapshot.offers and snapshot.offers[-1][0] > core.height:
        raise DecodeError("an offer stands above its height")
    for task in snapshot.tasks:
        _rising("steps", (step.requirement.step for step in task.steps))
        _rising("operations", sorted(step.requirement.operation_number for step in task.steps))
    for _, anchors in snapshot.anchors:
        _rising("anchored chains", sorted(chain for chain, _ in anchors))
    for _, values in snapshot.values:
        _rising("keys", (key for key, _ in values))
    return snapshot


def load_facts(snapshot: Snapshot, facts: ChainFacts) -> None:
    """Fill the empty `facts` of the same chain."""
    facts.load_window(snapshot.core.horizon, snapshot.blocks)
    facts.roster = snapshot.core.roster
    for saved in snapshot.tasks:
        facts.load_task(_task(saved))
    for offered in snapshot.offers:
        facts.load_offer(offered)
    for author, anchors in snapshot.anchors:
        facts.load_anchors(author, anchors)
    for name, values in snapshot.values:
        facts.load_values(name, values)
    facts.load_trust(snapshot.trust)
    for author, height, index, policy in snapshot.policies:
        facts.load_policy(author, PolicyEntry(height, index, policy))


def saved_work(account: WorkAccount) -> Work:
    """Return what a work account holds."""
    return Work(account.minutes, account.missed, account.pairs, account.booked)


def load_work(work: Work) -> WorkAccount:
    """Return the account that holds `work`, which is not used again."""
    account = WorkAccount()
    account.minutes, account.missed = work.minutes, work.missed
    account.pairs, account.booked = work.pairs, work.booked
    return account


def _rising(what: str, keys: Iterable[Any]) -> None:
    if any(first >= second for first, second in pairwise(keys)):
        raise DecodeError(f"its {what} are out of order")


def _saved(task: TaskState) -> _Task:
    steps = tuple(
        _Step(
            step.requirement,
            step.procedure,
            step.completion,
            tuple(step.inspections),
            step.earns,
            step.credit,
            step.changed_at,
        )
        for _, step in sorted(task.steps.items())
    )
    return _Task(task.task, task.part, task.steps_planned, task.entered_at, steps)


def _task(saved: _Task) -> TaskState:
    task = TaskState(saved.task, saved.part, saved.steps_planned, entered_at=saved.entered_at)
    for step in saved.steps:
        place = step.requirement.step
        task.operations[step.requirement.operation_number] = place
        task.steps[place] = StepState(
            step.requirement,
            step.procedure,
            step.completion,
            list(step.inspections),
            step.earns,
            step.credit,
            step.changed_at,
        )
    return task

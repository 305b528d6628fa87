"""What the chains of a finished run say: a full check of every copy, and each task's route and times.

Everything is read from the peers' folders, after their processes have ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgepool.errors import StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis
from edgepool.model.record import (
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    QualityInspection,
    Record,
    TransmissionConfirmation,
    kind_of,
)
from edgepool.peer.verify import ChainVerdict, verify_chain
from edgepool.storage.store import list_chains, read_chain


@dataclass(slots=True)
class StepHistory:
    """A step as the chain has it; times in ms since 1970 UTC, 0 if it has not come to that."""

    operation_number: int
    operation: str
    station: str
    started_ms: int = 0
    completed_ms: int = 0
    accepted: bool = False


@dataclass(slots=True)
class TaskHistory:
    """A task as its chain has it. `reused` says that its pool had made something before."""

    task: str
    part: str
    pool: str
    reused: bool
    allotted_ms: int
    planned_steps: int
    steps: dict[int, StepHistory] = field(default_factory=dict)

    @property
    def completed_ms(self) -> int:
        """When its last step was completed; 0 if one is missing."""
        times = [step.completed_ms for step in self.steps.values()]
        return max(times) if len(times) == self.planned_steps and all(times) else 0


@dataclass(frozen=True, slots=True)
class ChainCheck:
    """One chain in all its copies: the greatest height, and whether every copy has stood the check."""

    id: str
    name: str
    kind: str
    height: int
    members: list[str]
    copies: int
    verified: bool
    problem: str


@dataclass(slots=True)
class History:
    """All that is left of a run.

    `records` counts by kind, `confirmed_ms` tells when transfers were agreed; `contradictions` are
    sentences about chains that do not go together.
    """

    chains: list[ChainCheck] = field(default_factory=list)
    tasks: dict[str, TaskHistory] = field(default_factory=dict)
    records: dict[str, int] = field(default_factory=dict)
    confirmed_ms: list[int] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)


def read_history(folders: Mapping[str, Path]) -> History:
    """Check every chain in every peer's folder and read what they say; takes seconds."""
    copies: dict[ChainId, list[tuple[Path, ChainVerdict]]] = {}
    for folder in folders.values():
        for chain in list_chains(folder):
            copies.setdefault(chain, []).append((folder, verify_chain(folder, chain)))
    history = History()
    names = {folder: name for name, folder in folders.items()}
    for chain, found in copies.items():
        check = _check(chain, found, names)
        sound = [folder for folder, verdict in found if verdict.verified and verdict.height]
        apart = _forked([read_chain(folder, chain)[1] for folder in sound])
        history.chains.append(replace(check, verified=False, problem=apart) if apart else check)
        if sound:
            longest = max(found, key=lambda pair: pair[1].height if pair[0] in sound else -1)[0]
            genesis, blocks = read_chain(longest, chain)
            _read(history, genesis, blocks)
    history.chains.sort(key=lambda chain: (chain.kind != "fixed", chain.name))
    return history


def _check(chain: ChainId, found: list[tuple[Path, ChainVerdict]], names: Mapping[Path, str]) -> ChainCheck:
    problems = [f"{names[folder]}: {verdict.problem}" for folder, verdict in found if not verdict.verified]
    height = max(verdict.height for _, verdict in found)
    best = next(verdict for _, verdict in found if verdict.height == height)
    return ChainCheck(
        chain, best.name, best.kind, height, best.members, len(found), not problems, "; ".join(problems)
    )


def _forked(copies: list[Iterator[tuple[int, CertifiedBlock | StorageError]]]) -> str:
    """Say at which height copies of one chain hold different blocks, or return ''."""
    ids: dict[int, bytes] = {}
    for blocks in copies:
        for height, certified in blocks:
            if isinstance(certified, StorageError):
                return str(certified)
            found = certified.block.header.id
            if ids.setdefault(height, found) != found:
                return f"copies hold different blocks at height {height}"
    return ""


def _read(
    history: History, genesis: Genesis, blocks: Iterator[tuple[int, CertifiedBlock | StorageError]]
) -> None:
    names = {member.peer: member.name for member in genesis.invitation.people()}
    pool = genesis.invitation.name
    first_task = ""
    for _, certified in blocks:
        if isinstance(certified, StorageError):
            return
        for signed in certified.block.records:
            record = signed.record
            kind = kind_of(record.body)
            history.records[kind] = history.records.get(kind, 0) + 1
            if isinstance(record.body, MachiningRequirement):
                first_task = first_task or record.body.task
                _enter_requirement(history, record, record.body, pool, first_task, names)
            elif isinstance(record.body, TransmissionConfirmation):
                history.confirmed_ms.append(record.time_ms)
            else:
                _enter_step(history, record)


def _enter_requirement(
    history: History,
    record: Record,
    body: MachiningRequirement,
    pool: str,
    first_task: str,
    names: Mapping[PeerId, str],
) -> None:
    task = history.tasks.setdefault(
        body.task,
        TaskHistory(body.task, body.part, pool, body.task != first_task, record.time_ms, body.steps),
    )
    if task.pool != pool:
        history.contradictions.append(f"task {body.task} was given to {task.pool} and to {pool}")
        return
    station = names.get(body.station, body.station)
    task.steps[body.operation_number] = StepHistory(body.operation_number, body.operation, station)


def _enter_step(history: History, record: Record) -> None:
    body = record.body
    if not isinstance(body, MachiningProcedure | MachiningCompletion | QualityInspection):
        return
    task = history.tasks.get(body.task)
    step = task.steps.get(body.operation_number) if task is not None else None
    if step is None:
        return  # its requirement stood in a block that is pruned
    if isinstance(body, MachiningProcedure):
        step.started_ms = record.time_ms
    elif isinstance(body, MachiningCompletion):
        step.completed_ms = body.completion_ms
    else:
        step.accepted = body.accepted

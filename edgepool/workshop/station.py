"""One machine at work: takes the steps that chains give to it, and does them [S3.1, S3.5, S3.9].

A station trusts nothing but its chains: whenever something changes it looks through their tasks for
steps of its own whose predecessor is complete. So it needs no memory, and a restart goes on where
the chains say it stopped. Fetching what a step needs comes before its start; the machine does one
job at a time, in the order in which they became ready.

Nobody stands for the last step of a task by starting the next one, so a station also inspects parts that
others have finished: each the part of one other station of the route [S3.11].
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import time

from blake3 import blake3

from edgepool.core.ledger.state import ChainState, StepState, TaskState
from edgepool.errors import EdgepoolError, LocalError
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import (
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    QualityInspection,
)
from edgepool.model.twin import DataKey
from edgepool.peer.peer import Peer
from edgepool.peer.values import BlockAdded, EventsMissed, PoolEntered, TransferEnded
from edgepool.workshop.events import DataArrived, Fault, StepChanged, Tell
from edgepool.workshop.mover import DataMover
from edgepool.workshop.orders import Workshop
from edgepool.workshop.twindata import NEEDED_KINDS, STATION_KINDS, STEP_KINDS, TwinData

LOOK_EVERY_S = 1.0
RETRY_S = 0.2
MAX_RETRY_S = 3.0
EXPERIENCE_EVERY = 4
"""One step in so many also asks for a historical document of some other station."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One step of a task on one chain."""

    chain: ChainId
    pool: str
    requirement: MachiningRequirement
    predecessor: MachiningCompletion | None

    @property
    def key(self) -> tuple[str, int]:
        return self.requirement.task, self.requirement.operation_number


class Station:
    """Works off the steps of one peer. `hour_seconds` is how many seconds stand for an hour of work."""

    def __init__(
        self,
        peer: Peer,
        mover: DataMover,
        twin: TwinData,
        workshop: Workshop,
        hour_seconds: float,
        tell: Tell,
    ) -> None:
        self._peer = peer
        self._mover = mover
        self._twin = twin
        self._workshop = workshop
        self._hour_seconds = hour_seconds
        self._tell = tell
        self._machine = asyncio.Lock()
        self._jobs: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._inspections: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._experience: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled. What nobody foresaw in any job ends all of them, loudly."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name=f"watch of {self._peer.name}")
            while True:
                self._look(group)
                # Not wait_for: before Python 3.12 it loses a cancellation that comes with the event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._changed.wait()
                self._changed.clear()

    async def _watch(self) -> None:
        async for event in self._peer.watch():
            if isinstance(event, BlockAdded | PoolEntered | EventsMissed):
                self._changed.set()
            elif isinstance(event, TransferEnded) and not event.outgoing and not event.failure:
                self._tell_arrival(event)

    # --- what there is to do ----------------------------------------------------------------

    def _look(self, group: asyncio.TaskGroup) -> None:
        """Start a job for each step of this station that can go ahead and has none."""
        for genesis in self._peer.pools:
            if genesis.invitation.kind == "fixed":
                if self._experience is None:
                    self._experience = group.create_task(self._publish_experience(genesis.chain))
                continue
            state = self._peer.chain_state(genesis.chain)
            for task in list(state.tasks.values()):
                for job in self._ready(genesis.chain, genesis.invitation.name, task):
                    if job.key not in self._jobs:
                        self._jobs[job.key] = group.create_task(self._work(job))
                last = self._to_inspect(genesis.chain, genesis.invitation.name, task, state.members)
                if last is not None and last.key not in self._inspections:
                    self._inspections[last.key] = group.create_task(self._inspect_last(last))

    def _ready(self, chain: ChainId, pool: str, task: TaskState) -> Iterator[_Job]:
        for place, step in task.steps.items():
            if step.requirement.station != self._peer.id or step.done:
                continue
            before = task.steps.get(place - 1)
            if place > 0 and (before is None or before.completion is None):
                continue
            yield _Job(chain, pool, step.requirement, before.completion if before else None)

    def _to_inspect(
        self, chain: ChainId, pool: str, task: TaskState, members: Sequence[PeerId]
    ) -> _Job | None:
        """Return the last step of a task that is complete, if this station is the one to inspect it."""
        if not task.complete or last_inspector(task, members) != self._peer.id:
            return None
        last = task.steps[task.steps_planned - 1]
        return None if last.inspected_by(self._peer.id) else _Job(chain, pool, last.requirement, None)

    def _step(self, job: _Job) -> StepState:
        state: ChainState = self._peer.chain_state(job.chain)
        step = state.tasks[job.requirement.task].step_of(job.requirement.operation_number)
        assert step is not None, "a job for a step that is not on chain"
        return step

    # --- one step ---------------------------------------------------------------------------

    async def _work(self, job: _Job) -> None:
        try:
            await self._outside(job)
            if self._step(job).procedure is None:
                self._say(job, "fetching")
                await self._fetch_needed(job)
                self._say(job, "waiting")
            async with self._machine:
                await self._start(job)
                self._say(job, "machining")
                await self._machining(job)
            self._say(job, "publishing")
            await self._publish_made(job)
            await self._finish(job)
            self._say(job, "done")
        except LocalError as error:  # the peer was closed, or something here is broken: no retry helps
            self._fault(f"go on with task {job.requirement.task}", error)

    async def _outside(self, job: _Job) -> None:
        """Wait for what an outside operation (heat treatment) takes after the predecessor's end."""
        if not job.requirement.outside_minutes or job.predecessor is None:
            return
        ready_at_ms = job.predecessor.completion_ms + self._scaled_ms(job.requirement.outside_minutes)
        if ready_at_ms > _now_ms():
            self._say(job, "outside")
            await asyncio.sleep((ready_at_ms - _now_ms()) / 1000)

    async def _fetch_needed(self, job: _Job) -> None:
        """Get what the predecessor made, and at times what another station knows."""
        part = job.requirement.part
        wanted: list[tuple[DataKey, int]] = []
        if job.predecessor is not None:
            version = job.predecessor.operation_number
            wanted += [(DataKey(part, kind), version) for kind in NEEDED_KINDS]
        experience = self._experience_wanted(job)
        if experience is not None:
            wanted.append((experience, 0))

        async def get(key: DataKey, version: int) -> None:
            composition = f"task {job.requirement.task}"
            await self._until_done(
                f"fetch {key}",
                lambda: self._mover.fetch(key, version, job.chain, composition=composition),
            )

        await _all([get(key, version) for key, version in wanted])

    def _experience_wanted(self, job: _Job) -> DataKey | None:
        """Name a document of another station for one step in a few: the same for every run.

        Half of the time it is of a station of another fixed pool, so that the query has to leave
        the pools that this station is in [S3.14].
        """
        draw = blake3(json.dumps(job.key).encode()).digest()
        if draw[0] % EXPERIENCE_EVERY:
            return None
        pools = self._workshop.pool_of
        own = pools[self._peer.name]
        far = draw[1] % 2 == 1 and len(self._workshop.fixed_pools) > 1
        others = [name for name, pool in pools.items() if (pool != own) == far and name != self._peer.name]
        if not others:
            return None
        return DataKey(others[draw[2] % len(others)], STATION_KINDS[draw[3] % len(STATION_KINDS)])

    async def _start(self, job: _Job) -> None:
        """Put the machining procedure on chain, unless an earlier life of this station has."""
        requirement = job.requirement
        inspection = self._twin.inspection(requirement.part, requirement.operation_number)
        procedure = MachiningProcedure(
            requirement.task,
            requirement.operation_number,
            inspection.feature,
            requirement.operation,
            self._twin.parameters(requirement.part, requirement.operation_number),
            _now_ms() + self._scaled_ms(requirement.process_minutes),
        )
        await self._put(job, "start", procedure, lambda: self._step(job).procedure is not None)

    async def _machining(self, job: _Job) -> None:
        """Stand for the time that the machine takes; what has passed before a restart counts."""
        procedure = self._step(job).procedure
        assert procedure is not None, "machining without a procedure"
        left_ms = procedure.expected_completion_ms - _now_ms()
        await asyncio.sleep(max(0, left_ms) / 1000)

    async def _publish_made(self, job: _Job) -> None:
        """Make the twin data of the step and publish it on the sub-chain."""
        part, version = job.requirement.part, job.requirement.operation_number

        async def publish(kind: str) -> None:
            key = DataKey(part, kind)
            data = await asyncio.to_thread(self._twin.make, part, version, kind)
            await self._publish(key, version, data, job.chain)

        await _all([publish(kind) for kind in STEP_KINDS])

    async def _finish(self, job: _Job) -> None:
        """Put inspection and completion on chain."""
        requirement = job.requirement
        completion = MachiningCompletion(
            requirement.task,
            requirement.operation_number,
            f"{requirement.task}-{requirement.operation_number}",
            _now_ms(),
        )
        await _all(
            [
                self._inspect(job),
                self._put(job, "complete", completion, lambda: self._step(job).done),
            ]
        )

    async def _inspect_last(self, job: _Job) -> None:
        try:
            await self._inspect(job)
        except LocalError as error:
            self._fault(f"inspect task {job.requirement.task}", error)

    async def _inspect(self, job: _Job) -> None:
        """Put on chain what this station measures of a step, its own or another's."""
        requirement = job.requirement
        found = self._twin.inspection(requirement.part, requirement.operation_number)
        inspection = QualityInspection(
            requirement.task,
            requirement.operation_number,
            found.feature,
            found.feature_kind,
            found.values_um,
            found.accepted,
        )
        me = self._peer.id
        await self._put(job, "inspect", inspection, lambda: bool(self._step(job).inspected_by(me)))

    async def _publish_experience(self, chain: ChainId) -> None:
        """Publish once what this station knows beside its tasks, on its fixed pool's main chain."""
        for kind in STATION_KINDS:
            data = await asyncio.to_thread(self._twin.make, self._peer.name, 0, kind)
            await self._publish(DataKey(self._peer.name, kind), 1, data, chain)

    # --- trying until it is done ------------------------------------------------------------

    async def _publish(self, key: DataKey, version: int, data: bytes, chain: ChainId) -> None:
        def offered() -> bool:
            entries = self._peer.chain_state(chain).offers(key, version)
            return any(entry.holder == PeerId(self._peer.id) for entry in entries)

        await self._until_done(
            f"publish {key}", lambda: self._mover.publish(key, version, data, chain), offered
        )

    async def _put(
        self,
        job: _Job,
        what: str,
        body: MachiningProcedure | QualityInspection | MachiningCompletion,
        stands: Callable[[], bool],
    ) -> None:
        await self._until_done(
            f"{what} task {job.requirement.task}",
            lambda: self._peer.submit(body, chain=job.chain),
            stands,
        )

    async def _until_done(
        self,
        what: str,
        attempt: Callable[[], Awaitable[object]],
        done: Callable[[], bool] = lambda: False,
    ) -> None:
        """Try with growing pauses until it works, or `done` says that it has worked after all."""
        pause_s = RETRY_S
        while not done():
            try:
                await attempt()
                return
            except LocalError:
                raise
            except EdgepoolError as error:
                if done():
                    return
                self._fault(what, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_RETRY_S)

    # --- telling ----------------------------------------------------------------------------

    def _say(self, job: _Job, phase: str) -> None:
        requirement = job.requirement
        self._tell(
            StepChanged(
                requirement.task,
                requirement.part,
                job.pool,
                self._peer.name,
                requirement.operation_number,
                requirement.operation,
                requirement.step,
                requirement.steps,
                phase,
                _now_ms(),
            )
        )

    def _tell_arrival(self, event: TransferEnded) -> None:
        holder = self._peer.member(event.peer)
        source = holder.name if holder else event.peer
        self._tell(DataArrived(str(event.key), source, self._peer.name, event.size_bytes, event.duration_ms))

    def _fault(self, what: str, error: EdgepoolError) -> None:
        self._tell(Fault(self._peer.name, what, str(error), _now_ms()))

    def _scaled_ms(self, minutes: int) -> int:
        return round(minutes / 60 * self._hour_seconds * 1000)


def last_inspector(task: TaskState, members: Sequence[PeerId]) -> PeerId | None:
    """Return who inspects the last step of `task`: its last other station, else the first other member."""
    last = task.steps[task.steps_planned - 1].requirement.station
    stations = [task.steps[place].requirement.station for place in reversed(range(task.steps_planned))]
    return next((peer for peer in (*stations, *members) if peer != last and peer in members), None)


async def _all(attempts: list[Coroutine[object, object, None]]) -> None:
    """Wait for all; if one raises the others are stopped, and that is raised."""
    tasks = [asyncio.create_task(attempt) for attempt in attempts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _now_ms() -> int:
    return int(time() * 1000)

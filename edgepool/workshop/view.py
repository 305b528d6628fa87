"""What is known of a running workshop from outside: gathered from events and statuses, shown by screens.

Nothing here is assumed: each figure comes from a process that counted it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import time

from edgepool.peer.values import ChainStatus, PeerStatus, Totals
from edgepool.workshop.events import (
    CaughtUp,
    DataArrived,
    DataMoved,
    Fault,
    MoverReport,
    Note,
    PeerEnds,
    PoolStands,
    Ready,
    RelayCounts,
    StepChanged,
    TaskAllotted,
    TaskEnded,
    WorkshopEvent,
)
from edgepool.workshop.orders import Task
from edgepool.workshop.site import COORDINATOR

MAX_TOLD = 200


@dataclass(slots=True)
class StepRow:
    """A step of a task: its operation, who does it and how far it is ('' before it begins), since when."""

    operation: str
    operation_number: int
    station: str = ""
    phase: str = ""
    since_ms: int = 0


@dataclass(slots=True)
class TaskRow:
    """A task: where it is made and how far. `ended_ms` is 0 while it is not done."""

    number: str
    part: str
    steps: list[StepRow]
    pool: str = ""
    reused: bool = False
    allotted: bool = False
    ended_ms: int = 0

    @property
    def running(self) -> bool:
        """Whether it is allotted and not done."""
        return bool(self.pool) and not self.ended_ms


@dataclass(slots=True)
class TransferRow:
    """A transfer, as its receiver counts it; under way as long as `done_bytes` is less than the size."""

    key: str
    source: str
    target: str
    done_bytes: int
    size_bytes: int
    bytes_per_s: int


@dataclass(slots=True)
class View:
    """One run of a workshop in one mode; `cloud` says that data goes through the relay."""

    title: str
    hour_seconds: float
    cloud: bool
    tasks: dict[str, TaskRow]
    coordinator_id: str = ""
    started_ms: int = 0
    phase: str = "starting"
    statuses: dict[str, PeerStatus] = field(default_factory=dict)
    reports: dict[str, MoverReport] = field(default_factory=dict)
    relay: RelayCounts = field(default_factory=lambda: RelayCounts(0, 0, 0, 0, 0))
    down: dict[str, None] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    told: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_TOLD))
    told_count: int = 0
    arrived: deque[DataArrived] = field(default_factory=lambda: deque(maxlen=20))
    caught_up: CaughtUp | None = None
    pools_reused: int = 0
    fixed_told: dict[str, None] = field(default_factory=dict)
    ended: dict[str, PeerEnds] = field(default_factory=dict)
    changes: int = 0
    """Rises with whatever brings the work forward."""

    @classmethod
    def of(cls, title: str, hour_seconds: float, cloud: bool, tasks: Iterable[Task]) -> View:
        """Return the view before anything has happened."""
        rows = {
            task.number: TaskRow(
                task.number,
                task.part,
                [StepRow(step.operation, step.operation_number) for step in task.steps],
            )
            for task in tasks
        }
        return cls(title, hour_seconds, cloud, rows)

    # --- taking in --------------------------------------------------------------------------

    def take(self, process: str, event: WorkshopEvent) -> None:
        """Enter an event of a process."""
        if isinstance(event, PoolStands | TaskAllotted | TaskEnded | StepChanged | Ready):
            self.changes += 1
        match event:
            case Ready(_, peers):
                for peer in peers:
                    self.down.pop(peer.name, None)
            case PoolStands():
                self._take_pool(event)
            case TaskAllotted():
                self._take_allotted(event)
            case TaskEnded(task, part, pool, completion_ms):
                if not self.tasks[task].ended_ms:
                    self.tasks[task].ended_ms = completion_ms
                    self.tell(f"{part} is finished ({self.done} of {len(self.tasks)}), made in {pool}")
            case CaughtUp(pools, done, duration_ms):
                self.caught_up = event
                self.tell(
                    f"the coordinator is back: from its chains it knows {pools} pools and {done} finished "
                    f"parts, after {duration_ms / 1000:.1f} s"
                )
            case StepChanged():
                self._take_step(event)
            case DataArrived():
                self.arrived.append(event)
            case Fault(who, what, reason):
                self.faults.append(event)
                self.tell(f"{who} could not {what}: {reason}; it tries again")
            case Note(who, text):
                self.tell(f"{who}: {text}")
            case DataMoved(station, report):
                self.reports[station] = report
            case PeerEnds(status, report):
                self.ended[status.name] = event
                self.statuses[status.name] = status
                if report is not None:
                    self.reports[status.name] = report
            case RelayCounts():
                self.relay = event

    def tell(self, sentence: str) -> None:
        """Add a sentence for people."""
        self.told.append(sentence)
        self.told_count += 1

    def _take_pool(self, event: PoolStands) -> None:
        if event.kind == "fixed":
            if event.name in self.fixed_told:  # a coordinator that has come back tells it again
                return
            self.fixed_told[event.name] = None
            self.tell(f"fixed pool {event.name} stands: {', '.join(event.members)}")
        else:
            self.tell(
                f"{event.name} is formed for {' → '.join(event.combination)}: {', '.join(event.members)}"
            )

    def _take_allotted(self, event: TaskAllotted) -> None:
        row = self.tasks[event.task]
        if not row.allotted:
            row.allotted = True
            self.pools_reused += event.reused
            self.tell(
                f"{event.part} goes to {event.pool}"
                + (" (used before: no new chain is needed)" if event.reused else "")
            )
        row.pool, row.reused = event.pool, event.reused
        for step, station in zip(row.steps, event.stations, strict=True):
            step.station = station

    def _take_step(self, event: StepChanged) -> None:
        row = self.tasks[event.task]
        row.pool = row.pool or event.pool
        row.steps[event.step].station = event.station
        row.steps[event.step].phase = event.phase
        row.steps[event.step].since_ms = event.time_ms

    # --- what is shown ----------------------------------------------------------------------

    @property
    def done(self) -> int:
        """How many tasks are done, as the coordinator sees it."""
        return sum(bool(row.ended_ms) for row in self.tasks.values())

    @property
    def done_by_stations(self) -> int:
        """How many tasks are done, as the stations of their last steps say."""
        return sum(bool(row.ended_ms) or row.steps[-1].phase == "done" for row in self.tasks.values())

    def done_between(self, start_ms: int, end_ms: int) -> int:
        """How many tasks were done in this time, as the stations of their last steps say."""
        lasts = [row.steps[-1] for row in self.tasks.values()]
        return sum(last.phase == "done" and start_ms <= last.since_ms < end_ms for last in lasts)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first process was started."""
        return time() - self.started_ms / 1000 if self.started_ms else 0.0

    def chains(self) -> list[ChainStatus]:
        """Return each chain once, as the peer that is furthest ahead knows it; fixed pools first."""
        newest: dict[str, ChainStatus] = {}
        for status in self.statuses.values():
            for chain in status.chains:
                known = newest.get(chain.id)
                if known is None or chain.height > known.height:
                    newest[chain.id] = chain
        return sorted(newest.values(), key=lambda chain: (chain.kind != "fixed", chain.name))

    def totals(self) -> list[Totals]:
        """Return what each station has moved."""
        return [report.totals for report in self.reports.values()]

    @property
    def bytes_direct(self) -> int:
        """Twin data that went straight from one machine to another."""
        if self.cloud:
            return 0
        return sum(totals.bytes_received for totals in self.totals()) - self._from_coordinator()

    @property
    def bytes_via_cloud(self) -> int:
        """Twin data that the coordinator or the relay carried, in and out."""
        if self.cloud:
            return self.relay.bytes_in + self.relay.bytes_out
        status = self.statuses.get(COORDINATOR)
        own = status.totals.bytes_received if status else 0
        return self._from_coordinator() + own

    def _from_coordinator(self) -> int:
        return sum(totals.received_by_holder.get(self.coordinator_id, 0) for totals in self.totals())

    def transfers(self) -> list[TransferRow]:
        """Return the transfers under way, the largest first, then those that ended last."""
        rows = [
            TransferRow(
                transfer.key,
                transfer.name,
                status.name,
                transfer.done_bytes,
                transfer.size_bytes,
                transfer.bytes_per_s,
            )
            for status in self.statuses.values()
            for transfer in status.transfers
            if not transfer.outgoing
        ]
        ended = [
            TransferRow(
                event.key,
                event.source,
                event.station,
                event.size_bytes,
                event.size_bytes,
                1000 * event.size_bytes // max(1, event.duration_ms),
            )
            for event in reversed(self.arrived)
        ]
        known = {(row.key, row.target) for row in ended}
        going = [row for row in rows if (row.key, row.target) not in known]
        return sorted(going, key=lambda row: -row.size_bytes) + ended

"""One run of a workshop in one mode: folders made, processes started, followed, ended, chains checked."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time

from edgepool.config import Road
from edgepool.errors import EdgepoolError, Unavailable
from edgepool.gateway.client import ApiClient
from edgepool.peer.values import PeerStatus
from edgepool.workshop.history import History, read_history
from edgepool.workshop.host import HostSpec
from edgepool.workshop.orders import Task, Workshop
from edgepool.workshop.processes import Processes
from edgepool.workshop.screen import Screen
from edgepool.workshop.site import COORDINATOR, Site, make_site
from edgepool.workshop.view import View

LOOK_EVERY_S = 0.1
POLL_EVERY_S = 1.0
STALL_S = 60.0
SETTLE_S = 0.5
DOWN_AT_LEAST_S = 3.0
DOWN_AT_MOST_S = 60.0
RELAY = "relay"
WITNESSES = "witnesses"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What to run. `tasks` are those to be done (`task_limit` of them; 0: all that the file orders)."""

    folder: Path
    workshop_file: Path
    workshop: Workshop
    tasks: tuple[Task, ...]
    task_limit: int
    hour_seconds: float
    seed: int
    one_process_per_machine: bool
    cloud: bool
    kill: bool
    transport: Road = "tls"


@dataclass(slots=True)
class Outcome:
    """What came of a run; times in ms since 1970 UTC, 0 if it has not come to that.

    `problems` are sentences; the run is a success if there are none.
    """

    plan: RunPlan
    view: View
    history: History = field(default_factory=History)
    worked_ms: int = 0
    killed_ms: int = 0
    back_ms: int = 0
    before_kill: PeerStatus | None = None
    peak_memory_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def down_ms(self) -> tuple[int, int]:
        """From when until when the coordinator is down; the end is far ahead if it is not back yet."""
        return (self.killed_ms, self.back_ms or 2**62) if self.killed_ms else (0, 0)


async def run_workshop(plan: RunPlan, screen: Screen) -> Outcome:
    """Run it; whatever goes wrong ends the run and stands in the outcome's problems.

    All processes are gone on return, also when this is cancelled.
    """
    title = plan.workshop.title or plan.workshop.name
    view = View.of(title, plan.hour_seconds, plan.cloud, plan.tasks)
    outcome = Outcome(plan, view)
    screen.show(view)
    view.phase = "making keys and certificates"
    site = await asyncio.to_thread(make_site, plan.folder, plan.workshop, plan.cloud, plan.transport)
    view.coordinator_id = site.coordinator_id
    processes = Processes(site.processes, view.take)
    try:
        async with asyncio.TaskGroup() as group:
            side = [group.create_task(_poll(site, view)), group.create_task(screen.follow())]
            try:
                await _work(plan, site, processes, outcome)
            except EdgepoolError as error:
                outcome.problems.append(str(error))
            for task in side:
                task.cancel()
    finally:
        view.phase = "ending all processes"
        outcome.problems += processes.unexpected
        outcome.problems += await processes.stop()
    view.phase = "checking all chains"
    outcome.history = await asyncio.to_thread(read_history, site.peers)
    view.phase = "done"
    return outcome


async def _work(plan: RunPlan, site: Site, processes: Processes, outcome: Outcome) -> None:
    view = outcome.view
    view.phase = "starting processes"
    view.started_ms = _now_ms()
    await _start(plan, site, processes)
    count = len(plan.workshop.function_of)
    view.tell(f"{count} machines and the coordinator are up; the coordinator forms the fixed pools")
    view.phase = "making parts"
    stalled = _Stall(plan)
    half = (len(plan.tasks) + 1) // 2
    while not processes.unexpected:
        stalled.check(view)
        outcome.peak_memory_bytes = max(outcome.peak_memory_bytes, processes.memory_bytes)
        # Also if all was done between two looks: then it is seen to come back to all that it had.
        if plan.kill and not outcome.killed_ms and view.done_by_stations >= half:
            await _kill_and_restart(processes, outcome)
        if view.done >= len(plan.tasks):
            break
        await asyncio.sleep(LOOK_EVERY_S)
    if processes.unexpected:
        return
    outcome.worked_ms = _now_ms()
    view.tell(f"all {len(plan.tasks)} parts are finished")
    await asyncio.sleep(SETTLE_S)


async def _start(plan: RunPlan, site: Site, processes: Processes) -> None:
    relay_url, certificate = "", Path()
    if site.relay is not None:
        await processes.start(_spec(plan, RELAY, "relay", [site.relay]))
        relay_url = (await processes.ready(RELAY)).relay_url
        certificate = site.relay / "identity" / "certificate.pem"
    names = [COORDINATOR]
    await processes.start(_spec(plan, COORDINATOR, "coordinator", [site.coordinator]))
    if site.witnesses:
        names.append(WITNESSES)
        await processes.start(_spec(plan, WITNESSES, "witnesses", list(site.witnesses.values())))
    for name, folders in _groups(plan, site).items():
        names.append(name)
        spec = _spec(plan, name, "stations", folders, relay_url, certificate)
        await processes.start(spec)
    for name in names:
        await processes.ready(name)


def _groups(plan: RunPlan, site: Site) -> dict[str, list[Path]]:
    """Return which peers' folders go into which process."""
    if plan.one_process_per_machine:
        return {name: [folder] for name, folder in site.machines.items()}
    return {
        pool.name: [site.machines[name] for name in plan.workshop.machines_of(pool.name)]
        for pool in plan.workshop.fixed_pools
    }


def _spec(
    plan: RunPlan,
    process: str,
    kind: str,
    folders: list[Path],
    relay_url: str = "",
    relay_certificate: Path = Path(),
) -> HostSpec:
    assert kind in ("stations", "coordinator", "witnesses", "relay")
    return HostSpec(
        process=process,
        kind=kind,  # type: ignore[arg-type]
        folders=tuple(folders),
        workshop=plan.workshop_file,
        hour_seconds=plan.hour_seconds,
        seed=plan.seed,
        tasks=plan.task_limit,
        relay_url=relay_url,
        relay_certificate=relay_certificate,
    )


async def _kill_and_restart(processes: Processes, outcome: Outcome) -> None:
    """End the coordinator with SIGKILL, watch the work go on, and start it again [S3.18]."""
    view = outcome.view
    outcome.before_kill = view.statuses.get(COORDINATOR)
    spec = await processes.kill(COORDINATOR)
    outcome.killed_ms = _now_ms()
    view.down[COORDINATOR] = None
    view.tell("the coordinator is killed (SIGKILL), on purpose: pools and transfers go on without it")
    killed = monotonic()
    while monotonic() - killed < DOWN_AT_MOST_S and not processes.unexpected:
        await asyncio.sleep(LOOK_EVERY_S)
        done = view.done_between(*outcome.down_ms) or view.done_by_stations == len(view.tasks)
        if monotonic() - killed >= DOWN_AT_LEAST_S and done:
            break
    finished = view.done_between(*outcome.down_ms)
    view.tell(f"{finished} parts were finished without the coordinator; it is started again")
    await processes.start(spec)
    outcome.back_ms = (await processes.ready(COORDINATOR)).time_ms


class _Stall:
    """Gives up when nothing has brought the work forward for long."""

    def __init__(self, plan: RunPlan) -> None:
        longest_minutes = max(
            step.process_minutes + step.outside_minutes for task in plan.tasks for step in task.steps
        )
        self._limit_s = STALL_S + longest_minutes / 60 * plan.hour_seconds
        self._changes = -1
        self._since = monotonic()

    def check(self, view: View) -> None:
        """Raise Unavailable if it is time to give up."""
        if view.changes != self._changes:
            self._changes, self._since = view.changes, monotonic()
        elif monotonic() - self._since > self._limit_s:
            running = [row.number for row in view.tasks.values() if row.running]
            raise Unavailable(
                f"nothing has moved for {self._limit_s:.0f} s with {view.done} of {len(view.tasks)} parts "
                f"done and {', '.join(running) or 'no task'} in work"
            )


# --- statuses -------------------------------------------------------------------------------------


async def _poll(site: Site, view: View) -> None:
    """Ask each peer's API how it is, about once a second, until cancelled."""
    async with asyncio.TaskGroup() as group:
        for number, (name, folder) in enumerate(site.peers.items()):
            delay_s = POLL_EVERY_S * number / len(site.peers)
            group.create_task(_poll_peer(name, folder, view, delay_s))


async def _poll_peer(name: str, folder: Path, view: View, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    while True:
        with suppress(EdgepoolError):  # not up yet, or killed: what is known stays on the screen
            async with ApiClient.of(folder) as client:
                while True:
                    view.statuses[name] = await client.status()
                    await asyncio.sleep(POLL_EVERY_S)
        await asyncio.sleep(POLL_EVERY_S / 2)


def _now_ms() -> int:
    return int(time() * 1000)

"""The report of a run: figures for machines (report.json), and what they add up to (see tables.py).

Each figure is counted: by the peers (bytes, demands), by the chains (tasks, times, heights), by the
full check of every copy of every chain. Seconds count from the start of the first process.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median, quantiles
from typing import Any

from edgepool.workshop.history import ChainCheck, History, TaskHistory
from edgepool.workshop.run import Outcome


def build_report(direct: Outcome, cloud: Outcome | None, notes: Iterable[str]) -> dict[str, Any]:
    """Return the report of the demo; `cloud` in it is None if there was no cloud mode.

    `ok` says whether everything went as it must; `problems` says what did not, a sentence each.
    """
    report = mode_report(direct)
    report["cloud"] = mode_report(cloud) if cloud is not None else None
    problems = [f"edge pools: {problem}" for problem in problems_of(direct, report)]
    if cloud is not None:
        problems += [f"cloud mode: {problem}" for problem in problems_of(cloud, report["cloud"])]
    report["problems"] = problems
    report["ok"] = not problems
    report["notes"] = list(notes)
    return report


def mode_report(outcome: Outcome) -> dict[str, Any]:
    """Return the figures of one mode."""
    view, history = outcome.view, outcome.history
    totals = view.totals()
    done = [task for task in history.tasks.values() if task.completed_ms]
    first_data = [t.first_data_ms for t in totals if t.first_data_ms]
    by_kind: dict[str, int] = {}
    for one in totals:
        for kind, size_bytes in one.received_by_kind.items():
            by_kind[kind] = by_kind.get(kind, 0) + size_bytes
    via_cloud = view.bytes_via_cloud
    if outcome.before_kill is not None:  # a killed coordinator forgets what it has counted
        via_cloud += outcome.before_kill.totals.bytes_received
    return {
        "tasks": len(outcome.plan.tasks),
        "tasks_done": len(done),
        "pools_formed": sum(chain.kind == "manufacturing" for chain in history.chains),
        "pools_reused": sum(task.reused for task in history.tasks.values()),
        "chains": [_chain(chain) for chain in history.chains],
        "records": dict(sorted(history.records.items())),
        "demands": sum(t.demands for t in totals),
        "answered": sum(t.answered for t in totals),
        "failed": sum(t.failed for t in totals),
        "bytes_direct": view.bytes_direct,
        "bytes_via_coordinator": via_cloud,
        "bytes_by_kind": dict(sorted(by_kind.items())),
        "bytes_fetched": sum(by_kind.values()),
        "uploaded_bytes": view.relay.bytes_in,
        "downloaded_bytes": view.relay.bytes_out,
        "transfer_s": round(sum(t.transfer_ms for t in totals) / 1000, 3),
        **_waits(outcome),
        "first_data_s": _since(outcome, min(first_data, default=0)),
        "wall_s": _since(outcome, outcome.worked_ms),
        "coordinator_killed_at_s": _since(outcome, outcome.killed_ms),
        "coordinator_back_at_s": _since(outcome, outcome.back_ms),
        "tasks_done_while_down": view.done_between(*outcome.down_ms),
        "transfers_confirmed_while_down": _within(outcome, history.confirmed_ms),
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "faults": [f"{fault.who} could not {fault.what}: {fault.reason}" for fault in view.faults],
        "refused": _refused(outcome),
        "routes": [_route(outcome, task) for task in _in_order(history)],
    }


def problems_of(outcome: Outcome, report: dict[str, Any]) -> list[str]:
    """Return what is not as it must be in one mode, a sentence each."""
    problems = [*outcome.problems, *outcome.history.contradictions]
    missing = report["tasks"] - report["tasks_done"]
    if missing:
        problems.append(f"{missing} of {report['tasks']} tasks are not done")
    if report["failed"]:
        problems.append(f"{report['failed']} of {report['demands']} demands failed (see faults)")
    for chain in report["chains"]:
        if not chain["verified"]:
            problems.append(f"chain {chain['name']} does not stand the check: {chain['problem']}")
    was_left = outcome.view.done_between(0, outcome.killed_ms) < report["tasks"]
    if outcome.killed_ms and was_left and not report["tasks_done_while_down"]:
        problems.append("no task was finished while the coordinator was down")
    if not outcome.plan.cloud and report["bytes_via_coordinator"]:
        problems.append(f"{report['bytes_via_coordinator']} bytes of twin data went through the coordinator")
    return problems


def _chain(chain: ChainCheck) -> dict[str, Any]:
    return {
        "id": chain.id,
        "name": chain.name,
        "kind": chain.kind,
        "height": chain.height,
        "members": chain.members,
        "copies": chain.copies,
        "verified": chain.verified,
        "problem": chain.problem,
    }


def _waits(outcome: Outcome) -> dict[str, float | None]:
    """Return how long it took from a demand to its data: the median, and what 95 % stay below; ms."""
    waits = sorted(wait for report in outcome.view.reports.values() for wait in report.waits_ms)
    if not waits:
        return {"demand_to_data_median_ms": None, "demand_to_data_95_percent_ms": None}
    high = quantiles(waits, n=20)[-1] if len(waits) > 1 else waits[0]
    return {"demand_to_data_median_ms": median(waits), "demand_to_data_95_percent_ms": round(high)}


def _since(outcome: Outcome, time_ms: int) -> float | None:
    if not time_ms or not outcome.view.started_ms:
        return None
    return round((time_ms - outcome.view.started_ms) / 1000, 3)


def _within(outcome: Outcome, times_ms: list[int]) -> int:
    """Count times at which the coordinator was down."""
    start_ms, end_ms = outcome.down_ms
    return sum(start_ms <= time_ms < end_ms for time_ms in times_ms)


def _refused(outcome: Outcome) -> dict[str, int]:
    """Add up what the peers turned away, by reason."""
    refused: dict[str, int] = {}
    for status in outcome.view.statuses.values():
        for reason, count in status.totals.refused.items():
            refused[reason] = refused.get(reason, 0) + count
    return dict(sorted(refused.items()))


def _in_order(history: History) -> list[TaskHistory]:
    return sorted(history.tasks.values(), key=lambda task: task.task)


def _route(outcome: Outcome, task: TaskHistory) -> dict[str, Any]:
    return {
        "task": task.task,
        "part": task.part,
        "pool": task.pool,
        "reused": task.reused,
        "allotted_s": _since(outcome, task.allotted_ms),
        "completed_s": _since(outcome, task.completed_ms),
        "steps": [
            {
                "operation_number": step.operation_number,
                "operation": step.operation,
                "station": step.station,
                "started_s": _since(outcome, step.started_ms),
                "completed_s": _since(outcome, step.completed_ms),
                "accepted": step.accepted,
            }
            for _, step in sorted(task.steps.items())
        ],
    }

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from edgepool.peer.values import Totals
from edgepool.workshop.events import Fault, MoverReport, RelayCounts
from edgepool.workshop.history import ChainCheck, History, StepHistory, TaskHistory
from edgepool.workshop.orders import expand, load_workshop
from edgepool.workshop.report import build_report
from edgepool.workshop.run import Outcome, RunPlan
from edgepool.workshop.tables import print_report
from edgepool.workshop.view import View

WORKSHOP = load_workshop(Path(__file__).parents[2] / "examples" / "rocket_motor.toml")
TASKS = expand(WORKSHOP).tasks[:2]
START_MS = 1_700_000_000_000
KEYS = {
    "tasks",
    "tasks_done",
    "pools_reused",
    "chains",
    "demands",
    "answered",
    "failed",
    "bytes_direct",
    "bytes_via_coordinator",
    "first_data_s",
    "wall_s",
    "coordinator_killed_at_s",
    "tasks_done_while_down",
}


def totals(**values: Any) -> Totals:
    nothing: dict[str, Any] = dict.fromkeys(
        (
            "demands",
            "answered",
            "failed",
            "bytes_sent",
            "bytes_received",
            "transfer_ms",
            "first_data_ms",
        ),
        0,
    )
    return Totals(**(nothing | {"received_by_kind": {}, "received_by_holder": {}, "refused": {}} | values))


def finished(cloud: bool = False) -> Outcome:
    """Return two tasks made in one pool, the second one while the coordinator was down."""
    plan = RunPlan(Path("x"), Path("w.toml"), WORKSHOP, TASKS, 2, 0.5, 1, False, cloud, not cloud)
    view = View.of("Test", 0.5, cloud, TASKS)
    view.started_ms = START_MS
    for n, task in enumerate(TASKS, 1):
        last = view.tasks[task.number].steps[-1]
        last.phase, last.since_ms = "done", START_MS + 10_000 * n
    moved = totals(
        demands=3,
        answered=3,
        bytes_received=5_000_000,
        transfer_ms=1500,
        received_by_kind={"model": 4_000_000, "surface": 1_000_000},
        first_data_ms=START_MS + 2500,
    )
    view.reports["DMU50-1"] = MoverReport(moved, 0, (100, 200, 600))
    view.reports["DMU50-2"] = MoverReport(totals())
    if cloud:
        view.relay = RelayCounts(5, 3, 7_000_000, 5_000_000, 0)
    outcome = Outcome(plan, view)
    outcome.history = History(
        [ChainCheck("ab" * 20, "pool-01", "manufacturing", 12, ["DMU50-1"], 5, True, "")],
        {task.number: made(task.number, task.part, 10_000 * n) for n, task in enumerate(TASKS, 1)},
        {"offer": 12},
        [START_MS + 16_000],
    )
    outcome.worked_ms = START_MS + 21_000
    if not cloud:
        outcome.killed_ms, outcome.back_ms = START_MS + 15_000, START_MS + 25_000
    return outcome


def made(number: str, part: str, after_ms: int) -> TaskHistory:
    task = TaskHistory(number, part, "pool-01", number != "T001", START_MS + 1000, 1)
    task.steps[10] = StepHistory(10, "Milling", "DMU50-1", START_MS + 2000, START_MS + after_ms, True)
    return task


def test_the_report_has_every_key_in_both_modes() -> None:
    report = build_report(finished(), finished(cloud=True), ["a note"])
    assert report.keys() >= KEYS | {"cloud"}
    assert report["cloud"].keys() >= KEYS | {"transfer_s"}
    assert report["chains"][0].keys() >= {"id", "kind", "height", "members", "verified"}
    assert msgspec.json.decode(msgspec.json.encode(report)) == report


def test_what_is_counted() -> None:
    report = build_report(finished(), None, [])
    assert (report["tasks"], report["tasks_done"], report["pools_reused"]) == (2, 2, 1)
    assert (report["demands"], report["answered"], report["failed"]) == (3, 3, 0)
    assert (report["bytes_direct"], report["bytes_via_coordinator"]) == (5_000_000, 0)
    assert report["bytes_by_kind"] == {"model": 4_000_000, "surface": 1_000_000}
    assert (report["first_data_s"], report["wall_s"], report["transfer_s"]) == (2.5, 21.0, 1.5)
    assert report["demand_to_data_median_ms"] == 200
    assert report["cloud"] is None
    assert report["ok"]


def test_what_happened_while_the_coordinator_was_down() -> None:
    report = build_report(finished(), None, [])
    assert (report["coordinator_killed_at_s"], report["coordinator_back_at_s"]) == (15.0, 25.0)
    assert (report["tasks_done_while_down"], report["transfers_confirmed_while_down"]) == (1, 1)


def test_nothing_is_missed_if_all_was_finished_just_before_the_coordinator_was_killed() -> None:
    outcome = finished()
    outcome.view.tasks["T002"].steps[-1].since_ms = outcome.killed_ms - 1
    report = build_report(outcome, None, [])
    assert (report["tasks_done_while_down"], report["ok"]) == (0, True)


def test_cloud_mode_counts_what_the_relay_carried() -> None:
    cloud = build_report(finished(), finished(cloud=True), [])["cloud"]
    assert (cloud["bytes_direct"], cloud["bytes_via_coordinator"]) == (0, 12_000_000)
    assert cloud["coordinator_killed_at_s"] is None
    assert cloud["tasks_done_while_down"] == 0


def break_task(outcome: Outcome) -> None:
    outcome.history.tasks["T002"].steps[10].completed_ms = 0


def break_chain(outcome: Outcome) -> None:
    check = outcome.history.chains[0]
    outcome.history.chains[0] = ChainCheck(
        check.id, check.name, check.kind, 3, check.members, 5, False, "DMU50-1: block 4: torn"
    )


def break_demand(outcome: Outcome) -> None:
    outcome.view.reports["DMU50-2"] = MoverReport(totals(demands=1, failed=1))
    outcome.view.faults.append(Fault("DMU50-2", "fetch X/model", "nobody has it", START_MS))


def break_process(outcome: Outcome) -> None:
    outcome.problems.append("process milling ended with code 1: it left nothing")


def break_pools(outcome: Outcome) -> None:
    outcome.view.tasks["T002"].steps[-1].since_ms = outcome.back_ms


def break_path(outcome: Outcome) -> None:
    status_id = "coordinator-id"
    received = totals(bytes_received=9, received_by_holder={status_id: 9})
    outcome.view.reports["DMU50-2"] = MoverReport(received)
    outcome.view.coordinator_id = status_id


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (break_task, "1 of 2 tasks are not done"),
        (break_chain, "chain pool-01 does not stand the check: DMU50-1: block 4: torn"),
        (break_demand, "1 of 4 demands failed"),
        (break_process, "process milling ended with code 1"),
        (break_pools, "no task was finished while the coordinator was down"),
        (break_path, "9 bytes of twin data went through the coordinator"),
    ],
)
def test_whatever_went_wrong_is_told_and_the_report_is_not_ok(damage: Any, told: str) -> None:
    outcome = finished()
    damage(outcome)
    report = build_report(outcome, None, [])
    assert not report["ok"]
    assert any(told in problem for problem in report["problems"])
    assert told in printed(report)


def test_the_tables_show_both_modes_side_by_side() -> None:
    text = printed(build_report(finished(), finished(cloud=True), ["an assumption"]))
    line = next(line for line in text.splitlines() if "through the cloud" in line)
    assert line.split()[-4:] == ["0.0", "MB", "12.0", "MB"]
    assert "Note: an assumption" in text
    assert "Everything went as it must." in text
    assert "used again" in text


def printed(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    print_report(console, report, Path("build/demo"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()

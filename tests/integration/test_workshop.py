"""The whole workshop in small: real processes, links and chains, the coordinator killed, then the cloud."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from edgepool.errors import LocalError
from edgepool.model.ids import ChainId
from edgepool.peer.verify import verify_chain
from edgepool.workshop.demo import DemoOptions, run_demo

ROCKET_MOTOR = Path(__file__).parents[2] / "examples" / "rocket_motor.toml"


def test_a_small_demo_runs_end_to_end_and_can_be_checked_afterwards(tmp_path: Path) -> None:
    options = DemoOptions(
        workshop=ROCKET_MOTOR, folder=tmp_path / "demo", hour_seconds=0.05, tasks=3, quiet=True
    )
    report = asyncio.run(run_demo(options))
    assert report["problems"] == []
    assert report["ok"]
    for mode in (report, report["cloud"]):
        assert (mode["tasks"], mode["tasks_done"]) == (3, 3)
        assert mode["demands"] == mode["answered"] > 0
        assert mode["failed"] == 0
        assert all(chain["verified"] and chain["height"] for chain in mode["chains"])
        assert sum(chain["kind"] == "fixed" for chain in mode["chains"]) == 3
    assert set(report["records"]) >= {
        "requirement",
        "procedure",
        "completion",
        "inspection",
        "demand",
        "offer",
    }
    # Each station inspects its own steps; last steps are inspected by another one too.
    assert report["records"]["inspection"] > report["records"]["completion"]
    assert report["bytes_direct"] > 64_000_000
    assert report["bytes_via_coordinator"] == 0
    assert report["cloud"]["bytes_direct"] == 0
    assert report["cloud"]["bytes_via_coordinator"] > report["bytes_direct"]
    assert report["coordinator_killed_at_s"] is not None
    assert msgspec.json.decode((tmp_path / "demo" / "report.json").read_bytes()) == report
    _one_changed_byte_is_found(tmp_path / "demo" / "edge-pools" / "peers" / "coordinator", report)


def _one_changed_byte_is_found(folder: Path, report: dict[str, object]) -> None:
    chains = report["chains"]
    assert isinstance(chains, list)
    chain = ChainId(max(chains, key=lambda one: one["height"])["id"])
    (log,) = (folder / "chains" / chain).glob("blocks-*.log")
    raw = bytearray(log.read_bytes())
    raw[len(raw) // 2] ^= 1
    log.write_bytes(bytes(raw))
    verdict = verify_chain(folder, chain)
    assert not verdict.verified
    assert verdict.bad_height > 0
    assert f"block {verdict.bad_height}" in verdict.problem


SMALL = """
name = "small"
witnesses = 2
[[parts]]
number = "P1"
quantity = 1
route = [["Milling", 1.0], ["Turning", 1.0]]
[[machines]]
name = "mill"
function = "Milling"
ids = ["mill-1"]
[[machines]]
name = "lathe"
function = "Turning"
ids = ["lathe-1"]
[[fixed_pools]]
name = "all"
functions = ["Milling", "Turning"]
[capabilities]
"Milling" = ["Milling"]
"Turning" = ["Turning"]
[twin_data.sizes_bytes]
features = [1024, 2048]
"""


def test_a_workshop_of_two_machines_and_two_witnesses_has_pools_of_four(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    options = DemoOptions(
        workshop=file, folder=tmp_path / "demo", hour_seconds=0.05, quiet=True, cloud=False, kill=False
    )
    report = asyncio.run(run_demo(options))
    assert report["problems"] == []
    assert report["tasks_done"] == 1
    kinds = {chain["kind"]: chain["members"] for chain in report["chains"]}
    assert set(kinds) == {"fixed", "manufacturing"}
    assert kinds["manufacturing"][:2] == ["mill-1", "lathe-1"]
    assert all(set(members) >= {"witness-1", "witness-2"} for members in kinds.values())


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path; "
        "from edgepool.workshop.demo import DemoOptions, run_demo; "
        f"asyncio.run(run_demo(DemoOptions(workshop=Path({str(ROCKET_MOTOR)!r}), "
        f"folder=Path({str(tmp_path / 'demo')!r}), tasks=1, hour_seconds=60, quiet=True)))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        children = _wait_for_children(parent.pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 60
    while any(_runs(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [child for child in children if _runs(child)]


def _wait_for_children(parent: int) -> list[int]:
    """Return the four processes of the workshop once they run."""
    listing = Path(f"/proc/{parent}/task/{parent}/children")
    if not listing.exists():
        pytest.skip("this system does not list the children of a process")
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        children = [int(child) for child in listing.read_text().split()]
        if len(children) == 4:
            return children
        time.sleep(0.1)
    raise AssertionError("the processes did not start")


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and os.path.exists(f"/proc/{process}")


async def test_a_folder_with_foreign_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(LocalError, match="no demo has made"):
        await run_demo(DemoOptions(workshop=ROCKET_MOTOR, folder=tmp_path, quiet=True))
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"

"""Gateways in processes of their own that accept nothing, two conduits, and one of these is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import edgepool, told
from commands import until as wait_until
from test_cli_run import running


@contextmanager
def killable(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a peer that the test may kill."""
    command = [sys.executable, "-m", "edgepool", "run", str(folder), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = told("status", folder)
    return found


def path_to(folder: Path, name: str) -> str | None:
    """Return the conduit of the link to a peer, '' if it is direct, None if there is no link."""
    return next((link["conduit"] for link in status(folder)["links"] if link["name"] == name), None)


def listening_ports(pid: int) -> set[int]:
    """Return the ports on which a process listens (Linux)."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def test_machines_that_accept_nothing_go_on_when_their_conduit_is_killed(tmp_path: Path) -> None:
    hub, mill, lathe = (tmp_path / name for name in ("hub", "mill", "lathe"))
    edgepool("init", hub, "--role", "coordinator")
    conduits = [tmp_path / "dmz-1", tmp_path / "dmz-2"]
    for folder in conduits:
        edgepool("init", folder, "--role", "witness", "--serve-conduit", "--known", hub)
    for folder in (mill, lathe):
        edgepool("init", folder, "--conduit", conduits[0], "--conduit", conduits[1], "--known", hub)
    settings = hub / "edgepool.toml"
    settings.write_text(
        settings.read_text() + '\n[[fixed_pools]]\nname = "cell"\nmembers = ["mill", "lathe"]\n'
    )
    data, copy = tmp_path / "part.stl", tmp_path / "copy.stl"
    data.write_bytes(b"facet " * 300_000)
    with (
        running(hub),
        killable(conduits[0]) as first,
        killable(conduits[1]) as second,
        running(mill),
        killable(lathe) as gateway,
    ):
        wait_until(lambda: (lathe / "api.json").exists() and status(lathe)["chains"])
        api = int(json.loads((lathe / "api.json").read_text())["url"].rpartition(":")[2])
        assert listening_ports(gateway.pid) == {api}
        wait_until(lambda: path_to(lathe, "mill"))
        edgepool("publish", mill, "P-1/model", data)
        edgepool("fetch", lathe, "P-1/model", copy)
        assert copy.read_bytes() == data.read_bytes()
        assert status(lathe)["totals"]["received_by_conduit"]

        in_use = path_to(lathe, "mill")
        other = "dmz-2" if in_use == "dmz-1" else "dmz-1"
        victim = first if in_use == "dmz-1" else second
        victim.kill()
        victim.wait()
        wait_until(lambda: path_to(lathe, "mill") == other)
        edgepool("publish", mill, "P-2/model", data)
        edgepool("fetch", lathe, "P-2/model", copy)
        assert f"conduit {other}" in edgepool("status", lathe)
        told = json.loads(edgepool("doctor", lathe, "--json"))["examination"]["findings"]
        levels = {finding["check"]: finding["level"] for finding in told}
        assert (levels[f"conduit {other}"], levels[f"conduit {in_use}"]) == ("ok", "warn")
        assert set(status(tmp_path / other)["conduit"]["places"]) == {"lathe", "mill"}

"""A coordinator, in a process of its own, through which all others are reached, changes its key."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from commands import PATIENCE_S, edgepool, told, until
from test_whole_life import Plant
from tls_peers import free_port

OUTBOUND = ("mill", "lathe", "saw")


def outbound_plant(folder: Path, stack: ExitStack) -> Plant:
    """A coordinator that is registrar and conduit, and machines that have joined it and accept nothing."""
    plant = Plant(folder, stack)
    at = ("--listen", f"/ip4/127.0.0.1/tcp/{free_port()}", "--serve-conduit")
    edgepool(
        "org",
        "init",
        folder / "a",
        "--name",
        "Works",
        "--network",
        "plant",
        "--coordinator",
        folder / "cloud",
        *at,
    )
    with (folder / "cloud/edgepool.toml").open("a") as settings:
        settings.write('\n[[fixed_pools]]\nname = "cell"\nmembers = ["cloud"]\n')
    plant.run("cloud")
    until(lambda: plant.members("cloud"))
    for name in OUTBOUND:
        edgepool("join", plant.invite(name), folder / name, "--outbound")
        plant.run(name)
        until(lambda: name in plant.members("cloud"))  # noqa: B023
    return plant


def ways(plant: Plant, name: str) -> dict[str, str]:
    return {link["name"]: link["conduit"] for link in plant.ask("status", name)["links"]}


def place(plant: Plant, name: str) -> tuple[str, bool]:
    (kept,) = plant.ask("status", name)["conduits"]
    return kept["peer"], kept["kept"]


def test_all_behind_a_coordinator_go_on_when_its_key_changes(tmp_path: Path) -> None:
    with ExitStack() as stack:
        plant = outbound_plant(tmp_path, stack)
        until(lambda: ways(plant, "lathe") == {"cloud": "", "mill": "cloud", "saw": "cloud"})
        plant.hand_over("mill", "lathe", "PART-1/model", b"before" * 1000)
        plant.stop("saw")

        model, got = tmp_path / "model", tmp_path / "got"
        model.write_bytes(os.urandom(12_000_000))
        edgepool("publish", tmp_path / "mill", "PART-2/model", model)
        edgepool("budget", "set", tmp_path / "lathe", "--mbit-s", "4")
        words = [sys.executable, "-m", "edgepool", "fetch", tmp_path / "lathe", "PART-2/model", got]
        buyer = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: [one["conduit"] for one in plant.ask("status", "mill")["transfers"]] == ["cloud"])
        keys: Any = plant.ask("key rotate", "cloud")
        edgepool("budget", "set", tmp_path / "lathe", "--mbit-s", "1000")
        _, complaint = buyer.communicate(timeout=PATIENCE_S)
        assert buyer.returncode == 0, complaint
        assert got.read_bytes() == model.read_bytes()
        for name in ("mill", "lathe"):
            until(lambda: place(plant, name) == (keys["id"], True))  # noqa: B023
            until(lambda: plant.members(name)["cloud"].get("peer") == keys["id"])  # noqa: B023
            until(lambda: keys["former"] in [one["peer"] for one in plant.ask("org list", name)["revoked"]])  # noqa: B023
        plant.hand_over("lathe", "mill", "PART-3/model", b"after" * 1000)

        # Who was off finds the conduit, the coordinator and the others, and is found.
        plant.run("saw")
        until(lambda: ways(plant, "saw") == {"cloud": "", "mill": "cloud", "lathe": "cloud"})
        until(lambda: place(plant, "saw") == (keys["id"], True))
        plant.hand_over("saw", "mill", "PART-4/model", b"of who was off" * 1000)
        plant.hand_over("mill", "saw", "PART-5/model", b"for who was off" * 1000)
        for name in ("saw", "lathe", "mill", "cloud"):
            plant.stop(name)
    for name in ("cloud", *OUTBOUND):
        assert all(chain["verified"] for chain in told("chain", "verify", tmp_path / name))

"""The key of a registrar changes while its process is killed again and again [S3.6]; by commands alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
from commands import edgepool, run_command, told, until
from test_cli_run import running


def linked(folder: Path, count: int) -> None:
    """Wait until a peer has so many links, which may be just being opened again under a new key."""

    def reached() -> bool:
        done = run_command("status", folder, "--json")
        return done.returncode == 0 and len(json.loads(done.stdout)["links"]) == count

    until(reached)


class Process:
    """A peer's process, which can be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run: subprocess.Popen[str] | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "edgepool", "run", self._folder, "--json"]
        log = self._folder.with_suffix(".log")
        with log.open("a") as errors:
            self._run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self._run.stdout is not None
        first = self._run.stdout.readline()
        assert first, log.read_text()
        assert json.loads(first)["event"] == "listening"

    def kill(self) -> None:
        assert self._run is not None
        self._run.kill()
        self._run.wait()
        assert self._run.stdout is not None
        self._run.stdout.close()


@pytest.mark.parametrize("seed", [1])
def test_a_registrar_that_is_killed_again_and_again_comes_to_its_next_key(tmp_path: Path, seed: int) -> None:
    random, cloud = Random(seed), tmp_path / "cloud"
    edgepool("org", "init", tmp_path / "authority", "--name", "Works", "--coordinator", cloud)
    for name in ("mill", "lathe", "saw"):
        edgepool("init", tmp_path / name, "--authority", tmp_path / "authority", "--known", cloud)
    with (cloud / "edgepool.toml").open("a") as settings:
        settings.write('\n[[fixed_pools]]\nname = "cell"\nmembers = ["mill", "lathe"]\n')
    data = tmp_path / "data"
    data.write_bytes(b"facet " * 1000)
    process = Process(cloud)
    with ExitStack() as stack:
        process.start()
        stack.callback(process.kill)
        for name in ("mill", "lathe"):
            stack.enter_context(running(tmp_path / name))
        until(lambda: told("status", tmp_path / "lathe")["chains"])
        old = told("status", cloud)["id"]
        code = edgepool(
            "invite", cloud, "--name", "late", "--machine-type", "Milling", "--pool", "cell"
        ).strip()
        words = [sys.executable, "-m", "edgepool", "key", "rotate", cloud]
        begun = cloud / "identity/next-key.pem"
        for _ in range(4):
            linked(cloud, 2)
            asking = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(asking.kill)
            # What was begun goes on by itself, whatever dies; else it is begun now.
            until(lambda: begun.exists() or asking.poll() is not None)  # noqa: B023
            time.sleep(random.uniform(0.0, 1.0))
            process.kill()
            asking.kill()
            asking.wait()
            process.start()
        linked(cloud, 2)
        done = told("key", "rotate", cloud)
        new = told("status", cloud)["id"]
        assert new != old
        assert done["id"] == new
        for name in ("mill", "lathe"):
            until(lambda: old in [one["peer"] for one in told("org", "list", tmp_path / name)["revoked"]])  # noqa: B023
        # The fixed pool is the one that it was, and one that was off finds its coordinator.
        stack.enter_context(running(tmp_path / "saw"))
        assert len(told("status", cloud)["chains"]) == 1
        linked(cloud, 3)
        edgepool("member", "admit", cloud, "cell", "saw")
        edgepool("publish", tmp_path / "mill", "PART-1/model", data)
        until(lambda: told("status", tmp_path / "saw")["chains"])
        edgepool("join", code, tmp_path / "late")
        stack.enter_context(running(tmp_path / "late"))
        until(lambda: told("status", tmp_path / "late")["chains"])
        edgepool("fetch", tmp_path / "saw", "PART-1/model", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data.read_bytes()
    for name in ("cloud", "mill", "lathe", "saw", "late"):
        assert all(chain["verified"] for chain in told("chain", "verify", tmp_path / name))

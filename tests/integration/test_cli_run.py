"""The command line with real peers in processes of their own, and the examples as they are shipped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import edgepool, told, until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@contextmanager
def running(folder: Path) -> Iterator[dict[str, Any]]:
    """Run a peer; give what it says first; end it with SIGTERM, without complaint."""
    command = [sys.executable, "-m", "edgepool", "run", str(folder), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=5)[1]
        yield json.loads(line)
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=30)
        assert (process.returncode, complaints) == (0, "")
    finally:
        process.kill()
        process.wait()


def make_pool(folder: Path) -> None:
    edgepool("init", folder / "cloud", "--role", "coordinator")
    for name in ("mill", "lathe"):
        edgepool("init", folder / name, "--known", folder / "cloud")
    settings = folder / "cloud" / "edgepool.toml"
    settings.write_text(
        settings.read_text() + '\n[[fixed_pools]]\nname = "cell"\nmembers = ["mill", "lathe"]\n'
    )


def wait_for_pool(folder: Path) -> None:
    until(lambda: (folder / "api.json").exists() and told("status", folder)["chains"])


def test_three_processes_exchange_a_file_by_commands_alone(tmp_path: Path) -> None:
    make_pool(tmp_path)
    data, copy = tmp_path / "part.stl", tmp_path / "copy.stl"
    data.write_bytes(b"facet " * 300_000)
    with running(tmp_path / "cloud"), running(tmp_path / "mill"), running(tmp_path / "lathe") as lathe:
        assert lathe["event"] == "listening"
        wait_for_pool(tmp_path / "lathe")
        published = json.loads(edgepool("publish", tmp_path / "mill", "P-1/model", data, "--json"))
        (offer,) = json.loads(edgepool("request", tmp_path / "lathe", "P-1/model", "--json"))
        assert (offer["holder_name"], offer["root"]) == ("mill", published["root"])
        assert "came from mill" in edgepool("fetch", tmp_path / "lathe", "P-1/model", copy)
        assert copy.read_bytes() == data.read_bytes()
        assert json.loads(edgepool("status", tmp_path / "lathe", "--json"))["problems"] == []
        several = edgepool("fetch", tmp_path / "lathe", "P-1/*", "P-1/model", tmp_path)
        assert "1 of 1 keys" in several
        assert (tmp_path / "P-1/model").read_bytes() == data.read_bytes()
        assert "nobody" in edgepool("fetch", tmp_path / "lathe", "P-2/model", copy, code=1)
        assert "1 of 3 requests for data failed" in edgepool("status", tmp_path / "lathe")
        assert "in use by another peer" in edgepool("run", tmp_path / "lathe", code=2)
    assert not (tmp_path / "lathe" / "api.json").exists()
    verdicts = json.loads(edgepool("chain", "verify", tmp_path, "--json"))
    assert {row["peer"] for row in verdicts} == {"cloud", "mill", "lathe"}
    assert all(row["verified"] and row["height"] > 0 for row in verdicts)


SLOW_DISK = """
import time
from edgepool.cli.main import main
from edgepool.storage.blobs import BlobStore

def import_file(self, path):
    print("copying", flush=True)
    time.sleep(60)

BlobStore.import_file = import_file
main()
"""


def test_sigterm_ends_a_peer_in_time_though_a_thread_of_it_copies(tmp_path: Path) -> None:
    edgepool("init", tmp_path / "solo", "--role", "coordinator")
    settings = tmp_path / "solo" / "edgepool.toml"
    settings.write_text(settings.read_text() + '\n[[fixed_pools]]\nname = "cell"\nmembers = ["solo"]\n')
    run = [sys.executable, "-c", SLOW_DISK, "run", str(tmp_path / "solo")]
    ask = [sys.executable, "-m", "edgepool", "publish", str(tmp_path / "solo"), "P/model", str(settings)]
    peer = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert peer.stdout is not None
        wait_for_pool(tmp_path / "solo")
        with subprocess.Popen(ask, stderr=subprocess.PIPE) as asker:
            assert any(line == "copying\n" for line in peer.stdout)
            peer.send_signal(signal.SIGTERM)
            _, complaint = peer.communicate(timeout=30)  # it copies for twice as long
            assert asker.wait(timeout=30) == 1
        assert (peer.returncode, "nothing acknowledged is lost" in complaint) == (0, True)
    finally:
        peer.kill()
        peer.wait()


@pytest.mark.parametrize(("name", "hops"), [("star.toml", [0, 0, 0]), ("line.toml", [0, 1, 2, 2])])
def test_the_topologies_run(name: str, hops: list[int]) -> None:
    result = json.loads(edgepool("topology", "run", EXAMPLES / name, "--json"))
    assert result["failed"] == 0
    assert [exchange["hops"] for exchange in result["exchanges"]] == hops
    assert all(exchange["found"] == [exchange["from"]] for exchange in result["exchanges"])


@pytest.mark.parametrize("name", ["embed_gateway.py", "two_peers.py"])
def test_the_examples_run(name: str) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_embedding_takes_under_thirty_lines() -> None:
    assert len((EXAMPLES / "embed_gateway.py").read_text().splitlines()) < 30

"""The laboratory of slow and bad links: rates, delay, loss, and that nothing of it is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgepool.bench.namespaces import PREFIX, Host, Namespaces
from edgepool.bench.netlab import Lab, bad_links, slow_links
from edgepool.errors import Unavailable

SENDER = """
import socket, sys
with socket.create_server((sys.argv[1], 7000)) as server:
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        connection.sendall(bytes(int(sys.argv[2])))
        connection.close()
"""
RECEIVER = """
import socket, sys, time
start = time.monotonic()
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
print(time.monotonic() - start, flush=True)
size = 0
while piece := connection.recv(65536):
    size += len(piece)
print(size, time.monotonic() - start)
"""
KILLED = """
import asyncio, signal, sys
from pathlib import Path
from edgepool.bench.netlab import slow_links
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell in the background ignores it
async def main():
    async with slow_links(Path(sys.argv[1]), [0.0, 100.0]) as lab:
        print(lab.hosts[0].within[-1], flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture
def namespaces() -> None:
    """Skip where there are none."""
    try:
        made = Namespaces()
        made.make()
        made.remove()
    except Unavailable as error:
        pytest.skip(str(error))


def left() -> set[str]:
    places = Path("/run/netns")
    return {place.name for place in places.glob(f"{PREFIX}-*")} if places.exists() else set()


def copied(lab: Lab, at: tuple[str, int], size_bytes: int) -> tuple[float, float]:
    """Copy from the second host to the first; return the seconds of connecting, and of all."""
    sender, receiver = lab.hosts[1], lab.hosts[0]
    with running(sender, SENDER, sender.address, str(size_bytes)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with running(receiver, RECEIVER, at[0], str(at[1])) as other:
            out, _ = other.communicate(timeout=60)
        process.kill()
    connect_s, size, took_s = out.split()
    assert int(size) == size_bytes
    return float(connect_s), float(took_s)


def running(host: Host, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*host.within, sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)


async def test_a_link_is_as_slow_as_it_should_be(tmp_path: Path, namespaces: None) -> None:
    async with slow_links(tmp_path, [0.0, 80.0]) as lab:
        assert lab.forbidden == ""
        _, took_s = await asyncio.to_thread(copied, lab, await lab.dial(1, 7000), 5_000_000)
    assert took_s > 0.45, "10 MB/s cannot carry it faster"


async def test_without_namespaces_a_proxy_is_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # there is no command ip
    async with slow_links(tmp_path, [0.0, 80.0]) as lab:
        assert "need the commands ip and tc" in lab.forbidden
        assert [host.within for host in lab.hosts] == [(), ()]
        at = await lab.dial(1, 7000)
        assert at[1] != 7000
        _, took_s = await asyncio.to_thread(copied, lab, at, 2_000_000)
    assert took_s > 0.15


async def test_a_bad_link_is_far_and_loses_packets(tmp_path: Path, namespaces: None) -> None:
    async with bad_links(tmp_path, 2, delay_ms=40, loss=0.05, seed=3) as lab:
        connect_s, _ = await asyncio.to_thread(copied, lab, await lab.dial(1, 7000), 200_000)
    assert connect_s >= 0.08


async def test_nothing_is_left_after_a_failure(tmp_path: Path, namespaces: None) -> None:
    names: list[str] = []

    async def fail() -> None:
        async with slow_links(tmp_path, [0.0, 100.0]) as lab:
            names.extend(host.within[-1] for host in lab.hosts)
            assert set(names) <= left()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not set(names) & left()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_bench_that_is_ended(
    tmp_path: Path, namespaces: None, how: signal.Signals
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    name = process.stdout.readline().decode().strip()
    assert name in left()
    os.kill(process.pid, how)
    process.communicate(timeout=30)
    deadline_s = time.monotonic() + 30
    while name in left():
        assert time.monotonic() < deadline_s, "the namespaces are still there"
        time.sleep(0.05)

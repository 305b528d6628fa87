"""A libp2p child that is broken, or in the hands of another: it is replaced; its parent takes no harm."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from roads import Libp2pRoad
from test_libp2p_child import is_alive, linked, pid_of, process_of, read
from tls_peers import TlsPeer, free_port, until

from edgepool.config import Limits
from edgepool.errors import LocalError
from edgepool.transport import libp2p_process
from edgepool.transport.refusals import REASONS

if find_spec("libp2p") is None:
    pytest.skip("the extra libp2p is not installed", allow_module_level=True)

PATIENCE_S = 60.0

# A program in place of the child: it speaks its words, and then does what a child never does.
FAKE = """
import socket, sys, time
from edgepool.model.codec import encode
from edgepool.transport.framing import header
from edgepool.transport.libp2p_child.messages import *

parent = socket.socket(fileno=int(sys.argv[1]))

def say(*messages):
    for message in messages:
        body = encode(message)
        parent.sendall(header(len(body)) + body)

PEER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
"""
STAYS = "\nwhile parent.recv(65536): pass\n"


def up() -> str:
    """Say where it listens, which the next child does then."""
    return f"say(Listening(('/ip4/127.0.0.1/tcp/{free_port()}',)))\n"


def fake(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(libp2p_process, "CHILD", ("-c", FAKE + program))


async def replaced(peer: TlsPeer, real: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until the fake child has been thrown out and a real one has taken its place."""
    monkeypatch.setattr(libp2p_process, "CHILD", real)
    state = process_of(peer)
    await until(
        lambda: state.state.restarts and state.state.running and state.state.resident_bytes, PATIENCE_S
    )


@pytest.mark.parametrize(
    "misdeed",
    [
        "parent.sendall(bytes(range(256)) * 260)",
        "parent.sendall(b'\\xff' * 8)",
        "say(Accepted(1, PEER, '/edgepool/bytes/1', ''), Accepted(1, PEER, '/edgepool/link/1', ''))",
        "say(Accepted(2, PEER, '/edgepool/link/1', ''))",
        "say(Counted('refused_%s' % ('x' * 40)))",
        "say(Listening(('/dns4/x',)))",
        "say(Begin(bytes(32), (), (), 1, 1, 1, 1, 0, False, False))",
        "sys.exit(3)",
    ],
    ids=[
        "noise",
        "oversize",
        "twice",
        "even",
        "counter",
        "address",
        "not-its-word",
        "end",
    ],
)
async def test_a_child_that_breaks_its_rules_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misdeed: str
) -> None:
    real = libp2p_process.CHILD
    fake(monkeypatch, f"{up()}{misdeed}{STAYS}")
    road = Libp2pRoad(tmp_path)
    async with road.peer("a") as a:
        await replaced(a, real, monkeypatch)
        assert len(process_of(a).streams) == 0
        assert {*a.counters} <= {*REASONS, libp2p_process.RESTARTED}


@pytest.mark.parametrize(
    "words",
    [
        "say(Data(9, b'x'), Credit(8, 2**31), Finish(7), Reset(6, 'x'), Opened(4, ''), Found(PEER, 'x'))\n"
        "say(Placed(PEER, ''))",
        "say(Accepted(1, PEER, '/edgepool/link/1', ''), *[Data(1, bytes(65536))] * 9)",
        "[say(Accepted(2 * n + 1, PEER, '/edgepool/link/1', '')) for n in range(5000)]",
    ],
    ids=["no-such-stream", "flood", "streams"],
)
async def test_words_that_strangers_could_cause_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """Streams that prove nothing are let go, and what is said of streams that are gone is passed over."""
    answers = "\nwhile parent.recv(65536): say(Beating(0, 1, 1, 1, 1, 1, 1, 4711))"
    fake(monkeypatch, f"{up()}{words}{answers}")
    async with Libp2pRoad(tmp_path).peer("a", limits=Limits(handshakes=16, handshake_timeout_ms=1_000)) as a:
        await until(lambda: process_of(a).state.passed_bytes == 4711, PATIENCE_S)
        await until(lambda: not process_of(a).streams, PATIENCE_S)
        assert process_of(a).state.restarts == 0
        assert {*a.counters} <= {*REASONS}


@pytest.mark.parametrize("program", ["sys.exit(1)", "time.sleep(3600)"], ids=["ends", "hangs"])
async def test_a_child_that_does_not_start_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(libp2p_process, "START_S", 2.0)
    fake(monkeypatch, program)
    peer = Libp2pRoad(tmp_path).peer("a")
    with pytest.raises(
        LocalError, match=r"^the libp2p child (ended while it started|did not start within 2 s)$"
    ):
        await peer.start()
    process = process_of(peer)._process
    assert process is not None
    assert process.returncode is not None, "nothing is left of it"
    await peer.transport.close()


async def test_a_child_that_is_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    road = Libp2pRoad(tmp_path)
    async with road.peer("a") as a, road.peer("b") as b:
        await linked(road, a, b)
        last = pid_of(b)
        os.kill(last, signal.SIGKILL)
        for _ in range(3):
            # As soon as there is another one, long before it listens.
            await until(lambda: pid_of(b) != last, PATIENCE_S)  # noqa: B023
            last = pid_of(b)
            os.kill(last, signal.SIGKILL)
        await until(lambda: a.linked_to(b) and b.linked_to(a) and process_of(b).state.running, PATIENCE_S)
        assert pid_of(b) != last


async def test_a_child_ends_with_a_parent_that_is_killed_while_it_starts(tmp_path: Path) -> None:
    program = Path(__file__).with_name("answering_peer.py")
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, program, "libp2p", tmp_path, "b", str(free_port())), stdout=asyncio.subprocess.PIPE
    )

    def children() -> list[str]:
        return read(f"/proc/{parent.pid}/task/{parent.pid}/children").decode().split()

    await until(children, PATIENCE_S)
    child = children()[0]
    parent.kill()
    await parent.wait()
    await until(lambda: not is_alive(child), PATIENCE_S)

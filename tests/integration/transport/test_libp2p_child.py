"""The libp2p child and its parent: neither outlives or harms the other, whatever happens to either."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from roads import Libp2pRoad, TlsRoad
from tls_peers import TlsPeer, free_port, until

from edgepool.config import Limits
from edgepool.errors import LocalError
from edgepool.transport import libp2p_process
from edgepool.transport.keptport import LIBP2P_PORT_FILE
from edgepool.transport.libp2p import LINK_STREAM
from edgepool.transport.libp2p_process import ChildProcess

if find_spec("libp2p") is None:
    pytest.skip("the extra libp2p is not installed", allow_module_level=True)

PATIENCE_S = 60.0


def process_of(peer: TlsPeer) -> ChildProcess:
    road = peer.transport.libp2p
    assert road is not None
    return road.process


def pid_of(peer: TlsPeer) -> int:
    process = process_of(peer)._process
    assert process is not None
    return process.pid


async def linked(road: Libp2pRoad, a: TlsPeer, b: TlsPeer) -> None:
    a.transport.want(b.member)
    await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)


async def test_a_child_that_is_killed_is_started_again_and_links_come_back(tmp_path: Path) -> None:
    road = Libp2pRoad(tmp_path)
    async with road.peer("a") as a, road.peer("b") as b:
        await linked(road, a, b)
        where = b.transport.addresses
        os.kill(pid_of(b), signal.SIGKILL)
        await until(
            lambda: ("down", a.peer) in b.seen.events and ("down", b.peer) in a.seen.events, PATIENCE_S
        )
        await until(lambda: a.linked_to(b) and b.linked_to(a), PATIENCE_S)
        assert b.transport.addresses == where
        assert b.counters["restarted_libp2p"] == 1
        assert a.transport.send(b.peer, b"as before")
        await until(lambda: b.seen.frames == [(a.peer, b"as before")], PATIENCE_S)


async def test_a_port_that_is_left_to_the_system_is_kept_as_long_as_it_is_free(tmp_path: Path) -> None:
    road = Libp2pRoad(tmp_path)
    async with road.peer("a") as a:
        first = road.where(a)
    async with road.peer("a") as a:
        assert road.where(a) == first
    with socket.create_server(first):
        async with road.peer("a") as a:
            second = road.where(a)
            assert second != first
    async with road.peer("a") as a:
        assert road.where(a) == second
    file = tmp_path / "a" / LIBP2P_PORT_FILE
    file.write_bytes(b"99999")
    async with road.peer("a") as a:
        assert road.where(a)[1] > 0
    file.unlink()
    fixed = free_port()
    async with road.peer("a", **road.listening_at("127.0.0.1", fixed)) as a:
        assert road.where(a)[1] == fixed
    assert not file.exists()


async def test_an_attempt_that_is_given_up_harms_no_link_on_the_same_connection(tmp_path: Path) -> None:
    # As when two peers dial each other at once: who took the other's stream withdraws its own.
    road = Libp2pRoad(tmp_path)
    async with road.peer("a") as a, road.peer("b") as b:
        await linked(road, b, a)
        os.kill(pid_of(b), signal.SIGSTOP)
        try:
            attempt = process_of(a).open_stream(b.peer, "", LINK_STREAM, 20_000)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(attempt, 0.5)
            # What is said after the withdrawal tells when the child has heard of it.
            with pytest.raises(OSError, match="no connection"):
                await process_of(a).open_stream(a.peer, "", LINK_STREAM, 20_000)
        finally:
            os.kill(pid_of(b), signal.SIGCONT)
        assert a.transport.send(b.peer, b"still here")
        await until(lambda: b.seen.frames == [(a.peer, b"still here")], PATIENCE_S)
        assert a.seen.events == [("up", b.peer)]


async def test_a_child_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libp2p_process, "BEAT_S", 0.1)
    monkeypatch.setattr(libp2p_process, "DEAD_AFTER_S", 2.0)
    async with Libp2pRoad(tmp_path).peer("a") as a:
        first = pid_of(a)
        os.kill(first, signal.SIGSTOP)
        await until(lambda: process_of(a).state.restarts and process_of(a).state.running, PATIENCE_S)
        assert pid_of(a) != first


@pytest.mark.parametrize("reason", ["memory", "connections"])
async def test_a_child_that_has_grown_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(libp2p_process, "BEAT_S", 0.1)
    if reason == "connections":
        monkeypatch.setattr(libp2p_process, "RECYCLE_AFTER", 1)
    road = Libp2pRoad(tmp_path)
    async with road.peer("a") as a, road.peer("b") as b:
        await linked(road, b, a)
        process = process_of(a)
        await until(lambda: process.state.accepted, PATIENCE_S)
        if reason == "memory":
            process._memory_bytes = process.state.resident_bytes - 1
        else:
            assert process.state.restarts == 0, "it is not idle while a link stands"
            await b.transport.close()
        await until(lambda: process.state.restarts, PATIENCE_S)
        process._memory_bytes = 0
        await until(lambda: process.state.running, PATIENCE_S)


async def test_a_child_may_not_grow_without_bound(tmp_path: Path) -> None:
    async with Libp2pRoad(tmp_path).peer("a") as a:
        limits = read(f"/proc/{pid_of(a)}/limits").decode()
        bound = next(line for line in limits.splitlines() if line.startswith("Max address space")).split()[3]
        assert bound != "unlimited"


async def test_the_key_is_not_to_be_seen_from_outside(tmp_path: Path) -> None:
    async with Libp2pRoad(tmp_path).peer("a") as a:
        shown = read(f"/proc/{pid_of(a)}/cmdline") + read(f"/proc/{pid_of(a)}/environ")
        seed = a.identity.signer.seed
        for form in (seed, seed.hex().encode(), base64.b64encode(seed)):
            assert form not in shown


async def test_a_child_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    program = Path(__file__).with_name("answering_peer.py")

    for end in (signal.SIGKILL, signal.SIGTERM):
        parent = await asyncio.create_subprocess_exec(
            *(sys.executable, program, "libp2p", tmp_path, "b", str(free_port())),
            stdout=asyncio.subprocess.PIPE,
        )
        assert parent.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            await parent.stdout.readline()
        children = read(f"/proc/{parent.pid}/task/{parent.pid}/children").decode().split()
        assert len(children) == 1
        parent.send_signal(end)
        await parent.wait()
        await until(lambda: not is_alive(children[0]), PATIENCE_S)  # noqa: B023


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


async def test_without_the_extra_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libp2p_process, "find_spec", lambda name: None)
    peer = Libp2pRoad(tmp_path).peer("a")
    with pytest.raises(LocalError, match=r"install edgepool\[libp2p\]"):
        await peer.start()
    await peer.transport.close()


async def test_peers_of_both_roads_join_those_of_either(tmp_path: Path) -> None:
    tls, libp2p = TlsRoad(tmp_path), Libp2pRoad(tmp_path)
    async with (
        tls.peer("old") as old,
        TlsRoad(tmp_path).peer("both", transport="both") as both,
        libp2p.peer("new") as new,
    ):
        old.transport.want(both.member)
        new.transport.want(both.member)
        old.transport.want(new.member)
        await until(
            lambda: both.linked_to(old, new) and old.linked_to(both) and new.linked_to(both), PATIENCE_S
        )
        for peer in (old, new):
            assert both.transport.send(peer.peer, b"to either")
        await until(lambda: old.seen.frames and new.seen.frames, PATIENCE_S)
        await until(lambda: new.counters.get("refused_other_road"), PATIENCE_S)
        assert not old.linked_to(new)
        assert [address.endswith("/noise") for address in both.transport.addresses] == [False, True]


async def test_streams_that_prove_nothing_do_not_keep_members_out(tmp_path: Path) -> None:
    road = Libp2pRoad(tmp_path)
    limits = Limits(handshakes=3, handshake_timeout_ms=60_000)
    async with road.peer("a", limits=limits) as a, road.peer("b") as b, road.peer("c") as c:
        address = a.transport.addresses[0].removesuffix("/noise")
        for _ in range(8):
            stream = await process_of(b).open_stream(a.peer, address, "/edgepool/link/1", 20_000)
            stream.begin(asyncio.StreamReaderProtocol(asyncio.StreamReader()))
        c.transport.want(a.member)
        await until(lambda: a.linked_to(c) and c.linked_to(a), PATIENCE_S)
        await until(lambda: a.counters.get("refused_busy", 0) >= 5, PATIENCE_S)


async def test_a_stream_without_proof_reaches_nothing(tmp_path: Path) -> None:
    road = Libp2pRoad(tmp_path)
    limits = Limits(handshake_timeout_ms=2_000)
    async with road.peer("a", limits=limits) as a, road.peer("b") as b:
        reader = asyncio.StreamReader()
        address = a.transport.addresses[0].removesuffix("/noise")
        stream = await process_of(b).open_stream(a.peer, address, "/edgepool/link/1", 20_000)
        stream.begin(asyncio.StreamReaderProtocol(reader))
        stream.write(b"\x00\x00\x00\x05hello")
        async with asyncio.timeout(PATIENCE_S):
            try:
                while await reader.read(100):
                    pass
            except ConnectionError:
                pass
        await until(lambda: a.counters.get("refused_handshake") == 1, PATIENCE_S)
        assert a.seen.events == []

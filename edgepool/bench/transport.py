"""What a message costs on each road: in memory, over TLS, over libp2p, between two processes on loopback."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from edgepool.bench.figures import Figure, figure_of, percentile
from edgepool.bench.material import NETWORK
from edgepool.bench.processes import Helper
from edgepool.config import PeerSettings, Road
from edgepool.errors import Unavailable
from edgepool.gateway.setup import PeerPlan, make_peer_folder, read_peer_id
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member
from edgepool.runtime.ports import PeerIdentity, Transport
from edgepool.transport.identity import load_identity
from edgepool.transport.memory import MemoryNetwork, MemoryTransport
from edgepool.transport.tls import TlsTransport

MESSAGE_BYTES = 1024
UNDER_WAY = 64
"""So many messages are under way at once when the rate is measured."""
_LINK_S = 60.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Round:
    """One round on one road: seconds for one there and back, messages a second, CPU and memory."""

    round_trip_s: float
    rate: float
    cpu_s: float
    memory_bytes: int


async def measure_transport(quick: bool, folder: Path) -> list[Figure]:
    """Measure all roads in turn, several times; libp2p is left out if its extra is not installed."""
    rounds, trips, messages = (2, 50, 500) if quick else (5, 300, 10_000)
    roads = ["memory", "tls", *(["libp2p"] if find_spec("libp2p") is not None else [])]
    measured: dict[str, list[Round]] = {road: [] for road in roads}
    async with AsyncExitStack() as stack:
        sides = {road: await _open(stack, folder / road, road) for road in roads}
        for number in range(rounds + 1):
            for road, side in sides.items():
                found = await _round(side, trips, messages)
                if number:  # the first does not count
                    measured[road].append(found)
    return [figure for road in roads for figure in _figures(road, measured[road], measured["tls"])]


def _figures(road: str, rounds: list[Round], beside: list[Round]) -> list[Figure]:
    also = [] if road == "tls" else beside
    name = {"memory": "in memory", "tls": "over TLS", "libp2p": "over libp2p"}[road]

    def figure(what: str, words: str, unit: str, pick: Any) -> Figure:
        values, others = [pick(one) for one in rounds], [pick(one) for one in also]
        return figure_of(f"{road}_{what}", f"{words}, {name}", unit, values, others, "TLS" if also else "")

    figures = [
        figure("round_trip", "1 KB there and back, p50", "us", lambda one: one.round_trip_s * 1e6),
        figure("rate", "1 KB messages, both ways", "messages/s", lambda one: one.rate),
        figure("cpu", "processor time for a message, both ends", "us", lambda one: one.cpu_s * 1e6),
    ]
    if road != "memory":  # whose two ends are in the process that measures
        figures.append(
            figure("memory", "memory of an end and its child", "MB", lambda one: one.memory_bytes / 1e6)
        )
    return figures


class Side(Protocol):
    """The asking end of a link."""

    async def ask(self, data: bytes) -> None:
        """Send a frame and wait until it has come back."""
        ...

    async def flood(self, data: bytes, messages: int) -> None:
        """Send so many frames, some at a time, and wait until all have come back."""
        ...

    async def cpu_s(self) -> float:
        """Return the processor time that both ends and their children have had."""
        ...

    def memory_bytes(self) -> int:
        """Return what one end and its children have in memory."""
        ...


async def _round(side: Side, trips: int, messages: int) -> Round:
    data = b"\x5a" * MESSAGE_BYTES
    took_s = []
    for _ in range(trips):
        start_s = perf_counter()
        await side.ask(data)
        took_s.append(perf_counter() - start_s)
    cpu_before_s, start_s = await side.cpu_s(), perf_counter()
    await side.flood(data, messages)
    wall_s = perf_counter() - start_s
    cpu_s = await side.cpu_s() - cpu_before_s
    return Round(percentile(took_s, 50), 2 * messages / wall_s, cpu_s / (2 * messages), side.memory_bytes())


async def _open(stack: AsyncExitStack, folder: Path, road: str) -> Side:
    if road == "memory":
        side = Asking(PeerId(""), None)
        network = MemoryNetwork()
        here, there = (
            MemoryTransport(network, PeerIdentity(Signer(seed.ljust(32)).peer, seed.decode(), "machine", ""))
            for seed in (b"asker", b"answerer")
        )
        side.use(here, there.identity.peer)
        await here.start(side)
        await there.start(_Echo(there))
        here.want(Member(there.identity.peer, "answerer", "", there.addresses))
        stack.push_async_callback(here.close)
        stack.push_async_callback(there.close)
        return side
    transport: Road = "libp2p" if road == "libp2p" else "tls"
    asker, answerer = (PeerPlan(name, NETWORK, transport=transport) for name in ("asker", "answerer"))
    settings: PeerSettings = make_peer_folder(folder / "asker", asker, folder / "authority")
    other = read_peer_id(make_peer_folder(folder / "answerer", answerer, folder / "authority"))
    helper = await stack.enter_async_context(Helper("answerer", folder))
    far: dict[str, Any] = await helper.ask("open", size_bytes=MESSAGE_BYTES)
    side = Asking(other, helper)
    made = TlsTransport(settings, load_identity(settings), {})
    side.use(made, other)
    stack.push_async_callback(made.close)
    await made.start(side)
    made.want(Member(other, "answerer", "", tuple(far["addresses"])))
    await side.stands()
    return side


class Asking:
    """A LinkHandler that asks, and counts what comes back. Without a helper both ends are in this process."""

    def __init__(self, other: PeerId, helper: Helper | None) -> None:
        self._other = other
        self._helper = helper
        self._transport: Transport | None = None
        self._up = asyncio.Event()
        self._missing = 0
        self._came = asyncio.Event()

    def use(self, transport: Transport, other: PeerId) -> None:
        """Ask `other` over this transport."""
        self._transport, self._other = transport, other

    async def stands(self) -> None:
        """Return once the link is up."""
        try:
            async with asyncio.timeout(_LINK_S):
                await self._up.wait()
        except TimeoutError:
            raise Unavailable(f"no link on loopback within {_LINK_S:g} s") from None

    async def ask(self, data: bytes) -> None:
        """Send a frame and wait until it has come back."""
        await self.flood(data, 1)

    async def flood(self, data: bytes, messages: int) -> None:
        """Send frames, at most UNDER_WAY at a time, and wait until all have come back."""
        assert self._transport is not None
        left = messages
        self._missing = 0
        while left or self._missing:
            while left and self._missing < UNDER_WAY and self._transport.send(self._other, data):
                left -= 1
                self._missing += 1
            self._came.clear()
            async with asyncio.timeout(_LINK_S):
                await self._came.wait()

    async def cpu_s(self) -> float:
        """Return the processor time that both ends and their children have had."""
        helper = self._helper
        return cpu_of_tree_s(os.getpid()) + (cpu_of_tree_s(helper.pid) if helper is not None else 0.0)

    def memory_bytes(self) -> int:
        """Return what the other end, which does nothing else, and its child have in memory."""
        return memory_of_tree(os.getpid() if self._helper is None else self._helper.pid)

    def link_up(self, identity: PeerIdentity) -> None:
        """The link stands."""
        self._up.set()

    def link_down(self, peer: PeerId, reason: str) -> None:
        """The link is gone: what is missing will not come, and the wait ends in time."""

    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        """One has come back."""
        self._missing -= 1
        self._came.set()


class _Echo:
    """A LinkHandler that sends every frame back."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def link_up(self, identity: PeerIdentity) -> None:
        """A link stands."""

    def link_down(self, peer: PeerId, reason: str) -> None:
        """The link is gone."""

    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        """Send the frame back."""
        self._transport.send(peer, frame)


def cpu_of_tree_s(pid: int) -> float:
    """Return the processor time that a process and its libp2p child have had."""
    return sum(_cpu_s(one) for one in (pid, *_libp2p_children(pid)))


def memory_of_tree(pid: int) -> int:
    """Return what a process and its libp2p child have in memory, in bytes."""
    tree = (pid, *_libp2p_children(pid))
    return sum(int(_read(one, "statm").split()[1]) * _PAGE_BYTES for one in tree)


def _cpu_s(pid: int) -> float:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return 0.0
    return sum(int((_read(pid, f"task/{thread}/schedstat") or "0").split()[0]) for thread in threads) / 1e9


def _libp2p_children(pid: int) -> list[int]:
    found = [int(child) for child in _read(pid, f"task/{pid}/children").split()]
    return [child for child in found if "libp2p_child" in _read(child, "cmdline")]


def _read(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_text()
    except OSError:
        return ""

"""What a link and a transfer cost beside bare TLS 1.3 connections, between two processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, TypeVar

from edgepool.bench.bare import ECHO_BYTES, EchoClient, FileReceiver
from edgepool.bench.figures import Figure, Rounds, percentile
from edgepool.bench.material import NETWORK
from edgepool.bench.processes import Helper
from edgepool.config import PeerSettings
from edgepool.errors import Unavailable
from edgepool.gateway.setup import PeerPlan, make_peer_folder, read_peer_id
from edgepool.model.crypto import sha256
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Member
from edgepool.model.record import TransmissionConfirmation, sign_record
from edgepool.model.twin import DataKey, Manifest, chunk_bytes_for
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.fetching import fetch
from edgepool.transport.identity import Identity, load_identity
from edgepool.transport.tls import TlsTransport
from edgepool.transport.transfer import TransferClient

QUICK_BYTES = 32 * 1024 * 1024
FULL_BYTES = 256 * 1024 * 1024
_LINK_S = 10.0
_P = TypeVar("_P", bound=asyncio.BufferedProtocol)


async def measure_link(quick: bool, folder: Path) -> list[Figure]:
    """Measure 1 KB there and back over a link, and a transfer, each beside its bare counterpart."""
    size_bytes = QUICK_BYTES if quick else FULL_BYTES
    async with AsyncExitStack() as stack:
        asker, helper, far = await _open_link(stack, folder, size_bytes)
        echo = await _connect(stack, asker.identity, far["echo_port"], EchoClient)
        asking = await round_trips(asker.ask, echo.ask, 5 if quick else 15, 200 if quick else 500)
        manifest = manifest_of(far, size_bytes)
        receiver = await _connect(
            stack,
            asker.identity,
            far["file_port"],
            lambda: FileReceiver(size_bytes, bytes.fromhex(far["digest"])),
        )
        moving, working = await _transfers(
            lambda: asker.transfer(manifest), receiver.receive, helper, 3 if quick else 5
        )
    return [
        asking.figure("round_trip", "1 KB there and back, p50", "us", "asyncio TLS 1.3"),
        moving.figure(
            "transfer",
            f"transfer {size_bytes >> 20} MiB, checked",
            "MB/s",
            "asyncio TLS, BLAKE3",
            amount=size_bytes / 1e6,
        ),
        working.figure("transfer_cpu", "processor time for it, both sides", "ms", "asyncio TLS, BLAKE3"),
    ]


async def measure_round_trip(folder: Path, trips: int) -> float:
    """Return how many ms 1 KB takes there and back over a link to another process, p50."""
    data = sha256(b"1 KB") * (ECHO_BYTES // 32)
    took_s = []
    async with AsyncExitStack() as stack:
        asker, _, _ = await _open_link(stack, folder, ECHO_BYTES)
        for _ in range(trips):
            start_s = perf_counter()
            await asker.ask(data)
            took_s.append(perf_counter() - start_s)
    return percentile(took_s, 50) * 1000


async def _open_link(
    stack: AsyncExitStack, folder: Path, size_bytes: int
) -> tuple[Asker, Helper, dict[str, Any]]:
    """Return a link to a helper process that holds data of this size; both are ended with `stack`."""
    authority = folder / "authority"
    settings = make_peer_folder(folder / "asker", PeerPlan("asker", NETWORK), authority)
    holder = read_peer_id(make_peer_folder(folder / "answerer", PeerPlan("answerer", NETWORK), authority))
    helper = await stack.enter_async_context(Helper("answerer", folder))
    far: dict[str, Any] = await helper.ask("open", size_bytes=size_bytes)
    asker = Asker(settings, Member(holder, "answerer", "", tuple(far["addresses"])))
    stack.push_async_callback(asker.close)
    await asker.open()
    return asker, helper, far


class Asker:
    """This end of the link; a LinkHandler that waits for its frame to come back."""

    def __init__(self, settings: PeerSettings, other: Member) -> None:
        self.identity: Identity = load_identity(settings)
        self._other = other
        self._transport = TlsTransport(settings, self.identity, {})
        self._client = TransferClient(self.identity, settings.limits, self._transport.conduits.open)
        self._up = asyncio.Event()
        self._answered: asyncio.Future[bytes] | None = None

    async def open(self) -> None:
        """Return once the link stands."""
        await self._transport.start(self)
        self._transport.want(self._other)
        try:
            async with asyncio.timeout(_LINK_S):
                await self._up.wait()
        except TimeoutError:
            raise Unavailable(
                f"no link on loopback within {_LINK_S:g} s: is a firewall in the way?"
            ) from None

    async def close(self) -> None:
        """End the link, and the connection for transfers."""
        await self._client.close()
        await self._transport.close()

    def ask(self, data: bytes) -> asyncio.Future[bytes]:
        """Send a frame; the future is the answer."""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.send(self._other.peer, data)
        return self._answered

    async def transfer(self, manifest: Manifest) -> None:
        """Fetch the other side's data, every chunk checked, and throw it away."""
        sink = _Sink()
        me, other = self.identity.peer, self._other.peer
        terms = TransmissionConfirmation(
            DataKey("bench", "data"), manifest.root, manifest.size_bytes, me, other, 2**50, bytes(64)
        )
        record = sign_record(self.identity.signer, NETWORK, ChainId("0" * 40), terms, 0, 0)
        await fetch(self._client, other, self._other.addresses, record, lambda _: sink)
        if sink.size_bytes != manifest.size_bytes:
            raise Unavailable(f"{sink.size_bytes} of {manifest.size_bytes} bytes arrived")

    def link_up(self, identity: PeerIdentity) -> None:
        """The link stands."""
        self._up.set()

    def link_down(self, peer: PeerId, reason: str) -> None:
        """The link is gone, and with it the answer."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(Unavailable(f"the link ended: {reason}"))

    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        """Take the answer."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(frame)


class _Sink:
    """A ChunkSink that keeps nothing but the count."""

    def __init__(self) -> None:
        self.size_bytes = 0

    def has(self, index: int) -> bool:
        """Nothing is there: all is wanted."""
        return False

    def write(self, index: int, data: memoryview) -> None:
        """Count a chunk."""
        self.size_bytes += len(data)


async def _connect(stack: AsyncExitStack, identity: Identity, port: int, protocol: Callable[[], _P]) -> _P:
    """Open a bare TLS connection with the same certificates; it is ended with `stack`."""
    transport, made = await asyncio.get_running_loop().create_connection(
        protocol, "127.0.0.1", port, ssl=identity.link_context, server_hostname=""
    )
    stack.callback(transport.abort)
    return made


async def round_trips(
    ours: Callable[[bytes], Awaitable[bytes]],
    bare: Callable[[bytes], Awaitable[bytes]],
    rounds: int,
    trips: int,
) -> Rounds:
    """Return the p50 of each round; every answer is compared with the question."""
    data = sha256(b"1 KB") * (ECHO_BYTES // 32)
    sides: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for ask, p50s in zip((ours, bare), sides, strict=True):
            took_s = []
            for _ in range(trips):
                start_s = perf_counter()
                answer = await ask(data)
                took_s.append(perf_counter() - start_s)
                if answer != data:
                    raise Unavailable("other bytes came back than were sent")
            p50s.append(percentile(took_s, 50))
    return Rounds(tuple(sides[0][1:]), tuple(sides[1][1:]))


async def _transfers(
    ours: Callable[[], Awaitable[None]], bare: Callable[[], Awaitable[None]], helper: Helper, rounds: int
) -> tuple[Rounds, Rounds]:
    """Return how long each took, and how much processor time both processes together spent on it."""
    took: tuple[list[float], list[float]] = ([], [])
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for move, took_s, spent_s in zip((ours, bare), took, spent, strict=True):
            cpu_s = process_time() + await helper.ask("cpu_s")
            start_s = perf_counter()
            await move()
            took_s.append(perf_counter() - start_s)
            spent_s.append(process_time() + await helper.ask("cpu_s") - cpu_s)
    return Rounds(tuple(took[0][1:]), tuple(took[1][1:])), Rounds(tuple(spent[0][1:]), tuple(spent[1][1:]))


def manifest_of(far: dict[str, Any], size_bytes: int) -> Manifest:
    """Return the manifest of the other side's data, whose chunks are all alike."""
    chunk_bytes = chunk_bytes_for(size_bytes)
    manifest = Manifest(size_bytes, chunk_bytes, (bytes.fromhex(far["chunk"]),) * (size_bytes // chunk_bytes))
    if manifest.root.hex() != far["root"]:
        raise Unavailable("the two processes disagree about the data")
    return manifest

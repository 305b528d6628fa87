"""Transfers over real sockets: whole data, honest refusals, and every way in which a holder can fail."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tls_peers import NETWORK, TlsPeer, ended, make_settings, until

from edgepool.config import Limits
from edgepool.errors import LocalError, Refused, RemoteError, StorageError, Unavailable
from edgepool.model.codec import encode
from edgepool.model.crypto import data_hash
from edgepool.model.ids import ChainId
from edgepool.model.message import TransferAccept, TransferRequest, confirmation_of
from edgepool.model.record import TransmissionConfirmation, sign_record
from edgepool.model.twin import DataKey, Manifest
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.transfer import TransferServer, TransferSource, fetch

MIB = 1024 * 1024
SHORT = Limits(transfer_stall_ms=150)


def manifest_of(data: bytes, chunk_bytes: int = MIB) -> Manifest:
    chunks = [data[i : i + chunk_bytes] for i in range(0, len(data), chunk_bytes)]
    return Manifest(len(data), chunk_bytes, tuple(data_hash(chunk) for chunk in chunks))


def request_for(
    manifest: Manifest, holder: TlsPeer, requester: TlsPeer, first_chunk: int = 0
) -> TransferRequest:
    body = TransmissionConfirmation(
        DataKey("P-1", "model"),
        manifest.root,
        manifest.size_bytes,
        requester.peer,
        holder.peer,
        2**40,
        bytes(64),
    )
    return TransferRequest(
        sign_record(holder.identity.signer, NETWORK, ChainId("0" * 40), body, 1, 1), first_chunk
    )


class Collected:
    """A ChunkWriter that keeps everything in memory."""

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.chunks: dict[int, bytes] = {}

    def begin(self, manifest: Manifest) -> int:
        assert self.manifest is None
        self.manifest = manifest
        return len(self.chunks)

    def put(self, index: int, data: memoryview) -> None:
        assert index == len(self.chunks)
        self.chunks[index] = bytes(data)

    @property
    def data(self) -> bytes:
        return b"".join(self.chunks[i] for i in sorted(self.chunks))


class Holder:
    """Serves one piece of data from a file, and remembers who asked and how it ended."""

    def __init__(self, folder: Path, data: bytes, manifest: Manifest, limits: Limits) -> None:
        self.path = folder / "data.bin"
        self.path.write_bytes(data)
        self.manifest = manifest
        self.refusal = ""
        self.asked: list[str] = []
        self.ends: list[tuple[int, str]] = []
        self.moved_bytes = 0
        settings = make_settings(folder, "holder", limits=limits)
        self.counters: dict[str, int] = {}
        self.peer = TlsPeer(settings, TransferServer(self.decide, limits, self.counters))

    def decide(self, identity: PeerIdentity, request: TransferRequest) -> TransferSource | str:
        self.asked.append(identity.name)
        assert confirmation_of(request.confirmation).root == self.manifest.root
        if self.refusal:
            return self.refusal
        return TransferSource(self.manifest, self.path, self._moved, lambda *end: self.ends.append(end))

    def _moved(self, size_bytes: int) -> None:
        self.moved_bytes += size_bytes


@asynccontextmanager
async def serving(
    tmp_path: Path, data: bytes, *, manifest: Manifest | None = None, limits: Limits | None = None
) -> AsyncIterator[tuple[Holder, TlsPeer]]:
    """Run a holder of `data`; yields it and a requester (whose own transport need not run)."""
    holder = Holder(tmp_path, data, manifest or manifest_of(data), limits or Limits())
    requester = TlsPeer(make_settings(tmp_path, "requester"))
    async with holder.peer:
        yield holder, requester


async def get(
    holder: TlsPeer,
    requester: TlsPeer,
    request: TransferRequest,
    writer: Collected,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    async with asyncio.timeout(30):
        await fetch(
            requester.identity,
            holder.transport.addresses,
            holder.peer,
            request,
            writer,
            limits=limits or Limits(),
            progress=progress,
        )


@pytest.mark.parametrize("size_bytes", [0, 1, MIB, 5 * MIB + 3])
async def test_data_arrives_whole(tmp_path: Path, size_bytes: int) -> None:
    data = random.Random(size_bytes).randbytes(size_bytes)
    async with serving(tmp_path, data) as (holder, requester):
        writer = Collected()
        steps: list[tuple[int, int]] = []
        request = request_for(holder.manifest, holder.peer, requester)
        await get(holder.peer, requester, request, writer, progress=lambda *step: steps.append(step))
        assert writer.data == data
        assert writer.manifest == holder.manifest
        assert holder.asked == ["requester"]
        if data:
            assert steps[-1] == (size_bytes, size_bytes)
        await until(lambda: holder.ends)
        assert holder.ends == [(size_bytes, "")]
        assert holder.moved_bytes == size_bytes
        assert holder.counters == holder.peer.counters == {}


async def test_small_chunks_survive_a_holder_that_closes_at_once(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(700_001)
    manifest = manifest_of(data, 1024)
    for _ in range(5):
        async with serving(tmp_path, data, manifest=manifest) as (holder, requester):
            writer = Collected()
            await get(holder.peer, requester, request_for(manifest, holder.peer, requester), writer)
            assert writer.data == data


async def test_a_transfer_goes_on_where_an_earlier_one_ended(tmp_path: Path) -> None:
    data = random.Random(4).randbytes(3 * MIB + 5)
    async with serving(tmp_path, data) as (holder, requester):
        writer = Collected()
        writer.chunks = {0: data[:MIB], 1: data[MIB : 2 * MIB]}
        await get(holder.peer, requester, request_for(holder.manifest, holder.peer, requester, 2), writer)
        assert writer.data == data
        await until(lambda: holder.ends == [(MIB + 5, "")])
        # All is there already: nothing is left to send, and that is no failure.
        writer.manifest = None
        await get(holder.peer, requester, request_for(holder.manifest, holder.peer, requester, 4), writer)
        await until(lambda: holder.ends[1:] == [(0, "")])
        with pytest.raises(Refused, match="only 4 chunks"):
            await get(
                holder.peer, requester, request_for(holder.manifest, holder.peer, requester, 5), Collected()
            )
        with pytest.raises(LocalError, match="begins at chunk 2, but chunk 0"):
            await get(
                holder.peer, requester, request_for(holder.manifest, holder.peer, requester, 2), Collected()
            )


async def test_a_refusal_names_its_reason(tmp_path: Path) -> None:
    async with serving(tmp_path, b"secret") as (holder, requester):
        holder.refusal = "the confirmation has expired" + "!" * 300
        request = request_for(holder.manifest, holder.peer, requester)
        writer = Collected()
        with pytest.raises(Refused, match="the confirmation has expired") as caught:
            await get(holder.peer, requester, request, writer)
        assert holder.peer.peer in caught.value.detail
        holder.refusal = ""
        holder.path.unlink()
        with pytest.raises(Refused, match="cannot read the data"):
            await get(holder.peer, requester, request, writer)
        holder.path.write_bytes(b"other length")
        with pytest.raises(Refused, match="not as long as its manifest"):
            await get(holder.peer, requester, request, writer)
        assert writer.manifest is None
        await until(lambda: len(holder.ends) == 2)


async def test_more_requesters_than_places_are_told_busy(tmp_path: Path) -> None:
    data = bytes(64 * MIB)
    limits = Limits(transfers_served=1)
    async with serving(tmp_path, data, limits=limits) as (holder, requester):
        request = request_for(holder.manifest, holder.peer, requester)
        _, slow = await raw_transfer(holder.peer, requester, encode(request))
        slow.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: holder.asked)
        with pytest.raises(Refused, match="busy"):
            await get(holder.peer, requester, request, Collected())
        assert holder.counters == {"refused_busy": 1}
        slow.transport.abort()
        await until(lambda: holder.ends)
        assert holder.ends[0][0] < len(data)
        assert "ended the transfer early" in holder.ends[0][1]
        await get(holder.peer, requester, request, Collected())


async def test_data_larger_than_this_peer_takes_is_not_even_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes(100)) as (holder, requester):
        request = request_for(holder.manifest, holder.peer, requester)
        with pytest.raises(Refused, match="data too large"):
            await get(holder.peer, requester, request, Collected(), Limits(data_bytes=99))
        assert holder.asked == []


async def test_a_corrupted_chunk_is_named_and_not_handed_on(tmp_path: Path) -> None:
    data = random.Random(5).randbytes(3 * MIB)
    bad = data[: MIB + 7] + bytes([data[MIB + 7] ^ 1]) + data[MIB + 8 :]
    async with serving(tmp_path, bad, manifest=manifest_of(data)) as (holder, requester):
        writer = Collected()
        with pytest.raises(RemoteError, match="chunk 1 is not what") as caught:
            await get(holder.peer, requester, request_for(holder.manifest, holder.peer, requester), writer)
        assert caught.value.peer == holder.peer.peer
        assert writer.data == data[:MIB]
        await until(lambda: holder.ends and holder.ends[0][1])


async def test_what_the_writer_raises_reaches_the_caller(tmp_path: Path) -> None:
    class FullDisk(Collected):
        def put(self, index: int, data: memoryview) -> None:
            raise StorageError("the disk is full")

    async with serving(tmp_path, bytes(3 * MIB)) as (holder, requester):
        request = request_for(holder.manifest, holder.peer, requester)
        with pytest.raises(StorageError, match="the disk is full"):
            await get(holder.peer, requester, request, FullDisk())


async def test_a_cancelled_fetch_ends_the_transfer_on_both_sides(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes(96 * MIB)) as (holder, requester):
        started = asyncio.Event()
        request = request_for(holder.manifest, holder.peer, requester)
        task = asyncio.create_task(
            get(holder.peer, requester, request, Collected(), progress=lambda *_: started.set())
        )
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: holder.ends)
        assert "ended the transfer early" in holder.ends[0][1]


async def test_a_holder_that_cannot_be_reached(tmp_path: Path) -> None:
    async with serving(tmp_path, b"x") as (holder, requester), TlsPeer(make_settings(tmp_path, "c")) as other:
        request = request_for(holder.manifest, holder.peer, requester)
        addresses = (*other.transport.addresses, "nonsense", "/ip4/127.0.0.1/tcp/1")
        with pytest.raises(Unavailable, match="was not reached"):
            await fetch(
                requester.identity, addresses, holder.peer.peer, request, Collected(), limits=Limits()
            )
        writer = Collected()
        everywhere = (*addresses, *holder.peer.transport.addresses)
        await fetch(requester.identity, everywhere, holder.peer.peer, request, writer, limits=Limits())
        assert writer.data == b"x"


# --- a requester that misbehaves ------------------------------------------------------------------


async def raw_transfer(
    at: TlsPeer, as_peer: TlsPeer, body: bytes, extra: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(
        *at.where, ssl=as_peer.identity.transfer_context, server_hostname=""
    )
    writer.write(len(body).to_bytes(4, "big") + body + extra)
    return reader, writer


async def test_requests_that_are_none_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes(10), limits=Limits(handshake_timeout_ms=300)) as (holder, requester):
        request = encode(request_for(holder.manifest, holder.peer, requester))
        for body, extra in ((b"garbage", b""), (bytes(70_000), b""), (b"", b""), (request, b"more")):
            reader, writer = await raw_transfer(holder.peer, requester, body, extra)
            assert await ended(reader)
            writer.close()
        await until(lambda: holder.counters == {"refused_garbage": 4})
        # One that never asks is not waited for.
        reader, writer = await asyncio.open_connection(
            *holder.peer.where, ssl=requester.identity.transfer_context, server_hostname=""
        )
        assert await ended(reader)
        writer.close()
        await until(lambda: holder.counters == {"refused_garbage": 5})


async def test_a_requester_that_stops_reading_loses_its_place(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes(64 * MIB), limits=SHORT) as (holder, requester):
        request = request_for(holder.manifest, holder.peer, requester)
        _, writer = await raw_transfer(holder.peer, requester, encode(request))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: holder.ends)
        assert holder.ends[0][1] == "the requester stalled"
        writer.transport.abort()


# --- a holder that misbehaves ---------------------------------------------------------------------


@asynccontextmanager
async def rogue_holder(
    tmp_path: Path, answer: Callable[[asyncio.StreamWriter], object]
) -> AsyncIterator[tuple[TlsPeer, TlsPeer, tuple[str, ...]]]:
    """A member whose software we control: it reads the request, then does what `answer` does."""
    rogue = TlsPeer(make_settings(tmp_path, "rogue"))
    requester = TlsPeer(make_settings(tmp_path, "requester"))
    context = rogue.identity.server_context
    context.verify_mode = ssl.CERT_NONE
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        size_bytes = int.from_bytes(await reader.readexactly(4), "big")
        await reader.readexactly(size_bytes)
        answer(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield rogue, requester, (f"/ip4/127.0.0.1/tcp/{server.sockets[0].getsockname()[1]}",)
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


def accept(manifest: Manifest) -> bytes:
    body = encode(TransferAccept(manifest))
    return len(body).to_bytes(4, "big") + body


async def from_rogue(
    tmp_path: Path,
    manifest: Manifest,
    answer: Callable[[asyncio.StreamWriter], object],
    writer: Collected,
    limits: Limits = SHORT,
) -> None:
    async with rogue_holder(tmp_path, answer) as (rogue, requester, addresses), asyncio.timeout(20):
        request = request_for(manifest, rogue, requester)
        await fetch(requester.identity, addresses, rogue.peer, request, writer, limits=limits)


async def test_data_that_ends_early_can_be_gone_on_with(tmp_path: Path) -> None:
    data = random.Random(6).randbytes(2 * MIB)
    manifest = manifest_of(data)

    def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(accept(manifest) + data[: MIB + 1000])
        writer.close()

    collected = Collected()
    with pytest.raises(Unavailable, match="ended the transfer early: 1 of 2 chunks"):
        await from_rogue(tmp_path, manifest, answer, collected)
    assert collected.data == data[:MIB]


async def test_data_that_stalls_is_given_up(tmp_path: Path) -> None:
    data = bytes(2 * MIB)
    manifest = manifest_of(data)
    with pytest.raises(Unavailable, match="stalled: 1 of 2 chunks"):
        await from_rogue(tmp_path, manifest, lambda w: w.write(accept(manifest) + data[:-1]), Collected())
    with pytest.raises(Unavailable, match="stalled: no answer"):
        await from_rogue(tmp_path, manifest, lambda w: w.write(b"\0"), Collected())


async def test_a_trickle_is_a_stall_too(tmp_path: Path) -> None:
    manifest = manifest_of(bytes(MIB))

    def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(accept(manifest))

        def drip() -> None:
            if not writer.transport.is_closing():
                writer.write(b"\0")
                asyncio.get_running_loop().call_later(0.02, drip)

        drip()

    with pytest.raises(Unavailable, match="stalled"):
        await from_rogue(tmp_path, manifest, answer, Collected())


async def test_more_data_than_the_manifest_says(tmp_path: Path) -> None:
    manifest = manifest_of(b"abc")
    with pytest.raises(RemoteError, match="more than its manifest"):
        await from_rogue(tmp_path, manifest, lambda w: w.write(accept(manifest) + b"abcd"), Collected())
    empty = manifest_of(b"")
    with pytest.raises(RemoteError, match="more than its manifest"):
        await from_rogue(tmp_path, empty, lambda w: w.write(accept(empty) + b"d"), Collected())


async def test_a_holder_that_never_closes_does_not_keep_us(tmp_path: Path) -> None:
    manifest = manifest_of(b"abc")
    collected = Collected()
    await from_rogue(tmp_path, manifest, lambda w: w.write(accept(manifest) + b"abc"), collected)
    assert collected.data == b"abc"


async def test_a_manifest_that_was_not_confirmed(tmp_path: Path) -> None:
    confirmed = manifest_of(b"what was asked for")
    collected = Collected()
    for manifest, complaint in (
        (manifest_of(b"something else"), "root of its manifest"),
        (Manifest(5, MIB, ()), "root of its manifest"),
    ):
        with pytest.raises(RemoteError, match=complaint):
            await from_rogue(tmp_path, confirmed, lambda w, m=manifest: w.write(accept(m)), collected)  # type: ignore[misc]
    # Confirmed, but made to hurt: wrong count, or chunks too large to hold in memory.
    for manifest, complaint in (
        (Manifest(5, MIB, ()), "number of chunks"),
        (Manifest(2**30, 2**30, (bytes(32),)), "too large"),
    ):
        with pytest.raises(RemoteError, match=complaint):
            await from_rogue(tmp_path, manifest, lambda w, m=manifest: w.write(accept(m)), collected)  # type: ignore[misc]
    for junk in (b"\xff\xff\xff\xff", b"\0\0\0\3abc", b"\0\0\0\0"):
        with pytest.raises(RemoteError, match="its answer"):
            await from_rogue(tmp_path, confirmed, lambda w, j=junk: w.write(j), collected)  # type: ignore[misc]
    assert collected.manifest is None

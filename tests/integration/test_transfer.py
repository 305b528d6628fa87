"""Transfers over real sockets: whole data from one and from many, honest refusals, and what can go wrong."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tls_peers import NETWORK, TlsPeer, ended, make_settings, until

from edgepool.config import Limits
from edgepool.errors import EdgepoolError, Refused, RemoteError, StorageError, Unavailable
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import data_hash
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import DataDemand, SignedRecord, TransmissionConfirmation, sign_record
from edgepool.model.transfer import (
    AES_128_GCM,
    PLAIN,
    ChunkRequest,
    ToHolder,
    TransferAccept,
    TransferRequest,
)
from edgepool.model.twin import DataKey, Manifest
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.dial import Way, open_direct
from edgepool.transport.fetching import Fetch, fetch
from edgepool.transport.lane import LANE, LaneKey
from edgepool.transport.receiving import ChunkSink, WrongChunk
from edgepool.transport.serving import TransferSource
from edgepool.transport.session import MAX_OWED
from edgepool.transport.smalldata import SmallData
from edgepool.transport.transfer import TransferClient
from edgepool.transport.transfer_server import CONNECTIONS, TransferServer

MIB = 1024 * 1024
SHORT = Limits(transfer_stall_ms=300)


def manifest_of(data: bytes, chunk_bytes: int = MIB) -> Manifest:
    chunks = [data[i : i + chunk_bytes] for i in range(0, len(data), chunk_bytes)]
    return Manifest(len(data), chunk_bytes, tuple(data_hash(chunk) for chunk in chunks))


def confirmation_for(manifest: Manifest, holder: TlsPeer, requester: TlsPeer) -> SignedRecord:
    body = TransmissionConfirmation(
        DataKey("P-1", "model"),
        manifest.root,
        manifest.size_bytes,
        requester.peer,
        holder.peer,
        2**40,
        bytes(64),
    )
    return sign_record(holder.identity.signer, NETWORK, ChainId("0" * 40), body, 1, 1)


class Kept:
    """A sink that keeps everything in memory."""

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.chunks: dict[int, bytes] = {}

    def open(self, manifest: Manifest) -> ChunkSink:
        self.manifest = manifest
        return self

    def has(self, index: int) -> bool:
        return index in self.chunks

    def write(self, index: int, data: memoryview) -> None:
        assert index not in self.chunks
        self.chunks[index] = bytes(data)

    @property
    def data(self) -> bytes:
        return b"".join(self.chunks[i] for i in sorted(self.chunks))


class Held:
    """Lets no more than `free_bytes` be sent before `go`."""

    limits = True

    def __init__(self, free_bytes: int = 0) -> None:
        self._gate = threading.Event()
        self._free_bytes = free_bytes

    def wait(self, size_bytes: int) -> None:
        self._free_bytes -= size_bytes
        if self._free_bytes < 0:
            self._gate.wait()

    def go(self) -> None:
        self._gate.set()


class Together:
    """Lets nothing be sent before all others of the barrier would send, too."""

    limits = True

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier
        self._begun = False

    def wait(self, size_bytes: int) -> None:
        if not self._begun:
            self._begun = True
            self._barrier.wait(timeout=40)


class Careless(SmallData):
    """Looks at nothing that is served, as the software of a liar would."""

    def keep(self, manifest: Manifest, data: bytes) -> bool:
        return True


class Holder:
    """Serves one piece of data from a file, and remembers who asked and how it ended."""

    def __init__(self, folder: Path, data: bytes, manifest: Manifest, limits: Limits) -> None:
        folder.mkdir(exist_ok=True)
        self.path = folder / "data.bin"
        self.path.write_bytes(data)
        self.manifest = manifest
        self.refusal = ""
        self.refuses_chunks = ""
        self.has: frozenset[int] | None = None
        self.pace: Held | Together | None = None
        self.asked: list[str] = []
        self.ends: list[tuple[int, str]] = []
        self.moved_bytes = 0
        self.limits = limits
        self.counters: dict[str, int] = {}
        self.server = TransferServer(self.decide, limits, self.counters)
        settings = make_settings(folder.parent, f"holder{folder.name}", limits=limits)
        self.peer = TlsPeer(settings, self.server)

    def decide(self, identity: PeerIdentity, request: TransferRequest, _: Way) -> TransferSource | str:
        self.asked.append(identity.name)
        if self.refusal:
            return self.refusal
        return TransferSource(
            self.manifest,
            self.path,
            self._moved,
            lambda *end: self.ends.append(end),
            lambda: self.refuses_chunks,
            self.pace,
            self.has,
        )

    def _moved(self, size_bytes: int) -> None:
        self.moved_bytes += size_bytes


class Requester:
    """A peer that fetches; its own transport need not run."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.peer = TlsPeer(make_settings(folder, "requester", limits=limits))
        self.client = TransferClient(self.peer.identity, limits)

    async def get(
        self,
        holder: Holder,
        kept: Kept,
        moved: Callable[[PeerId, int], None] = lambda holder, size_bytes: None,
        manifest: Manifest | None = None,
    ) -> Fetch:
        confirmation = confirmation_for(manifest or holder.manifest, holder.peer, self.peer)
        async with asyncio.timeout(30):
            addresses = holder.peer.transport.addresses
            return await fetch(self.client, holder.peer.peer, addresses, confirmation, kept.open, moved)


@asynccontextmanager
async def serving(
    tmp_path: Path,
    data: bytes,
    *,
    manifest: Manifest | None = None,
    limits: Limits | None = None,
    count: int = 1,
) -> AsyncIterator[tuple[list[Holder], Requester]]:
    """Run holders of `data`; yields them and a requester."""
    requester = Requester(tmp_path, limits or Limits())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(requester.client.close)
        holders = []
        for number in range(count):
            folder = tmp_path / str(number)
            holder = Holder(folder, data, manifest or manifest_of(data), limits or Limits())
            holders.append(holder)
            await stack.enter_async_context(holder.peer)
        yield holders, requester


@pytest.mark.parametrize("size_bytes", [0, 1, 65536, 65537, MIB, 5 * MIB + 3])
async def test_data_arrives_whole(tmp_path: Path, size_bytes: int) -> None:
    data = random.Random(size_bytes).randbytes(size_bytes)
    async with serving(tmp_path, data) as ([holder], requester):
        kept = Kept()
        steps: list[int] = []
        fetched = await requester.get(holder, kept, lambda _, step: steps.append(step))
        assert kept.data == data
        assert kept.manifest == holder.manifest
        assert holder.asked == ["requester"]
        assert sum(steps) == size_bytes
        assert fetched.shares == ({holder.peer.peer: size_bytes} if data else {})
        await until(lambda: holder.ends)
        assert holder.ends == [(size_bytes, "")]
        assert holder.moved_bytes == size_bytes
        assert holder.counters == holder.peer.counters == {}


async def test_a_connection_serves_many_transfers_one_after_the_other_and_at_once(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 * MIB)
    async with serving(tmp_path, data) as ([holder], requester):
        dialled: list[str] = []
        real = requester.client.open_stream

        async def open_stream(address: str):  # type: ignore[no-untyped-def]
            dialled.append(address)
            return await real(address)

        requester.client.open_stream = open_stream
        sinks = [Kept() for _ in range(8)]
        await requester.get(holder, sinks[0])
        await asyncio.gather(*(requester.get(holder, sink) for sink in sinks[1:]))
        assert all(sink.data == data for sink in sinks)
        assert len(dialled) == 1 + len(sinks)  # one for all requests, one for the data of each


async def test_a_connection_that_the_holder_closed_is_made_again(tmp_path: Path) -> None:
    async with serving(tmp_path, b"data") as ([holder], requester):
        await requester.get(holder, Kept())
        holder.server.cut(requester.peer.peer, "its place is needed")
        kept = Kept()
        await requester.get(holder, kept)
        assert kept.data == b"data"


async def test_a_transfer_goes_on_where_an_earlier_one_ended(tmp_path: Path) -> None:
    data = random.Random(4).randbytes(3 * MIB + 5)
    async with serving(tmp_path, data) as ([holder], requester):
        kept = Kept()
        kept.chunks = {0: data[:MIB], 2: data[2 * MIB : 3 * MIB]}
        fetched = await requester.get(holder, kept)
        assert kept.data == data
        assert fetched.shares == {holder.peer.peer: MIB + 5}
        await until(lambda: holder.ends == [(MIB + 5, "")])
        # All is there already: nothing is left to send, and that is no failure.
        assert (await requester.get(holder, kept)).shares == {}
        await until(lambda: holder.ends[1:] == [(0, "")])


async def test_a_refusal_names_its_reason(tmp_path: Path) -> None:
    async with serving(tmp_path, b"secret") as ([holder], requester):
        holder.refusal = "the requester may not read this" + "!" * 300
        with pytest.raises(Refused, match="the requester may not read this") as caught:
            await requester.get(holder, Kept())
        assert holder.peer.peer in caught.value.detail
        holder.refusal = ""
        holder.path.unlink()
        with pytest.raises(Refused, match="cannot read the data"):
            await requester.get(holder, Kept())
        holder.path.write_bytes(b"other length")
        with pytest.raises(Refused, match="not as long as its manifest"):
            await requester.get(holder, Kept())
        await until(lambda: len(holder.ends) == 2)


async def test_a_confirmation_that_runs_out_ends_the_transfer_at_the_next_request(tmp_path: Path) -> None:
    data = bytes(12 * MIB)
    async with serving(tmp_path, data) as ([holder], requester):
        kept = Kept()

        def moved(_: PeerId, __: int) -> None:
            holder.refuses_chunks = "the confirmation has expired"

        with pytest.raises(Refused, match="the confirmation has expired"):
            await requester.get(holder, kept, moved)
        assert 0 < len(kept.chunks) < 12
        await until(lambda: holder.ends)
        assert holder.ends[0][1] == "the confirmation has expired"


async def test_more_requesters_than_places_are_told_busy(tmp_path: Path) -> None:
    data = bytes(4 * MIB)
    async with serving(tmp_path, data, limits=Limits(transfers_served=1)) as ([holder], requester):
        holder.pace = held = Held()
        slow = asyncio.create_task(requester.get(holder, Kept()))
        await until(lambda: holder.server.serving)
        with pytest.raises(Refused, match="busy"):
            await requester.get(holder, Kept())
        assert holder.counters == {"refused_busy": 1}
        held.go()
        await slow
        await until(lambda: not holder.server.serving)
        await requester.get(holder, Kept())


async def test_data_larger_than_this_peer_takes_is_not_even_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes(100), limits=Limits(data_bytes=99)) as ([holder], requester):
        with pytest.raises(Refused, match="data too large"):
            await requester.get(holder, Kept())
        assert holder.asked == []


@pytest.mark.parametrize("size_bytes", [3 * MIB, 5000])
async def test_a_wrong_chunk_is_named_and_not_handed_on(tmp_path: Path, size_bytes: int) -> None:
    data = random.Random(5).randbytes(size_bytes)
    at = size_bytes // 2
    bad = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    async with serving(tmp_path, bad, manifest=manifest_of(data)) as ([holder], requester):
        holder.server.small = Careless()
        kept = Kept()
        with pytest.raises(WrongChunk, match="is not what its manifest says") as caught:
            await requester.get(holder, kept)
        assert (caught.value.peer, caught.value.index) == (holder.peer.peer, at // MIB)
        assert all(chunk == data[i * MIB : (i + 1) * MIB] for i, chunk in kept.chunks.items())
        await until(lambda: holder.ends)


async def test_what_the_sink_raises_reaches_the_caller(tmp_path: Path) -> None:
    class FullDisk(Kept):
        def write(self, index: int, data: memoryview) -> None:
            raise StorageError("the disk is full")

    for size_bytes in (3 * MIB, 100):
        async with serving(tmp_path, bytes(size_bytes)) as ([holder], requester):
            with pytest.raises(StorageError, match="the disk is full"):
                await requester.get(holder, FullDisk())


async def test_a_cancelled_fetch_ends_the_transfer_on_both_sides(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes(12 * MIB)) as ([holder], requester):
        holder.pace = held = Held(free_bytes=3 * MIB)  # it is not over before it is cancelled
        started = asyncio.Event()
        task = asyncio.create_task(requester.get(holder, Kept(), lambda *_: started.set()))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.go()
        await until(lambda: holder.ends)
        assert "ended the transfer early" in holder.ends[0][1]


async def test_a_holder_that_cannot_be_reached(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, b"x") as ([holder], requester),
        TlsPeer(make_settings(tmp_path, "c")) as other,
    ):
        confirmation = confirmation_for(holder.manifest, holder.peer, requester.peer)
        addresses = (*other.transport.addresses, "nonsense", "/ip4/127.0.0.1/tcp/1")
        with pytest.raises(Unavailable, match="was not reached"):
            await fetch(requester.client, holder.peer.peer, addresses, confirmation, Kept().open)
        kept = Kept()
        everywhere = (*addresses, *holder.peer.transport.addresses)
        await fetch(requester.client, holder.peer.peer, everywhere, confirmation, kept.open)
        assert kept.data == b"x"


async def test_a_manifest_that_was_not_confirmed(tmp_path: Path) -> None:
    confirmed = manifest_of(b"what was asked for")
    kept = Kept()
    for manifest, complaint in (
        (manifest_of(b"something else"), "root of its manifest"),
        # Confirmed, but made to hurt: wrong count, or chunks too large to hold in memory.
        (Manifest(0, MIB, (bytes(32),)), "number of chunks"),
        (Manifest(5, 2**30, (bytes(32),)), "too large"),
    ):
        async with serving(tmp_path, bytes(manifest.size_bytes), manifest=manifest) as (
            [holder],
            requester,
        ):
            wanted = confirmed if "root" in complaint else manifest
            holder.server.small = Careless()
            with pytest.raises(RemoteError, match=complaint):
                await requester.get(holder, kept, manifest=wanted)
    assert kept.manifest is None


# --- many holders ---------------------------------------------------------------------------------


async def gather(
    requester: Requester,
    holders: list[Holder],
    kept: Kept,
    moved: Callable[[PeerId, int], None] | None = None,
) -> tuple[Fetch, list[EdgepoolError]]:
    manifest = holders[0].manifest
    whole = Fetch(
        requester.client, manifest.root, manifest.size_bytes, kept.open, moved or (lambda holder, size: None)
    )
    draws = [
        whole.draw_from(
            holder.peer.peer,
            holder.peer.transport.addresses,
            confirmation_for(manifest, holder.peer, requester.peer),
        )
        for holder in holders
    ]
    async with asyncio.timeout(40):
        ends = await asyncio.gather(*draws, return_exceptions=True)
        await whole.finish()
    return whole, [end for end in ends if isinstance(end, EdgepoolError)]


async def test_many_holders_send_at_once_and_each_chunk_is_kept_once(tmp_path: Path) -> None:
    data = random.Random(6).randbytes(24 * MIB + 7)
    async with serving(tmp_path, data, count=3) as (holders, requester):
        together = threading.Barrier(3)  # none of them sends all before another has begun
        for holder in holders:
            holder.pace = Together(together)
        kept = Kept()
        fetched, failures = await gather(requester, holders, kept)
        assert failures == []
        assert kept.data == data
        assert sum(fetched.shares.values()) == len(data)
        assert len(fetched.shares) == 3


async def test_a_dead_a_lying_and_a_refusing_holder_cost_only_themselves(tmp_path: Path) -> None:
    data = random.Random(7).randbytes(24 * MIB)
    async with serving(tmp_path, data, count=4) as (holders, requester):
        dead, lying, refusing, honest = holders
        lying.path.write_bytes(bytes(len(data)))
        refusing.refusal = "not now"
        honest.pace = held = Held()  # until the others have done what they do

        def moved(holder: PeerId, _: int) -> None:
            if holder == dead.peer.peer:
                dead.server.cut(requester.peer.peer, "it died")

        kept = Kept()
        gathering = asyncio.create_task(gather(requester, holders, kept, moved))
        await until(lambda: dead.ends and lying.ends and refusing.asked)
        held.go()
        fetched, failures = await gathering
        assert kept.data == data
        assert sum(fetched.shares.values()) == len(data)
        assert sorted(type(one).__name__ for one in failures) == ["Refused", "Unavailable", "WrongChunk"]


async def test_a_silent_holder_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """Its chunks are asked from the other one long before it counts as stalled."""
    data = random.Random(8).randbytes(12 * MIB)
    async with serving(tmp_path, data, count=2, limits=Limits(transfer_stall_ms=60_000)) as (
        holders,
        requester,
    ):
        silent = holders[0]
        silent.pace = held = Held()
        kept = Kept()
        fetched, failures = await gather(requester, holders, kept)
        held.go()
        assert (kept.data, failures) == (data, [])
        assert fetched.shares == {holders[1].peer.peer: len(data)}


async def test_a_holder_that_has_a_part_is_asked_for_that_part_only(tmp_path: Path) -> None:
    data = random.Random(9).randbytes(8 * MIB)
    async with serving(tmp_path, data, count=2) as (holders, requester):
        holders[0].has = frozenset({1, 5})
        holders[0].path.write_bytes(data[: 6 * MIB])
        kept = Kept()
        fetched, failures = await gather(requester, holders, kept)
        assert (kept.data, failures) == (data, [])
        assert fetched.shares.get(holders[0].peer.peer, 0) <= 2 * MIB


# --- a requester that misbehaves ------------------------------------------------------------------


async def raw(
    holder: Holder, requester: Requester, *messages: ToHolder | bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(
        *holder.peer.where, ssl=requester.peer.identity.transfer_context, server_hostname=""
    )
    for message in messages:
        body = message if isinstance(message, bytes) else encode(message)
        writer.write(len(body).to_bytes(4, "big") + body)
    return reader, writer


def request_for(holder: Holder, requester: Requester, number: int = 0) -> TransferRequest:
    confirmation = confirmation_for(holder.manifest, holder.peer, requester.peer)
    return TransferRequest(number, confirmation, bytes(32), (AES_128_GCM,), (PLAIN,), True, ())


async def test_requests_that_are_none_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes(MIB), limits=Limits(handshake_timeout_ms=2500)) as (
        [holder],
        requester,
    ):
        request = request_for(holder, requester)
        attacks: list[tuple[ToHolder | bytes, ...]] = [
            (b"garbage",),
            (bytes(70_000),),
            (b"",),
            (request, request),  # a number that was used before
            (request, ChunkRequest(0, 1, 1)),  # there is one chunk
            (request, ChunkRequest(0, 0, 2)),
            (request, *[ChunkRequest(0, 0, 1)] * (MAX_OWED + 1)),
        ]
        for attack in attacks:
            reader, writer = await raw(holder, requester, *attack)
            assert await ended(reader)
            writer.close()
        await until(lambda: holder.counters == {"refused_garbage": len(attacks)})
        # One that never asks is not waited for.
        reader, writer = await raw(holder, requester)
        assert await ended(reader)
        writer.close()
        await until(lambda: holder.counters == {"refused_garbage": len(attacks) + 1})
        await until(lambda: not holder.server.serving)


async def test_a_cipher_that_is_not_known_is_not_taken(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes(MIB)) as ([holder], requester):
        confirmation = confirmation_for(holder.manifest, holder.peer, requester.peer)
        for ciphers, encodings in ((("null",), (PLAIN,)), ((), (PLAIN,)), ((AES_128_GCM,), ())):
            request = TransferRequest(0, confirmation, bytes(32), ciphers, encodings, True, ())
            reader, writer = await raw(holder, requester, request)
            size_bytes = int.from_bytes(await reader.readexactly(4), "big")
            assert b"in common" in await reader.readexactly(size_bytes)
            writer.close()
        assert holder.server.serving == {}


async def test_a_token_is_good_once_and_guesses_are_sent_away(tmp_path: Path) -> None:
    data = bytes(12 * MIB)
    async with serving(tmp_path, data) as ([holder], requester):
        tokens: list[bytes] = []
        real = holder.server.take

        def take(connection, token):  # type: ignore[no-untyped-def]
            tokens.append(token)
            return real(connection, token)

        holder.peer.transport._listener.plain[LANE] = take
        await requester.get(holder, Kept())
        assert len(tokens) == 1
        for token in (tokens[0], bytes(32)):
            reader, writer = await asyncio.open_connection(*holder.peer.where)
            writer.write(LANE + token)
            assert await reader.read() == b""
            writer.close()
        assert holder.peer.counters == {"refused_token": 2}


async def test_a_transfer_whose_data_connection_never_comes_gives_its_place_up(tmp_path: Path) -> None:
    limits = Limits(handshake_timeout_ms=1500)
    async with serving(tmp_path, bytes(MIB), limits=limits) as ([holder], requester):
        _, writer = await raw(holder, requester, request_for(holder, requester))
        await until(lambda: holder.ends)
        assert holder.ends == [(0, "no data connection came")]
        assert holder.server.serving == {}
        writer.close()


async def test_a_requester_that_stops_reading_loses_its_place(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes(64 * MIB), limits=SHORT) as ([holder], requester):
        request = request_for(holder, requester)
        reader, writer = await raw(holder, requester, request, ChunkRequest(0, 0, 64))
        accept = decode(TransferAccept, await reader.readexactly(int.from_bytes(await reader.readexactly(4))))
        terms = [NETWORK, holder.peer.peer, requester.peer.peer, 0, holder.manifest.root]
        key = LaneKey(accept.cipher, (request.share, accept.share), terms)
        connection = await open_direct(holder.peer.transport.addresses[0])
        await asyncio.get_running_loop().sock_sendall(connection, LANE + key.token)
        await until(lambda: holder.ends)
        assert holder.ends[0][1] == "the requester stalled"
        assert holder.ends[0][0] < 64 * MIB
        connection.close()
        writer.transport.abort()


async def test_idle_connections_give_their_places_to_new_ones(tmp_path: Path) -> None:
    """Thousands of connections that say nothing are bounded, and an honest requester still gets through."""
    limits = Limits(transfers_served=1, handshakes=8)
    async with serving(tmp_path, b"small", limits=limits) as ([holder], requester):
        idle = [await raw(holder, requester) for _ in range(3 * CONNECTIONS)]
        half_open = [await asyncio.open_connection(*holder.peer.where) for _ in range(200)]
        for _, writer in half_open[::2]:
            writer.write(LANE)
        kept = Kept()
        await requester.get(holder, kept)
        assert kept.data == b"small"
        assert len(holder.server._sessions) <= CONNECTIONS
        assert len(holder.peer.transport._listener._handshakes) <= limits.handshakes
        for _, writer in (*idle, *half_open):
            writer.transport.abort()


async def test_a_request_must_name_a_confirmation(tmp_path: Path) -> None:
    async with serving(tmp_path, b"x") as ([holder], requester):
        demand = DataDemand(DataKey("P-1", "model"), 0, "", "")
        record = sign_record(holder.peer.identity.signer, NETWORK, ChainId("0" * 40), demand, 1, 1)
        request = TransferRequest(0, record, bytes(32), (AES_128_GCM,), (PLAIN,), True, ())
        reader, writer = await raw(holder, requester, request)
        assert await ended(reader)
        writer.close()
        assert holder.asked == []

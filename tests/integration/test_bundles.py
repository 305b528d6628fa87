"""Bundles of small data over real sockets: whole, refused in part, cut, forged; and bad requesters."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from test_transfer import confirmation_for, manifest_of, raw, serving
from tls_peers import TlsPeer, make_settings, until

from edgepool.config import Limits
from edgepool.errors import EdgepoolError, Refused, RemoteError, StorageError, Unavailable
from edgepool.model.ids import PeerId
from edgepool.model.record import SignedRecord, TransmissionConfirmation
from edgepool.model.transfer import (
    AES_128_GCM,
    INLINE_BYTES,
    BundleRequest,
    ChunkRequest,
    ItemRequest,
    TransferRequest,
    confirmation_of,
)
from edgepool.model.twin import DataKey, Manifest, small_manifest
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.bundles import BundleReceiver, fetch_bundle
from edgepool.transport.dial import Way
from edgepool.transport.lane import LAST, LaneKey, Sealer, put_item_header
from edgepool.transport.serving import TransferSource
from edgepool.transport.smalldata import DAMAGED, SmallData
from edgepool.transport.transfer import TransferClient
from edgepool.transport.transfer_bundle import MAX_ITEMS_OWED
from edgepool.transport.transfer_server import TransferServer

SIZES = (10_000, 1, 0, INLINE_BYTES, 777)
KEY = LaneKey(AES_128_GCM, (b"r" * 32, b"h" * 32), ["terms"])


class Shelf:
    """A holder of many pieces of small data, and a requester."""

    def __init__(self, folder: Path, count: int, limits: Limits) -> None:
        draw = random.Random(count)
        self.data = [draw.randbytes(SIZES[number % len(SIZES)]) for number in range(count)]
        self.refuses: dict[bytes, str] = {}
        self.ends: list[tuple[int, str]] = []
        self.paths: dict[bytes, Path] = {}
        self.manifests: list[Manifest] = []
        for number, data in enumerate(self.data):
            manifest = small_manifest(data)
            self.manifests.append(manifest)
            self.paths[manifest.root] = folder / str(number)
            self.paths[manifest.root].write_bytes(data)
        self.counters: dict[str, int] = {}
        self.server = TransferServer(self._decide, limits, self.counters)
        self.holder = TlsPeer(make_settings(folder, "holder", limits=limits), self.server)
        self.requester = TlsPeer(make_settings(folder, "requester", limits=limits))
        self.client = TransferClient(self.requester.identity, limits)
        self.kept: dict[int, bytes] = {}

    def _decide(self, identity: PeerIdentity, request: TransferRequest, _: Way) -> TransferSource | str:
        root = confirmation_of(request.confirmation).root
        if root in self.refuses:
            return self.refuses[root]
        manifest = next(one for one in self.manifests if one.root == root)
        return TransferSource(manifest, self.paths[root], lambda _: None, lambda *end: self.ends.append(end))

    def keep(self, index: int, manifest: Manifest, data: memoryview) -> None:
        assert index not in self.kept
        assert manifest == self.manifests[index]
        self.kept[index] = bytes(data)

    def confirmations(self) -> list[SignedRecord]:
        return [confirmation_for(manifest, self.holder, self.requester) for manifest in self.manifests]

    async def get(self, keep: Any = None) -> dict[int, EdgepoolError]:
        async with asyncio.timeout(45):
            addresses = self.holder.transport.addresses
            return await fetch_bundle(
                self.client, self.holder.peer, addresses, self.confirmations(), keep or self.keep
            )


@asynccontextmanager
async def shelf(folder: Path, count: int, limits: Limits | None = None) -> AsyncIterator[Shelf]:
    made = Shelf(folder, count, limits or Limits())
    async with made.holder:
        try:
            yield made
        finally:
            await made.client.close()


@pytest.mark.parametrize("count", [1, 5, 700])
async def test_all_items_arrive_as_they_were_confirmed(tmp_path: Path, count: int) -> None:
    async with shelf(tmp_path, count) as made:
        assert await made.get() == {}
        assert [made.kept[index] for index in range(count)] == made.data
        await until(lambda: len(made.ends) == count)
        assert sorted(made.ends) == sorted((len(data), "") for data in made.data)
        await until(lambda: not made.server.serving)


async def test_items_that_are_refused_missing_or_damaged_cost_only_themselves(tmp_path: Path) -> None:
    async with shelf(tmp_path, 20) as made:
        roots = [manifest.root for manifest in made.manifests]
        made.refuses[roots[3]] = "not for you"
        made.paths[roots[6]].unlink()
        made.paths[roots[10]].write_bytes(bytes(10_000))
        failures = await made.get()
        assert sorted(failures) == [3, 6, 10]
        assert all(isinstance(error, Refused) for error in failures.values())
        assert "not for you" in str(failures[3])
        assert "cannot read" in str(failures[6])
        assert DAMAGED in str(failures[10])
        assert set(made.kept) == set(range(20)) - {3, 6, 10}
        await until(lambda: len(made.ends) == 19)  # nobody began what was refused at once


async def test_a_holder_that_is_lost_costs_what_had_not_come(tmp_path: Path) -> None:
    async with shelf(tmp_path, 600) as made:
        loop = asyncio.get_running_loop()

        is_cut = threading.Event()

        def cut() -> None:
            made.server.cut(made.requester.peer, "it died")
            is_cut.set()

        def keep(index: int, manifest: Manifest, data: memoryview) -> None:
            made.keep(index, manifest, data)
            if index == 20:  # not all of the others have been asked for by then
                loop.call_soon_threadsafe(cut)
                assert is_cut.wait(40)

        failures = await made.get(keep)
        assert failures
        assert set(failures) == set(range(600)) - set(made.kept)
        assert all(isinstance(error, (Unavailable, Refused)) for error in failures.values())
        assert all(made.kept[index] == made.data[index] for index in made.kept)
        await until(lambda: len(made.ends) == len({*made.ends}) or not made.server.serving)


async def test_what_keeping_raises_reaches_the_caller(tmp_path: Path) -> None:
    async with shelf(tmp_path, 50) as made:

        def keep(index: int, manifest: Manifest, data: memoryview) -> None:
            raise StorageError("the disk is full")

        with pytest.raises(StorageError, match="the disk is full"):
            await made.get(keep)
        await until(lambda: not made.server.serving)


async def test_a_cancelled_bundle_ends_on_both_sides(tmp_path: Path) -> None:
    async with shelf(tmp_path, 600) as made:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def keep(index: int, manifest: Manifest, data: memoryview) -> None:
            loop.call_soon_threadsafe(begun.set)

        getting = asyncio.create_task(made.get(keep))
        await begun.wait()
        getting.cancel()
        await asyncio.gather(getting, return_exceptions=True)
        await until(lambda: not made.server.serving)
        assert await made.get() == {}  # the connection still serves


# --- a holder that lies ---------------------------------------------------------------------------


class Lies:
    """The requester's end of a bundle of two items of 100 bytes; the holder's end is `far`."""

    def __init__(self, stall_s: float = 40.0) -> None:
        self.far, near = socket.socketpair()
        self.data = [bytes([number]) * 100 for number in (1, 2)]
        wanted = [
            TransmissionConfirmation(
                DataKey("P", "model"), small_manifest(one).root, 100, PeerId("r"), PeerId("h"), 1, bytes(64)
            )
            for one in self.data
        ]
        self.kept: list[int] = []
        self.outcomes: list[EdgepoolError | None] = []
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.receiver = BundleReceiver(
            PeerId("h"),
            near,
            KEY,
            wanted,
            stall_s,
            None,
            lambda index, manifest, data: self.kept.append(index),
            self.outcomes.extend,
            self.ended.set_result,
        )
        self.receiver.expected = 2
        self.sealer = Sealer(KEY)

    def frame(
        self, index: int, *items: bytes, flags: int = LAST, cut: int = 0, refused: bool = False
    ) -> bytes:
        content = bytearray(sum(len(item) + 4 for item in items))
        place = 0
        for item in items:
            put_item_header(memoryview(content), place, len(item), False)
            content[place + 4 : place + 4 + len(item)] = item
            place += 4 + len(item)
        return bytes(self.sealer.seal(index, memoryview(content)[: len(content) - cut], flags))

    async def told(self, *frames: bytes) -> Exception | None:
        self.far.sendall(b"".join(frames))
        self.far.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(40):
            error = await self.ended
        self.far.close()
        return error


async def test_an_item_with_other_content_or_size_is_not_kept(tmp_path: Path) -> None:
    lies = Lies()
    await lies.told(lies.frame(0, b"x" * 100, lies.data[1]))
    assert lies.kept == [1]
    assert isinstance(lies.outcomes[0], RemoteError)
    assert lies.outcomes[1] is None
    lies = Lies()
    await lies.told(lies.frame(0, lies.data[0] + b"x", lies.data[1][:99]))
    assert lies.kept == []
    assert all(isinstance(one, RemoteError) for one in lies.outcomes)


FRAUDS: dict[str, Any] = {
    "more items than asked for": lambda lies: [lies.frame(0, *lies.data, b"more")],
    "a frame of other items": lambda lies: [lies.frame(1, lies.data[1])],
    "an empty frame": lambda lies: [lies.frame(0)],
    "a frame cut inside an item": lambda lies: [lies.frame(0, *lies.data, cut=5)],
    "a frame cut inside a header": lambda lies: [lies.frame(0, lies.data[0], b"", cut=1)],
    "another flag": lambda lies: [lies.frame(0, lies.data[0], flags=0)],
    "a frame again": lambda lies: [lies.frame(0, lies.data[0])] * 2,
    "frames in another order": lambda lies: [lies.frame(0, lies.data[0]), lies.frame(1, lies.data[1])][::-1],
    "a broken seal": lambda lies: [lies.frame(0, *lies.data)[:-1] + b"\0"],
    "the end of the stream": lambda lies: [lies.frame(0, lies.data[0])],
    "a frame that ends early": lambda lies: [lies.frame(0, *lies.data)[:-1]],
}


@pytest.mark.parametrize("fraud", FRAUDS)
async def test_a_disturbed_bundle_ends_and_nobody_is_blamed(fraud: str) -> None:
    lies = Lies()
    error = await lies.told(*FRAUDS[fraud](lies))
    assert isinstance(error, Unavailable)
    assert set(lies.kept) <= {0, 1}


async def test_a_silent_holder_is_a_stall() -> None:
    lies = Lies(stall_s=0.5)
    async with asyncio.timeout(40):
        error = await lies.ended
    assert isinstance(error, Unavailable)
    assert "stalled" in str(error)
    lies.far.close()


# --- a requester that misbehaves ------------------------------------------------------------------


async def test_requests_that_no_bundle_allows_end_the_connection(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes(2 * 1024 * 1024)) as ([holder], requester):
        confirmation = confirmation_for(holder.manifest, holder.peer, requester.peer)
        begin = BundleRequest(0, bytes(32), (AES_128_GCM,))
        many = tuple([confirmation] * 100)
        for messages in (
            (BundleRequest(0, b"", (AES_128_GCM,)),),
            (begin, BundleRequest(0, bytes(32), (AES_128_GCM,))),
            (begin, ChunkRequest(0, 0, 1)),
            (begin, *[ItemRequest(0, many)] * (MAX_ITEMS_OWED // 100 + 1)),
        ):
            reader, writer = await raw(holder, requester, *messages)
            async with asyncio.timeout(40):
                await reader.read()  # until the holder ends it
            writer.close()
        await until(lambda: not holder.server.serving)


async def test_large_data_does_not_come_in_a_bundle(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes(INLINE_BYTES + 1)) as ([holder], requester):
        manifest = Manifest(10, 1024, manifest_of(bytes(10), 1024).chunks)
        kept: list[int] = []
        failures = await fetch_bundle(
            requester.client,
            holder.peer.peer,
            holder.peer.transport.addresses,
            [confirmation_for(manifest, holder.peer, requester.peer)],
            lambda index, manifest, data: kept.append(index),
        )
        assert kept == []
        assert "ask for it alone" in str(failures[0])


def test_small_data_in_memory_is_bounded_and_right(tmp_path: Path) -> None:
    small = SmallData()
    path = tmp_path / "data"
    path.write_bytes(b"right")
    manifest = small_manifest(b"right")
    assert small.get(manifest) is None
    assert small.read(manifest, path) == (b"right", "")
    path.write_bytes(b"wrong")
    assert small.get(manifest) == b"right"
    assert SmallData().read(manifest, path) == (b"", DAMAGED)
    assert "cannot read" in small.read(manifest, tmp_path / "none")[1]
    for number in range(300):
        assert small.keep(small_manifest(data := number.to_bytes(2) * (INLINE_BYTES // 2)), data)
    assert small.get(manifest) is None  # it gave way
    assert small.get(small_manifest(data)) == data

"""A requester's end of a data connection against a holder whose software we control."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tls_peers import until

from edgepool.errors import Unavailable
from edgepool.model.crypto import data_hash
from edgepool.model.ids import PeerId
from edgepool.model.transfer import AES_128_GCM
from edgepool.model.twin import Manifest
from edgepool.transport.lane import LAST, PACKED, LaneKey, Sealer
from edgepool.transport.packing import Base, Packer, open_base
from edgepool.transport.receiving import DamagedBase, Receiver, Spool, WrongChunk

HOLDER = PeerId("12D3KooWPSjwuwUkYKvFUSk8zv5LVBxUcTVX3aSK5vqMmMeibTBL")
CHUNK = 1024
DATA = random.Random(1).randbytes(3 * CHUNK + 100)
MANIFEST = Manifest(
    len(DATA), CHUNK, tuple(data_hash(DATA[at : at + CHUNK]) for at in range(0, len(DATA), CHUNK))
)
KEY = LaneKey(AES_128_GCM, (b"r" * 32, b"h" * 32), ["terms"])
OTHER_KEY = LaneKey(AES_128_GCM, (b"h" * 32, b"r" * 32), ["terms"])
STALL_S = 0.5
PATIENT_S = 40.0
OLDER = DATA[:300] + b"something else" + DATA[310:]


def chunk(index: int) -> bytes:
    return DATA[index * CHUNK : (index + 1) * CHUNK]


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.chunks: dict[int, bytes] = {}

    def has(self, index: int) -> bool:
        return index in self.chunks

    def write(self, index: int, data: memoryview) -> None:
        self.chunks[index] = bytes(data)


class Lane:
    """Both ends of a data connection: the holder's is `far`, with `seal` to make frames."""

    def __init__(self, far: socket.socket, receiver: Receiver, kept: Kept, spool: Spool) -> None:
        self.far = far
        self.receiver = receiver
        self.kept = kept
        self.spool = spool
        self.sealer = Sealer(KEY)
        self.arrived: list[int] = []
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def seal(self, index: int, content: bytes, flags: int = LAST) -> bytes:
        return bytes(self.sealer.seal(index, memoryview(content), flags))

    def send(self, *frames: bytes) -> None:
        self.far.sendall(b"".join(frames))

    async def end(self) -> Exception | None:
        async with asyncio.timeout(PATIENT_S):
            error: Exception | None = await self.ended
        await asyncio.to_thread(self.spool.end)
        return error


@asynccontextmanager
async def open_lane(*asked: int, base: Base | None = None, stall_s: float = PATIENT_S) -> AsyncIterator[Lane]:
    far, near = socket.socketpair()
    kept = Kept()
    spool = Spool(kept, CHUNK, lambda: None)
    lane: Lane

    def arrived(came: list[tuple[int, float]]) -> None:
        lane.arrived += [index for index, _ in came]

    def ended(error: Exception | None) -> None:
        lane.ended.set_result(error)

    receiver = Receiver(HOLDER, near, KEY, MANIFEST, spool, stall_s, None, arrived, ended, base)
    lane = Lane(far, receiver, kept, spool)
    for index in asked:
        receiver.expect(index)
    try:
        yield lane
    finally:
        receiver.stop()
        far.close()
        await asyncio.to_thread(spool.end)


async def test_chunks_come_in_the_order_in_which_they_were_asked_for() -> None:
    async with open_lane(3, 0, 2) as lane:
        lane.send(lane.seal(3, chunk(3)), lane.seal(0, chunk(0)[:1000], 0), lane.seal(0, chunk(0)[1000:]))
        lane.send(lane.seal(2, chunk(2)))
        lane.far.close()
        error = await lane.end()
        assert isinstance(error, Unavailable)  # it might have been asked for more
        assert lane.arrived == [3, 0, 2]
        assert lane.kept.chunks == {index: chunk(index) for index in (3, 0, 2)}


async def test_a_receiver_that_is_stopped_has_no_complaint() -> None:
    async with open_lane(0) as lane:
        lane.receiver.stop()
        assert await lane.end() is None


def wrong_content(lane: Lane) -> list[bytes]:
    return [lane.seal(0, bytes([chunk(0)[0] ^ 1]) + chunk(0)[1:])]


async def test_a_wrong_chunk_is_named_and_not_kept() -> None:
    async with open_lane(2, 0) as lane:
        lane.send(lane.seal(2, chunk(2)), *wrong_content(lane))
        error = await lane.end()
        assert isinstance(error, WrongChunk)
        assert (error.peer, error.index) == (HOLDER, 0)
        assert lane.kept.chunks == {2: chunk(2)}


FRAUDS: dict[str, tuple[Callable[[Lane], list[bytes]], str]] = {
    "a chunk that was not asked for": (lambda lane: [lane.seal(1, chunk(1))], "not the next one"),
    "the one after the next": (lambda lane: [lane.seal(2, chunk(2))], "not the next one"),
    "a chunk that does not exist": (lambda lane: [lane.seal(2**32 - 1, b"x")], "not the next one"),
    "an empty frame": (lambda lane: [lane.seal(0, b"", 0)], "does not fit into chunk 0"),
    "an endless chunk": (
        lambda lane: [lane.seal(0, chunk(0)[:1000], 0), lane.seal(0, bytes(1000), 0)],
        "does not fit into chunk 0",
    ),
    "a whole chunk that is not the last frame": (lambda lane: [lane.seal(0, chunk(0), 0)], "does not fit"),
    "a chunk that is too short": (lambda lane: [lane.seal(0, chunk(0)[:-1])], "does not fit"),
    "a chunk inside another": (
        lambda lane: [lane.seal(0, chunk(0)[:1000], 0), lane.seal(2, chunk(2))],
        "a frame of chunk 2 inside chunk 0",
    ),
    "too long a frame": (lambda lane: [b"\0" * 4 + b"\xff" * 4 + b"\0" * 4], "a frame of 4294967295 bytes"),
    "a broken seal": (lambda lane: [lane.seal(0, chunk(0))[:-1] + b"\0"], "not the one that was sealed"),
    "frames of another stream": (
        lambda lane: [bytes(Sealer(OTHER_KEY).seal(0, memoryview(chunk(0)), LAST))],
        "not the one that was sealed",
    ),
    "the same frame again": (lambda lane: [lane.seal(0, chunk(0)[:500], 0)] * 2, "not the one that"),
}


@pytest.mark.parametrize("fraud", FRAUDS)
async def test_a_disturbed_connection_ends_and_nobody_is_blamed(fraud: str) -> None:
    frames, complaint = FRAUDS[fraud]
    async with open_lane(0, 2) as lane:
        lane.send(*frames(lane))
        error = await lane.end()
        assert isinstance(error, Unavailable)
        assert complaint in str(error)
        assert lane.kept.chunks == {}


@pytest.mark.parametrize("cut", [1, 11, 12, 500, 1051])
async def test_a_truncated_stream_costs_only_the_chunk_under_way(cut: int) -> None:
    async with open_lane(1, 0) as lane:
        lane.send(lane.seal(1, chunk(1)), lane.seal(0, chunk(0))[:cut])
        lane.far.close()
        error = await lane.end()
        assert isinstance(error, Unavailable)
        assert "ended the transfer early" in str(error)
        assert lane.kept.chunks == {1: chunk(1)}


async def test_silence_is_a_stall_only_while_something_is_asked_for() -> None:
    async with open_lane(stall_s=STALL_S) as lane:
        await asyncio.sleep(2.5 * STALL_S)
        assert not lane.ended.done()
        lane.receiver.expect(0)
        lane.send(lane.seal(0, chunk(0)))
        await until(lambda: lane.arrived)
        lane.receiver.expect(1)
        error = await lane.end()
        assert isinstance(error, Unavailable)
        assert "stalled" in str(error)


async def test_a_trickle_is_a_stall_too() -> None:
    async with open_lane(0, stall_s=STALL_S) as lane:
        frame = lane.seal(0, chunk(0))

        async def drip() -> None:
            with suppress(OSError):
                for at in range(len(frame)):
                    lane.far.sendall(frame[at : at + 1])
                    await asyncio.sleep(STALL_S / 10)

        dripping = asyncio.create_task(drip())
        error = await lane.end()
        dripping.cancel()
        assert isinstance(error, Unavailable)
        assert "stalled" in str(error)


async def test_a_slow_disk_holds_the_connection_back_and_a_full_one_ends_it() -> None:
    """With every buffer waiting to be written nothing more is read, and the holder has to wait."""
    far, near = socket.socketpair()
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow(Kept):
        def write(self, index: int, data: memoryview) -> None:
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
            super().write(index, data)

    slow = Slow()
    spool = Spool(slow, 4 * 1024 * 1024, lambda: None)  # two buffers, and one for the receiver
    count = 8
    manifest = Manifest(count * CHUNK, CHUNK, tuple(data_hash(chunk(0)) for _ in range(count)))
    arrived: list[int] = []

    def came(chunks: list[tuple[int, float]]) -> None:
        arrived.extend(index for index, _ in chunks)

    receiver = Receiver(HOLDER, near, KEY, manifest, spool, PATIENT_S, None, came, lambda error: None)
    sealer = Sealer(KEY)
    for index in range(count):
        receiver.expect(index)
        far.sendall(sealer.seal(index, memoryview(chunk(0)), LAST))
    await until(lambda: len(arrived) >= 3)
    await asyncio.sleep(0.1)
    assert arrived == [0, 1, 2]
    gate.set()
    await until(lambda: len(arrived) == count)
    receiver.stop()
    far.close()
    await asyncio.to_thread(spool.end)
    assert set(slow.chunks) == set(range(count))


@contextmanager
def base_file(tmp_path: Path, content: bytes) -> Iterator[Base]:
    """An older version that has all of DATA but a few bytes; `content` is what its file has by now."""
    path = tmp_path / "older"
    path.write_bytes(content)
    base = open_base(Manifest(len(OLDER), len(OLDER), (data_hash(OLDER),)), path)
    try:
        yield base
    finally:
        base.close()


async def test_a_packed_chunk_is_told_by_what_differs_from_an_older_version(tmp_path: Path) -> None:
    with base_file(tmp_path, OLDER) as base:
        async with open_lane(0, 1, base=base) as lane:
            packed = Packer(base).pack(0, memoryview(chunk(0)))
            assert packed is not None
            assert len(packed) < CHUNK // 4
            lane.send(lane.seal(0, packed[:20], PACKED), lane.seal(0, packed[20:], PACKED | LAST))
            lane.send(lane.seal(1, chunk(1)))
            await until(lambda: lane.arrived == [0, 1])
            await asyncio.to_thread(lane.spool.end)
            assert lane.kept.chunks == {0: chunk(0), 1: chunk(1)}


async def test_a_damaged_older_version_is_not_the_holders_fault(tmp_path: Path) -> None:
    with base_file(tmp_path, OLDER) as base:
        packed = Packer(base).pack(0, memoryview(chunk(0)))
        assert packed is not None
    with base_file(tmp_path, OLDER[:50] + bytes(100) + OLDER[150:]) as base:
        async with open_lane(0, base=base) as lane:
            lane.send(lane.seal(0, packed, PACKED | LAST))
            assert isinstance(await lane.end(), DamagedBase)
    with base_file(tmp_path, OLDER) as base:
        async with open_lane(0, base=base) as lane:
            other = Packer(base).pack(0, memoryview(bytes(CHUNK)))
            assert other is not None
            lane.send(lane.seal(0, other, PACKED | LAST))
            assert isinstance(await lane.end(), WrongChunk)
        assert lane.kept.chunks == {}


async def test_packed_and_plain_frames_do_not_mix() -> None:
    packed = Packer(None).pack(0, memoryview(bytes(CHUNK)))
    assert packed is not None
    async with open_lane(0) as lane:
        lane.send(lane.seal(0, packed[:10], PACKED), lane.seal(0, packed[10:], LAST))
        error = await lane.end()
        assert "inside chunk 0" in str(error)

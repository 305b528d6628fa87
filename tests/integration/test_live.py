"""Live streams between real peers: order, gaps, cursors, restarts, and who may follow."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from peer_cell import open_cell

from edgepool import DataKey, LocalError, Peer, Refused
from edgepool.bench.live import measure_live
from edgepool.config import LiveSettings, PeerSettings
from edgepool.core.live.following import Item, Missed, Restarted, Sample
from edgepool.gateway.app import ApiServer
from edgepool.gateway.client import ApiClient
from edgepool.model.codec import encode
from edgepool.model.live import MAX_SAMPLE_BYTES, LiveBatch, LiveCredit
from edgepool.model.policy import PolicyTerms
from edgepool.transport.door import Doorway, connect
from edgepool.transport.framing import header

KEY = DataKey("PTVA10212-01", "telemetry")


def framed(said: object) -> bytes:
    return header(len(encode(said))) + encode(said)


SMALL = LiveSettings(ring_bytes=256 * 1024, window_bytes=256 * 1024, gather_ms=1)


def small(settings: PeerSettings) -> PeerSettings:
    return replace(settings, live=SMALL)


def sample(number: int) -> bytes:
    return b"%d" % number


async def take(items: AsyncGenerator[Item, None], count: int) -> list[Item]:
    async with asyncio.timeout(60):
        return [await anext(items) for _ in range(count)]


async def until(reached: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110 - what is waited for is in other peers' hands
            await asyncio.sleep(0.01)


def followers(publisher: Peer) -> int:
    return sum(stream.subscribers for stream in publisher.status().live)


async def restarted(peer: Peer) -> Peer:
    await peer.__aexit__(None, None, None)
    again = Peer(peer.settings)
    await again.__aenter__()
    return again


async def test_subscribers_get_all_samples_in_order_and_the_chain_only_the_offer(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell:
        publisher, *readers = cell.machines
        follows = [reader.subscribe(KEY, oldest=True) for reader in readers]
        firsts = [asyncio.create_task(take(items, 1_000)) for items in follows]  # they may come first
        async with publisher.live(KEY) as stream:
            for number in range(1, 1_001):
                assert await stream.put(sample(number)) == number
            for got in await asyncio.gather(*firsts):
                assert [one.data for one in got if isinstance(one, Sample)] == [
                    sample(number) for number in range(1, 1_001)
                ]
            (status,) = publisher.status().live
            assert (status.put, status.subscribers) == (1_000, 2)
        async with publisher.live(KEY) as stream:
            await stream.put(b"again")
            for items in follows:
                restart, one = await take(items, 2)
                assert isinstance(restart, Restarted)
                assert restart.next == 1_001
                assert isinstance(one, Sample)
                assert (one.number, one.data) == (1, b"again")
            await stream.put(b"the last word")
        for items in follows:  # what was put before the end still comes
            (one,) = await take(items, 1)
            assert isinstance(one, Sample)
            assert one.data == b"the last word"
        await until(lambda: publisher.chain_state(cell.chain).counts["confirmation"] == 2)
        assert publisher.chain_state(cell.chain).counts["offer"] == 1
        for items in follows:
            await items.aclose()


async def test_a_lost_connection_costs_nothing_and_a_cursor_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        publisher, reader = cell.machines
        async with publisher.live(KEY) as stream:
            items = reader.subscribe(KEY, oldest=True)
            number = 0
            seen: list[bytes] = []
            for _ in range(5):
                for _ in range(50):
                    number += 1
                    await stream.put(sample(number))
                got = await take(items, 50)
                seen += [one.data for one in got if isinstance(one, Sample)]
                for feed in next(iter(publisher._live.streams._open.values())).log.feeds:  # type: ignore[union-attr]
                    feed._abort()
            assert seen == [sample(one) for one in range(1, 251)]
            last = got[-1]
            assert isinstance(last, Sample)
            await items.aclose()
            await until(lambda: followers(publisher) == 0)
            await stream.put(b"while it was away")
            reader = await restarted(reader)
            try:
                items = reader.subscribe(KEY, cursor=str(last.cursor))
                (one,) = await take(items, 1)
                assert isinstance(one, Sample)
                assert (one.number, one.data) == (251, b"while it was away")
                await items.aclose()
            finally:
                await reader.__aexit__(None, None, None)


async def test_a_slow_reader_is_told_exactly_what_it_missed(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2, change=small) as cell:
        publisher, reader = cell.machines
        async with publisher.live(KEY) as stream:
            items = reader.subscribe(KEY, oldest=True)
            await stream.put(sample(1))
            assert isinstance((await take(items, 1))[0], Sample)
            for _ in range(2, 2_001):  # about two megabytes, eight times what ring and window hold
                await stream.put(bytes(1_000))
                await asyncio.sleep(0)
            expected, missed = 2, 0
            while expected < 2_001:
                (item,) = await take(items, 1)
                if isinstance(item, Missed):
                    assert item.first == expected
                    missed += item.last - item.first + 1
                    expected = item.last + 1
                else:
                    assert isinstance(item, Sample)
                    assert item.number == expected
                    expected += 1
            assert missed > 500
            (status,) = publisher.status().live
            assert status.held_bytes <= SMALL.ring_bytes
            await items.aclose()


async def test_a_publisher_that_is_restarted_is_found_again(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell:
        publisher, reader, _ = cell.machines
        items = reader.subscribe(KEY, oldest=True)
        async with publisher.live(KEY) as stream:
            await stream.put(b"before")
            assert isinstance((await take(items, 1))[0], Sample)
        publisher = await restarted(publisher)
        try:
            await until(lambda: bool(publisher.connected()))
            async with publisher.live(KEY) as stream:
                await stream.put(b"after")
                restart, one = await take(items, 2)
                assert isinstance(restart, Restarted)
                assert isinstance(one, Sample)
                assert one.data == b"after"
            await items.aclose()
        finally:
            await publisher.__aexit__(None, None, None)


async def test_who_may_not_follow_is_refused_and_who_may_no_longer_is_sent_away(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell:
        publisher, friend, other = cell.machines
        async with publisher.live(KEY) as stream:
            await stream.put(b"one")
            items = other.subscribe(KEY, oldest=True)
            assert isinstance((await take(items, 1))[0], Sample)
            await publisher.rights.set_policy(KEY, PolicyTerms(members=(friend.id,)))
            with pytest.raises(Refused):
                await take(items, 1)
            with pytest.raises(Refused):
                await take(other.subscribe(KEY, oldest=True), 1)
            assert isinstance((await take(friend.subscribe(KEY, oldest=True), 1))[0], Sample)


@pytest.mark.parametrize(
    "words",
    [
        b"\0\0\0\5hello",
        header(2**31),
        framed(LiveCredit(1)),
        framed(LiveBatch(1, ())),
    ],
)
async def test_a_member_that_talks_nonsense_is_sent_away_and_counted(tmp_path: Path, words: bytes) -> None:
    async with open_cell(tmp_path, 2) as cell:
        publisher, hostile = cell.machines
        ended = asyncio.Event()

        class Nonsense(asyncio.BufferedProtocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                transport.write(words)  # type: ignore[attr-defined]

            def get_buffer(self, sizehint: int) -> bytearray:
                return bytearray(4096)

            def connection_lost(self, exc: Exception | None) -> None:
                ended.set()

        doorway = Doorway(hostile._identity.trust, {}, lambda found, protocol: Nonsense())
        await connect(doorway, publisher.addresses[0], hostile._identity.live_context, 5_000)
        async with asyncio.timeout(30):
            await ended.wait()
        assert publisher.status().totals.refused["refused_garbage"] == 1
        assert publisher._live.server.feeds == {}


async def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        publisher, reader = cell.machines
        await publisher.publish("P1/model", b"data")
        await until(lambda: bool(reader.chain_state(cell.chain).offers(DataKey("P1", "model"))))
        with pytest.raises(LocalError, match="is no live stream: get it with fetch"):
            await take(reader.subscribe("P1/model"), 1)
        async with publisher.live(KEY) as stream:
            with pytest.raises(LocalError, match="is published live by this peer already"):
                async with publisher.live(KEY):
                    pass
            with pytest.raises(LocalError, match="65536 are allowed: publish it as data"):
                await stream.put(bytes(MAX_SAMPLE_BYTES + 1))
            with pytest.raises(LocalError, match="is published by this peer itself"):
                await take(publisher.subscribe(KEY), 1)
            await stream.put(b"one")
            (one,) = await take(reader.subscribe(KEY, oldest=True), 1)
            assert isinstance(one, Sample)
            ahead = f"{one.cursor.epoch}-{one.cursor.next + 1}"
            with pytest.raises(Refused, match="the cursor is beyond sample 1"):
                await take(reader.subscribe(KEY, cursor=ahead), 1)
            with pytest.raises(LocalError, match="is a live stream: follow it"):
                await reader.fetch(KEY)
            with pytest.raises(LocalError, match="is no cursor"):
                await take(reader.subscribe(KEY, cursor="yesterday"), 1)
        with pytest.raises(LocalError, match="is not open"):
            await stream.put(b"late")


async def test_samples_come_in_as_lines_and_go_out_as_lines(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell, AsyncExitStack() as stack:
        for peer in cell.machines:
            api = ApiServer(peer, peer.settings.folder)
            await api.start()
            stack.push_async_callback(api.close)
        publisher, reader = (peer.settings.folder for peer in cell.machines)
        sending = await stack.enter_async_context(command("publish", publisher))
        reading = await stack.enter_async_context(command("follow", reader, "--oldest", "--count", "3"))
        assert sending.stdin is not None
        assert reading.stdout is not None
        async with asyncio.timeout(60):
            for word in (b"one", b"two", b"three"):
                sending.stdin.write(word + b"\n")
            out, _ = await reading.communicate()
            assert out == b"one\ntwo\nthree\n"
            assert reading.returncode == 0
            async with ApiClient.of(publisher) as client:
                (status,) = (await client.status()).live
            assert (status.key, status.put) == (str(KEY), 3)
            await until(lambda: followers(cell.machines[0]) == 0)
            sending.stdin.close()
            out, _ = await sending.communicate()
            assert out == f"3 samples of {KEY} were published\n".encode()


@asynccontextmanager
async def command(name: str, folder: Path, *words: str) -> AsyncIterator[Process]:
    line = [sys.executable, "-m", "edgepool", "live", name, str(folder), str(KEY), *words]
    process = await asyncio.create_subprocess_exec(*line, stdin=PIPE, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_short_measurement_loses_nothing_and_tells_all_its_figures() -> None:
    report = await measure_live(200, 1_000, 2, 1.0, 400, lambda text: None)
    assert report.missed == 0
    assert report.samples > 0
    assert 0 < report.delay_p50_us <= report.delay_p99_us <= report.delay_max_us
    assert set(report.records) == {"calm", "live", "live_and_bulk"}

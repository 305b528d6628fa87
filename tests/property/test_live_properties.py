"""A live stream as its subscribers see it: in order, none twice, no gap untold, and memory bounded.

A publisher with a small ring, subscribers that are slow, lose connections and come back, and a publisher
that begins anew; all in the core, with what travels in between as the wire has it.
"""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgepool.core.live.following import MIN_WINDOW_BYTES, Inflow, Missed, Restarted, Sample
from edgepool.core.live.ring import Outflow, Ring, cost_of
from edgepool.errors import DecodeError
from edgepool.model.codec import encode
from edgepool.model.live import (
    BATCH_BYTES,
    MAX_FRAME_BYTES,
    MAX_SAMPLE_BYTES,
    Cursor,
    LiveAccept,
    LiveBatch,
    LiveSample,
    decode_from_publisher,
)

RING_BYTES = 6 * MAX_SAMPLE_BYTES
AGE_MS = 1_000
READERS = 2


class Subscriber:
    """One subscription, its connection if there is one, and what its reader has seen."""

    def __init__(self, oldest: bool) -> None:
        self.inflow = Inflow(None, MIN_WINDOW_BYTES)
        self.oldest = oldest
        self.outflow: Outflow | None = None
        self.wire: deque[bytes] = deque()
        self.epoch = 0
        self.expected = 0
        self.seen: list[tuple[int, int]] = []


class Streams(RuleBasedStateMachine):
    @initialize(oldest=st.booleans())
    def begin(self, oldest: bool) -> None:
        self.now_ms = 0
        self.epoch = 0
        self.put_data: dict[tuple[int, int], bytes] = {}
        self.dropped: dict[int, int] = {}
        self.subscribers = [Subscriber(oldest) for _ in range(READERS)]
        self.restart()

    @rule()
    def restart(self) -> None:
        self.epoch += 1
        self.ring = Ring(self.epoch, RING_BYTES, AGE_MS)
        for one in self.subscribers:
            one.outflow = None
            one.wire.clear()

    @rule(size=st.sampled_from([0, 1, 100, 1_000, 30_000, MAX_SAMPLE_BYTES]), count=st.integers(1, 40))
    def put(self, size: int, count: int) -> None:
        for _ in range(count):
            data = b"%d/%d/" % (self.epoch, self.ring.next)
            data = (data * (size // len(data) + 1))[:size]
            number = self.ring.put(LiveSample(self.now_ms, data), self.now_ms)
            self.put_data[self.epoch, number] = data

    @rule(step_ms=st.integers(1, 700))
    def time_passes(self, step_ms: int) -> None:
        self.now_ms += step_ms
        self.ring.expire(self.now_ms)

    @rule(which=st.integers(0, READERS - 1))
    def connect(self, which: int) -> None:
        one = self.subscribers[which]
        start = self.ring.start(one.inflow.cursor, one.oldest)
        assert start
        one.wire.clear()
        one.outflow = Outflow(self.ring, start, one.inflow.connected())
        one.inflow.begin(LiveAccept(self.ring.epoch, start))

    @rule(which=st.integers(0, READERS - 1))
    def disconnect(self, which: int) -> None:
        self.subscribers[which].outflow = None
        self.subscribers[which].wire.clear()

    @rule(which=st.integers(0, READERS - 1), batches=st.integers(1, 5))
    def send(self, which: int, batches: int) -> None:
        one = self.subscribers[which]
        for _ in range(batches):
            batch = one.outflow.take() if one.outflow is not None else None
            if batch is not None:
                assert len(batch.samples) == 1 or cost_of(batch) <= BATCH_BYTES
                frame = encode(batch)
                assert len(frame) <= MAX_FRAME_BYTES
                one.wire.append(frame)

    @rule(which=st.integers(0, READERS - 1), frames=st.integers(1, 5))
    def arrive(self, which: int, frames: int) -> None:
        one = self.subscribers[which]
        for _ in range(min(frames, len(one.wire))):
            batch = decode_from_publisher(one.wire.popleft())
            assert isinstance(batch, LiveBatch)
            one.inflow.take(batch)

    @rule(which=st.integers(0, READERS - 1), items=st.integers(1, 60))
    def read(self, which: int, items: int) -> None:
        one = self.subscribers[which]
        for _ in range(items):
            item = one.inflow.pop()
            if item is None:
                break
            self.judge(one, item)
        total = one.inflow.credit()
        if total is not None and one.outflow is not None:
            one.outflow.credit(total)

    def judge(self, one: Subscriber, item: Sample | Missed | Restarted) -> None:
        match item:
            case Sample(number, _, data, cursor):
                if not one.epoch:
                    one.epoch, one.expected = cursor.epoch, number
                assert (cursor.epoch, number) == (one.epoch, one.expected), "out of order"
                assert data == self.put_data[cursor.epoch, number]
                assert cursor == Cursor(one.epoch, number + 1)
                one.seen.append((one.epoch, number))
                one.expected = number + 1
            case Missed(first, last):
                if one.epoch:
                    assert first == one.expected, "a gap that is not told"
                assert first <= last
                one.expected = last + 1
            case Restarted(epoch, next):
                assert not one.epoch or next == one.expected
                assert epoch > one.epoch
                one.epoch, one.expected = epoch, 1

    @rule(which=st.integers(0, READERS - 1))
    def connect_and_be_flooded(self, which: int) -> None:
        """Nothing is read, and a new connection begins: what waits counts on all of them."""
        self.put(30_000, 12)
        self.connect(which)
        self.put(30_000, 12)
        self.send(which, 5)
        self.arrive(which, 5)

    @rule(which=st.integers(0, READERS - 1))
    def everything_comes_through(self, which: int) -> None:
        """With nothing in the way, a subscriber comes to the end of the stream, and to all that is held."""
        one = self.subscribers[which]
        self.connect(which)
        held = range(self.ring.first, self.ring.next)
        before = one.inflow.cursor
        assert before is not None
        for _ in range(400):
            self.send(which, 5)
            if not one.wire and one.inflow.waiting_bytes == 0:
                break
            self.arrive(which, 5)
            self.read(which, 60)
        self.read(which, 60)
        assert one.inflow.cursor == Cursor(self.ring.epoch, self.ring.next)
        assert all((self.ring.epoch, n) in one.seen for n in held if n >= before.next)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.ring.size_bytes <= RING_BYTES
        for one in self.subscribers:
            assert one.inflow.waiting_bytes <= MIN_WINDOW_BYTES
            assert sum(map(len, one.wire)) <= MIN_WINDOW_BYTES
            assert len(one.inflow._items) <= 3 * (MIN_WINDOW_BYTES // 64)


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.sampled_from(["restart", "lose"]), max_size=300))
def test_what_is_told_without_samples_takes_no_memory(deeds: list[str]) -> None:
    inflow = Inflow(Cursor(1, 5), MIN_WINDOW_BYTES)
    for epoch, deed in enumerate(deeds, 2):
        inflow.connected()
        assert inflow.cursor is not None
        if deed == "restart":
            inflow.begin(LiveAccept(epoch, 3))
        else:
            inflow.begin(LiveAccept(inflow.cursor.epoch, inflow.cursor.next + 7))
    assert len(inflow._items) <= 3
    first = inflow.pop()
    if deeds:
        assert first in (
            Missed(5, 5 + 7 * deeds.index("restart") - 1 if "restart" in deeds else 4 + 7 * len(deeds)),
            Restarted(first.epoch if isinstance(first, Restarted) else 0, 5),
        )


def begun(cursor: Cursor | None = None) -> Inflow:
    inflow = Inflow(cursor, MIN_WINDOW_BYTES)
    inflow.connected()
    inflow.begin(LiveAccept(7, 10))
    return inflow


SAMPLE = LiveSample(0, b"x")


@pytest.mark.parametrize(
    ("batch", "fault"),
    [
        (LiveBatch(9, (SAMPLE,)), "sample 9 again"),
        (LiveBatch(10, (LiveSample(0, bytes(MAX_SAMPLE_BYTES)),) * 4), "more samples than were asked for"),
    ],
)
def test_a_publisher_that_repeats_itself_or_sends_too_much_is_found_out(batch: LiveBatch, fault: str) -> None:
    with pytest.raises(DecodeError, match=fault):
        begun().take(batch)


def test_a_publisher_that_goes_back_or_begins_twice_is_found_out() -> None:
    with pytest.raises(DecodeError, match="sample 10 again"):
        begun(Cursor(7, 11))
    with pytest.raises(DecodeError, match="second beginning"):
        begun().begin(LiveAccept(7, 10))
    with pytest.raises(DecodeError, match="before the beginning"):
        Inflow(Cursor(7, 1), MIN_WINDOW_BYTES).take(LiveBatch(1, (SAMPLE,)))


def test_a_cursor_is_read_as_it_is_written_and_one_from_the_future_is_refused() -> None:
    assert Cursor.parse(str(Cursor(12, 345))) == Cursor(12, 345)
    ring = Ring(3, RING_BYTES, AGE_MS)
    ring.put(SAMPLE, 0)
    assert (ring.start(Cursor(3, 3), False), ring.start(Cursor(3, 2), False)) == (0, 2)
    assert (ring.start(None, True), ring.start(None, False), ring.start(Cursor(2, 9), False)) == (1, 2, 1)

"""What a subscriber makes of a live stream: samples in order, none twice, and every gap by its numbers.

What waits to be read is bounded by credit: the publisher may send no more than was granted, and more is
granted only as items are read. One `Inflow` lives through all connections of a subscription.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edgepool.errors import DecodeError
from edgepool.model.live import MAX_SAMPLE_BYTES, Cursor, LiveAccept, LiveBatch, LiveSample

MIN_WINDOW_BYTES = 4 * MAX_SAMPLE_BYTES


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample with its number; `time_ms` is when its publisher put it, `cursor` where to go on behind it."""

    number: int
    time_ms: int
    data: bytes
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Missed:
    """Samples `first` to `last` are lost to this subscriber: it was too slow, or away for too long."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """The publisher has begun anew: what follows is numbered from 1, in another epoch.

    `next` is the sample of the epoch before that would have come next; if there were others, they are lost.
    """

    epoch: int
    next: int


Item = Sample | Missed | Restarted


class Inflow:
    """One subscription: `cursor` is where it begins, None for wherever the publisher does.

    At most `window_bytes`, as `cost_bytes` counts, wait to be read.
    """

    def __init__(self, cursor: Cursor | None, window_bytes: int) -> None:
        assert window_bytes >= MIN_WINDOW_BYTES, "a sample must fit into half of the window, and leave room"
        self.cursor = cursor
        """Where this subscription stands: behind all that has arrived, read or not."""
        self._window_bytes = window_bytes
        self._items: deque[Item] = deque()
        self.waiting_bytes = 0
        self._received_bytes = 0
        self._granted_bytes = 0
        self._begun = False

    def connected(self) -> int:
        """A connection begins: return the credit to ask with."""
        self._begun = False
        self._received_bytes = 0
        self._granted_bytes = self._window_bytes - self.waiting_bytes
        return self._granted_bytes

    def begin(self, accept: LiveAccept) -> None:
        """The publisher has agreed; DecodeError if what it says contradicts what it said before."""
        if self._begun:
            raise DecodeError("a second beginning")
        self._begun = True
        before, after = self.cursor, Cursor(accept.epoch, accept.start)
        if before is None:
            self.cursor = after
        elif before.epoch != accept.epoch:
            self._restart(accept.epoch, before.next)
            self.cursor = Cursor(accept.epoch, 1)
            self._skip(accept.start)
        else:
            self._skip(accept.start)

    def take(self, batch: LiveBatch) -> None:
        """Samples have arrived; DecodeError if they are not what may come now."""
        if not self._begun or self.cursor is None:
            raise DecodeError("samples before the beginning")
        size_bytes = sum(sample.cost_bytes for sample in batch.samples)
        if self._received_bytes + size_bytes > self._granted_bytes:
            raise DecodeError("more samples than were asked for")
        if batch.first + len(batch.samples) > 2**53:
            raise DecodeError("a number that is too large")
        self._skip(batch.first)
        self._received_bytes += size_bytes
        self.waiting_bytes += size_bytes
        for number, sample in enumerate(batch.samples, batch.first):
            self.cursor = Cursor(self.cursor.epoch, number + 1)
            self._items.append(Sample(number, sample.time_ms, sample.data, self.cursor))

    def pop(self) -> Item | None:
        """Return the next item to read, or None if nothing waits."""
        if not self._items:
            return None
        item = self._items.popleft()
        if isinstance(item, Sample):
            self.waiting_bytes -= LiveSample(item.time_ms, item.data).cost_bytes
        return item

    def credit(self) -> int | None:
        """Return the credit to grant now, in all; None until half of the window can be granted."""
        total = self._received_bytes + self._window_bytes - self.waiting_bytes
        if total - self._granted_bytes < self._window_bytes // 2:
            return None
        self._granted_bytes = total
        return total

    @property
    def granted_bytes(self) -> int:
        """What was granted on this connection, in all."""
        return self._granted_bytes

    def _restart(self, epoch: int, next: int) -> None:
        """Tell of a new epoch; of several without samples in between, as of one."""
        tail = self._items
        if tail and isinstance(tail[-1], Missed) and len(tail) > 1 and isinstance(tail[-2], Restarted):
            tail.pop()
        if tail and isinstance(tail[-1], Restarted):
            next = tail.pop().next  # type: ignore[union-attr]
        tail.append(Restarted(epoch, next))

    def _skip(self, first: int) -> None:
        """The next sample is `first`: tell of those in between, or refuse to go back."""
        assert self.cursor is not None
        if first < self.cursor.next:
            raise DecodeError(f"sample {first} again, after sample {self.cursor.next - 1}")
        if first == self.cursor.next:
            return
        last = self._items[-1] if self._items else None
        if isinstance(last, Missed):  # so that gaps without samples between them take no memory
            self._items[-1] = Missed(last.first, first - 1)
        else:
            self._items.append(Missed(self.cursor.next, first - 1))
        self.cursor = Cursor(self.cursor.epoch, first)

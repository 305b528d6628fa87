"""The log of a live stream at its publisher: the newest samples, bounded by bytes and by age."""

from __future__ import annotations

from edgepool.model.live import (
    BATCH_BYTES,
    MAX_BATCH_SAMPLES,
    MAX_SAMPLE_BYTES,
    Cursor,
    LiveBatch,
    LiveSample,
)


class Ring:
    """The samples of one epoch that are still there: `first` up to, and without, `next`.

    What is over `max_bytes` (as `cost_bytes` counts) or older than `max_age_ms` goes, the oldest first.
    """

    def __init__(self, epoch: int, max_bytes: int, max_age_ms: int) -> None:
        assert epoch > 0
        assert max_bytes >= 2 * MAX_SAMPLE_BYTES
        self.epoch = epoch
        self.first = 1
        self.next = 1
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._max_age_ms = max_age_ms
        self._samples: dict[int, LiveSample] = {}
        self._put_ms: dict[int, int] = {}
        self._last: LiveBatch | None = None

    def put(self, sample: LiveSample, now_ms: int) -> int:
        """Add a sample; return its number. `now_ms` is monotonic."""
        number = self.next
        self._samples[number] = sample
        self._put_ms[number] = now_ms
        self.next += 1
        self.size_bytes += sample.cost_bytes
        self.expire(now_ms)
        return number

    def expire(self, now_ms: int) -> None:
        """Drop what is over the bounds."""
        while self.first < self.next and (
            self.size_bytes > self._max_bytes or self._put_ms[self.first] + self._max_age_ms < now_ms
        ):
            self.size_bytes -= self._samples.pop(self.first).cost_bytes
            del self._put_ms[self.first]
            self.first += 1

    def start(self, cursor: Cursor | None, oldest: bool) -> int:
        """Return with which sample a subscriber begins: the oldest if its epoch is another one.

        0 if its cursor is beyond all that was ever put.
        """
        if cursor is None:
            return self.first if oldest else self.next
        if cursor.epoch != self.epoch:
            return self.first
        return 0 if cursor.next > self.next else max(cursor.next, self.first)

    def batch(self, number: int, credit_bytes: int) -> LiveBatch | None:
        """Return samples from `number` on, or from the first that is there, that fit; None if none do."""
        number = max(number, self.first)
        last = self._last
        same = last is not None and last.first == number and number + len(last.samples) == self.next
        if same and last is not None and cost_of(last) <= credit_bytes:
            return last  # what all who keep up are sent
        room = min(credit_bytes, BATCH_BYTES)
        samples: list[LiveSample] = []
        at = number
        while at < self.next and len(samples) < MAX_BATCH_SAMPLES and self._samples[at].cost_bytes <= room:
            samples.append(self._samples[at])
            room -= self._samples[at].cost_bytes
            at += 1
        if not samples:
            return None
        batch = LiveBatch(number, tuple(samples))
        if at == self.next:
            self._last = batch
        return batch


class Outflow:
    """What one subscriber is sent from a ring: where it stands, and how much more it can take."""

    def __init__(self, ring: Ring, start: int, credit_bytes: int) -> None:
        self._ring = ring
        self.next = start
        self.sent_bytes = 0
        self._total_bytes = credit_bytes

    def credit(self, total_bytes: int) -> None:
        """The subscriber can take so much in all; it never takes anything back."""
        self._total_bytes = max(self._total_bytes, total_bytes)

    def take(self) -> LiveBatch | None:
        """Return what is to be sent now, which counts as sent then; None if there is nothing."""
        batch = self._ring.batch(self.next, self._total_bytes - self.sent_bytes)
        if batch is None:
            return None
        self.next = batch.first + len(batch.samples)
        self.sent_bytes += cost_of(batch)
        return batch


def cost_of(batch: LiveBatch) -> int:
    """Return what the samples of a batch count."""
    return sum(sample.cost_bytes for sample in batch.samples)

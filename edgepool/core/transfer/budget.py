"""How fast bulk data may move: token buckets for the machine and for each peer, shares for kinds of data.

All in whole bytes and milliseconds. Who wants to move bytes asks under a ticket; `advance` says which tickets
have been granted all that they asked for. Three promises, each tested as a property:

    never above   in any window, what is granted is at most the rate times its length and one burst
    no waste      what may move moves: bytes wait only for the machine's bucket or for their peer's
    no starving   kinds that wait share by their priorities: with priority p of a sum s a kind gets p / s of
                  what is granted while it waits, give or take one quantum of each

Shares are by start-time fair queueing: each kind has a tag that grows by bytes over priority, and the
smallest tag goes first. A kind that comes back keeps what it was behind, up to one quantum: whoever asks
again as soon as it is granted would lose its share otherwise. Control traffic never comes here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgepool.model.ids import PeerId

QUANTUM_BYTES = 64 * 1024
"""So much is granted at a time."""
BURST_MS = 50
"""A bucket holds what comes in this time, and one quantum at least."""
DEFAULT_PRIORITY = 5
MAX_PRIORITY = 9
DAY_MINUTES = 24 * 60

_SCALE = 2520  # divides by each of 1 to 9


@dataclass(frozen=True, slots=True)
class Hours:
    """A rate for a part of each day, in minutes since midnight; it may go beyond midnight."""

    begin_minute: int
    end_minute: int
    bytes_s: int

    def contain(self, minute: int) -> bool:
        """Say whether this minute of the day is among them."""
        begin, end = self.begin_minute, self.end_minute
        return begin <= minute < end if begin < end else minute >= begin or minute < end


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """What may move in one direction; None is any amount.

    `bytes_s` is for the whole machine, unless one of `hours` says otherwise (the first that fits);
    `per_peer_bytes_s` for each peer. `priorities` are by kind of data, 1 to 9, DEFAULT_PRIORITY for
    others.
    """

    bytes_s: int | None = None
    per_peer_bytes_s: int | None = None
    hours: tuple[Hours, ...] = ()
    priorities: Mapping[str, int] = field(default_factory=dict)

    @property
    def limits(self) -> bool:
        """Whether anything is limited, now or at another time of the day."""
        return self.bytes_s is not None or self.per_peer_bytes_s is not None or bool(self.hours)

    def bytes_s_at(self, minute: int) -> int | None:
        """Return the machine's rate at a minute of the day."""
        return next((hours.bytes_s for hours in self.hours if hours.contain(minute)), self.bytes_s)


def burst_bytes(bytes_s: int) -> int:
    """Return how much a bucket of this rate holds."""
    return max(QUANTUM_BYTES, bytes_s * BURST_MS // 1000)


class Bucket:
    """Fills with `bytes_s` up to a burst; without a rate (None) there is always enough in it."""

    def __init__(self, bytes_s: int | None, now_ms: int) -> None:
        self.bytes_s = bytes_s
        self._level = 0  # thousandths of a byte, so that a millisecond of any rate is a whole number
        self._at_ms = now_ms
        self._fill()

    def set_rate(self, bytes_s: int | None, now_ms: int) -> None:
        """Go on at another rate; what is in the bucket stays in it, as far as it has room."""
        if bytes_s == self.bytes_s:
            return
        self.refill(now_ms)
        if self.bytes_s is None:
            self._level = 0
        self.bytes_s = bytes_s
        if bytes_s is not None:
            self._level = min(self._level, 1000 * burst_bytes(bytes_s))

    def refill(self, now_ms: int) -> None:
        """Let in what has come since the last time."""
        passed_ms, self._at_ms = max(0, now_ms - self._at_ms), max(now_ms, self._at_ms)
        if self.bytes_s is not None:
            full = 1000 * burst_bytes(self.bytes_s)
            self._level = min(full, self._level + self.bytes_s * passed_ms)

    def has(self, size_bytes: int) -> bool:
        """Say whether so much can be taken."""
        return self.bytes_s is None or self._level >= 1000 * size_bytes

    @property
    def full(self) -> bool:
        """Whether nothing was taken for so long that a new bucket would be the same."""
        return self.bytes_s is None or self._level >= 1000 * burst_bytes(self.bytes_s)

    def take(self, size_bytes: int) -> None:
        """Take what is there."""
        if self.bytes_s is not None:
            self._level -= 1000 * size_bytes

    def lacks_ms(self, size_bytes: int) -> int:
        """Return in how many ms so much will be there, 0 if it is."""
        if self.bytes_s is None or self.has(size_bytes):
            return 0
        return -(-(1000 * size_bytes - self._level) // self.bytes_s)

    def _fill(self) -> None:
        self._level = 0 if self.bytes_s is None else 1000 * burst_bytes(self.bytes_s)


@dataclass(slots=True)
class _Ask:
    ticket: int
    peer: PeerId
    kind: str
    left_bytes: int

    @property
    def quantum(self) -> int:
        return min(self.left_bytes, QUANTUM_BYTES)


class Budget:
    """One direction of a machine's bulk traffic under `plan`."""

    def __init__(self, plan: BudgetPlan, now_ms: int, minute: int) -> None:
        self.plan = plan
        self._machine = Bucket(plan.bytes_s_at(minute), now_ms)
        self._peers: dict[PeerId, Bucket] = {}
        self._waiting: dict[str, list[_Ask]] = {}
        self._tags: dict[str, int] = {}
        self._virtual = 0

    @property
    def waiting(self) -> int:
        """How many tickets wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def bytes_s(self) -> int | None:
        """The machine's rate that is in force."""
        return self._machine.bytes_s

    def change(self, plan: BudgetPlan, now_ms: int, minute: int) -> None:
        """Go on under another plan, from now on; who waits goes on waiting."""
        self.plan = plan
        self._machine.set_rate(plan.bytes_s_at(minute), now_ms)
        for bucket in self._peers.values():
            bucket.set_rate(plan.per_peer_bytes_s, now_ms)

    def ask(self, ticket: int, peer: PeerId, kind: str, size_bytes: int) -> None:
        """Ask to move so many bytes of a kind of data to or from `peer`."""
        if kind not in self._waiting:
            self._waiting[kind] = []
            behind = self._virtual - self._step(kind, QUANTUM_BYTES)
            self._tags[kind] = max(behind, self._tags.get(kind, self._virtual))
        self._waiting[kind].append(_Ask(ticket, peer, kind, size_bytes))

    def cancel(self, ticket: int) -> None:
        """Ask no more; what was granted of it is spent."""
        for kind, asks in list(self._waiting.items()):
            asks[:] = [ask for ask in asks if ask.ticket != ticket]
            if not asks:
                del self._waiting[kind]

    def advance(self, now_ms: int, minute: int) -> list[int]:
        """Grant what may move by now; return the tickets that have all they asked for, in order."""
        self._machine.set_rate(self.plan.bytes_s_at(minute), now_ms)
        self._machine.refill(now_ms)
        for peer, bucket in list(self._peers.items()):
            bucket.refill(now_ms)
            if bucket.full:
                del self._peers[peer]
        done: list[int] = []
        while (ask := self._next(now_ms)) is not None and self._machine.has(ask.quantum):
            self._grant(ask, now_ms, done)
        if not self._waiting:
            self._virtual = max(self._tags.values(), default=self._virtual)
        behind = self._virtual - QUANTUM_BYTES * _SCALE
        self._tags = {k: tag for k, tag in self._tags.items() if tag > behind or k in self._waiting}
        return done

    def wakeup_at(self, now_ms: int) -> int | None:
        """Return the first moment at which `advance` might grant more; None if nobody waits.

        Good right after `advance(now_ms)`; always later than that.
        """
        waits_ms: list[int] = []
        for ask in self._in_order():
            bucket = self._peer(ask.peer, now_ms)
            waits_ms.append(max(self._machine.lacks_ms(ask.quantum), bucket.lacks_ms(ask.quantum)))
            if bucket.has(ask.quantum):
                break  # who comes behind waits for this one
        return now_ms + min(waits_ms) if waits_ms else None

    def _next(self, now_ms: int) -> _Ask | None:
        """Return the next ask whose peer may have its quantum."""
        asks = self._in_order()
        return next((ask for ask in asks if self._peer(ask.peer, now_ms).has(ask.quantum)), None)

    def _in_order(self) -> Iterator[_Ask]:
        """Yield all asks, those of the kind with the smallest tag first."""
        for kind in sorted(self._waiting, key=lambda one: (self._tags[one], one)):
            yield from self._waiting[kind]

    def _grant(self, ask: _Ask, now_ms: int, done: list[int]) -> None:
        size_bytes = ask.quantum
        self._machine.take(size_bytes)
        self._peer(ask.peer, now_ms).take(size_bytes)
        self._virtual = max(self._virtual, self._tags[ask.kind])
        self._tags[ask.kind] += self._step(ask.kind, size_bytes)
        ask.left_bytes -= size_bytes
        asks = self._waiting[ask.kind]
        asks.remove(ask)
        if ask.left_bytes:
            asks.append(ask)  # the others of this kind come first now
            return
        done.append(ask.ticket)
        if not asks:
            del self._waiting[ask.kind]

    def _step(self, kind: str, size_bytes: int) -> int:
        return size_bytes * _SCALE // self.plan.priorities.get(kind, DEFAULT_PRIORITY)

    def _peer(self, peer: PeerId, now_ms: int) -> Bucket:
        bucket = self._peers.get(peer)
        if bucket is None:
            bucket = self._peers[peer] = Bucket(self.plan.per_peer_bytes_s, now_ms)
        return bucket

"""Which chunk of data to ask from whom [S3.15]: many sources, one shared queue of chunks.

Each source has a window of chunks that it may owe at a time, sized by the pace that it shows. What a lost
source owes goes back to the queue. When the queue is empty, a chunk that is owed by somebody slow is asked
from somebody who will have it sooner as well, so that nobody holds up the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

MIN_WINDOW = 2
"""A source always has the next chunk to send while one is on its way."""
MAX_WINDOW = 64
WINDOW_MS = 300
"""A window holds what a source sends in this time, so that a round trip costs no pause."""
_ARRIVALS = 16
"""The pace of a source is that of its last so many chunks."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask `source` for a chunk."""

    source: str
    index: int


@dataclass(slots=True)
class _Source:
    """What is known of a source. `owed` are its chunks in the order in which they were asked for.

    `heard_ms` is when it began to be busy and when chunks came since; `chunk_ms` is what one takes, 0 if
    that is not known.
    """

    has: frozenset[int] | None
    owed: dict[int, None] = field(default_factory=dict)
    window: int = MIN_WINDOW
    chunk_ms: float = 0.0
    heard_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_ARRIVALS))


class Plan:
    """Decides who sends which of `count` chunks; `have` are those that are there already.

    Times are milliseconds of one clock that never goes back.
    """

    def __init__(self, count: int, have: Collection[int] = ()) -> None:
        self.count = count
        self._todo = deque(index for index in range(count) if index not in have)
        self._queued = set(self._todo)
        self._missing = set(self._todo)
        self._asked: dict[int, int] = {}
        self._sources: dict[str, _Source] = {}

    @property
    def whole(self) -> bool:
        """Whether every chunk has arrived."""
        return not self._missing

    @property
    def missing(self) -> int:
        """How many chunks have not arrived."""
        return len(self._missing)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that are there now."""
        return tuple(self._sources)

    def owed(self, source: str) -> tuple[int, ...]:
        """The chunks that a source owes, in the order in which they were asked for."""
        return tuple(self._sources[source].owed) if source in self._sources else ()

    def add(self, source: str, has: Iterable[int] | None = None) -> None:
        """A source is there; it has all chunks, or those in `has`."""
        assert source not in self._sources
        self._sources[source] = _Source(None if has is None else frozenset(has))

    def extend(self, source: str, has: Iterable[int]) -> None:
        """A source now has these chunks as well."""
        known = self._sources.get(source)
        if known is not None and known.has is not None:
            known.has |= frozenset(has)

    def lose(self, source: str) -> None:
        """A source is gone, or not to be trusted: only what it owed is asked for again."""
        gone = self._sources.pop(source, None)
        if gone is None:
            return
        for index in reversed(gone.owed):
            self._forget(index)
            if index in self._missing and index not in self._asked and index not in self._queued:
                self._queued.add(index)
                self._todo.appendleft(index)

    def arrived(self, source: str, index: int, now_ms: float) -> bool:
        """Take note of a chunk that came and was right; False if it had come already."""
        known = self._sources.get(source)
        if known is not None and index in known.owed:
            del known.owed[index]
            self._forget(index)
            _learn(known, now_ms)
        if index not in self._missing:
            return False
        self._missing.discard(index)
        self._queued.discard(index)
        return True

    def asks(self, now_ms: float) -> list[Ask]:
        """Return what is to be asked for now, fairly between sources; it counts as asked."""
        asks: list[Ask] = []
        waiting = [name for name, known in self._sources.items() if len(known.owed) < known.window]
        while waiting:
            still: list[str] = []
            for name in waiting:
                known = self._sources[name]
                index = self._next(known, now_ms)
                if index is None:
                    continue
                if not known.owed:
                    known.heard_ms.clear()
                    known.heard_ms.append(now_ms)
                known.owed[index] = None
                self._asked[index] = self._asked.get(index, 0) + 1
                asks.append(Ask(name, index))
                if len(known.owed) < known.window:
                    still.append(name)
            waiting = still
        return asks

    def _next(self, known: _Source, now_ms: float) -> int | None:
        """Return the chunk that this source should be asked for next."""
        passed: list[int] = []
        found = None
        while self._todo and found is None:
            index = self._todo.popleft()
            if index not in self._queued:
                continue  # it came from somebody who had been given up
            if known.has is None or index in known.has:
                self._queued.discard(index)
                found = index
            else:
                passed.append(index)
        self._todo.extendleft(reversed(passed))
        return found if found is not None else self._rescue(known, now_ms)

    def _rescue(self, helper: _Source, now_ms: float) -> int | None:
        """Return a chunk owed by others that `helper` will have sooner: the one that would be last."""
        here_ms = _due_ms(helper, len(helper.owed) + 1, now_ms)
        due: dict[int, float] = {}
        for other in self._sources.values():
            for place, index in enumerate(other.owed, 1):
                due_ms = _due_ms(other, place, now_ms)
                due[index] = min(due_ms, due.get(index, due_ms))
        late = [
            (due_ms, index)
            for index, due_ms in due.items()
            if due_ms > here_ms
            and index in self._missing
            and index not in helper.owed
            and (helper.has is None or index in helper.has)
        ]
        return max(late)[1] if late else None

    def _forget(self, index: int) -> None:
        count = self._asked[index] - 1
        if count:
            self._asked[index] = count
        else:
            del self._asked[index]


def _learn(known: _Source, now_ms: float) -> None:
    """Follow the pace of a source: its window opens with what arrives, up to what the pace needs."""
    known.heard_ms.append(now_ms)
    took_ms = now_ms - known.heard_ms[0]
    known.chunk_ms = max(took_ms, 0.01) / (len(known.heard_ms) - 1)
    wanted = int(WINDOW_MS / known.chunk_ms) + 1
    known.window = max(MIN_WINDOW, min(wanted, known.window + 1, MAX_WINDOW))


def _due_ms(known: _Source, place: int, now_ms: float) -> float:
    """Return in how many ms the chunk at `place` (from 1) of what a source owes is expected.

    A source that has been silent for longer than a chunk takes is believed to be as slow as that. One of
    which nothing has come yet may be as good as any, until it has been silent for long.
    """
    silent_ms = now_ms - known.heard_ms[-1] if known.owed else 0.0
    if silent_ms > known.chunk_ms:
        return silent_ms * place
    return known.chunk_ms * place - silent_ms

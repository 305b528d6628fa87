"""Readers of a peer's events: each has a bounded queue of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakSet

from edgepool.peer.values import EventsMissed, PeerEvent

MAX_EVENTS = 10_000


class Watcher:
    """An async iterator over events, from when it was made until the peer closes.

    When its reader is too slow the oldest events go, and it is told how many.
    """

    def __init__(self) -> None:
        self._events: deque[PeerEvent] = deque()
        self._missed = 0
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, event: PeerEvent) -> None:
        """Queue an event."""
        if len(self._events) >= MAX_EVENTS:
            self._events.popleft()
            self._missed += 1
        self._events.append(event)
        self._ready.set()

    def close(self) -> None:
        """End the sequence after what is queued."""
        self._closed = True
        self._ready.set()

    def __aiter__(self) -> Watcher:
        return self

    async def __anext__(self) -> PeerEvent:
        while True:
            if self._missed:
                missed, self._missed = self._missed, 0
                return EventsMissed(missed)
            if self._events:
                return self._events.popleft()
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()


class Watchers:
    """All readers of one peer; who has dropped its iterator is forgotten."""

    def __init__(self) -> None:
        self._watchers: WeakSet[Watcher] = WeakSet()

    def __bool__(self) -> bool:
        return bool(self._watchers)

    def new(self) -> Watcher:
        """Return a new reader."""
        watcher = Watcher()
        self._watchers.add(watcher)
        return watcher

    def put(self, event: PeerEvent) -> None:
        """Give an event to every reader."""
        for watcher in self._watchers:
            watcher.put(event)

    def close(self) -> None:
        """End every reader's sequence."""
        for watcher in self._watchers:
            watcher.close()

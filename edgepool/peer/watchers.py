"""Readers of a peer's events: each has a bounded queue of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from edgepool.peer.values import EventsMissed, PeerEvent

MAX_EVENTS = 10_000


class Watcher:
    """One reader. When it is too slow the oldest events go and it is told how many."""

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

    async def read(self) -> AsyncIterator[PeerEvent]:
        """Yield events as they come, until the peer closes."""
        while True:
            while self._events:
                if self._missed:
                    missed, self._missed = self._missed, 0
                    yield EventsMissed(missed)
                yield self._events.popleft()
            if self._closed:
                return
            self._ready.clear()
            await self._ready.wait()

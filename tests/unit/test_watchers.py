"""Events reach every reader in order, and a slow one is told what it has missed."""

from __future__ import annotations

import asyncio

import pytest

from edgepool.model.ids import PeerId
from edgepool.peer import watchers
from edgepool.peer.values import EventsMissed, LinkChanged, PeerEvent
from edgepool.peer.watchers import Watcher


def event(n: int) -> LinkChanged:
    return LinkChanged(PeerId(f"peer-{n}"), "", True, "")


async def read_all(watcher: Watcher) -> list[PeerEvent]:
    return [event async for event in watcher]


async def test_events_come_in_order_and_end_with_the_peer() -> None:
    watcher = Watcher()
    reader = asyncio.create_task(read_all(watcher))
    for n in range(3):
        watcher.put(event(n))
        await asyncio.sleep(0)
    watcher.close()
    assert await reader == [event(n) for n in range(3)]


async def test_slow_reader_is_told_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "MAX_EVENTS", 2)
    watcher = Watcher()
    for n in range(5):
        watcher.put(event(n))
    watcher.close()
    assert await read_all(watcher) == [EventsMissed(3), event(3), event(4)]

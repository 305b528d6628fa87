"""Peers that accept nothing from outside, and the conduit between them, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tls_peers import TlsPeer, make_settings, until

from edgepool.config import ConduitSettings
from edgepool.model.ids import split_address

SLOW_S = 30.0


@pytest.fixture(autouse=True)
def _nothing_left_over(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test may leave an asyncio complaint (a lost task or exception) behind."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.name == "asyncio"] == []


def conduit_peer(folder: Path, name: str = "conduit", **bounds: Any) -> TlsPeer:
    more = {"listen": bounds.pop("listen")} if "listen" in bounds else {}
    return TlsPeer(make_settings(folder, name, conduit=ConduitSettings(serve=True, **bounds), **more))


def inner_peer(folder: Path, name: str, *conduits: TlsPeer, **more: Any) -> TlsPeer:
    """Return a peer that listens nowhere and keeps places at `conduits`, which have been started."""
    places = tuple(f"{one.transport.addresses[0]}/p2p/{one.peer}" for one in conduits)
    return TlsPeer(make_settings(folder, name, listen="", conduits=places, **more))


def kept(peer: TlsPeer) -> bool:
    places = peer.transport.conduits.places()
    return bool(places) and all(place.kept for place in places)


@asynccontextmanager
async def started(*peers: TlsPeer) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for peer in peers:
            await stack.enter_async_context(peer)
        yield


async def test_two_peers_that_accept_nothing_link_and_talk_through_a_conduit(tmp_path: Path) -> None:
    async with conduit_peer(tmp_path) as c:
        a, b = inner_peer(tmp_path, "a", c), inner_peer(tmp_path, "b", c)
        async with started(a, b):
            assert [split_address(address).conduit for address in b.member.addresses] == [c.peer]
            a.transport.want(b.member)
            await until(lambda: a.linked_to(b) and b.linked_to(a), SLOW_S)
            assert b.seen.linked[a.peer] == a.identity.certificate
            a.transport.send(b.peer, b"to b" * 1000)
            b.transport.send(a.peer, b"to a")
            await until(lambda: a.seen.frames and b.seen.frames)
            assert b.seen.frames == [(a.peer, b"to b" * 1000)]
            path = a.transport.paths()[b.peer]
            assert path.conduit == "conduit"
            await until(lambda: a.transport.paths()[b.peer].conduit_ms is not None)
            assert a.transport.paths()[b.peer].direct_ms is None
            (pair,) = c.transport.conduit.table.passed.items()
            assert pair[0] == (min(a.peer, b.peer), max(a.peer, b.peer))
            assert pair[1].circuits == 1
            assert pair[1].bytes > 4000


async def test_a_peer_that_can_be_dialled_is_dialled_directly_by_one_that_cannot(tmp_path: Path) -> None:
    async with (
        conduit_peer(tmp_path) as c,
        TlsPeer(make_settings(tmp_path, "open")) as a,
        started(b := inner_peer(tmp_path, "b", c)),
    ):
        a.transport.want(b.member)
        b.transport.want(a.member)
        await until(lambda: a.linked_to(b) and b.linked_to(a), SLOW_S)
        assert a.transport.paths()[b.peer].conduit == ""
        assert c.transport.conduit.table.passed == {}


async def test_a_link_moves_to_a_direct_path_when_one_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepool.transport.dialler.FIRST_BETTER_S", 0.05)
    monkeypatch.setattr("edgepool.transport.tls.GRACE_S", 0.0)
    monkeypatch.setattr("edgepool.transport.tls._CROSSING_S", 0.0)
    async with (
        conduit_peer(tmp_path) as c,
        TlsPeer(make_settings(tmp_path, "open")) as a,
        started(b := inner_peer(tmp_path, "b", c)),
    ):
        a.transport.want(b.member)  # b does not know yet where a listens
        await until(lambda: a.linked_to(b) and b.linked_to(a), SLOW_S)
        await until(lambda: a.transport.paths()[b.peer].conduit_ms is not None)
        assert a.transport.paths()[b.peer].conduit == "conduit"
        b.transport.want(a.member)
        await until(lambda: b.linked_to(a) and not b.transport.paths()[a.peer].conduit, SLOW_S)
        await until(lambda: a.linked_to(b) and not a.transport.paths()[b.peer].conduit, SLOW_S)
        await until(lambda: a.transport.paths()[b.peer].direct_ms is not None)
        assert a.transport.paths()[b.peer].conduit_ms is not None


async def test_when_a_conduit_dies_links_come_back_through_the_next(tmp_path: Path) -> None:
    first, second = conduit_peer(tmp_path, "first"), conduit_peer(tmp_path, "second")
    await first.start()
    async with started(second):
        a, b = inner_peer(tmp_path, "a", first, second), inner_peer(tmp_path, "b", first, second)
        async with started(a, b):
            a.transport.want(b.member)
            b.transport.want(a.member)
            await until(lambda: a.linked_to(b) and b.linked_to(a), SLOW_S)
            await until(lambda: kept(a) and kept(b), SLOW_S)
            in_use = {"first": first, "second": second}[a.transport.paths()[b.peer].conduit]
            other = second if in_use is first else first
            await in_use.transport.close()
            await until(lambda: "down" in [event for event, _ in a.seen.events], SLOW_S)
            await until(lambda: a.linked_to(b) and b.linked_to(a), SLOW_S)
            assert a.transport.paths()[b.peer].conduit == other.settings.name

            def is_told() -> bool:
                gone = next(p for p in a.transport.conduits.places() if p.peer == in_use.peer)
                return not gone.kept and gone.reason != ""

            await until(is_told)


async def test_a_place_comes_back_when_its_conduit_does(tmp_path: Path) -> None:
    c = await conduit_peer(tmp_path).start()
    settings = c.settings
    async with started(b := inner_peer(tmp_path, "b", c)):
        await until(lambda: kept(b), SLOW_S)
        where = c.transport.addresses[0]
        await c.transport.close()
        await until(lambda: not kept(b), SLOW_S)
        async with TlsPeer(replace(settings, listen=where)):
            await until(lambda: kept(b), SLOW_S)

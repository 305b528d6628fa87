"""What a revoked peer has open ends in the call in which that becomes known: data lanes, live streams."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from peer_cell import open_cell

from edgepool import DataKey, Peer
from edgepool.config import BudgetSettings
from edgepool.core.ledger.trust import UnitedTrust
from edgepool.core.live.following import Item, Sample
from edgepool.errors import EdgepoolError
from edgepool.transport.serving import Serving
from edgepool.transport.tls import TlsTransport

KEY = DataKey("PTVA10212-01", "model")
STREAM = DataKey("PTVA10212-01", "telemetry")
SIZE_BYTES = 32 * 1024 * 1024
PATIENCE_S = 45.0


async def until(reached: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not reached():  # noqa: ASYNC110 - what is waited for is in threads' hands
            await asyncio.sleep(0.01)


def revoke(at: Peer, peer: Peer) -> None:
    """Have one peer know that another is revoked."""
    at._identity.trust.decide(UnitedTrust(revoked={peer.id: None}))


def served(holder: Peer) -> list[Serving]:
    transport = holder._transport
    assert isinstance(transport, TlsTransport)
    assert transport._transfers is not None
    return list(transport._transfers.serving)


def is_shut(connection: socket.socket) -> bool:
    """Say whether nothing can be sent any more: the other side is told so."""
    try:
        return connection.fileno() < 0 or connection.send(b"", socket.MSG_DONTWAIT) < 0
    except (BlockingIOError, OSError) as error:
        return not isinstance(error, BlockingIOError)


async def slowly(holder: Peer, requester: Peer) -> asyncio.Task[object]:
    """Have data fetched at a rate at which that takes longer than the test."""
    await holder.publish(KEY, os.urandom(SIZE_BYTES))
    await holder.budgets.change(BudgetSettings(mbit_s=4))
    fetching: asyncio.Task[object] = asyncio.create_task(requester.fetch(KEY, timeout_ms=10_000))
    await until(lambda: requester.status().totals.bytes_received)
    return fetching


async def test_the_data_lane_of_a_revoked_requester_is_shut_in_the_same_call(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        holder, thief = cell.machines
        fetching = await slowly(holder, thief)
        (serving,) = served(holder)
        lane = serving._connection
        assert lane is not None
        assert not serving.over
        revoke(holder, thief)
        assert serving.over
        assert is_shut(lane)
        await until(lambda: not served(holder))
        with pytest.raises(EdgepoolError):
            async with asyncio.timeout(PATIENCE_S):
                await fetching
        assert thief.status().totals.bytes_received < SIZE_BYTES


async def test_nothing_more_is_taken_from_a_revoked_holder(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        thief, requester = cell.machines
        fetching = await slowly(thief, requester)
        (transfer,) = requester.status().transfers
        assert transfer.peer == thief.id
        revoke(requester, thief)
        await until(lambda: thief.id not in [one.peer for one in requester.connected()])
        await until(lambda: not requester.status().transfers)
        taken = requester.status().totals.bytes_received
        await until(lambda: not served(thief))
        await until(lambda: requester.status().totals.refused.get("refused_revoked"))
        assert requester.status().totals.bytes_received == taken < SIZE_BYTES
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)


async def first(items: AsyncGenerator[Item, None]) -> Item:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(items)


async def test_a_revoked_subscriber_hears_nothing_more_and_the_others_do(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell:
        publisher, thief, friend = cell.machines
        async with publisher.live(STREAM) as stream:
            stolen, heard = (reader.subscribe(STREAM, oldest=True) for reader in (thief, friend))
            await stream.put(b"for both")
            for items in (stolen, heard):
                got = await first(items)
                assert isinstance(got, Sample)
                assert got.data == b"for both"
            revoke(publisher, thief)
            await stream.put(b"for friends")
            got = await first(heard)
            assert isinstance(got, Sample)
            assert got.data == b"for friends"
            (status,) = publisher.status().live
            assert status.subscribers == 1
            waiting = asyncio.create_task(anext(stolen))
            await until(lambda: publisher.status().totals.refused.get("refused_revoked"))
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await heard.aclose()


async def test_nothing_more_is_heard_of_a_revoked_publisher(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        thief, reader = cell.machines
        async with thief.live(STREAM) as stream:
            items = reader.subscribe(STREAM, oldest=True)
            await stream.put(b"the truth")
            assert isinstance(await first(items), Sample)
            revoke(reader, thief)
            await stream.put(b"a lie")
            waiting = asyncio.create_task(anext(items))
            await until(lambda: not thief.status().live[0].subscribers)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

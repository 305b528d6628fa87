"""Many keys at once: each demanded, confirmed, receipted for itself; small data in bundles, all durable."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest
from peer_cell import Cell, open_cell
from tls_peers import until

from edgepool import DataKey, LocalError, Peer
from edgepool.config import BudgetSettings
from edgepool.model.record import TransferReceipt
from edgepool.peer.values import FetchProgress
from edgepool.storage.blobs import BlobStore

MB = 1024 * 1024


def keys(count: int, kind: str = "features") -> list[DataKey]:
    return [DataKey(f"PART-{number:03d}", kind) for number in range(count)]


async def publish(peer: Peer, data: dict[DataKey, bytes]) -> None:
    await asyncio.gather(*(peer.publish(key, content) for key, content in data.items()))


def receipts(cell: Cell, peer: Peer) -> set[str]:
    found = set()
    for height in range(1, peer.chain_state(cell.chain).height + 1):
        certified = peer.block(cell.chain, height)
        assert certified is not None
        for signed in certified.block.records:
            if isinstance(signed.record.body, TransferReceipt) and signed.record.author == peer.id:
                found.add(str(signed.record.body.key))
    return found


async def test_small_and_large_data_of_several_holders_arrives_whole(tmp_path: Path) -> None:
    random = Random(1)
    async with open_cell(tmp_path, 3) as cell:
        *holders, requester = cell.machines
        data = {key: random.randbytes(random.randrange(1, 12_000)) for key in keys(60)}
        data[DataKey("EMPTY", "tools")] = b""
        data[DataKey("LARGE", "model")] = random.randbytes(2 * MB)
        items = list(data.items())
        await publish(holders[0], dict(items[:40]))
        await publish(holders[1], dict(items[40:]))
        told: list[FetchProgress] = []
        missing = DataKey("NOBODY-HAS", "this")
        done = await requester.fetch_many([*data, str(missing), *keys(3)], progress=told.append)
        assert {one.key: one.read() for one in done.fetched} == data
        assert list(done.failed) == [missing]
        assert "nobody within reach offers" in done.failed[missing]
        assert {peer.id for peer in holders} == {peer for one in done.fetched for peer in one.shares}
        assert all(sum(one.shares.values()) == len(data[one.key]) for one in done.fetched)
        assert told[-1].done_bytes == told[-1].size_bytes == sum(map(len, data.values()))
        await until(lambda: receipts(cell, requester) >= {str(key) for key in data if data[key]}, 45)

        again = await requester.fetch_many(data)
        assert all(one.shares == {} for one in again.fetched)
        assert not again.failed
        # What it says it has is on the disk, whole, whoever opens the folder next.
        store = BlobStore(requester.settings.path("blobs"), 10**9)
        for one in done.fetched:
            manifest = store.manifest(one.root)
            assert manifest is not None
            assert store.path(one.root).read_bytes() == data[one.key]
        assert not list(requester.settings.path("blobs").glob("*.aside"))
        assert not requester.status().transfers
        assert not holders[0].status().transfers


async def test_what_a_bundle_does_not_bring_comes_alone_or_is_told_of(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell:
        first, second, requester = cell.machines
        data = {key: str(key).encode() * 100 for key in keys(8)}
        await publish(first, data)
        both, one_only = keys(8)[2], keys(8)[5]
        await second.publish(both, data[both], version=1)
        for key in (both, one_only):  # the disk of the first has lost a bit of each
            path = first.storage.find(str(key))[0]
            file = first.settings.path("blobs") / f"{path.root}.data"
            file.write_bytes(b"?" + file.read_bytes()[1:])
        done = await requester.fetch_many(data)
        assert {one.key for one in done.fetched} == set(data) - {one_only}
        assert all(one.read() == data[one.key] for one in done.fetched)
        assert list(done.failed) == [one_only]
        # Alone it is refused, or is in quarantine by then.
        assert any(why in done.failed[one_only] for why in ("is damaged", "does not hold this data"))


async def test_a_holder_that_is_lost_in_the_middle_and_comes_back_is_asked_for_the_rest(
    tmp_path: Path,
) -> None:
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        data = {key: Random(str(key)).randbytes(40_000) for key in keys(40)}
        await publish(holder, data)
        await holder.budgets.change(BudgetSettings(mbit_s=16))  # a second, with pieces all along
        cut: list[int] = []

        def progress(now: FetchProgress) -> None:
            if not cut:
                cut.append(now.done_bytes)
                holder._transport._transfers.cut(requester.id, "the conduit on the way is started again")

        done = await requester.fetch_many(data, progress=progress)
        assert {one.key: one.read() for one in done.fetched} == data
        assert cut[0] < sum(map(len, data.values()))


async def test_bad_keys_are_one_sentence(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 1) as cell:
        (peer,) = cell.machines
        for bad, complaint in (
            (["no slash"], "not a data key"),
            ([], "name 1 to"),
            (keys(5000), "name 1 to"),
        ):
            with pytest.raises(LocalError, match=complaint):
                await peer.fetch_many(bad)

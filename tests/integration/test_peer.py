"""Peers as their users meet them: publish, find, fetch; restart; hostile bytes at the door."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from peer_cell import NETWORK, make_coordinator, make_machine, open_cell

from edgepool import DataKey, LocalError, Peer, Refused, StorageError, Unavailable
from edgepool.config import BudgetSettings
from edgepool.core.resolution.confirmation import Confirmations
from edgepool.core.resolution.ranking import StatusQueries
from edgepool.gateway.pools import pool_stands
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.model.ids import parse_address
from edgepool.model.record import DataDemand, MachiningCompletion, TransferReceipt
from edgepool.peer.values import (
    BlockAdded,
    FetchProgress,
    PeerEvent,
    PoolEntered,
    RecordCommitted,
    TransferEnded,
)
from edgepool.peer.verify import verify_chain
from edgepool.transport.lane import LANE
from edgepool.transport.transfer_connection import OpenTransfer

KEY = DataKey("PTVA10212-01", "model")


def demand(n: int) -> DataDemand:
    return DataDemand(KEY, n, "hole", "machining parameters")


async def until(reached: object, timeout_s: float = 45) -> None:
    assert callable(reached)
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110 - what is waited for is in other processes' hands
            await asyncio.sleep(0.01)


async def test_data_goes_straight_from_holder_to_requester_and_is_on_chain(tmp_path: Path) -> None:
    data = os.urandom(3_000_001)
    async with open_cell(tmp_path, 3) as cell:
        holder, requester, third = cell.machines
        published = await holder.publish(KEY, data)
        fetched = await requester.fetch(KEY)
        assert fetched.read() == data
        assert (fetched.holder, fetched.root, fetched.version) == (holder.id, published.root, 1)
        assert requester.status().totals.received_by_holder == {holder.id: len(data)}
        await until(lambda: third.chain_state(cell.chain).counts["confirmation"] == 1)
        await until(lambda: third.chain_state(cell.chain).counts["receipt"] == 1)
        counts = third.chain_state(cell.chain).counts
        assert (counts["offer"], counts["demand"]) == (1, 1)


async def test_events_tell_what_happens(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        seen: list[PeerEvent] = []

        async def read() -> None:
            async for event in requester.watch():
                seen.append(event)

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        await holder.publish(KEY, b"small")
        await requester.fetch(KEY)
        await until(lambda: any(isinstance(event, TransferEnded) for event in seen))
        reader.cancel()
        kinds = {type(event) for event in seen}
        assert {BlockAdded, RecordCommitted, TransferEnded} <= kinds


async def test_new_version_is_what_the_next_fetch_gets(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, b"first")
        assert (await requester.fetch(KEY)).read() == b"first"
        await holder.publish(KEY, b"second")
        assert (await requester.fetch(KEY)).read() == b"second"
        assert (await requester.fetch(KEY, version=1)).read() == b"first"


async def test_unknown_data_and_forbidden_records_are_refused_with_the_reason(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        machine = cell.machines[0]
        with pytest.raises(Unavailable, match="nobody within reach offers"):
            await machine.fetch(KEY)
        with pytest.raises(Refused, match="T001"):
            await machine.submit(MachiningCompletion("T001", 10, "milling", 1), chain=cell.chain)
        with pytest.raises(LocalError, match="not a data key"):
            await machine.fetch("no-slash")
        assert machine.status().totals.failed == 1
    with pytest.raises(LocalError, match="is not open"):
        await machine.fetch(KEY)


async def test_damaged_data_names_its_holder_and_another_is_tried(tmp_path: Path) -> None:
    data = os.urandom(2_500_000)
    async with open_cell(tmp_path, 3) as cell:
        first, second, requester = cell.machines
        published = await first.publish(KEY, data, version=1)
        await second.publish(KEY, data, version=1)
        blobs = [holder._blobs.path(published.root) for holder in (first, second)]
        for blob in blobs:
            damage(blob, at=1_500_000)
        with pytest.raises(Unavailable, match="chunk 1") as caught:
            await requester.fetch(KEY)
        assert first.name in str(caught.value)
        assert second.name in str(caught.value)
        assert not requester._blobs.has(published.root)
        await until(lambda: requester.chain_state(cell.chain).counts["complaint"] == 2)
        # Both have looked, moved it aside, and offer nothing until it is there again.
        await until(lambda: not (first._blobs.has(published.root) or second._blobs.has(published.root)))
        await first.publish(KEY, data, version=2)
        fetched = await requester.fetch(KEY)
        assert fetched.read() == data
        assert fetched.holder in (first.id, second.id)
        await until(lambda: requester.chain_state(cell.chain).counts["receipt"] == 1)
        assert requester.chain_state(cell.chain).counts["complaint"] == 2  # of the same thing only once


async def test_large_data_comes_from_all_holders_and_the_chain_says_what_came_from_whom(
    tmp_path: Path,
) -> None:
    data = os.urandom(24_000_000)
    async with open_cell(tmp_path, 4) as cell:
        *holders, requester = cell.machines
        for holder in holders:
            await holder.publish(KEY, data, version=1)
        await requester.budgets.change(BudgetSettings(mbit_s=8))  # nobody has sent all before others begin
        fetching = asyncio.create_task(requester.fetch(KEY))
        await until(lambda: sum(one.done_bytes > 0 for one in requester.status().transfers) > 1)
        await requester.budgets.change(None)
        fetched = await fetching
        assert fetched.read() == data
        assert sum(fetched.shares.values()) == len(data)
        assert set(fetched.shares) <= {holder.id for holder in holders}
        assert len(fetched.shares) > 1
        await until(lambda: requester.chain_state(cell.chain).counts["receipt"] == 1)
        receipt = next(
            signed.record.body
            for height in range(1, requester.chain_state(cell.chain).height + 1)
            for signed in requester.block(cell.chain, height).block.records  # type: ignore[union-attr]
            if isinstance(signed.record.body, TransferReceipt)
        )
        assert {share.holder: share.size_bytes for share in receipt.shares} == fetched.shares
        assert (receipt.root, receipt.size_bytes) == (fetched.root, len(data))


def damage(blob: Path, at: int) -> None:
    os.chmod(blob, 0o600)
    with blob.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


async def test_restarted_peers_have_everything_that_was_acknowledged(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    async with open_cell(tmp_path, 2) as cell:
        await cell.machines[0].publish(KEY, data)
        chain = cell.chain
        height = cell.cloud.chain_state(chain).height
    async with contextlib.AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(Peer.open(tmp_path / "cloud"))
        peers = [await stack.enter_async_context(Peer.open(tmp_path / name)) for name in ("m0", "m1")]
        for peer in (cloud, *peers):
            assert peer.chain_state(chain).height >= height - 1
        # The ports are new: machines find each other through what the coordinator says of them.
        assert verify_chain(tmp_path / "cloud", chain).verified


async def test_storage_failure_silences_the_peer_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_cell(tmp_path, 1) as cell:
        machine = cell.machines[0]

        def fail(*_: object) -> None:
            raise StorageError("no space left for votes.log")

        monkeypatch.setattr(machine._store, "write", fail)
        events = machine.watch()
        with pytest.raises(StorageError, match="no space left"):
            await machine.submit(demand(1), chain=cell.chain)
        with pytest.raises(StorageError, match="no space left"):
            await machine.submit(demand(2), chain=cell.chain)
        assert "no space left" in " ".join(machine.status().problems)
        assert "no space left" in machine.failure
        async with asyncio.timeout(60):
            # That it is in the pool may be told only now: it is, when that is on disk.
            assert [event async for event in events if not isinstance(event, PoolEntered)] == []


# --- strangers at the door ------------------------------------------------------------------------


async def send_raw(address: str, data: bytes) -> None:
    host, port, _ = parse_address(address)
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(data)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        await asyncio.wait_for(reader.read(1000), 60)
    writer.close()


def unchanged(peer: Peer) -> dict[str, object]:
    """Everything of a peer's status that strangers must not be able to change."""
    status = peer.status()
    chains = [(chain.id, chain.height, chain.waiting, chain.records) for chain in status.chains]
    links = sorted(link.peer for link in status.links)
    return {"chains": chains, "links": links, "received": status.totals.bytes_received}


async def test_garbage_oversize_and_strangers_change_nothing_but_a_counter(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        target = cell.machines[0]
        before = unchanged(target)
        await send_raw(target.addresses[0], os.urandom(4096))
        await send_raw(target.addresses[0], b"GET / HTTP/1.1\r\n\r\n")
        await send_raw(target.addresses[0], (2**32 - 1).to_bytes(4, "big") + bytes(1000))
        await until(lambda: target.status().totals.refused.get("refused_handshake", 0) >= 3)
        assert unchanged(target) == before

        # A whole, valid frame, but from somebody whom another authority has certified.
        stranger_folder = tmp_path / "stranger"
        make_peer_folder(stranger_folder, PeerPlan("stranger", NETWORK), tmp_path / "other-authority")
        stranger = Peer.open(stranger_folder)
        context = stranger._identity.link_context
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        host, port, _ = parse_address(target.addresses[0])
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            frame = b"\x93\xa5hello\x90\x90"
            writer.write(len(frame).to_bytes(4, "big") + frame)
            await writer.drain()
            assert await asyncio.wait_for(reader.read(100), 60) == b""
        await until(lambda: target.status().totals.refused.get("refused_foreign", 0) == 1)
        assert unchanged(target) == before
        # And the pool goes on.
        await target.submit(demand(1), chain=cell.chain)


async def test_member_that_sends_garbage_or_too_much_loses_its_link_only(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        target, sender = cell.machines
        for frame in (b"\xc1garbage", b"\x92\xa5hello" + b"\x91" * 500):
            await until(lambda: any(i.peer == target.id for i in sender.connected()))
            refused = target.status().totals.refused.get("refused_garbage", 0)
            assert sender._transport.send(target.id, frame)
            await until(lambda n=refused: target.status().totals.refused.get("refused_garbage", 0) > n)
        assert target.chain_state(cell.chain).height == 0
        await until(lambda: any(i.peer == target.id for i in sender.connected()))
        await target.submit(demand(1), chain=cell.chain)


# --- processes ------------------------------------------------------------------------------------

WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from edgepool import DataKey, Peer
    from edgepool.model.record import DataDemand

    async def main() -> None:
        async with Peer.open(Path(sys.argv[1])) as peer:
            genesis = await peer.form_pool("alone", "fixed", [peer.member(peer.id)])
            print(genesis.chain, flush=True)
            for n in range(1_000_000):
                await peer.submit(DataDemand(DataKey("P", "model"), n, "", ""), chain=genesis.chain)
                print(n, flush=True)

    asyncio.run(main())
    """
)


@pytest.mark.parametrize("acknowledged", [1, 37])
def test_kill_9_loses_no_acknowledged_record(tmp_path: Path, acknowledged: int) -> None:
    folder = make_coordinator(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    chain = process.stdout.readline().strip()
    last = -1
    while last < acknowledged:
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    for line in process.stdout:
        if line.endswith("\n"):
            last = int(line)
    process.wait()
    process.stdout.close()
    verdict = verify_chain(folder, chain)  # type: ignore[arg-type]
    assert verdict.verified, verdict.problem

    async def count() -> int:
        async with Peer.open(folder) as peer:
            return peer.chain_state(chain).counts["demand"]  # type: ignore[arg-type]

    assert asyncio.run(count()) >= last + 1


async def test_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = make_coordinator(tmp_path)
    async with Peer.open(folder) as peer:
        make_machine(tmp_path, "m0", peer)
        with pytest.raises(LocalError):
            async with Peer.open(folder):
                pass
        await pool_stands(
            await peer.form_pool("alone", "fixed", [peer.member(peer.id)]),  # type: ignore[list-item]
            [peer],
            timeout_s=60,
        )


async def test_a_fetch_takes_as_long_as_data_keeps_coming_and_no_longer(tmp_path: Path) -> None:
    data = os.urandom(6_000_000)
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, data)
        await holder.budgets.change(BudgetSettings(mbit_s=10))  # five seconds, with pieces all along
        assert (await requester.fetch(KEY, timeout_ms=4_000)).read() == data
    async with open_cell(tmp_path / "silent", 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, data)
        real = holder._transport._listener.plain.pop(LANE)
        with pytest.raises(Unavailable, match=r"nothing of|data connection|ended the transfer early"):
            await requester.fetch(KEY, timeout_ms=3_000)
        holder._transport._listener.plain[LANE] = real
        assert (await requester.fetch(KEY)).read() == data


async def test_a_holder_that_is_lost_in_the_middle_and_comes_back_is_drawn_from_again(tmp_path: Path) -> None:
    data = os.urandom(6_000_000)
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, data)
        await holder.budgets.change(BudgetSettings(mbit_s=40))  # all has not come before it is cut
        cut: list[int] = []

        def progress(now: FetchProgress) -> None:
            if not cut:
                cut.append(now.done_bytes)
                holder._transport._transfers.cut(requester.id, "somebody tripped over the cable")

        fetched = await requester.fetch(KEY, progress=progress)
        assert fetched.read() == data
        assert fetched.shares == {holder.id: len(data)}, "nothing came twice"
        assert cut[0] < len(data)


async def test_a_holder_that_is_too_slow_to_say_how_busy_it_is_is_drawn_from_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_cell(tmp_path, 3) as cell:
        first, second, requester = cell.machines
        for holder in (first, second):
            await holder.publish(KEY, b"model", version=1)
        monkeypatch.setattr(StatusQueries, "receive_query", lambda *_: [])
        await second.__aexit__(None, None, None)
        assert (await requester.fetch(KEY)).holder == first.id


async def test_a_holder_whose_link_is_lost_before_it_confirms_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, b"model")
        asked: list[object] = []
        real = Confirmations.receive_request

        def lost_at_first(here: Confirmations, *question: Any) -> list[Any]:
            asked.append(question)
            if len(asked) == 1:
                requester._transport._up[holder.id].end("tripped over")
                return []
            return real(here, *question)

        monkeypatch.setattr(Confirmations, "receive_request", lost_at_first)
        assert (await requester.fetch(KEY)).read() == b"model"
        assert len(asked) == 2


async def test_a_holder_that_is_lost_before_anything_came_is_tried_again_if_it_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(6_000_000)
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, data)
        client = requester.data._fetches._client
        opened: list[object] = []
        real = client.open

        async def open_once_in_vain(*order: Any) -> OpenTransfer:
            opened.append(transfer := await real(*order))
            if len(opened) == 1:
                holder._transport._transfers.cut(requester.id, "the conduit on the way is started again")
            return transfer

        monkeypatch.setattr(client, "open", open_once_in_vain)
        assert (await requester.fetch(KEY)).read() == data
        assert len(opened) == 2

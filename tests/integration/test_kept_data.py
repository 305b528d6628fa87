"""Data that peers keep: quotas, pins, promises, damage and its repair, as owners meet them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from peer_cell import open_cell
from typer.testing import CliRunner

from edgepool import DataKey, Peer, Refused, StorageError
from edgepool.cli.main import app
from edgepool.config import PeerSettings
from edgepool.core.transfer import retention
from edgepool.gateway.app import ApiServer
from edgepool.peer.values import DataDamaged, DataEvicted, DataRestored, PeerEvent

KEY = DataKey("PTVA10212-01", "model")
MB = 1_000_000


def small(settings: PeerSettings) -> PeerSettings:
    return replace(settings, limits=replace(settings.limits, data_bytes=3 * MB))


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "GRACE_MS", 0)


async def until(reached: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110 - what is waited for is in other peers' hands
            await asyncio.sleep(0.01)


def kept(peer: Peer) -> dict[str, str]:
    return {one.keys[0]: one.kept for one in peer.storage.stored() if one.state == "whole"}


async def test_what_is_fetched_gives_way_and_what_is_pinned_or_promised_never_does(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2, change=small) as cell:
        holder, requester = cell.machines
        events: list[PeerEvent] = []
        watching = asyncio.create_task(_collect(requester, events))
        await asyncio.sleep(0)
        own = DataKey("OWN", "model")
        await requester.publish(own, os.urandom(MB))
        roots = []
        for part in ("A", "B", "C"):
            data = os.urandom(MB)
            published = await holder.publish(DataKey(part, "model"), data, version=1)
            roots.append(published.root)
            assert (await requester.fetch(DataKey(part, "model"))).read() == data
            await holder.storage.pin(published.root.hex(), False)
            holder._blobs.delete(published.root)  # the small holder needs room for the next one
            if part == "B":
                await requester.storage.pin("B/model")
        assert [event.root for event in events if isinstance(event, DataEvicted)] == roots[:1]
        assert kept(requester) == {
            "OWN/model version 1": "offered in cell",
            "B/model version 1": "pinned",
            "C/model version 1": "",
        }
        with pytest.raises(StorageError, match="2000000 are pinned or promised"):
            await requester.publish("D/model", os.urandom(2 * MB))
        for what in ("OWN/model", "B/model"):
            with pytest.raises(Refused, match="data is kept"):
                await requester.storage.evict_these(what)
        assert len(kept(requester)) == 3, "what is refused harms nothing"
        await requester.storage.pin("B/model", False)
        await requester.publish("D/model", os.urandom(2 * MB))
        assert set(kept(requester)) == {"OWN/model version 1", "D/model version 1"}
        status = requester.status().storage
        assert (status.used_bytes, status.kept_bytes, status.evicted) == (3 * MB, 3 * MB, 3)
        assert requester.metrics()["edgepool_storage_quota_bytes"] == 3 * MB
        watching.cancel()


async def test_a_newer_version_ends_the_promise_of_the_older_one(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 1, change=small) as cell:
        (machine,) = cell.machines
        for version in range(1, 5):
            await machine.publish(KEY, os.urandom(MB))
            assert kept(machine)[f"{KEY} version {version}"] == "offered in cell"
        assert sorted(kept(machine)) == [f"{KEY} version {version}" for version in (2, 3, 4)]


async def test_data_of_a_refused_publish_is_dropped_unless_it_was_there_before(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, b"first", version=2)
        await until(lambda: bool(requester.chain_state(cell.chain).offers(KEY)))
        with pytest.raises(Refused):
            await requester.publish(KEY, b"older and new here", version=1)
        assert requester.storage.stored() == []
        await requester.fetch(KEY)
        with pytest.raises(Refused):
            await requester.publish(KEY, b"first", version=1)
        assert len(requester.storage.stored()) == 1


async def test_damaged_data_goes_into_quarantine_and_comes_back_from_another_holder(tmp_path: Path) -> None:
    data = os.urandom(2 * MB)
    async with open_cell(tmp_path, 3) as cell:
        first, second, third = cell.machines
        root = (await first.publish(KEY, data, version=1)).root
        events: list[PeerEvent] = []
        watching = asyncio.create_task(_collect(first, events))
        await asyncio.sleep(0)
        with first._blobs.path(root).open("r+b") as file:
            file.seek(MB)
            file.write(bytes(8))
        report = await first.storage.scrub()
        assert report.damaged == [root.hex()]
        assert not first._blobs.has(root)
        await until(lambda: any("no other holder" in one for one in first.status().problems))
        with pytest.raises(Exception, match=r"nobody|hold"):
            await third.fetch(KEY, timeout_ms=3_000)
        await second.publish(KEY, data, version=1)
        first.storage._scrubber._damage_found.set()  # it would look again in a minute
        await until(lambda: first.status().storage.restored == 1)
        assert first._blobs.path(root).read_bytes() == data
        assert (await third.fetch(KEY)).read() == data
        status = first.status()
        assert (status.storage.quarantined_bytes, status.storage.damaged) == (0, 1)
        assert not [problem for problem in status.problems if "damaged" in problem]
        kinds = [type(event) for event in events if isinstance(event, DataDamaged | DataRestored)]
        assert kinds == [DataDamaged, DataRestored]
        watching.cancel()


@pytest.mark.parametrize("size_bytes", [3 * MB, 5000])
async def test_damage_that_shows_while_serving_is_found_at_once(tmp_path: Path, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    async with open_cell(tmp_path, 3) as cell:
        first, second, third = cell.machines
        root = (await first.publish(KEY, data, version=1)).root
        with first._blobs.path(root).open("r+b") as file:
            file.seek(size_bytes // 2)
            file.write(b"damage" + bytes(8))
        with pytest.raises(Exception, match=r"is not what its manifest says|damaged"):
            await third.fetch(KEY, timeout_ms=20_000)
        await until(lambda: first.status().storage.damaged == 1, 45)
        assert not first._blobs.has(root)
        await second.publish(KEY, data, version=1)
        assert (await third.fetch(KEY)).read() == data


async def test_doubts_about_what_is_right_change_nothing(tmp_path: Path) -> None:
    data = os.urandom(2 * MB)
    async with open_cell(tmp_path, 2) as cell:
        first, second = cell.machines
        root = (await first.publish(KEY, data, version=1)).root
        for index in range(200):
            first.storage.doubt(root, index % 3)  # there is no chunk 2
        first.storage.doubt(bytes(32), 0)
        await until(lambda: not first.storage._scrubber._doubts, 45)
        assert first.status().storage.damaged == 0
        assert (await second.fetch(KEY)).read() == data


async def test_pins_and_what_was_confirmed_shortly_before_are_known_after_a_restart(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        for version in (1, 2):
            await holder.publish(KEY, b"%d" % version)
        await requester.fetch(KEY, version=1)
        await requester.storage.pin(str(KEY))
        await until(lambda: kept(holder)[f"{KEY} version 1"] == "confirmed to a requester")
        await until(lambda: holder.chain_state(cell.chain).counts["confirmation"] == 1)
        again = []
        for peer in (holder, requester):
            await peer.__aexit__(None, None, None)
            again.append(Peer(peer.settings))
        async with again[0] as holder, again[1] as requester:
            assert kept(holder)[f"{KEY} version 1"] == "confirmed to a requester"
            assert kept(requester) == {f"{KEY} version 1": "pinned"}


async def test_owners_look_after_data_by_commands(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 1) as cell:
        (machine,) = cell.machines
        api = ApiServer(machine, machine.settings.folder)
        await api.start()
        try:
            old = (await machine.publish(KEY, b"old")).root.hex()
            await machine.publish(KEY, b"newer")
            code, text = await command("list", machine.settings.folder, "--json")
            rows = json.loads(text)["data"]
            assert code == 0
            assert {row["kept"] for row in rows} == {"", "offered in cell"}
            code, text = await command("pin", machine.settings.folder, old[:12])
            assert (code, text) == (0, f"{KEY} version 1 is pinned\n")
            code, text = await command("evict", machine.settings.folder, old)
            assert code == 1
            assert "version 1 is pinned" in text
            assert (await command("unpin", machine.settings.folder, old))[1].endswith("it may go\n")
            assert (await command("evict", machine.settings.folder, "--free", "3"))[0] == 0
            assert old not in {one.root for one in machine.storage.stored()}
            code, text = await command("evict", machine.settings.folder, "--free", "3k")
            assert code == 2
            assert "raise limits.data_bytes" in text
            assert "5 B must stay" in (await command("", machine.settings.folder))[1]
            assert (await command("scrub", machine.settings.folder))[0] == 0
            damage(machine)
            code, text = await command("scrub", machine.settings.folder, str(KEY))
            assert code == 1
            assert "damaged, in quarantine" in text
            code, text = await command("pin", machine.settings.folder, "nothing")
            assert code == 2
            assert "names no data" in text
        finally:
            await api.close()


def damage(machine: Peer) -> None:
    (root,) = machine._blobs.roots()
    machine._blobs.path(root).write_bytes(b"nEwer")


async def command(name: str, folder: Path, *words: str) -> tuple[int, str]:
    """Run `edgepool data NAME FOLDER ...`, or `edgepool status FOLDER`; return exit code and output."""
    line = ["data", name] if name else ["status"]
    done = await asyncio.to_thread(CliRunner().invoke, app, [*line, str(folder), *words])
    return done.exit_code, done.output


async def _collect(peer: Peer, events: list[PeerEvent]) -> None:
    async for event in peer.watch():
        events.append(event)

"""A budget as owners meet it: transfers keep to it, changes take effect at once, commands show and set it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace
from peer_cell import open_cell
from typer.testing import CliRunner

from edgepool import DataKey
from edgepool.cli.main import app
from edgepool.config import BudgetSettings, load_peer_settings
from edgepool.gateway.app import ApiServer
from edgepool.model.record import DataDemand

KEY = DataKey("PTVA10212-01", "model")
MBIT = 125_000


async def until(reached: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110 - what is waited for is in threads' hands
            await asyncio.sleep(0.01)


async def test_a_transfer_keeps_to_the_budget_and_goes_on_at_once_when_it_is_lifted(tmp_path: Path) -> None:
    data = os.urandom(8 * 1024 * 1024)
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, data)
        for limited in (holder, requester):
            await limited.budgets.change(BudgetSettings(mbit_s=8))  # more than 8 s for all of it
            began_s = time.monotonic()
            fetching = asyncio.create_task(requester.fetch(KEY))
            moved = requester.status().totals.bytes_received
            await until(lambda moved=moved: requester.status().totals.bytes_received > moved)
            # Votes and records go on meanwhile: they are never counted.
            await requester.submit(DataDemand(KEY, 7, "", ""), chain=cell.chain)
            passed_s = time.monotonic() - began_s
            assert not fetching.done()
            sent = requester.status().totals.bytes_received - moved
            # Both ends may hold a frame of 256 KiB, and sockets some more.
            assert sent <= 8 * MBIT * (passed_s + 0.05) + 6 * 1024 * 1024
            await limited.budgets.change(BudgetSettings())
            fetched = await fetching
            assert fetched.read() == data
            requester.storage._drop(fetched.root)
            await until(lambda root=fetched.root: root not in requester.node.directory.held)


async def test_small_data_is_paced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, os.urandom(30_000))
        now = holder.budgets.sending._clock.now()
        with monkeypatch.context() as stopped:  # no time passes for the budget: nothing may move
            stopped.setattr(holder.budgets.sending, "_clock", SimpleNamespace(now=lambda: now))
            await holder.budgets.change(BudgetSettings(mbit_s=1, per_peer_mbit_s=1))
            fetching = asyncio.create_task(requester.fetch(KEY))
            await until(lambda: holder.budgets.status().waiting_to_send == 1)
        await holder.budgets.change(BudgetSettings())
        assert len((await fetching).read()) == 30_000


async def test_owners_see_and_set_the_budget_by_commands(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 1) as cell:
        (machine,) = cell.machines
        folder = machine.settings.folder
        api = ApiServer(machine, folder)
        await api.start()
        try:
            code, text = await command("show", folder)
            assert code == 0
            assert "any" in text
            line = ("--mbit-s", "200", "--hours", "00:00-12:00=50", "--hours", "12:00-00:00=60")
            code, text = await command("set", folder, *line, "--priority", "model=2", "--json")
            assert code == 0
            answer = json.loads(text)
            assert answer["now_mbit_s"] in (50, 60)
            assert answer["settings"]["hours"][0] == {"from": "00:00", "to": "12:00", "mbit_s": 50}
            await command("set", folder, "--per-peer-mbit-s", "20", "--priority", "surface=9")
            budget = load_peer_settings(folder).budget
            assert budget == machine.budgets.settings
            assert (budget.mbit_s, budget.per_peer_mbit_s) == (200, 20)
            assert budget.priorities == {"model": 2, "surface": 9}
            assert "surface has priority 9" in (await command("show", folder))[1]
            for wrong in (("--mbit-s", "fast"), ("--hours", "6-22=5"), ("--priority", "model=10"), ()):
                code, text = await command("set", folder, *wrong)
                assert code == 2
                assert "write" in text or "say what to change" in text
            assert machine.budgets.settings == budget
            assert (await command("set", folder, "--reset"))[0] == 0
            assert load_peer_settings(folder).budget == BudgetSettings()
            assert not machine.budgets.sending.limits
        finally:
            await api.close()
    assert replace(machine.settings, budget=BudgetSettings()) == machine.settings


async def command(name: str, folder: Path, *words: str) -> tuple[int, str]:
    done = await asyncio.to_thread(CliRunner().invoke, app, ["budget", name, str(folder), *words])
    return done.exit_code, done.output

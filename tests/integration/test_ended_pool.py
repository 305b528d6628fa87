"""A manufacturing pool has ended when its members have left but for the last, for everybody alike."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from peer_cell import open_cell
from test_cli_run import edgepool
from test_key_rotation import until
from test_members import demand, member, served

from edgepool import Refused
from edgepool.core.succeeding import places
from edgepool.errors import LocalError
from edgepool.gateway.archiving import archive_chain
from edgepool.peer.verify import verify_chain


async def test_a_pool_that_has_ended_is_told_counts_for_nothing_and_is_put_away_by_all(
    tmp_path: Path,
) -> None:
    async with open_cell(tmp_path, 3) as cell, AsyncExitStack() as stack:
        first, last, _ = cell.machines
        people = [one for one in map(cell.cloud.member, (first.id, last.id)) if one]
        watcher = cell.cloud.member(cell.cloud.id)
        assert watcher is not None
        sub = await cell.cloud.form_pool("task", "manufacturing", people, observers=[watcher])
        everybody = [first, last, cell.cloud]
        for one in everybody:
            await until(lambda: sub.chain in one.chains)  # noqa: B023
        assert not any(chain.ended for one in everybody for chain in one.status().chains)

        await first.change_members(sub.chain, exclude=first.id)
        n = 0
        while first.id in last.chain_state(sub.chain).members:
            await last.submit(demand(n := n + 1), chain=sub.chain)
        for one in everybody:
            await until(lambda: one.members(sub.chain).ended)  # noqa: B023
            ended = {chain.name: chain.ended for chain in one.status().chains}
            assert ended == {"task": True, "cell": False}, "a fixed pool is for ever"
            assert not one.node.room.takes_part(one.node.chains[sub.chain])
        with pytest.raises(Refused, match="the pool would have 0 members"):
            await cell.cloud.change_members(sub.chain, exclude=last.id)
        # The coordinator's next key needs nobody's word on it; the last member's goes on by itself.
        assert [chain.id for chain in places(cell.cloud.node.chains.values(), cell.cloud.id)] == [cell.chain]
        assert len(places(last.node.chains.values(), last.id)) == 2
        await stack.enter_async_context(served(cell.cloud))
        _, shown, _ = await member("list", tmp_path / "cloud", "task")
        assert "the pool has ended" in shown
        assert "manufacturing, ended" in await asyncio.to_thread(edgepool, "status", tmp_path / "cloud")
        await stack.aclose()

        for one in everybody:
            await one.__aexit__(None, None, None)
            folder = one.settings.folder
            rows = json.loads(edgepool("chain", "list", folder, "--json"))
            assert {row["name"]: row["ended"] for row in rows} == {"task": True, "cell": False}
            with pytest.raises(LocalError, match="pool cell"):
                archive_chain(folder, "cell")
            done = archive_chain(folder, "task")
            assert verify_chain(folder / "archive", sub.chain).height == done.height > 0
            assert "m1 was the last" in edgepool("chain", "list", folder / "archive")


async def test_a_pool_that_has_ended_begins_again_with_who_is_admitted(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        first, last = cell.machines
        people = [one for one in map(cell.cloud.member, (first.id, last.id)) if one]
        watcher = cell.cloud.member(cell.cloud.id)
        assert watcher is not None
        sub = await cell.cloud.form_pool("task", "manufacturing", people, observers=[watcher])
        await until(lambda: sub.chain in last.chains)
        await first.change_members(sub.chain, exclude=first.id)
        n = 0
        while not last.members(sub.chain).ended:
            await last.submit(demand(n := n + 1), chain=sub.chain)
        await cell.cloud.change_members(sub.chain, admit=first.id)
        while first.id not in last.chain_state(sub.chain).members:
            await last.submit(demand(n := n + 1), chain=sub.chain)
        await until(lambda: first.node.chains[sub.chain].member)
        assert not any(one.members(sub.chain).ended for one in (first, last))
        await first.submit(demand(n + 1), chain=sub.chain)

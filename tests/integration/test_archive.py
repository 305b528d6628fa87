"""The chain of a pool that a gateway has left is put away whole, and never one that something still needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import edgepool
from peer_cell import open_cell
from test_key_rotation import until
from test_members import demand

from edgepool import DataKey, Peer
from edgepool.errors import LocalError
from edgepool.gateway.archiving import archive_chain
from edgepool.peer.verify import verify_chain

KEY = DataKey("PTVA10212-01", "model")


async def test_a_pool_that_was_left_is_put_away_and_what_is_needed_stays(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 4) as cell:
        machine, *others = cell.machines
        everybody = [one for one in map(cell.cloud.member, (one.id for one in cell.machines)) if one]
        watcher = cell.cloud.member(cell.cloud.id)
        assert watcher is not None
        sub = await cell.cloud.form_pool("task", "manufacturing", everybody, observers=[watcher])
        await until(lambda: sub.chain in machine.chains)
        await machine.publish(KEY, b"of the task" * 1000, chain=sub.chain)
        with pytest.raises(LocalError, match="is in use by another peer"):
            archive_chain(tmp_path / "m0", "task")
        await machine.__aexit__(None, None, None)
        with pytest.raises(
            LocalError, match="m0 votes in pool task, which counts on it: leave the pool first"
        ):
            archive_chain(tmp_path / "m0", "task")
        async with Peer.open(tmp_path / "m0") as again:
            await until(lambda: len(again.connected()) == 4)
            await again.change_members(sub.chain, exclude=again.id)
            n = 0
            while again.node.room.takes_part(again.node.chains[sub.chain]):
                await others[0].submit(demand(n := n + 1), chain=sub.chain)
            height = again.chain_state(sub.chain).height
        with pytest.raises(
            LocalError, match="PTVA10212-01/model is held here, and offered on this chain alone"
        ):
            archive_chain(tmp_path / "m0", "task")
        async with Peer.open(tmp_path / "m0") as again:
            await again.publish(KEY, b"of the task" * 1000, chain=cell.chain)
            await until(lambda: again.chain_state(sub.chain).height == height)
        done = json.loads(edgepool("chain", "archive", tmp_path / "m0", "task", "--json"))
        assert (done["chain"], done["pool"]) == (sub.chain, "task")
        assert verify_chain(tmp_path / "m0/archive", sub.chain).height == done["height"]
        assert "task" in edgepool("chain", "list", tmp_path / "m0/archive")
        assert "there is no chain 'task' here" in edgepool(
            "chain", "archive", tmp_path / "m0", "task", code=2
        )
        async with Peer.open(tmp_path / "m0") as again:
            assert list(again.chains) == [cell.chain]
            await until(lambda: len(again.connected()) == 4)
            await again.submit(demand(100), chain=cell.chain)
            assert list(again.chains) == [cell.chain], "who keeps the pool on tells it of that no more"
            # Who comes in again later begins with the chain anew, and votes.
            await cell.cloud.change_members(sub.chain, admit=again.id)
            while again.id not in others[0].chain_state(sub.chain).members:
                await others[0].submit(demand(n := n + 1), chain=sub.chain)
            await until(lambda: again.node.chains[sub.chain].member)
            await again.submit(demand(n + 1), chain=sub.chain)
        with pytest.raises(LocalError, match="m0 votes in pool task"):
            archive_chain(tmp_path / "m0", "task")
        cloud_at = tmp_path / "cloud"
        await cell.cloud.__aexit__(None, None, None)
        with pytest.raises(LocalError, match="has formed pool task, or observes it"):
            archive_chain(cloud_at, "task")

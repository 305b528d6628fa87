"""A peer that has lost its chains does not give up the only key by which its pools know it [S3.6]."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from peer_cell import open_cell
from test_coordinator_key import coordinated
from test_key_rotation import Program, place_of, programs, until
from test_members import demand

from edgepool import LocalError
from edgepool.peer import rotation


async def lose_chains(program: Program) -> None:
    """Give a machine an empty disk; its key, certificate and settings are on another one."""
    await program.close()
    shutil.rmtree(program.settings.folder / "chains")
    (program.settings.folder / "votes.log").unlink()


def list_of(program: Program) -> Path:
    return program.settings.path(program.settings.identity.key).with_name("key.pem.pools")


async def test_no_key_changes_before_all_pools_are_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a change go on that was begun before the loss."""
    monkeypatch.setattr(rotation, "LONGEST_PAUSE_S", 0.2)
    async with coordinated(tmp_path, 3) as (cell, coordinator), programs(cell, 0) as (program,):
        _, m1, m2 = cell.machines
        await until(list_of(program).exists)
        assert list_of(program).read_text() == f"{cell.chain} cell\n"
        await coordinator.close()
        await lose_chains(program)
        lost = await program.open()
        await until(lambda: {m1.id, m2.id} <= {one.peer for one in lost.connected()})
        with pytest.raises(LocalError, match="has lost the chains of cell, which would not hear of its new"):
            await lost.rotation.begin()
        lost.rotation._files.begin(None)
        lost.rotation.start()
        await until(lambda: lost.rotation.status().problem)
        assert not program.ready.is_set()
        assert list_of(program).read_text() == f"{cell.chain} cell\n", "nothing is forgotten by that"

        cloud = await coordinator.open()
        new = await program.change()
        await until(lambda: not new.rotation.status().state)
        assert new.id != lost.id
        for peer in (m1, m2, cloud):
            await until(lambda: place_of(peer, cell.chain, "m0") == new.id)  # noqa: B023
        await new.submit(demand(1), chain=cell.chain)


async def test_a_coordinator_that_has_lost_its_chains_is_told_of_its_pools_by_their_members(
    tmp_path: Path,
) -> None:
    async with coordinated(tmp_path, 3) as (cell, program):
        await until(list_of(program).exists)
        await lose_chains(program)
        lost = await program.open()
        await until(lambda: cell.chain in lost.chains)
        await until(lambda: len(lost.connected()) == 3)
        new = await program.rotate()
        for peer in cell.machines:
            await until(lambda: peer.chain_state(cell.chain).coordinator == new.id)  # noqa: B023


async def test_who_came_later_and_has_lost_its_chains_is_in_its_pool_again(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell:
        cell.machines.append(await cell.join("m3"))
        n = 0
        await cell.cloud.change_members(cell.chain, admit=cell.machines[3].id)
        while cell.machines[3].id not in cell.machines[0].chain_state(cell.chain).members:
            await cell.machines[0].submit(demand(n := n + 1), chain=cell.chain)
        async with programs(cell, 3) as (program,):
            await until(list_of(program).exists)
            await lose_chains(program)
            back = await program.open()
            await until(lambda: cell.chain in back.chains and back.node.chains[cell.chain].member)
            await back.submit(demand(n + 1), chain=cell.chain)


async def test_what_is_over_is_taken_out_by_hand(tmp_path: Path) -> None:
    async with coordinated(tmp_path, 3) as (cell, coordinator), programs(cell, 0) as (program,):
        await until(list_of(program).exists)
        over = "0" * 40
        list_of(program).write_text(f"{over} old cell\nwhat is no line\n{cell.chain} cell\n")
        with pytest.raises(LocalError, match="the chains of old cell, which"):
            await program.peer.rotation.begin()
        list_of(program).write_text(f"{cell.chain} cell\n")
        old = program.peer.id
        assert (await program.rotate()).id != old
        await coordinator.close()

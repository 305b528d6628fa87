"""A peer that has agreed to come into a pool changes its key before the pool has decided."""

from __future__ import annotations

from pathlib import Path

import pytest
from peer_cell import Cell, open_cell
from test_key_rotation import certifies, place_of, programs, until
from test_members import demand

from edgepool import Refused
from edgepool.core import node
from edgepool.gateway.registrar import open_registrar
from edgepool.model.pool import Genesis
from edgepool.peer import rotation


@pytest.fixture(autouse=True)
def _agrees_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long its yes may be used is what a peer waits for first, before it changes its key."""
    monkeypatch.setattr(node, "JOIN_TIMEOUT_MS", 1_000)


async def asked_to_come(cell: Cell) -> Genesis:
    """Form a pool of all machines but the first, which agrees to come in; nobody has approved that yet."""
    newcomer, *others = cell.machines
    cloud = cell.cloud
    watcher, *members = [one for one in map(cloud.member, (cloud.id, *(one.id for one in others))) if one]
    sub = await cloud.form_pool("task", "manufacturing", members, observers=[watcher])
    await until(lambda: sub.chain in cloud.chains)
    await cloud.change_members(sub.chain, admit=newcomer.id)
    await until(newcomer.node.room.undecided)
    assert newcomer.node.pools.settled_ms > 0, "it knows from its own yes, before the chain tells it"
    return sub


async def test_a_pool_that_has_not_decided_yet_takes_in_the_new_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "LONGEST_PAUSE_S", 0.2)
    async with (
        open_cell(tmp_path, 3, approve="manual", change=certifies) as cell,
        open_registrar(cell.cloud),
        programs(cell, 0) as (program,),
    ):
        newcomer, first, second = cell.machines
        sub = await asked_to_come(cell)
        await newcomer.rotation.begin()
        await until(lambda: "members of task have not decided yet" in newcomer.rotation.status().problem)
        assert not program.ready.is_set()
        here = [one for one in map(cell.cloud.member, (newcomer.id, first.id)) if one is not None]
        with pytest.raises(Refused, match="its key is being changed"):
            await cell.cloud.form_pool("other", "manufacturing", here)
        for one in (first, second):
            await one.approve_change(sub.chain)
        new = await program.change()
        assert new.id != newcomer.id
        await until(lambda: place_of(first, sub.chain, "m0") == new.id)
        await new.submit(demand(1), chain=sub.chain)


async def test_who_is_never_decided_on_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(rotation, "UNDECIDED_MS", 1_000)
    async with (
        open_cell(tmp_path, 3, approve="manual", change=certifies) as cell,
        open_registrar(cell.cloud),
        programs(cell, 0) as (program,),
    ):
        newcomer, first, second = cell.machines
        sub = await asked_to_come(cell)
        new = await program.rotate()
        # The members know that the old key is nobody's any more: it does not stay, whoever approves it now.
        for one in (first, second):
            await until(lambda: newcomer.id in one.trusting.revoked)  # noqa: B023
        assert place_of(first, sub.chain, "m0") == ""
        assert place_of(first, cell.chain, "m0") == new.id

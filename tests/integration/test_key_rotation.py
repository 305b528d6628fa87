"""A member's key changes in its place [S3.6], while the pool votes and data moves, and whatever dies."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from peer_cell import Cell, open_cell
from test_members import busy, demand, voters

from edgepool import DataKey, LocalError, Peer, Refused
from edgepool.config import AuthoritySettings, BudgetSettings, PeerSettings
from edgepool.gateway.registrar import Registrar, open_registrar
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.policy import PolicyTerms
from edgepool.peer.rotation import KeyRotation
from edgepool.peer.verify import verify_chain
from edgepool.transport.keychange import KeyChange

PATIENCE_S = 90.0
KEY = DataKey("PTVA10212-01", "model")


async def until(reached: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not reached():  # noqa: ASYNC110 - what is waited for is in other peers' hands
            await asyncio.sleep(0.02)


def certifies(settings: PeerSettings) -> PeerSettings:
    """The coordinator is a registrar, as 'edgepool org init' makes it."""
    if settings.role != "coordinator":
        return settings
    return replace(settings, authority=AuthoritySettings(folder=str(settings.folder.parent / "authority")))


@asynccontextmanager
async def certified_cell(folder: Path, machines: int) -> AsyncIterator[Cell]:
    async with open_cell(folder, machines, change=certifies) as cell, open_registrar(cell.cloud):
        yield cell


class Program:
    """What 'edgepool run' is to one peer: opens it again whenever its key is to change."""

    def __init__(self, settings: PeerSettings, stack: AsyncExitStack) -> None:
        self.settings = settings
        self._stack = stack
        self.ready = asyncio.Event()
        self.peer: Peer
        self.registrar: Registrar | None

    async def open(self) -> Peer:
        self.ready.clear()
        peer = Peer(self.settings)
        peer.rotation.on_ready = self.ready.set
        self._open = await self._stack.enter_async_context(AsyncExitStack())
        self.peer = await self._open.enter_async_context(peer)
        self.registrar = await self._open.enter_async_context(open_registrar(peer))
        return self.peer

    async def close(self) -> None:
        await self._open.aclose()

    async def change(self) -> Peer:
        """Wait until the new key has its place everywhere, and go on under it."""
        async with asyncio.timeout(PATIENCE_S):
            await self.ready.wait()
        former = self.peer.rotation.former_key()
        await self.close()
        KeyChange(self.settings).make(former)
        return await self.open()

    async def rotate(self) -> Peer:
        await self.peer.rotation.begin()
        peer = await self.change()
        await until(lambda: not peer.rotation.status().state)
        return peer


@asynccontextmanager
async def programs(cell: Cell, *places: int) -> AsyncIterator[list[Program]]:
    """Run some of the cell's machines so that their keys can change."""
    async with AsyncExitStack() as stack:
        made = []
        for place in places:
            # It stays where the others know it to be.
            settings = replace(cell.machines[place].settings, listen=cell.machines[place].addresses[0])
            await cell.machines[place].__aexit__(None, None, None)
            made.append(Program(settings, stack))
            cell.machines[place] = await made[-1].open()
        await until(lambda: all(len(program.peer.connected()) == len(cell.machines) for program in made))
        yield made


async def some_came(requester: Peer, past_bytes: int = 0) -> None:
    """Wait until so much has come; then let the rest come so slowly that what follows finds it under way."""
    await until(lambda: any(one.done_bytes > past_bytes for one in requester.status().transfers))
    await requester.budgets.change(BudgetSettings(mbit_s=1))


def place_of(peer: Peer, chain: ChainId, name: str) -> PeerId:
    return next((one.peer for one in peer.members(chain).members if one.name == name), PeerId(""))


async def test_a_pool_goes_on_and_a_transfer_resumes_while_its_holder_changes_its_key(tmp_path: Path) -> None:
    async with certified_cell(tmp_path, 3) as cell, programs(cell, 0) as (program,):
        holder, requester = program.peer, cell.machines[1]
        data = os.urandom(16_000_000)
        await holder.publish(KEY, data)
        await requester.budgets.change(BudgetSettings(mbit_s=10))
        fetching = asyncio.create_task(requester.fetch(KEY))
        await some_came(requester, 4_000_000)
        async with busy(cell.cloud, cell.chain) as heights:
            await until(lambda: len(heights) > 5)
            old = holder.id
            new = await program.rotate()
            assert new.id != old
            written = len(heights)
            await until(lambda: len(heights) > written + 5)
        for peer in (cell.cloud, cell.machines[1], cell.machines[2]):
            await until(lambda: place_of(peer, cell.chain, "m0") == new.id)  # noqa: B023
            await until(lambda: old in peer.trusting.revoked)  # noqa: B023
        await requester.budgets.change(None)
        fetched = await fetching
        assert fetched.read() == data
        shares = {"old": fetched.shares.get(old, 0), "new": fetched.shares.get(new.id, 0)}
        assert all(shares.values()), shares
        async with asyncio.timeout(PATIENCE_S):
            n, voted = 0, set[str]()
            while "m0" not in voted:
                n += 1
                ref = await new.submit(demand(n), chain=cell.chain)
                voted = voters(new, cell.chain, ref.height)
        await cell.machines[2].fetch(KEY)
        await program.close()
    for name in ("cloud", "m0", "m1"):
        assert verify_chain(tmp_path / name, cell.chain).height > 0


async def test_what_was_the_old_keys_is_the_new_keys(tmp_path: Path) -> None:
    """Data of all versions, policies of its own and of others; on a main chain and a sub-chain."""
    async with certified_cell(tmp_path, 3) as cell, programs(cell, 0) as (program,):
        owner, reader, other = program.peer, *cell.machines[1:]
        members = [one for one in map(cell.cloud.member, (owner.id, reader.id, other.id)) if one is not None]
        sub = await cell.cloud.form_pool("task", "manufacturing", members)
        await until(lambda: sub.chain in owner.chains)
        await owner.publish(KEY, b"first" * 1000, chain=cell.chain)
        await owner.publish(KEY, b"second" * 1000, chain=cell.chain)
        terms = PolicyTerms(members=(reader.id,))
        await owner.rights.set_policy(KEY, terms, chain=cell.chain)
        theirs = DataKey("OTHER", "model")
        await reader.publish(theirs, b"theirs" * 1000, chain=cell.chain)
        await reader.rights.set_policy(theirs, PolicyTerms(members=(owner.id,)), chain=cell.chain)

        new = await program.rotate()
        await until(lambda: place_of(other, sub.chain, "m0") == new.id)
        await new.submit(demand(1), chain=sub.chain)
        assert (await reader.fetch(KEY, version=1, chain=cell.chain)).read() == b"first" * 1000
        assert (await reader.fetch(KEY, chain=cell.chain)).read() == b"second" * 1000
        with pytest.raises(Refused, match="not among the members"):
            await other.fetch(KEY, chain=cell.chain)
        assert (await new.fetch(theirs, chain=cell.chain)).read() == b"theirs" * 1000
        await new.rights.set_policy(KEY, None, chain=cell.chain)
        assert (await other.fetch(KEY, chain=cell.chain)).read() == b"second" * 1000


@pytest.mark.parametrize("moment", ["made", "certified", "passed", "changed"])
async def test_whatever_dies_the_change_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    async with certified_cell(tmp_path, 2) as cell, programs(cell, 0) as (program,):
        old, files = program.peer.id, KeyChange(program.settings)
        await program.peer.publish(KEY, b"data" * 1000)
        if moment == "made":
            files.begin(None)
        elif moment == "certified":
            files.begin(None)
            await program.peer.rotation._certify()
        else:
            await program.peer.rotation.begin()
            await asyncio.wait_for(program.ready.wait(), PATIENCE_S)
        if moment == "changed":
            with monkeypatch.context() as cut:
                cut.setattr(KeyRotation, "start", lambda _: None)
                await program.change()
        await program.close()
        await program.open()
        if moment != "changed":
            await program.change()
        await until(lambda: not program.peer.rotation.status().state)
        new = program.peer
        assert new.id != old
        await until(lambda: old in cell.cloud.trusting.revoked)
        assert place_of(new, cell.chain, "m0") == new.id
        assert (await cell.machines[1].fetch(KEY)).read() == b"data" * 1000
        identity = tmp_path / "m0/identity"
        await until((identity / "key.pem.pools").exists)
        assert sorted(path.name for path in identity.iterdir()) == [
            "authority.pem",
            "certificate.pem",
            "key.pem",
            "key.pem.lineage",
            "key.pem.pools",
        ]
        assert [(one.former, one.heir) for one in new.rotation.line] == [(old, new.id)]


async def test_a_change_that_is_begun_at_the_very_end_of_the_one_before_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, disk = KeyChange.over, threading.Event()

    def over(files: KeyChange) -> None:
        real(files)
        assert disk.wait(PATIENCE_S), "the disk is slow, not broken"

    monkeypatch.setattr(KeyChange, "over", over)
    async with certified_cell(tmp_path, 2) as cell, programs(cell, 0) as (program,):
        second = await program.rotate()  # which says that it is over before the disk is done
        beginning = asyncio.create_task(second.rotation.begin())
        await asyncio.sleep(0)
        disk.set()
        assert (await beginning).state
        assert (await program.change()).id not in (second.id, "")


async def test_no_key_changes_where_nobody_could_open_the_peer_again(tmp_path: Path) -> None:
    async with certified_cell(tmp_path, 2) as cell:
        with pytest.raises(LocalError, match="cannot open it again"):
            await cell.machines[1].rotation.begin()

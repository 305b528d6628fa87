"""Who has left its last pool is dialled no more, and dials nobody; what is under way to it goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from peer_cell import Cell, make_machine, open_cell
from test_members import busy

from edgepool import DataKey, Peer, Unavailable
from edgepool.config import BudgetSettings
from edgepool.gateway.pools import gather_members
from edgepool.model.crypto import Signer
from edgepool.model.ids import split_address
from edgepool.model.trust import RevokePeer

KEY = DataKey("PTVA10212-01", "model")


async def until(reached: Callable[[], object], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110 - what is waited for is in other peers' hands
            await asyncio.sleep(0.02)


class Guests:
    """Two more members of a cell, which end before it does: one stays in the pool, one has to go."""

    def __init__(self, cell: Cell, stack: AsyncExitStack, staying: Peer, going: Peer) -> None:
        self.cell = cell
        self.staying = staying
        self.going = going
        self._stack = stack

    @property
    def others(self) -> list[Peer]:
        return [self.cell.cloud, *self.cell.machines, self.staying]

    def at_work(self) -> AbstractAsyncContextManager[list[int]]:
        """Let blocks stand one after the other, so that what is decided comes into force."""
        return busy(self.cell.machines[0], self.cell.chain)

    async def end(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def with_guests(folder: Path) -> AsyncIterator[Guests]:
    async with open_cell(folder, 3) as cell, AsyncExitStack() as stack:
        made = []
        for name in ("m8", "m9"):
            made.append(await stack.enter_async_context(Peer.open(make_machine(folder, name, cell.cloud))))
            await gather_members(cell.cloud, [name], timeout_s=20)
            await cell.cloud.change_members(cell.chain, admit=name)
        guests = Guests(cell, stack, *made)
        async with guests.at_work():
            for one in (*guests.others, guests.going):
                await until(lambda: len(one.chain_state(cell.chain).members) == 6)  # noqa: B023
        yield guests


async def put_out(guests: Guests, how: str) -> None:
    """Have the going one excluded, or revoked, and wait until all know of it."""
    cell, going = guests.cell, guests.going
    if how == "excluded":
        await cell.cloud.change_members(cell.chain, exclude=going.id)
    else:
        await cell.cloud.trusting.change(RevokePeer(going.id), reason="stolen")
    async with guests.at_work():
        for one in guests.others:
            await until(lambda: going.id not in one.chain_state(cell.chain).members)  # noqa: B023


@pytest.mark.parametrize("how", ["excluded", "revoked"])
async def test_who_is_out_is_dialled_no_more_while_a_member_that_is_away_is(tmp_path: Path, how: str) -> None:
    async with with_guests(tmp_path) as guests, AsyncExitStack() as stack:
        places = {one.name: split_address(one.addresses[0]) for one in (guests.staying, guests.going)}
        await put_out(guests, how)
        for one in guests.others:
            assert "m9" not in one.status().wanted
        await guests.end()
        calls = dict.fromkeys(places, 0)

        def count(name: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
            def call(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                calls[name] += 1
                writer.close()

            return call

        for name, place in places.items():
            server = await asyncio.start_server(count(name), place.host, place.port)
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
        await until(lambda: calls["m8"] >= 8)
        assert calls["m9"] == 0


async def test_who_is_out_says_that_it_has_left_and_misses_nobody(tmp_path: Path) -> None:
    async with with_guests(tmp_path) as guests:
        going = guests.going
        await put_out(guests, "excluded")
        await until(lambda: going.status().chains[0].left)
        status = going.status()
        assert status.wanted == ["cloud"], "whom its settings name"
        assert (status.problems, status.chains[0].missing) == ([], [])
        assert not any(chain.left for one in guests.others for chain in one.status().chains)
        assert {"m8", "cloud", "m0"} <= {link.name for link in status.links}, (
            "links that stand are left alone"
        )


async def test_what_is_being_fetched_comes_whole_though_its_reader_is_excluded(tmp_path: Path) -> None:
    async with with_guests(tmp_path) as guests:
        holder, reader = guests.cell.machines[1], guests.going
        data = os.urandom(6_000_000)
        await holder.publish(KEY, data)
        await until(lambda: reader.chain_state(guests.cell.chain).offers(KEY, 0))
        await reader.budgets.change(BudgetSettings(mbit_s=2))
        fetching = asyncio.create_task(reader.fetch(KEY))
        await until(lambda: any(one.done_bytes for one in reader.status().transfers))
        await put_out(guests, "excluded")
        await until(lambda: reader.status().chains[0].left)
        assert reader.node.partners.needs(holder.id), "it has confirmed a transfer"
        await reader.budgets.change(None)
        assert (await fetching).read() == data


async def test_who_was_to_be_admitted_at_an_address_and_is_not_there_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepool.peer.members.REACH_S", 0.5)
    async with open_cell(tmp_path, 1) as cell:
        nobody = Signer(bytes(32)).peer
        with pytest.raises(Unavailable, match="was not reached"):
            await cell.cloud.change_members(cell.chain, admit=nobody, address="/ip4/127.0.0.1/tcp/1")
        assert not cell.cloud.node.partners.needs(nobody)

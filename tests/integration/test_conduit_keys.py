"""Keys change where peers are reached through a conduit or a relay: those behind it, and its own [S3.6]."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from msgspec.structs import replace
from peer_cell import formed, make_coordinator, make_machine
from test_key_rotation import PATIENCE_S, Program, certifies, some_came, until
from tls_peers import free_port

from edgepool import DataKey, Peer
from edgepool.config import (
    BudgetSettings,
    ConduitSettings,
    KnownPeer,
    Libp2pSettings,
    Limits,
    PeerSettings,
    load_peer_settings,
)
from edgepool.model.ids import format_address, with_peer
from edgepool.model.pool import Genesis

PATIENT = Limits(handshake_timeout_ms=60_000, transfer_stall_ms=60_000)
needs_libp2p = pytest.mark.skipif(find_spec("libp2p") is None, reason="the extra libp2p is not installed")
roads = pytest.mark.parametrize(
    "relay", [pytest.param(False, id="conduit"), pytest.param(True, id="relay", marks=needs_libp2p)]
)
KEY = DataKey("PTVA10212-01", "model")


class Inner:
    """A coordinator that is registrar and conduit, and machines that accept nothing, in one pool."""

    def __init__(self, cloud: Program, machines: list[Program], pool: Genesis) -> None:
        self.cloud = cloud
        self.machines = machines
        self.pool = pool

    @property
    def everybody(self) -> list[Peer]:
        return [program.peer for program in (self.cloud, *self.machines)]


def serves(settings: PeerSettings, relay: bool) -> PeerSettings:
    """Make a peer a conduit, or a libp2p relay, with ports that stay when it is opened again."""
    if not relay:
        return replace(settings, listen=port(), conduit=ConduitSettings(serve=True))
    return on_both_roads(settings, Libp2pSettings(listen=port(), relay=True))


def on_both_roads(settings: PeerSettings, libp2p: Libp2pSettings) -> PeerSettings:
    return replace(settings, listen=port(), transport="both", libp2p=libp2p, limits=PATIENT)


def port() -> str:
    return format_address("127.0.0.1", free_port())


def over_libp2p(peer: Peer) -> str:
    return with_peer(next(one for one in peer.addresses if one.endswith("/noise")), peer.id)


def reached_through(conduit: Peer, cloud: Peer, settings: PeerSettings, relay: bool) -> PeerSettings:
    """Let a peer accept nothing, know the coordinator, and be reached through a conduit or relay."""
    if not relay:
        return replace(settings, listen="", conduits=(with_peer(conduit.addresses[0], conduit.id),))
    return replace(
        settings,
        listen="",
        transport="libp2p",
        libp2p=Libp2pSettings(listen="", relays=(over_libp2p(conduit),)),
        known_peers=(KnownPeer("cloud", over_libp2p(cloud)),),
        limits=PATIENT,
    )


@asynccontextmanager
async def inner_cell(folder: Path, machines: int, relay: bool = False) -> AsyncIterator[Inner]:
    async with AsyncExitStack() as stack:
        settings = certifies(load_peer_settings(make_coordinator(folder)))
        cloud = Program(serves(settings, relay), stack)
        await cloud.open()
        made = []
        for number in range(machines):
            settings = load_peer_settings(make_machine(folder, f"m{number}", cloud.peer))
            made.append(Program(reached_through(cloud.peer, cloud.peer, settings, relay), stack))
            await made[-1].open()
        peers = [cloud.peer, *(program.peer for program in made)]
        pool = await formed(cloud.peer, peers, PATIENCE_S)
        yield Inner(cloud, made, pool)


def ways(peer: Peer) -> dict[str, str]:
    return {link.name: link.conduit for link in peer.status().links}


@roads
async def test_who_is_behind_a_conduit_changes_its_key(tmp_path: Path, relay: bool) -> None:
    async with inner_cell(tmp_path, 3, relay) as cell:
        program, reader = cell.machines[0], cell.machines[1].peer
        data = os.urandom(8_000_000)
        await program.peer.publish(KEY, data)
        await reader.budgets.change(BudgetSettings(mbit_s=8))
        fetching = asyncio.create_task(reader.fetch(KEY))
        await some_came(reader)
        old = program.peer.id
        new = await program.rotate()
        assert new.id != old
        for peer in cell.everybody:
            await until(lambda: old in peer.trusting.revoked)  # noqa: B023
        await until(lambda: ways(new) == {"cloud": "", "m1": "cloud", "m2": "cloud"})
        await reader.budgets.change(None)
        fetched = await fetching
        assert fetched.read() == data
        assert fetched.shares.keys() == {old, new.id}
        again = os.urandom(1_000_000)
        await new.publish(DataKey("PTVA10212-02", "model"), again)
        assert (await reader.fetch(DataKey("PTVA10212-02", "model"))).read() == again
        await reader.publish(DataKey("PTVA10212-03", "model"), again)
        assert (await new.fetch(DataKey("PTVA10212-03", "model"))).read() == again


def keeps(peer: Peer, conduit: Peer) -> bool:
    """Say whether a peer keeps a place at a conduit, and tells others so, under the key that this has now."""
    places = [place for place in peer.status().conduits if place.peer == conduit.id]
    behind = f"/p2p/{conduit.id}/p2p-circuit/p2p/{peer.id}"
    return bool(places) and places[0].kept and all(one.endswith(behind) for one in peer.addresses)


@roads
async def test_a_conduit_changes_its_key_and_all_behind_it_are_reached_again(
    tmp_path: Path, relay: bool
) -> None:
    """The conduit stands by itself: those behind it have no link to it, and no chain in common with it."""
    async with AsyncExitStack() as stack:
        settings = certifies(load_peer_settings(make_coordinator(tmp_path)))
        if relay:
            settings = on_both_roads(settings, Libp2pSettings(listen=port()))
        cloud = await Program(settings, stack).open()
        settings = load_peer_settings(make_machine(tmp_path, "dmz", cloud, role="witness"))
        dmz = Program(serves(settings, relay), stack)
        await dmz.open()
        machines = []
        for name in ("m0", "m1", "m2"):
            settings = load_peer_settings(make_machine(tmp_path, name, cloud))
            machines.append(Program(reached_through(dmz.peer, cloud, settings, relay), stack))
            await machines[-1].open()
        m0, m1, m2 = machines
        await formed(cloud, [cloud, m0.peer, m1.peer, m2.peer], PATIENCE_S)
        await until(lambda: ways(m0.peer) == {"cloud": "", "m1": "dmz", "m2": "dmz"})
        data = os.urandom(8_000_000)
        await m0.peer.publish(KEY, data)
        await m1.peer.budgets.change(BudgetSettings(mbit_s=8))
        fetching = asyncio.create_task(m1.peer.fetch(KEY))
        await some_came(m1.peer)
        await m2.close()

        old, new = dmz.peer.id, await dmz.rotate()
        assert new.id != old
        await until(lambda: keeps(m0.peer, new) and keeps(m1.peer, new))
        await until(lambda: ways(m0.peer) == {"cloud": "", "m1": "dmz"})
        await m1.peer.budgets.change(None)
        assert (await fetching).read() == data
        assert list(m1.peer.status().totals.received_by_conduit) == [new.id]

        # Who was off knows the former key alone; what was offered meanwhile names it, too.
        await m2.open()
        await until(lambda: keeps(m2.peer, new))
        await until(lambda: ways(m2.peer) == {"cloud": "", "m0": "dmz", "m1": "dmz"})
        shown: set[str] = set()

        def look(_: object) -> None:
            shown.update(row.conduit for row in m2.peer.status().transfers)

        assert (await m2.peer.fetch(KEY, progress=look)).read() == data
        assert shown == {"dmz"}


@roads
async def test_a_coordinator_that_is_the_conduit_changes_its_key(tmp_path: Path, relay: bool) -> None:
    """All that it is to those behind it goes on: conduit, coordinator, registrar, member of their pool."""
    async with inner_cell(tmp_path, 3, relay) as cell:
        m0, m1, m2 = cell.machines
        holder, reader = m0.peer, m1.peer
        data = os.urandom(8_000_000)
        await holder.publish(KEY, data)
        before = await reader.publish(DataKey("PTVA10212-02", "model"), b"before" * 1000)
        assert (await holder.fetch(before.key)).read() == b"before" * 1000
        await reader.budgets.change(BudgetSettings(mbit_s=8))
        await cell.cloud.peer.rotation.begin()
        await asyncio.wait_for(cell.cloud.ready.wait(), PATIENCE_S)
        fetching = asyncio.create_task(reader.fetch(KEY))
        await some_came(reader)
        await m2.close()

        old, new = cell.cloud.peer.id, await cell.cloud.change()
        assert new.id != old
        await until(lambda: keeps(holder, new) and keeps(reader, new))
        await until(lambda: ways(holder) == {"cloud": "", "m1": "cloud"})
        await reader.budgets.change(None)
        assert (await fetching).read() == data
        assert list(reader.status().totals.received_by_conduit) == [new.id]
        assert list(holder.status().totals.sent_by_conduit) == [new.id]
        for peer in (holder, reader, new):
            await until(lambda: old in peer.trusting.revoked)  # noqa: B023

        # Who was off has the former key in its settings, its pool and all addresses.
        await m2.open()
        await until(lambda: keeps(m2.peer, new))
        await until(lambda: ways(m2.peer) == {"cloud": "", "m0": "cloud", "m1": "cloud"})
        shown: set[str] = set()

        def look(_: object) -> None:
            shown.update(row.conduit for peer in cell.everybody for row in peer.status().transfers)

        assert (await m2.peer.fetch(KEY, progress=look)).read() == data
        assert shown == {"cloud"}
        after = await m2.peer.publish(DataKey("PTVA10212-03", "model"), b"after" * 1000)
        assert (await reader.fetch(after.key)).read() == b"after" * 1000
        # One behind it changes its key, too, which the coordinator certifies under its new one.
        later = await m0.rotate()
        await until(lambda: keeps(later, new) and ways(later) == {"cloud": "", "m1": "cloud", "m2": "cloud"})
        assert (await later.fetch(after.key)).read() == b"after" * 1000

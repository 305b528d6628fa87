"""A small cell of real peers in one program: TLS on loopback, folders on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from edgepool import Peer
from edgepool.config import KnownPeer
from edgepool.gateway.pools import gather_members, pool_stands
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis

NETWORK = "cell"


def make_coordinator(folder: Path) -> Path:
    make_peer_folder(folder / "cloud", PeerPlan("cloud", NETWORK, "coordinator"), folder / "authority")
    return folder / "cloud"


def make_machine(folder: Path, name: str, coordinator: Peer) -> Path:
    known = KnownPeer("cloud", f"{coordinator.addresses[0]}/p2p/{coordinator.id}")
    plan = PeerPlan(
        name, NETWORK, machine_type="Turning", coordinators=(coordinator.id,), known_peers=(known,)
    )
    make_peer_folder(folder / name, plan, folder / "authority")
    return folder / name


class Cell:
    """A coordinator and machines, all in one fixed pool."""

    def __init__(self, folder: Path, cloud: Peer, machines: list[Peer], pool: Genesis) -> None:
        self.folder = folder
        self.cloud = cloud
        self.machines = machines
        self.pool = pool

    @property
    def chain(self) -> ChainId:
        return self.pool.chain


@asynccontextmanager
async def open_cell(folder: Path, machines: int) -> AsyncIterator[Cell]:
    """Open a cell of new peers and form its pool."""
    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(Peer.open(make_coordinator(folder)))
        peers = [
            await stack.enter_async_context(Peer.open(make_machine(folder, f"m{n}", cloud)))
            for n in range(machines)
        ]
        everybody = [cloud, *peers]
        members = await gather_members(cloud, [peer.name for peer in everybody], timeout_s=10)
        pool = await cloud.form_pool("cell", "fixed", members)
        await pool_stands(pool, everybody, timeout_s=10)
        yield Cell(folder, cloud, peers, pool)

"""A small cell of real peers in one program: TLS on loopback, folders on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from msgspec.structs import replace

from edgepool import Peer, Refused, Unavailable
from edgepool.config import Approve, FixedPool, KnownPeer, PeerSettings, Role, load_peer_settings
from edgepool.gateway.pools import gather_members, pool_stands
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis

NETWORK = "cell"
PATIENCE_S = 60.0


def make_coordinator(folder: Path, fixed_pools: tuple[FixedPool, ...] = ()) -> Path:
    plan = PeerPlan("cloud", NETWORK, "coordinator", fixed_pools=fixed_pools)
    make_peer_folder(folder / "cloud", plan, folder / "authority")
    return folder / "cloud"


def make_machine(
    folder: Path, name: str, coordinator: Peer, role: Role = "machine", known: bool = True
) -> Path:
    """Make a machine's folder, or a witness's, which knows the coordinator's address if it is `known`."""
    cloud = KnownPeer("cloud", f"{coordinator.addresses[0]}/p2p/{coordinator.id}")
    plan = PeerPlan(
        name,
        NETWORK,
        role,
        "Turning" if role == "machine" else "",
        coordinators=(coordinator.id,),
        known_peers=(cloud,) if known else (),
    )
    make_peer_folder(folder / name, plan, folder / "authority")
    return folder / name


class Cell:
    """A coordinator and machines, all in one fixed pool."""

    def __init__(
        self, folder: Path, cloud: Peer, machines: list[Peer], pool: Genesis, stack: AsyncExitStack
    ) -> None:
        self.folder = folder
        self.cloud = cloud
        self.machines = machines
        self.pool = pool
        self._stack = stack

    @property
    def chain(self) -> ChainId:
        return self.pool.chain

    async def join(self, name: str, role: Role = "machine", known: bool = True) -> Peer:
        """Open one more peer, which is in no pool; a `known` one is linked to the coordinator then."""
        folder = make_machine(self.folder, name, self.cloud, role, known)
        peer = await self._stack.enter_async_context(Peer.open(folder))
        if known:
            await gather_members(self.cloud, [name], timeout_s=PATIENCE_S)
        return peer


async def formed(cloud: Peer, everybody: Sequence[Peer], timeout_s: float = PATIENCE_S) -> Genesis:
    """Form a fixed pool of `everybody`, as a coordinator does: again if not all could be reached."""
    members = await gather_members(cloud, [peer.name for peer in everybody], timeout_s)
    async with asyncio.timeout(timeout_s):
        while True:
            with suppress(Refused, Unavailable):
                pool = await cloud.form_pool("cell", "fixed", members)
                break
            await asyncio.sleep(0.5)
    await pool_stands(pool, everybody, timeout_s)
    return pool


@asynccontextmanager
async def open_cell(
    folder: Path,
    machines: int,
    approve: Approve = "coordinator",
    change: Callable[[PeerSettings], PeerSettings] = lambda settings: settings,
) -> AsyncIterator[Cell]:
    """Open a cell of new peers and form its pool; `approve` is their setting, `change` makes others."""

    def opened(place: Path) -> Peer:
        settings = load_peer_settings(place)
        return Peer(change(replace(settings, consensus=replace(settings.consensus, approve=approve))))

    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(opened(make_coordinator(folder)))
        peers = [
            await stack.enter_async_context(opened(make_machine(folder, f"m{n}", cloud)))
            for n in range(machines)
        ]
        pool = await formed(cloud, [cloud, *peers])
        yield Cell(folder, cloud, peers, pool, stack)

"""Members that know nothing but their coordinator's address find each other, wherever they have moved."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest
from msgspec.structs import replace
from peer_cell import formed, make_coordinator, make_machine
from tls_peers import until

from edgepool import Peer
from edgepool.config import Limits, Road, load_peer_settings

PATIENCE_S = 60.0
PATIENT = Limits(handshake_timeout_ms=60_000, transfer_stall_ms=60_000)


def linked(a: Peer, b: Peer) -> bool:
    return any(identity.peer == b.id for identity in a.connected())


@pytest.mark.parametrize(
    "roads",
    [("tls", "tls", "tls"), ("libp2p", "libp2p", "libp2p"), ("both", "tls", "both")],
    ids=["tls", "libp2p", "mixed"],
)
async def test_members_that_have_all_moved_find_each_other_at_the_coordinator(
    tmp_path: Path, roads: tuple[Road, Road, Road]
) -> None:
    if set(roads) != {"tls"} and find_spec("libp2p") is None:
        pytest.skip("the extra libp2p is not installed")

    def opened(folder: Path, road: Road) -> Peer:
        # Ports are free ones, so in its next life a peer is somewhere else.
        return Peer(replace(load_peer_settings(folder), transport=road, limits=PATIENT))

    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(opened(make_coordinator(tmp_path), roads[0]))
        folders = [make_machine(tmp_path, name, cloud) for name in ("m0", "m1")]
        async with AsyncExitStack() as first_life:
            before = [
                await first_life.enter_async_context(opened(folder, road))
                for folder, road in zip(folders, roads[1:], strict=True)
            ]
            await formed(cloud, [cloud, *before])
        machines = [
            await stack.enter_async_context(opened(folder, road))
            for folder, road in zip(folders, roads[1:], strict=True)
        ]
        await until(lambda: linked(machines[0], machines[1]) and linked(machines[1], machines[0]), PATIENCE_S)
        # Data goes there, too.
        data = bytes(range(256)) * 3_000
        await machines[0].publish("PTVA10212-01/model", data)
        fetched = await machines[1].fetch("PTVA10212-01/model")
        assert await asyncio.to_thread(fetched.path.read_bytes) == data

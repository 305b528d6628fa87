"""js-libp2p in a network of ours: examples/js lists pools, follows blocks, finds data and checks its proof.

`make interop` installs what it needs and runs this; without that it is skipped.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from peer_cell import make_coordinator, make_machine

from edgepool import Peer
from edgepool.config import Libp2pSettings, load_peer_settings
from edgepool.gateway.pools import gather_members, pool_stands
from edgepool.gateway.setup import PeerPlan, make_peer_folder

PROGRAM = Path(__file__).parents[2] / "examples/js/follow.mjs"
PATIENCE_S = 120.0

if shutil.which("node") is None:
    pytest.skip("there is no Node on this machine", allow_module_level=True)
if find_spec("libp2p") is None or not (PROGRAM.parent / "node_modules").exists():
    pytest.skip("the packages of examples/js are not installed: run 'make interop'", allow_module_level=True)


@asynccontextmanager
async def small_network(folder: Path) -> AsyncIterator[tuple[Peer, Peer]]:
    """A coordinator on both roads that publishes events, and two machines on TLS: one pool."""
    async with AsyncExitStack() as stack:
        settings = replace(
            load_peer_settings(make_coordinator(folder)),
            transport="both",
            libp2p=Libp2pSettings(events=True),
        )
        cloud = await stack.enter_async_context(Peer(settings))
        machines = [
            await stack.enter_async_context(Peer.open(make_machine(folder, name, cloud)))
            for name in ("m0", "m1")
        ]
        everybody = [cloud, *machines]
        members = await gather_members(cloud, [peer.name for peer in everybody], timeout_s=60)
        pool = await cloud.form_pool("cell", "fixed", members)
        await pool_stands(pool, everybody, timeout_s=60)
        yield cloud, machines[0]


class Follower:
    """The JavaScript program, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, folder: Path, at: Peer, *more: str) -> Follower:
        address = next(address for address in at.addresses if address.endswith("/noise"))
        process = await asyncio.create_subprocess_exec(
            *("node", PROGRAM, folder, f"{address}/p2p/{at.id}", at.id, *more),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return cls(process)

    async def until(self, event: str) -> list[dict[str, Any]]:
        """Return what it says up to and with `event`; fail with its errors if it ends before."""
        assert self._process.stdout is not None
        said = []
        async with asyncio.timeout(PATIENCE_S):
            while line := await self._process.stdout.readline():
                said.append(json.loads(line))
                if said[-1]["event"] == event:
                    return said
        raise AssertionError((await self.errors())[-2000:] + str(said))

    async def errors(self) -> str:
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            return (await self._process.stderr.read()).decode()

    async def end(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


async def test_a_member_in_javascript_lists_finds_checks_and_follows(tmp_path: Path) -> None:
    async with small_network(tmp_path) as (cloud, machine):
        published = await machine.publish("PTVA10212-01/model", b"a model")
        folder = make_machine(tmp_path, "js", cloud, role="client")
        follower = await Follower.start(folder, cloud, "PTVA10212-01/model", "1")
        try:
            said = {line["event"]: line for line in await follower.until("ready")}
            assert said["ping"]["ms"] >= 0
            assert said["pool"]["name"] == "cell"
            assert said["pool"]["chain"] == cloud.chains[0]
            assert said["pool"]["members"] == ["cloud", "m0", "m1"]
            assert said["offer"]["holder"] == "m0"
            assert said["offer"]["root"] == published.root.hex()
            told = asyncio.create_task(follower.until("done"))
            for number in range(60):
                # Gossip takes a heartbeat to know of a subscriber; blocks go on coming meanwhile.
                await machine.publish(f"PTVA10212-01/kind{number}", b"%d" % number)
                await asyncio.wait({told}, timeout=0.5)
                if told.done():
                    break
            block = next(line for line in await told if line["event"] == "block")
            found = cloud.block(cloud.chains[0], block["height"])
            assert found is not None
            assert found.block.header.id.hex() == block["id"]
            assert block["signers"] >= 3
            assert await follower.end() == 0
        finally:
            follower.kill()


async def test_a_stranger_in_javascript_learns_nothing(tmp_path: Path) -> None:
    async with small_network(tmp_path) as (cloud, _):
        plan = PeerPlan("js", cloud.settings.network, "client")
        make_peer_folder(tmp_path / "elsewhere/js", plan, tmp_path / "elsewhere/authority")
        follower = await Follower.start(tmp_path / "elsewhere/js", cloud)
        try:
            assert await follower.end() != 0
            assert "its certificate is not of our authority" in await follower.errors()
        finally:
            follower.kill()

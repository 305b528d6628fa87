"""js-libp2p in a network of ours: examples/js lists pools, follows blocks, finds data and checks its proof.

`make interop` and `make test` install what it needs; where that cannot be had it is skipped.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from peer_cell import formed, make_coordinator, make_machine

from edgepool import Peer
from edgepool.config import Libp2pSettings, load_peer_settings
from edgepool.gateway.pools import gather_members
from edgepool.gateway.roots import add_trusted, read_root_file
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.model.trust import AdmitRoot, RetireRoot, RevokePeer

PROGRAM = Path(__file__).parents[2] / "examples/js/follow.mjs"
PATIENCE_S = 120.0


def has_node() -> bool:
    """Say whether a Node is here that js-libp2p runs on."""
    if shutil.which("node") is None:
        return False
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    return int((re.findall(r"^v(\d+)", version) or ["0"])[0]) >= 20


if not has_node():
    pytest.skip("there is no Node 20 or later on this machine", allow_module_level=True)
if find_spec("libp2p") is None or not (PROGRAM.parent / "node_modules/libp2p").exists():
    pytest.skip("the packages of examples/js are not installed: run 'make interop'", allow_module_level=True)


@asynccontextmanager
async def small_network(folder: Path) -> AsyncIterator[tuple[Peer, Peer, Peer]]:
    """One pool: a coordinator on both roads that publishes events, a machine on TLS and one on both."""
    async with AsyncExitStack() as stack:
        settings = replace(
            load_peer_settings(make_coordinator(folder)),
            transport="both",
            libp2p=Libp2pSettings(events=True),
        )
        cloud = await stack.enter_async_context(Peer(settings))
        machines = [
            await stack.enter_async_context(
                Peer(replace(load_peer_settings(make_machine(folder, name, cloud)), transport=transport))
            )
            for name, transport in (("m0", "tls"), ("m1", "both"))
        ]
        await formed(cloud, [cloud, *machines])
        yield cloud, *machines


def libp2p_address(peer: Peer) -> str:
    address = next(address for address in peer.addresses if address.endswith("/noise"))
    return f"{address}/p2p/{peer.id}"


class Follower:
    """The JavaScript program, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, folder: Path, at: Peer, *more: str, also: Peer | None = None) -> Follower:
        places = ",".join(libp2p_address(peer) for peer in (at, also) if peer is not None)
        process = await asyncio.create_subprocess_exec(
            *("node", PROGRAM, folder, places, at.id, *more),
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
    async with small_network(tmp_path) as (cloud, machine, _):
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
    async with small_network(tmp_path) as (cloud, _, _):
        plan = PeerPlan("js", cloud.settings.network, "client")
        make_peer_folder(tmp_path / "elsewhere/js", plan, tmp_path / "elsewhere/authority")
        follower = await Follower.start(tmp_path / "elsewhere/js", cloud)
        try:
            assert await follower.end() != 0
            assert "its certificate is not of an organisation that is trusted" in await follower.errors()
        finally:
            follower.kill()


async def test_a_follower_goes_with_the_roster_and_has_nothing_to_do_with_who_is_revoked(
    tmp_path: Path,
) -> None:
    async with small_network(tmp_path) as (cloud, machine, thief), AsyncExitStack() as stack:
        chain = cloud.chains[0]
        folder = make_machine(tmp_path, "js", cloud, role="client")
        follower = await Follower.start(folder, cloud, "", "1000", also=thief)
        try:
            said = await follower.until("ready")
            assert [line["event"] for line in said].count("connected") == 1

            async def told(event: str, begun: int) -> dict[str, Any]:
                """Return what is told of an event, while blocks go on coming."""
                waiting = asyncio.create_task(follower.until(event))
                for number in range(90):
                    await machine.publish(f"PTVA10212-01/kind{begun + number}", b"%d" % number)
                    await asyncio.wait({waiting}, timeout=0.5)
                    if waiting.done():
                        break
                return (await waiting)[-1]

            await stack.enter_async_context(Peer.open(make_machine(tmp_path, "m2", cloud)))
            await gather_members(cloud, ["m2"], timeout_s=60)
            await cloud.change_members(chain, admit="m2")
            roster = await told("roster", 0)
            assert roster["members"] == ["cloud", "m0", "m1", "m2"]
            # Those of before may still be under way.
            while (await told("block", 100))["height"] < roster["from"]:
                pass
            await cloud.trusting.change(RevokePeer(thief.id), reason="stolen")
            assert (await told("revoked", 200))["peer"] == thief.id
        finally:
            follower.kill()
        # One that comes later learns both from the genesis on.
        late = await Follower.start(folder, cloud, "PTVA10212-01/kind0", "0", also=thief)
        try:
            said = await late.until("done")
            assert next(line["members"] for line in said if line["event"] == "roster") == roster["members"]
            (refused,) = [line for line in said if line["event"] == "refused"]
            assert refused["why"] == f"{thief.id} has been revoked"
            assert [line["holder"] for line in said if line["event"] == "offer"] == ["m0"]
        finally:
            late.kill()


async def test_members_of_an_organisation_are_believed_from_when_it_is_admitted(tmp_path: Path) -> None:
    async with small_network(tmp_path) as (cloud, machine, _), AsyncExitStack() as stack:
        folder = make_machine(tmp_path, "js", cloud, role="client")
        place, authority = tmp_path / "elsewhere/guest", tmp_path / "elsewhere/authority"
        make_peer_folder(place, PeerPlan("guest", cloud.settings.network), authority)
        add_trusted(place, tmp_path / "authority/authority.pem")
        guest = await stack.enter_async_context(Peer(replace(load_peer_settings(place), transport="both")))
        root = read_root_file(authority / "authority.pem")

        async def met() -> dict[str, Any]:
            follower = await Follower.start(folder, cloud, "", "0", also=guest)
            try:
                said = await follower.until("done")
                return next(line for line in said if line["event"] in ("refused", "connected"))
            finally:
                follower.kill()

        refused = await met()
        assert refused["why"] == "its certificate is not of an organisation that is trusted"
        for step in (AdmitRoot(root.organisation, root.der), RetireRoot(root.fingerprint, 1)):
            await cloud.trusting.change(step)
            async with asyncio.timeout(PATIENCE_S):
                while not all(one.decided for one in cloud.trusting.standing(step)):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            # What is proved of trust is as of the block before the last one.
            await machine.publish(f"PTVA10212-01/{type(step).__name__}", b"one block more")
            told = await met()
            assert told["event"] == ("connected" if isinstance(step, AdmitRoot) else "refused")

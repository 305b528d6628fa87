"""Members come and go, with real peers: through the API, by commands, and by witnesses that step in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from peer_cell import Cell, make_coordinator, make_machine, open_cell

from edgepool import DataKey, LocalError, Peer, Refused, Unavailable
from edgepool.cli.run import _describe
from edgepool.config import FixedPool
from edgepool.gateway.app import ApiServer
from edgepool.gateway.client import ApiClient
from edgepool.gateway.pools import form_fixed_pools, gather_members, pool_stands
from edgepool.gateway.witnesses import keep_witnesses
from edgepool.model.ids import ChainId
from edgepool.model.record import DataDemand
from edgepool.peer.values import PoolMembers, RosterChanged
from edgepool.peer.verify import verify_chain
from edgepool.workshop.topology import load_topology, run

KEY = DataKey("PTVA10212-01", "model")


def demand(n: int) -> DataDemand:
    return DataDemand(KEY, n, "hole", "")


async def until(reached: Callable[[], object], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110 - what is waited for is in other peers' hands
            await asyncio.sleep(0.02)


def names(members: PoolMembers) -> list[str]:
    return [member.name for member in members.members]


def voters(peer: Peer, chain: ChainId, height: int) -> set[str]:
    """The names of those whose votes make a block stand."""
    certified = peer.block(chain, height)
    assert certified is not None
    roster = [member.name for member in peer.chain_state(chain).roster]
    return {roster[index] for index, _ in certified.certificate.signatures}


@asynccontextmanager
async def busy(peer: Peer, chain: ChainId) -> AsyncIterator[list[int]]:
    """Put records on a chain one after the other; give the heights at which they stand."""
    heights: list[int] = []

    async def write() -> None:
        for n in range(1_000_000):
            heights.append((await peer.submit(demand(n), chain=chain)).height)
            await asyncio.sleep(0.02)

    writer = asyncio.create_task(write())
    try:
        yield heights
        assert not writer.done() or writer.result()
    finally:
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer


async def member(*arguments: object) -> tuple[int, str, str]:
    """Run `edgepool member ...` in a process of its own; return code, output and complaints."""
    done = await asyncio.to_thread(run_command, "member", *arguments)
    return done.returncode, done.stdout, done.stderr


@asynccontextmanager
async def served(*peers: Peer) -> AsyncIterator[None]:
    """Serve the local APIs of peers."""
    async with AsyncExitStack() as stack:
        for peer in peers:
            server = ApiServer(peer, peer.settings.folder)
            await server.start()
            stack.push_async_callback(server.close)
        yield


# --- coming and going -----------------------------------------------------------------------------


async def test_a_machine_is_admitted_by_a_command_while_records_flow_and_votes(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell, served(cell.cloud):
        newcomer = await cell.join("m9")
        seen: list[RosterChanged] = []

        async def watch() -> None:
            async for event in cell.machines[1].watch():
                if isinstance(event, RosterChanged):
                    seen.append(event)

        watching = asyncio.create_task(watch())
        async with busy(cell.machines[0], cell.chain) as heights:
            await until(lambda: len(heights) > 5)
            code, output, complaints = await member(
                "admit", cell.cloud.settings.folder, "cell", "m9", "--reason", "one more lathe", "--json"
            )
            assert code == 0, complaints
            done: dict[str, Any] = json.loads(output)
            assert done["decided"]
            assert done["incoming"] == newcomer.id
            since = done["in_force_height"]
            await until(lambda: newcomer.chain_state(cell.chain).height >= since)
            await until(
                lambda: any(
                    "m9" in voters(newcomer, cell.chain, height)
                    for height in range(since, newcomer.chain_state(cell.chain).height + 1)
                )
            )
            await newcomer.submit(demand(999), chain=cell.chain)
            view = newcomer.members(cell.chain)
            assert names(view) == ["cloud", "m0", "m1", "m2", "m9"]
            assert (view.members[-1].since_height, view.quorum, view.open) == (since, 4, [])
        await until(lambda: seen)
        watching.cancel()
        assert [(event.chain, event.height) for event in seen] == [(cell.chain, since)]
        assert ([one.name for one in seen[0].joined], seen[0].left) == (["m9"], ())
        told = _describe(seen[0], cell.cloud, blocks=False)
        assert told is not None
        assert told[:2] == ("members", f"pool cell: m9 votes, from block {since} on")
        code, output, _ = await member("list", cell.cloud.settings.folder)
        assert code == 0
        assert "m9" in output
        assert f"block {since}" in output
        verdict = verify_chain(cell.folder / "m9", cell.chain)
        assert verdict.verified, verdict.problem


async def test_two_changes_at_once_are_both_made_one_after_the_other(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell:
        for name in ("m8", "m9"):
            await cell.join(name)
        refs = await asyncio.gather(
            cell.cloud.change_members(cell.chain, admit="m8"),
            cell.cloud.change_members(cell.chain, admit="m9"),
            cell.machines[0].change_members(cell.chain, exclude="m0", reason="goes home"),
        )
        assert len(set(refs)) == 3
        async with busy(cell.machines[1], cell.chain):
            wanted = {"cloud", "m1", "m2", "m8", "m9"}
            await until(lambda: set(names(cell.cloud.members(cell.chain))) == wanted)


async def test_a_machine_with_a_new_key_takes_its_old_place(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell, served(cell.cloud):
        old = cell.machines[0]
        new = await cell.join("m0-new")
        folder = cell.cloud.settings.folder
        code, output, complaint = await member("admit", folder, "cell", "m0-new", "--replaces", old.id)
        assert (code, "m0-new replaces m0" in output) == (0, True), complaint
        async with busy(cell.machines[1], cell.chain):
            await until(lambda: new.id in cell.cloud.chain_state(cell.chain).members)
        assert names(cell.cloud.members(cell.chain)) == ["cloud", "m0-new", "m1", "m2"]


async def test_a_member_is_excluded_and_the_others_go_on(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 4) as cell, served(cell.cloud):
        sold, first = cell.machines[3], cell.machines[0]
        async with ApiClient.of(cell.cloud.settings.folder) as client:
            done = await client.change_members("cell", exclude="m3", reason="sold")
            assert (done["outgoing"], done["incoming"], done["number"]) == (sold.id, "", 1)
            await until(lambda: not cell.cloud.members(cell.chain).open)
            for n in range(3):
                await first.submit(demand(n), chain=cell.chain)
            view = await client.members("cell")
            assert names(view) == ["cloud", "m0", "m1", "m2"]
            (former,) = view.former
            assert (former.name, former.peer, former.until_height > 0) == ("m3", sold.id, True)
            block = await client.block("cell", view.height)
            assert {vote["name"] for vote in block["votes"]} <= {"cloud", "m0", "m1", "m2"}
        await until(lambda: sold.id not in sold.chain_state(cell.chain).members)
        with pytest.raises(Refused, match="is no member"):
            await sold.submit(demand(9), chain=cell.chain)


async def test_manual_approval_leaves_it_to_people(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3, approve="manual") as cell, served(cell.cloud, *cell.machines):
        newcomer = await cell.join("m9")
        events = cell.machines[0].watch()
        code, _, complaint = await member("admit", cell.cloud.settings.folder, "cell", "m9", "--timeout", "4")
        assert code == 1
        assert "1 of 4 members has approved, 3 must" in complaint
        assert "stays open" in complaint
        async for event in events:
            told = _describe(event, cell.machines[0], blocks=False)
            if told is not None and told[0] == "proposal":
                assert "cloud proposes change 1: m9" in told[1]
                assert told[1].endswith(f"edgepool member approve {tmp_path / 'm0'} cell cloud")
                break
        code, output, _ = await member("approve", cell.machines[0].settings.folder, "cell")
        assert (code, "2 of 4 members have approved" in output) == (0, True)
        code, _, complaint = await member("approve", cell.machines[0].settings.folder, "cell")
        assert (code, "has approved all" in complaint) == (2, True)
        assert names(cell.cloud.members(cell.chain)) == ["cloud", "m0", "m1", "m2"]
        code, output, _ = await member("approve", cell.machines[1].settings.folder, "cell", "cloud", "--json")
        assert json.loads(output)["decided"]
        await until(lambda: newcomer.id in [m.peer for m in cell.cloud.chain_state(cell.chain).next_roster])
        with pytest.raises(Refused, match="is a member already"):
            await cell.cloud.change_members(cell.chain, admit="m9")


async def test_who_is_meant_must_be_clear(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell, served(cell.cloud):
        change = cell.cloud.change_members
        with pytest.raises(LocalError, match="nobody is named"):
            await change(cell.chain)
        with pytest.raises(
            LocalError, match=r"'m7' is no member of pool 'cell': its members are cloud, m0, m1"
        ):
            await change(cell.chain, exclude="m7")
        with pytest.raises(LocalError, match="no peer with the name 'm7' is linked"):
            await change(cell.chain, admit="m7")
        with pytest.raises(LocalError, match="there is nothing to approve"):
            await cell.machines[0].approve_change(cell.chain)
        stranger = await cell.join("m9", known=False)
        with pytest.raises(LocalError, match="give its address"):
            await change(cell.chain, admit=stranger.id)
        with pytest.raises(LocalError, match="not of"):
            await change(
                cell.chain, admit=stranger.id, address=f"{stranger.addresses[0]}/p2p/{cell.cloud.id}"
            )
        folder = cell.cloud.settings.folder
        code, _, complaint = await member("exclude", folder, "cell", "m7")
        assert (code, "is no member" in complaint) == (2, True)
        code, _, complaint = await member("exclude", folder, "shell", "m0")
        assert (code, "no chain 'shell'" in complaint) == (2, True)
        # A peer that is met for the first time, by its id and address.
        code, output, complaint = await member(
            "admit", folder, "cell", stranger.id, "--address", stranger.addresses[0]
        )
        assert (code, "m9 comes: decided, in force from block" in output) == (0, True), complaint


async def test_the_api_takes_no_more_than_it_should(tmp_path: Path) -> None:
    cloud = tmp_path / "cloud"
    async with open_cell(tmp_path, 1) as cell, served(cell.cloud), ApiClient.of(cloud) as client:
        with pytest.raises(LocalError, match="wrong at reason"):
            await client.change_members("cell", exclude="m0", reason="x" * 257)
        with pytest.raises(LocalError, match="wrong at admit"):
            await client.change_members("cell", admit="x" * 65)
        with pytest.raises(LocalError, match="no chain 'shell'"):
            await client.members("shell")


# --- witnesses ------------------------------------------------------------------------------------


@asynccontextmanager
async def plant(folder: Path, machines: int, witnesses: int) -> AsyncIterator[tuple[Peer, list[Peer]]]:
    """Open a coordinator with one fixed pool in its settings, its machines, and witnesses, all linked."""
    people = [f"m{n}" for n in range(machines)]
    pool = FixedPool(name="cell", members=tuple(people))
    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(Peer.open(make_coordinator(folder, (pool,))))
        peers = []
        for name in people:
            peers.append(await stack.enter_async_context(Peer.open(make_machine(folder, name, cloud))))
        for n in range(witnesses):
            place = make_machine(folder, f"w{n}", cloud, "witness")
            peers.append(await stack.enter_async_context(Peer.open(place)))
        await gather_members(cloud, [peer.name for peer in peers], timeout_s=60)
        yield cloud, peers


async def test_a_pool_of_three_and_a_witness_has_four_members_and_bears_the_loss_of_one(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    async with plant(tmp_path, 3, 1) as (cloud, peers):
        (pool,) = await form_fixed_pools(cloud, told.append)
        await pool_stands(pool, peers, timeout_s=60)
        assert [one.name for one in pool.invitation.members] == ["m0", "m1", "m2", "w0"]
        assert [one.name for one in pool.invitation.observers] == ["cloud"]
        assert told == ["pool 'cell' stands with 4 members, w0 among them"]
        await peers[2].__aexit__(None, None, None)
        ref = await peers[0].submit(demand(1), chain=pool.chain)
        assert voters(peers[0], pool.chain, ref.height) >= {"w0"}


async def test_a_pool_without_enough_witnesses_is_formed_all_the_same_and_says_so(tmp_path: Path) -> None:
    told: list[str] = []
    async with plant(tmp_path, 2, 1) as (cloud, peers):
        (pool,) = await form_fixed_pools(cloud, told.append)
        await pool_stands(pool, peers[:2], timeout_s=60)
        assert [one.name for one in pool.invitation.members] == ["m0", "m1"]
        (sentence,) = told
        assert "bears no liar" in sentence
        await peers[0].submit(demand(1), chain=pool.chain)


async def test_a_pool_that_has_become_too_small_gets_a_witness(tmp_path: Path) -> None:
    told: list[str] = []
    async with open_cell(tmp_path, 3) as cell:
        keeping = asyncio.create_task(keep_witnesses(cell.cloud, told.append))
        witness = await cell.join("w0", "witness")
        await cell.cloud.change_members(cell.chain, exclude="m2", reason="sold")
        async with busy(cell.machines[0], cell.chain):
            await until(lambda: witness.id in witness_chain(witness, cell))
            await until(lambda: names(cell.cloud.members(cell.chain)) == ["cloud", "m0", "m1", "w0"])
        assert told == ["pool 'cell' has 3 members and bears no liar: w0 is proposed as a witness"]
        assert witness.members(cell.chain).members[-1].machine_type == ""
        # It is not asked back once it was sent away itself.
        await cell.cloud.change_members(cell.chain, exclude="w0")
        await until(lambda: any("must be linked" in sentence for sentence in told))
        assert len(told) == 2
        keeping.cancel()


def witness_chain(witness: Peer, cell: Cell) -> tuple[str, ...]:
    """Who votes, as the witness knows it; nobody while it does not follow the chain."""
    return witness.chain_state(cell.chain).members if cell.chain in witness.chains else ()


async def test_a_newcomer_that_does_not_trust_the_coordinator_declines(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 1) as cell:
        path = make_machine(tmp_path, "m9", cell.cloud)
        settings = path / "edgepool.toml"
        text = settings.read_text()
        settings.write_text(text.replace(f'coordinators = ["{cell.cloud.id}"]', "coordinators = []"))
        async with Peer.open(path):
            await gather_members(cell.cloud, ["m9"], timeout_s=60)
            with pytest.raises((Refused, Unavailable), match=r"m9 declined.*not among those"):
                await cell.cloud.change_members(cell.chain, admit="m9")


async def test_a_topology_names_witnesses_and_small_pools_get_them(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    people = [("cloud", "coordinator"), ("a", "machine"), ("b", "machine"), ("c", "machine")]
    people += [(f"w{n}", "witness") for n in range(3)]
    peers = "".join(f'[[peers]]\nname = "{name}"\nrole = "{role}"\n' for name, role in people)
    pools = '[[pools]]\nname = "ab"\nmembers = ["a", "b"]\n[[pools]]\nname = "bc"\nmembers = ["b", "c"]\n'
    exchange = '[[exchanges]]\nfrom = "a"\nto = "b"\nkey = "P-1/model"\n'
    file.write_text(f'[network]\nname = "small"\n{peers}{pools}{exchange}')
    topology = load_topology(file)
    assert topology.check() == []
    result = await run(topology, tmp_path / "run")
    assert result["failed"] == 0
    ab, bc = (pool["members"] for pool in result["pools"])
    assert (ab[:2], bc[:2]) == (["a", "b"], ["b", "c"])
    assert (len(ab), len(bc)) == (4, 4)
    assert set(ab[2:]) | set(bc[2:]) == {"w0", "w1", "w2"}  # each is used before one is used twice

"""A coordinator's key changes [S3.6]: for its pools, for those whose settings name it, for who joins."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from peer_cell import Cell, make_coordinator, make_machine, open_cell
from test_key_rotation import PATIENCE_S, Program, certifies, place_of, until
from test_members import busy, demand, voters
from tls_peers import free_port

from edgepool import LocalError, Peer
from edgepool.config import AuthoritySettings, KnownPeer, load_peer_settings
from edgepool.gateway.newcomer import join_network
from edgepool.model.crypto import Signer
from edgepool.model.ids import format_address
from edgepool.model.trust import RevokePeer, own_revocation
from edgepool.peer.verify import verify_chain
from edgepool.transport.joincode import read_code

HOUR_MS = 3_600_000


@asynccontextmanager
async def coordinated(folder: Path, machines: int) -> AsyncIterator[tuple[Cell, Program]]:
    """A cell whose coordinator is a registrar, and can be opened again under a new key where it was."""
    async with open_cell(folder, machines, change=certifies) as cell, AsyncExitStack() as stack:
        program = await reopened(cell.cloud, stack)
        cell.cloud = program.peer
        await until(lambda: len(program.peer.connected()) == machines)
        yield cell, program


async def reopened(peer: Peer, stack: AsyncExitStack) -> Program:
    settings = replace(peer.settings, listen=peer.addresses[0])
    await peer.__aexit__(None, None, None)
    program = Program(settings, stack)
    await program.open()
    return program


def knows(peer: Peer, cloud: Peer) -> bool:
    """Whether a peer takes that coordinator's word, and is linked to it."""
    linked = any(one.peer == cloud.id for one in peer.connected())
    return linked and list(peer.node.heirs.coordinators) == [cloud.id]


async def test_a_coordinators_key_changes_for_everybody_who_names_it(tmp_path: Path) -> None:
    """It votes in the main pool and observes a task's; records flow, and one member is off meanwhile."""
    async with coordinated(tmp_path, 4) as (cell, program), AsyncExitStack() as stack:
        cloud, (m0, m1, m2, away) = program.peer, cell.machines
        assert program.registrar is not None
        old = cloud.id
        members = [one for one in map(cloud.member, (m0.id, m1.id, m2.id)) if one is not None]
        me = cloud.member(cloud.id)
        assert me is not None
        task = await cloud.form_pool("task", "manufacturing", members, observers=[me])
        stranger = await cell.join("stranger")
        made = await program.registrar.invite(name="late", valid_ms=HOUR_MS, pool="cell")
        shutil.copytree(tmp_path / "cloud", tmp_path / "copy")
        await away.__aexit__(None, None, None)

        async with busy(m0, cell.chain) as heights, busy(m1, task.chain) as steps:
            await until(lambda: len(heights) > 5 and len(steps) > 5)
            new = await program.rotate()
            assert new.id != old
            before = len(heights), len(steps)
            await until(lambda: len(heights) > before[0] + 5 and len(steps) > before[1] + 5)
        for peer in (m0, m1, m2):
            state = peer.chain_state(cell.chain)
            await until(lambda: state.coordinator == new.id and place_of(peer, cell.chain, "cloud") == new.id)  # noqa: B023
            await until(lambda: peer.chain_state(task.chain).coordinator == new.id)  # noqa: B023
            await until(lambda: knows(peer, new) and old in peer.trusting.revoked)  # noqa: B023
        assert [(one.name, one.heir) for one in m0.members(cell.chain).former] == [("cloud", new.id)]
        assert all(chain.former == [] for chain in m0.status().chains), "nobody has left"
        observers = m0.chain_state(task.chain).observers
        assert [one.peer for one in observers] == [new.id]

        # Who was off, and who is in no pool: each has the former key in its settings, and nothing else.
        back = await stack.enter_async_context(Peer(away.settings))
        await until(lambda: knows(back, new))
        await back.submit(demand(1), chain=cell.chain)
        await until(lambda: knows(stranger, new))
        people = [one for one in map(new.member, (m0.id, stranger.id)) if one is not None]
        formed = await new.form_pool("later", "manufacturing", people)
        await until(lambda: formed.chain in stranger.chains)
        await stranger.submit(demand(2), chain=formed.chain)

        # A code from before lets in, into its pool; the newcomer knows the new key alone.
        _, joined = await join_network(read_code(made.code), tmp_path / "late", listen="/ip4/127.0.0.1/tcp/0")
        assert new.id in joined.coordinators
        assert old not in joined.coordinators
        late = await stack.enter_async_context(Peer.open(tmp_path / "late"))
        async with busy(m0, cell.chain):  # what is decided is in force two blocks later
            await until(lambda: late.id in m0.chain_state(cell.chain).members)
        async with asyncio.timeout(PATIENCE_S):
            n, voted = 10, set[str]()
            while not {"cloud"} <= voted:
                n += 1
                ref = await late.submit(demand(n), chain=cell.chain)
                voted = voters(late, cell.chain, ref.height)

        # Whoever has copied the former key is let in nowhere.
        to_m0 = KnownPeer(name="m0", address=f"{m0.addresses[0]}/p2p/{m0.id}")
        thief = replace(program.settings, folder=tmp_path / "copy", listen="", known_peers=(to_m0,))
        refused = m0.status().totals.refused.get("refused_revoked", 0)
        async with Peer(replace(thief, authority=AuthoritySettings())):
            await until(lambda: m0.status().totals.refused.get("refused_revoked", 0) > refused)
        await program.close()
    for name, chain in (("m0", cell.chain), ("cloud", cell.chain), ("m1", task.chain), ("cloud", task.chain)):
        assert verify_chain(tmp_path / name, chain).height > 0


async def test_who_has_no_vote_changes_its_key_in_no_pool_and_in_one(tmp_path: Path) -> None:
    """A registrar certifies itself; who was not told at once hears of several changes at once."""
    async with AsyncExitStack() as stack:
        settings = certifies(load_peer_settings(make_coordinator(tmp_path)))
        program = Program(replace(settings, listen=format_address("127.0.0.1", free_port())), stack)
        first = await program.open()
        m0, m1, late = [
            Peer(load_peer_settings(make_machine(tmp_path, name, first))) for name in ("m0", "m1", "late")
        ]
        for machine in (m0, m1):
            await stack.enter_async_context(machine)
        reader = Program(load_peer_settings(make_machine(tmp_path, "reader", first, "client")), stack)
        await reader.open()
        await until(lambda: len(program.peer.connected()) == 3)
        second = await program.rotate()
        await until(lambda: all(knows(one, second) for one in (m0, m1, reader.peer)))
        third = await program.rotate()
        await until(lambda: all(knows(one, third) for one in (m0, m1, reader.peer)))
        assert [(one.former, one.heir) for one in third.rotation.line] == [
            (first.id, second.id),
            (second.id, third.id),
        ]
        await stack.enter_async_context(late)
        await until(lambda: knows(late, third))

        voters, observers = (
            [one for one in map(third.member, peers) if one is not None]
            for peers in ((m0.id, m1.id), (third.id, reader.peer.id))
        )
        pool = await third.form_pool("cell", "fixed", voters, observers=observers)
        await until(lambda: all(pool.chain in one.chains for one in (m0, m1, reader.peer)))
        former_reader = reader.peer.id
        fourth = await program.rotate()
        await reader.rotate()
        for peer in (m0, m1, reader.peer, fourth):
            state = peer.chain_state(pool.chain)
            await until(lambda: state.coordinator == fourth.id)  # noqa: B023
            await until(lambda: [one.peer for one in state.observers] == [fourth.id, reader.peer.id])  # noqa: B023
            await until(lambda: {third.id, former_reader} <= peer.trusting.revoked)  # noqa: B023
        await until(lambda: knows(late, fourth) and knows(reader.peer, fourth))
        # The coordinator's word counts under its present key.
        member = fourth.member(late.id)
        assert member is not None
        await fourth.change_members(pool.chain, admit=member)
        coming = late.chain_state(pool.chain)
        await until(lambda: late.id in [one.peer for one in coming.next_roster])
        # Who shows a revocation that is not of its own former key, or is forged, moves nobody.
        trust = m0.chain_state(pool.chain).trust
        strange = own_revocation(Signer(bytes(32)), "cell")
        for who, shown in (
            (reader.peer.id, strange),
            (reader.peer.id, replace(strange, peer=late.id)),
            (reader.peer.id, RevokePeer(m1.id)),
            (m1.id, replace(strange, peer=m1.id)),
        ):
            await m0.trusting.end_former(who, shown)
        assert m0.chain_state(pool.chain).trust.revoked == trust.revoked
        assert not m0.chain_state(pool.chain).trust.open
        ref = await late.submit(demand(1), chain=pool.chain)
        await until(lambda: reader.peer.chain_state(pool.chain).height >= ref.height)


async def test_no_key_changes_while_the_root_rotates_and_the_other_way_round(tmp_path: Path) -> None:
    async with coordinated(tmp_path, 2) as (_, program):
        registrar = program.registrar
        assert registrar is not None
        (program.settings.folder / "edgepool.toml").write_text(
            'name = "cloud"\nnetwork = "cell"\nrole = "coordinator"\n\n[authority]\nfolder = "../authority"\n'
        )
        await program.peer.rotation.begin()
        with pytest.raises(LocalError, match="key of this registrar is being changed"):
            await registrar.rotation.begin(0, 0, False)
        await program.change()
        await until(lambda: not program.peer.rotation.status().state)
        registrar = program.registrar
        assert registrar is not None
        assert (await registrar.rotation.begin(3600, 3600, False)).stage == "making"
        with pytest.raises(LocalError, match="root rotates"):
            await program.peer.rotation.begin()

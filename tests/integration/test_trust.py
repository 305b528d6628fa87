"""Several organisations in one network, and members that are revoked while they vote and transfer."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace
from peer_cell import NETWORK, Cell, open_cell
from test_certificates_live import code_for, registrar_at

from edgepool import DataKey, Peer
from edgepool.config import KnownPeer, PeerSettings
from edgepool.gateway.newcomer import join_network
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.model.certifying import request_for
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId, parse_address
from edgepool.model.pool import Member
from edgepool.model.record import DataDemand
from edgepool.model.trust import AdmitRoot, RetireRoot, RevokePeer
from edgepool.peer.verify import verify_chain
from edgepool.transport.certificates import create_authority

KEY = DataKey("PTVA10212-01", "model")
PATIENCE_S = 40.0


async def until(reached: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():  # noqa: ASYNC110 - what is waited for is in other peers' hands
            await asyncio.sleep(0.01)


def root_of(authority: Path) -> bytes:
    pem = (authority / "authority.pem").read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def refused(peer: Peer, what: str) -> int:
    return peer.status().totals.refused.get(what, 0)


def linked(*peers: Peer) -> bool:
    return all(
        any(found.peer == other.id for found in one.connected())
        for one in peers
        for other in peers
        if one is not other
    )


def make_foreign(folder: Path, name: str, cloud: Peer) -> Path:
    """Make a machine's folder of the organisation B; its owner trusts the root of A."""
    authority = folder / "authority-b"
    if not authority.exists():
        create_authority(authority, "B works")
    known = KnownPeer("cloud", f"{cloud.addresses[0]}/p2p/{cloud.id}")
    plan = PeerPlan(name, NETWORK, "machine", "Milling", coordinators=(cloud.id,), known_peers=(known,))
    make_peer_folder(folder / name, plan, authority)
    shutil.copyfile(folder / "authority/authority.pem", folder / name / "identity/trusted.pem")
    return folder / name


async def test_two_organisations_form_one_network_and_part_again(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell:
        cloud, mill = cell.cloud, cell.machines[0]
        async with Peer.open(make_foreign(tmp_path, "b1", cloud)) as guest:
            await until(lambda: refused(cloud, "refused_foreign"))
            assert not guest.connected()

            root = root_of(tmp_path / "authority-b")
            await cloud.trusting.change(AdmitRoot("B works", root), reason="our partner")
            await until(lambda: linked(cloud, guest))
            (found,) = [one for one in cloud.connected() if one.peer == guest.id]
            assert (found.organisation, found.name) == ("B works", "b1")
            (mine,) = [one for one in guest.connected() if one.peer == cloud.id]
            assert mine.organisation == NETWORK

            # It becomes a member, is linked to all, and data goes both ways.
            await cloud.change_members(cell.chain, admit="b1")
            await until(lambda: cell.chain in guest.chains and linked(cloud, guest, *cell.machines))
            await until(lambda: guest.chain_state(cell.chain).may_write(guest.id))
            await guest.publish(KEY, os.urandom(300_000), chain=cell.chain)
            assert len((await mill.fetch(KEY)).read()) == 300_000

            # Its root is retired: nobody of it is let in any more, and its links end.
            (shown,) = [one for one in cloud.trust().roots if one.organisation == "B works"]
            assert (shown.admitted, shown.trusted, shown.own) == (True, True, False)
            await cloud.trusting.change(RetireRoot(bytes.fromhex(shown.fingerprint), 0))
            await until(lambda: not any(linked(guest, one) for one in (cloud, *cell.machines)))
            before = refused(mill, "refused_foreign")
            await until(lambda: refused(mill, "refused_foreign") > before)
            assert not next(one for one in cloud.trust().roots if one.organisation == "B works").trusted


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_transfer(of: Peer, to: Peer) -> Connection:
    """Open a connection for a transfer, and let it wait."""
    host, port, _ = parse_address(to.addresses[0])
    context = of._identity.transfer_context
    return await asyncio.open_connection(host, port, ssl=context, server_hostname="")


def stays(of: Peer, chain: ChainId, peer: PeerId) -> bool:
    return any(member.peer == peer for member in of.chain_state(chain).next_roster)


def patient(settings: PeerSettings) -> PeerSettings:
    return replace(settings, limits=replace(settings.limits, handshake_timeout_ms=120_000))


async def test_a_member_is_revoked_while_it_votes_and_transfers(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 4, change=patient) as cell:
        cloud, liar, others = cell.cloud, cell.machines[3], cell.machines[:3]
        await liar.publish(KEY, os.urandom(1000))
        reader, writer = await open_transfer(liar, others[0])
        await until(lambda: len(others[0]._identity.trust._held) >= 5)

        await cloud.trusting.change(RevokePeer(liar.id), reason="stolen")
        honest = (cloud, *others)
        await until(lambda: all(one.trust().revoked for one in honest))
        await until(lambda: not any(linked(one, liar) for one in honest))
        async with asyncio.timeout(PATIENCE_S):
            with suppress(OSError):
                assert await reader.read() == b""
        writer.close()
        assert refused(others[0], "lost_revoked") == 2, "its link and its transfer"

        # It is excluded without anybody's help, is not let in again, and the others go on.
        await until(lambda: all(not stays(one, cell.chain, liar.id) for one in honest))
        for number in range(2):  # the exclusion is in force from the second block on
            await others[1].submit(DataDemand(KEY, number, "", ""), chain=cell.chain)
        await until(lambda: all(liar.id not in one.chain_state(cell.chain).members for one in honest))
        state = others[0].chain_state(cell.chain)
        assert liar.id in state.former
        await until(lambda: any(refused(one, "refused_revoked") for one in honest))
        assert not any(linked(one, liar) for one in honest)
        ref = await others[1].submit(DataDemand(KEY, 2, "", ""), chain=cell.chain)
        assert ref.height > state.former[liar.id]
        (shown,) = cloud.trust().revoked
        assert (shown.peer, shown.name, shown.pool) == (liar.id, liar.name, "cell")

        # What it has written before stays, and stays verifiable.
        assert [entry.holder for entry in state.offers(KEY)] == [liar.id]
    assert verify_chain(tmp_path / "m0", cell.chain).problem == ""


async def test_a_revocation_that_cannot_be_decided_is_said_to_be_one(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        thief, other = cell.machines
        assert "needs all of them, m0 too" in cell.cloud.trusting.hindrance(thief.id)
        assert cell.cloud.trusting.hindrance(PeerId("a client")) == ""
        await cell.cloud.change_members(cell.chain, admit=await fourth(cell))
        await until(lambda: len(cell.cloud.chain_state(cell.chain).next_roster) == 4)
        for number in range(2):  # it has a vote from the second block on
            await other.submit(DataDemand(KEY, number, "", ""), chain=cell.chain)
        await until(lambda: cell.cloud.trusting.hindrance(thief.id) == "")
        await cell.cloud.trusting.change(RevokePeer(thief.id))
        await until(lambda: other.trust().revoked)


async def fourth(cell: Cell) -> Member:
    witness = await cell.join("witness-1", role="witness")
    await until(lambda: cell.cloud.member(witness.id))
    member = cell.cloud.member(witness.id)
    assert member is not None
    return member


async def test_a_member_that_is_away_is_named_before_a_revocation_hangs(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell:
        thief, away, _ = cell.machines
        assert cell.cloud.trusting.hindrance(thief.id) == ""
        await away.__aexit__()
        await until(lambda: "m1 cannot be reached" in cell.cloud.trusting.hindrance(thief.id))


async def test_a_thief_gets_no_certificate_for_another_key_while_its_revocation_is_asked_for(
    tmp_path: Path,
) -> None:
    async with registrar_at(tmp_path, valid_s=3600) as (cloud, registrar):
        await join_network(await code_for(registrar, pool="cell"), tmp_path / "mill")
        async with Peer.open(tmp_path / "mill") as mill:
            await until(lambda: cloud.pools[0].chain in mill.chains)
            await until(lambda: len(cloud.chain_state(cloud.pools[0].chain).next_roster) == 2)
            for number in range(2):  # it has a vote from the second block on
                await cloud.submit(DataDemand(KEY, number, "", ""), chain=cloud.pools[0].chain)
            await until(lambda: len(cloud.chain_state(cloud.pools[0].chain).members) == 2)
            await cloud.trusting.change(RevokePeer(mill.id))  # which a pool of two cannot decide
            assert cloud.trusting.is_accused(mill.id)
            (member,) = cloud.connected()
            new = Signer(bytes(32))
            asked = request_for(new, mill.settings.network, mill.id, cloud.id)
            answer = await registrar.certify(member, asked)
            assert (answer.certificate, answer.refusal) == (b"", "its revocation is asked for")


async def test_trust_survives_a_restart(tmp_path: Path) -> None:
    create_authority(tmp_path / "authority-b", "B works")
    async with open_cell(tmp_path, 3) as cell:
        mill, victim = cell.machines[0], cell.machines[2]
        await cell.cloud.trusting.change(AdmitRoot("B works", root_of(tmp_path / "authority-b")))
        await cell.cloud.trusting.change(RevokePeer(victim.id))
        await until(lambda: mill.trust().revoked and len(mill.trust().roots) == 2)
        expected = mill.trust()
    async with Peer.open(tmp_path / "m0") as again:
        assert again.trust().roots == expected.roots
        assert [one.peer for one in again.trust().revoked] == [victim.id]
        assert again._identity.trust.revoked == {victim.id}

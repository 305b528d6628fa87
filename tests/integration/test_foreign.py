"""What a peer tells over libp2p, by the role of who asks; the streams below are tried elsewhere."""

from __future__ import annotations

from pathlib import Path

from peer_cell import NETWORK, open_cell
from tls_peers import until

from edgepool import Peer
from edgepool.core.ledger.recordproof import RecordProof, read_proof, record_proof_fault
from edgepool.core.ledger.trust import Trust
from edgepool.core.rosters import RosterHistory
from edgepool.model.asking import (
    Answer,
    Find,
    FoundOffer,
    HandoverList,
    HandoversAbove,
    No,
    Offers,
    Places,
    PoolList,
    Pools,
    ProofFile,
    Prove,
    Question,
    TrustProof,
    Where,
    WhomToTrust,
)
from edgepool.model.block import certified_by, roster_after
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import sha256
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import DataDemand
from edgepool.model.trust import RevokePeer
from edgepool.model.twin import DataKey

KEY = DataKey("PTVA10212-01", "model")
PATIENCE_S = 45.0
NOWHERE = ChainId("0" * 40)


def asker(role: str, peer: str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN") -> PeerIdentity:
    return PeerIdentity(PeerId(peer), "asker", role, "")


async def test_answers_depend_on_the_role_of_who_asks(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        machine, other = cell.machines
        published = await machine.publish(KEY, b"a model")
        demanded = await other.submit(DataDemand(KEY, 0, "", ""), chain=cell.chain)
        await until(lambda: machine.chain_state(cell.chain).height >= demanded.height)
        foreign = machine._foreign

        listed = await foreign.answer(asker("client"), Pools())
        assert isinstance(listed, PoolList)
        assert [genesis.chain for genesis, _ in listed.pools] == [cell.chain]
        assert listed.pools[0][1] >= demanded.height

        found = await foreign.answer(asker("client"), Find(KEY, 0, 5_000))
        assert isinstance(found, Offers)
        assert [offer.holder.name for offer in found.offers] == [machine.name]
        assert isinstance(decode(Offers, encode(found)).offers[0], FoundOffer)
        # A regulator follows every chain and searches for nothing.
        refused = await foreign.answer(asker("regulator"), Find(KEY, 0, 5_000))
        assert isinstance(refused, No)
        assert "a regulator may not ask who has data" in refused.reason

        of_the_offer = Prove(cell.chain, published.ref.height, published.ref.index)
        of_the_demand = Prove(cell.chain, demanded.height, demanded.index)
        for who, question, answered in (
            (asker("client"), of_the_offer, True),
            (asker("client"), of_the_demand, False),
            (asker("regulator"), of_the_demand, True),
            (asker("machine"), of_the_demand, False),
            (asker("machine", other.id), of_the_demand, True),
        ):
            answer = await foreign.answer(who, question)
            assert isinstance(answer, ProofFile) == answered, (who, question, answer)
            if isinstance(answer, ProofFile):
                proof = read_proof(answer.file)
                assert isinstance(proof, RecordProof)
                assert record_proof_fault(proof, [cell.chain]) is None
        nowhere = await foreign.answer(asker("regulator"), Prove(cell.chain, 2**40, 0))
        assert isinstance(nowhere, No)


async def test_changes_of_the_roster_and_revocations_are_shown_with_their_proof(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 3) as cell:
        machine = cell.machines[0]

        async def ask(question: Question) -> Answer:
            # As it comes over a wire.
            answer: Answer = decode(Answer, encode(await machine._foreign.answer(asker("client"), question)))  # type: ignore[arg-type]
            return answer

        async def trust() -> tuple[Trust, int]:
            """Return what is said of trust, checked, and before which block."""
            shown = await ask(WhomToTrust(cell.chain))
            assert isinstance(shown, TrustProof)
            # The exclusion of who is revoked may be in force by now, or not.
            every = machine.handovers(cell.chain)
            assert not isinstance(roster_after(NETWORK, cell.chain, members, every), str)
            roster = RosterHistory(cell.pool, every).at(shown.header.height)
            assert not certified_by(shown.header, shown.certificate, NETWORK, cell.chain, roster)
            assert sha256(sha256(shown.trust) + shown.rest) == shown.header.state_root
            return decode(Trust, shown.trust), shown.header.height

        members = cell.pool.invitation.members
        await machine.publish(KEY, b"a model")
        assert (await trust())[0].revoked == ()
        assert await ask(HandoversAbove(cell.chain, 0)) == HandoverList(())
        newcomer = await cell.join("m9")
        await cell.cloud.change_members(cell.chain, admit="m9")
        for data in (b"one", b"two"):  # it is in force two blocks later
            await machine.publish(KEY, data)
        await until(lambda: bool(machine.handovers(cell.chain)), PATIENCE_S)
        told = await ask(HandoversAbove(cell.chain, 0))
        assert isinstance(told, HandoverList)
        handovers = told.handovers
        assert [one.incoming.name for one in handovers if one.incoming] == ["m9"]
        assert await ask(HandoversAbove(cell.chain, handovers[0].header.height)) == HandoverList(())
        # Whom the members have revoked is shown by the block after the one that decides it.
        await cell.cloud.trusting.change(RevokePeer(newcomer.id), reason="stolen")
        await until(lambda: bool(machine.chain_state(cell.chain).trust.revoked), PATIENCE_S)
        await machine.publish(KEY, b"another model")
        assert [peer for peer, _ in (await trust())[0].revoked] == [newcomer.id]
        # Where somebody is who has not moved, the pool says.
        assert isinstance(await ask(Where(cell.chain)), Places)
        for question in (HandoversAbove(NOWHERE, 0), WhomToTrust(NOWHERE)):
            assert isinstance(await ask(question), No)


async def test_after_a_restart_the_last_block_still_shows_whom_to_trust(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        await cell.machines[0].publish(KEY, b"a model")
    again = Peer.open(cell.machines[0].settings.folder)
    async with again:
        shown = await again._foreign.answer(asker("client"), WhomToTrust(cell.chain))
        assert isinstance(shown, TrustProof)
        assert sha256(sha256(shown.trust) + shown.rest) == shown.header.state_root

"""What a peer tells over libp2p, by the role of who asks; the streams below are tried elsewhere."""

from __future__ import annotations

from pathlib import Path

from peer_cell import open_cell

from edgepool.core.ledger.recordproof import RecordProof, read_proof, record_proof_fault
from edgepool.model.asking import Find, FoundOffer, No, Offers, PoolList, Pools, ProofFile, Prove
from edgepool.model.codec import decode, encode
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId
from edgepool.model.record import DataDemand
from edgepool.model.twin import DataKey

KEY = DataKey("PTVA10212-01", "model")


def asker(role: str, peer: str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN") -> PeerIdentity:
    return PeerIdentity(PeerId(peer), "asker", role, "")


async def test_answers_depend_on_the_role_of_who_asks(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        machine, other = cell.machines
        published = await machine.publish(KEY, b"a model")
        demanded = await other.submit(DataDemand(KEY, 0, "", ""), chain=cell.chain)
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

from __future__ import annotations

import msgspec
import pytest
from ledger_world import NETWORK, World

from edgepool.core.ledger.proof import proof_problem, prove
from edgepool.model.block import CertifiedBlock, Header
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import sha256
from edgepool.model.ids import PeerId
from edgepool.model.message import OfferProof
from edgepool.model.pool import Genesis

replace = msgspec.structs.replace


@pytest.fixture
def world() -> World:
    return World()


def block_of(world: World, size: int, offer_at: int) -> CertifiedBlock:
    records = [world.offer(0) if i == offer_at else world.demand(1) for i in range(size)]
    return world.certify(world.pack(*records))


def problem(world: World, proof: OfferProof) -> str:
    return proof_problem(proof, NETWORK, [world.coordinator.peer])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_offer_at_any_place_of_a_block_is_proved(size: int) -> None:
    for place in range(size):
        world = World()
        proof = prove(world.genesis, block_of(world, size, place), place)
        assert problem(world, decode(OfferProof, encode(proof))) == ""


def test_only_offers_are_proved(world: World) -> None:
    with pytest.raises(AssertionError):
        prove(world.genesis, block_of(world, 3, 0), 1)


def test_genesis_must_be_whole_of_this_network_and_by_a_trusted_coordinator(world: World) -> None:
    proof = prove(world.genesis, block_of(world, 3, 1), 1)
    assert "not trusted" in proof_problem(proof, NETWORK, [world.outsider.peer])
    assert "for network" in proof_problem(proof, "other works", [world.coordinator.peer])
    forged = replace(proof.genesis, coordinator_signature=bytes(64))
    assert "coordinator's signature" in problem(world, replace(proof, genesis=forged))


def test_members_who_did_not_accept_prove_nothing(world: World) -> None:
    """A stranger names the pool's members in a genesis of its own and signs for them."""
    proof = prove(world.genesis, block_of(world, 3, 1), 1)
    others = tuple(replace(yes, signature=bytes(64)) for yes in proof.genesis.acceptances)
    assert "member" in problem(world, replace(proof, genesis=replace(proof.genesis, acceptances=others)))


def test_genesis_with_text_for_a_peer_id_is_refused_not_raised(world: World) -> None:
    proof = prove(world.genesis, block_of(world, 3, 1), 1)
    bad = PeerId("0" * 50)
    invitation = replace(proof.genesis.invitation, coordinator=bad)
    genesis = Genesis(invitation, proof.genesis.coordinator_signature, proof.genesis.acceptances)
    assert proof_problem(replace(proof, genesis=genesis), NETWORK, [bad])


def test_record_must_be_an_authentic_offer_of_a_member(world: World) -> None:
    proof = prove(world.genesis, block_of(world, 3, 1), 1)
    forged = replace(proof.record, signature=bytes(64))
    assert "author's signature" in problem(world, replace(proof, record=forged))
    stranger = world.record(world.outsider, proof.record.record.body)
    assert "author is no member" in problem(world, replace(proof, record=stranger))
    assert "no data offer" in problem(world, replace(proof, record=world.demand(0)))
    other = World(members=5).offer(0)
    assert "another chain" in problem(world, replace(proof, record=other))


def test_record_that_is_not_in_the_block_is_refused(world: World) -> None:
    proof = prove(world.genesis, block_of(world, 3, 1), 1)
    assert "does not lead" in problem(world, replace(proof, record=world.offer(0, 2)))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_path_has_exactly_one_form(size: int) -> None:
    """Else one record could be shown at several places, or several records at one."""
    world = World()
    last = size - 1
    proof = prove(world.genesis, block_of(world, size, last), last)
    path = proof.path
    wrong = [(*path, b""), (*path, bytes(32)), (b"", *path)]
    if path:
        assert "below the root" in problem(world, replace(proof, path=path[:-1]))
    wrong += [
        (*path[:i], sibling, *path[i + 1 :])
        for i in range(len(path))
        for sibling in (b"", bytes(31), bytes(32))
        if sibling != path[i]
    ]
    assert all(problem(world, replace(proof, path=other)) for other in wrong)
    assert all(problem(world, replace(proof, index=i)) for i in range(size + 3) if i != last)


def header_of(proof: OfferProof, **changes: object) -> Header:
    return replace(proof.header, **changes)


def test_certificate_must_be_for_this_header(world: World) -> None:
    proof = prove(world.genesis, block_of(world, 3, 1), 1)
    certificate = proof.certificate
    for header in (
        header_of(proof, time_ms=1),
        header_of(proof, height=2),
        header_of(proof, proposer=world.peers[1]),
    ):
        assert "another block" in problem(world, replace(proof, header=header))
        resealed = replace(certificate, block_id=header.id, height=header.height)
        assert "signature of member" in problem(world, replace(proof, header=header, certificate=resealed))
    assert "signature of member" in problem(world, replace(proof, certificate=replace(certificate, round=1)))
    assert "another block" in problem(world, replace(proof, certificate=replace(certificate, height=2)))
    few = replace(certificate, signatures=certificate.signatures[:-1])
    assert "are needed" in problem(world, replace(proof, certificate=few))
    assert "another chain" in problem(world, replace(proof, header=header_of(proof, network="other works")))


def test_forged_block_under_a_real_certificate_is_refused(world: World) -> None:
    proof = prove(world.genesis, block_of(world, 1, 0), 0)
    record = world.offer(0, 2, b"forged")
    header = header_of(proof, records_root=sha256(b"\0" + encode(record)))
    assert "another block" in problem(world, replace(proof, record=record, header=header))

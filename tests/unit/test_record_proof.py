from __future__ import annotations

import msgspec
import pytest
from changing_pool import ChangingPool, twice_changed
from ledger_world import World

from edgepool.core.ledger.proof import Fault, keep_record
from edgepool.core.ledger.recordproof import (
    MAGIC,
    RecordProof,
    prove_kept_record,
    prove_record,
    read_proof,
    record_proof_fault,
    write_proof,
)
from edgepool.errors import DecodeError
from edgepool.model.block import CertifiedBlock
from edgepool.model.crypto import sha256
from edgepool.model.record import MembershipChange, SignedRecord, kind_of
from edgepool.model.vote import Certificate

replace = msgspec.structs.replace


def every_kind(world: World) -> CertifiedBlock:
    """Return a block with a record of each kind."""
    holder, requester = world.signers[:2]
    return world.certify(
        world.pack(
            world.requirement(0, 0),
            world.procedure(0, 0),
            world.completion(0, 0),
            world.inspection(0, 0),
            world.offer(0),
            world.demand(1),
            world.confirmation(holder, requester),
        )
    )


def proof_at(world: World | ChangingPool, certified: CertifiedBlock, place: int) -> RecordProof:
    handovers = world.handovers if isinstance(world, ChangingPool) else ()
    proof = prove_record(world.genesis, handovers, certified, place)
    assert proof is not None
    return proof


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def proof(world: World) -> RecordProof:
    return proof_at(world, every_kind(world), 3)


def changed(proof: RecordProof, **parts: object) -> RecordProof:
    names = ("genesis", "handovers", "header", "certificate", "record", "index", "path")
    return RecordProof(**{**{name: getattr(proof, name) for name in names}, **parts})  # type: ignore[arg-type]


def fault(world: World | ChangingPool, proof: RecordProof) -> tuple[str, str]:
    found = record_proof_fault(proof, [world.genesis.chain])
    assert found is not None
    return found.part, found.reason


def test_a_record_of_any_kind_is_proved_by_the_chain_id_alone(world: World) -> None:
    certified = every_kind(world)
    kinds = []
    for place, record in enumerate(certified.block.records):
        data = write_proof(proof_at(world, certified, place))
        proof = read_proof(data)
        assert isinstance(proof, RecordProof)
        assert record_proof_fault(proof, ["0" * 40, world.genesis.chain]) is None
        assert (proof.record, proof.index) == (record, place)
        assert len(data) < 4096
        kinds.append(kind_of(proof.record.record.body))
    assert len(set(kinds)) == 7


def test_a_pool_that_was_not_given_as_trusted_proves_nothing(world: World, proof: RecordProof) -> None:
    """A stranger can form a pool of its own, with the same names, and certify what it likes."""
    found = record_proof_fault(proof, [World(members=5).genesis.chain])
    assert found is not None
    assert found.part == "genesis"
    assert f"chain {world.genesis.chain}, which was not given as trusted" in found.reason
    assert record_proof_fault(proof, []) is not None


def test_each_part_that_was_changed_is_named(world: World, proof: RecordProof) -> None:
    genesis, header, certificate = proof.genesis, proof.header, proof.certificate
    said = proof.record.record
    other = replace(proof.record, record=replace(said, time_ms=said.time_ms + 1))
    assert fault(world, changed(proof, record=other)) == ("record", "the author's signature does not hold")
    path = (sha256(b"x"), *proof.path[1:])
    assert fault(world, changed(proof, path=path)) == (
        "path",
        "the Merkle path does not lead to the block's root",
    )
    assert fault(world, changed(proof, index=2))[0] == "path"
    for wrong in (
        replace(header, time_ms=1),
        replace(header, records_root=sha256(b"x")),
        replace(header, records_count=8),
    ):
        assert fault(world, changed(proof, header=wrong)) == (
            "header",
            "the certificate is for another block",
        )
    for forged in (
        replace(certificate, round=1),
        replace(certificate, height=7),
        replace(certificate, block_id=bytes(32)),
    ):
        assert fault(world, changed(proof, certificate=forged))[0] == "certificate"
    unsigned = replace(genesis, coordinator_signature=bytes(64))
    assert fault(world, changed(proof, genesis=unsigned)) == (
        "genesis",
        "the genesis: the coordinator's signature does not hold",
    )


def test_the_member_whose_signature_fails_is_named(world: World, proof: RecordProof) -> None:
    votes = list(proof.certificate.signatures)
    votes[1] = (votes[1][0], votes[2][1])
    forged: Certificate = replace(proof.certificate, signatures=tuple(votes))
    expected = f"the certificate: the signature of member {world.peers[1]} does not hold"
    assert fault(world, changed(proof, certificate=forged)) == ("certificate", expected)
    yes = list(proof.genesis.acceptances)
    yes[2] = replace(yes[2], beacon_tip=bytes(32))
    genesis = replace(proof.genesis, acceptances=tuple(yes))
    expected = f"the genesis: the signature of member {world.peers[2]} does not hold"
    assert fault(world, changed(proof, genesis=genesis)) == ("members", expected)


def test_too_few_votes_prove_nothing(world: World, proof: RecordProof) -> None:
    few = replace(proof.certificate, signatures=proof.certificate.signatures[:-1])
    assert fault(world, changed(proof, certificate=few)) == (
        "certificate",
        "the certificate: 2 of 4 members sign, 3 are needed",
    )


def test_a_record_that_is_not_in_the_block_is_refused(world: World, proof: RecordProof) -> None:
    elsewhere: SignedRecord = world.demand(0)
    assert fault(world, changed(proof, record=elsewhere))[0] == "path"
    stranger = world.record(world.outsider, proof.record.record.body)
    assert fault(world, changed(proof, record=stranger)) == (
        "path",
        "the Merkle path does not lead to the block's root",
    )


def test_other_files_and_other_versions_are_told_apart(proof: RecordProof) -> None:
    data = write_proof(proof)
    for other in (b"", b"EPGENES1" + data[8:], b"%PDF-1.7", MAGIC[:-1]):
        with pytest.raises(DecodeError, match="does not begin like a proof"):
            read_proof(other)
    with pytest.raises(DecodeError, match="its version is 1, this edgepool reads version 2"):
        read_proof(MAGIC + b"\x01" + data[8:])
    with pytest.raises(DecodeError, match="its version is missing"):
        read_proof(MAGIC)


def test_what_is_cut_short_or_goes_on_cannot_be_read(proof: RecordProof) -> None:
    data = write_proof(proof)
    for wrong in (data[:8], data[:-1], data[: len(data) // 2], data + b"\0", data + data[8:]):
        found = read_proof(wrong)
        assert isinstance(found, Fault)
        assert found.part == "frame"


def test_handovers_lead_from_the_chain_id_to_the_voters() -> None:
    pool = twice_changed()
    certified = pool.block(pool.demand(pool.signer(4)), pool.demand())
    for place in range(2):
        proof = read_proof(write_proof(proof_at(pool, certified, place)))
        assert isinstance(proof, RecordProof)
        assert proof.handovers == pool.handovers
        assert record_proof_fault(proof, [pool.chain]) is None
        assert prove_kept_record(pool.genesis, pool.handovers, keep_record(certified, place)) == proof


def test_a_changed_handover_is_named() -> None:
    pool = twice_changed()
    proof = proof_at(pool, pool.block(), 0)
    one, two = pool.handovers
    part, reason = fault(pool, changed(proof, handovers=(one, replace(two, incoming=None))))
    assert (part, reason) == ("handovers", "the handover at height 4 names another roster")
    assert fault(pool, changed(proof, handovers=(one,)))[0] == "handovers"
    votes = list(two.certificate.signatures)
    votes[1] = (votes[1][0], votes[2][1])
    forged = replace(two, certificate=replace(two.certificate, signatures=tuple(votes)))
    assert fault(pool, changed(proof, handovers=(one, forged))) == (
        "handovers",
        f"the handover at height 4: the signature of member {pool.genesis.members[1]} does not hold",
    )


def test_what_the_coordinator_wrote_is_proved_too() -> None:
    pool = twice_changed()
    change = MembershipChange(3, pool.roster[1].peer, None, b"", b"", "sold")
    certified = pool.block(pool.record(pool.coordinator, change))
    assert record_proof_fault(proof_at(pool, certified, 0), [pool.chain]) is None

"""One flipped bit anywhere in a proof file: never accepted, never an error that nobody expects."""

from __future__ import annotations

import pytest
from changing_pool import twice_changed
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_world import World

from edgepool.core.ledger.proof import Fault
from edgepool.core.ledger.recordproof import (
    FRAME,
    PARTS,
    RecordProof,
    prove_record,
    read_proof,
    record_proof_fault,
    write_proof,
)
from edgepool.errors import DecodeError
from edgepool.model.codec import encode
from edgepool.model.ids import ChainId


def make_proof(records: int, place: int) -> tuple[RecordProof, ChainId]:
    world = World(members=4, beacon_length=2)
    block = world.pack(*(world.offer(1) if i == place else world.demand(0) for i in range(records)))
    proof = prove_record(world.genesis, (), world.certify(block), place)
    assert proof is not None
    return proof, world.genesis.chain


def make_changed_proof() -> tuple[RecordProof, ChainId]:
    """Return the proof of a newcomer's record in a pool with two handovers."""
    pool = twice_changed(2)
    proof = prove_record(pool.genesis, pool.handovers, pool.block(pool.demand(pool.signer(2))), 0)
    assert proof is not None
    return proof, pool.chain


def verdict(data: bytes, chain: ChainId) -> Fault | None:
    """Return what a check of the file comes to; a file that is no proof is a fault of its frame."""
    try:
        proof = read_proof(data)
    except DecodeError as error:
        return Fault(FRAME, str(error))
    return proof if isinstance(proof, Fault) else record_proof_fault(proof, [chain])


@pytest.mark.parametrize("case", ["alone", "among five", "after handovers"])
def test_every_single_flipped_bit_is_refused_and_its_part_named(case: str) -> None:
    small = make_proof(1, 0) if case == "alone" else make_proof(5, 4)
    proof, chain = make_changed_proof() if case == "after handovers" else small
    data = write_proof(proof)
    assert verdict(data, chain) is None
    where = {
        "record": encode(proof.record),
        "path": encode([proof.index, proof.path]),
        "header": encode(proof.header),
        "certificate": encode(proof.certificate),
        "handovers": encode(proof.handovers),
        "genesis": encode(proof.genesis),
    }
    spans, at = {}, 0
    for part, raw in where.items():  # in the order of the file: no handovers are a byte like many others
        start = at = data.index(raw, at)
        at += len(raw)
        spans[part] = (start, at)
    for position in range(len(data)):
        lies_in = [part for part, (start, end) in spans.items() if start <= position < end] or [FRAME]
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            found = verdict(bytes(flipped), chain)
            assert found is not None, f"bit {bit} of byte {position}, in the {lies_in[0]}, was not noticed"
            assert found.part in PARTS or found.part == FRAME
            if lies_in == [FRAME]:
                continue  # its lengths cut the parts: any of them may be the first that cannot be read
            named = "genesis" if found.part == "members" else found.part
            assert named == lies_in[0], f"bit {bit} of byte {position}: {found}"


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_damage_is_accepted_or_raises(data: st.DataObject) -> None:
    raw = bytearray(_FILE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        cut = data.draw(st.integers(0, 8))
        raw[at : at + cut] = data.draw(st.binary(max_size=8))
        if not raw:
            break
    found = verdict(bytes(raw), _CHAIN)
    assert (found is None) == (bytes(raw) == _FILE)


_PROOF, _CHAIN = make_proof(3, 1)
_FILE = write_proof(_PROOF)

"""Proofs that a data offer stands on a chain, for somebody who does not follow that chain [S3.8, S3.14].

A proof needs nothing but the network's name and the coordinators that one trusts: the genesis says who
the members are, their certificate makes the header stand, the Merkle path leads to the record.
"""

from __future__ import annotations

from collections.abc import Collection

from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import encode
from edgepool.model.crypto import HASH_BYTES
from edgepool.model.merkle import merkle_path, root_from_path
from edgepool.model.message import OfferProof
from edgepool.model.pool import Genesis
from edgepool.model.record import DataOffer


def prove(genesis: Genesis, certified: CertifiedBlock, index: int) -> OfferProof:
    """Return the proof of the data offer at `index` (from 0) of a block of this genesis' chain.

    AssertionError if there is no offer at that place.
    """
    records = certified.block.records
    assert 0 <= index < len(records), f"record {index} of a block with {len(records)}"
    assert isinstance(records[index].record.body, DataOffer), "only offers are proved"
    path = merkle_path([encode(record) for record in records], index)
    return OfferProof(genesis, certified.block.header, certified.certificate, records[index], index, path)


def proof_problem(proof: OfferProof, network: str, coordinators: Collection[str]) -> str:
    """Say why `proof` proves nothing in `network` to one who trusts `coordinators`, or return ''.

    Costs a signature check for each member, for each signer of the certificate, and two more.
    """
    return (
        _genesis_problem(proof, network, coordinators)
        or _record_problem(proof)
        or _path_problem(proof)
        or _certificate_problem(proof)
    )


def _genesis_problem(proof: OfferProof, network: str, coordinators: Collection[str]) -> str:
    if proof.genesis.invitation.coordinator not in coordinators:
        return "the pool's coordinator is not trusted here"
    problem = proof.genesis.problem(network)
    return f"the genesis: {problem}" if problem else ""


def _record_problem(proof: OfferProof) -> str:
    record = proof.record.record
    if not isinstance(record.body, DataOffer):
        return "the record is no data offer"
    if record.network != proof.genesis.invitation.network or record.chain != proof.genesis.chain:
        return "the record is for another chain"
    if record.author not in proof.genesis.members:
        return "the holder is no member of the pool"
    if not proof.record.authentic():
        return "the holder's signature does not hold"
    return ""


def _path_problem(proof: OfferProof) -> str:
    """Say why the path does not lead from the record, at its index, to the header's root, or return ''.

    Each step of the path must be there exactly where a tree of that many records has a sibling, or
    one record could be shown at several places.
    """
    place, width = proof.index, proof.header.records_count
    if place >= width:
        return "the record's index is beyond the block's records"
    for sibling in proof.path:
        expected = HASH_BYTES if place ^ 1 < width else 0
        if width == 1 or len(sibling) != expected:
            return "the Merkle path has another shape than the block's tree"
        place, width = place // 2, (width + 1) // 2
    if width != 1:
        return "the Merkle path ends below the root"
    if root_from_path(encode(proof.record), proof.index, proof.path) != proof.header.records_root:
        return "the Merkle path does not lead to the block's root"
    return ""


def _certificate_problem(proof: OfferProof) -> str:
    header, certificate, chain = proof.header, proof.certificate, proof.genesis.chain
    if header.network != proof.genesis.invitation.network or header.chain != chain:
        return "the block is for another chain"
    if certificate.height != header.height or certificate.block_id != header.id:
        return "the certificate is for another block"
    problem = certificate.problem(header.network, chain, proof.genesis.members)
    return f"the certificate: {problem}" if problem else ""

"""Proofs that a record stands on a chain, for somebody who does not follow that chain [S3.8, S3.14].

The genesis says who the members are, their certificate makes the header stand, the Merkle path leads
from the header to the record. What differs between proofs is only why one believes the genesis: an
offer that another peer passes on is believed for its coordinator (here), a record from a proof file
for its chain (recordproof.py). Everything below the genesis is checked by `standing_fault`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from edgepool.model.block import Block, Certificate, CertifiedBlock, Header
from edgepool.model.codec import encode
from edgepool.model.crypto import HASH_BYTES
from edgepool.model.merkle import merkle_path, root_from_path
from edgepool.model.message import OfferProof
from edgepool.model.pool import Genesis
from edgepool.model.record import DataOffer, MachiningRequirement, SignedRecord


class Evidence(Protocol):
    """What every proof consists of: a record, its place and path in a block, votes, and the pool."""

    @property
    def genesis(self) -> Genesis:
        """Who the members of the pool are."""
        ...

    @property
    def header(self) -> Header:
        """The header of the record's block."""
        ...

    @property
    def certificate(self) -> Certificate:
        """The members' votes for that block."""
        ...

    @property
    def record(self) -> SignedRecord:
        """What is proved."""
        ...

    @property
    def index(self) -> int:
        """The record's place in its block, from 0."""
        ...

    @property
    def path(self) -> tuple[bytes, ...]:
        """The hashes beside the way from the record up to the root; b"" where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a proof proves nothing: the `part` that does not hold, and one clause that says how."""

    part: str
    reason: str


def prove(genesis: Genesis, certified: CertifiedBlock, index: int) -> OfferProof:
    """Return the proof of the data offer at `index` (from 0) of a block of this genesis' chain.

    AssertionError if there is no offer at that place.
    """
    path = path_in(certified.block, index)
    record = certified.block.records[index]
    assert isinstance(record.record.body, DataOffer), "only offers are proved"
    return OfferProof(genesis, certified.block.header, certified.certificate, record, index, path)


def path_in(block: Block, index: int) -> tuple[bytes, ...]:
    """Return the Merkle path of the record at `index`; AssertionError if there is none."""
    assert 0 <= index < len(block.records), f"record {index} of a block with {len(block.records)}"
    return merkle_path([encode(record) for record in block.records], index)


def proof_problem(proof: OfferProof, network: str, coordinators: Collection[str]) -> str:
    """Say why `proof` proves nothing in `network` to one who trusts `coordinators`, or return ''.

    Costs a signature check for each member, for each signer of the certificate, and two more.
    """
    if proof.genesis.invitation.coordinator not in coordinators:
        return "the pool's coordinator is not trusted here"
    problem = proof.genesis.problem(network)
    if problem:
        return f"the genesis: {problem}"
    if not isinstance(proof.record.record.body, DataOffer):
        return "the record is no data offer"
    fault = standing_fault(proof)
    return fault.reason if fault else ""


def standing_fault(evidence: Evidence) -> Fault | None:
    """Say which part fails to show that the record stands on its genesis' chain; None if none does.

    The genesis is believed. Parts are judged in an order in which the one that was changed is the
    one that is named.
    """
    return (
        _record_fault(evidence) or _header_fault(evidence) or _path_fault(evidence) or _votes_fault(evidence)
    )


def _record_fault(evidence: Evidence) -> Fault | None:
    genesis, record = evidence.genesis, evidence.record.record
    plan = genesis.invitation
    if record.network != plan.network or record.chain != genesis.chain:
        return Fault("record", "the record is for another chain")
    if record.author not in genesis.members and not (
        isinstance(record.body, MachiningRequirement) and record.author == plan.coordinator
    ):
        return Fault("record", "the author is no member of the pool")
    if not evidence.record.authentic():
        return Fault("record", "the author's signature does not hold")
    return None


def _header_fault(evidence: Evidence) -> Fault | None:
    header, certificate, genesis = evidence.header, evidence.certificate, evidence.genesis
    if header.network != genesis.invitation.network or header.chain != genesis.chain:
        return Fault("header", "the block is for another chain")
    if certificate.height == header.height and certificate.block_id == header.id:
        return None
    # One of the two was changed: votes that hold speak for the certificate.
    part = "certificate" if _votes_fault(evidence) else "header"
    return Fault(part, "the certificate is for another block")


def _path_fault(evidence: Evidence) -> Fault | None:
    """Say why the path does not lead from the record, at its index, to the header's root.

    Each step of the path must be there exactly where a tree of that many records has a sibling, or
    one record could be shown at several places.
    """
    place, width = evidence.index, evidence.header.records_count
    if place >= width:
        return Fault("path", "the record's index is beyond the block's records")
    for sibling in evidence.path:
        expected = HASH_BYTES if place ^ 1 < width else 0
        if width == 1 or len(sibling) != expected:
            return Fault("path", "the Merkle path has another shape than the block's tree")
        place, width = place // 2, (width + 1) // 2
    if width != 1:
        return Fault("path", "the Merkle path ends below the root")
    root = root_from_path(encode(evidence.record), evidence.index, evidence.path)
    if root != evidence.header.records_root:
        return Fault("path", "the Merkle path does not lead to the block's root")
    return None


def _votes_fault(evidence: Evidence) -> Fault | None:
    genesis = evidence.genesis
    problem = evidence.certificate.problem(genesis.invitation.network, genesis.chain, genesis.members)
    return Fault("certificate", f"the certificate: {problem}") if problem else None

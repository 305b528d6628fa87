"""Proofs that a record stands on a chain, for somebody who does not follow that chain [S3.8, S3.14].

The genesis says who the first members are, the handovers who they were at the record's height [S3.6], the
members' certificate makes the header stand, the Merkle path leads from the header to the record. That its
author was allowed to write it is what the members have certified, and is not judged again. What
differs between proofs is only why one believes the genesis: an offer that another peer passes on is
believed for its coordinator (here), a record from a proof file for its chain (recordproof.py).
Everything below the genesis is checked by `standing_fault`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgepool.core.machine import KeptRecord
from edgepool.model.block import (
    Block,
    CertifiedBlock,
    Handover,
    Header,
    changed_roster,
    roster_after,
)
from edgepool.model.codec import encode
from edgepool.model.crypto import HASH_BYTES, sha256
from edgepool.model.ids import ChainId
from edgepool.model.merkle import merkle_path, root_from_path
from edgepool.model.message import MAX_HANDOVERS, OfferProof
from edgepool.model.policy import DataPolicy
from edgepool.model.pool import Genesis, Member, members_hash
from edgepool.model.record import DataOffer, SignedRecord
from edgepool.model.succession import Adoption, is_trusted
from edgepool.model.vote import Certificate

ROSTERS_KEPT = 64
"""Handover chains whose signatures need not be checked again, of whatever pools."""


class Evidence(Protocol):
    """What every proof consists of: a record, its place and path in a block, votes, and the pool."""

    @property
    def genesis(self) -> Genesis:
        """Who the first members of the pool are."""
        ...

    @property
    def handovers(self) -> tuple[Handover, ...]:
        """How the roster changed before the record's block, the oldest first."""
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


def prove(
    genesis: Genesis,
    handovers: Sequence[Handover],
    certified: CertifiedBlock,
    index: int,
    adoption: Adoption | None = None,
) -> OfferProof | None:
    """Return the proof of the data offer or policy at `index` (from 0) of a block of this genesis' chain.

    `handovers` are those of the chain, at least up to that block, `adoption` its coordinator's. None if there
    are more handovers than a proof may hold (MAX_HANDOVERS). AssertionError if there is no offer at that
    place.
    """
    return prove_kept(genesis, handovers, keep_record(certified, index), adoption)


def prove_kept(
    genesis: Genesis, handovers: Sequence[Handover], kept: KeptRecord, adoption: Adoption | None = None
) -> OfferProof | None:
    """Return the proof of a data offer that was kept of a pruned block; see `prove`."""
    assert isinstance(kept.record.record.body, DataOffer | DataPolicy), "only offers and policies are proved"
    before = handovers_before(handovers, kept.header.height)
    if len(before) > MAX_HANDOVERS:
        return None
    where = (kept.header, kept.certificate, kept.record, kept.index, kept.path)
    return OfferProof(genesis, before, *where, adoption)


def keep_record(certified: CertifiedBlock, index: int) -> KeptRecord:
    """Return what must be kept of a block so that its record at `index` can still be proved without it.

    AssertionError if there is no such record.
    """
    block = certified.block
    path = path_in(block, index)
    return KeptRecord(block.header, certified.certificate, block.records[index], index, path)


def handovers_before(handovers: Sequence[Handover], height: int) -> tuple[Handover, ...]:
    """Return those of a chain's handovers that lead to the roster which votes on `height`."""
    return tuple(handover for handover in handovers if handover.header.height < height)


def roster_of(genesis: Genesis, handovers: Sequence[Handover]) -> tuple[Member, ...]:
    """Return the roster to which `handovers` lead, which are believed: no signature is checked."""
    roster = genesis.invitation.members
    for handover in handovers:
        roster = changed_roster(roster, handover.outgoing, handover.incoming)
    return roster


def path_in(block: Block, index: int) -> tuple[bytes, ...]:
    """Return the Merkle path of the record at `index`; AssertionError if there is none."""
    assert 0 <= index < len(block.records), f"record {index} of a block with {len(block.records)}"
    return merkle_path([encode(record) for record in block.records], index)


def proof_problem(
    proof: OfferProof,
    network: str,
    coordinators: Collection[str],
    kind: type[DataOffer] | type[DataPolicy] = DataOffer,
) -> str:
    """Say why `proof` proves no `kind` in `network` to one who trusts `coordinators`, or return ''.

    Costs a signature check for each first member, for each signer of a certificate, and two more; the
    certificates of handovers that were checked lately are not checked again.
    """
    if not is_trusted(proof.genesis, proof.adoption, network, coordinators):
        return "the pool's coordinator is not trusted here"
    problem = proof.genesis.problem(network)
    if problem:
        return f"the genesis: {problem}"
    if not isinstance(proof.record.record.body, kind):
        return f"the record is no data {'offer' if kind is DataOffer else 'policy'}"
    fault = standing_fault(proof)
    return fault.reason if fault else ""


def standing_fault(evidence: Evidence) -> Fault | None:
    """Say which part fails to show that the record stands on its genesis' chain; None if none does.

    The genesis is believed. Parts are judged in an order in which the one that was changed is the
    one that is named.
    """
    fault = _record_fault(evidence)
    if fault is not None:
        return fault
    roster = _rosters.after(evidence.genesis, evidence.handovers)
    if isinstance(roster, str):
        return Fault("handovers", roster)
    return _header_fault(evidence, roster) or _path_fault(evidence) or _votes_fault(evidence, roster)


class KnownRosters:
    """Rosters to which handovers have been found to lead, so that no certificate is checked twice.

    Holds those asked for last, at most `limit`. A handover chain is known by a hash over the chain's id and
    every byte of every handover, so one that differs anywhere is another.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rosters: dict[bytes, tuple[Member, ...]] = {}

    def after(self, genesis: Genesis, handovers: Sequence[Handover]) -> tuple[Member, ...] | str:
        """Return the roster to which `handovers` lead from `genesis`, or why they lead nowhere."""
        if not handovers:
            return genesis.invitation.members
        network, chain = genesis.invitation.network, genesis.chain
        names = _names(chain, handovers)
        known = max((n for n in range(1, len(names)) if names[n] in self._rosters), default=0)
        roster = self._rosters[names[known]] if known else genesis.invitation.members
        problem = ""
        for place in range(known, len(handovers)):
            heights = [handover.header.height for handover in handovers[max(0, place - 1) : place + 1]]
            found = roster_after(network, chain, roster, handovers[place : place + 1])
            if len(heights) == 2 and heights[0] >= heights[1]:
                found = "the handovers are out of order"
            if isinstance(found, str):
                problem = found
                break
            known, roster = place + 1, found
        if known:
            # Also what came before a bad one: it would cost as much the next time.
            self._remember(names[known], roster)
        return problem or roster

    def _remember(self, name: bytes, roster: tuple[Member, ...]) -> None:
        self._rosters.pop(name, None)
        self._rosters[name] = roster
        if len(self._rosters) > self._limit:
            del self._rosters[next(iter(self._rosters))]


def _names(chain: ChainId, handovers: Sequence[Handover]) -> list[bytes]:
    """Return what each beginning of `handovers` is known by; at 0 what the genesis alone is."""
    names = [bytes.fromhex(chain)]
    for handover in handovers:
        names.append(sha256(names[-1] + encode(handover)))
    return names


_rosters = KnownRosters(ROSTERS_KEPT)


def _record_fault(evidence: Evidence) -> Fault | None:
    genesis, record = evidence.genesis, evidence.record.record
    if record.network != genesis.invitation.network or record.chain != genesis.chain:
        return Fault("record", "the record is for another chain")
    if not evidence.record.authentic():
        return Fault("record", "the author's signature does not hold")
    return None


def _header_fault(evidence: Evidence, roster: Sequence[Member]) -> Fault | None:
    header, certificate, genesis = evidence.header, evidence.certificate, evidence.genesis
    if header.network != genesis.invitation.network or header.chain != genesis.chain:
        return Fault("header", "the block is for another chain")
    if (certificate.height, certificate.block_id) != (header.height, header.id):
        # One of the two was changed: votes that hold speak for the certificate.
        part = "certificate" if _votes_fault(evidence, roster) else "header"
        return Fault(part, "the certificate is for another block")
    if evidence.handovers and evidence.handovers[-1].header.height >= header.height:
        return Fault("handovers", "the handovers go on beyond the block")
    if header.members_hash != members_hash(roster):
        return Fault("handovers", "the handovers lead to another roster than the block's")
    return None


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


def _votes_fault(evidence: Evidence, roster: Sequence[Member]) -> Fault | None:
    genesis = evidence.genesis
    members = [member.peer for member in roster]
    problem = evidence.certificate.problem(genesis.invitation.network, genesis.chain, members)
    return Fault("certificate", f"the certificate: {problem}") if problem else None

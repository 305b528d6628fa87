"""Blocks [S3.7, S3.12], and the handovers that lead from one roster to the next [S3.6].

A block's id is the hash of its header; the header commits to the records, to who votes, and to what the
chain says. A block stands when a certificate has precommits of more than two thirds of the roster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Raw

from edgepool.model.codec import Wire, decode, encode, once
from edgepool.model.crypto import sha256
from edgepool.model.fields import ChainText, Hash, Height, MaybeHash, MaybePeer, Name, PeerText, Round, TimeMs
from edgepool.model.ids import ChainId
from edgepool.model.merkle import merkle_root
from edgepool.model.pool import Member, members_hash
from edgepool.model.record import SignedRecord
from edgepool.model.vote import Certificate

MAX_BLOCK_RECORDS = 500
MAX_BLOCK_BYTES = 1024 * 1024


class Header(Wire, frozen=True, dict=True, gc=True):
    """What is hashed of a block.

    `previous` is the id of the block before (the chain id's bytes at height 1). `members_hash` and
    `next_members_hash` are those of the rosters that vote on this height and on the next one,
    `state_root` is that of the chain's state before this block. `proposer` is the packer, `round` the
    round it was made in; `reveal` is the preimage of the proposer's beacon tip (empty once its beacon is
    used up). `time_ms` is the proposer's clock, for people.
    """

    network: Name
    chain: ChainText
    height: Height
    round: Round
    previous: Annotated[bytes, Meta(min_length=20, max_length=32)]
    members_hash: Hash
    next_members_hash: Hash
    state_root: Hash
    records_root: Hash
    records_count: Annotated[int, Meta(ge=1, le=MAX_BLOCK_RECORDS)]
    proposer: PeerText
    reveal: MaybeHash
    time_ms: TimeMs

    @once
    def id(self) -> bytes:
        """The block's id: the 32-byte SHA-256 of the encoded header."""
        return sha256(encode(self))


class Block(Wire, frozen=True, dict=True, gc=True):
    """A header and the records under it."""

    header: Header
    records: Annotated[tuple[SignedRecord, ...], Meta(min_length=1, max_length=MAX_BLOCK_RECORDS)]

    def body_problem(self) -> str:
        """Say how header and records disagree, or return ''."""
        if self.header.records_count != len(self.records):
            return "the header counts other records than the block has"
        if self.header.records_root != self._records_root:
            return "the Merkle root of the records is not the header's"
        return ""

    @once
    def _records_root(self) -> bytes:
        return records_root(self.records)


def records_root(records: Sequence[SignedRecord]) -> bytes:
    """Return the Merkle root of `records`."""
    return merkle_root([encode(record) for record in records])


class CertifiedBlock(Wire, frozen=True):
    """A block that stands, with its proof; what is stored and what is handed to those behind."""

    block: Block
    certificate: Certificate


_Stored: type[tuple[tuple[Raw, tuple[Raw, ...]], Raw]] = tuple[tuple[Raw, tuple[Raw, ...]], Raw]
"""The form of a CertifiedBlock of which only the bounds of its records matter."""


def record_ids(encoded: bytes) -> tuple[bytes, ...]:
    """Return the ids of the records of an encoded CertifiedBlock, without making anything else of it.

    It is one's own: nothing inside is checked. DecodeError if it is none.
    """
    (_, records), _ = decode(_Stored, encoded)
    return tuple(sha256(bytes(record)) for record in records)


class Handover(Wire, frozen=True):
    """How a roster became the next one: the header that names the next, certified, and who went and came."""

    header: Header
    certificate: Certificate
    outgoing: MaybePeer
    incoming: Member | None


def changed_roster(roster: Sequence[Member], outgoing: str, incoming: Member | None) -> tuple[Member, ...]:
    """Return `roster` without `outgoing` and with `incoming`: in its place, else at the end."""
    if incoming is None:
        return tuple(member for member in roster if member.peer != outgoing)
    if not outgoing:
        return (*roster, incoming)
    return tuple(incoming if member.peer == outgoing else member for member in roster)


def certified_by(
    header: Header, certificate: Certificate, network: str, chain: ChainId, roster: Sequence[Member]
) -> str:
    """Say why `header` is not certified by `roster`, whom one believes to vote there, or return ''."""
    if header.network != network or header.chain != chain:
        return "the block is for another chain"
    if (certificate.height, certificate.block_id) != (header.height, header.id):
        return "the certificate is for another block"
    if header.members_hash != members_hash(roster):
        return "the block is of another roster"
    return certificate.problem(network, chain, [member.peer for member in roster])


def roster_after(
    network: str, chain: ChainId, roster: Sequence[Member], handovers: Sequence[Handover]
) -> tuple[Member, ...] | str:
    """Return the roster to which `handovers` lead from `roster`, or why they lead nowhere.

    Costs the signature checks of a certificate for each of them.
    """
    present = tuple(roster)
    last = 0
    for handover in handovers:
        header = handover.header
        if header.height <= last:
            return "the handovers are out of order"
        problem = certified_by(header, handover.certificate, network, chain, present)
        if problem:
            return f"the handover at height {header.height}: {problem}"
        present = changed_roster(present, handover.outgoing, handover.incoming)
        named = header.next_members_hash
        if not present or named == header.members_hash or named != members_hash(present):
            return f"the handover at height {header.height} names another roster"
        last = header.height
    return present

"""Blocks, votes and certificates [S3.7, S3.12].

A block's id is the hash of its header; the header holds the Merkle root of the records. A block
stands when a certificate has precommits of more than two thirds of the members for its id.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated

from msgspec import Meta

from edgepool.model.codec import Wire, encode
from edgepool.model.crypto import Signer, sha256, verify
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.merkle import merkle_root
from edgepool.model.pool import MAX_MEMBERS
from edgepool.model.record import ChainText, Name, PeerText, Signature, SignedRecord, TimeMs
from edgepool.model.twin import Hash

MAX_BLOCK_RECORDS = 500
MAX_BLOCK_BYTES = 1024 * 1024

PREVOTE = 1
PRECOMMIT = 2
NIL = b""
"""The block id of a vote for no block."""

Height = Annotated[int, Meta(ge=1, le=2**53)]
Round = Annotated[int, Meta(ge=0, le=2**31)]
MaybeHash = Annotated[bytes, Meta(max_length=32)]


def quorum(members: int) -> int:
    """Return how many of `members` are more than two thirds."""
    return 2 * members // 3 + 1


class Header(Wire, frozen=True, dict=True, gc=True):
    """What is hashed of a block.

    `previous` is the id of the block before (the chain id's bytes at height 1). `proposer` is the
    packer, `round` the round it was made in; `reveal` is the preimage of the proposer's beacon
    tip (empty once its beacon is used up). `time_ms` is the proposer's clock, for people.
    """

    network: Name
    chain: ChainText
    height: Height
    round: Round
    previous: Annotated[bytes, Meta(min_length=20, max_length=32)]
    records_root: Hash
    records_count: Annotated[int, Meta(ge=1, le=MAX_BLOCK_RECORDS)]
    proposer: PeerText
    reveal: MaybeHash
    time_ms: TimeMs

    @cached_property
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

    @cached_property
    def _records_root(self) -> bytes:
        return records_root(self.records)


def records_root(records: Sequence[SignedRecord]) -> bytes:
    """Return the Merkle root of `records`."""
    return merkle_root([encode(record) for record in records])


class Vote(Wire, frozen=True):
    """A member's prevote (1) or precommit (2) for a block id, or for nil (empty)."""

    kind: Annotated[int, Meta(ge=PREVOTE, le=PRECOMMIT)]
    height: Height
    round: Round
    block_id: MaybeHash
    voter: PeerText
    signature: Signature

    def authentic(self, network: str, chain: ChainId) -> bool:
        """Say whether the signature is the voter's, for this network and chain."""
        return verify(
            self.voter,
            "vote",
            [network, chain, self.kind, self.height, self.round, self.block_id],
            self.signature,
        )


def sign_vote(
    signer: Signer, network: str, chain: ChainId, kind: int, height: int, round: int, block_id: bytes
) -> Vote:
    """Return `signer`'s vote."""
    signature = signer.sign("vote", [network, chain, kind, height, round, block_id])
    return Vote(kind, height, round, block_id, signer.peer, signature)


class Certificate(Wire, frozen=True):
    """Proof that a block stands: (member index, precommit signature) pairs, by rising index.

    The index is the member's place in the genesis.
    """

    height: Height
    round: Round
    block_id: Hash
    signatures: Annotated[
        tuple[tuple[Annotated[int, Meta(ge=0, lt=MAX_MEMBERS)], Signature], ...],
        Meta(min_length=1, max_length=MAX_MEMBERS),
    ]

    def problem(self, network: str, chain: ChainId, members: Sequence[PeerId]) -> str:
        """Say why this does not prove a commit by `members`, or return ''."""
        indexes = [index for index, _ in self.signatures]
        if any(a >= b for a, b in pairwise(indexes)):
            return "a member signs twice or out of order"
        if indexes[-1] >= len(members):
            return "somebody who is no member signs"
        if len(indexes) < quorum(len(members)):
            return f"{len(indexes)} of {len(members)} members sign, {quorum(len(members))} are needed"
        for index, signature in self.signatures:
            vote = Vote(PRECOMMIT, self.height, self.round, self.block_id, members[index], signature)
            if not vote.authentic(network, chain):
                return f"the signature of member {members[index]} does not hold"
        return ""


class CertifiedBlock(Wire, frozen=True):
    """A block that stands, with its proof; what is stored and what is handed to those behind."""

    block: Block
    certificate: Certificate

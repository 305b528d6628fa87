"""Votes, certificates, and the proof that somebody has voted twice [S3.7, S3.12]."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from msgspec import Meta

from edgepool.model.codec import Wire
from edgepool.model.crypto import Signer, verify
from edgepool.model.fields import Hash, Height, MaybeHash, PeerText, Round, Signature
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import MAX_MEMBERS

PROPOSAL = 0
PREVOTE = 1
PRECOMMIT = 2
NIL = b""
"""The block id of a vote for no block."""


def quorum(members: int) -> int:
    """Return how many of `members` are more than two thirds."""
    return 2 * members // 3 + 1


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

    The index is the member's place in the roster that votes on this height.
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


class Said(Wire, frozen=True):
    """One thing that a member has signed: a block id (empty for nil) and, of proposals, the valid round."""

    block_id: MaybeHash
    valid_round: Annotated[int, Meta(ge=-1, le=2**31)]
    signature: Signature


class Equivocation(Wire, tag="evidence", frozen=True):
    """Evidence: two different values signed by `member` for one (kind, height, round).

    `kind` is 0 for proposals, 1 for prevotes, 2 for precommits; votes have the valid round -1. `first`
    is the smaller one by (block id, valid round), so that the same fault has one form.
    """

    member: PeerText
    kind: Annotated[int, Meta(ge=PROPOSAL, le=PRECOMMIT)]
    height: Height
    round: Round
    first: Said
    second: Said

    def problem(self, network: str, chain: ChainId) -> str:
        """Say why this convicts nobody on that chain, or return ''; costs two signature checks."""
        if (self.first.block_id, self.first.valid_round) >= (self.second.block_id, self.second.valid_round):
            return "the two values are the same or out of order"
        for said in (self.first, self.second):
            if self.kind != PROPOSAL and said.valid_round != -1:
                return "a vote has no valid round"
            place = [network, chain, self.height, self.round, said.block_id, said.valid_round]
            if self.kind != PROPOSAL:
                place = [network, chain, self.kind, self.height, self.round, said.block_id]
            if not verify(self.member, "vote" if self.kind else "proposal", place, said.signature):
                return "a signature is not the member's"
        return ""


def equivocation(member: PeerId, kind: int, height: int, round: int, said: tuple[Said, Said]) -> Equivocation:
    """Return the evidence that `member` said both of `said`, in its one form."""
    first, second = sorted(said, key=lambda one: (one.block_id, one.valid_round))
    return Equivocation(member, kind, height, round, first, second)

"""Messages: everything that travels on a link, each a tagged array.

Votes, proposals, records, invitations and confirmations carry signatures of their own; the rest is
believed as far as the link goes, which has proved who speaks.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgepool.model.block import Block, CertifiedBlock, Handover, Header
from edgepool.model.certifying import CertificateAnswer, CertificateRequest, CertificateShown, RootFollows
from edgepool.model.codec import Wire, decode
from edgepool.model.crypto import Signer, verify
from edgepool.model.fields import (
    ChainText,
    Hash,
    Height,
    MaybeHash,
    MaybeSignature,
    PeerText,
    Percent,
    Round,
    Signature,
    Text,
    TimeMs,
)
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.lineage import Lineage
from edgepool.model.policy import DataPolicy, PolicyTerms, Purpose
from edgepool.model.pool import MAX_MEMBERS, Acceptance, Genesis, Invitation, Member
from edgepool.model.record import SignedRecord
from edgepool.model.succession import Adoption
from edgepool.model.trust import RevokePeer
from edgepool.model.twin import DataKey
from edgepool.model.vote import Certificate, Vote
from edgepool.model.whereabouts import Whereabouts

QueryId = Annotated[int, Meta(ge=0, le=2**53)]
Version = Annotated[int, Meta(ge=0, le=2**31)]
MAX_OFFERS = 16
MAX_HANDOVERS = 256
"""Changes of its roster beyond which a pool can no longer prove its records to strangers."""
MAX_SNAPSHOT_BYTES = 64 * 1024 * 1024
SNAPSHOT_PAGE_BYTES = 256 * 1024
MAX_VISITED = 256
MAX_TOLD = 32
"""So many peers' whereabouts are told in one message."""


class Records(Wire, tag="records", frozen=True):
    """Records for a chain's mempool, from their author or passed on."""

    chain: ChainText
    records: Annotated[tuple[SignedRecord, ...], Meta(min_length=1, max_length=128)]


class RecordsRefused(Wire, tag="refused", frozen=True):
    """The answer to a record that the receiver's door did not let in, to its sender."""

    chain: ChainText
    record_id: Hash
    reason: Text


class Proposal(Wire, tag="proposal", frozen=True):
    """A block proposed at its header's height in `round`.

    `valid_round` is -1 for a new block; else the block had a quorum of prevotes (`polka`) in that
    round, which travel along so that anybody can lock on it. The signature is the leader's of
    `round`, over network, chain, height, round, block id and valid round.
    """

    chain: ChainText
    round: Round
    block: Block
    valid_round: Annotated[int, Meta(ge=-1, le=2**31)]
    polka: Annotated[tuple[Vote, ...], Meta(max_length=MAX_MEMBERS)]
    signature: Signature

    def authentic(self, network: str, leader: str) -> bool:
        """Say whether the signature is `leader`'s."""
        return verify(
            leader,  # type: ignore[arg-type]
            "proposal",
            _proposal_terms(network, self.chain, self.block, self.round, self.valid_round),
            self.signature,
        )


def _proposal_terms(network: str, chain: ChainId, block: Block, round: int, valid_round: int) -> list[object]:
    return [network, chain, block.header.height, round, block.header.id, valid_round]


def sign_proposal(
    signer: Signer,
    network: str,
    chain: ChainId,
    round: int,
    block: Block,
    valid_round: int,
    polka: tuple[Vote, ...],
) -> Proposal:
    """Return a proposal signed by `signer`, the leader of `round`."""
    signature = signer.sign("proposal", _proposal_terms(network, chain, block, round, valid_round))
    return Proposal(chain, round, block, valid_round, polka, signature)


class Votes(Wire, tag="votes", frozen=True):
    """One or more votes on a chain; the sender need not be the voter."""

    chain: ChainText
    votes: Annotated[tuple[Vote, ...], Meta(min_length=1, max_length=128)]


class Polka(Wire, tag="polka", frozen=True):
    """A block with the quorum of prevotes it had in a round: frees who is stuck without it."""

    chain: ChainText
    block: Block
    votes: Annotated[tuple[Vote, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]


class Status(Wire, tag="status", frozen=True):
    """Where the sender stands on a chain: the height it works on, round, step, records waiting."""

    chain: ChainText
    height: Annotated[int, Meta(ge=1, le=2**53)]
    round: Round
    step: Annotated[int, Meta(ge=0, le=3)]
    waiting: Annotated[int, Meta(ge=0, le=2**31)]


class Blocks(Wire, tag="blocks", frozen=True):
    """Certified blocks in rising order, for somebody who is behind (or observes)."""

    chain: ChainText
    blocks: Annotated[tuple[CertifiedBlock, ...], Meta(min_length=1, max_length=32)]


class SnapshotHead(Wire, tag="snapshot", frozen=True):
    """The blocks asked for are pruned here; this is what there is instead.

    The state after `height`, encoded, has `size_bytes` bytes. `header` is that of `height` + 1, whose
    `state_root` it must make, certified by the roster to which `handovers` lead from the genesis.
    """

    chain: ChainText
    height: Height
    size_bytes: Annotated[int, Meta(ge=1, le=MAX_SNAPSHOT_BYTES)]
    header: Header
    certificate: Certificate
    handovers: Annotated[tuple[Handover, ...], Meta(max_length=MAX_HANDOVERS)]


class SnapshotRequest(Wire, tag="snapshot?", frozen=True):
    """Send page `page` (from 0) of the snapshot at `height`."""

    chain: ChainText
    height: Height
    page: Annotated[int, Meta(ge=0, lt=MAX_SNAPSHOT_BYTES // SNAPSHOT_PAGE_BYTES)]


class SnapshotPage(Wire, tag="page", frozen=True):
    """Page `page` of the snapshot at `height`: SNAPSHOT_PAGE_BYTES, the last one what is left."""

    chain: ChainText
    height: Height
    page: Annotated[int, Meta(ge=0, lt=MAX_SNAPSHOT_BYTES // SNAPSHOT_PAGE_BYTES)]
    data: Annotated[bytes, Meta(min_length=1, max_length=SNAPSHOT_PAGE_BYTES)]


class Join(Wire, tag="join?", frozen=True):
    """A member or the coordinator asks a peer to become a member of a pool that stands already.

    `number` is that of the membership change that is to admit it, `adoption` what the coordinator's present
    key has said of the pool; None if it is that of the genesis.
    """

    genesis: Genesis
    number: Annotated[int, Meta(ge=1, le=2**31)]
    adoption: Adoption | None = None


class JoinAnswer(Wire, tag="join", frozen=True):
    """The newcomer's signed yes (see record.join_terms), or an empty tip and why not."""

    chain: ChainText
    number: Annotated[int, Meta(ge=1, le=2**31)]
    member: Member
    beacon_tip: MaybeHash
    signature: MaybeSignature
    refusal: Text


class PoolInvite(Wire, tag="invite", frozen=True):
    """The coordinator asks a peer to be a member (or an observer)."""

    invitation: Invitation
    coordinator_signature: Signature


class PoolAccept(Wire, tag="accept", frozen=True):
    """A member has reached its partners and says yes."""

    invitation_hash: Hash
    acceptance: Acceptance


class PoolDecline(Wire, tag="decline", frozen=True):
    """A member says no, and which condition failed."""

    invitation_hash: Hash
    reason: Text


class PoolFormed(Wire, tag="formed", frozen=True):
    """All have accepted: the pool stands, its chain begins. `adoption` is as with Join."""

    genesis: Genesis
    adoption: Adoption | None = None


class OfferProof(Wire, frozen=True):
    """A data offer on chain (or a policy), with all that proves it to a stranger: pool, path and votes.

    `adoption` is what the coordinator's present key has said of the pool; None if it is that of the genesis.
    """

    genesis: Genesis
    handovers: Annotated[tuple[Handover, ...], Meta(max_length=MAX_HANDOVERS)]
    header: Header
    certificate: Certificate
    record: SignedRecord
    index: Annotated[int, Meta(ge=0, le=2**20)]
    path: Annotated[tuple[Annotated[bytes, Meta(max_length=32)], ...], Meta(max_length=20)]
    adoption: Adoption | None = None


class Origin(Wire, frozen=True):
    """What a peer keeps of data that was handed to it under a policy: the key, and the policy's proof.

    The policy is its author's, who owns the data, and the peer serves the data on under it.
    """

    key: DataKey
    proof: OfferProof

    @property
    def owner(self) -> PeerId:
        """Whose the data is."""
        return self.proof.record.record.author

    @property
    def chain(self) -> ChainId:
        """Where the policy stands."""
        return self.proof.record.record.chain

    @property
    def terms(self) -> PolicyTerms | None:
        """The policy's conditions."""
        body = self.proof.record.record.body
        return body.terms if isinstance(body, DataPolicy) else None


class Query(Wire, tag="query", frozen=True):
    """Who has this? [S3.14] Passed outward at most `hops_left` times, to no chain twice.

    `version` 0 asks for the newest. `visited` are chains already asked; `budget_ms` is how long
    the asker still waits, by its own clock.
    """

    query: QueryId
    key: DataKey
    version: Version
    hops_left: Annotated[int, Meta(ge=0, le=8)]
    budget_ms: Annotated[int, Meta(ge=0, le=60_000)]
    visited: Annotated[tuple[ChainText, ...], Meta(max_length=MAX_VISITED)]


class QueryAnswer(Wire, tag="answer", frozen=True):
    """The offers found (perhaps none), and which chains were looked at."""

    query: QueryId
    offers: Annotated[tuple[OfferProof, ...], Meta(max_length=MAX_OFFERS)]
    visited: Annotated[tuple[ChainText, ...], Meta(max_length=MAX_VISITED)]


class LoadQuery(Wire, tag="load?", frozen=True):
    """How busy are you, do you still hold this, and may I have it? [S3.13, network status query]"""

    query: QueryId
    key: DataKey
    root: Hash
    purpose: Purpose


class LoadReport(Wire, tag="load", frozen=True):
    """How busy the sender is: its uplink and its processor, in percent; whether it holds the data.

    `refusal` is the condition by which the asker may not have it, '' if it may, as far as is known now.
    """

    query: QueryId
    root: Hash
    holds: bool
    network_load_percent: Percent
    processing_load_percent: Percent
    refusal: Text


class ConfirmRequest(Wire, tag="confirm?", frozen=True):
    """The requester signs the terms of a transfer and asks the holder to countersign."""

    query: QueryId
    key: DataKey
    root: Hash
    requester: PeerText
    valid_until_ms: TimeMs
    requester_signature: Signature
    purpose: Purpose


class ConfirmAnswer(Wire, tag="confirm", frozen=True):
    """The holder's countersigned record (which it also puts on chain), or why it refuses.

    `policy` proves the owner's policy, under which the requester may serve the data on; None without one.
    """

    query: QueryId
    root: Hash
    record: SignedRecord | None
    refusal: Text
    policy: OfferProof | None


class Hello(Wire, tag="hello", frozen=True):
    """First word on a link: where the sender can be dialled. Who it is, its certificate has said."""

    addresses: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=8)]


class Reachable(Wire, tag="reachable", frozen=True):
    """Where peers can be dialled: to a coordinator, the sender itself; from one, members of common pools."""

    records: Annotated[tuple[Whereabouts, ...], Meta(min_length=1, max_length=MAX_TOLD)]


class Ping(Wire, tag="ping", frozen=True):
    """Keeps a link known to be alive, and measures it: the other side answers with a Pong."""

    count: Annotated[int, Meta(ge=0, le=2**53)]


class Pong(Wire, tag="pong", frozen=True):
    """The answer to the Ping with the same count."""

    count: Annotated[int, Meta(ge=0, le=2**53)]


Message = (
    Records
    | RecordsRefused
    | Proposal
    | Votes
    | Polka
    | Status
    | Blocks
    | SnapshotHead
    | SnapshotRequest
    | SnapshotPage
    | Join
    | JoinAnswer
    | PoolInvite
    | PoolAccept
    | PoolDecline
    | PoolFormed
    | Query
    | QueryAnswer
    | LoadQuery
    | LoadReport
    | ConfirmRequest
    | ConfirmAnswer
    | CertificateRequest
    | CertificateAnswer
    | CertificateShown
    | RootFollows
    | RevokePeer
    | Hello
    | Lineage
    | Reachable
    | Ping
    | Pong
)
"""Everything that a link carries."""

_UNION: type[Message] = Message  # type: ignore[assignment]


def decode_message(frame: bytes | memoryview) -> Message:
    """Return the message in `frame`; DecodeError if it is none."""
    return decode(_UNION, frame)

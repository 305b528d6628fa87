"""Records: what a chain holds [S3.9], with those that confirm a transfer [S3.13] and govern the pool [S3.6].

`task` is the task number that the coordinator gave; `operation_number` counts the steps of a route as
shop floors do: 10, 20, 30.
"""

from __future__ import annotations

from typing import Annotated, get_args

from msgspec import Meta

from edgepool.model.codec import Wire, encode, once
from edgepool.model.crypto import HASH_BYTES, Signer, sha256, verify
from edgepool.model.fields import (
    ChainText,
    Hash,
    KnownHeight,
    MaybeHash,
    MaybePeer,
    MaybeSignature,
    Minutes,
    Name,
    OperationNumber,
    PeerText,
    Percent,
    Signature,
    Signed64,
    SizeBytes,
    Text,
    TimeMs,
)
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.policy import DataPolicy, Purpose
from edgepool.model.pool import Member
from edgepool.model.succession import SUCCESSION_DOMAIN, KeySuccession, succession_terms
from edgepool.model.trust import TrustChange
from edgepool.model.twin import MAX_CHUNKS, DataKey
from edgepool.model.vote import Certificate, Equivocation

MAX_RECORD_BYTES = 4096
MAX_PAYLOAD_BYTES = 2048
MAX_SHARES = 16


class MachiningRequirement(Wire, tag="requirement", frozen=True):
    """One step of a task, given to one station: Table 3's (task time, part, operation, completion).

    `step` counts the machined steps of the task from 0 to `steps` - 1; `outside_minutes` is what
    an outside operation (heat treatment) takes before this step; it holds no station.
    """

    task: Name
    part: Name
    operation_number: OperationNumber
    operation: Name
    station: PeerText
    step: Annotated[int, Meta(ge=0, le=255)]
    steps: Annotated[int, Meta(ge=1, le=256)]
    process_minutes: Minutes
    outside_minutes: Minutes
    planned_completion_ms: TimeMs


class MachiningProcedure(Wire, tag="procedure", frozen=True):
    """A station starts a step: Table 3's (feature, operation, parameters, expected completion)."""

    task: Name
    operation_number: OperationNumber
    feature: Name
    operation: Name
    parameters: Annotated[tuple[Signed64, ...], Meta(max_length=16)]
    expected_completion_ms: TimeMs


class MachiningCompletion(Wire, tag="completion", frozen=True):
    """A station has ended a step: Table 3's (process number, completion time)."""

    task: Name
    operation_number: OperationNumber
    process: Name
    completion_ms: TimeMs


class QualityInspection(Wire, tag="inspection", frozen=True):
    """Measured values of a feature: Table 3's (feature number, feature kind, values); micrometres."""

    task: Name
    operation_number: OperationNumber
    feature: Name
    feature_kind: Name
    values_um: Annotated[tuple[Signed64, ...], Meta(max_length=64)]
    accepted: bool


class DataDemand(Wire, tag="demand", frozen=True):
    """Somebody needs data: Table 3's (part, main features, composition, which data).

    `key` is the part and the kind of data; `version` 0 asks for the newest.
    """

    key: DataKey
    version: Annotated[int, Meta(ge=0, le=2**31)]
    features: Text
    composition: Text


class DataOffer(Wire, tag="offer", frozen=True):
    """Somebody has data: Table 3's (node location, transmission state such as 'free 4 %').

    The author is the holder. `root` and `size_bytes` are those of the data's manifest: the pointer
    that proves what the data is, while the data stays with its holder [S3.8]. A higher `version`
    of the same key replaces a lower one.
    """

    key: DataKey
    version: Annotated[int, Meta(ge=1, le=2**31)]
    root: Hash
    size_bytes: SizeBytes
    address: Annotated[str, Meta(max_length=256)]
    free_percent: Percent


class TransmissionConfirmation(Wire, tag="confirmation", frozen=True):
    """Both sides confirm a transfer [S3.13]: the author is the holder, the requester signs inside.

    The holder serves exactly `root`, to exactly `requester`, until `valid_until_ms`, for the `purpose` that
    the requester has stated ('' for none).
    """

    key: DataKey
    root: Hash
    size_bytes: SizeBytes
    requester: PeerText
    holder: PeerText
    valid_until_ms: TimeMs
    requester_signature: Signature
    purpose: Purpose = ""


class Share(Wire, frozen=True):
    """How many bytes of data came from one holder."""

    holder: PeerText
    size_bytes: SizeBytes


class TransferReceipt(Wire, tag="receipt", frozen=True):
    """The author has got data, whole and checked [S3.15]: what, from whom, and how long it took.

    `shares` stand in the order of their holders. They make up less than `size_bytes` if an earlier attempt
    had left a part.
    """

    key: DataKey
    version: Annotated[int, Meta(ge=1, le=2**31)]
    root: Hash
    size_bytes: SizeBytes
    shares: Annotated[tuple[Share, ...], Meta(max_length=MAX_SHARES)]
    duration_ms: TimeMs


class Complaint(Wire, tag="complaint", frozen=True):
    """The author alleges that `holder` sent a chunk that is not what the manifest under `root` says.

    Nobody else can check that, so nothing follows from it but what people make of it. `confirmation` is the
    id of the record by which the holder agreed to send.
    """

    key: DataKey
    root: Hash
    chunk: Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]
    holder: PeerText
    confirmation: Hash


class MembershipChange(Wire, tag="membership", frozen=True):
    """The author approves a change of who votes [S3.6]: admit, exclude, or replace in place.

    `outgoing` ('' for nobody) leaves, `incoming` (or None) comes; at least one of them is there.
    `number` is 1 + the changes decided so far on this chain. The change is decided when more than
    two thirds of the roster have the same body on the chain, and in force two heights later.
    `incoming_signature` (domain 'join', see `join_terms`) is the newcomer's, with its first beacon tip;
    both are empty when nobody comes. `reason` is for people.

    With a `succession` the newcomer is the outgoing member itself under a new key: it takes over all that the
    old key had on the chain. Both keys sign the same terms (domain 'succession', see `succession_terms`), the
    old one in `succession` and the new one in `incoming_signature`, in place of 'join'.
    """

    number: Annotated[int, Meta(ge=1, le=2**31)]
    outgoing: MaybePeer
    incoming: Member | None
    beacon_tip: MaybeHash
    incoming_signature: MaybeSignature
    reason: Text
    succession: MaybeSignature = b""

    @property
    def heir(self) -> PeerId:
        """The new key of the outgoing member; '' if this is no succession."""
        return self.incoming.peer if self.succession and self.incoming is not None else PeerId("")

    def terms_problem(self, network: str, chain: ChainId) -> str:
        """Say why this is no well-formed change of that chain, or return ''; costs two signature checks."""
        if self.incoming is None:
            if not self.outgoing:
                return "the change names nobody"
            if self.succession:
                return "somebody is to be succeeded by nobody"
            return "nobody comes, yet somebody signs" if self.beacon_tip or self.incoming_signature else ""
        if self.incoming.peer == self.outgoing:
            return "the same peer leaves and comes"
        newcomer, signature = self.incoming.peer, self.incoming_signature
        if len(self.beacon_tip) != HASH_BYTES:
            return "the newcomer's signature does not hold"
        if self.succession:
            return self._succession_problem(network, chain, self.incoming)
        terms = join_terms(network, chain, self.number, self.incoming, self.beacon_tip)
        return "" if verify(newcomer, "join", terms, signature) else "the newcomer's signature does not hold"

    def _succession_problem(self, network: str, chain: ChainId, incoming: Member) -> str:
        if not self.outgoing:
            return "nobody is succeeded"
        terms = succession_terms(network, chain, self.number, self.outgoing, incoming, self.beacon_tip)
        signed = ((self.outgoing, self.succession, "old"), (incoming.peer, self.incoming_signature, "new"))
        for peer, signature, which in signed:
            if not verify(peer, SUCCESSION_DOMAIN, terms, signature):
                return f"the {which} key has not signed the succession"
        return ""


class ChainAnchor(Wire, tag="anchor", frozen=True):
    """The head of a sub-chain, kept on a main chain, so that a whole pool cannot rewrite its past.

    The certificate is by the sub-pool's roster of that height; the main chain orders and keeps it,
    whoever verifies the sub-chain checks it.
    """

    sub_chain: ChainText
    certificate: Certificate


class Statement(Wire, tag="statement", frozen=True):
    """What a contract of the users' own judges: `payload` means what that contract says it means."""

    contract: Name
    version: Annotated[int, Meta(ge=1, le=65535)]
    payload: Annotated[bytes, Meta(max_length=MAX_PAYLOAD_BYTES)]


Body = (
    MachiningRequirement
    | MachiningProcedure
    | MachiningCompletion
    | QualityInspection
    | DataDemand
    | DataOffer
    | TransmissionConfirmation
    | TransferReceipt
    | Complaint
    | MembershipChange
    | TrustChange
    | Equivocation
    | ChainAnchor
    | Statement
    | DataPolicy
    | KeySuccession
)
"""What a record can say."""

RECORD_KINDS = (
    "requirement",
    "procedure",
    "completion",
    "inspection",
    "demand",
    "offer",
    "confirmation",
    "receipt",
    "complaint",
    "membership",
    "trust",
    "evidence",
    "anchor",
    "statement",
    "policy",
    "succession",
)


class Record(Wire, frozen=True):
    """A statement by `author` on one chain of one network. `nonce` makes equal statements differ.

    `since` is the chain's height as the author knew it when it signed; the record can stand only while
    that is not below the chain's horizon, so nobody needs to remember old ids to tell a replay.
    """

    network: Name
    chain: ChainText
    author: PeerText
    time_ms: TimeMs
    nonce: Annotated[int, Meta(ge=0, le=2**53)]
    since: KnownHeight
    body: Body


class SignedRecord(Wire, frozen=True, dict=True, gc=True):
    """A record with its author's signature over it. Its `id` is the hash of the whole."""

    record: Record
    signature: Signature

    @once
    def id(self) -> bytes:
        """The 32-byte SHA-256 of the encoded signed record."""
        return sha256(encode(self))

    @once
    def size_bytes(self) -> int:
        """How many bytes the encoded signed record has."""
        return len(encode(self))

    def authentic(self) -> bool:
        """Say whether the signature is the author's over this record; checked once."""
        return self._authentic

    @once
    def _authentic(self) -> bool:
        return verify(self.record.author, "record", [self.record], self.signature)


def sign_record(
    signer: Signer, network: str, chain: ChainId, body: Body, time_ms: int, nonce: int, since: int = 0
) -> SignedRecord:
    """Return `body` as a record of `signer` on `chain`, signed at the chain's height `since`."""
    record = Record(network, chain, signer.peer, time_ms, nonce, since, body)
    return SignedRecord(record, signer.sign("record", [record]))


def confirmation_terms(
    network: str,
    key: DataKey,
    root: bytes,
    requester: PeerId,
    holder: PeerId,
    valid_until_ms: int,
    purpose: str = "",
) -> list[object]:
    """Return what the requester signs (domain 'confirmation') before the holder countersigns."""
    return [network, key, root, requester, holder, valid_until_ms, purpose]


def join_terms(
    network: str, chain: ChainId, number: int, incoming: Member, beacon_tip: bytes
) -> list[object]:
    """Return what a newcomer signs (domain 'join') before it can be admitted to a standing pool."""
    return [network, chain, number, incoming, beacon_tip]


def kind_of(body: Body) -> str:
    """Return the short name of a body's kind, one of RECORD_KINDS."""
    return _KINDS[type(body)]


_KINDS = {kind: str(kind.__struct_config__.tag) for kind in get_args(Body)}

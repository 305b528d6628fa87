"""Records: what a chain holds [S3.9], and the one extra kind that confirms a transfer [S3.13].

Times are milliseconds since 1970 UTC, durations whole minutes, lengths micrometres: there are no
floats on chain, so that every member computes the same. `task` is the task number that the
coordinator gave; `operation_number` counts the steps of a route as shop floors do: 10, 20, 30.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

from msgspec import Meta

from edgepool.model.codec import Wire, encode
from edgepool.model.crypto import SIGNATURE_BYTES, Signer, sha256, verify
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.twin import DataKey, Hash

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Text = Annotated[str, Meta(max_length=256)]
PeerText = Annotated[PeerId, Meta(min_length=46, max_length=64)]
ChainText = Annotated[ChainId, Meta(min_length=40, max_length=40)]
TimeMs = Annotated[int, Meta(ge=0, le=2**53)]
Minutes = Annotated[int, Meta(ge=0, le=10_000_000)]
OperationNumber = Annotated[int, Meta(ge=0, le=100_000)]
SizeBytes = Annotated[int, Meta(ge=0, le=2**50)]
Percent = Annotated[int, Meta(ge=0, le=100)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Signed64 = Annotated[int, Meta(ge=-(2**53), le=2**53)]

MAX_RECORD_BYTES = 4096


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

    The holder serves exactly `root`, to exactly `requester`, until `valid_until_ms`.
    """

    key: DataKey
    root: Hash
    size_bytes: SizeBytes
    requester: PeerText
    holder: PeerText
    valid_until_ms: TimeMs
    requester_signature: Signature


Body = (
    MachiningRequirement
    | MachiningProcedure
    | MachiningCompletion
    | QualityInspection
    | DataDemand
    | DataOffer
    | TransmissionConfirmation
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
)


class Record(Wire, frozen=True):
    """A statement by `author` on one chain of one network. `nonce` makes equal statements differ."""

    network: Name
    chain: ChainText
    author: PeerText
    time_ms: TimeMs
    nonce: Annotated[int, Meta(ge=0, le=2**53)]
    body: Body


class SignedRecord(Wire, frozen=True, dict=True, gc=True):
    """A record with its author's signature over it. Its `id` is the hash of the whole."""

    record: Record
    signature: Signature

    @cached_property
    def id(self) -> bytes:
        """The 32-byte SHA-256 of the encoded signed record."""
        return sha256(encode(self))

    def authentic(self) -> bool:
        """Say whether the signature is the author's over this record."""
        return verify(self.record.author, "record", [self.record], self.signature)


def sign_record(
    signer: Signer, network: str, chain: ChainId, body: Body, time_ms: int, nonce: int
) -> SignedRecord:
    """Return `body` as a record of `signer` on `chain`, signed."""
    record = Record(network, chain, signer.peer, time_ms, nonce, body)
    return SignedRecord(record, signer.sign("record", [record]))


def confirmation_terms(
    network: str,
    key: DataKey,
    root: bytes,
    requester: PeerId,
    holder: PeerId,
    valid_until_ms: int,
) -> list[object]:
    """Return what the requester signs (domain 'confirmation') before the holder countersigns."""
    return [network, key, root, requester, holder, valid_until_ms]


def kind_of(body: Body) -> str:
    """Return the short name of a body's kind, one of RECORD_KINDS."""
    tag = body.__struct_config__.tag
    assert isinstance(tag, str)
    return tag

"""Proof files: a record with all that shows it to stand, to somebody with nothing but the pool's genesis.

A proof file is the 7 bytes 'EPPROOF', one byte version (2), and the encoded array of six byte strings, each
the encoding of one part: record, path (`[index, [sibling, ...]]`), header, certificate, handovers (those
from the genesis to the record's height), genesis. Parts are encoded one by one so that damage is told by
the part that it is in. A verifier knows the pool by its chain id, which is the hash of the genesis: the
genesis inside is believed only if it hashes to that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from msgspec import Meta

from edgepool.core.ledger.proof import Fault, handovers_before, keep_record, standing_fault
from edgepool.core.machine import KeptRecord
from edgepool.errors import DecodeError
from edgepool.model.block import MAX_BLOCK_RECORDS, CertifiedBlock, Handover, Header
from edgepool.model.codec import Wire, decode, encode
from edgepool.model.crypto import verify
from edgepool.model.ids import ChainId
from edgepool.model.message import MAX_HANDOVERS
from edgepool.model.pool import Genesis
from edgepool.model.record import MAX_RECORD_BYTES, SignedRecord
from edgepool.model.vote import Certificate

MAGIC = b"EPPROOF"
VERSION = 2
MAX_PROOF_BYTES = 2 * 1024 * 1024
"""No larger proof is read; most have 2 to 6 kB, members and votes, and 1 to 3 for each handover."""
PARTS = ("record", "path", "header", "certificate", "handovers", "genesis", "members")
"""What a fault can name; the members are the part of the genesis that each of them signed."""
FRAME = "frame"
"""The name of what holds the parts together, for a file in which they cannot be told apart."""

_T = TypeVar("_T")
_Handovers: type[tuple[Handover, ...]] = Annotated[  # type: ignore[assignment]
    tuple[Handover, ...], Meta(max_length=MAX_HANDOVERS)
]


class _Path(Wire, frozen=True):
    index: Annotated[int, Meta(ge=0, lt=MAX_BLOCK_RECORDS)]
    siblings: Annotated[tuple[Annotated[bytes, Meta(max_length=32)], ...], Meta(max_length=20)]


class _Parts(Wire, frozen=True):
    record: bytes
    path: bytes
    header: bytes
    certificate: bytes
    handovers: bytes
    genesis: bytes


@dataclass(frozen=True, slots=True)
class RecordProof:
    """A record of any kind with the evidence that it stands (see `Evidence`)."""

    genesis: Genesis
    handovers: tuple[Handover, ...]
    header: Header
    certificate: Certificate
    record: SignedRecord
    index: int
    path: tuple[bytes, ...]


def prove_record(
    genesis: Genesis, handovers: Sequence[Handover], certified: CertifiedBlock, index: int
) -> RecordProof | None:
    """Return the proof of the record at `index` (from 0) of a block of this genesis' chain.

    `handovers` are those of the chain, at least up to that block. None if there are more than a proof may
    hold (MAX_HANDOVERS). AssertionError if there is no such record.
    """
    return prove_kept_record(genesis, handovers, keep_record(certified, index))


def prove_kept_record(
    genesis: Genesis, handovers: Sequence[Handover], kept: KeptRecord
) -> RecordProof | None:
    """Return the proof of a record that was kept of a pruned block; see `prove_record`."""
    before = handovers_before(handovers, kept.header.height)
    if len(before) > MAX_HANDOVERS:
        return None
    return RecordProof(genesis, before, kept.header, kept.certificate, kept.record, kept.index, kept.path)


def write_proof(proof: RecordProof) -> bytes:
    """Return the proof as a file holds it."""
    parts = _Parts(
        encode(proof.record),
        encode(_Path(proof.index, proof.path)),
        encode(proof.header),
        encode(proof.certificate),
        encode(proof.handovers),
        encode(proof.genesis),
    )
    return MAGIC + bytes([VERSION]) + encode(parts)


def read_proof(data: bytes) -> RecordProof | Fault:
    """Return the proof that a file holds, or the part of it that cannot be read.

    Nothing of it is believed yet. DecodeError, in one clause, if `data` is no proof of this version.
    """
    if not data.startswith(MAGIC):
        raise DecodeError("it does not begin like a proof of edgepool")
    if len(data) <= len(MAGIC) or data[len(MAGIC)] != VERSION:
        found = str(data[len(MAGIC)]) if len(data) > len(MAGIC) else "missing"
        raise DecodeError(f"its version is {found}, this edgepool reads version {VERSION}")
    try:
        parts = decode(_Parts, data[len(MAGIC) + 1 :], MAX_PROOF_BYTES)
    except DecodeError as error:
        return Fault(FRAME, f"its parts cannot be told apart ({error})")
    try:
        path = _read(_Path, "path", parts.path)
        return RecordProof(
            _read(Genesis, "genesis", parts.genesis),
            _read(_Handovers, "handovers", parts.handovers),
            _read(Header, "header", parts.header),
            _read(Certificate, "certificate", parts.certificate),
            _read(SignedRecord, "record", parts.record, MAX_RECORD_BYTES),
            path.index,
            path.siblings,
        )
    except _DamagedPart as damage:
        return damage.fault


def record_proof_fault(proof: RecordProof, chains: Collection[ChainId]) -> Fault | None:
    """Say which part of `proof` does not hold for one who trusts `chains`; None if all do.

    Costs a signature check for each first member, for each signer of a certificate, and two more.
    """
    genesis = proof.genesis
    problem = genesis.problem(genesis.invitation.network)
    if problem:
        # What the coordinator signed names the members; the rest is what the members signed.
        invited = verify(
            genesis.invitation.coordinator,
            "invite",
            [genesis.invitation.hash],
            genesis.coordinator_signature,
        )
        return Fault("members" if invited else "genesis", f"the genesis: {problem}")
    if genesis.chain not in chains:
        return Fault(
            "genesis", f"the genesis is that of chain {genesis.chain}, which was not given as trusted"
        )
    return standing_fault(proof)


class _DamagedPart(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


def _read(kind: type[_T], part: str, data: bytes, max_bytes: int = MAX_PROOF_BYTES) -> _T:
    try:
        return decode(kind, data, max_bytes)
    except DecodeError as error:
        are = "are" if part.endswith("s") else "is"
        raise _DamagedPart(Fault(part, f"the {part} {are} damaged ({error})")) from None

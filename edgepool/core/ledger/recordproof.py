"""Proof files: a record with all that shows it to stand, to somebody with nothing but the pool's genesis.

A proof file is the 7 bytes 'EPPROOF', one byte version (1), and the encoded array of five byte strings,
each the encoding of one part: record, path (`[index, [sibling, ...]]`), header, certificate, genesis.
Parts are encoded one by one so that damage is told by the part that it is in. A verifier knows the
pool by its chain id, which is the hash of the genesis: the genesis inside is believed only if it
hashes to that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, TypeVar

from msgspec import Meta

from edgepool.core.ledger.proof import Fault, path_in, standing_fault
from edgepool.errors import DecodeError
from edgepool.model.block import MAX_BLOCK_RECORDS, Certificate, CertifiedBlock, Header
from edgepool.model.codec import Wire, decode, encode
from edgepool.model.crypto import verify
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis
from edgepool.model.record import MAX_RECORD_BYTES, SignedRecord

MAGIC = b"EPPROOF"
VERSION = 1
MAX_PROOF_BYTES = 512 * 1024
"""No proof of this version is larger; most have 2 to 6 kB, nearly all of it members and votes."""
PARTS = ("record", "path", "header", "certificate", "genesis", "members")
"""What a fault can name; the members are the part of the genesis that each of them signed."""
FRAME = "frame"
"""The name of what holds the parts together, for a file in which they cannot be told apart."""

_T = TypeVar("_T")


class _Path(Wire, frozen=True):
    index: Annotated[int, Meta(ge=0, lt=MAX_BLOCK_RECORDS)]
    siblings: Annotated[tuple[Annotated[bytes, Meta(max_length=32)], ...], Meta(max_length=20)]


class _Parts(Wire, frozen=True):
    record: bytes
    path: bytes
    header: bytes
    certificate: bytes
    genesis: bytes


@dataclass(frozen=True, slots=True)
class RecordProof:
    """A record of any kind with the evidence that it stands (see `Evidence`)."""

    genesis: Genesis
    header: Header
    certificate: Certificate
    record: SignedRecord
    index: int
    path: tuple[bytes, ...]


def prove_record(genesis: Genesis, certified: CertifiedBlock, index: int) -> RecordProof:
    """Return the proof of the record at `index` (from 0) of a block of this genesis' chain.

    AssertionError if there is no such record.
    """
    block = certified.block
    path = path_in(block, index)
    return RecordProof(genesis, block.header, certified.certificate, block.records[index], index, path)


def write_proof(proof: RecordProof) -> bytes:
    """Return the proof as a file holds it."""
    parts = _Parts(
        encode(proof.record),
        encode(_Path(proof.index, proof.path)),
        encode(proof.header),
        encode(proof.certificate),
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

    Costs a signature check for each member, for each signer of the certificate, and two more.
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
        raise _DamagedPart(Fault(part, f"the {part} is damaged ({error})")) from None

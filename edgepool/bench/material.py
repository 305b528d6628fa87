"""What is measured on: a pool of made-up machines with its genesis, and records as shop floors write them.

Keys come from fixed seeds, so that every machine measures on the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from edgepool.model.block import Block, CertifiedBlock, Header, records_root
from edgepool.model.crypto import Signer, sha256, verify
from edgepool.model.pool import Genesis, Invitation, Member, accept, members_hash, sign_invitation
from edgepool.model.record import (
    Body,
    DataOffer,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    QualityInspection,
    SignedRecord,
    sign_record,
)
from edgepool.model.twin import DataKey
from edgepool.model.vote import PRECOMMIT, Certificate, quorum, sign_vote

NETWORK = "bench"
TIME_MS = 1_750_000_000_000
_ADDRESS = "/ip4/192.168.17.204/tcp/40001"
_ADDRESSES = " ".join([_ADDRESS] * 5)


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool whose first member is its coordinator; `signers` stand in the order of its members."""

    signers: tuple[Signer, ...]
    genesis: Genesis


def make_pool(members: int, tips: Sequence[bytes] = ()) -> Pool:
    """Return a pool of made-up machines; `tips` are their beacons', if somebody is to reveal them."""
    signers = tuple(Signer(sha256(b"edgepool bench %d" % number)) for number in range(members))
    people = tuple(
        Member(signer.peer, f"machine-{number}", "Milling", (_ADDRESS,))
        for number, signer in enumerate(signers)
    )
    invitation = Invitation(NETWORK, "cell", "fixed", signers[0].peer, people, (), (), TIME_MS, 1)
    acceptances = tuple(
        accept(signer, invitation, tips[number] if tips else sha256(signer.peer.encode()))
        for number, signer in enumerate(signers)
    )
    return Pool(signers, Genesis(invitation, sign_invitation(signers[0], invitation), acceptances))


def make_records(pool: Pool, tasks: int) -> list[SignedRecord]:
    """Return the five records of each of `tasks` one-step tasks, in an order that may stand."""
    records = []
    for number in range(tasks):
        station = pool.signers[number % len(pool.signers)]
        for place, body in enumerate(task_bodies(f"T-{number:05}", station)):
            author = pool.signers[0] if place == 0 else station
            chain = pool.genesis.chain
            records.append(sign_record(author, NETWORK, chain, body, TIME_MS + number, 5 * number + place))
    return records


def check_signature(signed: SignedRecord) -> bool:
    """Check the signature of a record, every time: the record itself remembers the verdict."""
    return verify(signed.record.author, "record", [signed.record], signed.signature)


def make_block(pool: Pool, height: int, previous: bytes, records: Sequence[SignedRecord]) -> CertifiedBlock:
    """Return a block of `records` with a certificate; it fits a state at the height before."""
    chain = pool.genesis.chain
    header = Header(
        NETWORK,
        chain,
        height,
        0,
        previous,
        *(members_hash(pool.genesis.invitation.members),) * 2,
        bytes(32),
        records_root(records),
        len(records),
        pool.signers[0].peer,
        sha256(previous),
        TIME_MS,
    )
    signatures = tuple(
        (index, sign_vote(signer, NETWORK, chain, PRECOMMIT, height, 0, header.id).signature)
        for index, signer in enumerate(pool.signers[: quorum(len(pool.signers))])
    )
    return CertifiedBlock(Block(header, tuple(records)), Certificate(height, 0, header.id, signatures))


def offer(part: str, version: int) -> DataOffer:
    """Return the offer of a part's surface measurements; signed, it has about 290 bytes."""
    root = sha256(b"%s %d" % (part.encode(), version))
    return DataOffer(DataKey(part, "surface"), version, root, 48_000_000, _ADDRESS, 82)


def wide_offer(part: str) -> DataOffer:
    """Return an offer that has about 400 bytes once it is signed: its holder names many addresses."""
    return structs.replace(offer(part, 1), address=_ADDRESSES)


def task_bodies(task: str, station: Signer) -> tuple[Body, ...]:
    """Return what is written of a task of one step at `station`: requirement to offer, in order."""
    part = f"PTVA10212-{task}"
    return (
        MachiningRequirement(task, part, 10, "rough milling", station.peer, 0, 1, 95, 0, TIME_MS + 7_200_000),
        MachiningProcedure(task, 10, "pocket 3", "rough milling", (8_000, 1_200, 350), TIME_MS + 7_200_000),
        QualityInspection(task, 10, "pocket 3", "depth", (12_004, 12_001, 11_998, 12_007), True),
        MachiningCompletion(task, 10, "rough milling", TIME_MS + 7_100_000),
        offer(part, 1),
    )

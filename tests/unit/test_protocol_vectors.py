"""The worked values in docs/protocol/consensus.md are what this implementation makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepool.core.consensus.lottery import leader_order, lottery_seed, weights
from edgepool.model.beacon import BeaconChain, next_beacon
from edgepool.model.block import Handover, Header, records_root, roster_after
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer, sha256, signed_bytes
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.merkle import merkle_root
from edgepool.model.pool import Member, members_hash
from edgepool.model.record import DataDemand, join_terms, sign_record
from edgepool.model.twin import DataKey
from edgepool.model.vote import PRECOMMIT, Certificate, sign_vote

TEXT = (Path(__file__).parents[2] / "docs" / "protocol" / "consensus.md").read_text(encoding="utf-8")
CHAIN = ChainId("0123456789abcdef0123456789abcdef01234567")
SIGNER = Signer(bytes(32))
RECORD = sign_record(SIGNER, "works", CHAIN, DataDemand(DataKey("P", "model"), 0, "", ""), 1000, 7)
ROSTER = (Member(SIGNER.peer, "m", "mill", ("/ip4/10.0.0.1/tcp/4001",)),)
OTHER = Member(Signer(bytes(31) + b"\1").peer, "n", "saw", ())
TIP = BeaconChain(bytes(32), 4).tip
HEADER = Header(
    *("works", CHAIN, 1, 0, bytes.fromhex(CHAIN), members_hash(ROSTER), members_hash((*ROSTER, OTHER))),
    *(bytes(32), records_root([RECORD]), 1, SIGNER.peer, BeaconChain(bytes(32), 4).reveal(0), 2000),
)
VOTE = sign_vote(SIGNER, "works", CHAIN, PRECOMMIT, 1, 0, HEADER.id)
CERTIFICATE = Certificate(1, 0, HEADER.id, ((0, VOTE.signature),))
HANDOVER = Handover(HEADER, CERTIFICATE, PeerId(""), OTHER)
STATEMENT = ["works", CHAIN, PRECOMMIT, 1, 0, HEADER.id]
SEED = lottery_seed("works", CHAIN, 1, bytes(32))
NAMES = ("a", "b", "c", "d")

VECTORS = {
    "peer id": SIGNER.peer,
    "record": encode(RECORD).hex(),
    "record id": RECORD.id.hex(),
    "Merkle root of that record": records_root([RECORD]).hex(),
    "Merkle root of 'a', 'b', 'c'": merkle_root([b"a", b"b", b"c"]).hex(),
    "beacon tip, length 4": TIP.hex(),
    "first reveal": BeaconChain(bytes(32), 4).reveal(0).hex(),
    "hash of that roster": members_hash(ROSTER).hex(),
    "hash of the next": members_hash((*ROSTER, OTHER)).hex(),
    "header": encode(HEADER).hex(),
    "block id": HEADER.id.hex(),
    "what a precommit signs": signed_bytes("vote", STATEMENT).hex(),
    "its signature": VOTE.signature.hex(),
    "handover, without its header": encode(HANDOVER)[1 + len(encode(HEADER)) :].hex(),
    "SHA-256 of the handover": sha256(encode(HANDOVER)).hex(),
    "what the newcomer signed": signed_bytes("join", join_terms("works", CHAIN, 1, OTHER, TIP)).hex(),
    "next beacon": next_beacon(bytes(32), HEADER.reveal).hex(),
    "lottery seed": SEED.hex(),
    "order, equal weights": " ".join(leader_order(SEED, weights({}, NAMES))),  # type: ignore[arg-type]
    "weights": " ".join(map(str, weights({"a": 10, "b": 80, "d": 10}, NAMES).values())),  # type: ignore[dict-item,arg-type]
    "order, those weights": " ".join(leader_order(SEED, weights({"a": 10, "b": 80, "d": 10}, NAMES))),  # type: ignore[dict-item,arg-type]
}


@pytest.mark.parametrize("name", VECTORS)
def test_worked_value_stands_in_the_document(name: str) -> None:
    assert f"| {name} | `{VECTORS[name]}` |" in TEXT


def test_the_handover_of_the_document_leads_to_the_next_roster() -> None:
    assert roster_after("works", CHAIN, ROSTER, [HANDOVER]) == (*ROSTER, OTHER)

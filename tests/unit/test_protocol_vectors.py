"""The worked values in docs/protocol/consensus.md are what this implementation makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepool.core.consensus.lottery import leader_order, lottery_seed, weights
from edgepool.model.beacon import BeaconChain, next_beacon
from edgepool.model.block import PRECOMMIT, Header, records_root, sign_vote
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer, signed_bytes
from edgepool.model.ids import ChainId
from edgepool.model.merkle import merkle_root
from edgepool.model.record import DataDemand, sign_record
from edgepool.model.twin import DataKey

TEXT = (Path(__file__).parents[2] / "docs" / "protocol" / "consensus.md").read_text(encoding="utf-8")
CHAIN = ChainId("0123456789abcdef0123456789abcdef01234567")
SIGNER = Signer(bytes(32))
RECORD = sign_record(SIGNER, "works", CHAIN, DataDemand(DataKey("P", "model"), 0, "", ""), 1000, 7)
HEADER = Header(
    *("works", CHAIN, 1, 0, bytes.fromhex(CHAIN), records_root([RECORD]), 1, SIGNER.peer),
    *(BeaconChain(bytes(32), 4).reveal(0), 2000),
)
STATEMENT = ["works", CHAIN, PRECOMMIT, 1, 0, HEADER.id]
SEED = lottery_seed("works", CHAIN, 1, bytes(32))
NAMES = ("a", "b", "c", "d")

VECTORS = {
    "peer id": SIGNER.peer,
    "record": encode(RECORD).hex(),
    "record id": RECORD.id.hex(),
    "Merkle root of that record": records_root([RECORD]).hex(),
    "Merkle root of 'a', 'b', 'c'": merkle_root([b"a", b"b", b"c"]).hex(),
    "beacon tip, length 4": BeaconChain(bytes(32), 4).tip.hex(),
    "first reveal": BeaconChain(bytes(32), 4).reveal(0).hex(),
    "header": encode(HEADER).hex(),
    "block id": HEADER.id.hex(),
    "what a precommit signs": signed_bytes("vote", STATEMENT).hex(),
    "its signature": sign_vote(SIGNER, "works", CHAIN, PRECOMMIT, 1, 0, HEADER.id).signature.hex(),
    "next beacon": next_beacon(bytes(32), HEADER.reveal).hex(),
    "lottery seed": SEED.hex(),
    "order, equal weights": " ".join(leader_order(SEED, weights({}, NAMES))),  # type: ignore[arg-type]
    "weights": " ".join(map(str, weights({"a": 10, "b": 80, "d": 10}, NAMES).values())),  # type: ignore[dict-item,arg-type]
    "order, those weights": " ".join(leader_order(SEED, weights({"a": 10, "b": 80, "d": 10}, NAMES))),  # type: ignore[dict-item,arg-type]
}


@pytest.mark.parametrize("name", VECTORS)
def test_worked_value_stands_in_the_document(name: str) -> None:
    assert f"| {name} | `{VECTORS[name]}` |" in TEXT

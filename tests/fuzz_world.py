"""Who takes part in fuzzing: honest members, the hostile, their pools, and a world small enough to be seen.

Three of four members of the pools in GENESES are honest; in the captured pools all but one are not, so
whatever the hostile agree upon stands there, and honest nodes must still take no harm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any
from unittest import mock

from edgepool.core import adoption, pruning, snapshots
from edgepool.core.ledger import chainfacts, credit, statements, window
from edgepool.core.pools import lifecycle
from edgepool.core.pools.lifecycle import beacon_secret
from edgepool.model.beacon import BeaconChain
from edgepool.model.block import Block, CertifiedBlock, Header, records_root
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis, Invitation, Member, PoolKind, accept, members_hash, sign_invitation
from edgepool.model.record import DataOffer, SignedRecord, Statement, sign_record
from edgepool.model.twin import DataKey
from edgepool.model.vote import PRECOMMIT, Certificate, sign_vote

NETWORK = "works"
EPOCH_MS = 1_700_000_000_000
COORDINATOR, *MEMBERS, STRANGER = (
    Signer(sha256(name.encode())) for name in ("coordinator", "m0", "m1", "m2", "m3", "stranger")
)
PUPPETS = tuple(Signer(sha256(b"puppet %d" % place)) for place in range(28))
"""Members of captured pools, who say what the liar says."""
HONEST = tuple(signer.peer for signer in MEMBERS[:3])
LIAR = MEMBERS[3]
"""The fourth member, who says whatever the fuzzer makes up."""
HOSTILE = (LIAR.peer, COORDINATOR.peer, STRANGER.peer)
KEYS_OF = {signer.peer: signer for signer in (LIAR, COORDINATOR, STRANGER, *PUPPETS)}
"""The keys that the hostile have."""
ROOT = bytes(range(32))
PAGE_BYTES = 2048


def make_genesis(kind: PoolKind, nonce: int, signers: list[Signer], *, watched: bool = True) -> Genesis:
    """Return a pool of `signers`, with the coordinator as observer if it is `watched`."""
    people = tuple(
        Member(one.peer, f"m{place}", "milling", ("/ip4/10.0.0.1/tcp/4001",))
        for place, one in enumerate(signers)
    )
    watcher = (Member(COORDINATOR.peer, "cloud", "", ()),) if watched else ()
    combination = ("Milling",) if kind == "manufacturing" else ()
    invitation = Invitation(
        NETWORK, f"{kind} {nonce}", kind, COORDINATOR.peer, people, watcher, combination, EPOCH_MS, nonce
    )
    yes = tuple(accept(one, invitation, BeaconChain(beacon_secret(one, invitation)).tip) for one in signers)
    return Genesis(invitation, sign_invitation(COORDINATOR, invitation), yes)


def make_foreign_block(genesis: Genesis, key: DataKey) -> CertifiedBlock:
    """Return the first block of the stranger's own pool: an offer of `key`, with a true certificate."""
    offer = DataOffer(key, 1, ROOT, 1000, "", 4)
    record = sign_record(STRANGER, NETWORK, genesis.chain, offer, EPOCH_MS, 0)
    reveal = BeaconChain(beacon_secret(STRANGER, genesis.invitation)).reveal(0)
    rosters = (members_hash(genesis.invitation.members),) * 2
    root, previous = records_root([record]), bytes.fromhex(genesis.chain)
    header = Header(
        NETWORK, genesis.chain, 1, 0, previous, *rosters, bytes(32), root, 1, STRANGER.peer, reveal, EPOCH_MS
    )
    vote = sign_vote(STRANGER, NETWORK, genesis.chain, PRECOMMIT, 1, 0, header.id)
    return CertifiedBlock(Block(header, (record,)), Certificate(1, 0, header.id, ((0, vote.signature),)))


KEYS = (DataKey("PTVA10212-03", "model"), DataKey("a/b", "\u202e"), DataKey("x" * 64, "y" * 32))
GENESES = (make_genesis("fixed", 1, MEMBERS), make_genesis("manufacturing", 2, MEMBERS))
NEWCOMER = Member(STRANGER.peer, "x", "milling", ())
"""The stranger, as an honest member's owner names it to ask it into a pool."""
FOREIGN = make_genesis("fixed", 3, [STRANGER])
FOREIGN_BLOCKS = tuple(make_foreign_block(FOREIGN, key) for key in KEYS)


@lru_cache(maxsize=2)
def captured_genesis(*, large: bool) -> Genesis:
    """Return a pool of one honest member and 3, or 29, hostile ones."""
    hostile = [LIAR, STRANGER, COORDINATOR, *(PUPPETS[:26] if large else ())]
    kind: PoolKind = "fixed" if large else "manufacturing"
    return make_genesis(kind, 4 + large, [MEMBERS[0], *hostile], watched=False)


@lru_cache(maxsize=128)
def beacon(secret: bytes) -> BeaconChain:
    """Return the beacon chain of a secret, made once for all pools that are begun anew."""
    return BeaconChain(secret)


@lru_cache(maxsize=256)
def hostile_beacon(signer: Signer, chain_id: ChainId, number: int) -> BeaconChain:
    """Return a short beacon chain of somebody who comes into a captured pool."""
    return BeaconChain(sha256(f"{signer.peer} {chain_id} {number}".encode()), 256)


# --- contracts of the users' own --------------------------------------------------------------------


class Tally:
    """Keeps payloads under their first byte; what begins with 'no' may not stand."""

    name = "tally"
    version = 1

    def problem(self, view: Any, signed: SignedRecord) -> str:
        return "it says no" if _payload(signed)[:2] == b"no" else ""

    def effects(self, view: Any, signed: SignedRecord) -> dict[str, bytes]:
        payload = _payload(signed)
        return {payload[:1].hex() or "empty": payload[1:64]}


class Fragile:
    """A contract full of bugs: it raises, answers nonsense, and writes too much, by its payload."""

    name = "tally"
    version = 2

    def problem(self, view: Any, signed: SignedRecord) -> Any:
        match _payload(signed)[:1]:
            case b"r":
                raise KeyError("a bug")
            case b"t":
                return 7
            case b"l":
                return "long " * 100
        return ""

    def effects(self, view: Any, signed: SignedRecord) -> Any:
        many = {f"{number}": bytes(100) for number in range(len(_payload(signed)) % 20)}
        return {b"w": {7: 7}, b"v": {"x": bytes(2000)}, b"n": None}.get(_payload(signed)[:1], many)


def _payload(signed: SignedRecord) -> bytes:
    body = signed.record.body
    assert isinstance(body, Statement)
    return body.payload


@contextmanager
def small_world() -> Iterator[None]:
    """Make windows, cycles and pages so small that a short run passes many; register contracts."""
    limits: list[tuple[Any, str, Any]] = [
        (window, "WINDOW_BLOCKS", 12),
        (window, "WINDOW_RECORDS", 150),
        (pruning, "CHECK_BLOCKS", 4),
        (pruning, "SNAPSHOT_BLOCKS", 16),
        (chainfacts, "FORGET_BLOCKS", 4),
        (credit, "CYCLE_BLOCKS", 4),
        (lifecycle, "BeaconChain", beacon),
        (statements, "STATEMENTS", {(one.name, one.version): one for one in (Tally(), Fragile())}),
    ]
    for room in (adoption, snapshots):
        limits += [(room, "SNAPSHOT_PAGE_BYTES", PAGE_BYTES), (room, "MAX_SNAPSHOT_BYTES", 256 * PAGE_BYTES)]
    with ExitStack() as stack:
        for room, name, value in limits:
            stack.enter_context(mock.patch.object(room, name, value))
        yield

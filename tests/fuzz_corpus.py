"""Valid frames of every kind that is decoded from a wire or a disk: what honest and hostile peers say."""

from __future__ import annotations

from random import Random
from typing import Any

from fuzz_cell import Cell, Manner
from fuzz_door import door_words
from fuzz_files import kept_records, made_world
from fuzz_hostile import Hostile
from fuzz_kinds import kinds_in, records_in
from fuzz_mutation import Seed
from fuzz_world import COORDINATOR, EPOCH_MS, GENESES, HONEST, KEYS, MEMBERS, NETWORK, NEWCOMER, ROOT
from libp2p_words import EXAMPLES

from edgepool.core.consensus.ballot import SavedBallot
from edgepool.core.ledger.snapshot import Snapshot, read_snapshot
from edgepool.core.machine import (
    ApproveChange,
    ChangeMembers,
    ConfirmTransfer,
    FindData,
    KeptRecord,
    SubmitRecord,
    Submitted,
)
from edgepool.errors import DecodeError
from edgepool.model.asking import PoolList
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import encode
from edgepool.model.live import (
    Cursor,
    FromPublisher,
    FromSubscriber,
    LiveAccept,
    LiveBatch,
    LiveCredit,
    LiveEnd,
    LiveRenewal,
    LiveRequest,
    LiveSample,
)
from edgepool.model.message import (
    Blocks,
    Message,
    decode_message,
)
from edgepool.model.pool import Genesis
from edgepool.model.record import Body, DataDemand, DataOffer, SignedRecord, Statement, sign_record
from edgepool.model.transfer import (
    AES_128_GCM,
    PACKED,
    PLAIN,
    BundleRequest,
    ChunkRequest,
    ItemRequest,
    ToHolder,
    ToRequester,
    TransferAccept,
    TransferEnd,
    TransferRefusal,
    TransferRequest,
)
from edgepool.model.twin import Manifest
from edgepool.storage.catalogue import Contents, Entry, ScrubState
from edgepool.storage.snapshots import StoredSnapshot

TO_HOLDER: Any = ToHolder
TO_REQUESTER: Any = ToRequester
FROM_SUBSCRIBER: Any = FromSubscriber
FROM_PUBLISHER: Any = FromPublisher
MANNER = Manner("corpus", forgiving=True, manual=True, writes=True)
DEEDS = ("offer", "demand", "find", "confirm", "state", "change", "approve")
"""What honest members' owners do; the last two only where members may change."""

Corpus = list[tuple[Any, list[Seed]]]
"""Each kind with valid frames of it; what is met more often stands in it more than once."""


def work(cell: Cell, rng: Random, deed: str) -> None:
    """Let an honest member's owner do something."""
    place, turn = int(rng.random() * len(HONEST)), int(rng.random() * 2**30)
    node, chain_id = cell.nodes[HONEST[place]], GENESES[turn % 2].chain
    chain, wall_ms = node.chains[chain_id], EPOCH_MS + cell.now_ms
    body: Body | None = None
    command: Any = None
    match deed:
        case "offer":
            body = DataOffer(KEYS[turn % 2 * 2], 1 + turn % 3, ROOT, 1000, "/ip4/10.0.0.1/tcp/4001", 96)
        case "demand":
            body = DataDemand(KEYS[0], 0, "", "")
        case "state":
            body = Statement("tally", 1 + turn % 2, rng.randbytes(turn % 40))
        case "find":
            command = FindData(KEYS[turn % 3], turn % 2, 4_000)
        case "confirm":
            holder = GENESES[0].invitation.members[turn % 4]
            command = ConfirmTransfer(holder, KEYS[0], ROOT, wall_ms + 60_000)
        case "change":
            outgoing = next((one for one in chain.state.members if one not in HONEST), "")
            incoming = NEWCOMER if NEWCOMER.peer not in chain.state.members and turn % 3 else None
            cell.judge.wanted[outgoing, incoming.peer if incoming is not None else ""] = None
            if outgoing or incoming is not None:
                command = ChangeMembers(chain_id, outgoing, incoming, "the owner wants it")
        case "approve":
            command = ApproveChange(chain_id, COORDINATOR.peer)
    if body is not None:
        height = chain.state.height
        command = SubmitRecord(sign_record(MEMBERS[place], NETWORK, chain_id, body, wall_ms, turn, height))
    if command is not None:
        cell.step(node.peer, Submitted(1 + turn, command))
    cell.settle()


def honest_frames(rng: Random) -> list[bytes]:
    """Return what a calm pool says while it writes records, finds data and confirms a transfer."""
    cell = Cell(rng, MANNER)
    frames: list[bytes] = []
    for turn in range(20):
        work(cell, rng, DEEDS[turn % 5])
        cell.pass_time(300)
        frames += cell.heard
        cell.heard.clear()
    return frames


def corpus(rng: Random) -> Corpus:
    """Return every kind that is decoded from a wire or a disk, with valid frames of it."""
    by_kind: dict[str, list[bytes]] = {}
    frames = honest_frames(rng)
    cell = Cell(rng, MANNER)
    hostile = Hostile(rng, cell)
    for turn in range(1_000):
        frames.append(encode(hostile.next()))
        if turn % 20 == 0:
            work(cell, rng, DEEDS[turn // 20 % 5])
            cell.pass_time(300)
    records: dict[str, list[SignedRecord]] = {}
    certified: list[CertifiedBlock] = []
    for frame in frames:
        try:
            message = decode_message(frame)
        except DecodeError:
            continue
        if len(frame) < 6_000:
            for kind in kinds_in(message):
                kept = by_kind.setdefault(kind, [])
                if len(kept) < 12 and frame not in kept[-1:]:
                    kept.append(frame)
        for signed in records_in(message):
            records.setdefault(type(signed.record.body).__name__, []).append(signed)
        if isinstance(message, Blocks):
            certified += message.blocks[:2]
    messages = [Seed(frame) for kind in sorted(by_kind) for frame in by_kind[kind]]
    # Messages come first and weigh most: they are what strangers can send.
    return [(Message, messages)] * 6 + _stored(cell, certified, records) + door_words()


def _stored(cell: Cell, certified: list[CertifiedBlock], records: dict[str, list[SignedRecord]]) -> Corpus:
    manifest = Manifest(2_500_000, 1_048_576, (bytes(32), ROOT, bytes(32)))
    ballots = [
        chain.engine._ballot.save(peer, 2) for peer in HONEST for chain in cell.nodes[peer].chains.values()
    ]
    world = made_world()
    height, state = world.saved[-1]
    some = [signed for kind in sorted(records) for signed in records[kind][:3]]
    others: list[tuple[Any, list[Any]]] = [
        (CertifiedBlock, certified[:8]),
        (Genesis, list(GENESES)),
        (SignedRecord, some),
        (SavedBallot, [*ballots, world.ballot()]),
        (TO_HOLDER, _transfer_requests(some[0])),
        (TO_REQUESTER, _transfer_answers(manifest)),
        (FROM_SUBSCRIBER, _from_subscriber(some[0])),
        (FROM_PUBLISHER, _from_publisher()),
        *EXAMPLES.items(),
        (PoolList, [PoolList(tuple((genesis, 7) for genesis in GENESES))]),
        (Contents, [_catalogue()]),
        (KeptRecord, kept_records()),
        (StoredSnapshot, [StoredSnapshot(height, False, tuple(world.handovers), state)]),
        (Snapshot, [read_snapshot(data) for _, data in world.saved]),
    ]
    return [(kind, [Seed(encode(value)) for value in values]) for kind, values in others]


def _transfer_requests(confirmation: SignedRecord) -> list[Any]:
    share, both = bytes(range(32)), (AES_128_GCM, "chacha20-poly1305")
    return [
        TransferRequest(0, confirmation, share, both, (PLAIN,), True, ()),
        TransferRequest(2**31, confirmation, share, (), (), False, (bytes(32), bytes(range(32)))),
        ChunkRequest(0, 0, 1),
        ChunkRequest(7, 65535, 65536),
        TransferEnd(0, True),
        TransferEnd(7, False),
        TransferEnd(7, False, 3),
        BundleRequest(8, share, both),
        ItemRequest(8, (confirmation,)),
        ItemRequest(8, (confirmation, confirmation)),
    ]


def _transfer_answers(manifest: Manifest) -> list[Any]:
    return [
        TransferAccept(0, manifest, bytes(range(32)), AES_128_GCM, PLAIN, b"", b"", b""),
        TransferAccept(7, None, bytes(32), AES_128_GCM, PACKED, b"\5", bytes(range(32)), b""),
        TransferAccept(8, manifest, b"", "", PLAIN, b"", b"", b"some small data"),
        TransferRefusal(0, ""),
        TransferRefusal(9, "does not hold this"),
    ]


def _from_subscriber(confirmation: SignedRecord) -> list[Any]:
    return [
        LiveRequest(confirmation, Cursor(7, 2**53), False, 1024**2),
        LiveRequest(confirmation, None, True, 0),
        LiveCredit(2**40),
        LiveRenewal(confirmation),
    ]


def _from_publisher() -> list[Any]:
    samples = tuple(LiveSample(EPOCH_MS + n, bytes(100 * n)) for n in range(5))
    return [LiveAccept(7, 1), LiveBatch(2, samples), LiveBatch(2**53, ()), LiveEnd("is closing", False)]


def _catalogue() -> Contents:
    entries = ((ROOT, Entry(KEYS[0], 3, EPOCH_MS, True)), (bytes(32), Entry(None, 0, 0, False)))
    return Contents(entries, ScrubState(EPOCH_MS, ROOT, 5))

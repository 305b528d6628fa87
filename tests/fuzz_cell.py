"""A standing pool under hostile traffic: three honest nodes of four, whole, in virtual time.

The nodes are the real ones over a store in memory. After every step this checks what an honest peer
owes: nothing is raised, what it says can be decoded by others, what it stores it can read again, it
never signs two values, no two differ about a block, and only the hostile are blamed.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TypeVar

from edgepool.config import ConsensusSettings, Limits, PeerSettings
from edgepool.core.consensus.ballot import SavedBallot
from edgepool.core.machine import (
    BlockCommitted,
    Broadcast,
    CommitBlock,
    Effect,
    Event,
    Holding,
    Instant,
    Load,
    Misbehaved,
    Notify,
    PeerDown,
    PeerUp,
    Persist,
    Received,
    Send,
    VoteState,
    Woke,
)
from edgepool.core.node import Node
from edgepool.core.pools.lifecycle import beacon_secret
from edgepool.model.beacon import BeaconChain
from edgepool.model.block import (
    PRECOMMIT,
    PREVOTE,
    Block,
    Certificate,
    CertifiedBlock,
    Header,
    Vote,
    records_root,
    sign_vote,
)
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Message, PoolFormed, Proposal, Query, Votes, decode_message
from edgepool.model.pool import Genesis, Invitation, Member, PoolKind, accept, sign_invitation
from edgepool.model.record import DataOffer, sign_record
from edgepool.model.twin import DataKey
from edgepool.storage.memory import MemoryStore

K = TypeVar("K")
V = TypeVar("V")
NETWORK = "works"
EPOCH_MS = 1_700_000_000_000
COORDINATOR, *MEMBERS, STRANGER = (
    Signer(sha256(name.encode())) for name in ("coordinator", "m0", "m1", "m2", "m3", "stranger")
)
HONEST = tuple(signer.peer for signer in MEMBERS[:3])
LIAR = MEMBERS[3]
"""The fourth member, who says whatever the fuzzer makes up."""
HOSTILE = (LIAR.peer, COORDINATOR.peer, STRANGER.peer)
ROOT = bytes(range(32))
HEARD_FRAMES = 256
STORM_FRAMES = 20_000
LIMITS = Limits(chains=16, queries=32, mempool_records=256)


class Broken(AssertionError):
    """An honest node did what no honest node may do."""


def make_genesis(kind: PoolKind, nonce: int, signers: list[Signer]) -> Genesis:
    """Return a pool of `signers` with the coordinator as observer."""
    people = tuple(
        Member(one.peer, f"m{place}", "milling", ("/ip4/10.0.0.1/tcp/4001",))
        for place, one in enumerate(signers)
    )
    watcher = (Member(COORDINATOR.peer, "cloud", "", ()),)
    combination = ("Milling",) if kind == "manufacturing" else ()
    invitation = Invitation(
        NETWORK, kind, kind, COORDINATOR.peer, people, watcher, combination, EPOCH_MS, nonce
    )
    yes = tuple(accept(one, invitation, BeaconChain(beacon_secret(one, invitation)).tip) for one in signers)
    return Genesis(invitation, sign_invitation(COORDINATOR, invitation), yes)


def make_foreign_block(genesis: Genesis, key: DataKey) -> CertifiedBlock:
    """Return the first block of the stranger's own pool: an offer of `key`, with a true certificate."""
    offer = DataOffer(key, 1, ROOT, 1000, "", 4)
    record = sign_record(STRANGER, NETWORK, genesis.chain, offer, EPOCH_MS, 0)
    reveal = BeaconChain(beacon_secret(STRANGER, genesis.invitation)).reveal(0)
    root, previous = records_root([record]), bytes.fromhex(genesis.chain)
    header = Header(NETWORK, genesis.chain, 1, 0, previous, root, 1, STRANGER.peer, reveal, EPOCH_MS)
    vote = sign_vote(STRANGER, NETWORK, genesis.chain, PRECOMMIT, 1, 0, header.id)
    return CertifiedBlock(Block(header, (record,)), Certificate(1, 0, header.id, ((0, vote.signature),)))


KEYS = (DataKey("PTVA10212-03", "model"), DataKey("a/b", "\u202e"), DataKey("x" * 64, "y" * 32))
GENESES = (make_genesis("fixed", 1, MEMBERS), make_genesis("manufacturing", 2, MEMBERS))
FOREIGN = make_genesis("fixed", 3, [STRANGER])
FOREIGN_BLOCKS = tuple(make_foreign_block(FOREIGN, key) for key in KEYS)
LIARS_BEACONS = {genesis.chain: BeaconChain(beacon_secret(LIAR, genesis.invitation)) for genesis in GENESES}


class Cell:
    """Three honest nodes, linked to each other and to the hostile; `rng` sets the pace of time."""

    def __init__(self, rng: Random) -> None:
        self.now_ms = 1_000
        self.heard: deque[bytes] = deque(maxlen=HEARD_FRAMES)
        """Frames that honest nodes have sent, newest last: what the hostile can learn from."""
        self.blames = 0
        self.blocks: dict[bytes, Block] = {}
        """Blocks that were proposed, by id; and who has prevoted for them: what makes true polkas."""
        self.prevotes: dict[tuple[ChainId, int, int, bytes], dict[PeerId, Vote]] = {}
        self.asked: Query | None = None
        """The last question of an honest node."""
        self.away: PeerId | None = None
        """The honest node that only the hostile can reach now, if any."""
        self._rng = rng
        self._wire: deque[tuple[PeerId, PeerId, bytes]] = deque()
        self._said: dict[tuple[PeerId, ChainId, int, int, int], bytes] = {}
        self._stood: dict[tuple[ChainId, int], bytes] = {}
        self._stores = {peer: MemoryStore() for peer in HONEST}
        self.nodes = {signer.peer: self._node(signer) for signer in MEMBERS[:3]}
        for node in self.nodes.values():
            self._perform(node.peer, node.start(self._now()))
            for genesis in GENESES:
                self.step(node.peer, Received(COORDINATOR.peer, PoolFormed(genesis)))
        for peer in HONEST:
            self._raise_links(peer)
        self.settle()

    # --- what the fuzzer does -----------------------------------------------------------------

    def inject(self, sender: PeerId, receiver: PeerId, message: Message) -> None:
        """Let `message` arrive on a hostile link and let the cell work until it is quiet."""
        self.step(receiver, Received(sender, message))
        self.settle()

    def step(self, peer: PeerId, event: Event) -> None:
        """Give one event to an honest node."""
        self._perform(peer, self.nodes[peer].step(event, self._now()))

    def settle(self) -> None:
        """Deliver everything under way."""
        for _ in range(STORM_FRAMES):
            if not self._wire:
                return
            sender, receiver, frame = self._wire.popleft()
            if self.away not in (sender, receiver):
                self.step(receiver, Received(sender, decode_message(frame)))
        raise Broken(f"a storm: more than {STORM_FRAMES} frames after one message")

    def pass_time(self, most_ms: int) -> None:
        """Let up to `most_ms` pass; wake whoever is due."""
        self.now_ms += int(self._rng.random() * most_ms)
        for peer, node in self.nodes.items():
            due_ms = node.wakeup_at()
            if due_ms is not None and due_ms <= self.now_ms:
                self.step(peer, Woke())
        self.settle()

    def restart(self, place: int) -> None:
        """Bring an honest node back with what it has stored, as after a power cut."""
        signer = MEMBERS[place]
        self._wire.clear()
        self._stores[signer.peer].crash()
        node = self.nodes[signer.peer] = self._node(signer)
        for saved in self._stores[signer.peer].open():
            node.load(saved.genesis, saved.height, saved.vote_state)
        self._perform(signer.peer, node.start(self._now()))
        for other in HONEST:
            if other != signer.peer:
                self.step(other, PeerDown(signer.peer))
                self.step(other, PeerUp(signer.peer))
        self._raise_links(signer.peer)
        self.settle()

    def flap(self, sender: PeerId, receiver: PeerId) -> None:
        """Take a hostile link down and up."""
        self.step(receiver, PeerDown(sender))
        self.step(receiver, PeerUp(sender))
        self.settle()

    # --- inside ---------------------------------------------------------------------------------

    def _node(self, signer: Signer) -> Node:
        settings = PeerSettings(
            name=signer.peer[-6:],
            network=NETWORK,
            coordinators=(COORDINATOR.peer,),
            limits=LIMITS,
            consensus=ConsensusSettings(gather_ms=0),
        )
        store = self._stores[signer.peer]
        store.open()
        return Node(settings, signer, store)

    def _raise_links(self, peer: PeerId) -> None:
        for other in (*HONEST, *HOSTILE):
            if other != peer:
                self.step(peer, PeerUp(other))
        self.step(peer, Holding(ROOT, 1000, True))
        self.step(peer, Load(5, 7))

    def _now(self) -> Instant:
        return Instant(self.now_ms, EPOCH_MS + self.now_ms)

    def _perform(self, peer: PeerId, effects: list[Effect]) -> None:
        items = [effect.item for effect in effects if isinstance(effect, Persist)]
        for item in items:
            if isinstance(item, VoteState):
                decode(SavedBallot, item.state)
            elif isinstance(item, CommitBlock):
                self._check_block(item)
        if items:
            self._stores[peer].write(items)
            self._stores[peer].sync()
        for effect in effects:
            match effect:
                case Send(receiver, message):
                    self._speak(peer, (receiver,), message)
                case Broadcast(receivers, message):
                    self._speak(peer, receivers, message)
                case Notify(Misbehaved(blamed, reason)):
                    self.blames += 1
                    if blamed not in HOSTILE:
                        raise Broken(f"an honest member is blamed: {reason}")
                case Notify(BlockCommitted(chain, certified)):
                    if self._stores[peer].block(chain, certified.block.header.height) != certified:
                        raise Broken("a block was announced that is not stored")

    def _speak(self, sender: PeerId, receivers: tuple[PeerId, ...], message: Message) -> None:
        frame = encode(message)
        decode_message(frame)
        if len(frame) > LIMITS.frame_bytes:
            raise Broken(f"a {type(message).__name__} of {len(frame)} bytes does not fit into a frame")
        self._learn(sender, message)
        self.heard.append(frame)
        self._wire += [(sender, receiver, frame) for receiver in receivers if receiver in self.nodes]

    def _learn(self, sender: PeerId, message: Message) -> None:
        if isinstance(message, Votes):
            for vote in message.votes:
                if vote.kind == PREVOTE:
                    place = (message.chain, vote.height, vote.round, vote.block_id)
                    _keep(self.prevotes, place, {}).setdefault(vote.voter, vote)
                if vote.voter == sender:
                    self._once(sender, message.chain, vote.kind, vote.height, vote.round, vote.block_id)
        elif isinstance(message, Query):
            self.asked = message
        elif isinstance(message, Proposal):
            header = message.block.header
            _keep(self.blocks, header.id, message.block)
            chain = self.nodes[sender].chains[message.chain]
            if header.height == chain.state.height + 1 and chain.leader(message.round) == sender:
                self._once(sender, message.chain, 0, header.height, message.round, header.id)

    def _once(self, peer: PeerId, chain: ChainId, kind: int, height: int, round: int, value: bytes) -> None:
        if _keep(self._said, (peer, chain, kind, height, round), value, 4096) != value:
            raise Broken(f"two values signed at height {height}, round {round}, kind {kind}")

    def _check_block(self, item: CommitBlock) -> None:
        header = item.certified.block.header
        if self._stood.setdefault((header.chain, header.height), header.id) != header.id:
            raise Broken(f"two blocks stand at height {header.height}")


def _keep(memory: dict[K, V], key: K, value: V, most: int = 64) -> V:
    """Return what is remembered under `key`, now `value` if nothing was; the oldest is forgotten."""
    if len(memory) > most:
        del memory[next(iter(memory))]
    return memory.setdefault(key, value)

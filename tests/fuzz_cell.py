"""A standing pool under hostile traffic: three honest nodes of four, whole, in virtual time.

The nodes are the real ones over a store in memory. After every step this checks what an honest peer
owes: nothing is raised, what it says can be decoded by others, what it stores it can read again, and
all that fuzz_judge.py asks for. `prove_alive` shows that blocks still come.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

from fuzz_judge import Broken, Judge, keep
from fuzz_world import (
    COORDINATOR,
    EPOCH_MS,
    GENESES,
    HONEST,
    HOSTILE,
    KEYS,
    MEMBERS,
    NETWORK,
    ROOT,
    captured_genesis,
)

from edgepool.config import ConsensusSettings, Limits, PeerSettings
from edgepool.core.chain import Chain
from edgepool.core.consensus.ballot import SavedBallot
from edgepool.core.machine import (
    BlockCommitted,
    Broadcast,
    CommitBlock,
    Done,
    Effect,
    Event,
    Failed,
    Holding,
    Instant,
    Load,
    Misbehaved,
    Notify,
    PeerDown,
    PeerUp,
    Persist,
    RankedOffer,
    Received,
    SaveSnapshot,
    Send,
    SubmitRecord,
    Submitted,
    VoteState,
    Woke,
)
from edgepool.core.node import Node
from edgepool.core.rights import Subject
from edgepool.model.block import Block
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import (
    Join,
    Message,
    PoolFormed,
    Proposal,
    Query,
    SnapshotHead,
    SnapshotRequest,
    Votes,
    decode_message,
)
from edgepool.model.pool import Genesis
from edgepool.model.record import DataDemand, SignedRecord, sign_record
from edgepool.model.vote import PREVOTE, Vote
from edgepool.storage.memory import MemoryStore

HEARD_FRAMES = 256
STORM_FRAMES = 20_000
ALIVE_WITHIN_MS = 300_000
LIMITS = Limits(chains=16, queries=32, mempool_records=256, chain_bytes=24_000)
FIRST_LIFE_TICKET = 2**40
"""From here on are tickets of records that only show that blocks still come."""


def who(peer: PeerId) -> Subject:
    """Return what the certificate of somebody in the cell says."""
    return Subject(peer, "coordinator" if peer == COORDINATOR.peer else "machine")


@dataclass(frozen=True)
class Manner:
    """How a cell lives.

    Its members keep the liar whatever it signs if they are `forgiving`, and approve what the coordinator
    wants unless `manual`. With `writes` the hostile make records that may stand. The first member is in a
    `captured` pool too, of '' (none), 'small' or 'large' size. It is renewed after `life` injections.
    """

    name: str
    forgiving: bool
    manual: bool
    writes: bool
    captured: str = ""
    life: int = 0


class _ForgivingNode(Node):
    """A node that tells nobody who has signed two values."""

    def _add_chain(self, genesis: Genesis, height: int, vote_state: bytes) -> Chain:
        chain = super()._add_chain(genesis, height, vote_state)
        chain._governance.caught = lambda found: None  # type: ignore[method-assign]
        return chain


class Cell:
    """Three honest nodes, linked to each other and to the hostile; `rng` sets the pace of time."""

    def __init__(self, rng: Random, manner: Manner) -> None:
        self.manner = manner
        self.judge = Judge(manual=manner.manual)
        self.now_ms = 1_000
        self.heard: deque[bytes] = deque(maxlen=HEARD_FRAMES)
        """Frames that honest nodes have sent, newest last: what the hostile can learn from."""
        self.asked_hostile: deque[tuple[PeerId, PeerId, SnapshotRequest | Join]] = deque(maxlen=8)
        """What honest nodes wait for from the hostile: sender, receiver, and what was asked."""
        self.blames = 0
        self.committed = 0
        self.adopted = 0
        self.blocks: dict[bytes, Block] = {}
        """Blocks that were proposed, by id; and who has prevoted for them: what makes true polkas."""
        self.prevotes: dict[tuple[ChainId, int, int, bytes], dict[PeerId, Vote]] = {}
        self.asked: Query | None = None
        """The last question of an honest node."""
        self.away: PeerId | None = None
        """The honest node that only the hostile can reach now, if any."""
        self._rng = rng
        self._wire: deque[tuple[PeerId, PeerId, bytes]] = deque()
        self._life = ""
        self._life_ticket = FIRST_LIFE_TICKET
        self._stores = {peer: MemoryStore() for peer in HONEST}
        self.nodes = {signer.peer: self._node(signer) for signer in MEMBERS[:3]}
        for node in self.nodes.values():
            self._perform(node.peer, node.start(self._now()))
            for genesis in GENESES:
                self.step(node.peer, Received(COORDINATOR.peer, PoolFormed(genesis)))
        if self.captured is not None:
            self.step(HONEST[0], Received(COORDINATOR.peer, PoolFormed(self.captured)))
        for peer in HONEST:
            self._raise_links(peer)
        self.settle()

    @property
    def captured(self) -> Genesis | None:
        """The pool of the first member in which nearly all others are hostile, if there is one."""
        size = self.manner.captured
        return captured_genesis(large=size == "large") if size else None

    @property
    def changed(self) -> bool:
        """Say whether a pool has another roster by now: the liar has been convicted, or has left."""
        guarded = [node.chains[genesis.chain] for node in self.nodes.values() for genesis in GENESES]
        return any(chain.handovers for chain in guarded)

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
                self.step(other, PeerUp(Subject(signer.peer)))
        self._raise_links(signer.peer)
        self.settle()

    def flap(self, sender: PeerId, receiver: PeerId) -> None:
        """Take a hostile link down and up."""
        self.step(receiver, PeerDown(sender))
        self.step(receiver, PeerUp(who(sender)))
        self.settle()

    def prove_alive(self) -> None:
        """Let the hostile be silent for a while: records must come to stand, everywhere."""
        self.away = None
        for genesis in GENESES:
            until_ms, goal = self.now_ms + ALIVE_WITHIN_MS, 0
            self._life = "failed"
            while not goal or min(self._heights(genesis.chain)) < goal:
                if self._life == "failed":
                    self._show_life(genesis.chain)
                if self._life == "done":
                    goal = goal or max(self._heights(genesis.chain))
                if self.now_ms > until_ms:
                    raise Broken(f"a pool stands still at the heights {self._heights(genesis.chain)}")
                self.pass_time(1_000)

    def saved_head(self, chain: ChainId) -> tuple[SnapshotHead, bytes] | None:
        """Return the true head of an honest member's snapshot, with the state; what members can know."""
        for store in self._stores.values():
            saved = store.snapshot(chain)
            after = store.block(chain, saved.height + 1) if saved is not None else None
            if saved is not None and after is not None:
                size_bytes = len(saved.state)
                header, votes = after.block.header, after.certificate
                head = SnapshotHead(chain, saved.height, size_bytes, header, votes, saved.handovers)
                return head, saved.state
        return None

    # --- inside ---------------------------------------------------------------------------------

    def _heights(self, chain: ChainId) -> list[int]:
        return [node.chains[chain].state.height for node in self.nodes.values()]

    def _show_life(self, chain: ChainId) -> None:
        """Let the first member's owner write a record."""
        self._life, self._life_ticket = "waits", self._life_ticket + 1
        height, wall_ms = self.nodes[HONEST[0]].chains[chain].state.height, EPOCH_MS + self.now_ms
        body = DataDemand(KEYS[0], 0, "", "")
        record = sign_record(MEMBERS[0], NETWORK, chain, body, wall_ms, self._life_ticket, height)
        self.step(HONEST[0], Submitted(self._life_ticket, SubmitRecord(record)))
        self.settle()

    def _node(self, signer: Signer) -> Node:
        settings = PeerSettings(
            name=signer.peer[-6:],
            network=NETWORK,
            coordinators=(COORDINATOR.peer,),
            limits=LIMITS,
            consensus=ConsensusSettings(
                gather_ms=0, approve="manual" if self.manner.manual else "coordinator"
            ),
        )
        store = self._stores[signer.peer]
        store.open()
        return (_ForgivingNode if self.manner.forgiving else Node)(settings, signer, store)

    def _raise_links(self, peer: PeerId) -> None:
        for other in (*HONEST, *HOSTILE):
            if other != peer:
                self.step(peer, PeerUp(who(other)))
        self.step(peer, Holding(ROOT, 1000, True))
        self.step(peer, Load(5, 7))

    def _now(self) -> Instant:
        return Instant(self.now_ms, EPOCH_MS + self.now_ms)

    def _perform(self, peer: PeerId, effects: list[Effect]) -> None:
        items = [effect.item for effect in effects if isinstance(effect, Persist)]
        touched: dict[ChainId, None] = {}
        for item in items:
            if isinstance(item, VoteState):
                decode(SavedBallot, item.state)
            elif isinstance(item, CommitBlock):
                self.committed += 1
                self.judge.commits(item.certified)
                touched[item.certified.block.header.chain] = None
            elif isinstance(item, SaveSnapshot) and item.adopted:
                self.adopted += 1
                touched[item.chain] = None
        if items:
            self._stores[peer].write(items)
            self._stores[peer].sync()
        for effect in effects:
            match effect:
                case Send(receiver, message):
                    self._speak(peer, (receiver,), message)
                case Broadcast(receivers, message):
                    self._speak(peer, receivers, message)
                case Notify(notice):
                    self._notice(peer, notice)
        for chain in touched:
            self.judge.looks_at(self.nodes[peer].chains[chain])

    def _notice(self, peer: PeerId, notice: object) -> None:
        match notice:
            case Misbehaved(blamed, reason):
                self.blames += 1
                self.judge.blames(blamed, reason)
            case BlockCommitted(chain, certified):
                if self._stores[peer].block(chain, certified.block.header.height) != certified:
                    raise Broken("a block was announced that is not stored")
            case Done(ticket, result):
                if ticket == self._life_ticket:
                    self._life = "done"
                if isinstance(result, tuple) and all(isinstance(one, RankedOffer) for one in result):
                    self.judge.believes(result)
                elif isinstance(result, SignedRecord):
                    self.judge.confirms(result)
            case Failed(ticket) if ticket == self._life_ticket:
                self._life = "failed"

    def _speak(self, sender: PeerId, receivers: tuple[PeerId, ...], message: Message) -> None:
        frame = encode(message)
        decode_message(frame)
        if len(frame) > LIMITS.frame_bytes:
            raise Broken(f"a {type(message).__name__} of {len(frame)} bytes does not fit into a frame")
        self._learn(sender, message)
        self.heard.append(frame)
        self._wire += [(sender, receiver, frame) for receiver in receivers if receiver in self.nodes]
        if isinstance(message, SnapshotRequest | Join):
            self.asked_hostile += [(sender, one, message) for one in receivers if one in HOSTILE]

    def _learn(self, sender: PeerId, message: Message) -> None:
        if isinstance(message, Votes):
            for vote in message.votes:
                if vote.kind == PREVOTE:
                    place = (message.chain, vote.height, vote.round, vote.block_id)
                    keep(self.prevotes, place, {}).setdefault(vote.voter, vote)
                if vote.voter == sender:
                    self.judge.says(
                        sender, message.chain, vote.kind, (vote.height, vote.round), vote.block_id
                    )
        elif isinstance(message, Query):
            self.asked = message
        elif isinstance(message, Proposal):
            header = message.block.header
            keep(self.blocks, header.id, message.block)
            chain = self.nodes[sender].chains[message.chain]
            if header.height == chain.state.height + 1 and chain.leader(message.round) == sender:
                self.judge.says(sender, message.chain, 0, (header.height, message.round), header.id)

"""A world of peers in virtual time: the same core, codec and persistence rules, from a seed.

A heap of events, no event loop, no real clock. What a crash takes is what was not synced. The trace
is a running hash of everything that happens: same seed, same trace, in any process.

The methods `_store`, `_speak`, `_tell` and `_accept` are where a world with faults (`chaos.py`)
differs from a healthy one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from random import Random

from edgepool.config import ConsensusSettings, Limits, PeerSettings, Role
from edgepool.core.machine import (
    Broadcast,
    Command,
    Done,
    Effect,
    Event,
    Failed,
    Holding,
    Instant,
    Item,
    Notice,
    Notify,
    PeerDown,
    PeerUp,
    Persist,
    Received,
    Send,
    SubmitRecord,
    Submitted,
    UnwantLink,
    WantLink,
    Woke,
)
from edgepool.core.node import Node
from edgepool.core.rights import Subject
from edgepool.errors import EdgepoolError, Refused, Unavailable
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.lineage import MAX_LINE, Line, follow
from edgepool.model.message import Message, decode_message
from edgepool.model.pool import Member
from edgepool.model.record import Body, sign_record
from edgepool.sim.network import NetworkConditions, SimNetwork
from edgepool.storage.memory import MemoryStore

EPOCH_MS = 1_700_000_000_000
NETWORK = "simulated"
LINK_MS = 5
REDIAL_MS = 500
FRAMES_KEPT = 4096


@dataclass(slots=True)
class SimPeer:
    """One peer of the world: its node while it is up, and the store that outlives it."""

    name: str
    settings: PeerSettings
    signer: Signer
    store: MemoryStore
    node: Node
    up: bool = True
    life: int = 0
    wall_offset_ms: int = 0
    held: dict[bytes, int] = field(default_factory=dict)
    line: Line = ()
    """The keys that it had before, as it says on each link."""
    unwanted: dict[PeerId, None] = field(default_factory=dict)
    """Whom it has wanted a link to, in this life, and dials no more."""
    id: PeerId = field(init=False)
    trace_name: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.signer.peer
        self.trace_name = self.name.encode()

    @property
    def member(self) -> Member:
        """This peer as a pool member."""
        return Member(self.id, self.name, self.settings.machine_type, (), self.settings.role)

    @property
    def subject(self) -> Subject:
        """This peer as its certificate would name it."""
        return Subject(self.id, self.settings.role)


class World:
    """All peers, the network between them, and virtual time in ms.

    `cast` makes the peers' keys: worlds with the same cast have the same people.
    """

    def __init__(
        self, seed: int, conditions: NetworkConditions | None = None, cast: int | None = None
    ) -> None:
        self.now_ms = 0
        self.network = SimNetwork(seed, conditions or NetworkConditions())
        self.peers: dict[PeerId, SimPeer] = {}
        self.steps = 0
        self.limits = Limits()
        """What peers that are added from now on are limited to."""
        self._cast = seed if cast is None else cast
        self._random = Random(f"{seed}/world")
        self._heap: list[tuple[int, int, Callable[[], object]]] = []
        self._sequence = 0
        self._tickets = 0
        self._outcomes: dict[int, Done | Failed] = {}
        self._links: dict[tuple[PeerId, PeerId], bool] = {}
        self._wakes: dict[PeerId, int] = {}
        self._stirred: dict[PeerId, SimPeer] = {}
        """Who has done something at the present moment, so that its next deadline may be another one."""
        self._frames: dict[bytes, Message] = {}
        self._trace = hashlib.sha256()

    # --- building ---------------------------------------------------------------------------

    def add(
        self, name: str, role: Role = "machine", machine_type: str = "", coordinator: str = ""
    ) -> SimPeer:
        """Add a peer; `coordinator` is the peer id that may form pools with it."""
        signer = self.new_key(name)
        settings = PeerSettings(
            name=name,
            network=NETWORK,
            role=role,
            machine_type=machine_type,
            coordinators=(coordinator,) if coordinator else (),
            limits=self.limits,
            consensus=ConsensusSettings(),
        )
        store = self._new_store()
        store.open()
        peer = SimPeer(name, settings, signer, store, Node(settings, signer, store))
        self.peers[peer.id] = peer
        self._perform(peer, peer.node.start(self._instant(peer)))
        return peer

    def new_key(self, name: str) -> Signer:
        """Return the key that this cast has under a name."""
        return Signer(hashlib.sha256(f"{self._cast}/{name}".encode()).digest())

    def crash(self, peer: SimPeer, kept: int = 0) -> None:
        """Cut the power of `peer`: what it had not synced is gone, and so are its links.

        Of what was written and not synced, the first `kept` items have reached the disk.
        """
        peer.up = False
        peer.life += 1
        peer.store.crash(kept)
        self._note("crash", peer.name)
        for other in [b for a, b in self._links if a == peer.id]:
            self.unlink(peer, self.peers[other])

    def restart(self, peer: SimPeer) -> None:
        """Bring `peer` back with what its store kept."""
        peer.up = True
        peer.unwanted.clear()
        peer.node = Node(peer.settings, peer.signer, peer.store, peer.line)
        for saved in peer.store.open():
            peer.node.load(saved.genesis, saved.height, saved.vote_state)
        for root, size_bytes in peer.held.items():
            peer.node.step(Holding(root, size_bytes, True), self._instant(peer))
        self._note("restart", peer.name)
        self._perform(peer, peer.node.start(self._instant(peer)))
        for other in self.peers.values():
            if other.id != peer.id and other.up and self._shares_pool(peer, other):
                self.at(self.now_ms + LINK_MS, partial(self._link, peer.id, other.id))

    def change_key(self, peer: SimPeer, signer: Signer) -> None:
        """Let `peer` go on under another key, as a program does that closes it and opens it again."""
        self.crash(peer)
        del self.peers[peer.id]
        peer.line = (*peer.line, follow(peer.signer, signer, NETWORK))[-MAX_LINE:]
        peer.signer, peer.id = signer, signer.peer
        self.peers[peer.id] = peer
        self.restart(peer)

    # --- acting -----------------------------------------------------------------------------

    def command(self, peer: SimPeer, command: Command, limit_ms: int = 60_000) -> object:
        """Give `peer` a command and run until its outcome; raises what a real peer would raise."""
        ticket = self.ask(peer, command)
        self.run_until(lambda: ticket in self._outcomes, limit_ms)
        notice = self._outcomes.get(ticket)
        if isinstance(notice, Done):
            return notice.result
        error: EdgepoolError = Unavailable("no answer in time")
        if isinstance(notice, Failed):
            error = Refused(notice.reason) if notice.refused else Unavailable(notice.reason)
        raise error

    def ask(self, peer: SimPeer, command: Command) -> int:
        """Give `peer` a command and return its ticket, without waiting for the outcome."""
        self._tickets += 1
        ticket = self._tickets
        self.step(peer, Submitted(ticket, command))
        return ticket

    def submit(self, peer: SimPeer, body: Body, chain: ChainId, limit_ms: int = 60_000) -> object:
        """Have `peer` sign `body` and put it on `chain`; return its RecordRef once it is final."""
        nonce = self._random.getrandbits(52)
        since = peer.node.chains[chain].state.height
        record = sign_record(peer.signer, NETWORK, chain, body, EPOCH_MS + self.now_ms, nonce, since)
        return self.command(peer, SubmitRecord(record), limit_ms)

    def hold(self, peer: SimPeer, root: bytes, size_bytes: int) -> None:
        """Let `peer` hold data from now on."""
        peer.held[root] = size_bytes
        self.step(peer, Holding(root, size_bytes, True))

    def step(self, peer: SimPeer, event: Event) -> None:
        """Give one event to a peer that is up and perform what comes of it."""
        if peer.up:
            self.steps += 1
            self._perform(peer, peer.node.step(event, self._instant(peer)))

    def at(self, when_ms: int, action: Callable[[], object]) -> None:
        """Do something at a later moment of virtual time."""
        self._sequence += 1
        heappush(self._heap, (when_ms, self._sequence, action))

    def run_for(self, duration_ms: int) -> None:
        """Let virtual time pass."""
        end_ms = self.now_ms + duration_ms
        self.run_until(lambda: False, duration_ms)
        self.now_ms = end_ms

    def run_until(self, reached: Callable[[], bool], limit_ms: int) -> bool:
        """Run until `reached()`; False if that takes longer than `limit_ms` of virtual time."""
        end_ms = self.now_ms + limit_ms
        heap = self._heap
        while not reached():
            if self._stirred and (not heap or heap[0][0] > self.now_ms):
                self._arm()
            if not heap or heap[0][0] > end_ms:
                return False
            self.now_ms, _, action = heappop(heap)
            action()
        return True

    def connect(self, first: SimPeer, second: SimPeer) -> None:
        """Link two peers, as when one is configured to know the other."""
        self._link(first.id, second.id)

    def linked(self, first: SimPeer, second: SimPeer) -> bool:
        """Say whether a link stands between two peers."""
        return (first.id, second.id) in self._links

    def unlink(self, first: SimPeer, second: SimPeer) -> None:
        """End the link between two peers; both notice, and neither dials again by itself."""
        self.drop_link(first.id, second.id)
        self.step(first, PeerDown(second.id))
        self.step(second, PeerDown(first.id))

    def drop_link(self, first: PeerId, second: PeerId) -> bool:
        """Let nothing pass between two peers any more; say whether they were linked. Nobody is told."""
        self._links.pop((second, first), None)
        return self._links.pop((first, second), None) is not None

    @property
    def trace(self) -> str:
        """The hash of everything that has happened so far, as hex digits."""
        return self._trace.hexdigest()

    # --- effects ----------------------------------------------------------------------------

    def _perform(self, peer: SimPeer, effects: list[Effect]) -> None:
        if effects:
            items = [effect.item for effect in effects if isinstance(effect, Persist)]
            if items and not self._store(peer, items):
                return
            self._speak(peer, effects)
        self._stirred[peer.id] = peer

    def _new_store(self) -> MemoryStore:
        return MemoryStore()

    def _store(self, peer: SimPeer, items: list[Item]) -> bool:
        """Make items durable; False if the peer did not live through it."""
        peer.store.write(items)
        peer.store.sync()
        return True

    def _speak(self, peer: SimPeer, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(receiver, message):
                    self._send(peer, receiver, encode(message))
                case Broadcast(receivers, message):
                    frame = encode(message)
                    for receiver in receivers:
                        self._send(peer, receiver, frame)
                case UnwantLink(gone):
                    peer.unwanted[gone] = None
                case WantLink(member):
                    peer.unwanted.pop(member.peer, None)
                    self.at(self.now_ms + LINK_MS, partial(self._link, peer.id, member.peer))
                case Notify(notice):
                    self._tell(peer, notice)
                case Persist():
                    pass

    def _tell(self, peer: SimPeer, notice: Notice) -> None:
        """Give a notice to the peer's owner."""
        if isinstance(notice, Done | Failed):
            self._outcomes[notice.ticket] = notice
        self._note("notice", peer.name, type(notice).__name__)

    def _send(self, sender: SimPeer, receiver: PeerId, frame: bytes) -> None:
        pair = (sender.id, receiver)
        if pair not in self._links:
            return
        life = self.peers[receiver].life
        for arrival_ms in self.network.arrivals_ms(sender.id, receiver, self.now_ms):
            self.at(arrival_ms, partial(self._deliver, sender, receiver, life, frame))

    def _deliver(self, sender: SimPeer, receiver: PeerId, life: int, frame: bytes) -> None:
        target = self.peers.get(receiver)
        if target is not None and target.up and target.life == life and (sender.id, receiver) in self._links:
            self._trace.update(b"%d\0deliver\0%b\0%b\0" % (self.now_ms, sender.trace_name, target.trace_name))
            self._trace.update(frame)
            self._accept(target, sender.id, frame)

    def _accept(self, target: SimPeer, sender: PeerId, frame: bytes) -> None:
        """Let a frame in; each is decoded once for all who receive it."""
        message = self._frames.get(frame)
        if message is None:
            if len(self._frames) >= FRAMES_KEPT:
                self._frames.clear()
            message = self._frames[frame] = decode_message(frame)
        self.step(target, Received(sender, message))

    def _link(self, first: PeerId, second: PeerId) -> None:
        a, b = self.peers.get(first), self.peers.get(second)
        if a is None or b is None or first == second or (first, second) in self._links:
            return
        passable = self.network.reaches(first, second) and self.network.reaches(second, first)
        if not (a.up and b.up and passable):
            if a.up and second not in a.unwanted:
                self.at(self.now_ms + REDIAL_MS, partial(self._link, first, second))
            return
        self._links[(first, second)] = self._links[(second, first)] = True
        self._note("link", a.name, b.name)
        self.step(a, PeerUp(b.subject))
        self.step(b, PeerUp(a.subject))

    def _shares_pool(self, first: SimPeer, second: SimPeer) -> bool:
        return any(first.id in chain.people for chain in second.node.chains.values())

    # --- time -------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Before time goes on: wake each peer at its next deadline, unless an earlier wake is planned."""
        for peer in self._stirred.values():
            deadline = peer.node.wakeup_at() if peer.up else None
            if deadline is None:
                continue
            deadline = max(deadline, self.now_ms + 1)
            planned = self._wakes.get(peer.id)
            if planned is None or not self.now_ms < planned <= deadline:
                self._wakes[peer.id] = deadline
                self.at(deadline, partial(self._wake, peer, deadline))
        self._stirred.clear()

    def _wake(self, peer: SimPeer, deadline: int) -> None:
        if self._wakes.get(peer.id) == deadline:
            del self._wakes[peer.id]
        if peer.up:
            self.step(peer, Woke())

    def _instant(self, peer: SimPeer) -> Instant:
        return Instant(self.now_ms, max(0, EPOCH_MS + self.now_ms + peer.wall_offset_ms))

    def _note(self, *what: str) -> None:
        self._trace.update(f"{self.now_ms}\0{chr(0).join(what)}".encode())

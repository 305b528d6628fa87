"""A world of peers in virtual time: the same core, codec and persistence rules, from a seed.

A heap of events, no event loop, no real clock. What a crash takes is what was not synced. The trace
is a running hash of everything that happens: same seed, same trace, in any process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from random import Random

from edgepool.config import ConsensusSettings, PeerSettings, Role
from edgepool.core.machine import (
    Broadcast,
    Command,
    Done,
    Effect,
    Event,
    Failed,
    Holding,
    Instant,
    Notice,
    Notify,
    PeerDown,
    PeerUp,
    Persist,
    Received,
    Send,
    SubmitRecord,
    Submitted,
    WantLink,
    Woke,
)
from edgepool.core.node import Node
from edgepool.errors import EdgepoolError, Refused, Unavailable
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Message, decode_message
from edgepool.model.pool import Member
from edgepool.model.record import Body, sign_record
from edgepool.sim.network import NetworkConditions, SimNetwork
from edgepool.storage.memory import MemoryStore

EPOCH_MS = 1_700_000_000_000
NETWORK = "simulated"
LINK_MS = 5
REDIAL_MS = 500


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
    notices: list[Notice] = field(default_factory=list)
    held: dict[bytes, int] = field(default_factory=dict)

    @property
    def id(self) -> PeerId:
        """The peer id."""
        return self.signer.peer

    @property
    def member(self) -> Member:
        """This peer as a pool member."""
        return Member(self.id, self.name, self.settings.machine_type, ())


class World:
    """All peers, the network between them, and virtual time in ms."""

    def __init__(self, seed: int, conditions: NetworkConditions | None = None) -> None:
        self.now_ms = 0
        self.network = SimNetwork(seed, conditions or NetworkConditions())
        self.peers: dict[PeerId, SimPeer] = {}
        self.steps = 0
        self._seed = seed
        self._random = Random(f"{seed}/world")
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._tickets = 0
        self._links: dict[tuple[PeerId, PeerId], bool] = {}
        self._wakes: dict[PeerId, int] = {}
        self._trace = hashlib.sha256()

    # --- building ---------------------------------------------------------------------------

    def add(
        self, name: str, role: Role = "machine", machine_type: str = "", coordinator: str = ""
    ) -> SimPeer:
        """Add a peer; `coordinator` is the peer id that may form pools with it."""
        signer = Signer(hashlib.sha256(f"{self._seed}/{name}".encode()).digest())
        settings = PeerSettings(
            name=name,
            network=NETWORK,
            role=role,
            machine_type=machine_type,
            coordinators=(coordinator,) if coordinator else (),
            consensus=ConsensusSettings(),
        )
        store = MemoryStore()
        store.open()
        peer = SimPeer(name, settings, signer, store, Node(settings, signer, store))
        self.peers[peer.id] = peer
        self._perform(peer, peer.node.start(self._instant()))
        return peer

    def crash(self, peer: SimPeer) -> None:
        """Cut the power of `peer`: what it had not synced is gone, and so are its links."""
        peer.up = False
        peer.life += 1
        peer.store.crash()
        self._note("crash", peer.name)
        for other in [b for a, b in self._links if a == peer.id]:
            self._unlink(peer.id, other)

    def restart(self, peer: SimPeer) -> None:
        """Bring `peer` back with what its store kept."""
        peer.up = True
        peer.node = Node(peer.settings, peer.signer, peer.store)
        for saved in peer.store.open():
            peer.node.load(saved.genesis, saved.height, saved.vote_state)
        for root, size_bytes in peer.held.items():
            peer.node.step(Holding(root, size_bytes, True), self._instant())
        self._note("restart", peer.name)
        self._perform(peer, peer.node.start(self._instant()))
        for other in self.peers.values():
            if other.id != peer.id and other.up and self._shares_pool(peer, other):
                self._at(self.now_ms + LINK_MS, partial(self._link, peer.id, other.id))

    # --- acting -----------------------------------------------------------------------------

    def command(self, peer: SimPeer, command: Command, limit_ms: int = 60_000) -> object:
        """Give `peer` a command and run until its outcome; raises what a real peer would raise."""
        self._tickets += 1
        ticket = self._tickets
        self.step(peer, Submitted(ticket, command))

        def outcome() -> Done | Failed | None:
            for notice in reversed(peer.notices):
                if isinstance(notice, Done | Failed) and notice.ticket == ticket:
                    return notice
            return None

        self.run_until(lambda: outcome() is not None, limit_ms)
        notice = outcome()
        if isinstance(notice, Done):
            return notice.result
        error: EdgepoolError = Unavailable("no answer in time")
        if isinstance(notice, Failed):
            error = Refused(notice.reason) if notice.refused else Unavailable(notice.reason)
        raise error

    def submit(self, peer: SimPeer, body: Body, chain: ChainId, limit_ms: int = 60_000) -> object:
        """Have `peer` sign `body` and put it on `chain`; return its RecordRef once it is final."""
        nonce = self._random.getrandbits(52)
        record = sign_record(peer.signer, NETWORK, chain, body, EPOCH_MS + self.now_ms, nonce)
        return self.command(peer, SubmitRecord(record), limit_ms)

    def hold(self, peer: SimPeer, root: bytes, size_bytes: int) -> None:
        """Let `peer` hold data from now on."""
        peer.held[root] = size_bytes
        self.step(peer, Holding(root, size_bytes, True))

    def step(self, peer: SimPeer, event: Event) -> None:
        """Give one event to a peer that is up and perform what comes of it."""
        if peer.up:
            self.steps += 1
            self._perform(peer, peer.node.step(event, self._instant()))

    def run_for(self, duration_ms: int) -> None:
        """Let virtual time pass."""
        end_ms = self.now_ms + duration_ms
        self.run_until(lambda: False, duration_ms)
        self.now_ms = end_ms

    def run_until(self, reached: Callable[[], bool], limit_ms: int) -> bool:
        """Run until `reached()`; False if that takes longer than `limit_ms` of virtual time."""
        end_ms = self.now_ms + limit_ms
        while not reached():
            if not self._heap or self._heap[0][0] > end_ms:
                return False
            self.now_ms, _, action = heappop(self._heap)
            action()
        return True

    def connect(self, first: SimPeer, second: SimPeer) -> None:
        """Link two peers, as when one is configured to know the other."""
        self._link(first.id, second.id)

    @property
    def trace(self) -> str:
        """The hash of everything that has happened so far, as hex digits."""
        return self._trace.hexdigest()

    # --- effects ----------------------------------------------------------------------------

    def _perform(self, peer: SimPeer, effects: list[Effect]) -> None:
        items = [effect.item for effect in effects if isinstance(effect, Persist)]
        if items:
            peer.store.write(items)
            peer.store.sync()
        for effect in effects:
            match effect:
                case Send(receiver, message):
                    self._send(peer, receiver, encode(message))
                case Broadcast(receivers, message):
                    frame = encode(message)
                    for receiver in receivers:
                        self._send(peer, receiver, frame)
                case WantLink(member):
                    self._at(self.now_ms + LINK_MS, partial(self._link, peer.id, member.peer))
                case Notify(notice):
                    peer.notices.append(notice)
                    self._note("notice", peer.name, type(notice).__name__)
                case Persist():
                    pass
        self._arm(peer)

    def _send(self, sender: SimPeer, receiver: PeerId, frame: bytes) -> None:
        if (sender.id, receiver) not in self._links:
            return
        arrival_ms = self.network.arrival_ms(sender.id, receiver, self.now_ms)
        if arrival_ms is None:
            return
        life = self.peers[receiver].life

        def deliver() -> None:
            target = self.peers[receiver]
            if target.up and target.life == life and (sender.id, receiver) in self._links:
                self._note("deliver", sender.name, target.name, frame)
                message: Message = decode_message(frame)
                self.step(target, Received(sender.id, message))

        self._at(arrival_ms, deliver)

    def _link(self, first: PeerId, second: PeerId) -> None:
        a, b = self.peers[first], self.peers.get(second)
        if b is None or first == second or (first, second) in self._links:
            return
        if not (a.up and b.up and self.network.reaches(first, second)):
            if a.up:
                self._at(self.now_ms + REDIAL_MS, partial(self._link, first, second))
            return
        self._links[(first, second)] = self._links[(second, first)] = True
        self._note("link", a.name, b.name)
        self.step(a, PeerUp(second))
        self.step(b, PeerUp(first))

    def _unlink(self, first: PeerId, second: PeerId) -> None:
        self._links.pop((first, second), None)
        self._links.pop((second, first), None)
        self.step(self.peers[first], PeerDown(second))
        self.step(self.peers[second], PeerDown(first))

    def _shares_pool(self, first: SimPeer, second: SimPeer) -> bool:
        return any(first.id in chain.people for chain in second.node.chains.values())

    # --- time -------------------------------------------------------------------------------

    def _arm(self, peer: SimPeer) -> None:
        """Wake the peer at its next deadline, unless an earlier wake is already planned."""
        deadline = peer.node.wakeup_at()
        if deadline is None:
            return
        deadline = max(deadline, self.now_ms + 1)
        planned = self._wakes.get(peer.id)
        if planned is not None and self.now_ms < planned <= deadline:
            return
        self._wakes[peer.id] = deadline
        life = peer.life

        def wake() -> None:
            if self._wakes.get(peer.id) == deadline:
                del self._wakes[peer.id]
            if peer.up and peer.life == life:
                self.step(peer, Woke())

        self._at(deadline, wake)

    def _at(self, when_ms: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heappush(self._heap, (when_ms, self._sequence, action))

    def _instant(self) -> Instant:
        return Instant(self.now_ms, EPOCH_MS + self.now_ms)

    def _note(self, *what: str | bytes) -> None:
        self._trace.update(f"{self.now_ms}".encode())
        for part in what:
            self._trace.update(b"\0" + (part.encode() if isinstance(part, str) else part))

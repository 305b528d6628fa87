"""A pool under faults: a world whose peers crash where the plan says, lie, and are judged at every step."""

from __future__ import annotations

from functools import partial
from random import Random

from edgepool.config import Role
from edgepool.core.machine import (
    Broadcast,
    Done,
    Effect,
    Event,
    Failed,
    FormPool,
    Item,
    Misbehaved,
    Notice,
    Notify,
    Persist,
    Received,
    Send,
    SubmitRecord,
    TrustDecided,
    UnwantLink,
    WantLink,
)
from edgepool.errors import StorageError
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Message, Polka, Proposal, Votes
from edgepool.model.pool import Genesis, Invitation
from edgepool.model.record import Body, sign_record
from edgepool.sim.byzantine import Liar
from edgepool.sim.changes import Changes
from edgepool.sim.checkers import Judge, Violation
from edgepool.sim.falsehoods import Stolen
from edgepool.sim.faults import SPOKEN, Faults, SimStore
from edgepool.sim.keys import KeyChanges
from edgepool.sim.owners import Owners
from edgepool.sim.plan import CHANGES, TRUST, Fault, Plan
from edgepool.sim.sizes import limits_of
from edgepool.sim.trusting import Doors, TrustWishes
from edgepool.sim.world import EPOCH_MS, NETWORK, SimPeer, World
from edgepool.storage.memory import MemoryStore

CASTS = 16
"""Keys are made for as many casts, not for each seed: beacon chains are computed once a process."""
DISK_RETRY_MS = 1_000
STEPS_A_SECOND = 100_000
"""No pool needs so many steps in one second of virtual time."""


class Chaos(World):
    """The pool (or two) of a plan, with its faults and its judge. `people` are in the plan's order."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.seed, cast=plan.seed % CASTS)
        self.plan = plan
        self.chains: list[ChainId] = []
        self.liars: dict[PeerId, Liar] = {}
        self.stolen: list[Stolen] = []
        self.judge = Judge()
        self.judge.wishes = {}
        self.faults = Faults(self)
        self.changes = Changes(self)
        self.keys = KeyChanges(self)
        self.settling = Random(f"{plan.seed}/settling")
        """Where peers draw from that settle a change of their keys."""
        self.trust = TrustWishes(self)
        self.doors = Doors(self)
        self.caught: dict[tuple[ChainId, PeerId], dict[PeerId, int]] = {}
        """Liars by chain: who has two values signed by them, and in which of its lives."""
        self.limits = limits_of(plan)
        self._words: dict[PeerId, int] = {}
        self._busy: dict[PeerId, list[Event]] = {}
        """What has come for peers that wait for a slow disk."""
        self._second = (-1, 0)
        self.cloud = self.add("cloud", role="coordinator")
        machines = plan.members if plan.observed else plan.members - 1
        self.people = [
            self.add(f"m{place}", machine_type="milling", coordinator=self.cloud.id)
            for place in range(machines)
        ] + [self.cloud]
        self.people += [
            self.add(f"s{place}", machine_type="milling", coordinator=self.cloud.id)
            for place in range(plan.spares)
        ]
        self.members = self.people[: plan.members]
        self.observers = [*([self.cloud] if plan.observed else []), *self.people[plan.first_spare :][:1]]
        self.faults.people = self.people
        self.owners = Owners(self)

    def form(self) -> None:
        """Form the plan's pools, in calm weather."""
        for peer in (*self.members, *self.observers):
            self.connect(self.cloud, peer)
        for number in range(self.plan.chains):
            self.chains.append(self._form(number))

    @property
    def honest(self) -> list[SimPeer]:
        """All people who do not lie, be it that they were revoked."""
        return [peer for peer in self.people if peer.id not in self.liars]

    def is_cut(self, peer: PeerId) -> bool:
        """Say whether the revocation of `peer` is decided: it cannot hear the others any more."""
        return self.judge.trust.is_revoked(peer)

    def add(
        self, name: str, role: Role = "machine", machine_type: str = "", coordinator: str = ""
    ) -> SimPeer:
        """Add a peer, known to the judge by its name."""
        peer = super().add(name, role, machine_type, coordinator)
        self.judge.names[peer.id] = name
        return peer

    def followers(self, chain: ChainId) -> list[SimPeer]:
        """Return the honest peers who must know all of `chain`: members, present and next, and observers."""
        oracle = self.judge.oracles[chain]
        voting = (*oracle.members, *oracle.newest_members)
        observing = self.observers[: len(self.observers) if chain == self.chains[0] else self.plan.observed]
        known = [peer for peer in self.honest if peer.id in voting or peer in observing]
        return [peer for peer in known if not self.is_cut(peer.id)]

    def inject(self, fault: Fault) -> None:
        """Let a fault happen now, unless it would be more than the protocol promises to bear."""
        if fault.kind in CHANGES:
            possible = self.changes.inject(fault)
        elif fault.kind == "key":
            possible = self.keys.inject(fault)
        elif fault.kind in TRUST:
            possible = self.trust.inject(fault)
        elif fault.kind == "wipe":
            peer = self._named(fault)
            possible = self.changes.may_be_wiped(peer)
            if possible:
                self.judge.wiped(peer.id)
        elif fault.kind == "byzantine":
            possible = self._corrupt(self._named(fault), str(fault.arguments["role"]))
        else:
            possible = True
        if possible:
            self.faults.inject(fault)

    def _corrupt(self, peer: SimPeer, role: str) -> bool:
        """Turn a peer into a liar, if it is none and every pool can bear one more."""
        if peer.id in self.liars or not self.changes.may_lie(peer.id):
            return False
        self.corrupt(peer, role)
        return True

    def corrupt(self, peer: SimPeer, role: str) -> None:
        """Turn a peer into a liar, also under the key that it is about to have."""
        place, heir = self.people.index(peer), self.keys.heir(peer)
        if peer.id not in self.liars:
            draw = Random(f"{self.plan.seed}/liar/{place}")
            self.liars[peer.id] = Liar(peer.signer, role, NETWORK, draw, self.stolen)
        if heir is not None:
            draw = Random(f"{self.plan.seed}/liar/{place}/{heir.peer}")
            self.liars[heir.peer] = Liar(heir, role, NETWORK, draw, self.stolen, peer.signer)
        self.judge.liars.update(dict.fromkeys(self.liars))

    def _named(self, fault: Fault) -> SimPeer:
        return self.people[int(str(fault.arguments["peer"]))]

    def put(self, peer: SimPeer, body: Body, chain: ChainId, draw: Random) -> int:
        """Have `peer` sign `body` for `chain` by its own clock; return the ticket."""
        time_ms = self._instant(peer).wall_ms
        since = self.height(peer, chain)
        record = sign_record(peer.signer, NETWORK, chain, body, time_ms, draw.getrandbits(52), since)
        self.judge.asked(peer.id, self._tickets + 1, record.id)
        return self.ask(peer, SubmitRecord(record))

    def settled(self, ticket: int) -> bool:
        """Say whether the command with this ticket has an outcome."""
        return ticket in self._outcomes

    def done(self, ticket: int) -> bool:
        """Say whether the command with this ticket was carried out."""
        return isinstance(self._outcomes.get(ticket), Done)

    def refusal(self, ticket: int) -> str:
        """Return why the command with this ticket was refused, or ''."""
        outcome = self._outcomes.get(ticket)
        return outcome.reason if isinstance(outcome, Failed) else ""

    def height(self, peer: SimPeer, chain: ChainId) -> int:
        """Return how many blocks of `chain` the node of `peer` has applied."""
        found = peer.node.chains.get(chain)
        return found.state.height if found is not None else 0

    def work(self, working: bool) -> None:
        """Let the owners ask for records from now on, or let them rest."""
        self.owners.work(working)

    # --- peers that die, lie and are judged -----------------------------------------------------

    def step(self, peer: SimPeer, event: Event) -> None:
        """Give one event to a peer; whatever it raises is judged."""
        second = self.now_ms // 1000
        self._second = (second, self._second[1] + 1 if self._second[0] == second else 0)
        if self._second[1] > STEPS_A_SECOND:
            raise Violation("order", f"{STEPS_A_SECOND} steps within one second of virtual time")
        liar = self.liars.get(peer.id)
        if liar is not None and isinstance(event, Received):
            liar.heard(event.message)
        if peer.id in self._busy and peer.up:
            self._busy[peer.id].append(event)
        elif peer.up:
            self._perform(peer, self._decide(peer, event))

    def _decide(self, peer: SimPeer, event: Event) -> list[Effect]:
        self.steps += 1
        if isinstance(event, Received):
            if not self.doors.admits(peer.id, event.peer):
                return []  # it came before the door was shut, and waited for the disk
            self.judge.trust.took_frame(peer.id, event.peer)
        try:
            effects = peer.node.step(event, self._instant(peer))
        except Exception as error:
            where = f"{type(event).__name__}: {type(error).__name__}: {error}"
            raise Violation("order", f"{peer.name} has failed at {where}") from error
        if isinstance(event, Received) and isinstance(event.message, Proposal | Votes | Polka):
            self._note_caught(peer, event.message.chain, effects)
        return effects

    def _note_caught(self, peer: SimPeer, chain: ChainId, effects: list[Effect]) -> None:
        """Remember whom an honest peer has found to have signed two values on `chain`."""
        for effect in effects:
            notice = effect.notice if isinstance(effect, Notify) else None
            if not isinstance(notice, Misbehaved) or peer.id in self.liars:
                continue
            if notice.reason.startswith("signed two"):
                self.caught.setdefault((chain, notice.peer), {})[peer.id] = peer.life

    def crash(self, peer: SimPeer, kept: int = 0) -> None:
        """Cut the power of `peer`; what waited for its disk is gone too."""
        self._busy.pop(peer.id, None)
        super().crash(peer, kept)

    def restart(self, peer: SimPeer) -> None:
        """Bring `peer` back and see that it has forgotten nothing."""
        try:
            super().restart(peer)
        except (AssertionError, StorageError) as error:
            raise Violation("durability", f"{peer.name} cannot be restarted: {error}") from error
        self.doors.follow(peer)
        self.judge.restarted(peer.id, peer.store)
        self.keys.begin_life(peer)

    def change_key(self, peer: SimPeer, signer: Signer) -> None:
        """Let `peer` go on under another key; its old one falls into the hands of the liars."""
        last = {chain: oracle.height for chain, oracle in self.judge.oracles.items()}
        self.stolen.append(Stolen(peer.signer, last))
        self.judge.goes_on_as(peer.id, signer.peer)
        self.owners.renamed(self.people.index(peer), signer.peer)
        super().change_key(peer, signer)
        self.faults.weather()

    def _link(self, first: PeerId, second: PeerId) -> None:
        if self.doors.admits(first, second) and self.doors.admits(second, first):
            super()._link(first, second)

    def _new_store(self) -> MemoryStore:
        return SimStore()

    def _perform(self, peer: SimPeer, effects: list[Effect]) -> None:
        """Store, then speak. Over a slow disk, what comes meanwhile is taken in one batch afterwards."""
        sync_ms = self.faults.sync_ms.get(peer.name, 0) if self.faults.sync_ms else 0
        items = [effect.item for effect in effects if isinstance(effect, Persist)] if sync_ms else []
        if not items:
            super()._perform(peer, effects)
        elif self._write(peer, items):
            self._busy[peer.id] = []
            self.at(self.now_ms + sync_ms, partial(self._written, peer, peer.life, items, effects))

    def _written(self, peer: SimPeer, life: int, items: list[Item], effects: list[Effect]) -> None:
        if not peer.up or peer.life != life:
            return
        self._sync(peer, items)
        waiting = self._busy.pop(peer.id)
        self._speak(peer, effects)
        batch: list[Effect] = []
        for event in waiting:
            if peer.up:
                batch += self._decide(peer, event)
        if peer.up:
            self._perform(peer, batch)

    def _store(self, peer: SimPeer, items: list[Item]) -> bool:
        written = self._write(peer, items)
        if written:
            self._sync(peer, items)
        return written

    def _sync(self, peer: SimPeer, items: list[Item]) -> None:
        peer.store.sync()
        self.judge.synced(peer.id, items)

    def _write(self, peer: SimPeer, items: list[Item]) -> bool:
        """Write items; False if the peer dies of it."""
        trap = self.faults.traps.get(peer.name)
        try:
            peer.store.write(items)
        except StorageError:
            self.faults.stop(peer, len(peer.store.unsynced), DISK_RETRY_MS)
            return False
        if trap is not None:
            trap.skip -= 1
            if trap.skip < 0:
                del self.faults.traps[peer.name]
                if trap.kept != SPOKEN:
                    self.faults.stop(peer, trap.kept, trap.for_ms)
                    return False
                self._words[peer.id] = trap.said
                life = peer.life
                self.at(self.now_ms, partial(self._die, peer, life, trap.for_ms))
        return True

    def _die(self, peer: SimPeer, life: int, for_ms: int) -> None:
        """The end of a trap that let the peer store everything, and say a part of it."""
        self._words.pop(peer.id, None)
        if peer.up and peer.life == life:
            self.faults.stop(peer, 0, for_ms)

    def _speak(self, peer: SimPeer, effects: list[Effect]) -> None:
        liar = self.liars.get(peer.id)
        for effect in effects:
            match effect:
                case Send(receiver, message):
                    self._say(peer, (receiver,), message, liar)
                case Broadcast(receivers, message):
                    self._say(peer, receivers, message, liar)
                case Notify(notice):
                    self._tell(peer, notice)
                case WantLink() | UnwantLink():
                    super()._speak(peer, [effect])

    def _say(self, peer: SimPeer, receivers: tuple[PeerId, ...], message: Message, liar: Liar | None) -> None:
        if liar is None:
            words = self._words.get(peer.id)
            if words is not None:
                receivers = receivers[:words]
                self._words[peer.id] = words - len(receivers)
            if receivers:
                self.judge.spoke(peer.id, message)
                frame = encode(message)
                for receiver in receivers:
                    self._send(peer, receiver, frame)
            return
        for receiver in receivers:
            for speaker, to, said in liar.speak(peer.node, receiver, message):
                frame = encode(said)
                if speaker == peer.id:
                    self.judge.spoke(peer.id, said)
                    self._send(peer, to, frame)
                else:
                    self._impersonate(speaker, to, frame)

    def _impersonate(self, speaker: PeerId, to: PeerId, frame: bytes) -> None:
        """A frame comes on a link whose key is no member's."""
        target = self.peers.get(to)
        if target is not None and target.up:
            self.at(self.now_ms + 1, partial(self._accept, target, speaker, frame))

    def _tell(self, peer: SimPeer, notice: Notice) -> None:
        if peer.id in self._words and isinstance(notice, Done):
            return  # it dies before its owner hears of it
        self.judge.told(peer.id, notice, peer.store)
        if isinstance(notice, TrustDecided):
            self.doors.follow(peer)
        super()._tell(peer, notice)

    # --- pools ----------------------------------------------------------------------------------

    def _form(self, number: int) -> ChainId:
        plan = self.plan
        observers = self.observers if number == 0 else self.observers[: plan.observed]
        invitation = Invitation(
            NETWORK,
            f"pool-{number}",
            "manufacturing" if number else "fixed",
            self.cloud.id,
            tuple(peer.member for peer in self.members),
            tuple(peer.member for peer in observers),
            (),
            EPOCH_MS,
            number,
        )
        genesis = self.command(self.cloud, FormPool(invitation))
        assert isinstance(genesis, Genesis)
        people = [*self.members, *observers]
        formed = self.run_until(lambda: all(genesis.chain in peer.node.chains for peer in people), 10_000)
        if not formed:
            raise Violation("liveness", "a pool in calm weather was not formed")
        return genesis.chain

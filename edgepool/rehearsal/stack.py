"""The whole stack in one event loop: gateways with real peers, their owners, and a judge of all they do.

What runs is what a gateway runs: `Peer` with its loop, codec, core and store in a folder. Rehearsed are the
links (network.py), the disk below the store (disk.py), time (virtualtime.py), and chance. The judge is that
of the simulator (edgepool.sim.checkers), which sees what becomes durable, what leaves, and what owners are
told; beside it stand here:

    durability   nothing leaves while something written is not synced
    records      what submit and publish have returned stands where they said
    order        events come in order; a peer stops only if its disk refuses
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from msgspec.structs import replace

from edgepool.config import KnownPeer, Limits, PeerSettings
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import Done, Item, Misbehaved, RecordRef
from edgepool.errors import EdgepoolError
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Message, decode_message
from edgepool.model.record import Body, DataOffer
from edgepool.model.trust import RevokePeer
from edgepool.peer.peer import Peer
from edgepool.peer.values import BlockAdded, EventsMissed, PeerEvent, PeerMisbehaved, Published
from edgepool.rehearsal.cast import CASTS, MACHINE_TYPE, NETWORK, enrol, key_of, next_key
from edgepool.rehearsal.disk import RehearsedStore
from edgepool.rehearsal.gateway import Gateway
from edgepool.rehearsal.network import ADDRESS, RehearsedNetwork
from edgepool.rehearsal.plan import StackPlan
from edgepool.rehearsal.virtualtime import START_S, VirtualClock, VirtualTimeLoop
from edgepool.sim.checkers import Judge, Violation
from edgepool.sim.workload import Owner

EPOCH_MS = 1_700_000_000_000
FORMED_EVERY_S = 2.0
"""Pools are formed at fixed times, so that the same cast forms the same pools under each seed."""
THINK_S = 0.6
"""How long an owner thinks at most before it asks its peer for the next thing."""
LIMITS = Limits(outbox_bytes=64 * 1024, chain_bytes=1024 * 1024)
"""As small as can be set, so that outboxes overflow and long runs take snapshots."""
FRAMES_KEPT = 64
_CLOUD = "cloud"


@dataclass(frozen=True, slots=True)
class _View:
    """A chain as an owner sees it."""

    state: ChainState


class Stack:
    """All gateways of a plan, in `folder`, on a virtual-time loop that runs; see the module."""

    def __init__(self, plan: StackPlan, loop: VirtualTimeLoop, folder: Path) -> None:
        self.plan = plan
        self.judge = Judge()
        self.network = RehearsedNetwork(plan.seed, self.note)
        self.chains: list[ChainId] = []
        self.enough = asyncio.Event()
        """The main chain has as many blocks as were asked for."""
        self.violation: asyncio.Future[Violation] = loop.create_future()
        self.published: list[tuple[Gateway, Published]] = []
        self._loop = loop
        self._folder = folder
        self._cast = plan.seed % CASTS
        self._trace = hashlib.sha256()
        self._frames: dict[bytes, Message] = {}
        self._heights: dict[tuple[PeerId, int, ChainId], int] = {}
        self.promises = 0
        """How many records owners were promised."""
        self._owners: dict[str, Owner] = {}
        self._keys: dict[str, int] = {}
        """How many next keys each gateway has been given."""
        self.keys_changed = 0
        self.formers: dict[PeerId, str] = {}
        """The keys that were before, each with the name of the gateway that had it."""
        self.on_renamed: Callable[[], None] = lambda: None
        """Called when a gateway has another key."""
        self._works = asyncio.Event()
        self._at_it: dict[str, None] = {}
        """Gateways whose owners wait for an answer."""
        self._tasks: list[asyncio.Task[None]] = []
        cloud = key_of(self._cast, _CLOUD)[1]
        machines = plan.members if plan.observed else plan.members - 1
        self.gateways = [self._machine(place, cloud) for place in range(machines)]
        self.gateways.append(self._gateway(PeerSettings(name=_CLOUD, network=NETWORK, role="coordinator")))
        self.members = self.gateways[: plan.members]

    # --- building and ending --------------------------------------------------------------------

    def _machine(self, place: int, cloud: PeerId) -> Gateway:
        return self._gateway(
            PeerSettings(
                name=f"m{place}",
                network=NETWORK,
                machine_type=MACHINE_TYPE,
                coordinators=(cloud,),
                known_peers=(KnownPeer(name=_CLOUD, address=f"{ADDRESS}/p2p/{cloud}"),),
            )
        )

    def _gateway(self, settings: PeerSettings) -> Gateway:
        name, seed = settings.name, self.plan.seed
        folder = self._folder / name
        settings = replace(
            settings,
            folder=folder,
            identity=enrol(folder, self._cast, name, settings.role, settings.machine_type),
            limits=LIMITS,
        )
        peer = key_of(self._cast, name)[1]
        self.judge.names[peer] = name
        clock = VirtualClock(self._loop, EPOCH_MS)
        return Gateway(settings, peer, self.network, clock, Random(f"{seed}/disk/{name}"), self._loop, self)

    async def form(self) -> None:
        """Switch everything on and form the plan's pools, in calm weather."""
        for gateway in self.gateways:
            self._tasks.append(asyncio.create_task(gateway.keep(), name=f"keeper of {gateway.name}"))
        for number in range(self.plan.chains):
            await asyncio.sleep(START_S + (number + 1) * FORMED_EVERY_S - self._loop.time())
            self.chains.append(await self._form(number))
        for place, gateway in enumerate(self.gateways):
            owner = Owner(self.plan.seed, place, gateway.id, gateway.name == _CLOUD)
            self._owners[gateway.name] = owner
            self._tasks.append(asyncio.create_task(self._own(gateway, owner), name=f"owner {place}"))

    async def _form(self, number: int) -> ChainId:
        cloud = self.gateways[-1].peer
        assert cloud is not None
        members = [cloud.member(gateway.id) for gateway in self.members]
        observers = [cloud.member(cloud.id)] if self.plan.observed else []
        genesis = await cloud.form_pool(
            f"pool-{number}",
            "manufacturing" if self.plan.observed else "fixed",
            [member for member in members if member is not None],
            observers=[observer for observer in observers if observer is not None],
        )
        return genesis.chain

    async def close(self) -> None:
        """Stop all owners and peers."""
        keepers, owners = self._tasks[: len(self.gateways)], self._tasks[len(self.gateways) :]
        for task in owners:
            task.cancel()
        for gateway in self.gateways:
            gateway.retire()
        await asyncio.gather(*keepers, *owners, return_exceptions=True)

    # --- keys -------------------------------------------------------------------------------------

    def give_next_key(self, gateway: Gateway) -> bool:
        """Let a gateway begin to change its key; False if it does so already."""
        files = gateway.key_files
        if files.begun or files.is_made:
            return False
        number = self._keys[gateway.name] = self._keys.get(gateway.name, 0) + 1
        heir = next_key(gateway.settings, self._cast, number)
        self.judge.names[heir] = gateway.name
        gateway.change_key(heir)
        return True

    def changing(self, settled: bool = True) -> list[str]:
        """Return the gateways whose keys change; with `settled` also those that have still to settle it."""
        files = {gateway.name: gateway.key_files for gateway in self.gateways}
        return [name for name, one in files.items() if one.begun or (settled and one.is_made)]

    def renamed(self, gateway: Gateway, former: RevokePeer) -> None:
        """A gateway has another key."""
        self.note("key", gateway.name, gateway.id)
        self.keys_changed += 1
        self.formers[PeerId(former.peer)] = gateway.name
        self.judge.goes_on_as(PeerId(former.peer), gateway.id)
        # The coordinator carries what one main chain has decided to the others.
        self.judge.trust.wanted |= {former: None, RevokePeer(former.peer): None}
        self._owners[gateway.name].me = gateway.id
        self.on_renamed()

    # --- owners -----------------------------------------------------------------------------------

    def work(self, working: bool) -> None:
        """Let the owners ask for records from now on, or let them rest."""
        if working:
            self._works.set()
        else:
            self._works.clear()

    def waiting(self) -> list[str]:
        """Return the gateways whose owners wait for an answer."""
        return list(self._at_it)

    async def _own(self, gateway: Gateway, owner: Owner) -> None:
        """An owner: thinks, asks its peer for something, and waits until it is told."""
        try:
            while True:
                await asyncio.sleep(owner.random.random() * THINK_S)
                await self._works.wait()
                second = owner.random.random() < 0.08
                if gateway.peer is None:
                    continue
                self._at_it[gateway.name] = None
                try:
                    await self._ask(gateway, gateway.peer, owner, self.chains[-1 if second else 0])
                except EdgepoolError as refusal:
                    self.refused(gateway, refusal)
                finally:
                    del self._at_it[gateway.name]
        except Exception as error:
            self.found(Violation("order", f"the owner of {gateway.name} met {type(error).__name__}: {error}"))

    async def _ask(self, gateway: Gateway, peer: Peer, owner: Owner, chain: ChainId) -> None:
        kind = owner.random.random()
        if kind < 0.1:
            data = owner.random.randbytes(owner.random.randrange(1, 2_000))
            await self.publish(gateway, peer, f"part-{owner.random.randrange(8)}/model", data, chain)
        elif kind < 0.15 and self.published:
            wanted = owner.random.choice(self.published)[1]
            await peer.request(wanted.key)
        else:
            body = owner.next_body(_View(peer.chain_state(chain)))
            if body is not None:
                await self.submit(gateway, peer, body, chain)

    async def submit(self, gateway: Gateway, peer: Peer, body: Body, chain: ChainId) -> None:
        """Have `peer` put `body` on `chain`, and check what it says. Raises what submit raises."""
        life = gateway.life
        ref = await peer.submit(body, chain=chain)
        if gateway.life == life and not gateway.dead:
            self._acknowledged(gateway, peer, body, ref)

    async def publish(self, gateway: Gateway, peer: Peer, key: str, data: bytes, chain: ChainId) -> None:
        """Have `peer` publish, and check what it says. Raises what publish raises."""
        life = gateway.life
        published = await peer.publish(key, data, chain=chain)
        if gateway.life == life and not gateway.dead:
            found = self._acknowledged(gateway, peer, None, published.ref)
            if not isinstance(found, DataOffer) or found.root != published.root:
                self.found(Violation("records", f"{gateway.name} was promised an offer, and got {found}"))
            self.published.append((gateway, published))

    def refused(self, gateway: Gateway, error: EdgepoolError) -> None:
        """An owner was told no, or nothing in time."""
        self.note("refusal", gateway.name, type(error).__name__, str(error).replace(str(self._folder), ""))

    def _acknowledged(self, gateway: Gateway, peer: Peer, body: Body | None, ref: RecordRef) -> Body | None:
        """The owner was told that its record stands; return what is there."""
        certified = peer.block(ref.chain, ref.height)
        records = certified.block.records if certified is not None else ()
        if ref.index >= len(records):
            self.found(Violation("records", f"{gateway.name} was promised a record that is not in {ref}"))
            return None
        signed = records[ref.index]
        if signed.record.author != gateway.id or body not in (None, signed.record.body):
            self.found(Violation("records", f"{gateway.name} was promised another record than that at {ref}"))
        self.note("promise", gateway.name, signed.id)
        self.promises += 1
        number, store = self.promises, gateway.store
        assert store is not None
        self._judged(lambda: self.judge.asked(gateway.id, number, signed.id))
        self._judged(lambda: self.judge.told(gateway.id, Done(number, ref), store))
        return signed.record.body

    # --- what gateways do (Onlooker) --------------------------------------------------------------

    def started(self, gateway: Gateway, store: RehearsedStore) -> None:
        """A life begins with what is in `store`."""
        self.note("start", gateway.name)
        self._judged(lambda: self.judge.restarted(gateway.id, store))

    def synced(self, gateway: Gateway, items: list[Item]) -> None:
        """Something has become durable."""
        for item in items:
            self.note("durable", gateway.name, type(item).__name__)
        self._judged(lambda: self.judge.synced(gateway.id, items))
        main = self.judge.oracles.get(self.chains[0]) if self.chains else None
        if main is not None and main.height >= self.plan.blocks:
            self.enough.set()

    def speaks(self, gateway: Gateway, frame: bytes) -> None:
        """A frame is about to leave."""
        if gateway.disk.dirty:
            self.found(Violation("durability", f"{gateway.name} speaks while its disk has not synced"))
        message = self._frames.get(frame)
        if message is None:
            if len(self._frames) >= FRAMES_KEPT:
                self._frames.clear()
            message = self._frames[frame] = decode_message(frame)
        self._judged(lambda: self.judge.spoke(gateway.id, message))

    def happened(self, gateway: Gateway, event: PeerEvent) -> None:
        """The peer tells its owner something."""
        match event:
            case PeerMisbehaved(peer, reason):
                store = gateway.store
                assert store is not None
                self._judged(lambda: self.judge.told(gateway.id, Misbehaved(peer, reason), store))
            case BlockAdded(chain, certified):
                key, height = (gateway.id, gateway.life, chain), certified.block.header.height
                if height != self._heights.get(key, height - 1) + 1:
                    self.found(Violation("order", f"{gateway.name} tells of block {height} out of turn"))
                self._heights[key] = height
            case EventsMissed(count):
                self.found(Violation("order", f"{gateway.name} has dropped {count} events"))
            case _:
                pass

    def ended(self, gateway: Gateway, why: str) -> None:
        """A life is over."""
        self.note(why, gateway.name)

    def found(self, violation: Violation) -> None:
        """Something happened that must never happen; the first such thing ends the run."""
        if not (self.violation.done() or self._loop.is_closed()):
            self.violation.set_result(violation)

    def _judged(self, judge: Callable[[], None]) -> None:
        try:
            judge()
        except Violation as violation:
            self.found(violation)

    @property
    def trace(self) -> str:
        """The hash of everything that has happened so far, as hex digits."""
        return self._trace.hexdigest()

    def note(self, what: str, *details: str | bytes) -> None:
        """Take into the trace that something happened now."""
        texts = [detail if isinstance(detail, bytes) else detail.encode() for detail in details]
        line = b"|".join((f"{self._loop.time():.9f}|{what}".encode(), *texts))
        self._trace.update(len(line).to_bytes(4, "big") + line)

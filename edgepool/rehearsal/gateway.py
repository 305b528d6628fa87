"""One gateway of a rehearsal: its peer's lives, one after the other, as a service manager would have it.

A life ends by a power cut (nobody is told, what was not synced is lost), by a stop (the peer closes), or
because the peer gives up, as it does when its disk refuses. The folder is what goes from life to life.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from random import Random
from typing import Protocol

from edgepool.config import PeerSettings
from edgepool.core.machine import Item
from edgepool.errors import EdgepoolError
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member
from edgepool.model.trust import RevokePeer
from edgepool.peer.peer import Peer
from edgepool.peer.values import PeerEvent
from edgepool.rehearsal.disk import Disk, PowerCut, RehearsedStore
from edgepool.rehearsal.network import RehearsedNetwork, RehearsedTransport
from edgepool.rehearsal.virtualtime import VirtualClock, VirtualTimeLoop
from edgepool.runtime.ports import PeerIdentity
from edgepool.sim.checkers import Violation
from edgepool.transport.keychange import KeyChange

RETRY_MS = 1_000
"""How long a gateway whose peer gave up waits before it starts it again."""


class _CutShort(KeyChange):
    """A change of a key that is made, and not finished."""

    def finish(self) -> None:
        """The power is gone."""


class Onlooker(Protocol):
    """Who sees everything that gateways do, and judges it."""

    def started(self, gateway: Gateway, store: RehearsedStore) -> None:
        """A life has begun, with what is in `store`."""
        ...

    def synced(self, gateway: Gateway, items: list[Item]) -> None:
        """Something has become durable."""
        ...

    def speaks(self, gateway: Gateway, frame: bytes) -> None:
        """A frame is about to leave."""
        ...

    def happened(self, gateway: Gateway, event: PeerEvent) -> None:
        """The peer tells its owner something."""
        ...

    def ended(self, gateway: Gateway, why: str) -> None:
        """A life is over."""
        ...

    def renamed(self, gateway: Gateway, former: RevokePeer) -> None:
        """The gateway has another key from now on; its former one has left its own revocation."""
        ...

    def found(self, violation: Violation) -> None:
        """Something happened that must never happen."""
        ...


class Gateway:
    """A machine with a disk, a clock and a peer that is up, down, or on its way to either."""

    def __init__(
        self,
        settings: PeerSettings,
        peer_id: PeerId,
        network: RehearsedNetwork,
        clock: VirtualClock,
        draw: Random,
        loop: VirtualTimeLoop,
        onlooker: Onlooker,
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self.id = peer_id
        self.clock = clock
        self.peer: Peer | None = None
        """The peer while it is open."""
        self.store: RehearsedStore | None = None
        """The store of this life, or of the last one."""
        self.life = 0
        self.dead = False
        """Whether this life was ended by a power cut."""
        self.trap_ms = RETRY_MS
        """How long the machine stays without power if the disk's trap springs."""
        self.disk = Disk(settings.folder / "store", draw, loop, lambda: self.cut_power(self.trap_ms))
        self._network = network
        self._onlooker = onlooker
        self._transport: RehearsedTransport | None = None
        self._running = False
        self._over = asyncio.Event()
        self._wake = asyncio.Event()
        self._away_ms = 0
        self._retired = False
        self._next_id: PeerId | None = None
        self._changing = False

    @property
    def member(self) -> Member:
        """This gateway as a pool member."""
        return Member(self.id, self.name, self.settings.machine_type, (), self.settings.role)

    @property
    def folder(self) -> Path:
        """Where the chains of its peer are."""
        return self.disk.folder

    async def keep(self) -> None:
        """Let the peer live, again and again, until the gateway is retired."""
        while not self._retired:
            self._running = True
            try:
                await self._live()
            finally:
                self._running = False
            try:
                async with asyncio.timeout(self._away_ms / 1000):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def cut_power(self, for_ms: int) -> None:
        """End the life at once, without a word; un-synced writes are lost."""
        if not self._running or self.dead:
            return
        self.dead = True
        self.disk.powered = False
        if self._transport is not None:
            self._transport.cut_power()
        self._end("power", for_ms)

    def stop(self, for_ms: int) -> None:
        """End the life as a good peer ends."""
        if self._running and not self._over.is_set():
            self._end("stop", for_ms)

    def come_back(self) -> None:
        """Begin a new life without further waiting, if this one is over."""
        self._wake.set()

    @property
    def key_files(self) -> KeyChange:
        """How far a change of this gateway's key is."""
        return KeyChange(self.settings)

    def change_key(self, heir: PeerId) -> None:
        """Go on as `heir`, whose key and certificate lie in the folder, as soon as the pools agree."""
        self._next_id = heir
        if self.peer is not None:
            self.peer.rotation.start()

    def retire(self) -> None:
        """Stop, for good."""
        self._retired = True
        self.come_back()
        self.stop(0)

    async def _live(self) -> None:
        self.life += 1
        self.dead = False
        self._over.clear()
        self._wake.clear()
        self.disk.start()
        onlooker = self._onlooker
        self.store = RehearsedStore(
            self.disk, partial(onlooker.started, self), partial(onlooker.synced, self)
        )
        named = PeerIdentity(self.id, self.name, self.settings.role, self.settings.machine_type)
        self._transport = RehearsedTransport(
            self._network, named, self.settings.limits, partial(self._onlooker.speaks, self)
        )
        peer = Peer(self.settings, transport=self._transport, store=self.store, clock=self.clock)
        self._changing = False
        peer.rotation.on_ready = self._ready
        try:
            await peer.__aenter__()
        except (EdgepoolError, PowerCut) as error:
            if not (self.dead or self.disk.complained):
                self._onlooker.found(Violation("durability", f"{self.name} cannot be restarted: {error}"))
            if not self._over.is_set():
                self._end("start", RETRY_MS)
        else:
            await self._until_over(peer)
        if self.dead:
            self.disk.settle()
        elif self._changing:
            self._change(peer)

    def _ready(self) -> None:
        """The peer wants to be closed, and opened again under its next key."""
        if self._running and not self._over.is_set():
            self._changing = True
            self._end("key", 0)

    def _change(self, peer: Peer) -> None:
        """Put the next key in the place of the present one."""
        assert self._next_id is not None
        former = peer.rotation.former_key()
        # In every other life the power fails before the last step, which the next start makes up for.
        files = self.key_files if self.life % 2 else _CutShort(self.settings)
        files.make(former)
        self.id, self._next_id = self._next_id, None
        self._onlooker.renamed(self, former)

    async def _until_over(self, peer: Peer) -> None:
        self.peer = peer
        reader = asyncio.create_task(self._read(peer), name=f"reader of {self.name}")
        await self._over.wait()
        self.peer = None
        await peer.__aexit__()
        await reader

    async def _read(self, peer: Peer) -> None:
        """Hand on what the peer tells; its silence says that it has given up, or is closed."""
        try:
            async for event in peer.watch():
                self._onlooker.happened(self, event)
        except EdgepoolError:
            pass  # it had given up before it could be watched
        if not self._over.is_set():
            if not self.disk.complained:
                text = f"{self.name} has stopped by itself: {peer.failure or 'without a word'}"
                self._onlooker.found(Violation("order", text))
            self._end("failure", RETRY_MS)

    def _end(self, why: str, away_ms: int) -> None:
        self._away_ms = away_ms
        self._over.set()
        self._onlooker.ended(self, why)

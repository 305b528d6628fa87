"""Places at libp2p relays: to be a member there, and to be reached through them."""

from __future__ import annotations

import asyncio
from typing import Protocol

from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId, short, split_address
from edgepool.transport.conduits import ConduitPlace
from edgepool.transport.libp2p_child.messages import Reserve, ToChild
from edgepool.transport.proofdoor import Admit, ProofDoor

AGAIN_S = 2.0
"""After so long a place that was lost, or not given, is asked for again."""
KEEP_S = 30.0
"""So often a place is asked for that stands already."""
MAX_RELAYS = 16
PLACE_STREAM = "/edgepool/place/1"
"""The protocol by which a peer is known as a member at a relay; nothing but an empty frame is said."""


class Process(Protocol):
    """What is needed of the child."""

    def say(self, message: ToChild) -> None:
        """Send the child a message."""
        ...


class Road(Protocol):
    """What is needed of the libp2p road."""

    process: Process

    def door(self, admit: Admit, protocol: str = ...) -> ProofDoor:
        """Return what is to stand on a stream that this side opens."""
        ...

    async def connect(self, door: ProofDoor, peer: PeerId, address: str) -> None:
        """Open a stream to a peer for `door`; OSError if that fails."""
        ...


class Standing(asyncio.BufferedProtocol):
    """A stream that says, by an empty frame of the relay, that its opener is known there; it is then kept."""

    def __init__(self, speaks: bool = False) -> None:
        self.known: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()
        self._speaks = speaks
        self._buffer = bytearray(64)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Both have proved their membership."""
        if self._speaks:
            transport.write(bytes(4))  # type: ignore[attr-defined]

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where to read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """The relay has spoken; what else may come says nothing."""
        if not self.known.done():
            self.known.set_result(True)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self.over.set()
        if not self.known.done():
            self.known.set_result(False)


class Relays:
    """The relays at which this peer stands: its own, where it keeps places, and those on ways to others."""

    def __init__(self, own: tuple[str, ...], me: PeerId, road: Road) -> None:
        self.addresses = tuple(f"{relay}/p2p-circuit/p2p/{me}" for relay in own)
        self._own = own
        self._road = road
        self._standing: dict[PeerId, Standing] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.names: dict[PeerId, str] = {}
        self._refusals: dict[PeerId, str] = {}

    def name_of(self, relay: str) -> str:
        """Return the name of a relay by its peer id, '' for none."""
        return self.names.get(PeerId(relay), short(relay)) if relay else ""

    def placed(self, relay: PeerId, refusal: str) -> None:
        """The child has asked a relay for a place: it has one, or none for this reason."""
        if any(split_address(own).peer == relay for own in self._own):
            self._refusals[relay] = refusal

    def places(self) -> list[ConduitPlace]:
        """Return how it stands with the places at this peer's own relays."""
        return [self._place(own) for own in self._own]

    def _place(self, own: str) -> ConduitPlace:
        relay = split_address(own).peer
        assert relay is not None
        standing = self._standing.get(relay)
        linked = standing is not None and not standing.over.is_set()
        reason = self._refusals.get(relay, "not asked yet") if linked else "no connection"
        return ConduitPlace(relay, self.names.get(relay, ""), own, not reason, reason, None)

    def start(self) -> None:
        """Keep places from now on."""
        self._tasks = [
            asyncio.create_task(self._keep(relay), name="edgepool place at a libp2p relay")
            for relay in self._own
        ]

    async def close(self) -> None:
        """Give all places up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stand(self, address: str) -> None:
        """Be known as a member at the relay in `address`; OSError if it does not let us."""
        found = split_address(address)
        relay = found.conduit or found.peer
        assert relay is not None
        standing = self._standing.get(relay)
        if standing is not None and not standing.over.is_set():
            return
        self._standing = {peer: one for peer, one in self._standing.items() if not one.over.is_set()}
        if len(self._standing) >= MAX_RELAYS:
            raise OSError(0, f"there are connections to {MAX_RELAYS} relays already")
        standing = Standing()

        def admit(identity: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol | None:
            if identity.peer != relay:
                return None
            self.names[relay] = identity.name
            return standing

        way, _, _ = address.partition("/p2p-circuit")
        await self._road.connect(self._road.door(admit, PLACE_STREAM), relay, way)
        if not await standing.known:
            raise OSError(0, "the relay does not know this peer")
        self._standing[relay] = standing

    async def _keep(self, relay: str) -> None:
        peer = split_address(relay).peer
        assert peer is not None
        while True:
            try:
                async with asyncio.timeout(KEEP_S):
                    await self.stand(relay)
                    self._road.process.say(Reserve(peer))
                    await self._standing[peer].over.wait()
            except TimeoutError:
                continue  # it stands: the place is asked for once more
            except OSError:
                pass
            await asyncio.sleep(AGAIN_S)

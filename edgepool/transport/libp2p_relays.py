"""Places at libp2p relays: to be a member there, and to be reached through them."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from edgepool.errors import DecodeError
from edgepool.model.codec import decode, encode
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId, split_address
from edgepool.model.lineage import Line
from edgepool.transport.conduitkeys import ConduitKeys
from edgepool.transport.conduits import ConduitPlace
from edgepool.transport.conduitwire import MAX_ANSWER_BYTES, FormerKeys
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.libp2p_child.messages import Reserve, ToChild
from edgepool.transport.proofdoor import Admit, ProofDoor
from edgepool.transport.refusals import WRONG_PEER, Counters, count

AGAIN_S = 2.0
"""After so long a place that was lost, or not given, is asked for again."""
KEEP_S = 30.0
"""So often a place is asked for that stands already."""
MAX_RELAYS = 16
PLACE_STREAM = "/edgepool/place/1"
"""The protocol by which a peer is known as a member at a relay.

Nothing is said but one frame of the relay: empty, or with the keys that it had before (FormerKeys).
"""


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
        """Open a stream to a peer, or to who is there instead, for `door`; OSError if that fails."""
        ...


class Standing(asyncio.BufferedProtocol):
    """A stream that says, by a frame of the relay, that its opener is known there; it is then kept.

    With `keys` this is the relay's end. Otherwise `relay` is who is there, and `known` what that says of its
    former keys, None if the opener is not known there.
    """

    def __init__(self, keys: ConduitKeys | None = None) -> None:
        self.known: asyncio.Future[Line | None] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()
        self.relay = PeerId("")
        self._keys = keys
        self._frames = FrameBuffer(MAX_ANSWER_BYTES) if keys is None else None
        self._ignored = bytearray(64)
        self._transport: asyncio.Transport | None = None

    def end(self) -> None:
        """End the stream at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Both have proved their membership."""
        self._transport = cast("asyncio.Transport", transport)
        if self._keys is not None:
            body = encode(FormerKeys(self._keys.line)) if self._keys.line else b""
            self._transport.write(header(len(body)) + body)

    def get_buffer(self, sizehint: int) -> bytearray | memoryview:
        """Return where to read into."""
        return self._ignored if self._frames is None else self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """The relay has spoken; nothing else that may come, to either end, says anything."""
        if self._frames is None:
            return
        self._frames.received(nbytes)
        try:
            if (frame := self._frames.next_frame()) is not None:
                self._frames = None
                said = decode(FormerKeys, frame, MAX_ANSWER_BYTES) if frame else FormerKeys(())
                self.known.set_result(said.line)
        except DecodeError:
            self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._transport = None
        self.over.set()
        if not self.known.done():
            self.known.set_result(None)


class Relays:
    """The relays at which this peer stands: its own, where it keeps places, and those on ways to others."""

    def __init__(
        self, own: tuple[str, ...], me: PeerId, road: Road, keys: ConduitKeys, counters: Counters
    ) -> None:
        self.keys = keys
        self._counters = counters
        self._me = me
        self._own = own
        self._road = road
        self._standing: list[Standing] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._refusals: dict[PeerId, str] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where this peer can be reached through its relays, as multiaddrs with its own id at the end."""
        return tuple(f"{self.keys.of_address(relay)}/p2p-circuit/p2p/{self._me}" for relay in self._own)

    def placed(self, relay: PeerId, refusal: str) -> None:
        """The child has asked a relay for a place: it has one, or none for this reason."""
        relay = self.keys.now(relay)
        if any(self._relay_of(own) == relay for own in self._own):
            self._refusals[relay] = refusal

    def places(self) -> list[ConduitPlace]:
        """Return how it stands with the places at this peer's own relays."""
        return [self._place(own) for own in self._own]

    def _relay_of(self, address: str) -> PeerId:
        """Return the relay that an address names, by the key that it has by now."""
        found = split_address(address)
        relay = found.conduit or found.peer
        assert relay is not None
        return self.keys.now(relay)

    def _place(self, own: str) -> ConduitPlace:
        relay = self._relay_of(own)
        linked = self._standing_at(relay) is not None
        reason = self._refusals.get(relay, "not asked yet") if linked else "no connection"
        name, address = self.keys.names.get(relay, ""), self.keys.of_address(own)
        return ConduitPlace(relay, name, address, not reason, reason, None)

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

    def _standing_at(self, relay: PeerId) -> Standing | None:
        self._standing = [one for one in self._standing if not one.over.is_set()]
        return next((one for one in self._standing if self.keys.now(one.relay) == relay), None)

    async def stand(self, address: str) -> Standing:
        """Be known as a member at the relay in `address`, by whatever key; OSError if it does not let us."""
        relay = self._relay_of(address)
        if (known := self._standing_at(relay)) is not None:
            return known
        if len(self._standing) >= MAX_RELAYS:
            raise OSError(0, f"there are connections to {MAX_RELAYS} relays already")
        standing, name = Standing(), ""

        def admit(identity: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol | None:
            nonlocal name
            standing.relay, name = identity.peer, identity.name
            return standing

        way, _, _ = address.partition("/p2p-circuit")
        await self._road.connect(self._road.door(admit, PLACE_STREAM), relay, way)
        try:
            line = await standing.known
            if line is None:
                raise OSError(0, "the relay does not know this peer")
            if standing.relay != relay and not self.keys.follow(relay, standing.relay, line):
                count(self._counters, WRONG_PEER)
                raise OSError(0, "another peer answers there")
        except BaseException:
            standing.end()
            raise
        self.keys.names[standing.relay] = name
        self._standing.append(standing)
        self.keys.met()
        return standing

    async def _keep(self, relay: str) -> None:
        while True:
            try:
                async with asyncio.timeout(KEEP_S):
                    standing = await self.stand(relay)
                    self._road.process.say(Reserve(standing.relay))
                    await standing.over.wait()
            except TimeoutError:
                continue  # it stands: the place is asked for once more
            except OSError:
                pass
            await asyncio.sleep(AGAIN_S)

"""The conduits of a peer: keeps its places there, and opens byte streams through them, or without.

A peer that accepts nothing from outside says where it can be reached by naming its conduits. Whoever wants it
asks one of them for a circuit; the peer is told, and comes to the conduit from its side.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgepool.config import PeerSettings
from edgepool.errors import DecodeError
from edgepool.model.ids import PeerId, format_address, split_address
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.conduitkeys import ConduitKeys
from edgepool.transport.conduitline import ConduitLine
from edgepool.transport.conduitwire import CIRCUIT_NAME, Offered
from edgepool.transport.dial import OpenStream, Way, open_tcp
from edgepool.transport.dialler import FIRST_BACKOFF_S, LONGEST_BACKOFF_S
from edgepool.transport.door import Doorway, connect
from edgepool.transport.identity import CONDUIT_PROTOCOL, Identity
from edgepool.transport.refusals import WRONG_PEER, Counters, count

DIRECT_S = 2.5
"""So long a direct connection may take: time to try once more if a packet is lost, and then a conduit."""
MAX_LINES = 16
"""A peer keeps connections to so many conduits at once."""
COMING_AT_ONCE = 32
"""So many circuits that others ask for are being opened at once; the rest are left to expire."""

_NOT_TAKEN = "it has ended the connection: it is no conduit, or refuses this peer"

Arrive = Callable[[socket.socket, Way], None]
"""Takes a connection from a peer that has come this way."""


@dataclass(frozen=True, slots=True)
class ConduitPlace:
    """How it stands with a place at a conduit: whether it is `kept`, or for which `reason` it is not.

    `round_trip_ms` is that to the conduit and back, None while it is not known; `name` is '' as long.
    """

    peer: PeerId
    name: str
    address: str
    kept: bool
    reason: str
    round_trip_ms: float | None


class Conduits:
    """The conduits in a peer's settings, and those at which others are reached. `open` opens a stream."""

    def __init__(self, settings: PeerSettings, identity: Identity, counters: Counters) -> None:
        self.keys = ConduitKeys(identity.network)
        self.keys.names[identity.peer] = settings.name
        self.through_libp2p: OpenStream | None = None
        self.local: Callable[[PeerIdentity, PeerId], bytes] | None = None
        self._settings = settings
        self._identity = identity
        self._counters = counters
        self._places: list[_Place] = []
        self._arrive: Arrive | None = None
        self._coming: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where this peer can be reached through its conduits, as multiaddrs with its own id at the end."""
        return tuple(
            f"{self.keys.of_address(conduit)}/p2p-circuit/p2p/{self._identity.peer}"
            for conduit in self._settings.conduits
        )

    def places(self) -> list[ConduitPlace]:
        """Return how it stands with the places at this peer's own conduits."""
        return [place.view() for place in self._places if place.keeping is not None]

    def start(self, arrive: Arrive) -> None:
        """Keep places from now on; those who come through the conduits are handed to `arrive`."""
        self._arrive = arrive
        for address in self._settings.conduits:
            self._place(address).keep()

    async def try_place(self, address: str, timeout_s: float) -> ConduitPlace:
        """Ask for a place at the conduit at an address and return how that ended; it is not kept."""
        place = self._place(address)
        await place.try_once(timeout_s)
        return place.view()

    async def close(self) -> None:
        """Give all places up."""
        tasks: list[asyncio.Task[Any]] = [*self._coming]
        for place in self._places:
            tasks += place.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def open(self, address: str) -> socket.socket:
        """Open a stream to a multiaddr, through a conduit if it says so (an OpenStream of dial.py)."""
        found = split_address(address)
        if found.libp2p and found.conduit is not None and self.through_libp2p is not None:
            return await self.through_libp2p(address)
        if found.libp2p:
            raise OSError(0, "Noise is spoken there, not TLS")
        if found.conduit is None:
            async with asyncio.timeout(DIRECT_S):
                return await open_tcp(found.host, found.port)
        if found.peer is None:
            raise OSError(0, "it does not say which peer is wanted behind the conduit")
        if self.keys.now(found.conduit) == self._identity.peer:
            if self.local is None:
                raise OSError(0, "this peer is no conduit (any more)")
            token = self.local(self._identity.certificate, found.peer)
        else:
            token = await self._place(address).ask(found.peer)
        return await _come(found.host, found.port, token)

    # --- places -------------------------------------------------------------------------------

    def _place(self, address: str) -> _Place:
        found = split_address(address)
        conduit = found.conduit or found.peer
        assert conduit is not None
        wanted = found.host, found.port, self.keys.now(conduit)
        for place in self._places:
            if (place.host, place.port, place.peer) == wanted:
                return place
        self._places = [place for place in self._places if not place.unused]
        if len(self._places) >= MAX_LINES:
            raise OSError(0, f"there are connections to {MAX_LINES} conduits already")
        self._places.append(made := _Place(self, *wanted))
        return made

    async def call(self, place: _Place, keeps: bool) -> ConduitLine:
        """Connect to a conduit. Raises OSError (which TimeoutError is), ValueError or DecodeError."""

        def judge(identity: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol | None:
            if protocol != CONDUIT_PROTOCOL:
                count(self._counters, WRONG_PEER)
                return None
            return ConduitLine(
                identity, self._settings.limits, keeps, lambda offered: self._told(place, offered)
            )

        doorway = Doorway(self._identity.trust, self._counters, judge)
        timeout_ms = self._settings.limits.handshake_timeout_ms
        address = format_address(place.host, place.port)
        try:
            await connect(doorway, address, self._identity.conduit_context, timeout_ms)
        finally:
            doorway.abandoned = True
        line = doorway.admitted
        if not isinstance(line, ConduitLine):
            raise OSError(0, "another peer answers there, or it is no conduit")
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._recognize(place, line)
        except BaseException:
            line.end()
            raise
        line.begin()
        return line

    async def _recognize(self, place: _Place, line: ConduitLine) -> None:
        """See that the conduit that is meant is there, if under another key than before; else OSError."""
        named, met = place.peer, line.identity.peer
        if met != named and not self.keys.follow(named, met, await line.former_keys()):
            count(self._counters, WRONG_PEER)
            raise OSError(0, "another peer answers there")
        self.keys.names[met] = line.identity.name
        self.keys.met()

    # --- who asks for this peer ---------------------------------------------------------------

    def _told(self, place: _Place, offered: Offered) -> None:
        if self._arrive is None or len(self._coming) >= COMING_AT_ONCE:
            return
        task = asyncio.create_task(self._meet(place, offered), name="edgepool circuit")
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def _meet(self, place: _Place, offered: Offered) -> None:
        try:
            async with asyncio.timeout(self._settings.limits.handshake_timeout_ms / 1000):
                connection = await _come(place.host, place.port, offered.token)
        except (OSError, ValueError):
            return  # the asker will see that nobody comes
        assert self._arrive is not None
        self._arrive(connection, Way(place.peer))


class _Place:
    """One conduit: the task that keeps a place there, if one is kept, and connections to ask over."""

    def __init__(self, owner: Conduits, host: str, port: int, peer: PeerId) -> None:
        self.host = host
        self.port = port
        self.keeping: asyncio.Task[None] | None = None
        self._owner = owner
        self._named = peer
        self._kept: ConduitLine | None = None
        self._line: ConduitLine | None = None
        self._calling: asyncio.Task[ConduitLine] | None = None
        self._problem = "not tried yet"

    @property
    def peer(self) -> PeerId:
        """The key that the conduit has by now."""
        return self._owner.keys.now(self._named)

    @property
    def unused(self) -> bool:
        """Whether nothing is lost if it is forgotten."""
        return self.keeping is None and self._calling is None and not (self._line and self._line.open)

    def keep(self) -> None:
        """Keep a place there from now on."""
        if self.keeping is None:
            self.keeping = asyncio.create_task(self._keep(), name="edgepool conduit")

    def close(self) -> list[asyncio.Task[Any]]:
        """End the connections; return the tasks that are to be ended."""
        for line in (self._kept, self._line):
            if line is not None:
                line.end()
        return [task for task in (self.keeping, self._calling) if task is not None]

    def view(self) -> ConduitPlace:
        """Return how it stands."""
        kept = self._kept
        up = kept is not None and kept.open and kept.reserved
        return ConduitPlace(
            self.peer,
            self._owner.keys.names.get(self.peer, ""),
            f"{format_address(self.host, self.port)}/p2p/{self.peer}",
            up,
            "" if up else self._problem,
            kept.round_trip.ms if up and kept is not None else None,
        )

    async def ask(self, target: PeerId) -> bytes:
        """Ask there for a circuit, over the connection that stands or a new one."""
        if self._kept is not None and self._kept.open and self._kept.reserved:
            return await self._kept.ask(target)
        if self._line is None or not self._line.open:
            if self._calling is None:
                self._calling = asyncio.create_task(self._call(), name="edgepool conduit call")
                self._calling.add_done_callback(lambda call: call.cancelled() or call.exception())
            # Several may wait for one call: that one of them gives up must not end it.
            await asyncio.shield(self._calling)
        assert self._line is not None
        return await self._line.ask(target)

    async def _call(self) -> ConduitLine:
        try:
            self._line = await self._owner.call(self, False)
            return self._line
        finally:
            self._calling = None

    async def try_once(self, timeout_s: float) -> None:
        """Ask for a place, and how far it is to there, once."""
        self._problem = "no answer in time"
        try:
            async with asyncio.timeout(timeout_s):
                self._kept = await self._owner.call(self, True)
                await self._kept.settled.wait()
                self._problem = self._kept.refusal or _NOT_TAKEN
                if self._kept.reserved:
                    await self._kept.measured.wait()
        except (OSError, ValueError, DecodeError) as error:
            self._problem = _why(error)

    async def _keep(self) -> None:
        """Call, reserve, and call again when the connection is lost: ever more slowly if it does not last."""
        loop = asyncio.get_running_loop()
        backoff_s = 0.0
        while True:
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(max(2 * backoff_s, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
            try:
                kept = self._kept = await self._owner.call(self, True)
            except (OSError, ValueError, DecodeError) as error:
                self._problem = _why(error)
                continue
            await kept.settled.wait()
            since_s = loop.time()
            self._problem = kept.refusal or _NOT_TAKEN
            if kept.reserved:
                self._problem = "the connection was lost"
                await kept.lost.wait()
            kept.end()
            if loop.time() - since_s > LONGEST_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S


async def _come(host: str, port: int, token: bytes) -> socket.socket:
    """Come to a conduit with a token; what is sent from then on goes to the other side."""
    connection = await open_tcp(host, port)
    try:
        await asyncio.get_running_loop().sock_sendall(connection, CIRCUIT_NAME + token)
    except BaseException:
        connection.close()
        raise
    return connection


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or "no connection"

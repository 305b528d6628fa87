"""Links over libp2p: the second road, beside that of mutual TLS (tls.py).

py-libp2p runs in a child process (libp2p_process.py, libp2p_child/). It brings streams whose other end Noise
has proved to have a peer id; here they become links, once both sides have shown that they are members
(proofdoor.py). Everything else about links is what tls.py does with them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from edgepool.config import PeerSettings
from edgepool.errors import LocalError
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId, as_libp2p, on_tcp, parse_address, split_address
from edgepool.transport.conduitkeys import ConduitKeys, with_conduit
from edgepool.transport.dial import Way
from edgepool.transport.door import advice, reachable_host
from edgepool.transport.identity import Identity
from edgepool.transport.keptport import LIBP2P_PORT_FILE, address_of_before, keep_port
from edgepool.transport.libp2p_child.messages import MAX_ADDRESSES, Begin, LookAround
from edgepool.transport.libp2p_pipes import BYTES_STREAM, StreamSide
from edgepool.transport.libp2p_process import ChildProcess, ChildState, ListeningFailed
from edgepool.transport.libp2p_relays import PLACE_STREAM, Relays, Standing
from edgepool.transport.libp2p_stream import AnotherPeer, ChildStream
from edgepool.transport.link import Link
from edgepool.transport.nearby import Nearby
from edgepool.transport.proofdoor import Admit, ProofDoor
from edgepool.transport.refusals import Counters

LINK_STREAM = "/edgepool/link/1"
"""The libp2p protocol of links."""
QUERY_STREAM = "/edgepool/query/1"
PROOF_STREAM = "/edgepool/proof/1"
"""The protocols of questions, for those who have no link."""

FORMER_SAID = 3
"""By so many of its former keys, the newest, does a peer let itself be found on the local network."""


class Libp2pRoad:
    """Opens and takes libp2p streams for links. `admit` judges who has proved to be a member."""

    def __init__(
        self,
        settings: PeerSettings,
        identity: Identity,
        counters: Counters,
        admit: Admit,
        keys: ConduitKeys,
    ) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._identity = identity
        self._counters = counters
        self._admit = admit
        self.arrived: Callable[[socket.socket, Way], None] | None = None
        self._arriving: set[asyncio.Task[None]] = set()
        self._doors: dict[ProofDoor, None] = {}
        self._proven: dict[PeerId, None] = {}
        self.serving: dict[str, Callable[[PeerIdentity], asyncio.BufferedProtocol]] = {
            PLACE_STREAM: lambda identity: Standing(keys),
        }
        self.relays = Relays(settings.libp2p.relays, identity.peer, self, keys, counters)
        limits = settings.limits
        begin = Begin(
            identity.signer.seed,
            (settings.libp2p.listen,) if settings.libp2p.listen else (),
            (LINK_STREAM, QUERY_STREAM, PROOF_STREAM, PLACE_STREAM, BYTES_STREAM),
            limits.handshakes,
            limits.links,
            limits.handshake_timeout_ms,
            limits.keepalive_ms,
            settings.libp2p.memory_bytes,
            settings.libp2p.events,
            settings.libp2p.relay,
        )
        # The libraries themselves take some 85 MiB of it.
        most_bytes = settings.libp2p.memory_bytes + 128 * 1024**2
        self.process = ChildProcess(begin, limits, counters, self._accept, self._up_again, most_bytes)
        self.nearby = Nearby()
        self.process.found = self.nearby.found
        self.process.placed = self.relays.placed

    @property
    def addresses(self) -> tuple[str, ...]:
        """The multiaddrs, with /noise at their end, at which this peer can be dialled; () before `start`."""
        found = []
        for address in self.process.addresses:
            host, port, _ = parse_address(address)
            found.append(as_libp2p(reachable_host(host), port))
        return tuple(found)

    @property
    def state(self) -> ChildState:
        """What the child has and uses."""
        return self.process.state

    async def start(self) -> None:
        """Start the child and listen; LocalError if that is not possible."""
        try:
            await self._start_process()
        except ListeningFailed as error:
            listened = OSError(error.number, os.strerror(error.number))
            raise LocalError(f"cannot listen on {error.address}: {advice(listened)}") from None
        self.relays.start()
        self._up_again()

    async def _start_process(self) -> None:
        """Start the child at the port of before, if the settings leave it open; see keptport.py."""
        listen, file = self._settings.libp2p.listen, self._settings.folder / LIBP2P_PORT_FILE
        if listen and (before := await address_of_before(file, listen)):
            with suppress(ListeningFailed):  # another program has it by now
                await self.process.start((before,))
                return
        await self.process.start()
        if listen:
            await keep_port(file, listen, self.process.addresses[0])

    def _up_again(self) -> None:
        """The child stands, for the first time or after a restart: have it look around, if that is wanted."""
        if not self._settings.libp2p.mdns:
            return
        # Who knows this peer by a former key only looks for that one.
        former = [one.former for one in reversed(self.relays.keys.line[-FORMER_SAID:])]
        every = itertools.product((self._identity.peer, *former), map(on_tcp, self.addresses))
        standing = tuple(f"{address}/p2p/{peer}" for peer, address in every)[:MAX_ADDRESSES]
        host = parse_address(on_tcp(self.addresses[0]))[0] if standing else reachable_host("0.0.0.0")
        self.process.say(LookAround(host, standing))

    def door(self, admit: Admit, protocol: str = LINK_STREAM) -> ProofDoor:
        """Return what is to stand on a stream that this side opens for `protocol`."""

        def proven(identity: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol | None:
            taker = admit(identity, protocol)
            if taker is not None:
                self._prove(identity)
            return taker

        return self._door(protocol, True, proven)

    async def connect(self, door: ProofDoor, peer: PeerId, address: str) -> None:
        """Open a stream to `peer` for `door`, which then knows the outcome; OSError if that fails.

        If another peer is there the stream is opened to that one: as over TLS, the door judges who it is.
        """
        timeout_ms = self._limits.handshake_timeout_ms
        if split_address(address).conduit is not None:
            address = with_conduit(address, (await self.relays.stand(address)).relay)
        try:
            stream = await self.process.open_stream(peer, on_tcp(address), door.protocol, timeout_ms)
        except AnotherPeer as there:
            stream = await self.process.open_stream(there.peer, on_tcp(address), door.protocol, timeout_ms)
        try:
            stream.begin(door)
            await asyncio.shield(door.over)
        except BaseException:
            stream.abort()
            raise

    async def open_pipe(self, address: str) -> socket.socket:
        """Open a byte stream to a peer behind a libp2p relay (an OpenStream of dial.py)."""
        peer = split_address(address).peer
        if peer is None:
            raise OSError(0, "it does not say which peer is wanted behind the relay")
        side = StreamSide()
        door = self.door(lambda identity, _: side if identity.peer == peer else None, BYTES_STREAM)
        await self.connect(door, peer, address)
        if door.admitted is None:
            raise OSError(0, "somebody else is there, or lets nobody in")
        return await side.as_socket()

    def _pipe(self, relay: PeerId) -> StreamSide:
        """Take a byte stream of another peer, which comes through a relay, as if it had come to the port."""

        async def arrive() -> None:
            connection = await side.as_socket()
            if self.arrived is None:
                connection.close()
            else:
                self.arrived(connection, Way(relay or None, libp2p=True))

        side = StreamSide()
        task = asyncio.get_running_loop().create_task(arrive(), name="edgepool bytes over libp2p")
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)
        return side

    async def close(self) -> None:
        """End the child, and with it all streams."""
        await self.relays.close()
        await self.process.close()

    def _accept(self, stream: ChildStream, protocol: str) -> asyncio.BaseProtocol | None:
        def admit(identity: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol | None:
            relay = self.relays.keys.name_of(stream.relay)
            serve = self.serving.get(protocol)
            taker: asyncio.BufferedProtocol | None
            if protocol == BYTES_STREAM:
                taker = self._pipe(stream.relay)
            else:
                taker = self._admit(identity, protocol) if serve is None else serve(identity)
            if taker is not None:
                self._prove(identity)
            if isinstance(taker, Link):
                taker.conduit = relay
            return taker

        self._doors = {door: None for door in self._doors if not door.over.done()}
        if len(self._doors) >= self._limits.handshakes:
            next(iter(self._doors)).give_way()
        door = self._door(protocol, False, admit)
        self._doors[door] = None
        return door

    def _prove(self, identity: PeerIdentity) -> None:
        """Have the child treat a peer as a member, for as long as it is one."""
        peer = identity.peer
        self.process.prove(peer)
        is_known = peer in self._proven
        self._proven.pop(peer, None)
        self._proven[peer] = None  # who has proved itself last stands last
        if not is_known:
            trust = self._identity.trust
            trust.hold(identity, lambda _: self._distrust(peer), lambda: peer not in self._proven)
        while len(self._proven) > self._limits.links:
            # Who is held no more must be a member no more for the child, or a revocation would not reach it.
            self._distrust(next(iter(self._proven)))

    def _distrust(self, peer: PeerId) -> None:
        self._proven.pop(peer, None)
        self.process.disconnect(peer)

    def _door(self, protocol: str, opened_here: bool, admit: Admit) -> ProofDoor:
        timeout_ms = self._limits.handshake_timeout_ms
        return ProofDoor(self._identity, self._counters, protocol, opened_here, admit, timeout_ms)

"""The py-libp2p host of the child, put together part by part so that no default of its own gets in.

Noise only: py-libp2p's default security options include plaintext, with which a peer id is forged. TCP, Yamux
and the accounting of connections are those of `wire` and `muxer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p.abc import IMuxedConn, INetStream, IRawConnection, ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from edgepool.transport.libp2p_child.circuits import Circuits
from edgepool.transport.libp2p_child.messages import Begin
from edgepool.transport.libp2p_child.muxer import Yamux
from edgepool.transport.libp2p_child.wire import AnotherPeer, BufferedConnection, Tcp
from edgepool.transport.refusals import BUSY

IDLE_S = 30.0
"""A connection without streams is ended after so long."""

Count = Callable[[str], None]


class NamingNoise(Noise):
    """Noise that says who was met instead of the peer that was dialled: a key may have changed there."""

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        """Shake hands; AnotherPeer if that is not with `peer_id`."""
        secured = await self.get_pattern().handshake_outbound(conn, None)
        met = secured.get_remote_peer()
        if met != peer_id:
            await secured.close()
            raise AnotherPeer(str(met))
        return secured


class Upgrader(TransportUpgrader):
    """Makes a TCP connection a Noise channel, and that a Yamux connection."""

    def __init__(self, noise: Noise, keepalive_s: float) -> None:
        super().__init__({TProtocol(NOISE): noise}, {TProtocol(YAMUX): Yamux})  # type: ignore[dict-item]
        self._keepalive_s = keepalive_s

    async def upgrade_security(
        self, raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None
    ) -> ISecureConn:
        """Shake hands by Noise; what fails in it, of whatever class, is one failure with that cause."""
        try:
            secured = await super().upgrade_security(raw_conn, is_initiator, peer_id)
        except Exception as error:
            raise SecurityUpgradeFailure("the Noise handshake failed") from error
        stream = getattr(raw_conn, "stream", None)
        if isinstance(stream, BufferedConnection):
            stream.secured.set()
        return secured

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Agree on Yamux; py-libp2p would make its own class of it, whatever it was given."""
        selector = self.muxer_multistream._selector
        await selector.select(conn, conn.is_initiator, self.muxer_multistream.negotiate_timeout)
        return Yamux(conn, peer_id, self._keepalive_s)


class AddresslessStore(PeerStore):
    """Keeps no addresses: py-libp2p would learn them of whoever connects, by identify."""

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        """Keep nothing."""

    def consume_peer_record(self, envelope: Any, ttl: int) -> bool:
        """Keep nothing, which is no fault of who sends it."""
        return True


class NoConnector(AutoConnector):
    """Dials nobody by itself: py-libp2p's own dials what it has heard of until it has connections enough."""

    async def maybe_connect(self) -> None:
        """Leave it to the parent whom to dial."""


class Connections:
    """Dials, and keeps the number of connections bounded: those of members stay, the oldest others go."""

    def __init__(self, begin: Begin, count: Count) -> None:
        key_pair = create_new_key_pair(begin.seed)
        self.tcp = Tcp(begin.handshakes, count)
        self._count = count
        self._most_unproven = begin.handshakes
        self._proven: dict[ID, None] = {}
        self._most_proven = begin.connections
        noise = NamingNoise(key_pair, noise_privkey=create_noise_key_pair().private_key)
        peer_store = AddresslessStore()
        peer = ID.from_pubkey(key_pair.public_key)
        peer_store.add_key_pair(peer, key_pair)
        places = 2 * begin.connections + 2 * begin.handshakes
        timeout_s = begin.handshake_timeout_ms / 1000
        self._answer_s = timeout_s / 2
        config = ConnectionConfig(
            max_connections=places,
            min_connections=0,
            low_watermark=0,
            high_watermark=places,
            max_connections_per_peer=8,
            inbound_upgrade_timeout=timeout_s,
            outbound_upgrade_timeout=timeout_s,
        )
        upgrader = Upgrader(noise, begin.keepalive_ms / 1000)
        self.swarm = Swarm(
            peer, peer_store, upgrader, [self.tcp], RetryConfig(max_retries=0), connection_config=config
        )
        self.swarm.auto_connector = NoConnector(self.swarm)
        self.host = BasicHost(self.swarm, disable_identify_address_discovery=True)
        self.circuits = Circuits(self, begin.relay, count)

    async def open_stream(self, peer: str, address: str, protocol: str) -> INetStream:
        """Open a stream over a connection that stands, or one made to `address`.

        The swarm's own `dial_peer` would wait 250 ms for a second address, and remember a failure for 60 s.
        """
        who = ID.from_string(peer)
        standing = self.live(who)
        if standing:
            return await self._negotiate(standing[-1], protocol)
        if not address:
            raise SwarmException("there is no connection")
        if "/p2p-circuit" in address:
            return await self._negotiate(await self.circuits.dial(address, who), protocol)
        return await self._negotiate(await self.swarm.dial_addr(Multiaddr(address), who), protocol)

    def live(self, peer: ID) -> list[Any]:
        """Return the connections with a peer that stand."""
        return [conn for conn in self.swarm.get_connections(peer) if not conn.is_closed]

    def is_proven(self, peer: ID) -> bool:
        """Say whether a peer has proved its membership."""
        return peer in self._proven

    def prove(self, peer: str) -> None:
        """Let the connections of a member stand."""
        while len(self._proven) >= self._most_proven:
            self._proven.pop(next(iter(self._proven)))
        self._proven[ID.from_string(peer)] = None

    async def disconnect(self, peer: str) -> None:
        """End all connections with a peer."""
        who = ID.from_string(peer)
        self._proven.pop(who, None)
        for conn in self.swarm.get_connections(who):
            await conn.close()

    async def keep_bounded(self) -> None:
        """Now and then end connections: of strangers the oldest beyond a number, of members the idle ones."""
        idle_since_s: dict[Any, float] = {}
        while True:
            await trio.sleep(0.2)
            now_s = trio.current_time()
            every = [conn for conns in self.swarm.connections.values() for conn in conns]
            idle_since_s = {conn: idle_since_s.get(conn, now_s) for conn in every if not conn.get_streams()}
            for conn in [conn for conn, since_s in idle_since_s.items() if now_s - since_s > IDLE_S]:
                await conn.close()
            unproven = [
                conn
                for peer, conns in self.swarm.connections.items()
                if peer not in self._proven
                for conn in conns
            ]
            for conn in unproven[: max(0, len(unproven) - self._most_unproven)]:
                self._count(BUSY)
                await conn.close()

    async def _negotiate(self, conn: Any, protocol: str) -> INetStream:
        stream = None
        try:
            with trio.move_on_after(self._answer_s) as answering:
                stream = await conn.new_stream()
                communicator = MultiselectCommunicator(stream)
                await self.host.multiselect_client.select_one_of([TProtocol(protocol)], communicator)
        except BaseException:
            # This stream is not wanted any more, or not known there; what else is on the connection goes on.
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await stream.reset()
            raise
        if answering.cancelled_caught:
            # The next attempt shall not trust this connection again.
            await conn.close()
            raise SwarmException("it did not answer in time")
        stream.set_protocol(TProtocol(protocol))
        return stream  # type: ignore[no-any-return]

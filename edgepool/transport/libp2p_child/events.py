"""News by gossipsub, from this peer to members that are connected and have subscribed; to nobody else.

py-libp2p's pubsub takes every connection for a friend. Here it hears of a peer only once that has proved its
membership, and a stream of somebody who has not waits for that, or is reset.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from edgepool.transport.libp2p_child.host import Connections

MESHSUB = TProtocol("/meshsub/1.1.0")
PROOF_S = 30.0
"""For so long a stream waits for the proof of who has opened it."""


class Events:
    """The pubsub of a child, with a gate before it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        swarm = connections.swarm
        before = list(swarm.notifees)
        # The default heartbeat is 120 s, which is how long a subscriber could wait for its first message.
        self._router = GossipSub([MESHSUB], 6, 4, 12, heartbeat_initial_delay=0.5, heartbeat_interval=1)
        self._pubsub = Pubsub(connections.host, self._router, strict_signing=True)
        self._notifees = [one for one in swarm.notifees if one not in before]
        for notifee in self._notifees:
            swarm.remove_notifee(notifee)
            swarm.register_notifee(_OnlyGoodbyes(notifee))
        self._proven = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run, with the gate in place of the handler that pubsub has set."""
        async with background_trio_service(self._router), background_trio_service(self._pubsub):
            await self._pubsub.wait_until_ready()
            self._connections.host.set_stream_handler(MESHSUB, self._take)
            yield

    async def admit(self, peer: str) -> None:
        """A peer is a member: let pubsub know of its connections."""
        self._proven.unpark_all()
        for conn in self._connections.live(ID.from_string(peer))[:1]:
            for notifee in self._notifees:
                await notifee.connected(self._connections.swarm, conn)

    async def publish(self, topic: str, data: bytes) -> None:
        """Send to all who have subscribed; nobody may have."""
        if self._pubsub.peer_topics.get(topic):
            await self._pubsub.publish(topic, data)

    async def _take(self, stream: INetStream) -> None:
        with trio.move_on_after(PROOF_S):
            while not self._connections.is_proven(stream.muxed_conn.peer_id):
                await self._proven.park()
        if self._connections.is_proven(stream.muxed_conn.peer_id):
            await self._pubsub.stream_handler(stream)
        else:
            await stream.reset()


class _OnlyGoodbyes:
    """Passes on that connections end; that they begin is said by `Events.admit`."""

    def __init__(self, notifee: Any) -> None:
        self._notifee = notifee

    async def disconnected(self, network: Any, conn: Any) -> None:
        await self._notifee.disconnected(network, conn)

    async def connected(self, network: Any, conn: Any) -> None:
        await trio.lowlevel.checkpoint()

    opened_stream = closed_stream = listen = listen_close = connected

"""The holder's side of transfers (see transfer.py): who may be served, how many at a time, and by whom.

session.py talks to one requester; serving.py sends what one transfer needs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from edgepool.config import Limits
from edgepool.model.ids import PeerId
from edgepool.model.transfer import (
    TransferRequest,
)
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport import refusals
from edgepool.transport.dial import DIRECT, Way
from edgepool.transport.refusals import Counters, count
from edgepool.transport.serving import Sending, TransferSource
from edgepool.transport.session import Session
from edgepool.transport.smalldata import SmallData

CONNECTIONS = 4
"""So many connections for each of the transfers that may be served at a time."""

logger = logging.getLogger(__name__)

TransferHandler = Callable[[PeerIdentity, TransferRequest, Way], TransferSource | str]
"""Decides about a request that came this way: what to serve, or why not (it is sent to the requester)."""


class TransferServer:
    """Serves transfers on the connections that a transport hands it."""

    def __init__(self, handler: TransferHandler, limits: Limits, counters: Counters) -> None:
        self.handler = handler
        self.limits = limits
        self.counters = counters
        self.serving: dict[Sending[Any], None] = {}
        self._sessions: dict[Session, None] = {}
        self._awaited: dict[bytes, Sending[Any]] = {}
        self._ended = asyncio.Event()
        self.small = SmallData()

    def connection(
        self, network: str, own: PeerId, identity: PeerIdentity, way: Way = DIRECT
    ) -> asyncio.BufferedProtocol | None:
        """Return what takes over a connection of `identity`; None (counted) if there is no room.

        If all places are taken, the connection that has been idle for longest gives its place up.
        """
        if len(self._sessions) >= CONNECTIONS * self.limits.transfers_served:
            idle = next((session for session in self._sessions if session.idle), None)
            if idle is None:
                count(self.counters, refusals.BUSY)
                return None
            idle.fail("its place is needed")
            self.closed(idle)
        return Session(self, identity, (network, own), way)

    def take(self, connection: socket.socket, token: bytes) -> bool:
        """Take a data connection by the token that it began with; each is good once."""
        serving = self._awaited.pop(token, None)
        if serving is None or serving.over:
            return False
        serving.begin(connection, self.limits.transfer_stall_ms / 1000)
        return True

    def cut(self, peer: PeerId, reason: str) -> None:
        """End all transfers and connections of `peer` at once."""
        for session in list(self._sessions):
            if session.identity.peer == peer:
                session.fail(reason)

    async def close(self) -> None:
        """End all transfers at once."""
        for session in list(self._sessions):
            session.fail("this peer is closing")
        try:
            async with asyncio.timeout(1):
                while self._sessions or self.serving:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            pass

    # --- used by sessions ---------------------------------------------------------------------

    def opened(self, session: Session) -> None:
        """A connection was handed over, or is used: the longest idle ones are first."""
        self._sessions.pop(session, None)
        self._sessions[session] = None

    def closed(self, session: Session) -> None:
        """A connection is gone."""
        self._sessions.pop(session, None)
        self._ended.set()

    def began(self, serving: Sending[Any]) -> None:
        """A transfer waits for its data connection, for a while."""
        self.serving[serving] = None
        token = serving.key.token
        self._awaited[token] = serving

        def give_up() -> None:
            if self._awaited.pop(token, None) is not None:
                serving.end("no data connection came")

        asyncio.get_running_loop().call_later(self.limits.handshake_timeout_ms / 1000, give_up)

    def ended(self, serving: Sending[Any]) -> None:
        """A transfer has ended."""
        del self.serving[serving]
        self._awaited.pop(serving.key.token, None)
        self._ended.set()
        try:
            serving.settle()
        except Exception:
            count(self.counters, refusals.HANDLER)
            logger.exception("the owner failed when told of the end of a transfer")

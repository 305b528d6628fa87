"""The requester's side of transfers: connections to holders, on which transfers are opened.

A connection (transfer_connection.py) is made under mutual TLS 1.3 and kept for the next transfer. The side
of the holder is in transfer_server.py, the data itself in lane.py; fetching.py draws from many holders.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from edgepool.config import Limits
from edgepool.errors import DecodeError, Unavailable
from edgepool.model.ids import PeerId, split_address
from edgepool.model.record import SignedRecord
from edgepool.model.transfer import (
    TransferAccept,
)
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.dial import DIRECT, OpenStream, Way, open_direct
from edgepool.transport.door import Doorway, connect
from edgepool.transport.identity import TRANSFER_PROTOCOL, Identity
from edgepool.transport.transfer_connection import HolderConnection, OpenTransfer

T = TypeVar("T")

MAX_CONNECTIONS = 64
"""So many connections are kept; the one that is idle for longest is closed for a new one."""


class TransferClient:
    """Opens transfers; one connection to each holder serves them all."""

    def __init__(self, identity: Identity, limits: Limits, open_stream: OpenStream = open_direct) -> None:
        self.limits = limits
        self.identity = identity
        self.open_stream = open_stream
        self._connections: dict[PeerId, HolderConnection] = {}
        self._dialling: dict[PeerId, asyncio.Lock] = {}

    async def open(
        self,
        holder: PeerId,
        addresses: Sequence[str],
        confirmation: SignedRecord,
        manifest: bool = True,
        bases: tuple[bytes, ...] = (),
    ) -> OpenTransfer:
        """Ask `holder` for the data of a confirmation; `bases` are versions of it that are here.

        Raises Refused (by the holder), RemoteError (it broke the protocol) or Unavailable (not reached,
        stalled).
        """
        return await self._asked(holder, addresses, lambda one: one.open(confirmation, manifest, bases))

    async def ask_small(
        self, holder: PeerId, addresses: Sequence[str], confirmation: SignedRecord
    ) -> TransferAccept:
        """Ask `holder` for data of at most INLINE_BYTES, which comes inside the answer; see `open`."""
        return await self._asked(holder, addresses, lambda one: one.ask_small(confirmation))

    async def open_bundle(self, holder: PeerId, addresses: Sequence[str]) -> OpenTransfer:
        """Open a transfer of much small data, which is asked for by its `ask_items`; see `open`."""
        return await self._asked(holder, addresses, lambda one: one.open_bundle())

    async def _asked(
        self, holder: PeerId, addresses: Sequence[str], ask: Callable[[HolderConnection], Awaitable[T]]
    ) -> T:
        """Ask on the connection to `holder`, on a new one if there is none or it has just ended."""
        known = self._connections.get(holder)
        if known is not None and known.usable:
            try:
                return await ask(known)
            except Unavailable:
                if known.usable:
                    raise
        return await ask(await self._connect(holder, addresses))

    def way_to(self, holder: PeerId) -> Way:
        """Return how the connection to `holder` goes; DIRECT if there is none."""
        connection = self._connections.get(holder)
        if connection is None:
            return DIRECT
        found = split_address(connection.address)
        return Way(found.conduit, found.libp2p)

    def cut(self, peer: PeerId, reason: str) -> None:
        """End the connection to `peer`, and all transfers on it, at once."""
        connection = self._connections.get(peer)
        if connection is not None:
            connection.fail(Unavailable(f"{peer} was cut off: {reason}"))

    async def close(self) -> None:
        """End all connections."""
        for connection in list(self._connections.values()):
            connection.fail(Unavailable("this peer is closing"))

    async def _connect(self, holder: PeerId, addresses: Sequence[str]) -> HolderConnection:
        """Return a connection to `holder`; several who want one at a time share it."""
        lock = self._dialling.setdefault(holder, asyncio.Lock())
        try:
            async with lock:
                known = self._connections.get(holder)
                if known is not None and known.usable:
                    return known
                return await self._dial(holder, addresses)
        finally:
            if not lock.locked():
                self._dialling.pop(holder, None)

    async def _dial(self, holder: PeerId, addresses: Sequence[str]) -> HolderConnection:
        """Try the addresses in turn until one is the holder's."""
        reasons: list[str] = []
        for address in addresses:
            connection = HolderConnection(self, holder, address)
            reason = await self._try(connection, address, holder)
            if not reason:
                self._keep(connection)
                return connection
            reasons.append(f"{address}: {reason}")
        raise Unavailable(
            f"{holder} was not reached to fetch data ({'; '.join(reasons) or 'no address is known'})"
        )

    async def _try(self, connection: HolderConnection, address: str, holder: PeerId) -> str:
        """Dial one address; return why that did not lead to `holder`, or ''."""

        def judge(found: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol | None:
            return connection if found.peer == holder and protocol == TRANSFER_PROTOCOL else None

        doorway = Doorway(self.identity.trust, {}, judge)
        timeout_ms = self.limits.handshake_timeout_ms
        try:
            if split_address(address).peer not in (None, holder):
                return "it is another peer's"
            context = self.identity.transfer_context
            await connect(doorway, address, context, timeout_ms, self.open_stream)
        except TimeoutError:
            return "no answer in time"
        except (OSError, ValueError, DecodeError) as error:
            return str(error)
        finally:
            doorway.abandoned = True
        return "" if doorway.admitted is connection else "somebody else answers there"

    def _keep(self, connection: HolderConnection) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            idle = [one for one in self._connections.values() if one.idle]
            if idle:
                min(idle, key=lambda one: one.used_s).fail(Unavailable("its place was needed"))
        self._connections[connection.holder] = connection

    def lost(self, connection: HolderConnection) -> None:
        """A connection is gone."""
        if self._connections.get(connection.holder) is connection:
            del self._connections[connection.holder]

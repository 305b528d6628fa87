"""Following a live stream: find it, have it confirmed, connect, and again whenever that breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from edgepool.core.live.following import Inflow, Item
from edgepool.core.machine import ConfirmTransfer, RankedOffer
from edgepool.core.resolution.confirmation import NOT_HELD
from edgepool.errors import EdgepoolError, LocalError, Refused, Unavailable
from edgepool.model.ids import PeerId
from edgepool.model.live import Cursor, LiveRequest, is_live
from edgepool.model.record import DataOffer, SignedRecord, TransmissionConfirmation
from edgepool.model.twin import DataKey
from edgepool.runtime.ports import Clock
from edgepool.transport.dial import OpenStream
from edgepool.transport.identity import Identity
from edgepool.transport.live_client import LiveConnection, follow

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

VALID_MS = 9 * 60_000
"""For so long a confirmation lets a subscriber follow; a policy that changes bites by then."""
RENEW_BEFORE_MS = 2 * 60_000
CONFIRM_TIMEOUT_MS = 10_000
FIND_TIMEOUT_MS = 5_000
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
MAX_SUBSCRIPTIONS = 64

_log = logging.getLogger(__name__)


class Subscription:
    """One subscription of `peer`; `next` returns its items in order, for ever.

    Connections that break are made again, with the cursor, so that nothing is missed that the publisher
    still has.
    """

    def __init__(
        self,
        peer: Peer,
        identity: Identity,
        clock: Clock,
        open_stream: OpenStream,
        key: DataKey,
        cursor: Cursor | None,
        oldest: bool,
        purpose: str,
    ) -> None:
        self._peer = peer
        self._identity = identity
        self._clock = clock
        self._open_stream = open_stream
        self._key = key
        self._oldest = oldest
        self._purpose = purpose
        self._inflow = Inflow(cursor, peer.settings.live.window_bytes)
        self._readable = asyncio.Event()
        self._connection: LiveConnection | None = None
        self._failure: EdgepoolError | None = None
        self._closed = False
        self._offer: RankedOffer | None = None
        self._confirmation: SignedRecord | None = None
        self._task = asyncio.create_task(self._run(), name=f"following {key}")

    async def next(self) -> Item | None:
        """Return the next item, None once the subscription was closed.

        Raises Refused if the stream may not be followed, LocalError if it is none, RemoteError if its
        publisher broke the protocol.
        """
        while True:
            self._readable.clear()
            item = self._inflow.pop()
            if item is not None:
                if self._connection is not None:
                    self._connection.grant()
                return item
            if self._failure is not None:
                raise self._failure
            if self._closed:
                return None
            await self._readable.wait()

    async def close(self) -> None:
        """End the subscription; what waits can still be read."""
        self._closed = True
        self._readable.set()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began_s = asyncio.get_running_loop().time()
            try:
                await self._follow()
            except Unavailable:
                pass
            except EdgepoolError as error:
                self._failure = error
            except Exception:
                _log.exception("following %s failed", self._key)
                self._failure = LocalError(f"following {self._key} failed inside: the log says where")
            if self._failure is not None:
                self._readable.set()
                return
            if asyncio.get_running_loop().time() - began_s > LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _follow(self) -> None:
        """Follow for as long as one connection stands; Unavailable when it is over."""
        offer, confirmation = await self._confirmed()
        body = confirmation.record.body
        assert isinstance(body, TransmissionConfirmation)
        request = LiveRequest(confirmation, self._inflow.cursor, self._oldest, self._inflow.connected())
        try:
            self._connection = await follow(
                self._identity,
                self._addresses(offer),
                PeerId(offer.holder.peer),
                request,
                self._inflow,
                arrived=self._readable.set,
                limits=self._peer.settings.limits,
                open_stream=self._open_stream,
            )
            self._confirmation = confirmation
            while not (ended := self._connection.ended).done():
                rest_ms = body.valid_until_ms - RENEW_BEFORE_MS - self._clock.now().wall_ms
                await asyncio.wait({ended}, timeout=max(1.0, rest_ms / 1000))
                if not ended.done():
                    body = await self._renew(offer, self._connection)
            raise ended.result()
        except EdgepoolError:
            self._offer = None  # it may have another address, or another publisher, by now
            raise
        finally:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    async def _renew(self, offer: RankedOffer, connection: LiveConnection) -> TransmissionConfirmation:
        self._confirmation = confirmation = await self._confirm(offer)
        connection.renew(confirmation)
        body = confirmation.record.body
        assert isinstance(body, TransmissionConfirmation)
        return body

    async def _confirmed(self) -> tuple[RankedOffer, SignedRecord]:
        """Return the publisher's offer and a confirmation that is valid for some time."""
        if self._offer is None:
            self._offer = await self._find()
        if self._confirmation is not None:
            body = self._confirmation.record.body
            assert isinstance(body, TransmissionConfirmation)
            late = body.valid_until_ms - RENEW_BEFORE_MS < self._clock.now().wall_ms
            if late or body.holder != self._offer.holder.peer:
                self._confirmation = None
        confirmation, self._confirmation = self._confirmation, None  # good again once it has served
        if confirmation is None:
            confirmation = await self._confirm(self._offer)
        return self._offer, confirmation

    async def _find(self) -> RankedOffer:
        offers = await self._peer.data.find(self._key, 0, FIND_TIMEOUT_MS, self._purpose)
        if not offers:
            raise Unavailable(f"nobody within reach offers {self._key}")
        for offer in offers:
            body = offer.proof.record.record.body
            assert isinstance(body, DataOffer)
            holder = PeerId(offer.holder.peer)
            if is_live(self._peer.settings.network, body, holder):
                if holder == self._peer.id:
                    raise LocalError(f"{self._key} is published by this peer itself")
                return offer
        raise LocalError(f"{self._key} is no live stream: get it with fetch")

    def _addresses(self, offer: RankedOffer) -> tuple[str, ...]:
        """Return where the publisher says that it is, then where it was when it came into its pool."""
        return self._peer.node.rendezvous.where_now(offer.holder).addresses

    async def _confirm(self, offer: RankedOffer) -> SignedRecord:
        body = offer.proof.record.record.body
        assert isinstance(body, DataOffer)
        until_ms = self._clock.now().wall_ms + VALID_MS
        command = ConfirmTransfer(offer.holder, self._key, body.root, until_ms, self._purpose)
        try:
            record = await self._peer.command(command, CONFIRM_TIMEOUT_MS)
        except Refused as error:
            if NOT_HELD in str(error):  # its publisher has not opened the stream, or has closed it
                raise Unavailable(str(error)) from None
            raise
        assert isinstance(record, SignedRecord)
        return record


class Subscriptions:
    """All subscriptions of one peer."""

    def __init__(self, peer: Peer, identity: Identity, clock: Clock, open_stream: OpenStream) -> None:
        self._peer = peer
        self._identity = identity
        self._clock = clock
        self._open_stream = open_stream
        self._all: dict[Subscription, None] = {}

    async def items(
        self, key: DataKey, cursor: Cursor | str | None, oldest: bool, purpose: str
    ) -> AsyncGenerator[Item, None]:
        """Yield the items of a new subscription until it, or the peer, is closed; see Peer.subscribe."""
        begin = Cursor.parse(cursor) if isinstance(cursor, str) else cursor
        if len(self._all) >= MAX_SUBSCRIPTIONS:
            raise LocalError(f"this peer follows {MAX_SUBSCRIPTIONS} live streams already: end one of them")
        one = Subscription(
            self._peer, self._identity, self._clock, self._open_stream, key, begin, oldest, purpose
        )
        self._all[one] = None
        try:
            while (item := await one.next()) is not None:
                yield item
        finally:
            del self._all[one]
            await one.close()

    async def close(self) -> None:
        """End them all."""
        for one in list(self._all):
            await one.close()

"""The subscriber's end of live streams: one connection, whose samples go into an `Inflow`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from edgepool.config import Limits
from edgepool.core.live.following import Inflow
from edgepool.errors import DecodeError, EdgepoolError, Refused, RemoteError, Unavailable
from edgepool.model.codec import encode
from edgepool.model.ids import PeerId, split_address
from edgepool.model.live import (
    MAX_FRAME_BYTES,
    FromSubscriber,
    LiveAccept,
    LiveBatch,
    LiveCredit,
    LiveEnd,
    LiveRenewal,
    LiveRequest,
    decode_from_publisher,
)
from edgepool.model.record import SignedRecord
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.dial import OpenStream
from edgepool.transport.door import Doorway, connect
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.identity import LIVE_PROTOCOL, Identity
from edgepool.transport.live_server import SILENT_BEATS


async def follow(
    identity: Identity,
    addresses: Sequence[str],
    publisher: PeerId,
    request: LiveRequest,
    inflow: Inflow,
    *,
    arrived: Callable[[], None],
    limits: Limits,
    open_stream: OpenStream,
) -> LiveConnection:
    """Connect to `publisher` and begin to follow; `arrived` is called when `inflow` has something to read.

    The addresses are tried in turn. Raises Refused (by the publisher), RemoteError (it said what it may
    not) or Unavailable.
    """
    reasons: list[str] = []
    for address in addresses:
        connection = LiveConnection(publisher, request, inflow, arrived, limits)
        try:
            reason = await _connect(identity, address, publisher, connection, limits, open_stream)
            if not reason:
                await connection.accepted
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        reasons.append(f"{address}: {reason}")
    raise Unavailable(f"{publisher} was not reached ({'; '.join(reasons) or 'no address is known'})")


async def _connect(
    identity: Identity,
    address: str,
    publisher: PeerId,
    connection: LiveConnection,
    limits: Limits,
    open_stream: OpenStream,
) -> str:
    """Dial one address; return why that did not lead to `publisher`, or ''."""

    def judge(found: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol | None:
        return connection if found.peer == publisher and protocol == LIVE_PROTOCOL else None

    doorway = Doorway(identity.trust, {}, judge)
    try:
        if split_address(address).peer not in (None, publisher):
            return "it is another peer's"
        await connect(doorway, address, identity.live_context, limits.handshake_timeout_ms, open_stream)
    except TimeoutError:
        return "no answer in time"
    except (OSError, ValueError, DecodeError) as error:
        return str(error)
    finally:
        doorway.abandoned = True
    return "" if doorway.admitted is connection else "somebody else answers there"


class LiveConnection(asyncio.BufferedProtocol):
    """One connection of a subscription. `ended` holds why it is over, once it is."""

    def __init__(
        self,
        publisher: PeerId,
        request: LiveRequest,
        inflow: Inflow,
        arrived: Callable[[], None],
        limits: Limits,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[EdgepoolError] = self._loop.create_future()
        self._publisher = publisher
        self._request = request
        self._inflow = inflow
        self._arrived = arrived
        self._beat_s = limits.keepalive_ms / 1000
        self._frames = FrameBuffer(MAX_FRAME_BYTES)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_s = 0.0

    def grant(self) -> None:
        """Grant the credit that is due, if any: something was read."""
        total_bytes = self._inflow.credit()
        if total_bytes is not None:
            self._say(LiveCredit(total_bytes))

    def renew(self, confirmation: SignedRecord) -> None:
        """Show a confirmation that is valid for longer."""
        self._say(LiveRenewal(confirmation))

    def close(self) -> None:
        """End the connection; nothing arrives any more."""
        self._end(Unavailable("the subscription was closed"))

    # --- for asyncio --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The publisher is there: ask."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._heard_s = self._loop.time()
        self._say(self._request)
        self._timer = self._loop.call_later(self._beat_s, self._beat)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the publisher says."""
        self._frames.received(nbytes)
        self._heard_s = self._loop.time()
        try:
            while not self.ended.done() and (frame := self._frames.next_frame()) is not None:
                self._take(frame)
        except DecodeError as error:
            self._end(RemoteError(self._publisher, f"on a live stream it sent {error}"))

    def eof_received(self) -> None:
        """The publisher has closed."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._end(Unavailable(f"{self._publisher} ended the live stream{f' ({exc})' if exc else ''}"))

    # --- what is said -------------------------------------------------------------------------

    def _take(self, frame: bytes) -> None:
        said = decode_from_publisher(frame)
        match said:
            case LiveAccept():
                self._inflow.begin(said)
                if not self.accepted.done():
                    self.accepted.set_result(None)
                self._arrived()
            case LiveBatch():
                self._inflow.take(said)
                self._arrived()
            case LiveEnd(reason, refused):
                self._end(Refused(reason, f"by {self._publisher}") if refused else Unavailable(reason))

    def _beat(self) -> None:
        """Show that this side lives, and look if the other does."""
        if self._heard_s + SILENT_BEATS * self._beat_s < self._loop.time():
            self._end(Unavailable(f"{self._publisher} is silent"))
            return
        self._say(LiveCredit(self._inflow.granted_bytes))
        self._timer = self._loop.call_later(self._beat_s, self._beat)

    def _say(self, said: FromSubscriber) -> None:
        if self._transport is not None and not self._transport.is_closing():
            body = encode(said)
            self._transport.write(header(len(body)) + body)

    def _end(self, error: EdgepoolError) -> None:
        if not self.ended.done():
            self.ended.set_result(error)
        if not self.accepted.done():
            self.accepted.set_exception(error)
            self.accepted.exception()  # nobody need have waited
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

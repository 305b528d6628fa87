"""The publisher's end of live streams: one connection for each subscriber, on a protocol of its own.

What is put goes into a ring and waits there; nothing is queued for anybody. Each connection takes from the
ring what its subscriber has granted and its socket takes, so a slow one costs no memory and holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from edgepool.config import Limits
from edgepool.core.live.ring import Outflow, Ring
from edgepool.errors import DecodeError, Unavailable
from edgepool.model.codec import encode
from edgepool.model.live import (
    BATCH_BYTES,
    MAX_FRAME_BYTES,
    FromPublisher,
    LiveAccept,
    LiveBatch,
    LiveCredit,
    LiveEnd,
    LiveRenewal,
    LiveRequest,
    LiveSample,
    decode_from_subscriber,
)
from edgepool.model.record import SignedRecord
from edgepool.runtime.pacer import PaceEnded
from edgepool.runtime.ports import Clock, PeerIdentity
from edgepool.transport import refusals
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.refusals import Counters, count

SILENT_BEATS = 4
"""Whoever says nothing for so many keep-alive times is taken to be gone."""

LOOK_S = 1.0
"""How often it is looked whether a subscriber may still follow, and is still there."""
RENEW_EVERY_S = 1.0
"""Nobody may renew more often: each time costs a signature check."""
_CLOSE_S = 1.0
_WRITE_AHEAD_BYTES = 2 * BATCH_BYTES
_logger = logging.getLogger(__name__)


class LiveLog:
    """A ring, and the connections that are sent from it; samples gather for `gather_ms` at most."""

    def __init__(self, ring: Ring, gather_ms: int) -> None:
        self.ring = ring
        self.feeds: dict[_Feed, None] = {}
        self._gather_s = gather_ms / 1000
        self._gathered_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._encoded: tuple[LiveBatch, bytes] | None = None

    def put(self, sample: LiveSample, now_ms: int) -> tuple[int, bool]:
        """Add a sample; return its number, and whether others should now have a turn on the loop."""
        number = self.ring.put(sample, now_ms)
        self._gathered_bytes += sample.cost_bytes
        if self._gathered_bytes >= BATCH_BYTES:
            self._send()
            return number, True
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._gather_s, self._send)
        return number, False

    def frame(self, batch: LiveBatch) -> bytes:
        """Return a batch as a frame; those who keep up share one."""
        if self._encoded is None or self._encoded[0] is not batch:
            self._encoded = (batch, _frame(batch))
        return self._encoded[1]

    def end(self, reason: str) -> None:
        """Send what is there to whoever can take it, and end all connections."""
        if self._timer is not None:
            self._timer.cancel()
        for feed in list(self.feeds):
            feed.drain()
            feed.end(reason, refused=False)

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._gathered_bytes = 0
        for feed in self.feeds:
            feed.wake()


@dataclass(frozen=True, slots=True)
class LiveGrant:
    """A subscription that is allowed: to which log, until when (wall time), paced by `pace(size_bytes)`.

    `problem()` is asked now and then: it says why it is allowed no longer, or ''.
    """

    log: LiveLog
    valid_until_ms: int
    pace: Callable[[int], Awaitable[None]]
    problem: Callable[[], str]


LiveHandler = Callable[[PeerIdentity, SignedRecord], LiveGrant | str]
"""Decides about a confirmation that a subscriber shows: what it may follow, or the reason why not.

Raises Unavailable if asking again later may help.
"""


class LiveServer:
    """Serves live streams on the connections that a transport hands it, `limit` of them at most."""

    def __init__(
        self, handler: LiveHandler, limits: Limits, limit: int, clock: Clock, counters: Counters
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.limit = limit
        self.clock = clock
        self.counters = counters
        self.feeds: dict[_Feed, None] = {}

    def connection(self, identity: PeerIdentity) -> asyncio.BufferedProtocol | None:
        """Return what takes over a connection of `identity`; None (counted) if there is no room."""
        if len(self.feeds) >= self.limit:
            count(self.counters, refusals.BUSY)
            return None
        return _Feed(self, identity)

    def close(self) -> None:
        """End all connections."""
        for feed in list(self.feeds):
            feed.end("the publisher is closing", refused=False)


class _Feed(asyncio.BufferedProtocol):
    """One subscriber's connection."""

    def __init__(self, server: LiveServer, identity: PeerIdentity) -> None:
        self._server = server
        self._identity = identity
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames = FrameBuffer(MAX_FRAME_BYTES)
        self._timer: asyncio.TimerHandle | None = None
        self._grant: LiveGrant | None = None
        self._outflow: Outflow | None = None
        self._task: asyncio.Task[None] | None = None
        self._awake = asyncio.Event()
        self._writable = True
        self._waits_for_turn = False
        self._heard_s = self._loop.time()
        self._renewed_s = 0.0

    def wake(self) -> None:
        """There may be something to send."""
        self._awake.set()

    def drain(self) -> None:
        """Write what the subscriber can take, without waiting: the stream is about to end."""
        if self._outflow is None or self._grant is None or self._waits_for_turn or self._transport is None:
            return
        while self._writable and not self._transport.is_closing():
            batch = self._outflow.take()
            if batch is None:
                return
            self._transport.write(self._grant.log.frame(batch))

    def end(self, reason: str, *, refused: bool) -> None:
        """Say why, and close."""
        if self._transport is not None and not self._transport.is_closing():
            self._write(LiveEnd(reason[:256], refused))
            self._transport.close()
            self._loop.call_later(_CLOSE_S, self._abort)

    # --- for asyncio --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A member is there; its request must follow soon."""
        transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_AHEAD_BYTES)
        self._server.feeds[self] = None
        timeout_s = self._server.limits.handshake_timeout_ms / 1000
        self._timer = self._loop.call_later(timeout_s, self._no_request)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the subscriber says."""
        self._frames.received(nbytes)
        self._heard_s = self._loop.time()
        try:
            while (frame := self._frames.next_frame()) is not None:
                self._take(frame)
        except DecodeError:
            count(self._server.counters, refusals.GARBAGE)
            self._abort()

    def pause_writing(self) -> None:
        """The subscriber is slower than we are."""
        self._writable = False

    def resume_writing(self) -> None:
        """There is room again."""
        self._writable = True
        self._awake.set()

    def eof_received(self) -> None:
        """The subscriber has closed."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._server.feeds.pop(self, None)
        if self._grant is not None:
            self._grant.log.feeds.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    # --- what a subscriber says ---------------------------------------------------------------

    def _take(self, frame: bytes) -> None:
        said = decode_from_subscriber(frame)
        match said:
            case LiveRequest() if self._grant is None:
                self._begin(said)
            case LiveCredit(total_bytes) if self._outflow is not None:
                self._outflow.credit(total_bytes)
                self._awake.set()
            case LiveRenewal(confirmation) if self._grant is not None and self._may_renew():
                renewed = self._decide(confirmation)
                if renewed is not None and renewed.log is self._grant.log:
                    self._grant = renewed
                else:
                    self.end("the new confirmation is for another stream", refused=True)
            case _:
                raise DecodeError("said out of turn")

    def _begin(self, request: LiveRequest) -> None:
        if self._timer is not None:
            self._timer.cancel()
        grant = self._decide(request.confirmation)
        if grant is None:
            return
        ring = grant.log.ring
        ring.expire(self._server.clock.now().monotonic_ms)
        start = ring.start(request.cursor, request.oldest)
        if not start:
            self.end(f"the cursor is beyond sample {ring.next - 1}, the last one that was put", refused=True)
            return
        self._grant = grant
        self._outflow = Outflow(ring, start, request.credit_bytes)
        grant.log.feeds[self] = None
        self._write(LiveAccept(ring.epoch, start))
        self._task = asyncio.create_task(self._feed(self._outflow), name="edgepool live feed")

    def _decide(self, confirmation: SignedRecord) -> LiveGrant | None:
        """Return what is granted; None if nothing is, and that is said."""
        try:
            grant = self._server.handler(self._identity, confirmation)
        except Unavailable as error:
            self.end(str(error), refused=False)
            return None
        except Exception:
            count(self._server.counters, refusals.HANDLER)
            _logger.exception("the owner failed when asked for a live stream by %s", self._identity.name)
            grant = "the publisher failed"
        if isinstance(grant, str):
            self.end(grant, refused=True)
            return None
        return grant

    def _may_renew(self) -> bool:
        before_s, self._renewed_s = self._renewed_s, self._loop.time()
        return before_s + RENEW_EVERY_S <= self._renewed_s

    def _no_request(self) -> None:
        count(self._server.counters, refusals.GARBAGE)
        self._abort()

    # --- sending ------------------------------------------------------------------------------

    async def _feed(self, outflow: Outflow) -> None:
        with suppress(PaceEnded):  # what came behind the one that waits would leave a gap
            await self._run(outflow)

    async def _run(self, outflow: Outflow) -> None:
        beat_s = self._server.limits.keepalive_ms / 1000
        look_s = self._loop.time()
        while True:
            self._awake.clear()
            await self._send(outflow)
            if look_s <= self._loop.time():
                look_s = self._loop.time() + LOOK_S
                self._look(beat_s)
            try:
                async with asyncio.timeout(beat_s):
                    await self._awake.wait()
            except TimeoutError:
                self._write(LiveBatch(outflow.next, ()))

    def _look(self, beat_s: float) -> None:
        """End the connection if the subscriber is gone, or may follow no longer."""
        assert self._grant is not None
        problem = self._grant.problem()
        if problem:
            self.end(problem, refused=True)
        if self._heard_s + SILENT_BEATS * beat_s < self._loop.time():
            count(self._server.counters, refusals.SILENT)
            self._abort()
        if self._grant.valid_until_ms < self._server.clock.now().wall_ms:
            self.end("the confirmation has expired", refused=False)

    async def _send(self, outflow: Outflow) -> None:
        assert self._grant is not None
        log = self._grant.log
        while self._writable and self._transport is not None and not self._transport.is_closing():
            batch = outflow.take()
            if batch is None:
                return
            frame = log.frame(batch)
            self._waits_for_turn = True
            await self._grant.pace(len(frame))
            self._waits_for_turn = False
            self._transport.write(frame)
            if outflow.next < log.ring.next:
                await asyncio.sleep(0)  # who is far behind lets others have their turn

    def _write(self, said: FromPublisher) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_frame(said))

    def _abort(self) -> None:
        if self._transport is not None:
            with suppress(OSError):
                self._transport.abort()


def _frame(said: FromPublisher) -> bytes:
    body = encode(said)
    return header(len(body)) + body

"""One link: frames over one TLS connection, batched, bounded, and known to be alive.

Whoever accepts a link speaks first, with a Ping: to the dialler it says that the link was taken
(in TLS 1.3 a dialler cannot tell from the handshake). After that each side sends a Ping once in a keepalive
period, which the other answers: so both know the round-trip time. Pings and Pongs stay in here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal, Protocol, cast

from edgepool.config import Limits
from edgepool.errors import DecodeError
from edgepool.model.codec import decode, encode
from edgepool.model.message import Ping, Pong
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.framing import HEADER_BYTES, FrameBuffer, header
from edgepool.transport.refusals import OVERSIZE, Counters, count
from edgepool.transport.roundtrip import RoundTrip

BATCH_BYTES = 256 * 1024
"""Queued frames go out in writes of about this size."""
SILENT_PERIODS = 3
"""After so many keepalive periods without a byte the other side is taken for dead."""

_WRITE_AHEAD_BYTES = 128 * 1024
_BEAT_STARTS = (encode(Ping(0))[:-1], encode(Pong(0))[:-1])
_BEAT_MAX_BYTES = len(_BEAT_STARTS[0]) + 9
_BEAT: type[Ping | Pong] = Ping | Pong  # type: ignore[assignment]


class LinkOwner(Protocol):
    """What a link tells the transport that owns it."""

    def link_connected(self, link: Link) -> None:
        """TLS stands and the other side is who it should be."""
        ...

    def link_welcomed(self, link: Link) -> None:
        """A link that this side dialled was taken by the other."""
        ...

    def link_frame(self, link: Link, frame: bytes) -> None:
        """A frame arrived."""
        ...

    def link_lost(self, link: Link, reason: str) -> None:
        """The connection is gone; said once, for every link that was connected."""
        ...


class Link(asyncio.BufferedProtocol):
    """A connection to one proven peer. `up` is the owner's mark that its handler knows of it.

    `conduit` is the name of the conduit that it goes through, '' for none.
    """

    def __init__(
        self,
        identity: PeerIdentity,
        dialled: bool,
        owner: LinkOwner,
        limits: Limits,
        counters: Counters,
        conduit: str = "",
    ) -> None:
        loop = asyncio.get_running_loop()
        self.identity = identity
        self.peer = identity.peer
        self.dialled = dialled
        self.conduit = conduit
        self.road: Literal["tls", "libp2p"] = "tls"
        self.round_trip = RoundTrip()
        self.bytes_sent = self.bytes_received = 0
        self.up = False
        self.up_at_s = 0.0
        self.welcome: asyncio.Future[bool] = loop.create_future()
        self.end_reason = ""
        self._loop = loop
        self._owner = owner
        self._limits = limits
        self._counters = counters
        self._transport: asyncio.Transport | None = None
        self._frames = FrameBuffer(limits.frame_bytes)
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._flush_due = False
        self._paused = False
        self._open = True
        self._finishing = False
        self._heard_at_s = self._pinged_at_s = loop.time()

    # --- for the owner ------------------------------------------------------------------------

    def send(self, frame: bytes) -> bool:
        """Queue a frame; False if the outbox is full or the link is ending."""
        if not self._open or self._finishing:
            return False
        size_bytes = HEADER_BYTES + len(frame)
        if self._outbox_bytes + size_bytes > self._limits.outbox_bytes:
            return False
        self._outbox.append(header(len(frame)))
        self._outbox.append(frame)
        self._outbox_bytes += size_bytes
        self._schedule_flush()
        return True

    def ping(self) -> None:
        """Send a Ping, if there is room."""
        self._pinged_at_s = self._loop.time()
        self.send(encode(Ping(self.round_trip.asked(self._pinged_at_s))))

    def check_alive(self, now_s: float) -> bool:
        """Ping if it is time to; say whether the other side has been heard of lately."""
        keepalive_s = self._limits.keepalive_ms / 1000
        if now_s - self._pinged_at_s >= keepalive_s:
            self.ping()
        return now_s - self._heard_at_s < SILENT_PERIODS * keepalive_s

    def end(self, reason: str) -> None:
        """End the connection at once; what is queued is lost."""
        if self._open:
            self._open = False
            self.end_reason = reason
            self._outbox.clear()
            if self._transport is not None:
                self._transport.abort()

    def finish(self, reason: str) -> None:
        """End the connection once everything queued has been written."""
        if self._open and not self._finishing:
            self._finishing = True
            self.end_reason = reason
            self._flush()

    # --- for asyncio --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over from the doorway."""
        transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_AHEAD_BYTES)
        self._owner.link_connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on the frames that are whole."""
        self._frames.received(nbytes)
        self.bytes_received += nbytes
        self._heard_at_s = self._loop.time()
        while self._open:
            try:
                frame = self._frames.next_frame()
            except DecodeError as error:
                count(self._counters, OVERSIZE)
                self.end(str(error))
                return
            if frame is None:
                return
            if self.dialled and not self.welcome.done():
                self.welcome.set_result(True)
                self._owner.link_welcomed(self)
            if not self._is_beat(frame):
                self._owner.link_frame(self, frame)

    def eof_received(self) -> None:
        """The other side has ended the connection."""
        self.end_reason = self.end_reason or "the other side closed the link"

    def connection_lost(self, exc: Exception | None) -> None:
        """Everything is over."""
        self._open = False
        self._outbox.clear()
        if not self.welcome.done():
            self.welcome.set_result(False)
        self._owner.link_lost(self, self.end_reason or f"the connection broke: {exc or 'closed'}")
        self._transport = None

    def pause_writing(self) -> None:
        """The other side, or the wire, is slower than we are."""
        self._paused = True

    def resume_writing(self) -> None:
        """There is room again."""
        self._paused = False
        self._schedule_flush()

    # --- writing ------------------------------------------------------------------------------

    def _schedule_flush(self) -> None:
        if not self._flush_due and not self._paused:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what one loop turn has queued, in as few writes as possible."""
        self._flush_due = False
        while self._outbox and not self._paused and self._open and self._transport is not None:
            batch: list[bytes] = []
            size_bytes = 0
            while self._outbox and size_bytes < BATCH_BYTES:
                piece = self._outbox.popleft()
                size_bytes += len(piece)
                batch.append(piece)
            self._outbox_bytes -= size_bytes
            self.bytes_sent += size_bytes
            self._transport.write(b"".join(batch))
        if self._finishing and not self._outbox and self._transport is not None:
            self._transport.close()

    def _is_beat(self, frame: bytes) -> bool:
        """Say whether a frame is a Ping or a Pong, which is dealt with then."""
        if len(frame) > _BEAT_MAX_BYTES or not frame.startswith(_BEAT_STARTS):
            return False
        try:
            beat: Ping | Pong = decode(_BEAT, frame)
        except DecodeError:
            return False
        if isinstance(beat, Ping):
            self.send(encode(Pong(beat.count)))
        else:
            self.round_trip.answered(beat.count, self._heard_at_s)
        return True

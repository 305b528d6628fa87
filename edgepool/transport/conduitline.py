"""A peer's own connection to a conduit: keeps a place there, asks for circuits, is told who asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from edgepool.config import Limits
from edgepool.errors import DecodeError
from edgepool.model.codec import Wire, encode
from edgepool.model.ids import PeerId
from edgepool.model.lineage import Line
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.conduitwire import (
    LATE_PERIODS,
    MAX_ANSWER_BYTES,
    Ask,
    AskFormer,
    Beat,
    BeatAnswer,
    Declined,
    FormerKeys,
    FromConduit,
    Granted,
    Offered,
    Reserve,
    Reserved,
    from_conduit,
)
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.roundtrip import RoundTrip

LINGER_S = 60.0
"""A connection that keeps no place is ended when nothing was asked for so long."""

_OUTBOX_BYTES = 64 * 1024

Offer = Callable[[Offered], None]


class ConduitLine(asyncio.BufferedProtocol):
    """A connection to the conduit `identity`; `offered` is told of each offer.

    `reserved` turns true when the conduit keeps a place; `refusal` says why it does not. `settled` is set
    when one of both is known, `measured` when the round trip is, and both with `lost` at the end.
    """

    def __init__(self, identity: PeerIdentity, limits: Limits, keeps: bool, offered: Offer) -> None:
        self._loop = asyncio.get_running_loop()
        self.identity = identity
        self.keeps = keeps
        self.reserved = False
        self.refusal = ""
        self.round_trip = RoundTrip()
        self.lost = asyncio.Event()
        self.settled = asyncio.Event()
        self.measured = asyncio.Event()
        self._keepalive_s = limits.keepalive_ms / 1000
        self._offered = offered
        self._frames = FrameBuffer(MAX_ANSWER_BYTES)
        self._transport: asyncio.Transport | None = None
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._former: asyncio.Future[Line] = self._loop.create_future()
        self._number = 0
        self._heard_at_s = self._used_at_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        """Whether something can be asked."""
        return self._transport is not None and not self._transport.is_closing()

    async def former_keys(self) -> Line:
        """Ask the conduit which keys it had before, once; () if it does not say."""
        self._say(AskFormer())
        return await self._former

    def begin(self) -> None:
        """It is the conduit that is meant: ask for a place, if one is wanted."""
        if self.keeps:
            self._say(Reserve())

    async def ask(self, target: PeerId) -> bytes:
        """Ask for a circuit; return the token to come with. OSError with the reason if there is none."""
        if not self.open:
            raise OSError(0, "the conduit has ended the connection")
        self._number += 1
        self._used_at_s = self._loop.time()
        number = self._number
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._asked[number] = answer
        try:
            self._say(Ask(number, target))
            return await answer
        finally:
            self._asked.pop(number, None)

    def end(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- for asyncio --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The conduit is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._transport.set_write_buffer_limits(high=_OUTBOX_BYTES)
        self._beat()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the conduit says; what it does not say ends the connection."""
        self._frames.received(nbytes)
        self._heard_at_s = self._loop.time()
        try:
            while self.open:
                frame = self._frames.next_frame()
                if frame is None:
                    return
                self._take(from_conduit(frame))
        except DecodeError:
            self.end()

    def pause_writing(self) -> None:
        """The conduit takes nothing any more."""
        self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """The conduit is gone, and with it the place there; circuits stay as long as it passes bytes."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(OSError(0, "the conduit has ended the connection"))
        if not self._former.done():
            self._former.set_result(())
        self.reserved = False
        self.settled.set()
        self.measured.set()
        self.lost.set()

    # --- words --------------------------------------------------------------------------------

    def _take(self, word: FromConduit) -> None:
        match word:
            case Reserved(refusal):
                self.reserved, self.refusal = not refusal, refusal
                self.settled.set()
            case Granted(number, token):
                answer = self._asked.get(number)
                if answer is not None and not answer.done():
                    answer.set_result(token)
            case Declined(number, reason):
                answer = self._asked.get(number)
                if answer is not None and not answer.done():
                    answer.set_exception(OSError(0, reason))
            case Offered():
                if self.keeps:
                    self._offered(word)
            case FormerKeys(line):
                if not self._former.done():
                    self._former.set_result(line)
            case BeatAnswer(number):
                self.round_trip.answered(number, self._loop.time())
                self.measured.set()

    def _say(self, word: Wire) -> None:
        if self._transport is not None:
            body = encode(word)
            self._transport.write(header(len(body)) + body)

    def _beat(self) -> None:
        """Say that this peer is here, and see that the conduit is."""
        now_s = self._loop.time()
        silent = now_s - self._heard_at_s > LATE_PERIODS * self._keepalive_s
        unused = not self.keeps and not self._asked and now_s - self._used_at_s > LINGER_S
        if silent or unused:
            self.end()
            return
        self._say(Beat(self.round_trip.asked(now_s)))
        self._timer = self._loop.call_later(self._keepalive_s, self._beat)

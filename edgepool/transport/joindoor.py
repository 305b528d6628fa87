"""Where a stranger with a code comes in: one small request, one answer, and out [S3.6].

It stands on the ordinary port. Whoever greets with the server name JOIN_SERVER_NAME is met by a TLS
context that speaks JOIN_PROTOCOL alone. Only while the door is open does the port let somebody without
a certificate finish TLS at all; for links and transfers the doorway demands one as ever. Nothing that is
said here reaches the decoders of links: three kinds of frame, bounded in size, time and number.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Annotated, cast

from msgspec import Meta

from edgepool.errors import DecodeError
from edgepool.model.codec import Wire, decode, encode
from edgepool.model.fields import PeerText, Signature
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.joincode import ID_BYTES, SECRET_BYTES
from edgepool.transport.refusals import BUSY, GARBAGE, PAUSED, Counters, count

JOIN_PROTOCOL = "edgepool-join/1"
JOIN_SERVER_NAME = "join.edgepool"
MAX_FRAME_BYTES = 16 * 1024
REQUEST_TIMEOUT_S = 5.0
"""So long may a request take to arrive, and an answer to be taken."""
MAX_AT_ONCE = 8
MAX_ATTEMPTS = 10
ATTEMPTS_WINDOW_S = 60.0
"""One address may knock MAX_ATTEMPTS times in this window."""
MAX_ADDRESSES = 1024

logger = logging.getLogger(__name__)


class RootShown(Wire, frozen=True):
    """The registrar's first frame: its authority's root certificate in DER."""

    root: Annotated[bytes, Meta(max_length=8192)]


class JoinRequest(Wire, frozen=True):
    """The newcomer's only frame. The signature covers `request_statement`."""

    invitation: Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    peer: PeerText
    listen: Annotated[str, Meta(max_length=256)]
    signature: Signature


class Admission(Wire, frozen=True):
    """The answer. `refusal` is '' or one of the words in `REFUSALS`; then all else is empty.

    `certificate` is the newcomer's in PEM; name, role and machine type are what it says. `pool` is
    where the registrar will propose it as a member, '' if nowhere.
    """

    refusal: Annotated[str, Meta(max_length=16)]
    certificate: Annotated[bytes, Meta(max_length=8192)] = b""
    network: Annotated[str, Meta(max_length=64)] = ""
    coordinators: Annotated[tuple[PeerText, ...], Meta(max_length=16)] = ()
    pool: Annotated[str, Meta(max_length=64)] = ""


UNKNOWN, REVOKED, EXPIRED, USED, FAILED = "unknown", "revoked", "expired", "used", "failed"
BARRED = "barred"
"""The key that asks was revoked."""
REFUSALS = (UNKNOWN, REVOKED, EXPIRED, USED, FAILED, BARRED)

SIGNING_DOMAIN = "join-request"

Answer = Callable[[JoinRequest, bytes], Awaitable[Admission]]
"""Is given a request and the SHA-256 of the registrar's certificate; never raises."""


def request_statement(fingerprint: bytes, leaf_hash: bytes, request: JoinRequest) -> list[object]:
    """Return what a request's signature covers: it holds for one registrar and one authority only."""
    return [fingerprint, leaf_hash, request.invitation, request.peer, request.listen]


class JoinDoor:
    """The door of one registrar: closed until `open`, and again after `close`.

    `server_context` is for the whole port while the door is open: it asks for certificates without
    demanding them, and gives way to `join_context` for who greets with JOIN_SERVER_NAME.
    """

    def __init__(
        self, server_context: ssl.SSLContext, join_context: ssl.SSLContext, leaf_hash: bytes
    ) -> None:
        self.renew(server_context, join_context, leaf_hash)
        self._root = b""
        self._answer: Answer | None = None
        self._guests: dict[_Guest, None] = {}
        self._attempts: dict[str, deque[float]] = {}

    def renew(self, server_context: ssl.SSLContext, join_context: ssl.SSLContext, leaf_hash: bytes) -> None:
        """Use these contexts for new connections: the certificate or the trusted roots have changed.

        `leaf_hash` is the SHA-256 of the registrar's certificate, for which requests are signed.
        """
        self._leaf_hash = leaf_hash
        # As a client's hello cannot switch the demand for a certificate off, it is not made here.
        server_context.verify_mode = ssl.CERT_OPTIONAL
        server_context.sni_callback = self._greeted
        self.server_context = server_context
        self._join_context = join_context

    @property
    def is_open(self) -> bool:
        """Whether strangers may knock."""
        return self._answer is not None

    def open(self, root_der: bytes, answer: Answer) -> None:
        """Let strangers knock: they are shown `root_der`, and `answer` is given what they ask."""
        self._root, self._answer = root_der, answer

    async def close(self) -> None:
        """Let nobody knock any more, and end what is under way."""
        self._answer = None
        guests = list(self._guests)
        for guest in guests:
            guest.abort()
        tasks = [guest.task for guest in guests if guest.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def connection(self, host: str, counters: Counters) -> asyncio.BufferedProtocol | None:
        """Return what serves a stranger from address `host`, or None if it is not to be served."""
        if self._answer is None:
            return None
        if len(self._guests) >= MAX_AT_ONCE:
            count(counters, BUSY)
            return None
        if not self._may_try(host, asyncio.get_running_loop().time()):
            count(counters, PAUSED)
            return None
        guest = _Guest(
            RootShown(self._root), self._leaf_hash, self._answer, lambda: count(counters, GARBAGE), self._gone
        )
        self._guests[guest] = None
        return guest

    def _gone(self, guest: _Guest) -> None:
        self._guests.pop(guest, None)

    def _may_try(self, host: str, now_s: float) -> bool:
        times = self._attempts.pop(host, deque())
        while times and times[0] <= now_s - ATTEMPTS_WINDOW_S:
            times.popleft()
        self._attempts[host] = times  # the last one to knock stands last
        while len(self._attempts) > MAX_ADDRESSES:
            del self._attempts[next(iter(self._attempts))]
        if len(times) >= MAX_ATTEMPTS:
            return False
        times.append(now_s)
        return True

    def _greeted(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name == JOIN_SERVER_NAME:
            tls.context = self._join_context


class _Guest(asyncio.BufferedProtocol):
    """One stranger's connection."""

    def __init__(
        self,
        shown: RootShown,
        leaf_hash: bytes,
        answer: Answer,
        garbage: Callable[[], None],
        gone: Callable[[_Guest], None],
    ) -> None:
        self.task: asyncio.Task[None] | None = None
        self._shown = shown
        self._leaf_hash = leaf_hash
        self._answer = answer
        self._garbage = garbage
        self._gone = gone
        self._frames = FrameBuffer(MAX_FRAME_BYTES)
        self._received_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def abort(self) -> None:
        """End the connection at once."""
        if self.task is not None:
            self.task.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS stands: say which authority this is."""
        self._transport = cast("asyncio.Transport", transport)
        self._timer = asyncio.get_running_loop().call_later(REQUEST_TIMEOUT_S, self.abort)
        self._write(self._shown)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take the request; anything else, or more, ends the connection."""
        self._received_bytes += nbytes
        self._frames.received(nbytes)
        try:
            if self.task is not None or self._received_bytes > MAX_FRAME_BYTES:
                raise DecodeError("more than one request")
            frame = self._frames.next_frame()
            if frame is None:
                return
            request = decode(JoinRequest, frame, MAX_FRAME_BYTES)
        except DecodeError:
            self._garbage()
            self.abort()
            return
        self.task = asyncio.create_task(self._serve(request), name="edgepool join")

    def connection_lost(self, exc: Exception | None) -> None:
        """The stranger has gone, or was sent away."""
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        if self.task is None or self.task.done():
            self._gone(self)

    async def _serve(self, request: JoinRequest) -> None:
        try:
            await self._answer_it(request)
        finally:
            if self._transport is None:
                self._gone(self)

    async def _answer_it(self, request: JoinRequest) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            admission = await self._answer(request, self._leaf_hash)
        except Exception:
            logger.exception("a request to join could not be answered")
            admission = Admission(FAILED)
        if self._transport is None:
            return
        self._timer = asyncio.get_running_loop().call_later(REQUEST_TIMEOUT_S, self.abort)
        self._write(admission)
        self._transport.close()

    def _write(self, value: Wire) -> None:
        assert self._transport is not None
        body = encode(value)
        self._transport.write(header(len(body)) + body)

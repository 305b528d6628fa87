"""The holder's end of one transfer connection: takes requests, answers, and has chunks sent.

Small data goes into the answer. For larger data the answer has half of the secret of a data connection, which
the requester opens at the same port; serving.py sends on it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from typing import TYPE_CHECKING, cast

from edgepool.errors import DecodeError
from edgepool.model.codec import decode, encode
from edgepool.model.ids import PeerId
from edgepool.model.transfer import (
    INLINE_BYTES,
    PACKED,
    PLAIN,
    SHARE_BYTES,
    BundleRequest,
    ChunkRequest,
    ItemRequest,
    ToHolder,
    TransferAccept,
    TransferEnd,
    TransferRefusal,
    TransferRequest,
    bitmap_of,
    confirmation_of,
)
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport import refusals
from edgepool.transport.dial import Way
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.lane import LaneKey, choose
from edgepool.transport.packing import Base, open_base
from edgepool.transport.refusals import count
from edgepool.transport.serving import Serving, TransferSource
from edgepool.transport.smalldata import DAMAGED
from edgepool.transport.transfer_bundle import Bundle, Deciding

if TYPE_CHECKING:
    from edgepool.transport.transfer_server import TransferServer

REQUEST_BYTES = 64 * 1024
"""A request is never longer."""
MAX_BROKEN = 4
"""So many transfers that were broken off are remembered, to hear which chunk was wrong."""
MAX_OWED = 256
"""A requester may wait for so many chunks of one transfer at a time."""
BUSY = "busy"
"""The reason of a refusal when as many are served as may be."""
IDLE_S = 60.0
"""A connection on which nothing is asked for so long ends."""

_WRITE_AHEAD_BYTES = 4 * 1024 * 1024
_MAX_REASON = 256
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_TO_HOLDER: type[ToHolder] = ToHolder  # type: ignore[assignment]

logger = logging.getLogger(__name__)


class Session(asyncio.BufferedProtocol):
    """The holder's end of one connection, on which a requester opens transfers."""

    def __init__(
        self, server: TransferServer, identity: PeerIdentity, terms: tuple[str, PeerId], way: Way
    ) -> None:
        self.identity = identity
        self._way = way
        self._server = server
        self._terms = [*terms, identity.peer]
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames = FrameBuffer(REQUEST_BYTES)
        self._timer: asyncio.TimerHandle | None = None
        self._served: dict[int, Serving | Bundle] = {}
        self._items = Deciding(self._decide)
        self._broken: dict[int, Serving | Bundle] = {}
        self._reading: set[asyncio.Task[None]] = set()
        self._unsent: list[bytes] = []
        self._gathering = False
        self._last = -1
        self._heard_s = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing is served on this connection."""
        return not self._served

    def fail(self, reason: str) -> None:
        """End the connection at once, and what is served on it."""
        for serving in list(self._served.values()):
            serving.end(reason)
        if self._transport is not None:
            self._transport.abort()

    def cut(self, reason: str) -> None:
        """End everything at once: the requester is trusted no more."""
        self.fail(reason)

    # --- for asyncio --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A member is there; its first request must follow soon."""
        transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_AHEAD_BYTES)
        self._server.opened(self)
        timeout_s = self._server.limits.handshake_timeout_ms / 1000
        self._timer = self._loop.call_later(timeout_s, self._no_request)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take requests."""
        self._frames.received(nbytes)
        self._heard_s = self._loop.time()
        try:
            self._gathering = True
            while (frame := self._frames.next_frame()) is not None:
                self._take(decode(_TO_HOLDER, frame))
        except DecodeError as error:
            count(self._server.counters, refusals.GARBAGE)
            self.fail(f"the requester sent {error}")
        finally:
            self._gathering = False
            self._flush()

    def pause_writing(self) -> None:
        """The requester does not take its answers: it asks for no more until it has."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """There is room again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def eof_received(self) -> None:
        """The requester has closed."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of everything on this connection."""
        self._server.closed(self)
        if self._timer is not None:
            self._timer.cancel()
        for serving in list(self._served.values()):
            serving.end("the requester ended the transfer early")

    # --- requests -----------------------------------------------------------------------------

    def _no_request(self) -> None:
        count(self._server.counters, refusals.GARBAGE)
        self.fail("no request came")

    def _watch(self) -> None:
        """Close a connection that is not used any more."""
        if any(serving.owed for serving in self._served.values()):
            self._heard_s = self._loop.time()
        idle_s = self._loop.time() - self._heard_s
        if idle_s >= IDLE_S:
            self.fail("the requester asked for nothing any more")
        else:
            self._timer = self._loop.call_later(IDLE_S - idle_s, self._watch)

    def _take(self, message: ToHolder) -> None:
        match message:
            case TransferRequest():
                self._begin(message.transfer)
                self._open(message)
            case BundleRequest():
                self._begin(message.transfer)
                self._open_bundle(message)
            case ChunkRequest(number, first, wanted):
                serving = self._served.get(number)
                if serving is not None:
                    if not isinstance(serving, Serving):
                        raise DecodeError("a request for chunks of a bundle")
                    self._send_chunks(serving, number, first, wanted)
            case ItemRequest(number, confirmations):
                serving = self._served.get(number)
                if serving is not None:
                    if not isinstance(serving, Bundle):
                        raise DecodeError("a request for items of what is no bundle")
                    self._items.take(serving, confirmations)
            case TransferEnd(number, whole, wrong):
                serving = self._served.pop(number, None)
                if serving is not None:
                    serving.end("" if whole else "the requester ended the transfer early")
                blamed = serving or self._broken.pop(number, None)
                if wrong is not None and isinstance(blamed, Serving):
                    blamed.doubt(wrong)

    def _begin(self, number: int) -> None:
        """Take note of the number of a transfer."""
        if number <= self._last:
            raise DecodeError("a number of a transfer that was used before")
        if self._last < 0 and self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_later(IDLE_S, self._watch)
        self._last = number
        self._server.opened(self)

    def _is_busy(self, number: int) -> bool:
        """Refuse a transfer for which there is no place."""
        server = self._server
        if len(server.serving) < server.limits.transfers_served:
            return False
        count(server.counters, refusals.BUSY)
        self._refuse(number, BUSY)
        return True

    def _decide(self, request: TransferRequest) -> TransferSource | str:
        """Ask the owner; DecodeError if the request names no confirmation."""
        confirmation_of(request.confirmation)
        try:
            return self._server.handler(self.identity, request, self._way)
        except Exception:
            count(self._server.counters, refusals.HANDLER)
            logger.exception("the owner failed when asked for a transfer by %s", self.identity.name)
            return "the holder failed"

    def _open_bundle(self, request: BundleRequest) -> None:
        if self._is_busy(request.transfer):
            return
        cipher = choose(request.ciphers)
        if len(request.share) != SHARE_BYTES:
            raise DecodeError("a request for a bundle without a half of its key")
        if not cipher:
            self._refuse(request.transfer, "no cipher in common")
            return
        share = secrets.token_bytes(SHARE_BYTES)
        key = LaneKey(cipher, (request.share, share), [*self._terms, request.transfer, b""])
        bundle = Bundle(key, lambda ended: self._ended(request.transfer, ended), self._server.small)
        self._served[request.transfer] = bundle
        self._server.began(bundle)
        self._answer(TransferAccept(request.transfer, None, share, cipher, PLAIN, b"", b"", b""))

    def _open(self, request: TransferRequest) -> None:
        server = self._server
        if self._is_busy(request.transfer):
            return
        decision = self._decide(request)
        if isinstance(decision, str):
            self._refuse(request.transfer, decision)
            return
        if (data := server.small.get(decision.manifest)) is not None and not decision.paced:
            self._answer_whole(request, decision, data)
            return
        try:
            descriptor = os.open(decision.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._refuse_source(
                request.transfer, decision, f"the holder cannot read the data: {error.strerror}"
            )
            return
        try:
            kept = self._accept(request, decision, descriptor)
        except OSError as error:
            kept = False
            self._refuse_source(
                request.transfer, decision, f"the holder cannot read the data: {error.strerror}"
            )
        if not kept:
            os.close(descriptor)

    def _accept(self, request: TransferRequest, source: TransferSource, descriptor: int) -> bool:
        """Answer; say whether the file is still needed."""
        manifest = source.manifest
        if source.has is None and os.fstat(descriptor).st_size != manifest.size_bytes:
            why = "the holder's file is not as long as its manifest says"
            self._refuse_source(request.transfer, source, why)
            return False
        shown = manifest if request.manifest else None
        if manifest.size_bytes <= INLINE_BYTES and source.has is None:
            data = None if source.paced else _read_now(descriptor, manifest.size_bytes)
            if data is None:
                self._reading.add(task := asyncio.create_task(self._read(request, source, descriptor)))
                task.add_done_callback(self._reading.discard)
                return True
            self._answer_checked(request, source, data)
            return False
        cipher = choose(request.ciphers)
        if len(request.share) != SHARE_BYTES:
            raise DecodeError("a request for large data without a half of its key")
        if not cipher or PLAIN not in request.encodings:
            self._refuse_source(request.transfer, source, "no cipher or no encoding in common")
            return False
        share = secrets.token_bytes(SHARE_BYTES)
        terms = [*self._terms, request.transfer, confirmation_of(request.confirmation).root]
        key = LaneKey(cipher, (request.share, share), terms)
        packs, base = PACKED in request.encodings, _base_of(request, source)
        serving = Serving(
            source, descriptor, key, lambda ended: self._ended(request.transfer, ended), packs, base
        )
        self._served[request.transfer] = serving
        self._server.began(serving)
        have = b"" if source.has is None else bitmap_of(source.has, len(manifest.chunks))
        encoding = PACKED if packs else PLAIN
        root = b"" if base is None else base.manifest.root
        self._answer(TransferAccept(request.transfer, shown, share, cipher, encoding, have, root, b""))
        return True

    def _answer_checked(self, request: TransferRequest, source: TransferSource, data: bytes) -> None:
        """Answer with small data from a disk, if it is what it should be."""
        if self._server.small.keep(source.manifest, data):
            self._answer_whole(request, source, data)
        else:
            self._refuse_source(request.transfer, source, DAMAGED)
            source.doubted(0)

    def _answer_whole(self, request: TransferRequest, source: TransferSource, data: bytes) -> None:
        manifest = source.manifest
        shown = manifest if request.manifest else None
        self._answer(TransferAccept(request.transfer, shown, b"", "", PLAIN, b"", b"", data))
        source.moved(len(data))
        source.done(len(data), "")

    async def _read(self, request: TransferRequest, source: TransferSource, descriptor: int) -> None:
        """Answer with small data that has to be read from a disk, or to wait for its turn, first."""
        try:
            data = await asyncio.to_thread(_read_paced, descriptor, source)
            self._answer_checked(request, source, data)
        except OSError as error:
            why = f"the holder cannot read the data: {error.strerror}"
            self._refuse_source(request.transfer, source, why)
        finally:
            os.close(descriptor)

    def _send_chunks(self, serving: Serving, number: int, first: int, wanted: int) -> None:
        source = serving.source
        if first + wanted > len(source.manifest.chunks):
            raise DecodeError(f"a request for chunk {first + wanted - 1} of {len(source.manifest.chunks)}")
        if serving.owed + wanted > MAX_OWED:
            raise DecodeError(f"requests for more than {MAX_OWED} chunks at a time")
        if source.has is not None and not source.has.issuperset(range(first, first + wanted)):
            raise DecodeError("a request for a chunk that is not here")
        refusal = source.refusal()
        if refusal:
            self._served.pop(number)
            serving.end(refusal)
            self._refuse(number, refusal)
            return
        serving.send(first, wanted)

    def _ended(self, number: int, serving: Serving | Bundle) -> None:
        if self._served.pop(number, None) is not None:  # not by the requester's wish
            self._broken[number] = serving  # it may say why it has closed the data connection
            if len(self._broken) > MAX_BROKEN:
                del self._broken[next(iter(self._broken))]
            self._refuse(number, serving.failure or "the holder ended the transfer")
        self._server.ended(serving)

    def _refuse(self, number: int, reason: str) -> None:
        self._answer(TransferRefusal(number, reason[:_MAX_REASON]))

    def _refuse_source(self, number: int, source: TransferSource, reason: str) -> None:
        """Refuse what the owner would have served."""
        self._refuse(number, reason)
        source.done(0, reason)

    def _answer(self, answer: TransferAccept | TransferRefusal) -> None:
        body = encode(answer)
        self._unsent += (header(len(body)), body)
        if not self._gathering:
            self._flush()

    def _flush(self) -> None:
        """Send answers; those to requests that came together go together."""
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(unsent))


def _base_of(request: TransferRequest, source: TransferSource) -> Base | None:
    """Return the version that both sides have, if the requester can be told what differs from it."""
    if PACKED not in request.encodings or source.base is None or source.base[0].root not in request.bases:
        return None
    try:
        return open_base(*source.base)
    except OSError:
        return None  # then everything is told


def _read_now(descriptor: int, size_bytes: int) -> bytes | None:
    """Return small data if it is in memory, None if a disk would have to be waited for."""
    if not _NOWAIT:
        return None
    data = bytearray(size_bytes)
    try:
        return bytes(data) if os.preadv(descriptor, [data], 0, _NOWAIT) == size_bytes else None
    except OSError:
        # Not in memory, or a file system that does not know how to say so.
        return None


def _read_paced(descriptor: int, source: TransferSource) -> bytes:
    """Read small data once so many bytes may be sent; blocks a thread."""
    if source.pace is not None and source.pace.limits:
        source.pace.wait(source.manifest.size_bytes)
    return os.pread(descriptor, source.manifest.size_bytes, 0)

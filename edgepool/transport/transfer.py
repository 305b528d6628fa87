"""The first data lane: twin data from holder to requester over a connection of its own.

The requester sends one framed TransferRequest; the holder answers with one framed TransferAccept
(the manifest) or TransferRefusal, then the raw bytes of the chunks from `first_chunk` to the end,
and closes. Every chunk is checked against the manifest, and that against the root which both have
signed, before a byte is handed on. Bulk
never shares a connection with votes. The holder's side is in transfer_server.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from edgepool.config import Limits
from edgepool.errors import DecodeError, LocalError, Refused, RemoteError, Unavailable
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import data_hash
from edgepool.model.ids import PeerId, split_address
from edgepool.model.message import TransferAccept, TransferRefusal, TransferRequest, confirmation_of
from edgepool.model.twin import Manifest, chunk_bytes_for
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport.dial import OpenStream, open_direct
from edgepool.transport.door import Doorway, connect
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.identity import TRANSFER_PROTOCOL, Identity
from edgepool.transport.transfer_server import TransferServer, TransferSource

__all__ = ["ChunkWriter", "TransferServer", "TransferSource", "fetch"]

ANSWER_BYTES = 3 * 1024 * 1024
"""An answer is never longer; the largest manifest has 65,536 hashes."""
SLOWEST_BYTES = 64 * 1024
"""Less than this within `limits.transfer_stall_ms` counts as a stall."""

_READ_AHEAD_BYTES = 512 * 1024
_CLOSE_WAIT_S = 1.0

Progress = Callable[[int, int], None]
"""Is told how many bytes of the data are there, and how many it has."""
Answer = TransferAccept | TransferRefusal
_ANSWER: type[Answer] = Answer  # type: ignore[assignment]


class ChunkWriter(Protocol):
    """Where fetched data goes. What it raises ends the fetch and reaches the caller of `fetch`."""

    def begin(self, manifest: Manifest) -> int:
        """Take the checked manifest, once, before any chunk; return the first chunk it lacks."""
        ...

    def put(self, index: int, data: memoryview) -> None:
        """Take chunk `index`, already checked; `data` is only valid during the call."""
        ...


async def fetch(
    identity: Identity,
    addresses: Sequence[str],
    holder: PeerId,
    request: TransferRequest,
    writer: ChunkWriter,
    *,
    limits: Limits,
    progress: Progress | None = None,
    open_stream: OpenStream = open_direct,
) -> None:
    """Fetch the data that `request` confirms from `holder`, every chunk checked, into `writer`.

    The addresses are tried in turn until one is `holder`'s. Raises Refused (by the holder, or data
    larger than `limits.data_bytes`), RemoteError (what arrived is not what was confirmed) or
    Unavailable (not reached, stalled, ended early: what was put stays good and a later fetch can go
    on from there).
    """
    confirmation = confirmation_of(request.confirmation)
    if confirmation.size_bytes > limits.data_bytes:
        raise Refused(
            "data too large", f"{confirmation.size_bytes} bytes, limits.data_bytes is {limits.data_bytes}"
        )
    reasons: list[str] = []
    for address in addresses:
        receiver = _Receiver(holder, request, writer, limits, progress)
        try:
            reason = await _connect(identity, address, holder, receiver, limits, open_stream)
            if not reason:
                await receiver.outcome
                return
        finally:
            receiver.end()
        reasons.append(f"{address}: {reason}")
    raise Unavailable(
        f"{holder} was not reached to fetch data ({'; '.join(reasons) or 'no address is known'})"
    )


async def _connect(
    identity: Identity,
    address: str,
    holder: PeerId,
    receiver: _Receiver,
    limits: Limits,
    open_stream: OpenStream,
) -> str:
    """Dial one address; return why that did not lead to `holder`, or ''."""

    def judge(found: PeerIdentity, protocol: str) -> asyncio.BufferedProtocol | None:
        return receiver if found.peer == holder and protocol == TRANSFER_PROTOCOL else None

    doorway = Doorway(identity.trust, {}, judge)
    try:
        if split_address(address).peer not in (None, holder):
            return "it is another peer's"
        timeout_ms = limits.handshake_timeout_ms
        await connect(doorway, address, identity.transfer_context, timeout_ms, open_stream)
    except TimeoutError:
        return "no answer in time"
    except (OSError, ValueError, DecodeError) as error:
        return str(error)
    finally:
        doorway.abandoned = True
    return "" if doorway.admitted is receiver else "somebody else answers there"


class _Receiver(asyncio.BufferedProtocol):
    """The requester's end of one transfer: reads the answer, then chunks into one reused buffer."""

    def __init__(
        self,
        holder: PeerId,
        request: TransferRequest,
        writer: ChunkWriter,
        limits: Limits,
        progress: Progress | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._holder = holder
        self._request = request
        self._confirmation = confirmation_of(request.confirmation)
        self._writer = writer
        self._stall_s = limits.transfer_stall_ms / 1000
        self._progress = progress
        self._transport: asyncio.Transport | None = None
        self._frames: FrameBuffer | None = FrameBuffer(ANSWER_BYTES)
        self._manifest: Manifest | None = None
        self._next = request.first_chunk
        self._buffer = bytearray()
        self._filled = 0
        self._whole = False
        self._deadline_s = 0.0
        self._since_deadline = 0
        self._timer: asyncio.TimerHandle | None = None
        self.outcome: asyncio.Future[None] = self._loop.create_future()

    def end(self) -> None:
        """Nobody waits for the outcome any more."""
        if not self.outcome.cancel() and not self.outcome.cancelled():
            self.outcome.exception()
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _state(self) -> str:
        if self._manifest is None:
            return "no answer to the request"
        return f"{self._next} of {len(self._manifest.chunks)} chunks are there"

    def _fail(self, error: Exception) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)
        if self._transport is not None:
            self._transport.abort()

    def _succeed(self) -> None:
        if not self.outcome.done():
            self.outcome.set_result(None)

    # --- for asyncio --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The holder is there: ask."""
        transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._transport = transport
        self._extend_deadline()
        self._watch()
        body = encode(self._request)
        transport.write(header(len(body)) + body)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into: always more than is waiting, so that none is left behind."""
        if self._frames is not None:
            return self._frames.space(sizehint)
        if len(self._buffer) - self._filled <= sizehint:
            grown = bytearray(self._filled + sizehint + _READ_AHEAD_BYTES)
            grown[: self._filled] = memoryview(self._buffer)[: self._filled]
            self._buffer = grown
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read; whatever goes wrong is the outcome."""
        if self.outcome.done():
            return
        try:
            self._since_deadline += nbytes
            if self._since_deadline >= SLOWEST_BYTES and not self._whole:
                self._extend_deadline()
            if self._frames is not None:
                self._frames.received(nbytes)
                self._read_answer(self._frames)
            else:
                self._filled += nbytes
                self._take_chunks()
        except Exception as error:
            self._fail(error)

    def eof_received(self) -> None:
        """The holder has closed."""
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end: good if everything was there by then."""
        if self._whole:
            self._succeed()
        else:
            why = f" ({exc})" if exc else ""
            self._fail(Unavailable(f"{self._holder} ended the transfer early{why}: {self._state()}"))

    # --- the answer and the chunks ------------------------------------------------------------

    def _extend_deadline(self) -> None:
        self._deadline_s = self._loop.time() + self._stall_s
        self._since_deadline = 0

    def _watch(self) -> None:
        """Look at the deadline when it passes; it may have moved on by then."""
        if self._timer is not None:
            self._timer.cancel()
        if self._loop.time() < self._deadline_s:
            self._timer = self._loop.call_at(self._deadline_s, self._watch)
        elif self._whole:
            self._succeed()
        else:
            self._fail(Unavailable(f"{self._holder} stalled: {self._state()}"))

    def _read_answer(self, frames: FrameBuffer) -> None:
        try:
            frame = frames.next_frame()
            if frame is None:
                return
            answer: Answer = decode(_ANSWER, frame)
        except DecodeError as error:
            raise RemoteError(self._holder, f"its answer to a transfer request is {error}") from None
        if isinstance(answer, TransferRefusal):
            raise Refused(answer.reason, f"by holder {self._holder}")
        manifest = answer.manifest
        self._check(manifest)
        first_lacking = self._writer.begin(manifest)
        if first_lacking < self._next:
            raise LocalError(
                f"the transfer begins at chunk {self._next}, but chunk {first_lacking} is not there yet"
            )
        rest = frames.take_rest()
        self._manifest, self._frames = manifest, None
        self._buffer = bytearray(
            min(manifest.chunk_bytes, manifest.size_bytes) + len(rest) + _READ_AHEAD_BYTES
        )
        self._buffer[: len(rest)] = rest
        self._filled = len(rest)
        self._extend_deadline()
        self._take_chunks()

    def _check(self, manifest: Manifest) -> None:
        confirmed = self._confirmation
        if manifest.root != confirmed.root:
            raise RemoteError(self._holder, "the root of its manifest is not the confirmed one")
        if manifest.size_bytes != confirmed.size_bytes:
            raise RemoteError(self._holder, "the size in its manifest is not the confirmed one")
        try:
            manifest.check()
        except DecodeError as error:
            raise RemoteError(self._holder, f"it sent {error}") from None
        # A chunk is held in memory until it is checked, so its size is not the holder's to choose.
        if manifest.chunk_bytes > chunk_bytes_for(manifest.size_bytes):
            raise RemoteError(self._holder, f"its chunks of {manifest.chunk_bytes} bytes are too large")
        if self._next > len(manifest.chunks):
            raise LocalError(
                f"the data has {len(manifest.chunks)} chunks; the transfer cannot begin at {self._next}"
            )

    def _take_chunks(self) -> None:
        """Check and hand on the chunks that are whole; move what is left to the front."""
        manifest = self._manifest
        assert manifest is not None
        view = memoryview(self._buffer)
        start = 0
        while self._next < len(manifest.chunks):
            size_bytes = manifest.chunk_size_bytes(self._next)
            if self._filled - start < size_bytes:
                break
            chunk = view[start : start + size_bytes]
            if data_hash(chunk) != manifest.chunks[self._next]:
                raise RemoteError(self._holder, f"chunk {self._next} is not what its manifest says")
            self._writer.put(self._next, chunk)
            start += size_bytes
            self._next += 1
            if self._progress is not None:
                done_bytes = min(self._next * manifest.chunk_bytes, manifest.size_bytes)
                self._progress(done_bytes, manifest.size_bytes)
        if start:
            view[: self._filled - start] = view[start : self._filled]
            self._filled -= start
        if self._next == len(manifest.chunks):
            if self._filled:
                raise RemoteError(self._holder, "it sent more than its manifest says")
            if not self._whole:
                # The holder closes now; what else it might send is looked at, but not waited for.
                self._whole = True
                self._deadline_s = self._loop.time() + _CLOSE_WAIT_S
                self._watch()

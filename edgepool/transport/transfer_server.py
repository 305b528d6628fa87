"""The holder's side of the first data lane (see transfer.py): asks its owner, then sends.

What is read from disk is read without ever blocking the event loop for a cold page, and no faster
than the other side takes it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from edgepool.config import Limits
from edgepool.errors import DecodeError
from edgepool.model.codec import decode, encode
from edgepool.model.message import TransferAccept, TransferRefusal, TransferRequest
from edgepool.model.twin import Manifest
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport import refusals
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.refusals import Counters, count

REQUEST_BYTES = 64 * 1024
"""A request is never longer."""
PIECE_BYTES = 256 * 1024
"""Data is read and written in pieces of this size."""

_WRITE_AHEAD_BYTES = 512 * 1024
_MAX_REASON = 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TransferSource:
    """Data to serve: its manifest, the file that holds it, and whom to tell how it goes.

    `moved(size_bytes)` is called for every piece sent, `done(bytes_sent, failure)` once at the end;
    `failure` is '' if the requester took it all.
    """

    manifest: Manifest
    path: Path
    moved: Callable[[int], None]
    done: Callable[[int, str], None]


TransferHandler = Callable[[PeerIdentity, TransferRequest], TransferSource | str]
"""Decides about a request: what to serve, or the reason why not (it is sent to the requester)."""


class TransferServer:
    """Serves transfers on the connections that a transport hands it."""

    def __init__(self, handler: TransferHandler, limits: Limits, counters: Counters) -> None:
        self.handler = handler
        self.limits = limits
        self.counters = counters
        self.serving = 0
        self._open: dict[_Sender, None] = {}
        self._all_closed = asyncio.Event()

    def connection(self, identity: PeerIdentity) -> asyncio.BufferedProtocol | None:
        """Return what takes over a connection of `identity`; None (counted) if there is no room.

        Twice as many connections as transfers are let in, so that the surplus can be told 'busy'.
        """
        if len(self._open) >= 2 * self.limits.transfers_served:
            count(self.counters, refusals.BUSY)
            return None
        return _Sender(self, identity)

    async def close(self) -> None:
        """End all transfers at once."""
        for sender in list(self._open):
            sender.fail("this peer is closing")
        try:
            async with asyncio.timeout(1):
                while self._open:
                    self._all_closed.clear()
                    await self._all_closed.wait()
        except TimeoutError:
            pass

    def opened(self, sender: _Sender) -> None:
        """A connection was handed over."""
        self._open[sender] = None

    def closed(self, sender: _Sender) -> None:
        """A connection is gone."""
        self._open.pop(sender, None)
        self._all_closed.set()


class _Sender(asyncio.BufferedProtocol):
    """The holder's end of one transfer."""

    def __init__(self, server: TransferServer, identity: PeerIdentity) -> None:
        self._server = server
        self._identity = identity
        self._transport: asyncio.Transport | None = None
        self._frames = FrameBuffer(REQUEST_BYTES)
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._source: TransferSource | None = None
        self._task: asyncio.Task[None] | None = None
        self._bytes_sent = 0
        self._all_sent = False
        self._failure = ""

    def fail(self, reason: str) -> None:
        """End the connection at once."""
        self._failure = self._failure or reason
        if self._transport is not None:
            self._transport.abort()

    # --- for asyncio --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A member is there; its request must follow soon."""
        transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_AHEAD_BYTES)
        self._server.opened(self)
        timeout_s = self._server.limits.handshake_timeout_ms / 1000
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._no_request)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take the request; nothing else may come."""
        self._frames.received(nbytes)
        try:
            frame = None if self._asked else self._frames.next_frame()
            if frame is not None:
                self._asked = True
                self._answer(decode(TransferRequest, frame))
            if self._asked and self._frames.take_rest():
                raise DecodeError("more than one request")
        except DecodeError as error:
            count(self._server.counters, refusals.GARBAGE)
            self.fail(f"the requester sent {error}")

    def pause_writing(self) -> None:
        """The requester is slower than we are."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """There is room again."""
        self._writable.set()

    def eof_received(self) -> None:
        """The requester has closed."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The end: good if everything was sent and the requester closed in order."""
        self._server.closed(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._source is None:
            return
        self._server.serving -= 1
        if not self._failure and (exc is not None or not self._all_sent):
            self._failure = f"the requester ended the transfer early{f' ({exc})' if exc else ''}"
        try:
            self._source.done(self._bytes_sent, self._failure)
        except Exception:
            count(self._server.counters, refusals.HANDLER)
            logger.exception("the owner failed when told of the end of a transfer")

    # --- answering and sending ----------------------------------------------------------------

    def _no_request(self) -> None:
        count(self._server.counters, refusals.GARBAGE)
        self.fail("no request came")

    def _answer(self, request: TransferRequest) -> None:
        if self._timer is not None:
            self._timer.cancel()
        server = self._server
        if server.serving >= server.limits.transfers_served:
            count(server.counters, refusals.BUSY)
            self._refuse("busy")
            return
        try:
            decision = server.handler(self._identity, request)
        except Exception:
            count(server.counters, refusals.HANDLER)
            logger.exception("the owner failed when asked for a transfer by %s", self._identity.name)
            decision = "the holder failed"
        if isinstance(decision, str):
            self._refuse(decision)
            return
        self._source = decision
        server.serving += 1
        self._task = asyncio.create_task(self._send(decision, request.first_chunk), name="edgepool transfer")

    def _refuse(self, reason: str) -> None:
        self._failure = self._failure or reason
        self._write_frame(encode(TransferRefusal(reason[:_MAX_REASON])))
        if self._transport is not None:
            self._transport.close()

    def _write_frame(self, body: bytes) -> None:
        if self._transport is not None:
            self._transport.write(header(len(body)) + body)

    async def _send(self, source: TransferSource, first_chunk: int) -> None:
        manifest = source.manifest
        if first_chunk > len(manifest.chunks):
            self._refuse(f"the data has only {len(manifest.chunks)} chunks")
            return
        try:
            descriptor = os.open(source.path, os.O_RDONLY)
        except OSError as error:
            self._refuse(f"the holder cannot read the data: {error.strerror}")
            return
        try:
            if os.fstat(descriptor).st_size != manifest.size_bytes:
                self._refuse("the holder's file is not as long as its manifest says")
                return
            self._write_frame(encode(TransferAccept(manifest)))
            start = first_chunk * manifest.chunk_bytes
            await self._send_bytes(descriptor, start, manifest.size_bytes, source.moved)
            self._all_sent = True
            assert self._transport is not None
            self._transport.close()
        except TimeoutError:
            self.fail("the requester stalled")
        except OSError as error:
            self.fail(f"the data cannot be read: {error.strerror}")
        except Exception:
            count(self._server.counters, refusals.HANDLER)
            logger.exception("sending data to %s failed", self._identity.name)
            self.fail("the holder failed")
        finally:
            os.close(descriptor)

    async def _send_bytes(self, descriptor: int, offset: int, end: int, moved: Callable[[int], None]) -> None:
        """Send a file's bytes from `offset` to `end`; TimeoutError if nobody takes them."""
        assert self._transport is not None
        stall_s = self._server.limits.transfer_stall_ms / 1000
        while offset < end:
            if not self._writable.is_set():
                async with asyncio.timeout(stall_s):
                    await self._writable.wait()
            piece = await _read(descriptor, min(PIECE_BYTES, end - offset), offset)
            if not piece:
                raise OSError(0, "the file became shorter")
            self._transport.write(piece)
            offset += len(piece)
            self._bytes_sent += len(piece)
            moved(len(piece))


_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


async def _read(descriptor: int, size_bytes: int, offset: int) -> memoryview:
    """Return up to `size_bytes` at `offset`: at once if they are in memory, else by a thread."""
    piece = bytearray(size_bytes)
    if _NOWAIT:
        try:
            read_bytes = os.preadv(descriptor, [piece], offset, _NOWAIT)
            # A whole piece can be sent without the loop ever waiting; others need their turn.
            await asyncio.sleep(0)
            return memoryview(piece)[:read_bytes]
        except OSError:
            # Not in memory, or a file system that does not know how to say so.
            pass
    read_bytes = await asyncio.get_running_loop().run_in_executor(
        None, os.preadv, descriptor, [piece], offset
    )
    return memoryview(piece)[:read_bytes]

"""The holder's end of one data connection: a thread that reads, seals and sends the chunks asked for.

Reading, sealing and sending all let other threads run, so the event loop, with votes on it, never waits
for bulk.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from edgepool.model.twin import Manifest
from edgepool.transport.lane import FRAME_BYTES, LAST, PACKED, LaneKey, Sealer
from edgepool.transport.packing import Base, Packer, pays

PIECE_BYTES = 64 * 1024
"""What is paced is sent in pieces of this size."""
TELL_S = 0.02
"""The event loop is told at such intervals of what was sent, and when nothing more is asked for."""
TELL_CHUNKS = 32
"""It is told at the latest after so many."""
_TIMEVAL = struct.Struct("ll")


class Pace(Protocol):
    """Keeps what moves to or from one peer within a budget."""

    @property
    def limits(self) -> bool:
        """Whether anything is limited; nobody needs to wait otherwise."""
        ...

    def wait(self, size_bytes: int) -> None:
        """Return when so many bytes may move; blocks a thread. Raises OSError if this peer is closing."""
        ...


class TransferSource(msgspec.Struct, frozen=True):
    """Data to serve: its manifest, the file that holds it, and whom to tell how it goes.

    On the event loop, `moved(size_bytes)` is called for what was sent, `done(bytes_sent, failure)` once at
    the end (`failure` is '' if the requester took all that it wanted), and `refusal()` for each request for
    chunks: it names the condition that fails by now, or is ''. `has` is None for whole data. `base` is
    another version that the requester has as well: only what differs from it has to be told. `doubted(index)`
    is called if a chunk could not be read, or is said to be wrong, or is found so.
    """

    manifest: Manifest
    path: Path
    moved: Callable[[int], None]
    done: Callable[[int, str], None]
    refusal: Callable[[], str] = str
    pace: Pace | None = None
    has: frozenset[int] | None = None
    base: tuple[Manifest, Path] | None = None
    doubted: Callable[[int], object] = int

    @property
    def paced(self) -> bool:
        """Whether what is sent has to wait for its turn."""
        return self.pace is not None and self.pace.limits


Wanted = TypeVar("Wanted")
"""What a requester asks for at a time."""


class Sending(ABC, Generic[Wanted]):
    """One data connection, and the thread that sends on it what is wanted.

    Its owner calls it on the event loop, and is told of the end there.
    """

    def __init__(self, key: LaneKey, ended: Callable[[Any], None]) -> None:
        """`ended` is called with this, once."""
        self.key = key
        self.failure = ""
        self._asked = 0
        self._sending = 0
        self._told = ended
        self._loop = asyncio.get_running_loop()
        self._wanted: SimpleQueue[Wanted | None] = SimpleQueue()
        self._connection: socket.socket | None = None
        self._over = False

    def begin(self, connection: socket.socket, stall_s: float) -> None:
        """Take the data connection, and begin to send."""
        self._connection = connection
        connection.setblocking(True)
        timeout = _TIMEVAL.pack(int(stall_s), int(stall_s % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        threading.Thread(target=self._run, name="edgepool send", daemon=True).start()

    @property
    def owed(self) -> int:
        """How much was asked for that is not being sent yet. The thread counts it before it is sent."""
        return self._asked - self._sending

    @property
    def over(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._over

    def end(self, failure: str) -> None:
        """Stop now; `failure` is '' if the requester has all that it wanted."""
        if self._over:
            return
        self._over = True
        self.failure = self.failure or failure
        self._wanted.put(None)
        if self._connection is None:
            self._loop.call_soon(self._finish)
        else:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    @abstractmethod
    def settle(self) -> None:
        """Tell the owners of what was served that it is over."""

    @abstractmethod
    def _send_wanted(self, sealer: Sealer) -> None:
        """Send what comes in `_wanted`, until there is None; in the thread. Raises OSError."""

    @abstractmethod
    def _tell_rest(self) -> None:
        """Tell the loop what it was not told yet; the last that the thread does."""

    @abstractmethod
    def _close_files(self) -> None:
        """Nothing is read any more."""

    def _run(self) -> None:
        failure = ""
        try:
            self._send_wanted(Sealer(self.key))
        except BlockingIOError:
            failure = "the requester stalled"
        except ConnectionError:
            failure = "the requester ended the transfer early"
        except OSError as error:
            failure = f"the data cannot be sent: {error.strerror or error}"
        self._tell_rest()
        with suppress(RuntimeError):  # the loop may be closed
            self._loop.call_soon_threadsafe(self._thread_ended, failure)

    def _send_paced(self, frame: memoryview, pace: Pace | None) -> None:
        """Send a frame, in pieces as the budget lets them."""
        assert self._connection is not None
        if pace is None or not pace.limits:
            self._connection.sendall(frame)
            return
        for start in range(0, len(frame), PIECE_BYTES):
            piece = frame[start : start + PIECE_BYTES]
            pace.wait(len(piece))
            self._connection.sendall(piece)

    def _thread_ended(self, failure: str) -> None:
        if not self._over:
            self.failure = failure
            self._over = True
        self._finish()

    def _finish(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._close_files()
        self._told(self)


class Serving(Sending[tuple[int, int]]):
    """One piece of data being served: what is wanted are ranges of its chunks, first and count."""

    def __init__(
        self,
        source: TransferSource,
        descriptor: int,
        key: LaneKey,
        ended: Callable[[Serving], None],
        packs: bool = False,
        base: Base | None = None,
    ) -> None:
        """With `packs` chunks may be packed, if that pays; `base` is what they may differ from."""
        super().__init__(key, ended)
        self.source = source
        self.bytes_sent = 0
        self._descriptor = descriptor
        self._packs = packs
        self._base = base
        self._untold: list[int] = []
        self._told_s = 0.0
        self._unread: int | None = None

    def send(self, first: int, count: int) -> None:
        """Send these chunks after those that were asked for before."""
        self._asked += count
        self._wanted.put((first, count))

    def settle(self) -> None:
        """Tell the owner of the data that it is over."""
        self.source.done(self.bytes_sent, self.failure)
        if self._unread is not None:
            self.source.doubted(self._unread)

    def doubt(self, index: int) -> None:
        """The requester says that a chunk was wrong."""
        if index < len(self.source.manifest.chunks):
            self.source.doubted(index)

    # --- in the thread ------------------------------------------------------------------------

    def _send_wanted(self, sealer: Sealer) -> None:
        packer = self._packer()
        size_bytes = FRAME_BYTES if packer is None else self.source.manifest.chunk_bytes
        plain = memoryview(bytearray(min(size_bytes, max(self.source.manifest.size_bytes, 1))))
        while (wanted := self._wanted.get()) is not None:
            first, count = wanted
            for index in range(first, first + count):
                self._sending += 1
                if packer is None:
                    self._send_chunk(sealer, plain, index)
                else:
                    self._send_packed(sealer, packer, plain, index)
                self._sent_one(index, index + 1 == first + count)

    def _packer(self) -> Packer | None:
        if self._base is not None:
            return Packer(self._base)
        if self._packs and pays(self._descriptor, self.source.manifest.size_bytes):
            return Packer(None)
        return None

    def _send_chunk(self, sealer: Sealer, plain: memoryview, index: int) -> None:
        manifest = self.source.manifest
        offset, rest = index * manifest.chunk_bytes, manifest.chunk_size_bytes(index)
        while rest:
            length = min(FRAME_BYTES, rest)
            self._read(plain[:length], offset)
            offset, rest = offset + length, rest - length
            self._send_frame(sealer.seal(index, plain[:length], 0 if rest else LAST))

    def _send_packed(self, sealer: Sealer, packer: Packer, plain: memoryview, index: int) -> None:
        """Send a chunk packed, or as it is if that does not pay."""
        manifest = self.source.manifest
        chunk = plain[: manifest.chunk_size_bytes(index)]
        offset = index * manifest.chunk_bytes
        self._read(chunk, offset)
        packed = packer.pack(offset, chunk)
        content, flag = (chunk, 0) if packed is None else (memoryview(packed), PACKED)
        for start in range(0, len(content), FRAME_BYTES):
            end = start + FRAME_BYTES
            last = LAST if end >= len(content) else 0
            self._send_frame(sealer.seal(index, content[start:end], flag | last))

    def _read(self, into: memoryview, offset: int) -> None:
        try:
            if os.preadv(self._descriptor, [into], offset) != len(into):
                raise OSError(0, "the file became shorter")
        except OSError:
            self._unread = offset // self.source.manifest.chunk_bytes
            raise

    def _send_frame(self, frame: memoryview) -> None:
        self._send_paced(frame, self.source.pace)

    def _sent_one(self, index: int, last: bool) -> None:
        """Tell the loop of chunks that were sent, now or with the next ones: waking it costs time."""
        self._untold.append(self.source.manifest.chunk_size_bytes(index))
        now_s = monotonic()
        idle = last and self._wanted.empty()
        if idle or len(self._untold) >= TELL_CHUNKS or now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            self._tell_rest()

    def _tell_rest(self) -> None:
        untold, self._untold = self._untold, []
        if untold:
            with suppress(RuntimeError):  # the loop may be closed
                self._loop.call_soon_threadsafe(self._sent, sum(untold))

    # --- on the loop again --------------------------------------------------------------------

    def _sent(self, size_bytes: int) -> None:
        self.bytes_sent += size_bytes
        self.source.moved(size_bytes)

    def _close_files(self) -> None:
        os.close(self._descriptor)
        if self._base is not None:
            self._base.close()

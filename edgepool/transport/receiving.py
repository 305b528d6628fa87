"""The requester's end of data connections: a thread for each opens and checks, one thread writes.

A chunk is opened into a buffer, hashed once, and handed to the writer only if it is right. The buffers are
few: when the disk is slower than the network, connections fill up and the holders wait.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic
from typing import Protocol

from blake3 import blake3

from edgepool.errors import DecodeError, RemoteError, Unavailable
from edgepool.model.crypto import data_hash
from edgepool.model.ids import PeerId
from edgepool.model.twin import Manifest
from edgepool.runtime.pacer import PaceEnded
from edgepool.transport.lane import (
    FRAME_BYTES,
    HEADER_BYTES,
    LAST,
    PACKED,
    SEAL_BYTES,
    LaneKey,
    Opener,
    read_header,
)
from edgepool.transport.packing import Base, place_of, unpack
from edgepool.transport.serving import Pace

BUFFERED_BYTES = 8 * 1024 * 1024
"""So much may wait to be written."""
SLOWEST_BYTES = 64 * 1024
"""Less than this within `limits.transfer_stall_ms` counts as a stall."""
TELL_S = 0.02
"""While much is asked for, the event loop is told at such intervals of what came: waking it costs time."""
TELL_BELOW = 8
"""With fewer chunks asked for it is told of each, so that it can ask for more."""
_TIMEVAL = struct.Struct("ll")


class ChunkSink(Protocol):
    """Where checked chunks go, in any order. What it raises ends the fetch and reaches its caller."""

    def has(self, index: int) -> bool:
        """Say whether chunk `index` is there already."""
        ...

    def write(self, index: int, data: memoryview) -> None:
        """Take chunk `index`, already checked, in a thread; `data` is only valid during the call."""
        ...


class WrongChunk(RemoteError):
    """A holder sent a chunk that is not what the manifest says."""

    def __init__(self, peer: str, index: int) -> None:
        super().__init__(peer, f"chunk {index} is not what its manifest says")
        self.index = index


class DamagedBase(Unavailable):
    """The older version here, from which chunks were to differ, is not what it was any more."""

    def __init__(self, root: bytes) -> None:
        super().__init__(f"the older version {root.hex()[:16]} that is held here is damaged")
        self.root = root


class Spool:
    """Checked chunks on their way to a sink: a bounded number of buffers, and the thread that writes."""

    def __init__(self, sink: ChunkSink, chunk_bytes: int, failed: Callable[[], None]) -> None:
        self.failure: Exception | None = None
        self._sink = sink
        self._chunk_bytes = chunk_bytes
        self._failed = failed
        self._spare = max(2, BUFFERED_BYTES // chunk_bytes)
        self._lock = threading.Lock()
        self._free: SimpleQueue[bytearray | None] = SimpleQueue()
        self._full: SimpleQueue[tuple[int, bytearray, int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="edgepool write", daemon=True)
        self._thread.start()

    def more_sources(self) -> None:
        """One more thread needs a buffer to fill."""
        with self._lock:
            self._spare += 1

    def take(self) -> bytearray | None:
        """Return a buffer when there is one; None once the spool has ended."""
        if self._free.empty():
            with self._lock:
                if self._spare:
                    self._spare -= 1
                    return bytearray(self._chunk_bytes)
        buffer = self._free.get()
        if buffer is None:
            self._free.put(None)  # for the next one who waits
        return buffer

    def give_back(self, buffer: bytearray) -> None:
        """A buffer was not needed."""
        self._free.put(buffer)

    def put(self, index: int, buffer: bytearray, size_bytes: int) -> None:
        """Write the first `size_bytes` of `buffer`, which is the spool's from now on, as chunk `index`."""
        self._full.put((index, buffer, size_bytes))

    def end(self) -> None:
        """Return once everything that was put is written; blocks. See `failure`."""
        self._free.put(None)
        self._full.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._full.get()) is not None:
            index, buffer, size_bytes = item
            try:
                if self.failure is None and not self._sink.has(index):
                    self._sink.write(index, memoryview(buffer)[:size_bytes])
            except Exception as error:
                self.failure = error
                self._failed()
            self._free.put(buffer)


class Receiving(ABC):
    """One data connection, and the thread that receives from it.

    On the event loop `ended(error)` is called once; `wire_bytes` is what has come, as it came.
    """

    def __init__(
        self,
        holder: PeerId,
        connection: socket.socket,
        key: LaneKey,
        stall_s: float,
        ended: Callable[[Exception | None], None],
    ) -> None:
        self.wire_bytes = 0
        self._holder = holder
        self._connection = connection
        self._opener = Opener(key)
        self._stall_s = stall_s
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._over = False
        self._header = memoryview(bytearray(HEADER_BYTES))
        connection.setblocking(True)
        timeout = _TIMEVAL.pack(int(stall_s), int(stall_s % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)

    @property
    @abstractmethod
    def asked(self) -> int:
        """How much is asked for and has not come."""

    @abstractmethod
    def _receive(self) -> bool:
        """Receive something and hand it on; False if there is to be no more. In the thread."""

    @abstractmethod
    def _tell_rest(self) -> None:
        """Tell the loop what it was not told yet; the last that the thread does."""

    def _start(self) -> None:
        threading.Thread(target=self._run, name="edgepool receive", daemon=True).start()

    def stop(self) -> None:
        """Nothing more is wanted."""
        self._over = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    # --- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        error: Exception | None = None
        try:
            while self._receive():
                pass
        except DecodeError as wrong:
            # Anybody on the way can have done this, so nobody is blamed.
            error = Unavailable(f"the data connection to {self._holder} was disturbed: {wrong}")
        except PaceEnded as closing:
            error = Unavailable(str(closing.strerror))
        except OSError as lost:
            error = self._ended_early(f" ({lost.strerror or lost})")
        except Exception as other:
            error = other
        self._connection.close()
        with suppress(RuntimeError):  # the loop may be closed
            self._tell_rest()
            self._loop.call_soon_threadsafe(self._ended, None if self._over else error)

    def _ended_early(self, why: str = "") -> Unavailable:
        return Unavailable(f"{self._holder} ended the transfer early{why}")

    def _fill(self, view: memoryview, patient: bool = False) -> None:
        """Fill `view` from the connection. While nothing is asked for, a `patient` caller waits for ever."""
        filled = 0
        while filled < len(view):
            asked = bool(self.asked)
            began_s = monotonic()
            try:
                got = self._connection.recv_into(view[filled:], 0, socket.MSG_WAITALL)
                if not got:
                    raise self._ended_early()
            except BlockingIOError:
                got = 0
            filled += got
            self.wire_bytes += got
            slow = filled < len(view) and got < SLOWEST_BYTES and monotonic() - began_s > 0.9 * self._stall_s
            if slow and (filled or asked or not patient):
                raise Unavailable(f"{self._holder} stalled: {self.asked} are asked for")


class Receiver(Receiving):
    """Takes the chunks that one holder sends, in the order in which they are asked for.

    On the event loop, `arrived([(index, at_s), ...])` is called for chunks that came and were right, with
    when they did by the monotonic clock; `ended(error)` once, after that. `wire_bytes` is what has come, as
    it came. Packed chunks may differ from `base`.
    """

    def __init__(
        self,
        holder: PeerId,
        connection: socket.socket,
        key: LaneKey,
        manifest: Manifest,
        spool: Spool,
        stall_s: float,
        pace: Pace | None,
        arrived: Callable[[list[tuple[int, float]]], None],
        ended: Callable[[Exception | None], None],
        base: Base | None = None,
    ) -> None:
        super().__init__(holder, connection, key, stall_s, ended)
        self._base = base
        self._packed: bytearray | None = None
        self._manifest = manifest
        self._spool = spool
        self._pace = pace
        self._arrived = arrived
        self._expected: deque[int] = deque()
        self._untold: list[tuple[int, float]] = []
        self._told_s = 0.0
        self._sealed = memoryview(bytearray(min(FRAME_BYTES, manifest.chunk_bytes) + SEAL_BYTES))
        spool.more_sources()
        self._start()

    @property
    def asked(self) -> int:
        """How many chunks are asked for and have not come."""
        return len(self._expected)

    def expect(self, index: int) -> None:
        """Chunk `index` is about to be asked for."""
        self._expected.append(index)

    # --- in the thread ------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Receive the next chunk, check it and hand it on; False if there is to be none."""
        self._fill(self._header, patient=True)
        header = bytes(self._header)
        index, length, flags = read_header(header)
        if not self._expected or self._expected[0] != index:
            raise DecodeError(f"chunk {index}, which is not the next one that was asked for")
        buffer = self._spool.take()
        if buffer is None:
            return False
        try:
            size_bytes = self._manifest.chunk_size_bytes(index)
            chunk = memoryview(buffer)[:size_bytes]
            right = (self._open_packed if flags & PACKED else self._open_chunk)(header, length, flags, chunk)
            if not right:
                raise WrongChunk(self._holder, index)
        except BaseException:
            self._spool.give_back(buffer)
            raise
        self._expected.popleft()
        self._spool.put(index, buffer, size_bytes)
        now_s = monotonic()
        self._untold.append((index, now_s))
        if len(self._expected) < TELL_BELOW or now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            self._tell_rest()
        return True

    def _tell_rest(self) -> None:
        untold, self._untold = self._untold, []
        if untold:
            self._loop.call_soon_threadsafe(self._arrived, untold)

    def _open_chunk(self, header: bytes, length: int, flags: int, chunk: memoryview) -> bool:
        """Read the frames of a chunk into `chunk`; say whether it is what the manifest says."""
        hasher = blake3()
        self._open_frames(header, length, flags, chunk, hasher.update)
        return hasher.digest() == self._manifest.chunks[read_header(header)[0]]

    def _open_packed(self, header: bytes, length: int, flags: int, chunk: memoryview) -> bool:
        """Read the frames of a packed chunk and unpack it into `chunk`; say whether it is right."""
        index = read_header(header)[0]
        if self._packed is None:
            self._packed = bytearray(min(self._manifest.chunk_bytes, self._manifest.size_bytes))
        packed = memoryview(self._packed)
        content = packed[: self._open_frames(header, length, flags, packed[: len(chunk)])]
        try:
            chunk[:] = unpack(content, len(chunk), self._base)
            right = data_hash(chunk) == self._manifest.chunks[index]
        except DecodeError:
            right = False
        if not right and self._base is not None:
            place = place_of(content) if len(content) >= 8 else None
            if place is not None and not self._base.sound(place, len(chunk)):
                raise DamagedBase(self._base.manifest.root)
        return right

    def _open_frames(
        self,
        header: bytes,
        length: int,
        flags: int,
        into: memoryview,
        opened: Callable[[memoryview], object] = len,
    ) -> int:
        """Read the frames of a chunk, the first of which has this header, into `into`; return their size."""
        first, packed = read_header(header)[0], flags & PACKED
        filled = 0
        while True:
            end = filled + length
            misfit = bool(flags & LAST) != (end == len(into)) and not packed
            if not length or end > len(into) or misfit:
                raise DecodeError(f"a frame of {length} bytes that does not fit into chunk {first}")
            if self._pace is not None and self._pace.limits:
                self._pace.wait(length)
            sealed = self._sealed[: length + SEAL_BYTES]
            self._fill(sealed)
            content = into[filled:end]
            self._opener.open(header, sealed, content)
            opened(content)
            filled = end
            if flags & LAST:
                return filled
            self._fill(self._header)
            header = bytes(self._header)
            index, length, flags = read_header(header)
            if index != first or flags & PACKED != packed:
                raise DecodeError(f"a frame of chunk {index} inside chunk {first}")

"""Frames on a byte stream: a 4-byte big-endian length, then that many bytes.

The length is judged before anything is set aside for it, and memory grows with what has arrived,
never with what was announced.
"""

from __future__ import annotations

import struct

from edgepool.errors import DecodeError

_LENGTH = struct.Struct(">I")
HEADER_BYTES = _LENGTH.size
_START_BYTES = 64 * 1024
_KEEP_BYTES = 1024 * 1024


def header(size_bytes: int) -> bytes:
    """Return the header of a frame whose body has `size_bytes`."""
    return _LENGTH.pack(size_bytes)


class FrameBuffer:
    """Reassembles frames in one buffer that is used again and again.

    asyncio reads straight into `space`; `hint_bytes` is what it says is waiting. More than that is
    always offered, because what does not fit when the other side has closed would be lost.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self._max = max_frame_bytes
        self._buffer = bytearray(_START_BYTES)
        self._start = 0
        self._end = 0

    def space(self, hint_bytes: int) -> memoryview:
        """Return where to read into; at least `hint_bytes` + 1."""
        need = max(hint_bytes, 4096) + 1
        if len(self._buffer) - self._end < need:
            self._make_room(need)
        return memoryview(self._buffer)[self._end :]

    def received(self, size_bytes: int) -> None:
        """Say that `size_bytes` were read into the last space."""
        self._end += size_bytes

    def next_frame(self) -> bytes | None:
        """Return the next whole frame, or None; DecodeError if a longer one than allowed begins."""
        have = self._end - self._start
        if have < HEADER_BYTES:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._start)
        if length > self._max:
            raise DecodeError(f"a frame of {length} bytes, more than the {self._max} allowed")
        if have < HEADER_BYTES + length:
            return None
        body = self._start + HEADER_BYTES
        frame = bytes(memoryview(self._buffer)[body : body + length])
        self._start = body + length
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > _KEEP_BYTES:
                self._buffer = bytearray(_START_BYTES)
        return frame

    def take_rest(self) -> bytes:
        """Return, and forget, what has arrived behind the last frame."""
        rest = bytes(memoryview(self._buffer)[self._start : self._end])
        self._start = self._end = 0
        return rest

    def _make_room(self, need: int) -> None:
        have = self._end - self._start
        kept = memoryview(self._buffer)[self._start : self._end]
        if len(self._buffer) - have >= need:
            memoryview(self._buffer)[:have] = kept
        else:
            grown = bytearray(max(2 * have, have + need, _START_BYTES))
            grown[:have] = kept
            self._buffer = grown
        self._start, self._end = 0, have

"""Chunks packed for the way: as what differs from an older version, or compressed, when that is smaller.

Each chunk is packed for itself, so chunks still come in any order from any holder. The content of a packed
chunk begins with a place in the older version (8 bytes, big-endian; all ones for none), then comes one zstd
frame. Its prefix is the older version around that place: as many bytes as the chunk has, and
REACH_BYTES more on either side, as far as the older version has them.

What comes out is checked against the manifest like any chunk: a wrong packing can only cost time.
docs/decisions/0015-differences.md has the figures.
"""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from edgepool.errors import DecodeError
from edgepool.model.crypto import data_hash
from edgepool.model.twin import Manifest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

REACH_BYTES = 512 * 1024
"""What was moved by less than this is found without looking for it."""
WINDOW_LOG = 23
"""A packed chunk needs 2 ** WINDOW_LOG bytes of memory to be unpacked, its prefix included."""
PAYS = 0.9
"""A chunk that does not become smaller than this travels as it is."""

_PLACE = struct.Struct(">Q")
_NOWHERE = 2**64 - 1
_SEARCH_BYTES = 16 * 1024 * 1024
_PROBE_BYTES = 48
_SEARCHES = 8
"""So many chunks in a row are looked for that are nowhere near; then one in so many."""
_SAMPLE_BYTES = 64 * 1024
_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.window_log: WINDOW_LOG,
    zstd.CompressionParameter.enable_long_distance_matching: 1,
}


@dataclass(frozen=True, slots=True)
class Base:
    """An older version that both sides have, as an open file."""

    manifest: Manifest
    descriptor: int

    def around(self, place: int, chunk_bytes: int) -> tuple[int, int]:
        """Return from where to where the prefix for a chunk at `place` goes."""
        size_bytes = self.manifest.size_bytes
        start = min(max(0, place - REACH_BYTES), size_bytes)
        return start, min(size_bytes, place + chunk_bytes + REACH_BYTES)

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`, fewer where the file ends before that."""
        return os.pread(self.descriptor, max(0, end - start), start)

    def sound(self, place: int, chunk_bytes: int) -> bool:
        """Say whether the chunks around `place` are still what the manifest says."""
        manifest = self.manifest
        start, end = self.around(place, chunk_bytes)
        touched = range(start // manifest.chunk_bytes, -(-end // manifest.chunk_bytes))
        return all(data_hash(self._chunk(index)) == manifest.chunks[index] for index in touched)

    def close(self) -> None:
        """Let the file go."""
        os.close(self.descriptor)

    def _chunk(self, index: int) -> bytes:
        start = index * self.manifest.chunk_bytes
        return self.read(start, start + self.manifest.chunk_size_bytes(index))


def open_base(manifest: Manifest, path: Path) -> Base:
    """Open an older version; OSError if its file cannot be read."""
    return Base(manifest, os.open(path, os.O_RDONLY | os.O_CLOEXEC))


class Packer:
    """Packs the chunks of one piece of data, for a thread of the holder."""

    def __init__(self, base: Base | None) -> None:
        self._base = base
        self._moved_bytes = 0
        self._strange = 0

    def pack(self, offset: int, chunk: memoryview) -> bytes | None:
        """Return the packed chunk that is at `offset` of the data, or None if it should travel as it is."""
        packed = self._pack_at(offset + self._moved_bytes, chunk)
        if packed is None and self._base is not None:
            self._strange += 1
            if self._strange <= _SEARCHES or self._strange % _SEARCHES == 0:
                moved_bytes = self._find(self._base, offset, chunk)
                if moved_bytes is not None:
                    self._moved_bytes = moved_bytes
                    packed = self._pack_at(offset + moved_bytes, chunk)
        if packed is not None:
            self._strange = 0
        return packed

    def _pack_at(self, place: int, chunk: memoryview) -> bytes | None:
        head, prefix = _NOWHERE, b""
        if self._base is not None:
            start, end = self._base.around(max(0, place), len(chunk))
            prefix = self._base.read(start, end)
            head = max(0, place) if prefix else _NOWHERE
        packed = _compressed(chunk, prefix)
        return _PLACE.pack(head) + packed if len(packed) < PAYS * len(chunk) else None

    def _find(self, base: Base, offset: int, chunk: memoryview) -> int | None:
        """Look by how much this chunk has moved, in the older version around where the last one was."""
        start = max(0, offset + self._moved_bytes - _SEARCH_BYTES)
        there = base.read(start, start + 2 * _SEARCH_BYTES)
        for quarter in (1, 2, 3):
            place = quarter * len(chunk) // 4
            probe = bytes(chunk[place : place + _PROBE_BYTES])
            found = there.find(probe) if len(probe) == _PROBE_BYTES else -1
            if found >= 0:
                return start + found - place - offset
        return None


def unpack(content: memoryview, size_bytes: int, base: Base | None) -> bytes:
    """Return the chunk of `size_bytes` that `content` packs; DecodeError if it packs none.

    Takes no more memory than the chunk and a window, whatever `content` says.
    """
    place = place_of(content)
    prefix = b""
    if place is not None:
        if base is None:
            raise DecodeError("a packed chunk that differs from nothing that is here")
        prefix = base.read(*base.around(place, size_bytes))
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    unpacker = zstd.ZstdDecompressor(zstd_dict=_prefix(prefix), options=options)
    try:
        chunk = unpacker.decompress(content[_PLACE.size :], max_length=size_bytes)
    except (zstd.ZstdError, EOFError) as error:
        raise DecodeError(f"a packed chunk that cannot be unpacked: {error}") from None
    if len(chunk) != size_bytes or not unpacker.eof or unpacker.unused_data:
        raise DecodeError("a packed chunk that has another size")
    return chunk


def place_of(content: memoryview) -> int | None:
    """Return where in the older version a packed chunk has its prefix, None if it has none."""
    if len(content) < _PLACE.size:
        raise DecodeError("a packed chunk without its place")
    (place,) = _PLACE.unpack(content[: _PLACE.size])
    return None if place == _NOWHERE else int(place)


def pays(descriptor: int, size_bytes: int) -> bool:
    """Say by samples of a file whether it becomes smaller when it is compressed."""
    for place in (0, size_bytes // 2, max(0, size_bytes - _SAMPLE_BYTES)):
        sample = os.pread(descriptor, _SAMPLE_BYTES, place)
        if sample and len(_compressed(memoryview(sample), b"")) < PAYS * len(sample):
            return True
    return False


def _compressed(data: memoryview, prefix: bytes) -> bytes:
    packer = zstd.ZstdCompressor(options=_OPTIONS, zstd_dict=_prefix(prefix))
    return packer.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)


def _prefix(content: bytes) -> tuple[zstd.ZstdDict, int] | None:
    # Less than this cannot be a dictionary for zstd, and would not help.
    return zstd.ZstdDict(content, is_raw=True).as_prefix if len(content) >= 8 else None

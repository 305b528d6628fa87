"""The files that hold a chain's blocks: segments `blocks-<first height>.log`, and their offsets.

    blocks-0000000000000001.log   blocks from height 1 on, as log.py writes them, the number being the height
    blocks-0000000000000001.idx   where they begin, once the segment is full
    blocks-0000000000009021.log   the last segment, which grows

Only the last segment is written to. A full one is never changed again: it was synced before the next
one was made, so whatever is wrong in it is damage. Its `.idx` file spares reading it on opening; it is
believed if its checksum holds, its salt is the segment's and the segment has the size that it says, and
made again otherwise. A damaged block is found when it is read.

An `.idx` file is checked (checked.py): first height, number of blocks, the segment's salt (u64, u64, 4
bytes), then the byte (u64) behind the preface and behind each block; little-endian.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgepool.errors import StorageError
from edgepool.storage.checked import read_checked, replace_checked
from edgepool.storage.files import close_file, guarded
from edgepool.storage.log import PREFACE, BadEntry, read_entry, read_preface, scan

SEGMENT_BYTES = 8 * 1024 * 1024
"""A new segment is begun when the last one has reached this size."""

LEAST_SEGMENTS = 16
"""A chain that takes all the room it may have lies in so many segments at least; one goes as a whole."""

KIND = b"EPBLOCK1"
NOUN = "block"
NO_BEGINNING = "it is not the beginning of a block log"
REMEDY = (
    "Restore the folder from a backup, or move its files out of it except genesis.bin and start the peer "
    "again: it then takes the blocks from the other members."
)
_INDEX_KIND = b"EPBLKIX1"
_INDEX_HEAD = struct.Struct("<QQ4s")
_NAME = re.compile(r"blocks-([0-9]{16})\.log")


@dataclass(frozen=True, slots=True)
class Segment:
    """Blocks from height `first` on in one file.

    `ends` says where the preface and each block end, in bytes; that of the last segment grows.
    """

    path: Path
    first: int
    salt: bytes
    ends: array[int]

    @property
    def last(self) -> int:
        """The height of the last block; `first` - 1 if there is none."""
        return self.first + len(self.ends) - 2

    @property
    def size_bytes(self) -> int:
        """How many bytes the segment has."""
        return self.ends[-1]

    def read(self, height: int) -> bytes | None:
        """Return the block at `height`, checked, or None if it is not in this segment."""
        place = height - self.first
        try:
            start, end = self.ends[place], self.ends[place + 1]
        except IndexError:
            return None
        with guarded(self.path, "read"):
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = read_entry(fd, start, end, self.salt)
            finally:
                close_file(fd)
        if isinstance(found, str) or found.number != height:
            reason = found if isinstance(found, str) else f"number {found.number} stands in its place"
            raise damaged_block(self.path, BadEntry(height, start, reason), REMEDY)
        return found.payload


def segment_bytes_for(limit_bytes: int) -> int:
    """Return how large segments of a chain should be that is to take at most `limit_bytes` on disk."""
    return min(SEGMENT_BYTES, max(1, limit_bytes // LEAST_SEGMENTS))


def segment_path(folder: Path, first: int) -> Path:
    """Return the path of the segment that begins with block `first`."""
    return folder / f"blocks-{first:016}.log"


def index_path(path: Path) -> Path:
    """Return the path of the offsets of the segment at `path`."""
    return path.with_suffix(".idx")


def list_segments(folder: Path) -> list[tuple[int, Path]]:
    """Return (first height, path) of each segment in a chain's folder, the oldest first."""
    with guarded(folder, "read"):
        named = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in named if match and int(match[1]) > 0)


def load_full(first: int, path: Path) -> Segment:
    """Return a full segment, by its offsets if they are sound, else by reading it all.

    StorageError if it is damaged, as far as that was noticed.
    """
    with guarded(path, "opened"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with guarded(path, "read"):
            size = os.fstat(fd).st_size
            salt = read_preface(fd, KIND)
            if salt is None:
                raise damaged_block(path, BadEntry(first, 0, NO_BEGINNING), REMEDY)
            ends = _read_offsets(path, first, salt, size)
            if ends is not None:
                return Segment(path, first, salt, ends)
            ends = array("Q", [PREFACE.size])
            for found in scan(fd, size, salt, first):
                if isinstance(found, BadEntry):
                    raise damaged_block(path, found, REMEDY)
                ends.append(found.end)
    finally:
        close_file(fd)
    segment = Segment(path, first, salt, ends)
    save_offsets(segment)
    return segment


def save_offsets(segment: Segment) -> None:
    """Write the offsets of a full segment beside it; if that fails, it is read the next time."""
    ends = array("Q", segment.ends)
    if sys.byteorder == "big":
        ends.byteswap()
    head = _INDEX_HEAD.pack(segment.first, len(ends) - 1, segment.salt)
    with suppress(StorageError):
        replace_checked(index_path(segment.path), _INDEX_KIND, head + ends.tobytes())


def damaged_block(path: Path, bad: BadEntry, remedy: str = "") -> StorageError:
    """Return the error that names a damaged block, its file and its byte."""
    what = f"{path}: {NOUN} {bad.number} is damaged at byte {bad.offset} ({bad.reason})"
    return StorageError(f"{what}. Nothing was changed. {remedy}" if remedy else what)


def _read_offsets(path: Path, first: int, salt: bytes, size: int) -> array[int] | None:
    """Return the offsets of a segment of `size` bytes, or None if they are not there or not sound."""
    where = index_path(path)
    try:
        payload = read_checked(where, _INDEX_KIND, "")
    except StorageError:
        return None
    rest = payload[_INDEX_HEAD.size :]
    ends = array("Q")
    if len(rest) % ends.itemsize:
        return None
    ends.frombytes(rest)
    if sys.byteorder == "big":
        ends.byteswap()
    sound = _INDEX_HEAD.pack(first, len(ends) - 1, salt) if ends else b""
    return ends if payload[: _INDEX_HEAD.size] == sound and ends[-1] == size else None

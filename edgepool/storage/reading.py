"""Reading chains in a folder without opening it: nothing is locked or changed, and its peer may run.

Blocks are checked against their checksums, not their signatures; that is for the caller. A chain whose
beginning is pruned is read from its first block on; its snapshot tells the state before that.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgepool.errors import DecodeError, StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import decode
from edgepool.model.ids import ChainId
from edgepool.storage.files import close_file, guarded
from edgepool.storage.log import PREFACE, BadEntry, read_entry, read_preface, scan, was_acknowledged
from edgepool.storage.segments import KIND, NO_BEGINNING, damaged_block, list_segments, segment_path


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A whole block in a log: `start` and `end` are its bytes in its segment."""

    height: int
    start: int
    end: int
    payload: bytes


class UnfinishedBlock(StorageError):
    """The last block is not whole, as a write under way, or one that was cut short, leaves it."""


class SegmentReader:
    """One segment as it is now, for reading only; its peer may go on writing.

    `salt` tells one file from another, `size` is its length in bytes on opening. StorageError if it is
    missing or does not begin like a block log.
    """

    begin = PREFACE.size

    def __init__(self, first: int, path: Path) -> None:
        self.first = first
        self._path = path
        with guarded(path, "opened"):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with guarded(path, "read"):
                self.size = os.fstat(self._fd).st_size
                salt = read_preface(self._fd, KIND)
            if salt is None:
                raise damaged_block(path, BadEntry(first, 0, NO_BEGINNING))
        except BaseException:
            self.close()
            raise
        self.salt = salt

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scan(self, height: int, start: int) -> Iterator[StoredBlock | StorageError]:
        """Yield the blocks from `height` on, which begins at byte `start`.

        What is not whole comes as a StorageError and is the last thing yielded; as an UnfinishedBlock if
        nothing behind it shows that it was acknowledged.
        """
        try:
            with guarded(self._path, "read"):
                for found in scan(self._fd, self.size, self.salt, height, start):
                    if isinstance(found, BadEntry):
                        damage = damaged_block(self._path, found)
                        known = was_acknowledged(self._fd, self.size, self.salt, found)
                        yield damage if known else UnfinishedBlock(str(damage))
                        return
                    yield StoredBlock(found.number, start, found.end, found.payload)
                    start = found.end
        except StorageError as error:
            yield error

    def read(self, height: int, start: int) -> StoredBlock | None:
        """Return the block at `height` if it stands, whole, at byte `start`."""
        with guarded(self._path, "read"):
            found = read_entry(self._fd, start, self.size, self.salt)
        if isinstance(found, str) or found.number != height:
            return None
        return StoredBlock(height, start, found.end, found.payload)

    def close(self) -> None:
        """Release the file."""
        close_file(self._fd)


class BlockReader:
    """The blocks in a chain's `folder` as they are now, for reading only; its peer may go on.

    `first` is the height of the first block that is here, or will be. StorageError if there is no segment.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found = list_segments(folder)
        if not self._found:
            path = segment_path(folder, 1)
            raise StorageError(f"{path} cannot be opened: neither it nor a later segment is there")
        if len(self._found) > 1:
            with guarded(folder, "read"):
                if self._found[-1][1].stat().st_size < PREFACE.size:
                    self._found.pop()  # it is being made
        self.first = self._found[0][0]
        self._open = ExitStack()
        self._reader: SegmentReader | None = None

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def segment(self, height: int) -> SegmentReader | None:
        """Return the segment that has, or would have, the block at `height`; None below the first.

        Good until another one is asked for.
        """
        place = self._place(height)
        if place < 0:
            return None
        if self._reader is None or self._reader.first != self._found[place][0]:
            self._open.close()
            self._reader = None
            self._reader = self._open.enter_context(SegmentReader(*self._found[place]))
        return self._reader

    def read(self, height: int, start: int) -> StoredBlock | None:
        """Return the block at `height` if it stands, whole, at byte `start` of its segment."""
        segment = self.segment(height)
        return segment.read(height, start) if segment is not None else None

    def scan(self, height: int = 0, end: int = PREFACE.size) -> Iterator[StoredBlock | StorageError]:
        """Yield the blocks behind that at `height`, which ends at byte `end` of its segment.

        From the first that is here, if that is behind. What is not whole, or missing, comes as a
        StorageError and is the last thing yielded; as an UnfinishedBlock only at the end of the last segment.
        """
        if height < self.first:
            height, end = self.first - 1, PREFACE.size
        for first, path in self._found[max(0, self._place(height)) :]:
            if first > height + 1:
                yield StorageError(f"{self._folder}: blocks {height + 1} to {first - 1} are missing")
                return
            try:
                segment = self.segment(first)
            except StorageError as error:
                yield error
                return
            assert segment is not None, "it was found"
            for found in segment.scan(height + 1, end):
                if isinstance(found, StorageError):
                    is_last = path == self._found[-1][1]
                    yield found if is_last else StorageError(str(found))
                    return
                yield found
                height = found.height
            end = PREFACE.size

    def bytes_behind(self, height: int, end: int) -> int:
        """Return how many bytes the blocks behind that at `height` have, which ends at byte `end`."""
        if height < self.first:
            end = PREFACE.size
        with guarded(self._folder, "read"):
            paths = [path for _, path in self._found[max(0, self._place(height)) :]]
            all_bytes = sum(max(0, path.stat().st_size - PREFACE.size) for path in paths)
        return all_bytes - (end - PREFACE.size)

    def _place(self, height: int) -> int:
        return bisect_right(self._found, height, key=_first) - 1

    def close(self) -> None:
        """Release the files."""
        self._open.close()
        self._reader = None


def scan_blocks(folder: Path) -> Iterator[tuple[int, bytes | StorageError]]:
    """Yield (height, payload) of each block in a chain's folder, from the first that is there on.

    The first block that is not whole comes as (its height, StorageError) and is the last thing yielded. A
    missing log counts as damage of block 1.
    """
    height = 1
    try:
        with BlockReader(folder) as reader:
            height = reader.first
            for found in reader.scan():
                if isinstance(found, StorageError):
                    yield height, found
                    return
                yield height, found.payload
                height += 1
    except StorageError as error:
        yield height, error


def first_height(folder: Path) -> int:
    """Return the height of the first block in a chain's folder; 1 unless its beginning is pruned."""
    found = list_segments(folder)
    return found[0][0] if found else 1


def decode_block(folder: Path, chain: ChainId, height: int, payload: bytes) -> CertifiedBlock:
    """Return the block that was stored as block `height` of `chain`; StorageError if it is no such."""
    try:
        certified = decode(CertifiedBlock, payload)
    except DecodeError as error:
        raise StorageError(f"{folder}: block {height} is damaged ({error})") from None
    header = certified.block.header
    if header.chain != chain or header.height != height:
        raise StorageError(
            f"{folder}: block {height} is damaged "
            f"(block {header.height} of chain {header.chain} is in its place)"
        )
    return certified


def _first(found: tuple[int, Path]) -> int:
    return found[0]

"""The block log: the blocks of one chain, the first one first, whose sync is the commit point.

A payload is an encoded CertifiedBlock, which is nothing to this module but bytes. How the segments lie
on disk is in segments.py, how entries look and what happens to damaged ones is in log.py.

* A segment is begun behind one that has been synced, and its name is durable before a block is in it.
* Segments are dropped from the oldest on, each deletion being durable before the next one. So what is
  left after a crash is one run of blocks, and a gap is damage.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

from edgepool.errors import StorageError
from edgepool.storage.files import guarded, sync_folder
from edgepool.storage.log import AppendLog
from edgepool.storage.segments import (
    KIND,
    NOUN,
    REMEDY,
    SEGMENT_BYTES,
    Segment,
    index_path,
    list_segments,
    load_full,
    save_offsets,
    segment_path,
)


class BlockLog:
    """The blocks of one chain in `folder`; the first segment is made if there is none.

    `snapshot` is the height of the chain's snapshot (0 if it has none) up to which blocks may be missing
    at the beginning. If it was `adopted`, segments that begin at or below it are leftovers.

    Opening reads the last segment: an unfinished write at its end is moved to `<name>.torn-<offset>` and
    told in `recovered` ('' if there was none); a damaged block that had been acknowledged is a
    StorageError that names it. Keeps 8 bytes of memory for each block. One thread may write, sync and
    drop while others read. All methods raise StorageError.
    """

    def __init__(
        self, folder: Path, segment_bytes: int = SEGMENT_BYTES, snapshot: int = 0, adopted: bool = False
    ) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._leaving: list[Path] = []
        found = list_segments(folder)
        if adopted:
            self._delete(path for first, path in found if first <= snapshot)
            found = [one for one in found if one[0] > snapshot]
        elif not found and snapshot:
            raise self._missing(1, snapshot)
        full = tuple(load_full(first, path) for first, path in found[:-1])
        begin = found[-1][0] if found else snapshot + 1
        self._check_run(full, begin, snapshot)
        self._remove_lost_offsets()
        self._log = self._open_segment(begin)
        self._segments = (*full, _growing(self._log))
        if self.height < snapshot:
            self.close()
            raise self._missing(self.height + 1, snapshot)

    @property
    def recovered(self) -> str:
        """What was set aside on opening, in a sentence, or ''."""
        return self._log.recovered

    @property
    def first(self) -> int:
        """The height of the first block that is here, or will be."""
        return self._segments[0].first

    @property
    def height(self) -> int:
        """The height of the last block; `first` - 1 if there is none."""
        return self._segments[-1].last

    @property
    def size_bytes(self) -> int:
        """How many bytes the segments have."""
        return sum(segment.size_bytes for segment in self._segments)

    def append(self, height: int, payload: bytes) -> None:
        """Write the block at `height`, the one behind the last; durable only after `sync`."""
        if height != self.height + 1:
            raise StorageError(
                f"{self._segments[-1].path}: block {height} cannot be appended, "
                f"the next one is {self.height + 1}"
            )
        if self._log.size_bytes >= self._segment_bytes and len(self._log):
            self._roll(height)
        self._log.append(payload)

    def sync(self) -> None:
        """Make the appended blocks durable; if that fails they are not in the log any more."""
        self._log.sync()

    def read(self, height: int) -> bytes | None:
        """Return the block at `height`, checked against its checksum, or None if it is not here."""
        segments = self._segments
        place = bisect_right(segments, height, key=_first) - 1
        if place < 0:
            return None
        try:
            return segments[place].read(height)
        except StorageError:
            if height < self.first:  # it was dropped in this moment
                return None
            raise

    def droppable(self, height: int) -> int:
        """Return the last height that goes if blocks up to `height` may; `first` - 1 if none can.

        Only whole segments go, and never the one that grows.
        """
        lasts = [segment.last for segment in self._segments[:-1] if segment.last <= height]
        return lasts[-1] if lasts else self.first - 1

    def drop(self, height: int) -> None:
        """Delete the segments that end at or below `height`, durably.

        If that fails they are not read any more, and are deleted at the next call or opening.
        """
        gone = [one.path for one in self._segments[:-1] if one.last <= height]
        self._leaving += gone
        self._segments = self._segments[len(gone) :]
        while self._leaving:
            self._delete(self._leaving[:1])
            del self._leaving[0]

    def restart(self, first: int) -> None:
        """Begin again with block `first`, above the last one; what was here is gone, durably.

        If that fails it can be called again with the same height.
        """
        if self._segments[-1].first != first:
            fresh = self._open_segment(first)
            before, self._log = self._log, fresh
            self._segments = (_growing(fresh),)
            before.close()
        self._delete(path for begin, path in list_segments(self._folder) if begin < first)

    def close(self) -> None:
        """Release the files; no data depends on it."""
        self._log.close()

    def _roll(self, first: int) -> None:
        """Begin the next segment; the one before is durable and closed then."""
        self._log.sync()
        full, before = self._segments[-1], self._log
        fresh = self._open_segment(first)
        save_offsets(full)
        self._log = fresh
        self._segments = (*self._segments, _growing(fresh))
        before.close()

    def _open_segment(self, first: int) -> AppendLog:
        """Make the segment that begins at `first`; one that an earlier attempt has left is taken."""
        log = AppendLog(segment_path(self._folder, first), KIND, NOUN, REMEDY, first)
        try:
            with guarded(log.path, "made"):
                sync_folder(self._folder)
        except StorageError:
            log.close()
            raise
        return log

    def _delete(self, paths: Iterable[Path]) -> None:
        """Remove segments, the oldest first, each durably before the next."""
        for path in paths:
            with guarded(path, "removed"):
                path.unlink(missing_ok=True)
                index_path(path).unlink(missing_ok=True)
                sync_folder(self._folder)

    def _remove_lost_offsets(self) -> None:
        with guarded(self._folder, "opened"):
            for path in list(self._folder.glob("blocks-*.idx")):
                if not path.with_suffix(".log").exists():
                    path.unlink()

    def _check_run(self, full: tuple[Segment, ...], begin: int, snapshot: int) -> None:
        """StorageError if blocks are missing before, or between, the full segments and the one behind."""
        last = min(snapshot, full[0].first - 1 if full else begin - 1)
        for segment in full:
            if segment.first != last + 1:
                raise self._missing(last + 1, segment.first - 1)
            last = segment.last
        if begin != last + 1:
            raise self._missing(last + 1, begin - 1)

    def _missing(self, first: int, last: int) -> StorageError:
        return StorageError(
            f"{self._folder}: blocks {first} to {last} are missing, though the files say that they were "
            f"stored. Nothing was changed. {REMEDY}"
        )


def _growing(log: AppendLog) -> Segment:
    """Return the segment that `log` writes to; it grows and shrinks with it."""
    return Segment(log.path, log.first, log.salt, log.ends)


def _first(segment: Segment) -> int:
    return segment.first

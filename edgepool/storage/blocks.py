"""The block log: one append-only file for each chain, block 1 first, whose sync is the commit point.

The heights are the numbers of the log's entries; a payload is an encoded CertifiedBlock, which is
nothing to this module but bytes. How entries look and what happens to damaged ones is in log.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepool.errors import StorageError
from edgepool.storage.files import guarded
from edgepool.storage.log import (
    PREFACE,
    AppendLog,
    BadEntry,
    read_entry,
    read_preface,
    scan,
    was_acknowledged,
)

_KIND = b"EPBLOCK1"
_REMEDY = (
    "Restore the folder from a backup, or move the file out of the folder and start the peer again: "
    "it then takes the blocks from the other members."
)


class BlockLog:
    """The blocks of one chain in the file `path`, which is made if it is missing.

    Opening reads it all: an unfinished write at its end is moved to `<name>.torn-<offset>` and told
    in `recovered` ('' if there was none); a damaged block that had been acknowledged is a
    StorageError that names it. Keeps 8 bytes of memory for each block. One thread may append and
    sync while others read. All methods raise StorageError.
    """

    def __init__(self, path: Path) -> None:
        self._log = AppendLog(path, _KIND, "block", _REMEDY)

    @property
    def recovered(self) -> str:
        """What was set aside on opening, in a sentence, or ''."""
        return self._log.recovered

    @property
    def height(self) -> int:
        """The height of the last block; 0 if there is none."""
        return len(self._log)

    def append(self, height: int, payload: bytes) -> None:
        """Write the block at `height`, the one behind the last; durable only after `sync`."""
        if height != self.height + 1:
            raise StorageError(
                f"{self._log.path}: block {height} cannot be appended, the next one is {self.height + 1}"
            )
        self._log.append(payload)

    def sync(self) -> None:
        """Make the appended blocks durable; if that fails they are not in the log any more."""
        self._log.sync()

    def read(self, height: int) -> bytes:
        """Return the block at `height`, checked against its checksum."""
        payload = self._log.read(height)
        if payload is None:
            raise StorageError(f"{self._log.path}: there is no block {height}, the last is {self.height}")
        return payload

    def close(self) -> None:
        """Release the file; no data depends on it."""
        self._log.close()


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A whole entry of a block log: `start` and `end` are its bytes in the file."""

    height: int
    start: int
    end: int
    payload: bytes


class BlockReader:
    """The block log `path` as it is now, for reading only; its peer may go on writing.

    `salt` tells one log file from another, `size` is its length in bytes on opening. StorageError
    if it is missing or does not begin like a block log.
    """

    begin = PREFACE.size

    def __init__(self, path: Path) -> None:
        self._path = path
        with guarded(path, "opened"):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with guarded(path, "read"):
                self.size = os.fstat(self._fd).st_size
                salt = read_preface(self._fd, _KIND)
            if salt is None:
                raise _damage(path, BadEntry(1, 0, "it is not the beginning of a block log"))
        except BaseException:
            self.close()
            raise
        self.salt = salt

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scan(self, height: int = 0, end: int = PREFACE.size) -> Iterator[StoredBlock | StorageError]:
        """Yield the blocks behind that at `height`, which ends at byte `end`.

        What is not whole comes as a StorageError and is the last thing yielded.
        """
        try:
            with guarded(self._path, "read"):
                for found in scan(self._fd, self.size, self.salt, height + 1, end):
                    if isinstance(found, BadEntry):
                        yield _damage(self._path, found)
                        return
                    yield StoredBlock(found.number, end, found.end, found.payload)
                    height, end = found.number, found.end
        except StorageError as error:
            yield error

    def read(self, height: int, start: int) -> StoredBlock | None:
        """Return the block at `height` if it stands, whole, at byte `start`."""
        with guarded(self._path, "read"):
            found = read_entry(self._fd, start, self.size, self.salt)
        if isinstance(found, str) or found.number != height:
            return None
        return StoredBlock(height, start, found.end, found.payload)

    def unfinished(self, height: int, start: int) -> bool:
        """Say whether what begins at byte `start`, not whole, is only a write under way or cut short."""
        with guarded(self._path, "read"):
            return not was_acknowledged(self._fd, self.size, self.salt, BadEntry(height, start, ""))

    def close(self) -> None:
        """Release the file."""
        os.close(self._fd)


def scan_blocks(path: Path) -> Iterator[tuple[int, bytes | StorageError]]:
    """Yield (height, payload) of each block in the log `path`, without ever changing it.

    The first block that is not whole comes as (its height, StorageError) and is the last thing
    yielded. A missing file or a damaged beginning counts as damage of block 1.
    """
    height = 0
    try:
        with BlockReader(path) as reader:
            for found in reader.scan():
                if isinstance(found, StorageError):
                    yield height + 1, found
                    return
                height = found.height
                yield height, found.payload
    except StorageError as error:
        yield 1, error


def _damage(path: Path, bad: BadEntry) -> StorageError:
    return StorageError(f"{path}: block {bad.number} is damaged at byte {bad.offset} ({bad.reason})")

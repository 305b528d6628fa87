"""The few file operations that durability hangs on, each with its error in one sentence.

A new file is written under another name, synced, renamed, and its folder synced: only then does it
exist. Every OSError becomes a StorageError that names the file and says what to do.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgepool.errors import StorageError

COPY_BYTES = 256 * 1024
"""Files are written in pieces of this size: with 1 MiB the same bytes cost Linux several times as much."""


@contextmanager
def guarded(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError inside into a StorageError: '`path` cannot be `doing`: why'."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, doing, error) from error


def disk_error(path: Path, doing: str, error: OSError) -> StorageError:
    """Return the StorageError for `error`, which came up while `path` was being `doing`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(f"{path} cannot be {doing}: the disk is full; free some space and try again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        why = f"{error.strerror}; check the owner and the rights of the folder"
    elif error.errno == errno.EIO:
        why = f"{error.strerror}; check the disk"
    else:
        why = error.strerror or str(error)
    return StorageError(f"{path} cannot be {doing}: {why}")


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; OSError if that is not possible, with a part perhaps written."""
    rest = memoryview(data)
    while len(rest):
        written = os.pwrite(fd, rest[:COPY_BYTES], offset)
        rest = rest[written:]
        offset += written


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to the new file `path` and sync it (not its folder). Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
    finally:
        close_file(fd)


def copy_durably(fd: int, start: int, path: Path) -> None:
    """Copy what `fd` holds from byte `start` on to the new file `path` and sync it. Raises OSError."""
    with open(path, "xb") as copy:
        while data := os.pread(fd, COPY_BYTES, start):
            copy.write(data)
            start += len(data)
        copy.flush()
        os.fsync(copy.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        close_file(fd)


def make_folder(folder: Path) -> None:
    """Make `folder`, with those above it that are missing, durably.

    The names of `folder` and of the one above it are synced even if they are there: whoever made them may
    have been killed before it could do so. (Whoever has no right to read above them has not made them.)
    """
    with guarded(folder, "made"):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_folder(path.parent)
        for path in (folder, folder.parent):
            if path not in missing:
                with suppress(PermissionError):
                    sync_folder(path.parent)


def close_file(fd: int) -> None:
    """Close `fd`, whatever comes of it: what must be on the disk was synced before."""
    with suppress(OSError):
        os.close(fd)

"""The audit log of a peer: who asked for which data, and whether it was granted [S2.3].

`audit/audit.log` in the peer's folder, a JSON object a line, appended only. When it is full it becomes
`audit.1.log`, the one before `audit.2.log`, and so on: the oldest of FILES goes. A line that a power cut has
torn is left out when it is read. Only its owner may read it, as it tells who works on what.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgepool.errors import StorageError
from edgepool.storage.files import guarded, make_folder, sync_folder

FOLDER = "audit"
FILES = 4
_NAME = "audit.log"
_LINE_BYTES = 16 * 1024


class AuditEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One decision: data `key` (`root` in hex) was handed to a peer, or refused for `reason`.

    `at` is where it was decided: "confirmation", or "transfer" if that comes later. `unwritten` counts the
    decisions about the same peer before this one that were too many to be written down.
    """

    time_ms: int
    peer: str
    name: str
    role: str
    organisation: str
    key: str
    root: str
    purpose: str
    granted: bool
    reason: str = ""
    at: str = "confirmation"
    unwritten: int = 0


class AuditLog:
    """Appends to the log in `folder`, which holds `limit_bytes` at most in all; files are made when needed.

    All methods raise StorageError.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder / FOLDER
        self._path = self._folder / _NAME
        self._file_bytes = limit_bytes // FILES
        self._file: int | None = None
        self._size_bytes = 0
        self._dirty = False

    @property
    def dirty(self) -> bool:
        """Whether something was written that is not synced yet."""
        return self._dirty

    def append(self, entry: AuditEntry) -> None:
        """Write an entry behind the others; it is durable after the next `sync`."""
        line = msgspec.json.encode(entry) + b"\n"
        with guarded(self._path, "written"):
            if self._file is not None and self._size_bytes + len(line) > self._file_bytes:
                self._turn_over()
            if self._file is None:
                self._open()
            assert self._file is not None
            self._dirty = True
            written = os.write(self._file, line)
            self._size_bytes += written
            if written < len(line):
                raise OSError(None, "the disk took a part of an entry only")

    def sync(self) -> None:
        """Make what was written durable; may run in a worker thread."""
        file = self._file
        if file is not None and self._dirty:
            self._dirty = False
            with guarded(self._path, "synced"):
                os.fdatasync(file)

    def close(self) -> None:
        """Sync, and let the file go."""
        if self._file is not None:
            try:
                self.sync()
            finally:
                os.close(self._file)
                self._file = None

    def _open(self) -> None:
        make_folder(self._folder)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._size_bytes = os.fstat(self._file).st_size
        if self._size_bytes and not _ends_a_line(self._path, self._size_bytes):
            self._size_bytes += os.write(self._file, b"\n")  # what a power cut has torn is a line of its own
        sync_folder(self._folder)
        if self._size_bytes >= self._file_bytes:
            self._turn_over()
            self._open()

    def _turn_over(self) -> None:
        self.close()
        for number in range(FILES - 1, 0, -1):
            older = self._folder / f"audit.{number}.log"
            newer = self._folder / f"audit.{number - 1}.log" if number > 1 else self._path
            if newer.exists():
                newer.replace(older)
        sync_folder(self._folder)


def read_audit(folder: Path) -> Iterator[AuditEntry]:
    """Yield the entries of a peer's folder, the oldest first; its peer may be running. StorageError."""
    base = folder / FOLDER
    paths = [base / f"audit.{number}.log" for number in range(FILES - 1, 0, -1)]
    for path in (*paths, base / _NAME):
        try:
            with path.open("rb") as file:
                while line := file.readline(_LINE_BYTES):
                    try:
                        yield msgspec.json.decode(line, type=AuditEntry)
                    except (msgspec.DecodeError, UnicodeDecodeError):
                        continue
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from None


def _ends_a_line(path: Path, size_bytes: int) -> bool:
    with path.open("rb") as file:
        file.seek(size_bytes - 1)
        return file.read(1) == b"\n"

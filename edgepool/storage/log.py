"""An append-only log of numbered, checksummed entries, which blocks and votes are kept in.

Rules, each paid for by somebody's lost data:

* An entry says up to which number the log was synced when it was written. So, after a power cut, a
  bad entry is known for what it is: one that was never acknowledged (nothing behind it was written
  after it had been synced) is set aside, one that was is damage, and nothing is touched.
* What is set aside is copied to a file of its own before the log is cut.
* What is found on opening is synced before it counts, with the file's name: a process that was killed
  may have left both in the kernel's memory only. What no later entry calls synced is written again
  first, because a sync that failed may have lost it from the disk and left it to be read.
* After a failed write or sync the log is cut back to what stood before. A failed sync is never
  tried again on the same pages: the kernel may have dropped them and would report success.
* Checksums are salted for each file, so that nobody can send a payload that looks like an entry.

The file: a preface (8 bytes kind, 4 salt, 4 CRC-32 of both), then the entries, each a header
(4 bytes magic, u64 number, u64 number synced, u32 payload length, u32 CRC-32 of salt, header and
payload; little-endian) and its payload. One thread may append and sync while another reads.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepool.errors import StorageError
from edgepool.model.codec import MAX_VALUE_BYTES
from edgepool.storage.files import (
    COPY_BYTES,
    close_file,
    copy_durably,
    disk_error,
    guarded,
    sync_folder,
    write_all,
)

MAGIC = b"\xf1EPE"
PREFACE = struct.Struct("<8s4sI")
HEADER = struct.Struct("<4sQQII")
CHECKED = struct.Struct("<QQI")
MAX_PAYLOAD_BYTES = MAX_VALUE_BYTES + 1024
SEARCH_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """A whole entry: its number from 1, the number synced before it, its payload and its end."""

    number: int
    synced: int
    payload: bytes
    end: int


@dataclass(frozen=True, slots=True)
class BadEntry:
    """The entry that must be `number`, at byte `offset`, is not whole; `reason` says why."""

    number: int
    offset: int
    reason: str


class AppendLog:
    """One log file, opened for writing; `kind` is 8 bytes that tell one sort of log from another.

    Makes the file if there is none; `first` is the number of its first entry, `salt` the salt of its
    checksums. `recovered` says what was set aside on opening, or is ''. Raises StorageError naming the
    file and, for damage, `noun`, its number, offset and `remedy`.
    """

    def __init__(self, path: Path, kind: bytes, noun: str, remedy: str, first: int = 1) -> None:
        self.path = path
        self.first = first
        self.recovered = ""
        self._noun = noun
        self._remedy = remedy
        self._unusable = ""
        self._ends = array("Q", [PREFACE.size])  # where the preface and the entries end
        with guarded(path, "opened"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with guarded(path, "recovered"):
                self.salt = self._recover(kind)
            self._synced = len(self)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def ends(self) -> array[int]:
        """Where the preface and each entry end, in bytes; it grows and shrinks with the log."""
        return self._ends

    @property
    def size_bytes(self) -> int:
        """How many bytes of the file are in use."""
        return self._ends[-1]

    def append(self, payload: bytes) -> None:
        """Write `payload` as the next entry; durable only after `sync`."""
        self._check_usable()
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise StorageError(
                f"{self.path}: {len(payload)} bytes are more than an entry may have ({MAX_PAYLOAD_BYTES})"
            )
        count = len(self)
        before = self.first - 1
        checked = CHECKED.pack(before + count + 1, before + self._synced, len(payload))
        crc = zlib.crc32(payload, zlib.crc32(checked, zlib.crc32(self.salt)))
        entry = MAGIC + checked + crc.to_bytes(4, "little") + payload
        try:
            write_all(self._fd, entry, self._ends[-1])
        except OSError as error:
            self._cut_back(count)
            raise disk_error(self.path, "written", error) from error
        self._ends.append(self._ends[-1] + len(entry))

    def sync(self) -> None:
        """Make all that was appended durable; on failure it is gone, as if it had not been appended."""
        self._check_usable()
        if self._synced == len(self):
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._cut_back(self._synced)
            raise disk_error(self.path, "synced", error) from error
        self._synced = len(self)

    def read(self, number: int) -> bytes | None:
        """Return the payload of entry `number`, checked, or None if there is none."""
        place = number - self.first
        try:
            if place < 0:
                return None
            start, end = self._ends[place], self._ends[place + 1]
        except IndexError:
            return None
        if self._fd < 0:
            raise StorageError(f"{self.path} is closed")
        with guarded(self.path, "read"):
            found = read_entry(self._fd, start, end, self.salt)
        if isinstance(found, str) or found.number != number:
            reason = found if isinstance(found, str) else "it has another's number"
            raise self._damaged(BadEntry(number, start, reason))
        return found.payload

    def rename(self, path: Path) -> None:
        """Give the file the name `path`, replacing what had it. Raises OSError; syncs no folder."""
        os.replace(self.path, path)
        self.path = path

    def close(self) -> None:
        """Release the file; no data depends on it."""
        if self._fd >= 0:
            close_file(self._fd)
            self._fd = -1

    def _recover(self, kind: bytes) -> bytes:
        """Find the entries, set aside what was never acknowledged, and return the salt."""
        size = os.fstat(self._fd).st_size
        salt = read_preface(self._fd, kind)
        if salt is None:
            if size > PREFACE.size:  # the preface is durable before any entry is written
                raise self._damaged(BadEntry(self.first, 0, "it is not the beginning of such a log"))
            return self._begin(kind, size)
        synced = self.first - 1
        for found in scan(self._fd, size, salt, self.first):
            if isinstance(found, BadEntry):
                if was_acknowledged(self._fd, size, salt, found):
                    raise self._damaged(found)
                self._set_aside(found.offset, size)
                break
            self._ends.append(found.end)
            synced = found.synced
        self._write_again(self._ends[synced - self.first + 1] if synced >= self.first else 0)
        os.fsync(self._fd)
        sync_folder(self.path.parent)
        return salt

    def _write_again(self, start: int) -> None:
        while data := os.pread(self._fd, COPY_BYTES, start):
            write_all(self._fd, data, start)
            start += len(data)

    def _begin(self, kind: bytes, size: int) -> bytes:
        if size:
            self._set_aside(0, size)
        salt = os.urandom(4)
        write_all(self._fd, PREFACE.pack(kind, salt, zlib.crc32(kind + salt)), 0)
        os.fsync(self._fd)
        sync_folder(self.path.parent)
        return salt

    def _set_aside(self, offset: int, size: int) -> None:
        name = aside = f"{self.path.name}.torn-{offset}"
        again = 1
        while self.path.with_name(aside).exists():
            again += 1
            aside = f"{name}-{again}"
        copy_durably(self._fd, offset, self.path.with_name(aside))
        os.ftruncate(self._fd, offset)
        self.recovered = (
            f"{self.path}: an unfinished write of {size - offset} bytes behind "
            f"{self._noun} {self.first - 1 + len(self)}, "
            f"never acknowledged, was set aside as {aside}"
        )

    def _cut_back(self, count: int) -> None:
        try:
            os.ftruncate(self._fd, self._ends[count])
        except OSError as error:
            self._unusable = str(error.strerror)
        del self._ends[count + 1 :]

    def _check_usable(self) -> None:
        if self._fd < 0:
            raise StorageError(f"{self.path} is closed")
        if self._unusable:
            raise StorageError(
                f"{self.path} takes no more writes since one failed and could not be undone "
                f"({self._unusable}): check the disk and start again"
            )

    def _damaged(self, bad: BadEntry) -> StorageError:
        return StorageError(
            f"{self.path}: {self._noun} {bad.number} is damaged at byte {bad.offset} ({bad.reason}). "
            f"Nothing was changed. {self._remedy}"
        )


def read_preface(fd: int, kind: bytes) -> bytes | None:
    """Return the salt of the log of `kind` in `fd`, or None if it does not begin like one."""
    raw = os.pread(fd, PREFACE.size, 0)
    if len(raw) < PREFACE.size:
        return None
    found, salt, crc = PREFACE.unpack(raw)
    return salt if found == kind and crc == zlib.crc32(kind + salt) else None


def scan(
    fd: int, size: int, salt: bytes, number: int = 1, offset: int = PREFACE.size
) -> Iterator[Entry | BadEntry]:
    """Yield the entries in order, from `number` at `offset` to the first that is bad, included."""
    while offset < size:
        found = read_entry(fd, offset, size, salt)
        if isinstance(found, str):
            yield BadEntry(number, offset, found)
            return
        if found.number != number:
            yield BadEntry(number, offset, f"number {found.number} stands in its place")
            return
        yield found
        number, offset = number + 1, found.end


def read_entry(fd: int, offset: int, size: int, salt: bytes) -> Entry | str:
    """Return the entry at `offset` of a file of `size` bytes, or say why there is none."""
    header = os.pread(fd, HEADER.size, offset)
    if len(header) < HEADER.size:
        return "the file ends inside its header"
    magic, number, synced, length, crc = HEADER.unpack(header)
    if magic != MAGIC:
        return "no entry begins there"
    if length > MAX_PAYLOAD_BYTES:
        return "its length is impossible"
    end = offset + HEADER.size + length
    if end > size:
        return "the file ends inside it"
    payload = os.pread(fd, length, offset + HEADER.size)
    checked = header[len(MAGIC) : len(MAGIC) + CHECKED.size]
    if zlib.crc32(payload, zlib.crc32(checked, zlib.crc32(salt))) != crc:
        return "its checksum does not hold"
    return Entry(number, synced, payload, end)


def was_acknowledged(fd: int, size: int, salt: bytes, bad: BadEntry) -> bool:
    """Say whether `bad` cannot be an unfinished write.

    It cannot if an entry behind it was written after it had been synced, or if it is whole and only
    its number is wrong.
    """
    position = bad.offset
    while len(window := os.pread(fd, SEARCH_BYTES, position)) >= HEADER.size:
        at = window.find(MAGIC)
        while at >= 0:
            found = read_entry(fd, position + at, size, salt)
            if isinstance(found, Entry):
                newer = found.number > bad.number and found.synced >= bad.number
                if newer or position + at == bad.offset:
                    return True
            at = window.find(MAGIC, at + 1)
        position += len(window) - len(MAGIC) + 1
    return False

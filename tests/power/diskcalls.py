"""The calls that edgepool.storage makes of the system, made to a disk in memory instead.

`installed()` replaces `os`, `shutil`, `fcntl` and `open` inside the modules of edgepool.storage, and
`root_of(disk)` stands for the paths they are given. Nothing of the product knows of it; a call that is
not here is an AttributeError, never a silent success.
"""

from __future__ import annotations

import errno
import fnmatch
import importlib
import io
import os
import pkgutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from random import Random
from typing import Any
from unittest.mock import patch

from disk import Disk, File, Folder, Handle, Node, disk_fault, disks, handles, numbers

import edgepool.storage

NOT_ON_DISK = ("index", "indexing", "memory")
"""Modules of edgepool.storage that do not go through here: SQLite does its own calls, and may be lost."""


def _disk(path: object) -> tuple[Disk, str]:
    text = str(path)
    return disks[text.split("/", 2)[1]], text


def _handle(number: int) -> Handle:
    try:
        return handles[number]
    except KeyError:
        raise disk_fault(errno.EBADF) from None


@dataclass(frozen=True, slots=True)
class Status:
    """What of os.stat_result is known here."""

    st_size: int
    st_mode: int
    st_mtime_ns: int
    st_ino: int


def _status(node: Node) -> Status:
    if isinstance(node, File):
        return Status(len(node.data), stat.S_IFREG | 0o644, node.changed, id(node))
    return Status(4096, stat.S_IFDIR | 0o755, 0, id(node))


class DiskOs:
    """Stands for the module `os`."""

    O_RDONLY, O_WRONLY, O_RDWR = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
    O_CREAT, O_EXCL, O_TRUNC = os.O_CREAT, os.O_EXCL, os.O_TRUNC
    O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW = os.O_CLOEXEC, os.O_DIRECTORY, os.O_NOFOLLOW
    fspath, strerror, getpid, name = os.fspath, os.strerror, os.getpid, os.name

    def __init__(self) -> None:
        self.draw = Random(0)

    def urandom(self, count: int) -> bytes:
        return self.draw.randbytes(count)

    def open(self, path: object, flags: int, mode: int = 0o777) -> int:
        disk, text = _disk(path)
        folder, name = disk.place(text) if text.count("/") > 1 else (disk.root, "")
        node: Node | None = folder.names.get(name) if name else disk.root
        disk.call("create" if node is None and flags & os.O_CREAT else "open")
        if node is None:
            if not flags & os.O_CREAT:
                raise disk_fault(errno.ENOENT, text)
            if disk.room_bytes is not None and disk.room_bytes <= 0:
                raise disk_fault(errno.ENOSPC, text)
            node = File()
            disk.move((folder, name, node))
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise disk_fault(errno.EEXIST, text)
        elif isinstance(node, Folder) and flags & (os.O_WRONLY | os.O_RDWR):
            raise disk_fault(errno.EISDIR, text)
        elif isinstance(node, File) and flags & os.O_DIRECTORY:
            raise disk_fault(errno.ENOTDIR, text)
        if flags & os.O_TRUNC and isinstance(node, File):
            disk.truncate(node, 0)
        number = next(numbers)
        handles[number] = Handle(disk, node, text)
        return number

    def close(self, fd: int) -> None:
        handle = _handle(fd)
        del handles[fd]
        handle.disk.call("close")

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        handle = _handle(fd)
        handle.disk.call("pread")
        return bytes(_file(handle).data[offset : offset + count])

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        handle = _handle(fd)
        if not handle.disk.call("pwrite"):
            return len(data)
        return handle.disk.write(_file(handle), bytes(data), offset)

    def fsync(self, fd: int, name: str = "fsync") -> None:
        handle = _handle(fd)
        if isinstance(handle.node, Folder):
            name = "fsync of a folder"
        try:
            works = handle.disk.call(name)
        except OSError:
            handle.disk.fail_sync(handle.node)
            raise
        if works:
            handle.disk.sync(handle.node)

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd, "fdatasync")

    def ftruncate(self, fd: int, size: int) -> None:
        handle = _handle(fd)
        if handle.disk.call("ftruncate"):
            handle.disk.truncate(_file(handle), size)

    def fstat(self, fd: int) -> Status:
        handle = _handle(fd)
        handle.disk.call("fstat")
        return _status(handle.node)

    def stat(self, path: object) -> Status:
        disk, text = _disk(path)
        disk.call("stat")
        return _status(disk.find(text))

    def mkdir(self, path: object, mode: int = 0o777) -> None:
        disk, text = _disk(path)
        disk.call("mkdir")
        folder, name = disk.place(text)
        if name in folder.names:
            raise disk_fault(errno.EEXIST, text)
        if disk.room_bytes is not None and disk.room_bytes <= 0:
            raise disk_fault(errno.ENOSPC, text)
        disk.move((folder, name, Folder()))

    def unlink(self, path: object) -> None:
        disk, text = _disk(path)
        disk.call("unlink")
        folder, name = disk.place(text)
        node = disk.find(text)
        if isinstance(node, Folder):
            raise disk_fault(errno.EISDIR, text)
        disk.move((folder, name, None))

    def rmdir(self, path: object) -> None:
        disk, text = _disk(path)
        disk.call("rmdir")
        folder, name = disk.place(text)
        node = disk.find(text)
        if not isinstance(node, Folder) or node.names:
            raise disk_fault(errno.ENOTEMPTY, text)
        disk.move((folder, name, None))

    def replace(self, old: object, new: object) -> None:
        disk, text = _disk(old)
        disk.call("rename")
        node, (source, name) = disk.find(text), disk.place(text)
        target, new_name = disk.place(str(new))
        there = target.names.get(new_name)
        if isinstance(there, Folder) and (isinstance(node, File) or there.names):
            raise disk_fault(errno.ENOTEMPTY, str(new))
        disk.move((source, name, None), (target, new_name, node))

    rename = replace

    def listdir(self, path: object) -> list[str]:
        disk, text = _disk(path)
        disk.call("listdir")
        node = disk.find(text)
        if not isinstance(node, Folder):
            raise disk_fault(errno.ENOTDIR, text)
        return list(node.names)


def _file(handle: Handle) -> File:
    if not isinstance(handle.node, File):
        raise disk_fault(errno.EISDIR, handle.path)
    return handle.node


class DiskShutil:
    """Stands for the module `shutil`."""

    def rmtree(self, path: DiskPath, ignore_errors: bool = False) -> None:
        try:
            for name in _os.listdir(path):
                inner = path / name
                if inner.is_dir():
                    self.rmtree(inner, ignore_errors)
                else:
                    inner.unlink()
            _os.rmdir(path)
        except OSError:
            if not ignore_errors:
                raise


class DiskFcntl:
    """Stands for the module `fcntl`."""

    LOCK_EX, LOCK_NB, LOCK_UN = 2, 4, 8

    def flock(self, fd: int, operation: int) -> None:
        handle = _handle(fd)
        handle.disk.call("flock")
        others = (one for one in handles.values() if one.node is handle.node and one is not handle)
        if operation & self.LOCK_EX and any(one.locked for one in others):
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        handle.locked = bool(operation & self.LOCK_EX)


class _Raw(io.RawIOBase):
    """A file for `open`, over the calls above."""

    def __init__(self, fd: int, readable: bool) -> None:
        self._fd, self._reads, self._at = fd, readable, 0

    def fileno(self) -> int:
        return self._fd

    def readable(self) -> bool:
        return self._reads

    def writable(self) -> bool:
        return not self._reads

    def readinto(self, buffer: Any) -> int:
        data = _os.pread(self._fd, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def write(self, data: Any) -> int:
        count = _os.pwrite(self._fd, data, self._at)
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._fd in handles:  # a crash has closed it already
                _os.close(self._fd)


def disk_open(path: object, mode: str = "r") -> Any:
    """Stand for the built-in `open`, in binary modes."""
    flags = {"rb": os.O_RDONLY, "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL}
    raw = _Raw(_os.open(path, flags[mode]), mode == "rb")
    return io.BufferedReader(raw) if mode == "rb" else io.BufferedWriter(raw)


_os = DiskOs()


class DiskPath(PurePosixPath):
    """A pathlib.Path on a disk of this module."""

    __slots__ = ()

    def stat(self) -> Status:
        return _os.stat(self)

    def exists(self) -> bool:
        return self._kind() != 0

    def is_dir(self) -> bool:
        return stat.S_ISDIR(self._kind())

    def is_file(self) -> bool:
        return stat.S_ISREG(self._kind())

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        try:
            _os.mkdir(self, mode)
        except FileNotFoundError:
            if not parents:
                raise
            self.parent.mkdir(parents=True, exist_ok=True)
            self.mkdir(mode, exist_ok=exist_ok)
        except FileExistsError:
            if not exist_ok or not self.is_dir():
                raise

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            _os.unlink(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        _os.rmdir(self)

    def rename(self, target: DiskPath) -> DiskPath:
        _os.replace(self, target)
        return target

    replace = rename

    def iterdir(self) -> Iterator[DiskPath]:
        return (self / name for name in _os.listdir(self))

    def glob(self, pattern: str) -> Iterator[DiskPath]:
        assert "/" not in pattern
        if not self.is_dir():
            return iter(())
        return (self / name for name in _os.listdir(self) if fnmatch.fnmatch(name, pattern))

    def open(self, mode: str = "r") -> Any:
        return disk_open(self, mode)

    def read_bytes(self) -> bytes:
        with self.open("rb") as stream:
            return bytes(stream.read())

    def _kind(self) -> int:
        try:
            return self.stat().st_mode
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            return 0


def root_of(disk: Disk) -> DiskPath:
    """Return the root folder of `disk`."""
    return DiskPath(f"/{disk.name}")


@contextmanager
def installed(seed: object = 0) -> Iterator[None]:
    """Let the modules of edgepool.storage work on disks of this module, and no longer on real ones."""
    stand_ins = {"os": _os, "shutil": DiskShutil(), "fcntl": DiskFcntl()}
    _os.draw = Random(f"{seed}/urandom")
    with ExitStack() as stack:
        for found in pkgutil.iter_modules(edgepool.storage.__path__, "edgepool.storage."):
            if found.name.rpartition(".")[2] in NOT_ON_DISK:
                continue
            module = importlib.import_module(found.name)
            stack.enter_context(patch.object(module, "open", disk_open, create=True))
            for name, new in stand_ins.items():
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, new))
        yield

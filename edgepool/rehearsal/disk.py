"""A gateway's disk: real files that can be full, fail, be slow, and lose what was not synced.

The store that is rehearsed is the real one, in a real folder. While it works, the three calls by which it
writes and syncs go through here: so each of them may be the last before the power fails, and what has been
synced is known to the byte. Nothing is patched in between, and nothing is synced for real.

A power cut leaves of each file what was synced; of the rest nothing, all, a part, or a part of zeros.
Names in folders are taken to be durable at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random

from edgepool.core.machine import CommitBlock, Item, NewChain, SaveSnapshot
from edgepool.model.ids import ChainId
from edgepool.rehearsal.virtualtime import VirtualTimeLoop
from edgepool.runtime.ports import SavedChain
from edgepool.storage.store import FolderStore

CALM_WORK_MS = 1
SEGMENT_BYTES = 16 * 1024
"""Much smaller than on a gateway, so that block logs begin new files now and then."""
_DESCRIPTORS = Path("/proc/self/fd")
_pwrite, _fsync, _fdatasync = os.pwrite, os.fsync, os.fdatasync


class PowerCut(BaseException):
    """The power of the machine has failed: no code of its peer goes on."""


class Disk:
    """The disk of one gateway, in `folder`; it outlives the lives of the peer.

    `on_power_cut` is called when a trap springs, before PowerCut is raised.
    """

    def __init__(
        self,
        folder: Path,
        draw: Random,
        loop: VirtualTimeLoop,
        on_power_cut: Callable[[], None],
    ) -> None:
        self.folder = folder
        self.room_bytes: int | None = None
        """How much more can be written; any amount if it is None."""
        self.fails_to_sync = False
        self.work_ms = CALM_WORK_MS
        """Up to how long a write, or a sync, takes."""
        self.trap: int | None = None
        """After so many writes and syncs the power fails; never if it is None."""
        self.powered = True
        self.complained = False
        """Whether an error was reported since the last start."""
        self.dirty: dict[int, None] = {}
        """The inodes of files written and not synced."""
        self._synced: dict[int, int] = {}
        self._draw = draw
        self._loop = loop
        self._on_power_cut = on_power_cut

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the writes and syncs inside go to this disk. Raises PowerCut if it has no power."""
        if not self.powered:
            raise PowerCut
        self._loop.spend(self._draw.random() * self.work_ms / 1000)
        _install(self._write, self._sync, self._sync)
        try:
            yield
        finally:
            _install(_pwrite, _fsync, _fdatasync)

    def settle(self) -> None:
        """Leave in the files what a power cut leaves, and be as good as new."""
        self._close_files()
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            status = path.stat()
            synced = min(self._synced.get(status.st_ino, 0), status.st_size)
            kind, part, zeros = (self._draw.random() for _ in range(3))
            reached = 0.0 if kind < 0.3 else 1.0 if kind < 0.5 else part
            size = synced + round(reached * (status.st_size - synced))
            os.truncate(path, size)
            if kind > 0.8:
                blank_from = synced + int(zeros * (size - synced))
                with path.open("r+b") as file:
                    file.seek(blank_from)
                    file.write(bytes(size - blank_from))
            self._synced[status.st_ino] = size
        self.dirty.clear()

    def _close_files(self) -> None:
        """Close what a peer that was cut off has open, as the end of a process does."""
        for fd, path in open_files().items():
            if path.is_relative_to(self.folder):
                os.close(fd)

    def finish_work(self) -> None:
        """Let be done what waits for the disk's worker."""
        self._loop.finish_work()

    def start(self) -> None:
        """Switch the power on."""
        self.powered, self.complained, self.trap = True, False, None

    def _write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        inode = os.fstat(fd).st_ino
        if self._springs():
            _pwrite(fd, memoryview(data)[: int(self._draw.random() * len(data))], offset)
            self._cut_power()
        if self.room_bytes is not None:
            data = memoryview(data)[: self.room_bytes]
            self.room_bytes -= len(data)
            if not len(data):
                self._refuse(errno.ENOSPC)
        self.dirty[inode] = None
        return _pwrite(fd, data, offset)

    def _sync(self, fd: int) -> None:
        if self._springs():
            self._cut_power()
        if self.fails_to_sync:
            self._refuse(errno.EIO)
        status = os.fstat(fd)
        self._synced[status.st_ino] = status.st_size
        self.dirty.pop(status.st_ino, None)

    def _springs(self) -> bool:
        if self.trap is None:
            return False
        self.trap -= 1
        return self.trap < 0

    def _cut_power(self) -> None:
        self.trap = None
        self._on_power_cut()
        raise PowerCut

    def _refuse(self, number: int) -> None:
        self.complained = True
        raise OSError(number, os.strerror(number))


def open_files() -> dict[int, Path]:
    """Return what files this process has open, by descriptor, where the system tells."""
    found: dict[int, Path] = {}
    if _DESCRIPTORS.is_dir():
        for link in list(_DESCRIPTORS.iterdir()):
            with suppress(OSError):  # it was that of the listing itself
                found[int(link.name)] = link.readlink()
    return found


def _install(*calls: object) -> None:
    for name, call in zip(("pwrite", "fsync", "fdatasync"), calls, strict=True):
        setattr(os, name, call)


class RehearsedStore(FolderStore):
    """The peer's real store on a Disk, for one life.

    `on_open` is told what it begins with, `on_synced` what has become durable. Opened again by those who
    look on, it says what it holds now.
    """

    def __init__(
        self,
        disk: Disk,
        on_open: Callable[[RehearsedStore], None],
        on_synced: Callable[[list[Item]], None],
    ) -> None:
        super().__init__(disk.folder, SEGMENT_BYTES)
        self._disk = disk
        self._on_open = on_open
        self._on_synced = on_synced
        self._batch: list[Item] = []
        self._holds: dict[ChainId, SavedChain] | None = None

    def open(self) -> list[SavedChain]:
        """Recover what was acknowledged; see FolderStore."""
        if self._holds is None:
            with self._disk.at_work():
                self._holds = {saved.genesis.chain: saved for saved in super().open()}
            self._disk.dirty.clear()  # the file that is locked says who runs, and need not last
            self._on_open(self)
        return list(self._holds.values())

    def quick(self, items: Sequence[Item]) -> bool:
        """Say False: only what is given to an executor takes virtual time."""
        return False

    def write(self, items: Iterable[Item]) -> None:
        """Write `items` in order; durable only after `sync`."""
        batch = list(items)
        with self._disk.at_work():
            super().write(batch)
        self._batch += batch

    def sync(self) -> None:
        """Make everything written durable."""
        with self._disk.at_work():
            super().sync()
        batch, self._batch = self._batch, []
        for item in batch:
            self._take(item)
        self._on_synced(batch)

    def close(self) -> None:
        """Release files, once what was given to the worker is done."""
        self._disk.finish_work()
        super().close()

    def _take(self, item: Item) -> None:
        assert self._holds is not None
        if isinstance(item, NewChain):
            self._holds.setdefault(item.genesis.chain, SavedChain(item.genesis, 0, b""))
            return
        if isinstance(item, CommitBlock):
            chain, height = item.certified.block.header.chain, item.certified.block.header.height
        elif isinstance(item, SaveSnapshot) and item.adopted:
            chain, height = item.chain, item.height
        else:
            return
        self._holds[chain] = replace(self._holds[chain], height=height)

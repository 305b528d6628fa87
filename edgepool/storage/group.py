"""Much small data written at once: aside, synced by several threads, then shown together.

A sync waits for the disk, and several that wait together share what the disk does. So a thousand files
cost little more time than one of their size, and none of them is there before it is durable.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgepool.errors import LocalError
from edgepool.model.codec import encode
from edgepool.model.twin import Manifest
from edgepool.storage.files import close_file, guarded, write_all

if TYPE_CHECKING:
    from edgepool.storage.blobs import BlobStore

SYNC_THREADS = 16


class BlobGroup:
    """Data that comes together; made by `BlobStore.group`, ended by `finish` or `abort`.

    What is put must have been checked against its manifest.
    """

    def __init__(self, store: BlobStore, place: Path, threads: int) -> None:
        self._store = store
        self._place = place
        self._threads = threads
        self._ended = False
        self._lock = threading.RLock()  # whoever is cancelled may abort while a thread puts
        self._written: dict[bytes, tuple[Manifest, Path, Path]] = {}

    def put(self, manifest: Manifest, data: bytes | memoryview) -> None:
        """Write data aside, and its manifest; nothing happens if it is held or was put already."""
        with self._lock:
            if self._ended:
                raise LocalError("this group has ended")
            if manifest.root in self._written or self._store.has(manifest.root):
                return
            paths = self._store._aside("group"), self._store._aside("group")
            self._written[manifest.root] = manifest, *paths
            for path, content in zip(paths, (data, encode(manifest)), strict=True):
                _write(path, content)

    def finish(self) -> None:
        """Make all that was put durable, then visible. If that fails, as after `abort`."""
        with self._lock:
            if self._ended:
                raise LocalError("this group has ended")
            try:
                self._sync_all([path for _, *both in self._written.values() for path in both])
                self._store._show(list(self._written.values()))
            finally:
                self.abort()

    def abort(self) -> None:
        """Stop, and leave nothing of what is not visible."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            for _, *paths in self._written.values():
                for path in paths:
                    with suppress(OSError):  # it is of no use after a restart
                        path.unlink(missing_ok=True)
            self._store._release(self._place, keep=True)

    def _sync_all(self, paths: list[Path]) -> None:
        if self._threads == 1 or len(paths) <= 2:
            for path in paths:
                _sync(path)
            return
        with ThreadPoolExecutor(self._threads, "edgepool sync") as pool:
            for _ in pool.map(_sync, paths):
                pass


def _write(path: Path, content: bytes | memoryview) -> None:
    with guarded(path, "written"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            write_all(fd, content, 0)
        finally:
            close_file(fd)


def _sync(path: Path) -> None:
    with guarded(path, "synced"):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            close_file(fd)

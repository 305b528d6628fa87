"""Room for data: how much may be held, what is set apart, and what gives way when room is needed.

Files that are incomplete and that nobody writes, and data in quarantine, may go at any time. Whole data never
goes here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edgepool.errors import StorageError
from edgepool.storage.files import guarded


class Space:
    """The room in `folder`: at most `limit_bytes` in all, and `keep_free_bytes` of the disk stay free.

    Not for several threads at a time. `reserved` are the files being written and how large they will be,
    `damaged` those in quarantine and how large they are.
    """

    def __init__(self, folder: Path, limit_bytes: int, keep_free_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.reserved: dict[Path, int] = {}
        self.damaged: dict[Path, int] = {}
        self._folder = folder
        self._keep_free_bytes = keep_free_bytes

    def disk_free_bytes(self) -> int:
        """Return how many bytes the disk of the folder has free."""
        with guarded(self._folder, "read"):
            there = next(path for path in (self._folder, *self._folder.parents) if path.exists())
            return shutil.disk_usage(there).free

    def lacking_bytes(self, held_bytes: int, size_bytes: int) -> int:
        """Return how many of the `held_bytes` of whole data must go before `size_bytes` more fit."""
        quota, disk = self._free_bytes(held_bytes, size_bytes)
        gives_way = sum(size_of(path) for path in self._giving_way(None))
        return max(0, -quota, -disk - gives_way)

    def reserve(self, held_bytes: int, path: Path, size_bytes: int) -> None:
        """Set space apart for the file `path`; what gives way goes as far as is needed.

        StorageError, and nothing has gone, if that is not enough.
        """
        quota, disk = self._free_bytes(held_bytes, size_bytes)
        sizes = {one: size_of(one) for one in self._giving_way(path)}
        if quota < 0:
            used = self.limit_bytes - quota - size_bytes
            raise StorageError(
                f"{self._folder} may hold {self.limit_bytes} bytes and {used} are in use: {size_bytes} more "
                f"do not fit; delete data that is not needed or raise limits.data_bytes"
            )
        if disk + sum(sizes.values()) < 0:
            raise StorageError(
                f"the disk of {self._folder} is too full: with {size_bytes} bytes more it would not have the "
                f"{self._keep_free_bytes} free that storage.keep_free_bytes asks for; free some space"
            )
        lacking = max(sum(sizes.values()) - quota, -disk)
        for one in sizes:
            if lacking <= 0:
                break
            lacking -= sizes[one]
            self.damaged.pop(one, None)
            with guarded(one, "removed"):
                one.unlink(missing_ok=True)
        self.reserved[path] = size_bytes

    def _free_bytes(self, held_bytes: int, size_bytes: int) -> tuple[int, int]:
        """Return what the quota, and what the disk, would have free beside `size_bytes` more.

        What gives way counts as free in the quota, and as taken on the disk.
        """
        quota = self.limit_bytes - held_bytes - sum(self.reserved.values()) - size_bytes
        if not self._keep_free_bytes:
            return quota, 0
        coming = sum(max(0, promised - size_of(path)) for path, promised in self.reserved.items())
        return quota, self.disk_free_bytes() - self._keep_free_bytes - coming - size_bytes

    def _giving_way(self, beside: Path | None) -> list[Path]:
        """Return the files that may go: idle parts, the oldest first, then damaged data."""
        with guarded(self._folder, "read"):
            parts = [one for one in self._folder.glob("*.part") if one not in self.reserved and one != beside]
            ages = {one: one.stat().st_mtime_ns for one in parts if one.exists()}
        return [*sorted(ages, key=lambda one: ages[one]), *self.damaged]


def size_of(path: Path) -> int:
    """Return the size of a file in bytes, 0 if it is not there."""
    with guarded(path, "read"):
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0

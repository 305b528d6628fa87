"""The scrub: reads data again, chunk by chunk, and says which no longer is what it was.

Disks lose bits silently. What stands in the page cache is dropped first, so that the medium answers. How
fast it goes is for the caller to decide, who calls `step` for one chunk at a time.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass

from edgepool.errors import LocalError, StorageError
from edgepool.model.crypto import data_hash
from edgepool.model.twin import Manifest
from edgepool.storage.blobs import BlobStore
from edgepool.storage.files import close_file


@dataclass(frozen=True, slots=True)
class Checked:
    """One step: so many bytes of `root` were read; `ended` if it was its last, `damage` if it is bad."""

    root: bytes
    size_bytes: int
    ended: bool
    damage: str


class Scrub:
    """One round over all data whose root is above `after`, in the order of roots; or over `only`.

    Of that alone it may begin with chunk `first`. Not for several threads at a time. Data that goes away
    meanwhile is passed over; data that comes behind the place of the scrub is for the next round.
    """

    def __init__(self, blobs: BlobStore, after: bytes = b"", only: bytes = b"", first: int = 0) -> None:
        self._blobs = blobs
        self._after = after
        self._only = only
        self._first = first if only else 0
        self._root = b""
        self._manifest: Manifest | None = None
        self._fd = -1
        self._next = 0

    def step(self) -> Checked | None:
        """Read and check the next chunk; None if there is nothing left."""
        while self._manifest is None:
            root = self._following()
            if root is None:
                return None
            damage = self._open(root)
            if damage:
                return self._end(0, damage)
            if self._manifest is not None and self._next >= len(self._manifest.chunks):
                return self._end(0, "")
        return self._read(self._manifest)

    def close(self) -> None:
        """Stop, perhaps half-way."""
        if self._fd >= 0:
            close_file(self._fd)
            self._fd = -1
        self._manifest = None

    def _following(self) -> bytes | None:
        if self._only:
            root, self._only = self._only, b""
            self._after = b"\xff" * len(root)
            return root
        roots = self._blobs.roots()
        place = bisect_right(roots, self._after)
        return roots[place] if place < len(roots) else None

    def _open(self, root: bytes) -> str:
        """Begin with `root`; return what is wrong with it already. No manifest then: it is gone."""
        self._root, self._after, self._next = root, max(root, self._after), self._first
        try:
            self._manifest = self._blobs.manifest(root)
            if self._manifest is None:
                return ""
            self._fd = os.open(self._blobs.path(root), os.O_RDONLY | os.O_CLOEXEC)
        except LocalError:
            self._manifest = None  # deleted meanwhile
            return ""
        except StorageError as error:
            return str(error)
        except FileNotFoundError:
            self._manifest = None
            return "" if not self._blobs.has(root) else "its file is gone"
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        drop = getattr(os, "posix_fadvise", None)
        if drop is not None:
            drop(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return ""

    def _read(self, manifest: Manifest) -> Checked:
        index, size_bytes = self._next, manifest.chunk_size_bytes(self._next)
        try:
            chunk = os.pread(self._fd, size_bytes, index * manifest.chunk_bytes)
        except OSError as error:
            return self._end(0, f"chunk {index} cannot be read: {error.strerror}")
        if data_hash(chunk) != manifest.chunks[index]:
            return self._end(len(chunk), f"chunk {index} of {len(manifest.chunks)} is not what it was")
        self._next += 1
        if self._next == len(manifest.chunks):
            return self._end(len(chunk), "")
        return Checked(self._root, len(chunk), False, "")

    def _end(self, size_bytes: int, damage: str) -> Checked:
        self.close()
        return Checked(self._root, size_bytes, True, damage)

"""Small data that was served lately, in memory: asked for again, by this or another peer, it costs no file.

What is read is checked once. So a disk that has changed it is found out before anybody gets it, and what the
disk does later changes nothing here. Whether it may be served, and to whom, is asked each time elsewhere.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from edgepool.model.crypto import data_hash
from edgepool.model.transfer import INLINE_BYTES
from edgepool.model.twin import Manifest

KEPT_BYTES = 16 * 1024 * 1024
"""So much is kept; what was kept first goes first."""
DAMAGED = "the holder's data is damaged"
"""Why data is not served that is not what its manifest says."""


class SmallData:
    """Data of at most INLINE_BYTES by its manifest, right for certain; for any number of threads."""

    def __init__(self) -> None:
        self._kept: dict[Manifest, bytes] = {}
        self._size_bytes = 0
        self._lock = threading.Lock()

    def get(self, manifest: Manifest) -> bytes | None:
        """Return the data of `manifest`, if it is here."""
        return self._kept.get(manifest) if manifest.size_bytes <= INLINE_BYTES else None

    def read(self, manifest: Manifest, path: Path) -> tuple[bytes, str]:
        """Return small data from its file, checked, or why that cannot be; keep it."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.read(descriptor, INLINE_BYTES + 1)
            finally:
                os.close(descriptor)
        except OSError as error:
            return b"", f"the holder cannot read the data: {error.strerror}"
        return (data, "") if self.keep(manifest, data) else (b"", DAMAGED)

    def keep(self, manifest: Manifest, data: bytes) -> bool:
        """Keep small data; False if it is not what its manifest says."""
        size = manifest.chunk_bytes
        pieces = [memoryview(data)[start : start + size] for start in range(0, len(data), size)]
        if len(data) != manifest.size_bytes or tuple(map(data_hash, pieces)) != manifest.chunks:
            return False
        with self._lock:
            if manifest not in self._kept:
                self._kept[manifest] = data
                self._size_bytes += len(data)
                while self._size_bytes > KEPT_BYTES:
                    self._size_bytes -= len(self._kept.pop(next(iter(self._kept))))
        return True

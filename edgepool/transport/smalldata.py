"""Small data that was served lately, in memory: asked for again, it costs no file."""

from __future__ import annotations

from edgepool.model.crypto import data_hash
from edgepool.model.transfer import INLINE_BYTES
from edgepool.model.twin import Manifest

KEPT_BYTES = 4 * 1024 * 1024
"""So much is kept; what was kept first goes first."""


class SmallData:
    """Data by its manifest, each checked once: what a disk does to it later changes nothing here.

    Whether it may be served, and to whom, is asked each time elsewhere.
    """

    def __init__(self) -> None:
        self._kept: dict[Manifest, bytes] = {}
        self._size_bytes = 0

    def get(self, manifest: Manifest) -> bytes | None:
        """Return the data of `manifest`, if it is here."""
        return self._kept.get(manifest) if manifest.size_bytes <= INLINE_BYTES else None

    def keep(self, manifest: Manifest, data: bytes) -> bool:
        """Keep small data; False if it is not what its manifest says."""
        if manifest in self._kept:
            return True
        size = manifest.chunk_bytes
        pieces = [memoryview(data)[start : start + size] for start in range(0, len(data), size)]
        if tuple(map(data_hash, pieces)) != manifest.chunks:
            return False
        self._kept[manifest] = data
        self._size_bytes += len(data)
        while self._size_bytes > KEPT_BYTES:
            oldest = next(iter(self._kept))
            self._size_bytes -= len(self._kept.pop(oldest))
        return True

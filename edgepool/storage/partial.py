"""Data that is on its way: chunks are written in any order, each checked, and shown only when all are there.

What has come survives a kill of the process: the next attempt reads it again and believes what has the right
hash, so nothing else has to be written down, and a power cut can only cost chunks.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgepool.errors import DecodeError, LocalError
from edgepool.model.crypto import data_hash
from edgepool.model.twin import Manifest
from edgepool.storage.files import close_file, guarded, write_all

if TYPE_CHECKING:
    from edgepool.storage.blobs import BlobStore


class PartialBlob:
    """Writes the chunks of one manifest; made by `BlobStore.writer`, ended by `finish` or `abort`.

    Reads what an earlier attempt left. One thread at a time writes; others may ask what is there meanwhile.
    """

    def __init__(self, store: BlobStore, manifest: Manifest, path: Path) -> None:
        self.manifest = manifest
        self.path = path
        self._store = store
        self._ending = threading.Lock()  # a cancelled task may abort while a thread finishes
        self._ended = False
        self._held = store.has(manifest.root)
        self._fd = -1
        self._there = bytearray(b"\1" * len(manifest.chunks))
        self._missing = 0
        if not self._held:
            with guarded(path, "opened"):
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._find_chunks()
            except BaseException:
                close_file(self._fd)
                raise

    @property
    def next_chunk(self) -> int:
        """The first chunk that is missing; the number of chunks if none is."""
        found = self._there.find(0)
        return len(self._there) if found < 0 else found

    def has(self, index: int) -> bool:
        """Say whether chunk `index` is there."""
        return bool(self._there[index])

    def put(self, index: int, data: memoryview | bytes) -> None:
        """Check chunk `index` and write it; DecodeError if it is not what the manifest says."""
        if not 0 <= index < len(self._there):
            raise LocalError(f"chunk {index} cannot be written: there are {len(self._there)} chunks")
        if len(data) != self.manifest.chunk_size_bytes(index):
            raise DecodeError(
                f"chunk {index} has {len(data)} bytes instead of {self.manifest.chunk_size_bytes(index)}"
            )
        if data_hash(data) != self.manifest.chunks[index]:
            raise DecodeError(f"chunk {index} is not the one that the manifest names")
        self.write(index, data)

    def write(self, index: int, data: memoryview | bytes) -> None:
        """Write chunk `index`, which somebody has checked; nothing happens if it is there already."""
        if self._there[index]:
            return
        if self._ended:
            raise LocalError("this writer has ended")
        with guarded(self.path, "written"):
            write_all(self._fd, data, index * self.manifest.chunk_bytes)
        self._there[index] = 1
        self._missing -= 1

    def copy_from(self, manifest: Manifest, descriptor: int) -> None:
        """Take the chunks that another version has as well from its open file, as far as it can be read."""
        places = {digest: index for index, digest in enumerate(manifest.chunks)}
        for index, digest in enumerate(self.manifest.chunks):
            place = places.get(digest)
            if place is None or self._there[index]:
                continue
            size_bytes = manifest.chunk_size_bytes(place)
            with suppress(OSError, DecodeError):
                self.put(index, os.pread(descriptor, size_bytes, place * manifest.chunk_bytes))

    def finish(self) -> Path:
        """Make the data durable, then visible; return its file. If that fails, as after `abort`."""
        if self._missing:
            raise LocalError(f"the data is not complete: chunk {self.next_chunk} is missing")
        with self._ending:
            if self._ended:
                raise LocalError("this writer has ended")
            try:
                if self._held:
                    return self._store.path(self.manifest.root)
                return self._store._publish(self._fd, self.path, self.manifest)
            finally:
                self._end()

    def abort(self) -> None:
        """Stop and keep what has come for another attempt; nothing happens once `finish` has begun."""
        if self._ending.acquire(blocking=False):
            try:
                if not self._ended:
                    self._end()
            finally:
                self._ending.release()

    def _end(self) -> None:
        self._ended = True
        if self._fd >= 0:
            close_file(self._fd)
            self._fd = -1
        of_use = self.path.suffix == ".part" and self._missing < len(self._there)
        self._store._release(self.path, keep=of_use and not self._store.has(self.manifest.root))

    def _find_chunks(self) -> None:
        """Look which chunks an earlier attempt left."""
        manifest = self.manifest
        self._there = bytearray(len(manifest.chunks))
        with guarded(self.path, "read"):
            left_bytes = os.fstat(self._fd).st_size
            for index, wanted in enumerate(manifest.chunks):
                offset, size_bytes = index * manifest.chunk_bytes, manifest.chunk_size_bytes(index)
                if offset + size_bytes > left_bytes:
                    break
                self._there[index] = data_hash(os.pread(self._fd, size_bytes, offset)) == wanted
            if left_bytes > manifest.size_bytes:
                os.ftruncate(self._fd, manifest.size_bytes)
        self._missing = self._there.count(0)

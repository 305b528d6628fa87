"""Twin data on disk, addressed by what it is: the root of its manifest names the file [S3.8].

    <root>.data       the bytes; it exists only whole, checked and synced
    <root>.manifest   its encoded manifest, durable before the data appears
    <root>.part       what has come of a transfer; kept after `abort`, so that it can be resumed
    <root>.damaged    data that is no longer what it was: in quarantine, never served
    <name>.aside      being written; of no use after a restart

No name that a peer or a user chose ever becomes part of a path. One process at a time may write in
the folder (the lock of the peer's store sees to it); its threads may. Data that is incomplete and
that nobody is writing, or that is damaged, gives way, oldest first, when space is needed. Which whole
data may go too is for the owner to decide (core/transfer/retention.py).
"""

from __future__ import annotations

import io
import itertools
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from edgepool.errors import DecodeError, LocalError, StorageError
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import HASH_BYTES, data_hash
from edgepool.model.twin import Manifest, chunk_bytes_for
from edgepool.storage.files import (
    close_file,
    guarded,
    make_folder,
    sync_folder,
    write_all,
    write_durably,
)
from edgepool.storage.group import SYNC_THREADS, BlobGroup
from edgepool.storage.partial import PartialBlob
from edgepool.storage.space import Space, size_of


class BlobStore:
    """Content-addressed data in `folder`, at most `limit_bytes` of it.

    `limit_bytes` counts whole, arriving, incomplete and damaged data; whatever it is, `keep_free_bytes` of
    the disk stay free. All methods block on the disk, may be called from several threads, and raise
    StorageError if the disk is full or refuses.
    """

    def __init__(self, folder: Path, limit_bytes: int, keep_free_bytes: int = 0) -> None:
        self._folder = folder
        self._space = Space(folder, limit_bytes, keep_free_bytes)
        self._lock = threading.RLock()
        self._sizes: dict[bytes, int] = {}
        self._numbers = itertools.count(1)
        self._ready = False
        with guarded(folder, "read"):
            for path in folder.glob("*.damaged"):
                if _root_of(path) is not None:
                    self._space.damaged[path] = size_of(path)
            for path in folder.glob("*.data"):
                root = _root_of(path)
                if root is not None and path.with_suffix(".manifest").exists():
                    self._sizes[root] = path.stat().st_size

    @property
    def size_bytes(self) -> int:
        """How many bytes of whole data are held."""
        with self._lock:
            return sum(self._sizes.values())

    def sizes(self) -> dict[bytes, int]:
        """Return the size in bytes of all whole data, by root."""
        with self._lock:
            return dict(self._sizes)

    def damaged(self) -> dict[bytes, int]:
        """Return the size in bytes of all data in quarantine, by root."""
        with self._lock:
            return {bytes.fromhex(path.stem): size for path, size in self._space.damaged.items()}

    def incomplete(self) -> dict[bytes, int]:
        """Return how many bytes have come of incomplete data, by root."""
        with guarded(self._folder, "read"):
            found = {_root_of(path): size_of(path) for path in self._folder.glob("*.part")}
        return {root: size_bytes for root, size_bytes in found.items() if root is not None}

    def disk_free_bytes(self) -> int:
        """Return how many bytes the disk has free."""
        return self._space.disk_free_bytes()

    def has(self, root: bytes) -> bool:
        """Say whether the data with this manifest root is held, whole."""
        return root in self._sizes

    def roots(self) -> tuple[bytes, ...]:
        """Return the roots of all data held, sorted."""
        with self._lock:
            return tuple(sorted(self._sizes))

    def path(self, root: bytes) -> Path:
        """Return the file with the data; it must not be written to. LocalError if it is not held."""
        if root not in self._sizes:
            raise LocalError(f"data {root.hex()[:128]} is not held in {self._folder}")
        return self._file(root, "data")

    def manifest(self, root: bytes) -> Manifest | None:
        """Return the manifest of data that is held, checked against root and size, or None."""
        if root not in self._sizes:
            return None
        path = self._file(root, "manifest")
        with guarded(path, "read"):
            raw = path.read_bytes()
            size_bytes = self._file(root, "data").stat().st_size
        try:
            manifest = decode(Manifest, raw)
            manifest.check()
            if manifest.root != root:
                raise DecodeError("it is that of other data")
            if manifest.size_bytes != size_bytes:
                raise DecodeError(f"the data has {size_bytes} bytes, it should have {manifest.size_bytes}")
        except DecodeError as error:
            raise StorageError(
                f"{path} or its data is damaged ({error}): delete both files and get the data again"
            ) from None
        return manifest

    def first_of(self, roots: Sequence[bytes]) -> tuple[Manifest, Path] | None:
        """Return the manifest and the file of the first of `roots` that is held, None if none is."""
        for root in roots:
            manifest = self.manifest(root)
            if manifest is not None:
                return manifest, self.path(root)
        return None

    def import_bytes(self, data: bytes) -> Manifest:
        """Store `data`; return its manifest."""
        return self._import(io.BytesIO(data), len(data), "the data")

    def import_file(self, path: Path) -> Manifest:
        """Store a copy of a file, hashed while it is copied, so that what is stored is what was hashed.

        LocalError if it cannot be read, is not a regular file or changes its size meanwhile.
        """
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise LocalError(f"{path} is not a regular file")
            with path.open("rb") as stream:
                return self._import(stream, os.fstat(stream.fileno()).st_size, str(path))
        except OSError as error:
            raise LocalError(f"{path} cannot be read: {error.strerror}") from error

    def writer(self, manifest: Manifest) -> PartialBlob:
        """Begin, or resume, writing the data of `manifest`; end it with `finish` or `abort`.

        Reads again what an earlier attempt left. DecodeError if the manifest contradicts itself.
        """
        manifest.check()
        root = manifest.root
        with self._lock:
            path = self._file(root, "part")
            if path in self._space.reserved:  # somebody else is at it: write a copy of one's own
                path = self._aside(root.hex())
            self._reserve(path, 0 if root in self._sizes else manifest.size_bytes)
        try:
            return PartialBlob(self, manifest, path)
        except BaseException:
            self._release(path, keep=True)
            raise

    def group(self, size_bytes: int, threads: int = SYNC_THREADS) -> BlobGroup:
        """Begin writing much small data, `size_bytes` in all, that is to be durable together.

        End it with `finish` or `abort`.
        """
        with self._lock:
            place = self._aside("group")
            self._reserve(place, size_bytes)
        return BlobGroup(self, place, threads)

    def delete(self, root: bytes) -> None:
        """Delete data, if it is held; those who are reading it can go on."""
        with self._lock:
            if self._sizes.pop(root, None) is None:
                return
            with guarded(self._file(root, "data"), "deleted"):
                self._file(root, "data").unlink(missing_ok=True)
                self._file(root, "manifest").unlink(missing_ok=True)
                sync_folder(self._folder)

    def quarantine(self, root: bytes) -> None:
        """Move damaged data aside, durably: it is held no more; it stays until space is needed."""
        with self._lock:
            size_bytes = self._sizes.pop(root, None)
            if size_bytes is None:
                return
            data, aside = self._file(root, "data"), self._file(root, "damaged")
            with guarded(data, "moved aside"):
                data.rename(aside)
                self._space.damaged[aside] = size_bytes
                sync_folder(self._folder)
                self._file(root, "manifest").unlink(missing_ok=True)

    def clear(self, root: bytes) -> None:
        """Remove what stands in quarantine under `root`."""
        path = self._file(root, "damaged")
        with self._lock:
            if self._space.damaged.pop(path, None) is not None:
                with guarded(path, "removed"):
                    path.unlink(missing_ok=True)

    def lacking_bytes(self, size_bytes: int) -> int:
        """Return how many bytes of whole data must go before `size_bytes` more fit; 0 if they fit."""
        with self._lock:
            return self._space.lacking_bytes(sum(self._sizes.values()), size_bytes)

    def _import(self, stream: BinaryIO, size_bytes: int, source: str) -> Manifest:
        chunk_bytes = chunk_bytes_for(size_bytes)
        with self._lock:
            path = self._aside("import")
            self._reserve(path, size_bytes)
        hashes: list[bytes] = []
        offset = 0
        fd = -1
        try:
            with guarded(path, "written"):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            while offset <= size_bytes and (chunk := stream.read(chunk_bytes)):
                with guarded(path, "written"):
                    write_all(fd, chunk, offset)
                hashes.append(data_hash(chunk))
                offset += len(chunk)
            if offset != size_bytes:
                raise LocalError(f"{source} changed while it was read: try again when nobody writes to it")
            manifest = Manifest(size_bytes, chunk_bytes, tuple(hashes))
            self._publish(fd, path, manifest)
        finally:
            if fd >= 0:
                close_file(fd)
            self._release(path, keep=False)
        return manifest

    def _publish(self, fd: int, path: Path, manifest: Manifest) -> Path:
        """Make `path`, open as `fd` and complete, the data of `manifest`; durable on return."""
        root = manifest.root
        data, beside = self._file(root, "data"), self._file(root, "manifest")
        aside = self._aside(root.hex())
        with guarded(path, "synced"):
            try:
                os.fsync(fd)
            except OSError:  # what of it is on the disk nobody knows, and the next sync would not tell
                os.ftruncate(fd, 0)
                raise
        with self._lock:
            if root in self._sizes:
                return data
            try:
                with guarded(data, "written"):
                    write_durably(aside, encode(manifest))
                    aside.rename(beside)
                    sync_folder(self._folder)
                    path.rename(data)
                    sync_folder(self._folder)
            finally:
                with suppress(OSError):  # it is of no use after a restart
                    aside.unlink(missing_ok=True)
            self._sizes[root] = manifest.size_bytes
            self.clear(root)
            return data

    def _show(self, written: Sequence[tuple[Manifest, Path, Path]]) -> None:
        """Make data, each with its synced file and that of its manifest, visible; durable on return."""
        with self._lock:
            new = [one for one in written if one[0].root not in self._sizes]
            if not new:
                return
            with guarded(self._folder, "written"):
                for manifest, _, beside in new:
                    beside.rename(self._file(manifest.root, "manifest"))
                sync_folder(self._folder)
                for manifest, data, _ in new:
                    data.rename(self._file(manifest.root, "data"))
                sync_folder(self._folder)
            for manifest, _, _ in new:
                self._sizes[manifest.root] = manifest.size_bytes
                self.clear(manifest.root)

    def _reserve(self, path: Path, size_bytes: int) -> None:
        """Set space apart for the file `path`; what gives way goes as far as is needed."""
        if not self._ready:
            self._tidy()
        self._space.reserve(sum(self._sizes.values()), path, size_bytes)

    def _release(self, path: Path, keep: bool) -> None:
        """Give back the space that was set apart for `path`, and remove the file unless `keep`."""
        with self._lock:
            self._space.reserved.pop(path, None)
            if not keep:
                with guarded(path, "removed"):
                    path.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Make the folder, or remove what a killed process left; not before something is written."""
        make_folder(self._folder)
        with guarded(self._folder, "tidied"):
            for path in self._folder.glob("*.aside"):
                path.unlink()
            for path in self._folder.glob("*.manifest"):
                if not path.with_suffix(".data").exists():
                    path.unlink()
            for path in self._folder.glob("*.data"):  # being deleted when the power failed
                if _root_of(path) is not None and not path.with_suffix(".manifest").exists():
                    path.unlink()
            sync_folder(self._folder)  # whoever made data visible may have been killed before it could
        self._ready = True

    def _aside(self, name: str) -> Path:
        return self._folder / f"{name}-{next(self._numbers)}.aside"

    def _file(self, root: bytes, kind: str) -> Path:
        return self._folder / f"{root.hex()}.{kind}"


def _root_of(path: Path) -> bytes | None:
    try:
        root = bytes.fromhex(path.stem)
    except ValueError:
        return None
    return root if len(root) == HASH_BYTES and root.hex() == path.stem else None

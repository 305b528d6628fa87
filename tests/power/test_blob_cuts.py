"""Data that comes, goes, is pinned or moved aside, under power cuts, kills and failing calls."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import cast
from unittest.mock import patch

import pytest
from disk import Disk, PowerCut
from diskcalls import installed, root_of

from edgepool.errors import StorageError
from edgepool.model.crypto import data_hash
from edgepool.model.twin import Manifest, chunk_bytes_for, small_manifest
from edgepool.storage import blobs, checked, group
from edgepool.storage.blobs import BlobStore
from edgepool.storage.catalogue import Catalogue

CUTS = int(os.environ.get("EDGEPOOL_CUTS", "20000")) // 10
CUTS_A_DISK = 10
CALLS_A_LIFE = 60
LIMIT_BYTES = 10**7
SIZES_BYTES = (0, 10, 3_000, 20_000)


@pytest.fixture(autouse=True)
def simulated() -> Iterator[None]:
    with installed("blobs"):
        yield


class Owner:
    """Puts data into the store of one disk, and knows what was acknowledged."""

    def __init__(self, draw: Random) -> None:
        self.draw = draw
        self.known: dict[bytes, bytes] = {}
        self.promised: dict[bytes, None] = {}
        self.bad: dict[bytes, None] = {}
        """In quarantine, and not got again since."""
        self.pinned: dict[bytes, bool] = {}
        """Whether it is pinned; what is under way when the power fails is in neither state."""

    def live(self, disk: Disk) -> None:
        folder = root_of(disk) / "blobs"
        disk.dies_at = disk.calls + self.draw.randrange(1, CALLS_A_LIFE)
        disk.dies_in = ("fsync of a folder", "fsync") if self.draw.random() < 0.6 else ()
        trouble, disk.trouble = disk.trouble, None
        try:
            store = BlobStore(cast(Path, folder), LIMIT_BYTES)
            catalogue = Catalogue(cast(Path, folder))
            self.check(store, catalogue)
            disk.trouble = trouble
            for _ in range(12):
                try:
                    self.act(store, catalogue)
                except StorageError as error:
                    if disk.trouble is None or "check the disk" not in str(error):
                        raise
                    disk.trouble = None
            disk.dies_at = 0
        except PowerCut:
            pass

    def act(self, store: BlobStore, catalogue: Catalogue) -> None:
        """Do what owners and their peers do."""
        draw, known = self.draw, list(self.known)[-6:]
        deed, root = draw.random(), draw.choice(known) if known else b""
        if deed < 0.6 or not root:
            self.put(store)
        elif deed < 0.75:
            pinned = not self.pinned.pop(root, False)
            catalogue.pin(root, pinned)
            self.pinned[root] = pinned
        elif deed < 0.9:
            self.promised.pop(root, None)
            store.delete(root)
        else:
            self.promised.pop(root, None)
            held = store.has(root)
            store.quarantine(root)
            if held:
                self.bad[root] = None

    def put(self, store: BlobStore) -> None:
        """Publish new data, publish old data again, or fetch something in chunks."""
        draw = self.draw
        if draw.random() < 0.25:
            self.put_group(store)
            return
        data = draw.randbytes(draw.choice(SIZES_BYTES))
        if self.known and draw.random() < 0.5:
            data = draw.choice(list(self.known.values())[-3:])
        size_bytes = chunk_bytes_for(len(data))
        chunks = [data[at : at + size_bytes] for at in range(0, len(data), size_bytes)]
        manifest = Manifest(len(data), size_bytes, tuple(map(data_hash, chunks)))
        self.known[manifest.root] = data
        self.bad.pop(manifest.root, None)
        if draw.random() < 0.5:
            assert store.import_bytes(data).root == manifest.root
        else:
            writer = store.writer(manifest)
            try:
                for index in range(writer.next_chunk, len(chunks)):
                    writer.put(index, chunks[index])
                writer.finish()
            finally:
                writer.abort()
        self.promised[manifest.root] = None

    def put_group(self, store: BlobStore) -> None:
        """Fetch much small data at once."""
        draw = self.draw
        many = [draw.randbytes(draw.choice(SIZES_BYTES[:3])) for _ in range(draw.randrange(1, 5))]
        group = store.group(sum(map(len, many)), threads=1)
        try:
            for data in many:
                manifest = small_manifest(data)
                self.known[manifest.root] = data
                self.bad.pop(manifest.root, None)
                group.put(manifest, data)
            group.finish()
        finally:
            group.abort()
        self.promised |= {small_manifest(data).root: None for data in many}

    def check(self, store: BlobStore, catalogue: Catalogue) -> None:
        assert not catalogue.damaged, "the catalogue is torn"
        for root, pinned in self.pinned.items():
            assert catalogue.pinned(root) == pinned, "a pin that was acknowledged is not so"
        for root in self.bad:
            assert not store.has(root), "data has left its quarantine"
        for root in self.promised:
            assert store.has(root), "data that was published is gone"
        for root in store.roots():
            manifest = store.manifest(root)
            assert manifest is not None
            assert cast(Path, store.path(root)).read_bytes() == self.known[root], (
                "data is there, but not whole"
            )


def cut(seed: int, cuts: int) -> None:
    draw = Random(f"{seed}/blobs")
    for _ in range(cuts // CUTS_A_DISK):
        owner = Owner(draw)
        with Disk(draw) as disk:
            done = 0
            while done < CUTS_A_DISK:
                wait = iter((0,) * draw.randrange(CALLS_A_LIFE))
                disk.trouble = (lambda _, wait=wait: next(wait, errno.EIO)) if draw.random() < 0.2 else None
                troubled = disk.trouble is not None
                owner.live(disk)
                disk.trouble = None
                if not troubled and draw.random() < 0.2:
                    disk.kill()
                else:
                    disk.cut()
                    done += 1


def test_data_that_was_published_is_there_whole() -> None:
    cut(1, CUTS)


def test_a_group_that_is_not_synced_is_missed() -> None:
    with patch.object(group, "_sync", lambda path: None), pytest.raises((AssertionError, StorageError)):
        cut(1, 1_000)


@pytest.mark.parametrize(
    ("module", "name"),
    [(blobs, "sync_folder"), (blobs, "write_durably"), (checked, "sync_folder"), (checked, "write_durably")],
)
def test_what_is_not_synced_is_missed(module: ModuleType, name: str) -> None:
    def write(path: Path, data: bytes) -> None:
        with path.open("xb") as file:
            file.write(data)

    instead = write if name == "write_durably" else lambda *_: None
    with patch.object(module, name, instead), pytest.raises((AssertionError, StorageError)):
        cut(1, 1_000)

"""Published and fetched data under power cuts, kills and failing calls, on a simulated disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import cast
from unittest.mock import patch

import pytest
from disk import Disk, PowerCut
from diskcalls import installed, root_of

from edgepool.errors import StorageError
from edgepool.model.crypto import data_hash
from edgepool.model.twin import Manifest, chunk_bytes_for
from edgepool.storage import blobs
from edgepool.storage.blobs import BlobStore

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

    def live(self, disk: Disk) -> None:
        folder = root_of(disk) / "blobs"
        disk.dies_at = disk.calls + self.draw.randrange(1, CALLS_A_LIFE)
        disk.dies_in = ("fsync of a folder", "fsync") if self.draw.random() < 0.6 else ()
        trouble, disk.trouble = disk.trouble, None
        try:
            store = BlobStore(cast(Path, folder), LIMIT_BYTES)
            self.check(store)
            disk.trouble = trouble
            for _ in range(12):
                try:
                    self.put(store)
                except StorageError as error:
                    if disk.trouble is None or "check the disk" not in str(error):
                        raise
                    disk.trouble = None
            disk.dies_at = 0
        except PowerCut:
            pass

    def put(self, store: BlobStore) -> None:
        """Publish new data, publish old data again, or fetch something in chunks."""
        draw = self.draw
        data = draw.randbytes(draw.choice(SIZES_BYTES))
        if self.known and draw.random() < 0.5:
            data = draw.choice(list(self.known.values())[-3:])
        size_bytes = chunk_bytes_for(len(data))
        chunks = [data[at : at + size_bytes] for at in range(0, len(data), size_bytes)]
        manifest = Manifest(len(data), size_bytes, tuple(map(data_hash, chunks)))
        self.known[manifest.root] = data
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

    def check(self, store: BlobStore) -> None:
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


@pytest.mark.parametrize("name", ["sync_folder", "write_durably"])
def test_data_whose_name_or_manifest_is_not_synced_is_missed(name: str) -> None:
    def write(path: Path, data: bytes) -> None:
        with path.open("xb") as file:
            file.write(data)

    instead = write if name == "write_durably" else lambda *_: None
    with patch.object(blobs, name, instead), pytest.raises((AssertionError, StorageError)):
        cut(1, 500)

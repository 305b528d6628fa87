from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgepool.errors import DecodeError, LocalError, StorageError
from edgepool.model.crypto import data_hash
from edgepool.model.twin import Manifest, small_manifest
from edgepool.storage import space
from edgepool.storage.blobs import BlobStore

CHUNK = 1024
DATA = bytes(range(256)) * 14  # three and a half chunks


def manifest_of(data: bytes) -> Manifest:
    hashes = tuple(data_hash(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))
    return Manifest(len(data), CHUNK, hashes)


def chunk(index: int, data: bytes = DATA) -> bytes:
    return data[index * CHUNK : (index + 1) * CHUNK]


MANIFEST = manifest_of(DATA)
ROOT = MANIFEST.root


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", 1 << 20)


def names(store_folder: Path) -> list[str]:
    return sorted(path.suffix for path in store_folder.iterdir())


@pytest.mark.parametrize("data", [b"", b"x", DATA, os.urandom(1 << 19)])
def test_imported_data_comes_back(store: BlobStore, tmp_path: Path, data: bytes) -> None:
    manifest = store.import_bytes(data)
    (tmp_path / "source").write_bytes(data)
    assert store.import_file(tmp_path / "source") == manifest
    again = BlobStore(tmp_path / "blobs", 1 << 20)
    for one in (store, again):
        assert one.roots() == (manifest.root,)
        assert one.has(manifest.root)
        assert one.manifest(manifest.root) == manifest
        assert one.path(manifest.root).read_bytes() == data
        assert one.size_bytes == len(data)
    assert names(tmp_path / "blobs") == [".data", ".manifest"]


def test_large_data_has_several_chunks(tmp_path: Path) -> None:
    data = os.urandom((2 << 20) + 5)
    (tmp_path / "source").write_bytes(data)
    manifest = BlobStore(tmp_path / "blobs", 1 << 23).import_file(tmp_path / "source")
    assert manifest.chunks == tuple(data_hash(data[at : at + (1 << 20)]) for at in (0, 1 << 20, 2 << 20))


def test_files_that_cannot_be_imported_are_named(store: BlobStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(LocalError, match="is not a regular file"):
            store.import_file(path)
    with pytest.raises(LocalError, match="nowhere cannot be read: No such file"):
        store.import_file(tmp_path / "nowhere")
    with pytest.raises(LocalError, match="changed while it was read"):
        store.import_file(Path("/proc/self/status"))  # says that it has 0 bytes
    assert names(tmp_path / "blobs") == []


def test_a_transfer_becomes_visible_only_when_it_is_whole(store: BlobStore, tmp_path: Path) -> None:
    writer = store.writer(MANIFEST)
    assert writer.next_chunk == 0
    for index in range(4):
        assert not store.has(ROOT)
        with pytest.raises(LocalError, match="not complete"):
            writer.finish()
        writer.put(index, memoryview(chunk(index)))
    path = writer.finish()
    assert path == store.path(ROOT)
    assert path.read_bytes() == DATA
    assert path.name == f"{ROOT.hex()}.data"
    assert store.manifest(ROOT) == MANIFEST
    with pytest.raises(LocalError, match="has ended"):
        writer.finish()
    writer.abort()
    assert names(tmp_path / "blobs") == [".data", ".manifest"]


def test_chunks_come_in_any_order_and_wrong_ones_are_refused(store: BlobStore) -> None:
    writer = store.writer(MANIFEST)
    writer.put(2, chunk(2))
    assert [writer.has(index) for index in range(4)] == [False, False, True, False]
    with pytest.raises(DecodeError, match="chunk 0 has 512 bytes"):
        writer.put(0, chunk(0)[:512])
    with pytest.raises(DecodeError, match="not the one that the manifest names"):
        writer.put(0, bytes(CHUNK))
    for index in range(4):
        writer.put(index, chunk(index))
    with pytest.raises(LocalError, match="there are 4 chunks"):
        writer.put(4, b"")
    assert writer.finish().read_bytes() == DATA


def test_a_manifest_that_contradicts_itself_is_refused(store: BlobStore) -> None:
    with pytest.raises(DecodeError, match="does not fit its size"):
        store.writer(Manifest(5 * CHUNK, CHUNK, MANIFEST.chunks))


def test_an_aborted_transfer_is_resumed_after_a_restart(store: BlobStore, tmp_path: Path) -> None:
    writer = store.writer(MANIFEST)
    for index in range(3):
        writer.put(index, chunk(index))
    writer.abort()
    writer.abort()
    again = BlobStore(tmp_path / "blobs", 1 << 20)
    assert again.roots() == ()
    resumed = again.writer(MANIFEST)
    assert resumed.next_chunk == 3
    resumed.put(3, chunk(3))
    assert resumed.finish().read_bytes() == DATA


def test_what_a_crash_left_in_a_partial_file_is_checked(store: BlobStore, tmp_path: Path) -> None:
    partial = tmp_path / "blobs" / f"{ROOT.hex()}.part"
    partial.parent.mkdir()
    partial.write_bytes(chunk(0) + chunk(1)[:100] + bytes(CHUNK - 100) + chunk(2) + bytes(5000))
    writer = store.writer(MANIFEST)
    assert [writer.has(index) for index in range(4)] == [True, False, True, False]
    for index in (1, 3):
        writer.put(index, chunk(index))
    assert writer.finish().read_bytes() == DATA


def test_two_transfers_of_the_same_data_do_not_harm_each_other(store: BlobStore, tmp_path: Path) -> None:
    first, second = store.writer(MANIFEST), store.writer(MANIFEST)
    for index in range(4):
        first.put(index, chunk(index))
        if index < 2:
            second.put(index, chunk(index))
    first.finish()
    for index in range(2, 4):
        second.put(index, chunk(index))
    assert second.finish().read_bytes() == DATA
    assert store.size_bytes == len(DATA)
    assert names(tmp_path / "blobs") == [".data", ".manifest"]


def test_a_late_abort_does_not_touch_the_next_transfer(store: BlobStore) -> None:
    first = store.writer(MANIFEST)
    first.put(0, chunk(0))
    first.abort()
    second = store.writer(MANIFEST)
    first.abort()
    third = store.writer(MANIFEST)
    assert (second.next_chunk, third.next_chunk) == (1, 0)
    third.abort()
    for index in range(1, 4):
        second.put(index, chunk(index))
    assert second.finish().read_bytes() == DATA


def test_data_that_is_there_is_not_written_again(store: BlobStore) -> None:
    root = store.import_bytes(DATA).root
    manifest = store.manifest(root)
    assert manifest is not None
    writer = store.writer(manifest)
    assert writer.next_chunk == len(manifest.chunks)
    assert writer.finish() == store.path(root)


def test_the_limit_counts_what_is_held_and_what_is_coming(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", len(DATA) + 100)
    writer = store.writer(MANIFEST)
    with pytest.raises(StorageError, match=r"may hold 3684 bytes and 3584 are in use: 101 more do not fit"):
        store.import_bytes(bytes(101))
    store.import_bytes(bytes(100))
    writer.put(0, chunk(0))
    writer.abort()
    store.import_bytes(bytes(2000))  # fits beside the incomplete kilobyte
    assert names(tmp_path / "blobs").count(".part") == 1
    store.import_bytes(bytes(1500))  # needs its space
    assert names(tmp_path / "blobs").count(".part") == 0
    with pytest.raises(StorageError, match="do not fit"):
        store.writer(MANIFEST)


def test_a_full_disk_shows_nothing_half_written(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = store.writer(MANIFEST)
    writer.put(0, chunk(0))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="the disk is full"):
        writer.put(1, chunk(1))
    with pytest.raises(StorageError, match="the disk is full"):
        store.import_bytes(DATA)
    writer.abort()
    monkeypatch.undo()
    assert names(tmp_path / "blobs") == [".part"]
    writer = store.writer(MANIFEST)
    for index in range(1, 4):
        writer.put(index, chunk(index))
    monkeypatch.setattr(os, "pwrite", full)  # now for the manifest
    with pytest.raises(StorageError, match="the disk is full"):
        writer.finish()
    monkeypatch.undo()
    assert not store.has(ROOT)
    assert BlobStore(tmp_path / "blobs", 1 << 20).roots() == ()
    assert store.writer(MANIFEST).next_chunk == 4


def test_a_damaged_manifest_or_data_is_not_handed_out(store: BlobStore) -> None:
    root = store.import_bytes(DATA).root
    path = store.path(root)
    os.truncate(path, 100)
    with pytest.raises(StorageError, match="the data has 100 bytes"):
        store.manifest(root)
    path.write_bytes(DATA)
    path.with_suffix(".manifest").write_bytes(b"?")
    with pytest.raises(StorageError, match="is damaged"):
        store.manifest(root)


def test_deleted_data_is_gone_and_its_readers_go_on(store: BlobStore, tmp_path: Path) -> None:
    root = store.import_bytes(DATA).root
    with store.path(root).open("rb") as reader:
        store.delete(root)
        store.delete(root)
        assert reader.read() == DATA
    assert (store.has(root), store.manifest(root), store.size_bytes) == (False, None, 0)
    with pytest.raises(LocalError, match="is not held"):
        store.path(root)
    assert names(tmp_path / "blobs") == []


def test_leftovers_of_a_killed_process_go_when_the_next_one_writes(tmp_path: Path) -> None:
    folder = tmp_path / "blobs"
    folder.mkdir()
    for name in ("import-1.aside", f"{ROOT.hex()}.manifest", "readme.data"):
        (folder / name).write_bytes(b"half")
    store = BlobStore(folder, 1 << 20)
    assert store.roots() == ()
    assert len(names(folder)) == 3  # another process may be at work until something is written
    store.import_bytes(b"data")
    assert names(folder) == [".data", ".data", ".manifest"]


def test_a_disk_that_must_keep_room_refuses_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10_000
    monkeypatch.setattr(space.Space, "disk_free_bytes", lambda _: free)
    store = BlobStore(tmp_path / "blobs", 1 << 20, keep_free_bytes=8_000)
    root = store.import_bytes(bytes(1_500)).root
    assert store.lacking_bytes(2_000) == 0
    assert store.lacking_bytes(2_100) == 100
    with pytest.raises(
        StorageError, match="is too full: with 2001 bytes more it would not have the 8000 free"
    ):
        store.import_bytes(bytes(2_001))
    writer = store.writer(MANIFEST) if store.lacking_bytes(MANIFEST.size_bytes) == 0 else None
    assert writer is None
    free = 12_000
    first = store.writer(MANIFEST)
    assert store.lacking_bytes(1_000) == 584, "what is coming has not taken its room yet, but will"
    first.abort()
    assert store.roots() == (root,)


def test_data_whose_deletion_was_cut_short_goes_with_the_next_write(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", 1 << 20)
    path = store.path(store.import_bytes(b"half deleted").root)
    path.with_suffix(".manifest").unlink()
    again = BlobStore(tmp_path / "blobs", 1 << 20)
    assert again.roots() == ()
    again.import_bytes(b"other")
    assert not path.exists()


def test_a_group_becomes_visible_together_and_only_at_the_end(store: BlobStore, tmp_path: Path) -> None:
    held = store.import_bytes(b"held before")
    many = [f"{number}".encode() * number for number in range(40)]
    group = store.group(sum(map(len, many)))
    for data in (*many, *many, b"held before"):
        group.put(small_manifest(data), data)
    assert store.roots() == (held.root,)
    group.finish()
    roots = {small_manifest(data).root for data in many} | {held.root}
    for one in (store, BlobStore(tmp_path / "blobs", 1 << 20)):
        assert set(one.roots()) == roots
        assert all(one.path(small_manifest(data).root).read_bytes() == data for data in many)
    assert names(tmp_path / "blobs") == [".data"] * len(roots) + [".manifest"] * len(roots)
    with pytest.raises(LocalError, match="has ended"):
        group.put(held, b"held before")


def test_a_group_that_is_given_up_or_fails_leaves_nothing(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = store.group(10)
    group.put(small_manifest(b"data"), b"data")
    group.abort()
    group.abort()
    assert names(tmp_path / "blobs") == []

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    failing = store.group(10)
    for data in (b"one", b"two"):
        failing.put(small_manifest(data), data)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(StorageError, match="check the disk"):
            failing.finish()
    assert (names(tmp_path / "blobs"), store.roots()) == ([], ())
    store.group(1 << 20).abort()  # and their space is free again
    with pytest.raises(StorageError, match="do not fit"):
        store.group((1 << 20) + 1)

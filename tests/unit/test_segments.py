"""The segments of a chain: beginning new ones, dropping old ones, and what is found when they are opened."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgepool.core.machine import CommitBlock, NewChain, Prune, SaveSnapshot
from edgepool.errors import StorageError
from edgepool.model.block import Block, CertifiedBlock, Header, records_root
from edgepool.model.crypto import Signer, sha256
from edgepool.model.pool import Acceptance, Genesis, Invitation, Member
from edgepool.model.record import DataDemand, Record, SignedRecord
from edgepool.model.twin import DataKey
from edgepool.model.vote import Certificate
from edgepool.storage.blocks import BlockLog
from edgepool.storage.kept import scan_kept
from edgepool.storage.log import HEADER, PREFACE
from edgepool.storage.reading import BlockReader, UnfinishedBlock, first_height, scan_blocks
from edgepool.storage.segments import (
    SEGMENT_BYTES,
    index_path,
    list_segments,
    segment_bytes_for,
    segment_path,
)
from edgepool.storage.snapshots import read_snapshot
from edgepool.storage.store import FolderStore, read_chain

PEER = Signer(sha256(b"somebody")).peer
SIGNATURE = bytes(64)
ENTRY_BYTES = HEADER.size + 100
THREE = PREFACE.size + 3 * ENTRY_BYTES
"""A size at which a segment has three blocks."""


def payload(height: int) -> bytes:
    return (b"block %d " % height).ljust(100, b".")


def written(folder: Path, heights: int, *, segment_bytes: int = THREE) -> BlockLog:
    log = BlockLog(folder, segment_bytes)
    for height in range(log.height + 1, heights + 1):
        log.append(height, payload(height))
    log.sync()
    return log


def firsts(folder: Path) -> list[int]:
    return [first for first, _ in list_segments(folder)]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x20
    path.write_bytes(data)


@pytest.fixture
def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is read from now on: the name of the file, and how many bytes."""
    seen: list[tuple[str, int]] = []
    real = os.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        data = real(fd, count, offset)
        seen.append((Path(os.readlink(f"/proc/self/fd/{fd}")).name, len(data)))
        return data

    monkeypatch.setattr(os, "pread", pread)
    return seen


def test_a_full_segment_is_followed_by_the_next_one(tmp_path: Path) -> None:
    log = written(tmp_path, 8)
    for _ in range(2):
        assert firsts(tmp_path) == [1, 4, 7]
        assert (log.first, log.height, log.size_bytes) == (1, 8, 3 * PREFACE.size + 8 * ENTRY_BYTES)
        assert [log.read(height) for height in range(1, 9)] == [payload(height) for height in range(1, 9)]
        assert log.read(0) is log.read(9) is None
        log.close()
        log = BlockLog(tmp_path, THREE)
    log.append(9, payload(9))
    log.append(10, payload(10))
    assert firsts(tmp_path) == [1, 4, 7, 10]


def test_only_the_last_segment_is_read_on_opening(
    tmp_path: Path, opened_files: list[tuple[str, int]]
) -> None:
    written(tmp_path, 8).close()
    opened_files.clear()
    BlockLog(tmp_path, THREE)
    old = [size for name, size in opened_files if name != segment_path(tmp_path, 7).name]
    assert sum(old) == 2 * PREFACE.size


@pytest.mark.parametrize("spoil", ["missing", "short", "flipped", "another's"])
def test_offsets_that_are_not_sound_are_made_again(tmp_path: Path, spoil: str) -> None:
    written(tmp_path, 8).close()
    path = index_path(segment_path(tmp_path, 1))
    good = path.read_bytes()
    if spoil == "missing":
        path.unlink()
    elif spoil == "short":
        path.write_bytes(good[:-8])
    elif spoil == "flipped":
        flip(path, len(good) - 3)
    else:
        path.write_bytes(index_path(segment_path(tmp_path, 4)).read_bytes())
    log = BlockLog(tmp_path, THREE)
    assert [log.read(height) for height in range(1, 9)] == [payload(height) for height in range(1, 9)]
    assert path.read_bytes() == good


def test_a_damaged_block_of_a_full_segment_is_named_when_it_is_read(tmp_path: Path) -> None:
    written(tmp_path, 8).close()
    path = segment_path(tmp_path, 1)
    start = PREFACE.size + ENTRY_BYTES
    flip(path, start + 60)
    log = BlockLog(tmp_path, THREE)
    with pytest.raises(StorageError) as caught:
        log.read(2)
    assert f"{path}: block 2 is damaged at byte {start}" in str(caught.value)
    assert "genesis.bin" in str(caught.value), "what to do"
    assert log.read(3) == payload(3)
    *whole, (height, error) = scan_blocks(tmp_path)
    assert whole == [(1, payload(1))]
    assert height == 2
    assert "block 2 is damaged" in str(error)


def test_a_full_segment_that_was_cut_is_damage_not_an_unfinished_write(tmp_path: Path) -> None:
    written(tmp_path, 8).close()
    path = segment_path(tmp_path, 4)
    os.truncate(path, path.stat().st_size - 1)
    before = sorted(one.name for one in tmp_path.iterdir())
    with pytest.raises(StorageError, match=f"{path}: block 6 is damaged at byte"):
        BlockLog(tmp_path, THREE)
    assert sorted(one.name for one in tmp_path.iterdir()) == before
    found = list(scan_blocks(tmp_path))
    assert (found[-1][0], len(found)) == (6, 6)
    assert not isinstance(found[-1][1], UnfinishedBlock)
    os.truncate(path, PREFACE.size + 2 * ENTRY_BYTES)
    with pytest.raises(StorageError, match="blocks 6 to 6 are missing"):
        BlockLog(tmp_path, THREE)
    assert "blocks 6 to 6 are missing" in str(list(scan_blocks(tmp_path))[-1][1])


def test_a_segment_that_is_missing_is_told_with_its_heights(tmp_path: Path) -> None:
    written(tmp_path, 8).close()
    kept = segment_path(tmp_path, 4).rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="blocks 4 to 6 are missing"):
        BlockLog(tmp_path, THREE)
    kept.rename(segment_path(tmp_path, 4))
    segment_path(tmp_path, 1).unlink()
    with pytest.raises(StorageError, match="blocks 1 to 3 are missing"):
        BlockLog(tmp_path, THREE)
    with pytest.raises(StorageError, match="blocks 3 to 3 are missing"):
        BlockLog(tmp_path, THREE, snapshot=2)
    with pytest.raises(StorageError, match="blocks 9 to 11 are missing"):
        BlockLog(tmp_path, THREE, snapshot=11)
    assert BlockLog(tmp_path, THREE, snapshot=3).first == 4


def test_whole_segments_go_and_never_the_one_that_grows(tmp_path: Path) -> None:
    log = written(tmp_path, 9)
    assert [log.droppable(height) for height in (0, 2, 3, 5, 6, 9, 99)] == [0, 0, 3, 3, 6, 6, 6]
    log.drop(5)
    assert (firsts(tmp_path), log.first, log.droppable(5)) == ([4, 7], 4, 3)
    assert log.read(3) is None
    log.drop(99)
    assert (firsts(tmp_path), log.first, log.height) == ([7], 7, 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == [segment_path(tmp_path, 7).name]
    log.close()
    assert BlockLog(tmp_path, THREE, snapshot=6).height == 9


def test_beginning_again_higher_up(tmp_path: Path) -> None:
    log = written(tmp_path, 8)
    for _ in range(2):
        log.restart(21)
        assert (firsts(tmp_path), log.first, log.height, log.read(8)) == ([21], 21, 20, None)
    log.append(21, payload(21))
    log.sync()
    assert log.read(21) == payload(21)
    log.close()
    segment_path(tmp_path, 1).write_bytes(b"left by a crash")
    again = BlockLog(tmp_path, THREE, snapshot=20, adopted=True)
    assert (firsts(tmp_path), again.height) == ([21], 21)


def test_a_segment_that_cannot_be_begun_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(tmp_path, 3)

    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        with pytest.raises(StorageError, match="the disk is full"):
            log.append(4, payload(4))
    monkeypatch.undo()
    assert (log.height, log.read(3)) == (3, payload(3))
    log.append(4, payload(4))
    log.sync()
    log.close()
    log = BlockLog(tmp_path, THREE)
    assert (firsts(tmp_path), log.height, log.recovered) == ([1, 4], 4, "")


def test_readers_go_over_segments_and_on_from_where_they_were(tmp_path: Path) -> None:
    written(tmp_path, 8).close()
    with BlockReader(tmp_path) as reader:
        all_blocks = [found for found in reader.scan() if not isinstance(found, StorageError)]
        assert [found.height for found in all_blocks] == list(range(1, 9))
        for found in all_blocks:
            assert reader.read(found.height, found.start) == found
            behind = [
                one.height
                for one in reader.scan(found.height, found.end)
                if not isinstance(one, StorageError)
            ]
            assert behind == list(range(found.height + 1, 9))
            assert reader.bytes_behind(found.height, found.end) == len(behind) * ENTRY_BYTES
        assert reader.read(2, all_blocks[2].start) is None
    segment_path(tmp_path, 9).write_bytes(b"")  # the peer is about to begin it
    assert [height for height, _ in scan_blocks(tmp_path)] == list(range(1, 9))


def test_a_write_under_way_is_told_apart_from_damage(tmp_path: Path) -> None:
    written(tmp_path, 8).close()
    path = segment_path(tmp_path, 7)
    os.truncate(path, path.stat().st_size - 9)
    with BlockReader(tmp_path) as reader:
        *_, last = reader.scan()
    assert isinstance(last, UnfinishedBlock)
    assert "block 8" in str(last)


# --- in the store -------------------------------------------------------------------------------

GENESIS = Genesis(
    Invitation("works", "lathes", "fixed", PEER, (Member(PEER, "lathe 1", "lathe", ()),), (), (), 1, 0),
    SIGNATURE,
    (Acceptance(PEER, sha256(b"tip"), SIGNATURE),),
)
CHAIN = GENESIS.chain


def block(height: int, records_count: int = 4) -> CertifiedBlock:
    body = DataDemand(DataKey("PTVA10212-03", "model"), 0, "", "")
    records = tuple(
        SignedRecord(Record("works", CHAIN, PEER, nonce, height, 0, body), SIGNATURE)
        for nonce in range(records_count)
    )
    hashes = (*(bytes(32),) * 4, records_root(records))
    header = Header("works", CHAIN, height, 0, *hashes, records_count, PEER, b"", 0)
    return CertifiedBlock(Block(header, records), Certificate(height, 0, header.id, ((0, SIGNATURE),)))


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_a_chain_takes_on_disk_stays_bounded(tmp_path: Path) -> None:
    limit_bytes = 64 * 1024
    store = FolderStore(tmp_path, segment_bytes_for(limit_bytes))
    store.open()
    store.write([NewChain(GENESIS)])
    saved, grown_bytes, highest_bytes = 0, 0, 0
    keep: list[tuple[int, int]] = []
    for height in range(1, 400):
        store.write([CommitBlock(block(height))])
        grown_bytes += 2_000
        if height % 20 == 0:
            keep = [*keep[-4:], (height, 1)]
        if grown_bytes > limit_bytes // 4:
            if saved:
                store.write([Prune(CHAIN, saved, tuple(keep))])
            store.write([SaveSnapshot(CHAIN, height, (), bytes(2_000), False)])
            saved, grown_bytes = height, 0
        store.sync()
        highest_bytes = max(highest_bytes, folder_bytes(tmp_path))
    assert segment_bytes_for(1024**3) == SEGMENT_BYTES
    assert limit_bytes // 4 < highest_bytes < limit_bytes
    assert store.block(CHAIN, 1) is None
    assert all(store.block(CHAIN, h) or store.kept(CHAIN, h, i) for h, i in keep)


def test_a_pruned_chain_is_read_from_its_first_block_on(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 1)
    store.open()
    store.write([NewChain(GENESIS), *(CommitBlock(block(height)) for height in range(1, 7))])
    store.write([SaveSnapshot(CHAIN, 4, (), b"state", False), Prune(CHAIN, 4, ((2, 1), (3, 0)))])
    store.sync()
    folder = tmp_path / "chains" / CHAIN
    assert list(read_chain(tmp_path, CHAIN)[1]) == [(5, block(5)), (6, block(6))]
    assert first_height(folder) == 5
    snapshot = read_snapshot(folder)
    assert snapshot is not None
    assert (snapshot.saved(), snapshot.adopted) == (store.snapshot(CHAIN), False)
    assert [(one.header.height, one.index) for one in scan_kept(folder)] == [(2, 1), (3, 0)]


def test_reading_a_block_in_the_moment_in_which_it_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path, 1)
    store.open()
    store.write([NewChain(GENESIS), *(CommitBlock(block(height)) for height in range(1, 4))])
    store.sync()
    store.close()
    store.open()
    store.write([SaveSnapshot(CHAIN, 3, (), b"state", False)])
    real: Callable[..., int] = os.open

    def dropped_before(path: Path, *arguments: int) -> int:
        monkeypatch.undo()
        store.write([Prune(CHAIN, 2, ())])
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", dropped_before)
    assert store.block(CHAIN, 2) is None
    assert store.block(CHAIN, 3) == block(3)


@pytest.mark.parametrize("name", ["snapshot.bin", "kept.log"])
def test_a_damaged_snapshot_or_kept_record_is_told(tmp_path: Path, name: str) -> None:
    store = FolderStore(tmp_path, 1)
    store.open()
    store.write([NewChain(GENESIS), *(CommitBlock(block(height)) for height in range(1, 5))])
    store.write([SaveSnapshot(CHAIN, 3, (), b"state", False), Prune(CHAIN, 2, ((1, 0),))])
    store.write([Prune(CHAIN, 3, ((1, 0), (3, 1)))])
    store.close()
    path = tmp_path / "chains" / CHAIN / name
    flip(path, path.stat().st_size - 1 if name == "snapshot.bin" else 80)
    with pytest.raises(StorageError, match=f"{path}.*is damaged.*(Restore|restore)"):
        FolderStore(tmp_path).open()
    if name == "kept.log":
        path.unlink()  # as the sentence says
        store = FolderStore(tmp_path)
        assert [saved.height for saved in store.open()] == [4]
        assert store.kept(CHAIN, 1, 0) is None

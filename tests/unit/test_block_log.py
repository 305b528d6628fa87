from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgepool.errors import StorageError
from edgepool.storage.blocks import BlockLog
from edgepool.storage.log import HEADER, PREFACE
from edgepool.storage.reading import scan_blocks

LOG = "blocks-0000000000000001.log"


def payload(height: int) -> bytes:
    return b"block %d " % height * 20


def written(folder: Path, heights: int, *, batch: int = 1) -> Path:
    """A log of blocks 1 to `heights`, synced after every `batch`; returns the file they are in."""
    log = BlockLog(folder)
    for height in range(1, heights + 1):
        log.append(height, payload(height))
        if height % batch == 0:
            log.sync()
    log.close()
    return folder / LOG


def offset_of(height: int) -> int:
    return PREFACE.size + sum(HEADER.size + len(payload(h)) for h in range(1, height))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x20
    path.write_bytes(data)


def test_blocks_come_back_after_reopening(tmp_path: Path) -> None:
    written(tmp_path, 3)
    log = BlockLog(tmp_path)
    assert (log.height, log.recovered) == (3, "")
    assert [log.read(h) for h in (1, 2, 3)] == [payload(1), payload(2), payload(3)]
    log.append(4, payload(4))
    assert log.read(4) == payload(4)


def test_only_the_next_height_is_taken(tmp_path: Path) -> None:
    written(tmp_path, 2)
    log = BlockLog(tmp_path)
    for height in (0, 2, 4):
        with pytest.raises(StorageError, match="the next one is 3"):
            log.append(height, b"x")
    assert log.read(3) is log.read(0) is None


@pytest.mark.parametrize("left", [1, HEADER.size - 1, HEADER.size, HEADER.size + 30])
def test_an_unfinished_write_is_set_aside_not_destroyed(tmp_path: Path, left: int) -> None:
    path = written(tmp_path, 3)
    torn_at = offset_of(3)
    os.truncate(path, torn_at + left)
    torn = path.read_bytes()[torn_at:]
    log = BlockLog(path.parent)
    assert log.height == 2
    assert f"{LOG}.torn-{torn_at}" in log.recovered
    assert (tmp_path / f"{LOG}.torn-{torn_at}").read_bytes() == torn
    log.append(3, payload(3))
    log.sync()
    log.close()
    again = BlockLog(path.parent)
    assert (again.height, again.recovered) == (3, "")


def test_a_second_torn_write_at_the_same_place_keeps_the_first(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    for junk in (b"one", b"two"):
        with path.open("ab") as file:
            file.write(junk)
        BlockLog(path.parent).close()
    assert sorted(one.read_bytes() for one in tmp_path.glob("*.torn-*")) == [b"one", b"two"]


def test_pages_of_an_unsynced_batch_may_reach_the_disk_in_any_order(tmp_path: Path) -> None:
    path = written(tmp_path, 2)
    log = BlockLog(path.parent)
    for height in (3, 4, 5):
        log.append(height, payload(height))  # the power is cut before the sync
    log.close()
    data = bytearray(path.read_bytes())
    data[offset_of(3) : offset_of(4)] = bytes(offset_of(4) - offset_of(3))
    path.write_bytes(data)
    assert BlockLog(path.parent).height == 2


def test_damage_among_acknowledged_blocks_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, 4)
    for where in (offset_of(2), offset_of(2) + 13, offset_of(2) + 21, offset_of(2) + HEADER.size + 5):
        flip(path, where)
        before = path.read_bytes()
        with pytest.raises(StorageError) as caught:
            BlockLog(path.parent)
        text = str(caught.value)
        assert str(tmp_path) in text
        assert "block 2 is damaged" in text
        assert f"byte {offset_of(2)}" in text
        assert "Restore" in text
        assert path.read_bytes() == before
        flip(path, where)
    assert list(tmp_path.glob("*.torn-*")) == []


def test_a_block_that_was_cut_out_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, 4)
    data = path.read_bytes()
    path.write_bytes(data[: offset_of(2)] + data[offset_of(3) : offset_of(4)])
    with pytest.raises(StorageError, match=r"block 2 is damaged .*number 3 stands in its place"):
        BlockLog(path.parent)


def test_a_block_that_was_doubled_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, 2)
    data = path.read_bytes()
    path.write_bytes(data + data[offset_of(1) : offset_of(2)])
    with pytest.raises(StorageError, match=r"block 3 is damaged .*number 1 stands in its place"):
        BlockLog(path.parent)


def test_a_log_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / LOG
    path.write_bytes(b"something else that somebody needs")
    with pytest.raises(StorageError, match="block 1 is damaged at byte 0"):
        BlockLog(path.parent)
    assert path.read_bytes() == b"something else that somebody needs"


def test_a_payload_that_imitates_a_later_block_proves_nothing(tmp_path: Path) -> None:
    elsewhere = tmp_path / "attacker"
    elsewhere.mkdir()
    imitation = written(elsewhere, 6).read_bytes()[offset_of(4) :]
    path = written(tmp_path, 2)
    log = BlockLog(path.parent)
    log.append(3, imitation + b"more")
    log.close()
    os.truncate(path, path.stat().st_size - 1)
    log = BlockLog(path.parent)
    assert log.height == 2


def test_a_full_disk_leaves_no_half_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, 2)
    log = BlockLog(path.parent)
    whole = os.pwrite

    def full(fd: int, data: memoryview, offset: int) -> int:
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(fd, data[:40], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"blocks-0+1\.log cannot be written: the disk is full"):
        log.append(3, payload(3))
    monkeypatch.undo()
    assert path.stat().st_size == offset_of(3)
    log.append(3, b"short")
    log.sync()
    log.close()
    assert BlockLog(path.parent).read(3) == b"short"


def test_a_failed_sync_takes_back_what_it_could_not_make_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, 2)
    log = BlockLog(path.parent)
    log.append(3, payload(3))

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(StorageError, match=r"cannot be synced: .*check the disk"):
        log.sync()
    monkeypatch.undo()
    assert log.height == 2
    log.append(3, b"again")
    log.sync()
    assert log.read(3) == b"again"


def test_a_block_that_rots_while_the_log_is_open_is_not_handed_out(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    log = BlockLog(path.parent)
    with path.open("r+b") as file:
        file.seek(offset_of(2) + HEADER.size)
        file.write(b"?")
    with pytest.raises(StorageError, match="block 2 is damaged"):
        log.read(2)
    assert log.read(3) == payload(3)


def test_scan_reads_all_and_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    os.truncate(path, path.stat().st_size - 1)
    path.chmod(0o444)
    before = path.read_bytes()
    found = list(scan_blocks(tmp_path))
    assert found[:2] == [(1, payload(1)), (2, payload(2))]
    height, error = found[2]
    assert height == 3
    assert isinstance(error, StorageError)
    assert "block 3" in str(error)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [LOG]


def test_scan_of_a_missing_log_names_block_1(tmp_path: Path) -> None:
    [(height, error)] = scan_blocks(tmp_path)
    assert height == 1
    assert f"{LOG} cannot be opened" in str(error)

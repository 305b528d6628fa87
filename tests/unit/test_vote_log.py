from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgepool.errors import StorageError
from edgepool.model.ids import ChainId
from edgepool.storage import votes
from edgepool.storage.votes import VoteLog

A, B, C = (ChainId(digits * 20) for digits in ("aa", "0b", "5c"))


def test_the_last_synced_state_of_each_chain_comes_back(tmp_path: Path) -> None:
    log = VoteLog(tmp_path / "votes.log")
    log.put(A, b"1")
    log.put(B, b"2")
    log.sync()
    log.put(A, b"3")
    log.sync()
    log.put(B, b"lost")
    assert log.states() == {A: b"3", B: b"lost"}
    log.close()
    again = VoteLog(tmp_path / "votes.log")
    assert again.states() == {A: b"3", B: b"2"}
    assert again.recovered == ""


def test_a_torn_vote_is_cut_and_the_one_before_counts(tmp_path: Path) -> None:
    path = tmp_path / "votes.log"
    log = VoteLog(path)
    for state in (b"first", b"second"):
        log.put(A, state)
        log.sync()
    log.close()
    os.truncate(path, path.stat().st_size - 3)
    again = VoteLog(path)
    assert again.states() == {A: b"first"}
    assert "unfinished write" in again.recovered


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.log"
    log = VoteLog(path)
    for number in range(4):
        log.put(A, b"state %d" % number)
        log.sync()
    log.close()
    data = bytearray(path.read_bytes())
    data[80] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"votes\.log: vote state 2 is damaged .*vote twice"):
        VoteLog(path)


def test_it_does_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(votes, "COMPACT_BYTES", 2048)
    path = tmp_path / "votes.log"
    log = VoteLog(path)
    log.put(C, b"said long ago")
    for number in range(60):
        log.put(A if number % 2 else B, b"%d " % number * 30)
        log.sync()
        assert path.stat().st_size < 2048 + 256
    expected = log.states()
    log.close()
    assert VoteLog(path).states() == expected == {A: b"59 " * 30, B: b"58 " * 30, C: b"said long ago"}
    assert [one.name for one in tmp_path.iterdir()] == ["votes.log"]


def test_compaction_that_fails_costs_no_vote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(votes, "COMPACT_BYTES", 500)
    path = tmp_path / "votes.log"
    log = VoteLog(path)

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for number in range(50):
        log.put(A, b"state %d" % number)
        log.sync()
    monkeypatch.undo()
    log.close()
    assert VoteLog(path).states() == {A: b"state 49"}


def test_no_vote_goes_to_a_file_that_a_power_cut_may_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(votes, "COMPACT_BYTES", 100)
    log = VoteLog(tmp_path / "votes.log")
    log.put(A, b"x" * 100)
    log.sync()

    def broken(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(votes, "sync_folder", broken)
    log.put(A, b"z")
    with pytest.raises(StorageError, match="cannot be replaced"):
        log.sync()
    monkeypatch.undo()
    with pytest.raises(StorageError, match="closed"):
        log.sync()


def test_a_full_disk_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = VoteLog(tmp_path / "votes.log")
    log.put(A, b"state")

    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"votes\.log cannot be written: the disk is full"):
        log.sync()
    monkeypatch.undo()
    log.sync()
    log.close()
    assert VoteLog(tmp_path / "votes.log").states() == {A: b"state"}


def test_what_is_no_chain_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a chain id"):
        VoteLog(tmp_path / "votes.log").put(ChainId("../x"), b"")

"""The store under power cuts on a simulated disk; `rig.py` runs more. EDGEPOOL_CUTS says how many here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
import rig

from edgepool.storage import blocks, checked, files, log, store
from edgepool.storage.blocks import BlockLog
from edgepool.storage.chainfiles import ChainFiles
from edgepool.storage.log import AppendLog
from edgepool.storage.store import FolderStore

CUTS = int(os.environ.get("EDGEPOOL_CUTS", "20000"))
SLICES = 4


@pytest.mark.parametrize("seed", range(1, 1 + SLICES))
def test_nothing_acknowledged_is_lost(seed: int) -> None:
    report = rig.run(CUTS // SLICES, seed)
    assert report.violations == []
    assert report.lost == 0
    assert report.cuts == CUTS // SLICES
    assert report.acknowledged > 3 * report.cuts
    assert report.kills > report.cuts // 10
    assert report.troubles > report.cuts // 50
    assert report.torn > report.cuts // 200, "the cuts must leave something unfinished"


def test_same_seed_same_cuts() -> None:
    first, second = rig.run(200, 7), rig.run(200, 7)
    first.seconds = second.seconds = 0
    assert first == second


# --- a check that has never failed proves nothing -------------------------------------------------

Switch = Callable[[ExitStack], None]


def swap(owner: Any, name: str, value: Any) -> Switch:
    return lambda stack: stack.enter_context(patch.object(owner, name, value))


def votes_before_blocks(stack: ExitStack) -> None:
    def sync(self: FolderStore) -> None:
        self._open_votes().sync()
        for one in self._unsynced.values():
            one.sync()
        self._unsynced.clear()

    swap(FolderStore, "sync", sync)(stack)


def only_one_chain_is_synced(stack: ExitStack) -> None:
    def sync(self: FolderStore) -> None:
        for one in list(self._unsynced.values())[:1]:
            one.sync()
        self._unsynced.clear()
        self._open_votes().sync()

    swap(FolderStore, "sync", sync)(stack)


def failed_sync_is_tried_again(stack: ExitStack) -> None:
    """What PostgreSQL did until 2018: the pages count as clean after a failed fsync."""

    def keep(self: AppendLog, count: int) -> None:
        """Cut nothing back."""

    swap(AppendLog, "_cut_back", keep)(stack)


def checksums_unread(stack: ExitStack) -> None:
    """Only where a log is read back: whatever has a header counts."""
    read = log.read_entry

    def read_entry(fd: int, offset: int, size: int, salt: bytes) -> Any:
        found = read(fd, offset, size, salt)
        if found != "its checksum does not hold":
            return found
        raw = log.os.pread(fd, log.HEADER.size, offset)
        _, number, synced, length, _ = log.HEADER.unpack(raw)
        payload = log.os.pread(fd, length, offset + log.HEADER.size)
        return log.Entry(number, synced, payload, offset + log.HEADER.size + length)

    swap(log, "read_entry", read_entry)(stack)


def nothing(*_: object, **__: object) -> None:
    """Instead of something that must be done."""


def written_only(path: Any, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)


def names_unsynced(modules: Iterable[Any]) -> Switch:
    def switch(stack: ExitStack) -> None:
        for module in modules:
            swap(module, "sync_folder", nothing)(stack)

    return switch


def blocks_dropped_before_records_are_kept(stack: ExitStack) -> None:
    def prune(self: ChainFiles, item: Any) -> None:
        last = self._blocks.droppable(item.height)
        fresh = list(self._extract(item.keep, last))
        self._blocks.drop(last)
        self._kept.keep(iter(fresh), frozenset(item.keep).__contains__)

    swap(ChainFiles, "prune", prune)(stack)


def segments_deleted_in_any_order(stack: ExitStack) -> None:
    genuine = BlockLog.drop

    def drop(self: BlockLog, height: int) -> None:
        with patch.object(blocks, "sync_folder", nothing):
            genuine(self, height)
        with files.guarded(self._folder, "emptied"):
            blocks.sync_folder(self._folder)

    swap(BlockLog, "drop", drop)(stack)


def snapshot_before_its_blocks(stack: ExitStack) -> None:
    def save(self: ChainFiles, item: Any) -> None:
        with patch.object(self._blocks, "sync", nothing, create=True):
            genuine(self, item)

    genuine = ChainFiles.save
    swap(ChainFiles, "save", save)(stack)


BUGS: dict[str, tuple[Switch, int]] = {
    "votes before blocks": (votes_before_blocks, 500),
    "only one chain is synced": (only_one_chain_is_synced, 500),
    "names of logs unsynced": (names_unsynced([log]), 500),
    "names of chains unsynced": (names_unsynced([store]), 500),
    "folders unsynced": (names_unsynced([files]), 500),
    "every torn write is damage": (swap(log, "was_acknowledged", lambda *_: True), 500),
    "blocks dropped before records are kept": (blocks_dropped_before_records_are_kept, 5_000),
    "segments deleted in any order": (segments_deleted_in_any_order, 20_000),
    "snapshot before its blocks": (snapshot_before_its_blocks, 5_000),
    "snapshots unsynced": (swap(checked, "write_durably", written_only), 500),
    "names of snapshots unsynced": (swap(checked, "sync_folder", nothing), 5_000),
    "names of segments unsynced": (swap(blocks, "sync_folder", nothing), 20_000),
    "checksums unread": (checksums_unread, 5_000),
    "a failed sync is tried again": (failed_sync_is_tried_again, 20_000),
    "what a failed sync left is believed": (swap(AppendLog, "_write_again", nothing), 20_000),
}
"""How each bug is switched on, and within how many cuts it must be found."""
SEEDS = {
    "segments deleted in any order": 8,
    "names of segments unsynced": 7,
    "what a failed sync left is believed": 8,
}
"""Where to look for those that need a rare cut, so that they are found soon; elsewhere it is seed 1."""


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_of_the_store_is_found(bug: str) -> None:
    switch, cuts = BUGS[bug]
    with ExitStack() as stack:
        switch(stack)
        assert rig.run(cuts, SEEDS.get(bug, 1), patience=1).violations


@pytest.mark.parametrize("lies", ["fdatasync", "fsync", "fsync of a folder", "fdatasync,fsync"])
def test_a_sync_that_does_nothing_is_found(lies: str) -> None:
    report = rig.run(100, 1, frozenset(lies.split(",")))
    assert report.violations

"""Snapshots and prunings, with the power cut or the process killed in every call that they make.

The disk is the simulated one of disk.py. What was written is known, so after each end the store is compared
with what it owes: blocks, a snapshot that covers what is missing, proofs, no leftovers; and the same items
can be written again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import cast

import pytest
from disk import Disk, PowerCut
from diskcalls import installed, root_of
from ledger_model import PEER, SIGNATURE, make_genesis

from edgepool.core.ledger.proof import path_in
from edgepool.core.machine import CommitBlock, Item, NewChain, Prune, SaveSnapshot, VoteState
from edgepool.errors import StorageError
from edgepool.model.block import Block, CertifiedBlock, Header, records_root
from edgepool.model.record import DataDemand, Record, SignedRecord
from edgepool.model.twin import DataKey
from edgepool.model.vote import Certificate
from edgepool.runtime.ports import SavedChain
from edgepool.storage.blocks import BlockLog
from edgepool.storage.chainfiles import ChainFiles
from edgepool.storage.snapshots import save_snapshot
from edgepool.storage.store import FolderStore

GENESIS = make_genesis(0)
CHAIN = GENESIS.chain
RECORDS = 4
SEGMENT_BYTES = 2_500
"""Two blocks."""


def block(height: int) -> CertifiedBlock:
    body = DataDemand(DataKey("PTVA10212-03", "model"), 0, "", "")
    records = tuple(
        SignedRecord(Record("works", CHAIN, PEER, nonce, height, 0, body), SIGNATURE)
        for nonce in range(RECORDS)
    )
    hashes = (*(bytes(32),) * 4, records_root(records))
    header = Header("works", CHAIN, height, 0, *hashes, RECORDS, PEER, b"", 0)
    return CertifiedBlock(Block(header, records), Certificate(height, 0, header.id, ((0, SIGNATURE),)))


BLOCKS = [block(height) for height in range(1, 25)]


def commit(first: int, last: int) -> list[Item]:
    return [CommitBlock(BLOCKS[height - 1]) for height in range(first, last + 1)]


def save(height: int, adopted: bool = False) -> SaveSnapshot:
    return SaveSnapshot(CHAIN, height, (), b"%04d" % height * 400, adopted)


PRUNING: tuple[list[Item], ...] = (
    [NewChain(GENESIS), *commit(1, 5)],
    [*commit(6, 8), save(8), VoteState(CHAIN, b"9")],
    [CommitBlock(BLOCKS[8]), Prune(CHAIN, 7, ((2, 1), (3, 0), (3, 3), (7, 0)))],
    [*commit(10, 13), save(13)],
    [Prune(CHAIN, 13, ((3, 3), (7, 0), (9, 2), (12, 0))), VoteState(CHAIN, b"14")],
    [*commit(14, 16), save(16), Prune(CHAIN, 16, ((3, 3), (7, 0), (9, 2), (12, 0), (15, 1)))],
)
ADOPTING: tuple[list[Item], ...] = (
    [NewChain(GENESIS), *commit(1, 6), save(5), Prune(CHAIN, 5, ((1, 1),))],
    [VoteState(CHAIN, b"7")],
    [save(15, adopted=True), *commit(16, 17)],
    [*commit(18, 21), save(20), Prune(CHAIN, 20, ((1, 1), (17, 0)))],
)


class Owed:
    """What the store may hold after some batches were acknowledged and another was begun."""

    def __init__(self, done: list[Item], begun: list[Item]) -> None:
        self.begun = any(isinstance(item, NewChain) for item in done)
        heights = [0]
        snapshots: list[SaveSnapshot | None] = [None]
        for item in done:
            if isinstance(item, CommitBlock):
                heights[0] = item.certified.block.header.height
            elif isinstance(item, SaveSnapshot):
                snapshots = [item]
                heights[0] = max(heights[0], item.height)
        for item in begun:
            if isinstance(item, CommitBlock):
                heights.append(item.certified.block.header.height)
            elif isinstance(item, SaveSnapshot):
                snapshots.append(item)
                heights.append(item.height)
        self.heights, self.snapshots = heights, snapshots
        self.keeps = [[item.keep for item in items if isinstance(item, Prune)] for items in (done, begun)]
        self.adopted = max(
            (item.height for item in done + begun if isinstance(item, SaveSnapshot) and item.adopted),
            default=0,
        )

    def check(self, disk: Disk, store: FolderStore, saved: list[SavedChain]) -> None:
        if not saved:
            assert not self.begun
            return
        ((height, vote),) = [(one.height, one.vote_state) for one in saved]
        assert height in range(self.heights[0], max(self.heights) + 1)
        snapshot = store.snapshot(CHAIN)
        known = [(one.height, one.state) for one in self.snapshots if one is not None]
        assert (snapshot.height, snapshot.state) in known if snapshot is not None else None in self.snapshots
        first = next((at for at in range(1, height + 1) if store.block(CHAIN, at)), height + 1)
        assert first - 1 <= (snapshot.height if snapshot is not None else 0) <= height
        for at in range(1, height + 2):
            assert store.block(CHAIN, at) == (BLOCKS[at - 1] if first <= at <= height else None)
        self._check_proofs(store, first)
        self._check_folder(disk, first, snapshot is not None)
        assert not vote or int(vote) <= height + 1

    def _check_proofs(self, store: FolderStore, first: int) -> None:
        done, begun = self.keeps
        owed = set(done[-1]) if done else {(at, i) for at in range(1, first) for i in range(RECORDS)}
        for keep in begun:
            owed &= set(keep)
        for at, index in owed:
            kept = store.kept(CHAIN, at, index)
            certified = BLOCKS[at - 1]
            if kept is None:
                assert at >= first or at <= self.adopted, f"record {index} of block {at} cannot be proved"
                continue
            assert (kept.record, kept.header) == (certified.block.records[index], certified.block.header)
            assert kept.path == path_in(certified.block, index)

    def _check_folder(self, disk: Disk, first: int, has_snapshot: bool) -> None:
        folder = cast(Path, root_of(disk) / "peer" / "chains" / CHAIN)
        names = sorted(path.name for path in folder.iterdir() if ".torn-" not in path.name)
        assert not [name for name in names if name.endswith(".new")]
        logs = [name[:-4] for name in names if name.startswith("blocks-") and name.endswith(".log")]
        indexes = [name[:-4] for name in names if name.endswith(".idx")]
        assert indexes == logs[:-1]
        assert logs[0] == f"blocks-{first:016}"
        assert ("snapshot.bin" in names) == has_snapshot


def ends(script: tuple[list[Item], ...], finish: Callable[[Disk], None]) -> Iterator[int]:
    """Play the script once for each call it makes, ending there; yield how many batches were acknowledged."""
    call = 0
    while True:
        call += 1
        with installed(call), Disk(Random(call)) as disk:
            folder = cast(Path, root_of(disk) / "peer")
            disk.dies_at = call
            batch = 0
            try:
                store = FolderStore(folder, SEGMENT_BYTES)
                store.open()
                for items in script:
                    store.write(items)
                    store.sync()
                    batch += 1
                disk.dies_at = 0
            except PowerCut:
                pass
            finish(disk)
            done = [item for items in script[:batch] for item in items]
            begun = script[batch] if batch < len(script) else []
            for _ in range(2):  # the second opening finds what the first has cleaned
                store = FolderStore(folder, SEGMENT_BYTES)
                Owed(done, begun).check(disk, store, store.open())
                store.close()
            store.open()
            for items in script[batch:]:
                store.write(items)
                store.sync()
            store.close()
            store = FolderStore(folder, SEGMENT_BYTES)
            Owed([item for items in script for item in items], []).check(disk, store, store.open())
            yield batch
            if batch == len(script):
                return


@pytest.mark.parametrize("finish", [Disk.cut, Disk.kill], ids=["power cut", "killed"])
@pytest.mark.parametrize("script", [PRUNING, ADOPTING], ids=["pruning", "adopting"])
def test_an_end_at_any_call_loses_nothing(
    script: tuple[list[Item], ...], finish: Callable[[Disk], None]
) -> None:
    reached = list(ends(script, finish))
    assert len(reached) > 200
    assert set(reached) == set(range(len(script) + 1))


@pytest.mark.parametrize("script", [PRUNING, ADOPTING], ids=["pruning", "adopting"])
def test_what_failed_at_any_call_can_be_written_again(script: tuple[list[Item], ...]) -> None:
    call = calls = 1
    while call <= calls:
        with installed(call), Disk(Random(call)) as disk:
            store = FolderStore(cast(Path, root_of(disk) / "peer"), SEGMENT_BYTES)
            store.open()
            before = disk.calls
            disk.trouble = lambda _, disk=disk, at=before + call: errno.EIO if disk.calls == at else 0
            failed = False
            for items in script:
                try:
                    store.write(items)
                    store.sync()
                except StorageError:
                    assert not failed
                    failed = True
                    store.write(items)
                    store.sync()
            calls = disk.calls - before
            disk.trouble = None
            disk.cut()
            store = FolderStore(cast(Path, root_of(disk) / "peer"), SEGMENT_BYTES)
            Owed([item for items in script for item in items], []).check(disk, store, store.open())
        call += 1
    assert call > 150


# --- a check that has never failed proves nothing -------------------------------------------------


def no_sync_before_a_snapshot(self: ChainFiles, item: SaveSnapshot) -> None:
    save_snapshot(self._folder, item, item.adopted)
    self._snapshot, self._adopted = item.height, item.adopted
    if item.adopted:
        self._blocks.restart(item.height + 1)


def adopted_unmarked(self: ChainFiles, item: SaveSnapshot) -> None:
    self._blocks.sync()
    save_snapshot(self._folder, item, False)
    self._snapshot = item.height
    if item.adopted:
        self._blocks.restart(item.height + 1)


def dropped_before_kept(self: ChainFiles, item: Prune) -> None:
    last = self._blocks.droppable(item.height)
    fresh = list(self._extract(item.keep, last))
    self._blocks.drop(last)
    self._kept.keep(iter(fresh), frozenset(item.keep).__contains__)


def newest_first(self: BlockLog, height: int) -> None:
    for segment in reversed([one for one in self._segments[:-1] if one.last <= height]):
        self._delete([segment.path])
    self._segments = tuple(one for one in self._segments if one.last > height) or self._segments[-1:]


@pytest.mark.parametrize(
    ("owner", "name", "bug", "script"),
    [
        (ChainFiles, "save", no_sync_before_a_snapshot, PRUNING),
        (ChainFiles, "save", adopted_unmarked, ADOPTING),
        (ChainFiles, "prune", dropped_before_kept, PRUNING),
        (BlockLog, "drop", newest_first, PRUNING),
    ],
)
def test_a_wrong_order_is_found(
    owner: type, name: str, bug: object, script: tuple[list[Item], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises((AssertionError, StorageError)):
        list(ends(script, Disk.cut))

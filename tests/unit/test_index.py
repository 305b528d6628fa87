from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_world import KEY, World

from edgepool.core.machine import CommitBlock, NewChain, Prune, SaveSnapshot
from edgepool.errors import LocalError, StorageError
from edgepool.model.record import SignedRecord, kind_of, sign_record
from edgepool.model.twin import DataKey
from edgepool.storage.index import INDEX_FILE, RecordIndex, RecordQuery
from edgepool.storage.segments import SEGMENT_BYTES, segment_path
from edgepool.storage.store import FolderStore

PART = "PTVA10212"
OTHER = DataKey("PTVB-7", "surface")


class Plant:
    """A peer's folder with one chain, whose peer goes on writing."""

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self.world = World(beacon_length=8)
        self.records: list[SignedRecord] = []
        self.store = FolderStore(folder, segment_bytes)
        self.store.open()
        self.store.write([NewChain(self.world.genesis)])
        self.log = segment_path(folder / "chains" / self.world.genesis.chain, 1)

    def commit(self, *records: SignedRecord) -> None:
        packer = self.world.state.height % 4
        certified = self.world.certify(self.world.pack(*records, packer=packer))
        self.store.write([CommitBlock(certified)])
        self.store.sync()
        self.records += records

    def index(self) -> RecordIndex:
        return RecordIndex(self.folder)

    def found(self, query: RecordQuery | None = None) -> list[SignedRecord]:
        """Return what a search in a newly opened index finds, the oldest first."""
        with self.index() as index:
            found = index.find(query or RecordQuery())
        assert found.total == len(found.records)
        return [one.signed for one in reversed(found.records)]


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    plant = Plant(tmp_path)
    world = plant.world
    plant.commit(world.requirement(0, 0), world.requirement(1, 1))
    plant.commit(world.procedure(0, 0), world.offer(2), world.demand(3, OTHER))
    plant.commit(world.completion(0, 0), world.inspection(0, 0))
    plant.commit(world.confirmation(world.signers[2], world.signers[0]))
    yield plant
    plant.store.close()


def kinds(records: list[SignedRecord]) -> list[str]:
    return [kind_of(signed.record.body) for signed in records]


# --- finding ------------------------------------------------------------------------------------


def test_records_are_found_by_each_of_their_properties(plant: Plant) -> None:
    world = plant.world
    assert plant.found() == plant.records
    assert kinds(plant.found(RecordQuery(kind="offer"))) == ["offer"]
    assert kinds(plant.found(RecordQuery(key=KEY))) == ["offer", "confirmation"]
    assert kinds(plant.found(RecordQuery(part=OTHER.part))) == ["demand"]
    assert kinds(plant.found(RecordQuery(authors=(world.peers[2],)))) == ["offer", "confirmation"]
    assert len(plant.found(RecordQuery(authors=(world.peers[2], world.peers[3])))) == 3
    assert plant.found(RecordQuery(chain=world.genesis.chain)) == plant.records
    assert len(plant.found(RecordQuery(task="T1"))) == 5
    assert plant.found(RecordQuery(task="T2")) == plant.found(RecordQuery(kind="unknown")) == []
    assert kinds(plant.found(RecordQuery(task="T1", kind="inspection"))) == ["inspection"]
    assert plant.found(RecordQuery(task="T1", authors=(world.outsider.peer,))) == []


def test_the_steps_of_a_task_have_the_part_of_its_requirement(plant: Plant) -> None:
    expected = ["requirement", "requirement", "procedure", "completion", "inspection"]
    assert kinds(plant.found(RecordQuery(part=PART))) == expected
    plant.commit(plant.world.procedure(1, 1))  # indexed later than the requirement
    assert kinds(plant.found(RecordQuery(part=PART))) == [*expected, "procedure"]


def test_times_are_from_since_to_before_until_and_the_newest_come_first(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    for time_ms in (30, 10, 20):
        record = plant.world.demand(0)
        plant.commit(sign_at(plant.world, record, time_ms))
    with plant.index() as index:
        newest = index.find(RecordQuery(limit=2))
        assert newest.total == 3
        assert [one.signed.record.time_ms for one in newest.records] == [30, 20]
        assert index.find(RecordQuery(since_ms=10, until_ms=20)).total == 1
        assert index.find(RecordQuery(since_ms=31)).total == 0


def sign_at(world: World, signed: SignedRecord, time_ms: int) -> SignedRecord:
    said = signed.record
    return sign_record(world.signers[0], said.network, said.chain, said.body, time_ms, said.nonce)


def test_an_id_or_its_beginning_leads_to_the_record_and_its_block(plant: Plant) -> None:
    record = plant.records[3]
    with plant.index() as index:
        for digits in (8, 31, 40, 64):
            (found,) = index.find_id(record.id.hex()[:digits])
            assert found.signed == record
        assert index.block(found).block.records[found.ref.index] == record
        assert index.find_id(record.id.hex()[:40] + "0" * 24) == ()
        assert len(index.find_id("", limit=100)) == len(plant.records)


@pytest.mark.parametrize(
    ("query", "used"),
    [
        (RecordQuery(part=PART), "records_by_part (part=?)"),
        (RecordQuery(key=KEY), "records_by_key (part=? AND data_kind=?)"),
        (RecordQuery(task="T1"), "records_by_task (task=?)"),
        (RecordQuery(kind="offer"), "records_by_kind (kind=?)"),
        (RecordQuery(kind="offer", since_ms=5), "records_by_kind (kind=? AND time_ms>?)"),
        (RecordQuery(since_ms=5, until_ms=7), "records_by_time (time_ms>? AND time_ms<?)"),
    ],
)
def test_lookups_go_by_an_index_and_sort_nothing(plant: Plant, query: RecordQuery, used: str) -> None:
    with plant.index() as index:
        plan = index.explain(query)
        by_author = index.explain(RecordQuery(authors=(plant.world.peers[2],)))
    assert any(f"SEARCH records USING INDEX {used}" in step for step in plan), plan
    assert any("USING INDEX records_by_author (author=?)" in step for step in by_author), by_author
    assert not any("SCAN" in step or "TEMP B-TREE" in step for step in plan + by_author)


# --- keeping up ---------------------------------------------------------------------------------


def test_only_what_is_new_is_indexed_while_the_peer_goes_on(plant: Plant) -> None:
    plant.found()
    before = plant.log.stat().st_size
    plant.commit(plant.world.demand(1), plant.world.demand(2))
    told: list[tuple[int, int]] = []
    with RecordIndex(plant.folder, lambda done, total: told.append((done, total))) as index:
        assert index.find(RecordQuery()).total == len(plant.records)
    new_bytes = plant.log.stat().st_size - before
    assert (told[0], told[-1]) == ((0, new_bytes), (new_bytes, new_bytes))
    told.clear()
    RecordIndex(plant.folder, lambda done, total: told.append((done, total))).close()
    assert told == []


def test_a_block_half_written_is_left_for_later(plant: Plant) -> None:
    plant.found()
    whole = plant.log.read_bytes()
    plant.commit(plant.world.demand(1))
    written = plant.log.read_bytes()
    plant.log.write_bytes(written[:-7])
    with plant.index() as index:
        assert (index.find(RecordQuery()).total, index.problems) == (8, ())
    assert plant.log.read_bytes() == written[:-7] != whole
    plant.log.write_bytes(written)
    assert plant.found() == plant.records


def test_a_log_that_was_cut_or_replaced_is_indexed_again(plant: Plant, tmp_path: Path) -> None:
    length = plant.log.stat().st_size
    plant.commit(plant.world.demand(1))
    plant.found()
    plant.log.write_bytes(plant.log.read_bytes()[:length])
    assert plant.found() == plant.records[:-1]
    other = Plant(tmp_path / "other")  # the same chain, but another history under another salt
    other.commit(other.world.demand(3))
    assert other.world.genesis.chain == plant.world.genesis.chain
    shutil.copy(other.log, plant.log)
    assert plant.found() == other.records


def test_records_of_pruned_blocks_leave_the_index_and_the_others_stay(tmp_path: Path) -> None:
    plant = Plant(tmp_path, segment_bytes=1)  # a segment for each block
    world = plant.world
    chain = world.genesis.chain
    plant.commit(world.requirement(0, 0))
    plant.commit(world.procedure(0, 0), world.offer(2))
    plant.commit(world.demand(3, OTHER))
    assert plant.found() == plant.records
    plant.store.write([SaveSnapshot(chain, 3, (), b"state", False), Prune(chain, 1, ())])
    assert plant.found() == plant.records[1:]
    assert plant.found(RecordQuery(part=PART)) == plant.records[1:2], "the part of the task is still known"
    plant.commit(world.demand(1))
    plant.store.write([Prune(chain, 2, ())])
    assert plant.found() == plant.records[3:]
    with plant.index() as index:
        (found,) = index.find_id(plant.records[-1].id.hex())
        assert index.block(found).block.records == (plant.records[-1],)


def test_an_index_that_lies_behind_what_was_pruned_begins_again(tmp_path: Path) -> None:
    plant = Plant(tmp_path, segment_bytes=1)
    chain = plant.world.genesis.chain
    plant.commit(plant.world.demand(0))
    plant.found()
    plant.commit(plant.world.demand(1))
    plant.commit(plant.world.demand(2))
    plant.store.write([SaveSnapshot(chain, 2, (), b"state", False), Prune(chain, 2, ())])
    assert plant.found() == plant.records[2:]
    plant.store.write([SaveSnapshot(chain, 9, (), b"state", True)])
    assert plant.found() == []


def test_a_chain_that_has_gone_is_forgotten(plant: Plant) -> None:
    plant.found()
    shutil.move(plant.log.parent, plant.folder / "elsewhere")
    assert plant.found() == []


def test_damage_in_a_log_is_told_and_the_blocks_before_it_are_found(plant: Plant) -> None:
    raw = bytearray(plant.log.read_bytes())
    raw[raw.index(b"Process-m-12")] ^= 1
    plant.log.write_bytes(raw)
    for _ in range(2):
        with plant.index() as index:
            assert index.find(RecordQuery()).total == 5
            (problem,) = index.problems
            assert "block 3 is damaged" in problem
    plant.log.unlink()
    with plant.index() as index:
        assert index.find(RecordQuery()).total == 0
        assert f"{plant.log.name} cannot be opened" in index.problems[0]


# --- never the source of truth --------------------------------------------------------------------


def test_an_index_that_is_deleted_or_damaged_is_made_again_silently(plant: Plant) -> None:
    path = plant.folder / INDEX_FILE
    plant.found()
    good = path.read_bytes()
    noise = random.Random(7).randbytes(len(good))
    damaged = (
        b"",
        b"no database at all" * 100,
        good[: len(good) // 2],
        good[:1000],
        good[:100] + noise[100:],
        good[:4096] + noise[4096:],
        good[:60] + b"\0\0\0\x63" + good[64:],  # of another version
    )
    for content in damaged:
        path.write_bytes(content)
        assert plant.found() == plant.records
    path.unlink()
    assert plant.found() == plant.records


def test_an_index_without_its_tables_is_made_again(plant: Plant) -> None:
    for statement in (
        "DROP TABLE records",
        "DROP TABLE chains",
        "ALTER TABLE records RENAME part TO p",
        "UPDATE records SET start = start + 1",
        "UPDATE records SET place = place + 1",
        "UPDATE records SET height = height + 7",
        "UPDATE records SET record = zeroblob(16)",
    ):
        plant.found()
        db = sqlite3.connect(plant.folder / INDEX_FILE)
        db.execute(statement)
        db.commit()
        db.close()
        assert plant.found(RecordQuery(part=PART)) == plant.records[:3] + plant.records[5:7], statement


def test_a_folder_that_takes_no_index_is_searched_with_a_temporary_one(plant: Plant) -> None:
    (plant.folder / INDEX_FILE).mkdir()
    with plant.index() as index:
        assert index.temporary
        assert index.find(RecordQuery()).total == len(plant.records)
    assert list((plant.folder / INDEX_FILE).iterdir()) == []


def test_what_interrupts_indexing_leaves_the_index_as_it_was(plant: Plant) -> None:
    plant.found()
    plant.commit(plant.world.demand(1))

    def interrupt(done: int, _: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RecordIndex(plant.folder, interrupt)
    assert plant.found() == plant.records


def test_an_index_that_others_keep_busy_is_not_deleted(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant.found()
    plant.commit(plant.world.demand(1))
    monkeypatch.setattr("edgepool.storage.index.BUSY_TIMEOUT_S", 0.01)
    other = sqlite3.connect(plant.folder / INDEX_FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LocalError, match="another command is indexing"):
        plant.index()
    other.execute("ROLLBACK")
    other.close()
    assert plant.found() == plant.records


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="is not a folder"):
        RecordIndex(tmp_path / "none")


def test_a_lost_log_behind_an_open_index_is_a_storage_error(plant: Plant) -> None:
    with plant.index() as index:
        plant.log.unlink()
        with pytest.raises(StorageError, match="cannot be opened"):
            index.find(RecordQuery())

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgepool.core.ledger.proof import path_in
from edgepool.core.machine import CommitBlock, NewChain, Prune, SavedSnapshot, SaveSnapshot, VoteState
from edgepool.errors import LocalError, StorageError
from edgepool.model.block import Block, CertifiedBlock, Handover, Header, records_root
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import ChainId
from edgepool.model.pool import Acceptance, Genesis, Invitation, Member
from edgepool.model.record import DataDemand, Record, SignedRecord
from edgepool.model.twin import DataKey
from edgepool.model.vote import Certificate
from edgepool.runtime.ports import SavedChain, Store
from edgepool.storage.memory import MemoryStore
from edgepool.storage.segments import segment_path
from edgepool.storage.store import FolderStore, list_chains, read_chain

PEER = Signer(sha256(b"somebody")).peer
SIGNATURE = bytes(64)  # stores keep what they are told and check no signatures


def genesis(name: str = "lathes", created_ms: int = 1) -> Genesis:
    member = Member(PEER, "lathe 1", "lathe", ())
    invitation = Invitation("works", name, "fixed", PEER, (member,), (), (), created_ms, 0)
    return Genesis(invitation, SIGNATURE, (Acceptance(PEER, sha256(b"tip"), SIGNATURE),))


def block(chain: ChainId, height: int, text: str = "", records_count: int = 1) -> CertifiedBlock:
    body = DataDemand(DataKey("PTVA10212-03", "model"), 0, text, "")
    records = tuple(
        SignedRecord(Record("works", chain, PEER, nonce, height, 0, body), SIGNATURE)
        for nonce in range(records_count)
    )
    hashes = (*(bytes(32),) * 4, records_root(records))
    header = Header("works", chain, height, 0, *hashes, records_count, PEER, b"", 0)
    return CertifiedBlock(Block(header, records), Certificate(height, 0, header.id, ((0, SIGNATURE),)))


GENESIS = genesis()
CHAIN = GENESIS.chain


@pytest.fixture(params=["folder", "memory"])
def reopened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], tuple[Store, list[SavedChain]]]:
    """A function that returns the store as it comes back after a restart, and what it opens with."""
    stores: list[Store] = [FolderStore(tmp_path, 1) if request.param == "folder" else MemoryStore()]

    def again() -> tuple[Store, list[SavedChain]]:
        stores[-1].close()
        if request.param == "folder":
            stores.append(FolderStore(tmp_path, 1))  # a segment for each block
        return stores[-1], stores[-1].open()

    return again


Reopened = Callable[[], tuple[Store, list[SavedChain]]]


def test_chains_blocks_and_votes_come_back(reopened: Reopened) -> None:
    store, saved = reopened()
    assert saved == []
    later, earlier = genesis("later", 20), genesis("earlier", 10)
    store.write([NewChain(later), NewChain(earlier), CommitBlock(block(later.chain, 1))])
    store.write([VoteState(later.chain, b"old"), VoteState(later.chain, b"new")])
    store.write([CommitBlock(block(later.chain, 2))])
    store.sync()
    store, saved = reopened()
    assert saved == [SavedChain(earlier, 0, b""), SavedChain(later, 2, b"new")]
    assert store.block(later.chain, 2) == block(later.chain, 2)
    assert store.block(later.chain, 2) == block(later.chain, 2)
    for chain, height in ((later.chain, 0), (later.chain, 3), (earlier.chain, 1), (ChainId("00" * 20), 1)):
        assert store.block(chain, height) is None


def test_ids_of_records_are_read_without_their_block(reopened: Reopened) -> None:
    store, _ = reopened()
    certified = block(CHAIN, 1, records_count=3)
    store.write([NewChain(GENESIS), CommitBlock(certified)])
    store.sync()
    store, _ = reopened()
    assert store.record_ids(CHAIN, 1) == tuple(signed.id for signed in certified.block.records)
    for chain, height in ((CHAIN, 0), (CHAIN, 2), (ChainId("00" * 20), 1)):
        assert store.record_ids(chain, height) is None


def test_a_block_must_follow_and_its_chain_must_be_there(reopened: Reopened) -> None:
    store, _ = reopened()
    with pytest.raises(StorageError, match="no chain"):
        store.write([CommitBlock(block(CHAIN, 1))])
    store.write([NewChain(GENESIS), CommitBlock(block(CHAIN, 1))])
    with pytest.raises(StorageError, match="block 3 cannot be appended, the next one is 2"):
        store.write([CommitBlock(block(CHAIN, 3))])
    with pytest.raises(StorageError, match="block 1 cannot be appended"):
        store.write([CommitBlock(block(CHAIN, 1, "another"))])


def test_the_same_items_may_be_written_again(reopened: Reopened) -> None:
    store, _ = reopened()
    items = (NewChain(GENESIS), CommitBlock(block(CHAIN, 1)), VoteState(CHAIN, b"v"))
    for _ in range(2):
        store.write(items)
        store.sync()
    assert reopened()[1] == [SavedChain(GENESIS, 1, b"v")]


# --- snapshots, and what is dropped -------------------------------------------------------------


def snapshot(height: int, *, adopted: bool = False) -> SaveSnapshot:
    header = block(CHAIN, height).block.header
    handover = Handover(header, Certificate(height, 0, header.id, ((0, SIGNATURE),)), "", None)
    return SaveSnapshot(CHAIN, height, (handover,), b"state %d" % height * 1000, adopted)


def saved_as(item: SaveSnapshot) -> SavedSnapshot:
    return SavedSnapshot(item.height, item.handovers, item.state)


def grown(reopened: Reopened, heights: int, records_count: int = 1) -> Store:
    """Return a store with a chain of so many blocks."""
    store, _ = reopened()
    store.write([NewChain(GENESIS)])
    store.write([CommitBlock(block(CHAIN, h, "", records_count)) for h in range(1, heights + 1)])
    store.sync()
    return store


def stored_heights(store: Store) -> list[int]:
    return [height for height in range(20) if store.block(CHAIN, height) is not None]


def test_a_snapshot_comes_back_and_replaces_the_one_before(reopened: Reopened) -> None:
    store = grown(reopened, 4)
    assert store.snapshot(CHAIN) is None
    assert store.snapshot(ChainId("00" * 20)) is None
    for height in (2, 4):
        store.write([snapshot(height)])
        store.sync()
        assert store.snapshot(CHAIN) == saved_as(snapshot(height))
    store, saved = reopened()
    assert saved == [SavedChain(GENESIS, 4, b"")]
    assert store.snapshot(CHAIN) == saved_as(snapshot(4))
    assert stored_heights(store) == [1, 2, 3, 4]


def test_pruned_blocks_are_gone_and_what_was_kept_of_them_proves_itself(reopened: Reopened) -> None:
    store = grown(reopened, 6, records_count=5)
    before = store.size_bytes(CHAIN)
    store.write([snapshot(5), Prune(CHAIN, 4, ((2, 4), (3, 0), (3, 2), (6, 1)))])
    store.sync()
    for _ in range(2):
        assert stored_heights(store) == [5, 6]
        assert 0 < store.size_bytes(CHAIN) < before / 2
        for height, index in ((2, 4), (3, 0), (3, 2)):
            certified = block(CHAIN, height, "", 5)
            kept = store.kept(CHAIN, height, index)
            assert kept is not None
            assert (kept.header, kept.certificate) == (certified.block.header, certified.certificate)
            assert (kept.record, kept.index) == (certified.block.records[index], index)
            assert kept.path == path_in(certified.block, index)
        for height, index in ((2, 3), (4, 0), (6, 1), (7, 0)):
            assert store.kept(CHAIN, height, index) is None
        store, saved = reopened()
        assert saved == [SavedChain(GENESIS, 6, b"")]
    store.write([CommitBlock(block(CHAIN, 7))])
    assert stored_heights(store) == [5, 6, 7]


def test_what_a_later_pruning_does_not_name_is_not_kept_any_more(reopened: Reopened) -> None:
    store = grown(reopened, 6, records_count=2)
    store.write([snapshot(5), Prune(CHAIN, 2, ((1, 0), (1, 1), (2, 0)))])
    store.write([Prune(CHAIN, 4, ((1, 1), (4, 0)))])
    store.sync()
    for _ in range(2):
        kept = [(h, i) for h in range(1, 6) for i in range(2) if store.kept(CHAIN, h, i) is not None]
        assert kept == [(1, 1), (4, 0)]
        store, _ = reopened()


def test_an_adopted_snapshot_begins_the_chain_behind_it(reopened: Reopened) -> None:
    store = grown(reopened, 3)
    store.write([snapshot(10, adopted=True), VoteState(CHAIN, b"said")])
    store.sync()
    store, saved = reopened()
    assert saved == [SavedChain(GENESIS, 10, b"said")]
    assert store.snapshot(CHAIN) == saved_as(snapshot(10))
    assert stored_heights(store) == []
    with pytest.raises(StorageError, match="block 12 cannot be appended, the next one is 11"):
        store.write([CommitBlock(block(CHAIN, 12))])
    store.write([CommitBlock(block(CHAIN, 11)), CommitBlock(block(CHAIN, 12)), snapshot(12)])
    store.sync()
    store, saved = reopened()
    assert saved[0].height == 12
    assert stored_heights(store) == [11, 12]


def test_an_adopted_snapshot_that_is_not_above_the_last_block_drops_nothing(reopened: Reopened) -> None:
    store = grown(reopened, 3)
    store.write([snapshot(3, adopted=True)])
    store.sync()
    store, saved = reopened()
    assert saved[0].height == 3
    assert stored_heights(store) == [1, 2, 3]


def test_nothing_is_dropped_that_no_snapshot_covers(reopened: Reopened) -> None:
    store = grown(reopened, 3, records_count=2)
    with pytest.raises(StorageError, match="a snapshot of height 4 cannot be stored, the last block is 3"):
        store.write([snapshot(4)])
    with pytest.raises(StorageError, match="up to 1 cannot be pruned, the snapshot is of height 0"):
        store.write([Prune(CHAIN, 1, ())])
    store.write([snapshot(2)])
    with pytest.raises(StorageError, match="up to 3 cannot be pruned, the snapshot is of height 2"):
        store.write([Prune(CHAIN, 3, ())])
    with pytest.raises(StorageError, match="no record 2 to keep"):
        store.write([Prune(CHAIN, 2, ((1, 2),))])
    for item in (Prune(ChainId("00" * 20), 1, ()), SaveSnapshot(ChainId("00" * 20), 1, (), b"", True)):
        with pytest.raises(StorageError, match="no chain"):
            store.write([item])
    assert stored_heights(store) == [1, 2, 3]


def test_snapshots_and_prunings_may_be_written_again(reopened: Reopened) -> None:
    store = grown(reopened, 1, records_count=2)
    blocks = [CommitBlock(block(CHAIN, height, "", 2)) for height in range(1, 6)]
    items = (*blocks, snapshot(4), Prune(CHAIN, 3, ((1, 1), (3, 0))), VoteState(CHAIN, b"v"))
    for _ in range(2):
        store.write(items)
        store.sync()
        assert stored_heights(store) == [4, 5]
        assert store.kept(CHAIN, 1, 1) is not None
    adopted = (snapshot(9, adopted=True), CommitBlock(block(CHAIN, 10)))
    for _ in range(2):
        store.write(adopted)
        store.sync()
    assert reopened()[1] == [SavedChain(GENESIS, 10, b"v")]


def test_sizes_of_unknown_and_empty_chains(reopened: Reopened) -> None:
    store, _ = reopened()
    assert store.size_bytes(CHAIN) == 0
    store.write([NewChain(GENESIS)])
    assert store.size_bytes(CHAIN) < 100
    certified = block(CHAIN, 1, "x" * 200)
    store.write([CommitBlock(certified)])
    assert 0 <= store.size_bytes(CHAIN) - len(encode(certified)) < 100


def test_memory_store_forgets_snapshots_and_prunings_that_were_not_synced() -> None:
    store = MemoryStore()
    store.write([NewChain(GENESIS), *(CommitBlock(block(CHAIN, height)) for height in range(1, 6))])
    store.write([snapshot(2)])
    store.sync()
    store.write([snapshot(4), Prune(CHAIN, 3, ((1, 0),))])
    store.crash(kept=1)
    assert (store.snapshot(CHAIN), stored_heights(store)) == (saved_as(snapshot(4)), [1, 2, 3, 4, 5])
    store.write([Prune(CHAIN, 3, ((1, 0),))])
    store.crash(kept=1)
    assert stored_heights(store) == [4, 5]
    assert store.kept(CHAIN, 1, 0) is not None
    store.write([snapshot(9, adopted=True)])
    store.crash()
    assert store.open() == [SavedChain(GENESIS, 5, b"")]


def test_memory_store_loses_what_was_not_synced() -> None:
    store = MemoryStore()
    store.write([NewChain(GENESIS), CommitBlock(block(CHAIN, 1)), VoteState(CHAIN, b"said")])
    store.sync()
    store.write([NewChain(GENESIS), CommitBlock(block(CHAIN, 2)), VoteState(CHAIN, b"unsaid")])
    store.write([NewChain(genesis("other"))])
    assert len(store.open()) == 2
    store.crash()
    assert store.open() == [SavedChain(GENESIS, 1, b"said")]
    store.write([CommitBlock(block(CHAIN, 2)), VoteState(CHAIN, b"x"), CommitBlock(block(CHAIN, 3))])
    store.crash(kept=2)
    assert store.open() == [SavedChain(GENESIS, 2, b"x")]
    assert store.unsynced == ()


def opened(folder: Path) -> FolderStore:
    store = FolderStore(folder)
    store.open()
    return store


def with_blocks(folder: Path, heights: int) -> None:
    store = opened(folder)
    store.write([NewChain(GENESIS)])
    for height in range(1, heights + 1):
        store.write([CommitBlock(block(CHAIN, height))])
        store.sync()
    store.close()


def test_a_second_peer_on_the_folder_is_refused(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(LocalError, match=f"in use by another peer .process {os.getpid()}."):
        opened(tmp_path)
    first.write([NewChain(GENESIS)])
    first.close()
    opened(tmp_path).close()


def test_votes_are_not_on_disk_before_the_blocks_written_before_them(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write([NewChain(GENESIS)])
    store.sync()
    before = (tmp_path / "votes.log").stat().st_size
    store.write([CommitBlock(block(CHAIN, 1)), VoteState(CHAIN, b"height 2")])
    assert (tmp_path / "votes.log").stat().st_size == before
    store.sync()
    assert (tmp_path / "votes.log").stat().st_size > before


def test_only_written_files_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = genesis("other")
    store = opened(tmp_path)
    store.write([NewChain(GENESIS), NewChain(other), CommitBlock(block(other.chain, 1))])
    store.sync()
    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    store.write([CommitBlock(block(CHAIN, 1))])
    store.sync()
    store.sync()
    logs = [str(segment_path(tmp_path / "chains" / chain, 1)) for chain in (CHAIN, other.chain)]
    assert synced == logs[:1]
    store.write([CommitBlock(block(CHAIN, 2)), CommitBlock(block(other.chain, 2))])
    store.sync()
    assert synced[1:] == logs


def test_a_disk_is_quick_after_it_has_shown_it_and_not_after_one_slow_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, takes_s = [0.0], [0.0001]
    monkeypatch.setattr("edgepool.storage.store.perf_counter", lambda: now_s[0])
    monkeypatch.setattr(os, "fdatasync", lambda fd: now_s.__setitem__(0, now_s[0] + takes_s[0]))
    store = opened(tmp_path)
    store.write([NewChain(GENESIS)])
    vote = VoteState(CHAIN, b"v")

    def sync(times: int) -> bool:
        for number in range(times):
            store.write([VoteState(CHAIN, b"%d" % number)])
            store.sync()
        return store.quick([vote])

    assert not store.quick([vote]), "nothing is known of the disk"
    assert sync(40)
    assert store.quick([CommitBlock(block(CHAIN, 1)), vote])
    assert not store.quick([VoteState(CHAIN, bytes(100_000))]), "that is much"
    assert not store.quick([CommitBlock(block(CHAIN, 1, records_count=400))])
    assert not store.quick([Prune(CHAIN, 1, ())]), "that deletes files"
    takes_s[0] = 0.02
    assert not sync(1)
    takes_s[0] = 0.0001
    assert not sync(2)
    assert sync(40)


def test_a_half_made_chain_is_no_chain(tmp_path: Path) -> None:
    with_blocks(tmp_path, 1)
    leftover = tmp_path / "chains" / f".new-{genesis('other').chain}"
    leftover.mkdir()
    (leftover / "genesis.bin").write_bytes(b"half")
    store = FolderStore(tmp_path)
    assert [saved.genesis for saved in store.open()] == [GENESIS]
    assert not leftover.exists()


def test_a_new_chain_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    for failing in range(12):  # each of its syncs in turn
        folder = tmp_path / str(failing)
        store = opened(folder)
        countdown = iter(range(failing, -1, -1))

        def fsync(fd: int, countdown: Iterator[int] = countdown) -> None:
            if next(countdown, None) == 0:
                raise OSError(errno.EIO, "Input/output error")
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        failed = False
        try:
            store.write([NewChain(GENESIS)])
        except StorageError:
            failed = True
        monkeypatch.undo()
        store.write([NewChain(GENESIS), CommitBlock(block(CHAIN, 1))])
        store.sync()
        store.close()
        assert [saved.height for saved in FolderStore(folder).open()] == [1]
        if not failed:
            return
    raise AssertionError("more syncs than expected")


def test_what_was_set_aside_is_told(tmp_path: Path) -> None:
    with_blocks(tmp_path, 2)
    log = segment_path(tmp_path / "chains" / CHAIN, 1)
    os.truncate(log, log.stat().st_size - 7)
    store = FolderStore(tmp_path)
    assert [saved.height for saved in store.open()] == [1]
    assert len(store.recovered) == 1
    assert f"{log.name}.torn-" in store.recovered[0]


def test_a_damaged_chain_is_named_and_the_folder_not_left_locked(tmp_path: Path) -> None:
    with_blocks(tmp_path, 3)
    log = segment_path(tmp_path / "chains" / CHAIN, 1)
    whole = log.read_bytes()
    log.write_bytes(whole[:100] + b"#" + whole[101:])
    with pytest.raises(StorageError, match=f"{CHAIN}.*block 1 is damaged"):
        opened(tmp_path)
    log.unlink()  # as the sentence says: out of the way, and the others have the blocks
    store = FolderStore(tmp_path)
    assert [saved.height for saved in store.open()] == [0]


@pytest.mark.parametrize("offset", [0, 9, 40, -1])
def test_a_damaged_genesis_is_refused(tmp_path: Path, offset: int) -> None:
    with_blocks(tmp_path, 1)
    path = tmp_path / "chains" / CHAIN / "genesis.bin"
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"genesis\.bin is damaged"):
        opened(tmp_path)
    with pytest.raises(StorageError, match=r"genesis\.bin is damaged"):
        read_chain(tmp_path, CHAIN)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_blocks(tmp_path, 1)
    store = opened(tmp_path)

    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"blocks-0+1\.log cannot be written: the disk is full"):
        store.write([CommitBlock(block(CHAIN, 2))])
    with pytest.raises(StorageError, match="cannot be written: the disk is full"):
        store.write([NewChain(genesis("other"))])
    monkeypatch.undo()
    assert store.block(CHAIN, 2) is None
    store.write([CommitBlock(block(CHAIN, 2)), NewChain(genesis("other"))])
    store.sync()
    store.close()
    assert sorted(saved.height for saved in FolderStore(tmp_path).open()) == [0, 2]


def test_reading_while_a_thread_writes(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write([NewChain(GENESIS)])
    blocks = [block(CHAIN, height) for height in range(1, 41)]

    def write() -> None:
        for one in blocks:
            store.write([CommitBlock(one)])
            store.sync()

    writer = threading.Thread(target=write)
    writer.start()
    height = 0
    while height < len(blocks):
        found = store.block(CHAIN, height + 1)
        if found is not None:
            assert found == blocks[height]
            height += 1
    writer.join()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.close()
    with pytest.raises(StorageError, match="not open"):
        store.write([VoteState(CHAIN, b"")])


def test_a_chain_is_read_without_opening_it(tmp_path: Path) -> None:
    with_blocks(tmp_path, 3)
    running = opened(tmp_path)
    assert list_chains(tmp_path) == [CHAIN]
    found, blocks = read_chain(tmp_path, CHAIN)
    assert found == GENESIS
    assert list(blocks) == [(height, block(CHAIN, height)) for height in (1, 2, 3)]
    running.close()
    with pytest.raises(LocalError, match="has no chain"):
        read_chain(tmp_path, ChainId("../../etc"))
    with pytest.raises(LocalError, match="not a folder"):
        list_chains(tmp_path / "nowhere")


def test_a_block_of_another_chain_is_found_out(tmp_path: Path) -> None:
    other = genesis("other")
    store = opened(tmp_path)
    store.write([NewChain(GENESIS), NewChain(other), CommitBlock(block(other.chain, 1))])
    store.sync()
    store.close()
    mine, others = (segment_path(tmp_path / "chains" / chain, 1) for chain in (CHAIN, other.chain))
    mine.write_bytes(others.read_bytes())
    [(height, error)] = read_chain(tmp_path, CHAIN)[1]
    assert height == 1
    assert isinstance(error, StorageError)
    assert f"block 1 of chain {other.chain} is in its place" in str(error)

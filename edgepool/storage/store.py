"""The folder in which a peer keeps its chains and votes.

    lock                             held while the folder is open; one process at a time
    votes.log                        see votes.py
    chains/<chain id>/genesis.bin    a checked file (checked.py)
    chains/<chain id>/blocks-*.log   see blocks.py
    chains/<chain id>/blocks-*.idx   see segments.py
    chains/<chain id>/snapshot.bin   see snapshots.py
    chains/<chain id>/kept.log       see kept.py

A chain's folder is written aside as `.new-<chain id>`, synced and renamed, so there is no chain
without its genesis. A sync makes blocks durable before votes: no vote for a height comes back
without the blocks that were written before it. Snapshots and prunings are durable when they are
written, in the order that chainfiles.py tells.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import assert_never

from edgepool.core.machine import (
    CommitBlock,
    Item,
    KeptRecord,
    NewChain,
    Prune,
    SavedSnapshot,
    SaveSnapshot,
    VoteState,
)
from edgepool.errors import DecodeError, LocalError, StorageError
from edgepool.model.block import CertifiedBlock, record_ids
from edgepool.model.codec import decode, encode
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis
from edgepool.runtime.ports import SavedChain
from edgepool.storage.blocks import BlockLog
from edgepool.storage.chainfiles import ChainFiles
from edgepool.storage.checked import checked_bytes, damaged_file, read_checked
from edgepool.storage.files import close_file, guarded, make_folder, sync_folder, write_durably
from edgepool.storage.reading import decode_block, scan_blocks
from edgepool.storage.segments import SEGMENT_BYTES
from edgepool.storage.votes import VoteLog

RECENT_BYTES = 8 * 1024 * 1024
QUICK_SYNC_MS = 1.0
"""Who waits so long for a disk holds nobody up."""
UNTRUSTED_SYNC_MS = 10.0
"""What a disk is taken to need before it has shown better."""
QUICK_BYTES = 32 * 1024
"""More than this is not written quickly, whatever the disk."""
MEAN_RECORD_BYTES = 400
GENESIS_FILE = "genesis.bin"
_GENESIS_KIND = b"EPGENES1"
_GENESIS_REMEDY = "restore it from a backup, or copy that of another member of the pool"
_CHAIN_NAME = re.compile(r"[0-9a-f]{40}")
_ASIDE = ".new-"


class FolderStore:
    """Chains and votes in `folder`, which is made if it is missing; blocks in files of `segment_bytes`.

    `write` and `sync` may run in one worker thread while what reads runs on the event loop's, which
    never waits for a disk write. After a StorageError nothing half-written is left, and the same
    items may be written again. `recovered` tells, in sentences, what `open` set aside.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._chains: dict[ChainId, ChainFiles] = {}
        self._unsynced: dict[ChainId, ChainFiles] = {}
        self._votes: VoteLog | None = None
        self._recent = _RecentBlocks()
        self._writing = threading.Lock()
        self._lock_fd = -1
        self._sync_ms = UNTRUSTED_SYNC_MS
        self.recovered: tuple[str, ...] = ()

    def open(self) -> list[SavedChain]:
        """Recover what was acknowledged, cut what was torn; return the chains, oldest first.

        LocalError if another process (or store) has the folder open, StorageError for damage.
        """
        if self._lock_fd >= 0:
            raise LocalError(f"{self._folder} is open already")
        make_folder(self._folder / "chains")
        self._lock()
        try:
            return self._load()
        except BaseException:
            self.close()
            raise

    def write(self, items: Iterable[Item]) -> None:
        """Write `items` in order; durable only after `sync`.

        A block that is there already, or pruned, is skipped.
        """
        with self._writing:
            for item in items:
                if isinstance(item, VoteState):
                    self._open_votes().put(item.chain, item.state)
                elif isinstance(item, NewChain):
                    self._begin_chain(item.genesis)
                elif isinstance(item, CommitBlock):
                    self._append(item.certified)
                elif isinstance(item, SaveSnapshot):
                    self._written(item.chain, f"snapshot {item.height}").save(item)
                elif isinstance(item, Prune):
                    self._written(item.chain, f"pruning up to {item.height}").prune(item)
                else:
                    assert_never(item)

    def quick(self, items: Sequence[Item]) -> bool:
        """Say whether `items` are few, and late syncs were quick: a slow one is not forgotten at once."""
        return self._sync_ms <= QUICK_SYNC_MS and sum(map(_weight_bytes, items)) <= QUICK_BYTES

    def sync(self) -> None:
        """Make everything written durable, the blocks before the votes."""
        began_s = perf_counter()
        self._sync()
        took_ms = (perf_counter() - began_s) * 1000
        self._sync_ms = max(took_ms, (7 * self._sync_ms + took_ms) / 8)

    def _sync(self) -> None:
        with self._writing:
            while self._unsynced:
                chain, files = next(iter(self._unsynced.items()))
                del self._unsynced[chain]  # a log that cannot be synced drops what was appended
                files.sync()
            self._open_votes().sync()

    def block(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        """Return the block at `height` of `chain`, or None; StorageError if it is damaged."""
        files = self._chains.get(chain)
        if files is None or not files.first <= height <= files.height:
            return None
        recent = self._recent.get(chain, height)
        if recent is not None:
            return recent
        payload = files.read(height)
        if payload is None:
            return None
        certified = decode_block(self._chain_folder(chain), chain, height, payload)
        self._recent.put(chain, height, certified, len(payload))
        return certified

    def record_ids(self, chain: ChainId, height: int) -> tuple[bytes, ...] | None:
        """Return the ids of the records of the block at `height`, or None; StorageError if it is damaged."""
        files = self._chains.get(chain)
        payload = files.read(height) if files is not None and files.first <= height <= files.height else None
        if payload is None:
            return None
        try:
            return record_ids(payload)
        except DecodeError as error:
            raise StorageError(f"{self._chain_folder(chain)}: block {height} is damaged ({error})") from None

    def snapshot(self, chain: ChainId) -> SavedSnapshot | None:
        """Return the stored snapshot of the chain, or None; StorageError if it is damaged."""
        files = self._chains.get(chain)
        return files.snapshot() if files is not None else None

    def kept(self, chain: ChainId, height: int, index: int) -> KeptRecord | None:
        """Return a record whose block is pruned, if it was to be kept; StorageError if it is damaged."""
        files = self._chains.get(chain)
        return files.kept(height, index) if files is not None else None

    def size_bytes(self, chain: ChainId) -> int:
        """Return how much the stored blocks of the chain take, in bytes; 0 for an unknown chain."""
        files = self._chains.get(chain)
        return files.size_bytes if files is not None else 0

    def close(self) -> None:
        """Release files and the lock; no data depends on it."""
        with self._writing:
            for files in self._chains.values():
                files.close()
            self._chains.clear()
            self._unsynced.clear()
            self._recent = _RecentBlocks()
            if self._votes is not None:
                self._votes.close()
                self._votes = None
            if self._lock_fd >= 0:
                close_file(self._lock_fd)
                self._lock_fd = -1

    def _load(self) -> list[SavedChain]:
        chains = self._folder / "chains"
        with guarded(chains, "read"):
            for leftover in chains.glob(f"{_ASIDE}*"):
                shutil.rmtree(leftover)
            sync_folder(chains)  # whoever began a chain may have been killed before it could
        self._votes = VoteLog(self._folder / "votes.log")
        recovered = [self._votes.recovered]
        states = self._votes.states()
        saved = []
        for chain in list_chains(self._folder):
            folder = self._chain_folder(chain)
            genesis = read_genesis(folder)
            self._chains[chain] = files = ChainFiles(folder, self._segment_bytes)
            recovered += files.recovered
            saved.append(SavedChain(genesis, files.height, states.get(chain, b"")))
        self.recovered = tuple(sentence for sentence in recovered if sentence)
        return sorted(saved, key=lambda one: (one.genesis.invitation.created_ms, one.genesis.chain))

    def _begin_chain(self, genesis: Genesis) -> None:
        self._open_votes()
        chain = genesis.chain
        if chain in self._chains:
            return
        folder = self._chain_folder(chain)
        aside = folder.with_name(_ASIDE + chain)
        try:
            with guarded(folder, "written"):
                if not folder.exists():  # it does if an earlier attempt failed behind the rename
                    aside.mkdir()
                    write_durably(aside / GENESIS_FILE, genesis_file(genesis))
                    BlockLog(aside).close()
                    sync_folder(aside)
                    aside.rename(folder)
                sync_folder(folder.parent)
            self._chains[chain] = ChainFiles(folder, self._segment_bytes)
        except StorageError:
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def _append(self, certified: CertifiedBlock) -> None:
        header = certified.block.header
        files = self._written(header.chain, f"block {header.height}")
        size_bytes = files.append(certified)
        if size_bytes:
            self._unsynced[header.chain] = files
            self._recent.put(header.chain, header.height, certified, size_bytes)

    def _written(self, chain: ChainId, what: str) -> ChainFiles:
        files = self._chains.get(chain)
        if files is None:
            raise StorageError(f"{self._folder} has no chain {chain}: {what} is not stored")
        return files

    def _open_votes(self) -> VoteLog:
        if self._votes is None:
            raise StorageError(f"{self._folder} is not open")
        return self._votes

    def _chain_folder(self, chain: ChainId) -> Path:
        return self._folder / "chains" / chain

    def _lock(self) -> None:
        path = self._folder / "lock"
        with guarded(path, "opened"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with guarded(path, "locked"):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(fd, 0)
                os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except StorageError as error:
            owner = ""
            with suppress(OSError):
                owner = os.pread(fd, 20, 0).strip().decode("ascii", "replace")
            close_file(fd)
            if isinstance(error.__cause__, BlockingIOError):
                raise LocalError(
                    f"{self._folder} is in use by another peer (process {owner or 'unknown'}): "
                    f"stop that one first"
                ) from None
            raise
        self._lock_fd = fd


class _RecentBlocks:
    """The decoded blocks used last, up to RECENT_BYTES of their encoded size; for several threads."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[ChainId, int], tuple[CertifiedBlock, int]] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    def get(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        with self._lock:
            found = self._blocks.get((chain, height))
            if found is None:
                return None
            self._blocks.move_to_end((chain, height))
            return found[0]

    def put(self, chain: ChainId, height: int, certified: CertifiedBlock, size_bytes: int) -> None:
        with self._lock:
            _, old_bytes = self._blocks.pop((chain, height), (None, 0))
            self._blocks[chain, height] = (certified, size_bytes)
            self._size_bytes += size_bytes - old_bytes
            while self._size_bytes > RECENT_BYTES:
                _, (_, dropped_bytes) = self._blocks.popitem(last=False)
                self._size_bytes -= dropped_bytes


def _weight_bytes(item: Item) -> int:
    """Return about how much is written for `item`; for what is more than an entry of a log, very much."""
    if isinstance(item, VoteState):
        return len(item.state)
    if isinstance(item, CommitBlock):
        return MEAN_RECORD_BYTES * len(item.certified.block.records)
    return QUICK_BYTES + 1


def archive_of(folder: Path) -> Path:
    """Return where a peer's folder keeps the chains that were put away, laid out as the folder is."""
    return folder / "archive"


def is_chain_id(text: str) -> bool:
    """Say whether `text` has the form of a chain's id."""
    return _CHAIN_NAME.fullmatch(text) is not None


def list_chains(folder: Path) -> list[ChainId]:
    """Return the ids of the chains stored in `folder`, sorted; LocalError if there is no such folder."""
    chains = folder / "chains"
    with guarded(chains, "read"):
        if not folder.is_dir():
            raise LocalError(f"{folder} is not a folder: check the path")
        names = sorted(path.name for path in chains.iterdir()) if chains.is_dir() else []
    return [ChainId(name) for name in names if is_chain_id(name)]


def read_genesis(folder: Path) -> Genesis:
    """Return the genesis in a chain's folder, which the chain's id names; StorageError if damaged.

    Checks what was stored, not the signatures: that is `Genesis.problem`.
    """
    path = folder / GENESIS_FILE
    genesis = read_genesis_file(path)
    if genesis.chain != folder.name:
        raise damaged_file(path, f"it is that of chain {genesis.chain}", _GENESIS_REMEDY)
    return genesis


def read_genesis_file(path: Path) -> Genesis:
    """Return the genesis in the file `path`, of whatever chain; StorageError if it is damaged."""
    payload = read_checked(path, _GENESIS_KIND, _GENESIS_REMEDY)
    try:
        return decode(Genesis, payload)
    except DecodeError as error:
        raise damaged_file(path, str(error), _GENESIS_REMEDY) from None


def genesis_file(genesis: Genesis) -> bytes:
    """Return what a genesis file of `genesis` holds."""
    return checked_bytes(_GENESIS_KIND, encode(genesis))


def read_chain(
    folder: Path, chain: ChainId
) -> tuple[Genesis, Iterator[tuple[int, CertifiedBlock | StorageError]]]:
    """Return the genesis of a chain in `folder` and its blocks as (height, block), without writing.

    If the chain's beginning is pruned they begin with the first block that is there (`first_height`).
    The first block that is damaged, cannot be decoded or is another's comes as (its height,
    StorageError) and ends the blocks. Signatures are for the caller to check. LocalError if there is
    no such chain, StorageError if its genesis is damaged.
    """
    if chain not in list_chains(folder):
        raise LocalError(f"{folder} has no chain '{chain[:80]}'")
    where = folder / "chains" / chain
    return read_genesis(where), _read_blocks(where, chain)


def _read_blocks(folder: Path, chain: ChainId) -> Iterator[tuple[int, CertifiedBlock | StorageError]]:
    for height, found in scan_blocks(folder):
        if isinstance(found, StorageError):
            yield height, found
            return
        try:
            certified = decode_block(folder, chain, height, found)
        except StorageError as error:
            yield height, error
            return
        yield height, certified

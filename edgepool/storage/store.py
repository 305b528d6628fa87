"""The folder in which a peer keeps its chains and votes.

    lock                          held while the folder is open; one process at a time
    chains/<chain id>/genesis.bin 8 bytes kind, CRC-32, the encoded genesis
    chains/<chain id>/blocks.log  see blocks.py
    votes.log                     see votes.py

A chain's folder is written aside as `.new-<chain id>`, synced and renamed, so there is no chain
without its genesis. A sync makes blocks durable before votes: no vote for a height comes back
without the blocks that were written before it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgepool.core.machine import CommitBlock, NewChain, VoteState
from edgepool.errors import DecodeError, LocalError, StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import decode, encode
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis
from edgepool.runtime.ports import SavedChain
from edgepool.storage.blocks import BlockLog, scan_blocks
from edgepool.storage.files import guarded, make_folder, sync_folder, write_durably
from edgepool.storage.votes import VoteLog

RECENT_BYTES = 8 * 1024 * 1024
GENESIS_FILE = "genesis.bin"
_GENESIS_KIND = b"EPGENES1"
_CHAIN_NAME = re.compile(r"[0-9a-f]{40}")
_ASIDE = ".new-"


class FolderStore:
    """Chains and votes in `folder`, which is made if it is missing.

    `write` and `sync` may run in one worker thread while `block` runs on the event loop's; `block`
    never waits for a disk write. After a StorageError nothing half-written is left, and the same
    items may be written again. `recovered` tells, in sentences, what `open` set aside.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._chains: dict[ChainId, BlockLog] = {}
        self._unsynced: dict[ChainId, BlockLog] = {}
        self._votes: VoteLog | None = None
        self._recent = _RecentBlocks()
        self._writing = threading.Lock()
        self._lock_fd = -1
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

    def write(self, items: Iterable[VoteState | NewChain | CommitBlock]) -> None:
        """Write `items` in order; durable only after `sync`. A block that is there already is skipped."""
        with self._writing:
            for item in items:
                if isinstance(item, VoteState):
                    self._open_votes().put(item.chain, item.state)
                elif isinstance(item, NewChain):
                    self._begin_chain(item.genesis)
                else:
                    self._append(item.certified)

    def sync(self) -> None:
        """Make everything written durable, the blocks before the votes."""
        with self._writing:
            while self._unsynced:
                chain, log = next(iter(self._unsynced.items()))
                del self._unsynced[chain]  # a log that cannot be synced drops what was appended
                log.sync()
            self._open_votes().sync()

    def block(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        """Return the block at `height` of `chain`, or None; StorageError if it is damaged."""
        log = self._chains.get(chain)
        if log is None or not 1 <= height <= log.height:
            return None
        recent = self._recent.get(chain, height)
        if recent is not None:
            return recent
        payload = log.read(height)
        certified = decode_block(self._chain_folder(chain), chain, height, payload)
        self._recent.put(chain, height, certified, len(payload))
        return certified

    def close(self) -> None:
        """Release files and the lock; no data depends on it."""
        with self._writing:
            for log in self._chains.values():
                log.close()
            self._chains.clear()
            self._unsynced.clear()
            self._recent = _RecentBlocks()
            if self._votes is not None:
                self._votes.close()
                self._votes = None
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1

    def _load(self) -> list[SavedChain]:
        chains = self._folder / "chains"
        with guarded(chains, "read"):
            for leftover in chains.glob(f"{_ASIDE}*"):
                shutil.rmtree(leftover)
        self._votes = VoteLog(self._folder / "votes.log")
        recovered = [self._votes.recovered]
        states = self._votes.states()
        saved = []
        for chain in list_chains(self._folder):
            folder = self._chain_folder(chain)
            genesis = read_genesis(folder)
            self._chains[chain] = log = BlockLog(folder / "blocks.log")
            recovered.append(log.recovered)
            saved.append(SavedChain(genesis, log.height, states.get(chain, b"")))
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
                    BlockLog(aside / "blocks.log").close()
                    sync_folder(aside)
                    aside.rename(folder)
                sync_folder(folder.parent)
            self._chains[chain] = BlockLog(folder / "blocks.log")
        except StorageError:
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def _append(self, certified: CertifiedBlock) -> None:
        header = certified.block.header
        log = self._chains.get(header.chain)
        if log is None:
            raise StorageError(
                f"{self._folder} has no chain {header.chain}: block {header.height} is not stored"
            )
        payload = encode(certified)
        if header.height <= log.height and log.read(header.height) == payload:
            return
        log.append(header.height, payload)
        self._unsynced[header.chain] = log
        self._recent.put(header.chain, header.height, certified, len(payload))

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
            owner = os.pread(fd, 20, 0).strip().decode("ascii", "replace")
            os.close(fd)
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


def list_chains(folder: Path) -> list[ChainId]:
    """Return the ids of the chains stored in `folder`, sorted; LocalError if there is no such folder."""
    if not folder.is_dir():
        raise LocalError(f"{folder} is not a folder: check the path")
    chains = folder / "chains"
    if not chains.is_dir():
        return []
    with guarded(chains, "read"):
        names = sorted(path.name for path in chains.iterdir())
    return [ChainId(name) for name in names if _CHAIN_NAME.fullmatch(name)]


def read_genesis(folder: Path) -> Genesis:
    """Return the genesis in a chain's folder, which the chain's id names; StorageError if damaged.

    Checks what was stored, not the signatures: that is `Genesis.problem`.
    """
    path = folder / GENESIS_FILE
    genesis = read_genesis_file(path)
    if genesis.chain != folder.name:
        raise _damaged_genesis(path, f"it is that of chain {genesis.chain}")
    return genesis


def read_genesis_file(path: Path) -> Genesis:
    """Return the genesis in the file `path`, of whatever chain; StorageError if it is damaged."""
    with guarded(path, "read"):
        raw = path.read_bytes()
    kind, crc, payload = raw[:8], raw[8:12], raw[12:]
    if kind != _GENESIS_KIND or crc != _crc(payload):
        raise _damaged_genesis(path, "its checksum does not hold")
    try:
        return decode(Genesis, payload)
    except DecodeError as error:
        raise _damaged_genesis(path, str(error)) from None


def genesis_file(genesis: Genesis) -> bytes:
    """Return what a genesis file of `genesis` holds."""
    payload = encode(genesis)
    return _GENESIS_KIND + _crc(payload) + payload


def _damaged_genesis(path: Path, why: str) -> StorageError:
    return StorageError(
        f"{path} is damaged ({why}): restore it from a backup, or copy that of another member of the pool"
    )


def read_chain(
    folder: Path, chain: ChainId
) -> tuple[Genesis, Iterator[tuple[int, CertifiedBlock | StorageError]]]:
    """Return the genesis of a chain in `folder` and its blocks as (height, block), without writing.

    The first block that is damaged, cannot be decoded or is another's comes as (its height,
    StorageError) and ends the blocks. Signatures are for the caller to check. LocalError if there is
    no such chain, StorageError if its genesis is damaged.
    """
    if chain not in list_chains(folder):
        raise LocalError(f"{folder} has no chain '{chain[:80]}'")
    where = folder / "chains" / chain
    return read_genesis(where), _read_blocks(where, chain)


def _read_blocks(folder: Path, chain: ChainId) -> Iterator[tuple[int, CertifiedBlock | StorageError]]:
    for height, found in scan_blocks(folder / "blocks.log"):
        if isinstance(found, StorageError):
            yield height, found
            return
        try:
            certified = decode_block(folder, chain, height, found)
        except StorageError as error:
            yield height, error
            return
        yield height, certified


def decode_block(folder: Path, chain: ChainId, height: int, payload: bytes) -> CertifiedBlock:
    """Return the block that was stored as block `height` of `chain`; StorageError if it is no such."""
    try:
        certified = decode(CertifiedBlock, payload)
    except DecodeError as error:
        raise StorageError(f"{folder}: block {height} is damaged ({error})") from None
    header = certified.block.header
    if header.chain != chain or header.height != height:
        raise StorageError(
            f"{folder}: block {height} is damaged "
            f"(block {header.height} of chain {header.chain} is in its place)"
        )
    return certified


def _crc(payload: bytes) -> bytes:
    return zlib.crc32(payload).to_bytes(4, "little")

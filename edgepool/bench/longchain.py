"""A long chain as one of its members keeps it: state and store, without links. Run as a helper process.

Blocks are judged, entered and stored as a member does it, and fit each other. Signatures of records are
made up, since neither state nor store looks at them and a million of them would take minutes.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter

from edgepool.bench.material import NETWORK, TIME_MS, make_pool, offer, task_bodies
from edgepool.bench.processes import Answer, serve
from edgepool.config import Limits
from edgepool.core.ledger.proof import path_in
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import CommitBlock, NewChain, Persist, SaveSnapshot, VoteState
from edgepool.core.pruning import Pruner
from edgepool.core.replay import load_state
from edgepool.errors import LocalError
from edgepool.model.beacon import BeaconChain
from edgepool.model.block import Block, CertifiedBlock, Header, records_root
from edgepool.model.crypto import SIGNATURE_BYTES, sha256
from edgepool.model.ids import PeerId
from edgepool.model.record import Body, Record, SignedRecord
from edgepool.model.vote import Certificate, quorum
from edgepool.runtime.collector import paused_collector
from edgepool.storage.index import RecordIndex
from edgepool.storage.store import FolderStore

MEMBERS = 4
PARTS = 8_192
"""So many parts have their data offered, each in version after version."""
VOTE_STATE_BYTES = 400
"""What a member stores with a vote, about, beside the block that it is bound to."""
GO_ON_S = 5.0
_SEED = 7


class Keeper:
    """One chain in a folder of its own, that its keeper makes longer."""

    def __init__(self, folder: Path, block_records: int) -> None:
        self.folder = folder
        self.block_records = block_records
        self._beacons = [BeaconChain(sha256(b"edgepool bench beacon %d" % one)) for one in range(MEMBERS)]
        self._pool = make_pool(MEMBERS, [beacon.tip for beacon in self._beacons])
        self.chain = self._pool.genesis.chain
        self.store = FolderStore(folder)
        self.state = ChainState(self._pool.genesis)
        self.records = 0
        self._pruner: Pruner | None = None
        self._snapshots = (0, 0)
        self._tasks = self._records_of_tasks()

    def begin(self) -> None:
        """Make the chain."""
        self.store.open()
        self.store.write([NewChain(self._pool.genesis)])
        self.store.sync()

    def reopen(self) -> dict[str, float]:
        """Open the chain that another process has left; return what that took, in ms.

        No block is in memory then, however many it took to load the state.
        """
        start_s = perf_counter()
        (saved,) = self.store.open()
        opened_s = perf_counter()
        with paused_collector():
            self.state, _ = load_state(self._pool.genesis, self.store, saved.height)
        loaded_s = perf_counter()
        snapshot = self.store.snapshot(self.chain)
        self.store.close()
        self.store.open()
        return {
            "reopen_ms": (opened_s - start_s) * 1e3,
            "load_state_ms": (loaded_s - opened_s) * 1e3,
            "replayed_records": self.state.records_above(snapshot.height if snapshot is not None else 0),
        }

    def commit(self) -> float:
        """Make the next block; return how long judging, entering and storing it took, in seconds."""
        height = self.state.height + 1
        bodies = list(islice(self._tasks, self.block_records))
        records = tuple(
            SignedRecord(
                Record(NETWORK, self.chain, author, TIME_MS + self.records + place, place, height - 1, body),
                sha256(b"%d %d" % (height, place)) * (SIGNATURE_BYTES // 32),
            )
            for place, (author, body) in enumerate(bodies)
        )
        self.records += len(records)
        start_s = perf_counter()
        self._enter(height, records)
        took_s = perf_counter() - start_s
        self._shrink()
        return took_s

    def age(self) -> None:
        """Commit blocks until the next snapshot is near: a restart has about the most to replay then."""
        before, last = self._snapshots
        while self.state.height < last + (last - before) * 3 // 4:
            self.commit()

    def vote(self, block_bytes: int) -> None:
        """Store a prevote, in its turn with its own proposal, and a precommit with the block it binds to."""
        own = self.state.height % MEMBERS == 0
        for kept_bytes in (block_bytes if own else 0, block_bytes):
            self.store.write([VoteState(self.chain, bytes(VOTE_STATE_BYTES + kept_bytes))])
            self.store.sync()

    def look_up(self, number: int) -> float:
        """Find the offer of a part and its proof, as for a query; return how long that took, in seconds."""
        key = offer(_part(number), 1).key
        start_s = perf_counter()
        found = self.state.offers(key)
        certified = self.store.block(self.chain, found[-1].ref.height) if found else None
        if certified is None:
            raise LocalError(f"the benchmark's own offer of {key.part} was not found")
        path_in(certified.block, found[-1].ref.index)
        return perf_counter() - start_s

    def chain_bytes(self) -> int:
        """Return how many bytes the blocks of the chain have."""
        return self.store.size_bytes(self.chain)

    def size_bytes(self) -> int:
        """Return how many bytes all files of this folder have."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def _enter(self, height: int, records: tuple[SignedRecord, ...]) -> None:
        state = self.state
        draft = state.draft()
        for signed in records:
            problem = draft.add(signed)
            if problem:
                raise LocalError(f"the benchmark's own record may not stand: {problem}")
        packer = height % MEMBERS
        member = state.members[packer]
        header = Header(
            NETWORK,
            self.chain,
            height,
            0,
            state.last_block_id,
            state.members_hash,
            state.next_members_hash,
            state.root,
            records_root(records),
            len(records),
            member,
            self._beacons[packer].reveal(state.reveals[member]),
            TIME_MS,
        )
        block = Block(header, records)
        votes = tuple((one, bytes(SIGNATURE_BYTES)) for one in range(quorum(MEMBERS)))
        state.apply(block)
        self.store.write([CommitBlock(CertifiedBlock(block, Certificate(height, 0, header.id, votes)))])
        self.store.sync()

    def _shrink(self) -> None:
        """Take a snapshot and drop blocks when a peer does."""
        if self._pruner is None:
            self._pruner = Pruner(self.store, self.chain, Limits().chain_bytes)
        for effect in self._pruner.after_block(self.state, ()):
            assert isinstance(effect, Persist)
            self.store.write([effect.item])
            if isinstance(effect.item, SaveSnapshot):
                self._snapshots = (self._snapshots[1], effect.item.height)
        self.store.sync()

    def _records_of_tasks(self) -> Iterator[tuple[PeerId, Body]]:
        """Yield author and body of one record after the other, task by task, without end."""
        number = 0
        while True:
            station = self._pool.signers[number % MEMBERS]
            *steps, _ = task_bodies(f"T-{number:07}", station)
            for place, body in enumerate((*steps, offer(_part(number), 1 + number // PARTS))):
                yield (self._pool.signers[0] if place == 0 else station).peer, body
            number += 1


class LongChain:
    """A long chain and a fresh one beside it, and what is measured on both in turn."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._long: Keeper | None = None
        self._fresh: Keeper | None = None

    async def begin(self, block_records: int) -> int:
        """Begin both chains; return the id of this process."""
        for keeper in self._open(block_records):
            keeper.begin()
        return os.getpid()

    async def reopen(self, block_records: int) -> dict[str, float]:
        """Open both again, as a process that was killed has left them; return what the long one took."""
        long, fresh = self._open(block_records)
        took = long.reopen()
        fresh.reopen()
        return took

    async def grow(self, blocks: int) -> int:
        """Commit so many blocks to the long chain; return how many records it has."""
        long, _ = self._both()
        for _ in range(blocks):
            long.commit()
            await asyncio.sleep(0)  # so that whoever asked can give up
        return long.records

    async def age(self) -> int:
        """Commit blocks to the long chain until its next snapshot is near; return how many records it has."""
        long, _ = self._both()
        long.age()
        return long.records

    async def commits(self, rounds: int) -> dict[str, float]:
        """Commit blocks to both chains in turn; return the medians, in ms."""
        long, fresh = self._both()
        return _in_turn(rounds, 1e3, lambda _: long.commit(), lambda _: fresh.commit())

    async def look_ups(self, rounds: int) -> dict[str, float]:
        """Look up offers in both chains in turn; return the medians, in us.

        Each reads a block that was not read since its chain was opened.
        """
        long, fresh = self._both()
        old = _one_in_each_block(long, rounds)
        new = _one_in_each_block(fresh, rounds)
        return _in_turn(
            min(len(old), len(new)),
            1e6,
            lambda turn: long.look_up(old[turn]),
            lambda turn: fresh.look_up(new[turn]),
        )

    async def finds(self, rounds: int) -> dict[str, float]:
        """Find records of both chains by id, in the index, in turn; return the medians in us."""
        long, fresh = self._both()
        draw = random.Random(_SEED)
        start_s = perf_counter()
        with RecordIndex(long.folder) as old:
            indexed_s = perf_counter() - start_s
            with RecordIndex(fresh.folder) as new:

                def find(keeper: Keeper, index: RecordIndex) -> float:
                    certified = keeper.store.block(keeper.chain, draw.randint(1, keeper.state.height))
                    assert certified is not None
                    wanted = draw.choice(certified.block.records)
                    start_s = perf_counter()
                    (found,) = index.find_id(wanted.id.hex())
                    took_s = perf_counter() - start_s
                    assert found.signed == wanted, "another record was found"
                    return took_s

                took = _in_turn(rounds, 1e6, lambda _: find(long, old), lambda _: find(fresh, new))
        return {**took, "index_s": indexed_s}

    async def wear(self, block_records: int, rounds: int) -> dict[str, float]:
        """Commit blocks to a chain of its own, with their votes; return bytes for each record."""
        keeper = Keeper(self._folder / f"wear-{block_records}", block_records)
        keeper.begin()
        try:
            empty_bytes = keeper.chain_bytes()
            keeper.commit()
            files = keeper.chain_bytes()
            block_bytes = files - empty_bytes
            written, before = _written_bytes(), keeper.records
            for _ in range(rounds):
                keeper.vote(block_bytes)
                keeper.commit()
            records = keeper.records - before
            return {
                "files": (keeper.chain_bytes() - files) / records,
                "written": (_written_bytes() - written) / records,
            }
        finally:
            keeper.store.close()

    async def size_bytes(self) -> int:
        """Return how many bytes the files of the long chain have."""
        return self._both()[0].size_bytes()

    async def go_on(self) -> None:
        """Commit blocks until somebody kills this process, as they should soon."""
        end_s = perf_counter() + GO_ON_S
        while perf_counter() < end_s:
            self._both()[0].commit()
            await asyncio.sleep(0)

    async def end(self) -> None:
        """Close what is open."""
        for keeper in (self._long, self._fresh):
            if keeper is not None:
                keeper.store.close()

    def _open(self, block_records: int) -> tuple[Keeper, Keeper]:
        self._long = Keeper(self._folder / "long", block_records)
        self._fresh = Keeper(self._folder / "fresh", block_records)
        return self._long, self._fresh

    def _both(self) -> tuple[Keeper, Keeper]:
        assert self._long is not None
        assert self._fresh is not None
        return self._long, self._fresh


def _one_in_each_block(keeper: Keeper, most: int) -> list[int]:
    """Return parts whose newest offers are in different blocks, drawn from all of the chain's."""
    blocks: dict[int, int] = {}
    numbers = list(range(PARTS))
    random.Random(_SEED).shuffle(numbers)
    for number in numbers:
        found = keeper.state.offers(offer(_part(number), 1).key)
        if found:
            blocks.setdefault(found[-1].ref.height, number)
    return list(blocks.values())[:most]


def _part(number: int) -> str:
    return f"PTVA10212-{number % PARTS:05}"


def _in_turn(
    rounds: int, unit: float, full: Callable[[int], float], empty: Callable[[int], float]
) -> dict[str, float]:
    """Return the medians of both, and of their ratios, in rounds that take turns."""
    pairs = [(full(turn), empty(turn)) for turn in range(rounds)]
    return {
        "full": median(one for one, _ in pairs) * unit,
        "empty": median(other for _, other in pairs) * unit,
        "ratio": median(one for one, _ in pairs) / median(other for _, other in pairs),
    }


def _written_bytes() -> int:
    """Return what this process has had the system write to disks; 0 where that is not told."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes")), 0)


def _answers(folder: Path) -> dict[str, Answer]:
    chains = LongChain(folder)
    names = ("begin", "reopen", "grow", "age", "commits", "look_ups", "finds", "wear", "size_bytes")
    return {name: getattr(chains, name) for name in (*names, "go_on", "end")}


if __name__ == "__main__":
    serve(_answers)

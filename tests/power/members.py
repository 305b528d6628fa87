"""Whole pools on simulated disks: members store through the real FolderStore, and lose power.

    python tests/power/members.py --seeds 1000 --json

The worlds, plans and the judge are those of edgepool.sim; what is new is under them. Each member has a disk
of its own, whose power goes in the middle of any call that a store makes, also while it is opened again; now
and then only its process is killed, or one call fails. So the judge's rules (no member signs twice, keeps
its locks, loses nothing, and the pool goes on) are asked of the bytes on the disk.
"""

from __future__ import annotations

import argparse
import errno
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import cast
from unittest.mock import patch

from disk import Disk, PowerCut
from diskcalls import root_of
from rig import SEGMENT_BYTES, SYNCS, small_sizes
from telling import tell

from edgepool.core.machine import (
    CommitBlock,
    Done,
    Effect,
    Item,
    KeptRecord,
    NewChain,
    Notice,
    Prune,
    RecordRef,
    SavedSnapshot,
    SaveSnapshot,
)
from edgepool.errors import StorageError
from edgepool.model.block import CertifiedBlock
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis
from edgepool.runtime.ports import SavedChain
from edgepool.sim import run as run_module
from edgepool.sim.chaos import Chaos
from edgepool.sim.checkers import Violation
from edgepool.sim.faults import SimStore
from edgepool.sim.plan import Plan, make_plan, parse_kinds
from edgepool.sim.run import Result, run_plan
from edgepool.sim.world import SimPeer
from edgepool.storage.kept import kept_records
from edgepool.storage.memory import MemoryStore
from edgepool.storage.store import FolderStore

FAULTS = "key,delay,loss,reordering,reset,crash,persist-crash,blackout,disk,slow-disk"
CUTS_A_STORE = 0.08
"""How often a store is to end in a cut, besides the crashes of the plan."""
TROUBLES_A_STORE = 0.004
DOWN_MS = 400
ITEM_BYTES = 500
"""How much room on a full disk the plan's item is."""


@dataclass(slots=True)
class Report:
    """What a run of many worlds came to."""

    seeds: int = 0
    cuts: int = 0
    kills: int = 0
    troubles: int = 0
    blocks: int = 0
    pruned: int = 0
    acknowledged: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class DiskStore(SimStore):
    """A FolderStore on a disk of its own, with the face of the simulator's stores."""

    def __init__(self, draw: Random, report: Report, lies: frozenset[str]) -> None:
        self.disk = Disk(draw)
        self.disk.lies = lies
        self.disk.__enter__()
        super().__init__()
        self._draw = draw
        self._report = report
        self._items: list[Item] = []
        self._heights: dict[ChainId, tuple[Genesis, int]] = {}
        self._promised: dict[ChainId, Genesis] = {}
        self._open = False
        self._store = self._folder_store()

    @property
    def room(self) -> int | None:
        return self._room

    @room.setter
    def room(self, items: int | None) -> None:
        self._room = items
        self.disk.room_bytes = None if items is None else items * ITEM_BYTES

    @property
    def unsynced(self) -> tuple[Item, ...]:
        return tuple(self._items)

    def open(self) -> list[SavedChain]:
        """Open the store, however often the power goes meanwhile; if it is open, tell of its chains."""
        if self._open:
            return [SavedChain(genesis, height, b"") for genesis, height in self._heights.values()]
        saved = None
        while saved is None:
            if self._heights and self._draw.random() < 0.2:
                self.disk.dies_at = self.disk.calls + self._draw.randrange(1, 40)
            try:
                saved = self._store.open()
            except PowerCut:
                self.crash()
        self.disk.dies_at = 0
        self._open = True
        self._heights = {one.genesis.chain: (one.genesis, one.height) for one in saved}
        if gone := self._promised.keys() - self._heights.keys():
            raise Violation("durability", f"whole chains are gone: {sorted(gone)}")
        return saved

    def write(self, items: Iterable[Item]) -> None:
        items = list(items)
        self._items += items
        self._store.write(items)
        for item in items:
            if isinstance(item, NewChain):
                self._heights.setdefault(item.genesis.chain, (item.genesis, 0))
            elif isinstance(item, Prune):
                self._report.pruned += 1
            elif isinstance(item, SaveSnapshot):
                genesis, height = self._heights[item.chain]
                self._heights[item.chain] = genesis, max(height, item.height)
            elif isinstance(item, CommitBlock):
                header = item.certified.block.header
                genesis, height = self._heights[header.chain]
                self._heights[header.chain] = genesis, max(height, header.height)

    def sync(self) -> None:
        self._store.sync()
        self._items.clear()
        self._promised = {chain: genesis for chain, (genesis, _) in self._heights.items()}

    def crash(self, kept: int = 0) -> None:
        """Lose the power, or only the process."""
        if self._draw.random() < 0.2:
            self.disk.kill()
            self._report.kills += 1
        else:
            self.disk.cut()
            self._report.cuts += 1
        self.disk.trouble = None
        self._items.clear()
        self._open = False
        self._store = self._folder_store()

    def block(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        return self._store.block(chain, height)

    def record_ids(self, chain: ChainId, height: int) -> tuple[bytes, ...] | None:
        return self._store.record_ids(chain, height)

    def snapshot(self, chain: ChainId) -> SavedSnapshot | None:
        return self._store.snapshot(chain)

    def kept(self, chain: ChainId, height: int, index: int) -> KeptRecord | None:
        """Return a record that must stay provable: kept, or in a block that has not been dropped yet."""
        kept, whole = self._store.kept(chain, height, index), self._store.block(chain, height)
        return kept if kept is not None or whole is None else kept_records(whole, [index])[0]

    def size_bytes(self, chain: ChainId) -> int:
        return self._store.size_bytes(chain)

    def _folder_store(self) -> FolderStore:
        return FolderStore(cast(Path, root_of(self.disk) / "peer"), SEGMENT_BYTES)


class PowerWorld(Chaos):
    """A world of the fault simulator whose members' disks lose power in the middle of calls."""

    def __init__(self, plan: Plan, report: Report, lies: frozenset[str]) -> None:
        self._report = report
        self._lies = lies
        self._power = Random(f"{plan.seed}/power")
        self._cutting = False
        super().__init__(plan)

    def work(self, working: bool) -> None:
        """While the pool shows that it goes on, its power stays on."""
        super().work(working)
        self._cutting = working

    def _new_store(self) -> MemoryStore:
        return DiskStore(Random(self._power.getrandbits(48)), self._report, self._lies)

    def _store(self, peer: SimPeer, items: list[Item]) -> bool:
        disk, draw = cast(DiskStore, peer.store).disk, self._power
        if not self._cutting:
            pass
        elif draw.random() < CUTS_A_STORE:
            disk.dies_at = disk.calls + draw.randrange(1, 12)
            disk.dies_in = SYNCS if draw.random() < 0.5 else ()
        elif draw.random() < TROUBLES_A_STORE:
            self._report.troubles += 1
            numbers = iter((0,) * draw.randrange(8))
            disk.trouble = lambda call: next(numbers, errno.EIO)
        try:
            return super()._store(peer, items)
        except (PowerCut, StorageError):
            self._stop(peer)
            return False
        finally:
            disk.dies_at, disk.dies_in, disk.trouble = 0, (), None

    def _write(self, peer: SimPeer, items: list[Item]) -> bool:
        try:
            return super()._write(peer, items)
        except PowerCut:
            self._stop(peer)
            return False

    def _written(self, peer: SimPeer, life: int, items: list[Item], effects: list[Effect]) -> None:
        try:
            super()._written(peer, life, items, effects)
        except (PowerCut, StorageError):
            self._stop(peer)

    def _stop(self, peer: SimPeer) -> None:
        if peer.up:
            self.faults.stop(peer, 0, 1 + self._power.randrange(DOWN_MS))

    def _tell(self, peer: SimPeer, notice: Notice) -> None:
        if isinstance(notice, Done) and isinstance(notice.result, RecordRef):
            self._report.acknowledged += 1
        super()._tell(peer, notice)


def run_world(
    seed: int,
    report: Report,
    heights: int = 30,
    members: int = 4,
    lies: frozenset[str] = frozenset(),
    prunes: bool = False,
) -> Result:
    """Run one pool to that height, and count what happened in `report`."""
    plan = make_plan(seed, heights, members, parse_kinds(FAULTS + ",prune" if prunes else FAULTS))

    def world(plan: Plan) -> PowerWorld:
        return PowerWorld(plan, report, lies)

    with small_sizes(seed), patch.object(run_module, "Chaos", world):
        result = run_plan(plan)
    report.seeds += 1
    report.blocks += result.blocks
    report.violations += [f"seed {seed}: {violation}" for violation in result.violations]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Cut the power of pool members on simulated disks.")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--heights", type=int, default=30)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--prunes", action="store_true", help="chains drop their beginnings")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = Report()
    began = time.perf_counter()
    for seed in range(options.seed, options.seed + options.seeds):
        run_world(seed, report, options.heights, options.members, prunes=options.prunes)
    report.seconds = round(time.perf_counter() - began, 1)
    return tell(
        report,
        options.json,
        f"{report.seeds} pools lost power {report.cuts} times, {report.kills} processes were killed and "
        f"{report.troubles} calls failed in {report.seconds} s: {report.blocks} blocks, "
        f"{report.acknowledged} acknowledged records, {len(report.violations)} violations",
    )


if __name__ == "__main__":
    sys.exit(main())

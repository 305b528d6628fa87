"""Power cuts by the thousand: the real FolderStore on a simulated disk, judged by a model of what it owes.

    python tests/power/rig.py --cuts 5000000 --seed 1 --json

Each disk goes through a series of lives. A life opens the store, is compared with what the model says must
and may be there, writes batches as the loop does (chains, blocks, votes, snapshots, then one sync), and ends
in the middle of any call: the power goes, or the process is killed and its successor finds what the
system remembers. In some lives a call fails (EIO, ENOSPC) or the disk fills up.

What a store owes:
* what was acknowledged (its sync has returned, or an opening has told of it) is there, in order;
* what is there was written, whole, by somebody who meant it to be there;
* a vote state is never older than the last acknowledged one, and the blocks written before it are there;
* opening succeeds whenever the disk works, and every failure is one StorageError with one sentence.
"""

from __future__ import annotations

import argparse
import errno
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random
from typing import cast
from unittest.mock import patch

from disk import Disk, PowerCut
from diskcalls import installed, root_of
from ledger_model import Ledger, Loss
from telling import tell

from edgepool.errors import StorageError
from edgepool.storage.store import FolderStore

CUTS_A_DISK = 16
CALLS_A_LIFE = 300
SMALL = (("votes", "COMPACT_BYTES", 4_000), ("store", "RECENT_BYTES", 2_000), ("log", "SEARCH_BYTES", 700))
"""Sizes of the product that are made small, so that a short life meets what they are there for."""
SEGMENT_BYTES = 6_000
FULL = ("create", "pwrite", "fsync", "fdatasync", "mkdir", "rename")
"""The calls that can say that the disk is full."""
SYNCS = ("fsync", "fdatasync", "fsync of a folder")


@dataclass(slots=True)
class Report:
    """What a run came to.

    `troubles` are failed calls, `torn` unfinished writes that were set aside, `snapshots` and `adopted`
    are those that were attempted, `pruned` counts chains that were found without their beginning.
    """

    seed: int
    cuts: int = 0
    kills: int = 0
    troubles: int = 0
    acknowledged: int = 0
    lost: int = 0
    torn: int = 0
    snapshots: int = 0
    adopted: int = 0
    pruned: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Rig:
    """Runs disks one after the other; `lies` are calls that do nothing and report success."""

    def __init__(self, seed: int, lies: frozenset[str] = frozenset()) -> None:
        self.report = Report(seed)
        self._random = Random(f"{seed}/rig")
        self._lies = lies

    def run(self, cuts: int, patience: int) -> Report:
        """Go on until there were so many cuts, or `patience` violations."""
        report = self.report
        began = time.perf_counter()
        while report.cuts < cuts and len(report.violations) < patience:
            seed = self._random.getrandbits(48)
            try:
                self._disk(Random(seed), cuts)
            except Loss as loss:
                report.lost += loss.count
                report.violations.append(f"disk {seed}: {loss}")
            except Exception as leak:
                report.violations.append(f"disk {seed}: {type(leak).__name__} came out: {leak}")
        report.seconds = round(time.perf_counter() - began, 1)
        return report

    def replay(self, seed: int) -> None:
        """Run the one disk with this seed; raises Loss."""
        self._disk(Random(seed), sys.maxsize)

    def _disk(self, draw: Random, cuts: int) -> None:
        ledger = Ledger(draw)
        with Disk(draw) as disk:
            disk.lies = self._lies
            last = min(cuts, self.report.cuts + CUTS_A_DISK)
            while self.report.cuts < last:
                life = _Life(disk, ledger, draw, self.report)
                life.live()
                if draw.random() < (0.5 if life.troubled else 0.15):
                    disk.kill()
                    self.report.kills += 1
                else:
                    disk.cut()
                    self.report.cuts += 1
        self.report.acknowledged += ledger.acknowledgements
        for name, count in ledger.seen.items():
            setattr(self.report, name, getattr(self.report, name) + count)


class _Life:
    """From one opening of the store to its end."""

    def __init__(self, disk: Disk, ledger: Ledger, draw: Random, report: Report) -> None:
        self._disk = disk
        self._ledger = ledger
        self._draw = draw
        self._report = report
        self.troubled = False
        self._store = FolderStore(cast(Path, root_of(disk) / "peer"), SEGMENT_BYTES)

    def live(self) -> None:
        draw, disk = self._draw, self._disk
        if draw.random() < 0.2:
            self._plan_trouble()
        disk.dies_at = disk.calls + draw.randrange(1, 60 if draw.random() < 0.15 else CALLS_A_LIFE)
        disk.dies_in = SYNCS if draw.random() < 0.6 else ()
        try:
            self._open()
        except PowerCut:
            pass
        finally:
            disk.trouble, disk.room_bytes = None, None

    def _open(self) -> None:
        try:
            saved = self._store.open()
        except StorageError as error:
            self._expected(error)
            return
        self._report.torn += len(self._store.recovered)
        trouble, self._disk.trouble = self._disk.trouble, None  # or reading it may fail
        self._ledger.check(self._store, saved)
        self._disk.trouble = trouble
        while self._batch():
            pass

    def _batch(self) -> bool:
        """Write one batch; False if that is the end of this life."""
        items = self._ledger.batch()
        try:
            self._write(items)
        except StorageError as error:
            self._expected(error)
            self._disk.trouble, self._disk.room_bytes = None, None
            if self._draw.random() < 0.5:
                return False
            try:
                self._write(items)  # the same items may be written again
            except StorageError as again:
                self._expected(again)
                return False
        self._ledger.acknowledge()
        return True

    def _write(self, items: list) -> None:
        split = self._draw.randrange(len(items) + 1)
        for part in (items[:split], items[split:]):
            if part:
                self._store.write(part)
        self._store.sync()

    # --- trouble ------------------------------------------------------------------------------------

    def _plan_trouble(self) -> None:
        """Let one call fail, or all from one on; or let the disk be full soon."""
        draw, disk = self._draw, self._disk
        self.troubled = True
        if draw.random() < 0.3:
            disk.room_bytes = draw.randrange(6_000)
            return
        wait = draw.randrange(CALLS_A_LIFE // 2)
        number = errno.EIO if draw.random() < 0.6 else errno.ENOSPC
        calls = draw.choice((SYNCS, FULL, ()))
        lasts, deadly = draw.random() < 0.3, draw.random() < 0.3
        failed = False

        def trouble(call: str) -> int:
            nonlocal wait, failed
            wait -= 1
            if wait > 0 or (failed and not lasts) or (calls and call not in calls and not failed):
                return 0
            if number == errno.ENOSPC and call not in FULL:
                return 0
            if deadly and not failed:
                disk.dies_at, disk.dies_in = disk.calls + draw.randrange(1, 3), ()
            failed = True
            self._report.troubles += 1
            return number

        disk.trouble = trouble

    def _expected(self, error: StorageError) -> None:
        """A failure must have a cause, and be told in one sentence that names the place."""
        text = str(error)
        if not self.troubled:
            raise Loss(f"the disk works, but: {text}") from error
        if "\n" in text or self._disk.name not in text:
            raise Loss(f"this is no sentence for people: {text!r}") from error


@contextmanager
def small_sizes(seed: object) -> Iterator[None]:
    """The simulated disk is installed, and the product's sizes are small."""
    with ExitStack() as stack:
        stack.enter_context(installed(seed))
        for module, name, value in SMALL:
            owner = import_module(f"edgepool.storage.{module}")
            stack.enter_context(patch.object(owner, name, value))
        yield


def run(cuts: int, seed: int, lies: frozenset[str] = frozenset(), patience: int = 10) -> Report:
    """Make so many power cuts from `seed`, or until there are `patience` violations."""
    with small_sizes(seed):
        return Rig(seed, lies).run(cuts, patience)


def main() -> int:
    parser = argparse.ArgumentParser(description="Cut the power of a store on a simulated disk, many times.")
    parser.add_argument("--cuts", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lies", default="", help="calls that do nothing, such as fdatasync,fsync")
    parser.add_argument("--disk", type=int, help="only the disk with this seed, which a violation names")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lies = frozenset(filter(None, options.lies.split(",")))
    if options.disk is not None:
        with small_sizes(options.seed):
            Rig(options.seed, lies).replay(options.disk)
        return 0
    report = run(options.cuts, options.seed, lies)
    return tell(
        report,
        options.json,
        f"{report.cuts} power cuts, {report.kills} kills and {report.troubles} failed calls in "
        f"{report.seconds} s: of {report.acknowledged} acknowledged items {report.lost} were lost; "
        f"{report.torn} unfinished writes were set aside",
    )


if __name__ == "__main__":
    sys.exit(main())

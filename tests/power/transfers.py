"""kill -9 of either side of a transfer: two holders, one requester, killed at random points.

    python tests/power/transfers.py --kills 100 --json

The peers are processes of `edgepool run` with folders on the disk. Every time the requester fetches the same
data from scratch, somebody is killed meanwhile, and started again. In the end every byte must be right,
nothing may have been visible before it was whole, what was on the requester's disk may not be fetched
again, and what it had been told it had may be missing there by no more than what was in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from kill import START_S, Validator, Wrong, make_folders
from telling import tell

from edgepool.bench.transfer.material import MIB, make_data
from edgepool.errors import EdgepoolError
from edgepool.gateway.client import ApiClient
from edgepool.model.crypto import data_hash
from edgepool.model.twin import chunk_bytes_for

KEY = "PART-1/model"
POOL = "cell"
FETCH_S = 120.0
SETTLE_S = 60.0
IN_FLIGHT_BYTES = 32 * MIB
"""More than that may not be lost between the requester's socket and its disk."""


@dataclass(slots=True)
class Report:
    """What a run came to; `kept` and `again` are bytes that a killed requester had on disk, and got after."""

    seed: int
    kills: int = 0
    holders: int = 0
    requesters: int = 0
    over: int = 0
    kept: int = 0
    again: int = 0
    seconds: float = 0.0
    lost: int = 0
    violations: list[str] = field(default_factory=list)


class Plant:
    """A coordinator, two holders of the same data, and a requester, in `folder`."""

    def __init__(self, folder: Path, report: Report, size_bytes: int) -> None:
        self.report = report
        self._cloud, *self.holders, self.requester = make_folders(folder)
        self._data = make_data(folder / "data.bin", size_bytes, report.seed)
        self._out = folder / "fetched.bin"
        self._root = ""
        self._chunks = _chunks(self._data.path)
        self._told_bytes = 0

    async def run(self, kills: int, draw: Random) -> None:
        """Start all, kill as often, end all."""
        everybody = (self._cloud, *self.holders, self.requester)
        for one in everybody:
            one.start()
        try:
            for one in everybody:
                await one.answers()
            for holder in self.holders:
                await self._publish(holder)
            await self._eventually_fetch()
            self._check()
            while self.report.kills < kills:
                await self._forget()
                await self._kill_one(draw, draw.uniform(-0.1, 1.1))
                self._check()
        finally:
            for one in everybody:
                one.end()

    async def _publish(self, holder: Validator) -> None:
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            try:
                async with ApiClient.of(holder.folder) as client:
                    told = await client.publish(KEY, self._data.path, version=1, chain=POOL)
                self._root = told["root"]
                return
            except EdgepoolError as error:  # the pool is only being formed
                if time.monotonic() > deadline_s:
                    raise Wrong(f"{holder.name} cannot publish: {error}") from None
            await asyncio.sleep(0.1)

    async def _fetch(self) -> None:
        """Have the requester fetch; note what it says that it has."""

        def progress(done_bytes: int, size_bytes: int, _: int) -> None:
            self._told_bytes = done_bytes

        self._told_bytes = 0
        async with ApiClient.of(self.requester.folder) as client:
            await client.fetch(KEY, self._out, version=1, timeout_ms=int(FETCH_S * 1000), progress=progress)

    async def _kill_one(self, draw: Random, share: float) -> None:
        """Kill somebody once that share of the data has come, and see it through.

        Below 0 nothing has come yet, and above 1 all has, but it is not yet to be seen.
        """
        victim = draw.choice((*self.holders, self.requester, self.requester))
        fetching = asyncio.create_task(self._fetch())
        if share <= 0:
            await asyncio.sleep(draw.uniform(0, 0.05))
        while not fetching.done() and self._came_bytes() < min(1.0, share) * self._data.size_bytes:
            await asyncio.wait({fetching}, timeout=0.001)
        if fetching.done():
            await fetching
            self.report.over += 1
            return
        victim.kill()
        self.report.kills += 1
        if victim is self.requester:
            self.report.requesters += 1
            with suppress(EdgepoolError):
                await fetching
            await self._fetch_the_rest()
            return
        self.report.holders += 1
        try:
            await fetching
        except EdgepoolError as error:
            raise Wrong(f"{victim.name} was killed, and the other holder did not help: {error}") from None
        finally:
            victim.start()
        await victim.answers()

    async def _fetch_the_rest(self) -> None:
        """Start the requester again, and have it fetch what it lacks, and no more."""
        told_bytes, size_bytes = self._told_bytes, self._data.size_bytes
        kept_bytes = self._on_disk()
        if told_bytes - kept_bytes > IN_FLIGHT_BYTES:
            raise Wrong(f"{told_bytes} bytes were said to be there, {kept_bytes} are on the disk")
        self.requester.start()
        await self.requester.answers()
        await self._eventually_fetch()
        async with ApiClient.of(self.requester.folder) as client:
            again_bytes = (await client.status()).totals.bytes_received
        self.report.kept += kept_bytes
        self.report.again += again_bytes
        if again_bytes > size_bytes - kept_bytes:
            raise Wrong(f"{again_bytes} bytes came though {kept_bytes} of {size_bytes} were on the disk")

    async def _eventually_fetch(self) -> None:
        """Fetch; a peer that has just started may have to wait for its pool."""
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            try:
                await self._fetch()
                return
            except EdgepoolError as error:
                if time.monotonic() > deadline_s:
                    raise Wrong(f"the requester cannot fetch any more: {error}") from None
            await asyncio.sleep(0.1)

    async def _forget(self) -> None:
        """Let the requester drop what it has fetched."""
        self._out.unlink(missing_ok=True)
        deadline_s = time.monotonic() + START_S
        async with ApiClient.of(self.requester.folder) as client:
            while await client.stored():
                with suppress(EdgepoolError):
                    await client.evict(self._root)
                    return
                if time.monotonic() > deadline_s:
                    raise Wrong("the requester does not drop what it has fetched")
                await asyncio.sleep(0.1)

    # --- what is on the disk ------------------------------------------------------------------------

    def _came_bytes(self) -> int:
        """Return how far the requester's file reaches."""
        for name in ("part", "data"):
            with suppress(OSError):
                return (self.requester.folder / "blobs" / f"{self._root}.{name}").stat().st_size
        return 0

    def _on_disk(self) -> int:
        """Return how many bytes of right chunks the requester has; Wrong if what is visible is not whole."""
        for whole in self.requester.folder.rglob(f"{self._root}.data"):
            if whole.read_bytes() != self._data.path.read_bytes():
                raise Wrong("data was visible before it was whole")
            return self._data.size_bytes
        kept_bytes = 0
        for part in self.requester.folder.rglob(f"{self._root}.part"):
            for mine, right in zip(_chunks(part), self._chunks, strict=False):
                kept_bytes += right[1] if mine == right else 0
        return kept_bytes

    def _check(self) -> None:
        """Compare every byte."""
        if self._out.read_bytes() != self._data.path.read_bytes():
            self.report.lost += 1
            raise Wrong("what was fetched is not what was published")
        for whole in self.requester.folder.rglob(f"{self._root}.data"):
            if whole.stat().st_size == self._data.size_bytes:
                return
        raise Wrong("what was fetched is not kept")


def _chunks(path: Path) -> list[tuple[bytes, int]]:
    """Return the hash and the size of each chunk of a file."""
    chunk_bytes = chunk_bytes_for(path.stat().st_size)
    with path.open("rb") as file:
        found = []
        while piece := file.read(chunk_bytes):
            found.append((data_hash(piece), len(piece)))
    return found


def run(kills: int, seed: int, size_bytes: int, folder: Path) -> Report:
    """Make a plant in `folder` and kill so often during transfers."""
    report = Report(seed)
    began_s = time.perf_counter()
    try:
        asyncio.run(Plant(folder, report, size_bytes).run(kills, Random(f"{seed}/transfers")))
    except (Wrong, EdgepoolError) as wrong:
        report.violations.append(str(wrong))
    report.seconds = round(time.perf_counter() - began_s, 1)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill holders and requesters in the middle of transfers.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mib", type=int, default=128, help="how much data is fetched each time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgepool-transfers-") as folder:
        report = run(options.kills, options.seed, options.mib * MIB, Path(folder))
    return tell(
        report,
        options.json,
        f"{report.kills} kills in {report.seconds} s, of holders {report.holders}, of requesters "
        f"{report.requesters} ({report.over} fetches were over before); {report.kept >> 20} MiB were on "
        f"disk then, {report.again >> 20} MiB came after",
    )


if __name__ == "__main__":
    sys.exit(main())

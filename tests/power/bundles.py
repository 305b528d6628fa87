"""kill -9 of either side while many small files are fetched at once: two holders, one requester.

    python tests/power/bundles.py --kills 100 --json

The peers are processes of `edgepool run` with folders on the disk. Every time the requester fetches all from
scratch, somebody is killed at a random point, and started again. No file may ever be visible that is not
whole and right, and in the end every byte must be right.
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
from typing import Any

from kill import START_S, Validator, Wrong, make_folders
from telling import tell

from edgepool.errors import EdgepoolError
from edgepool.gateway.client import ApiClient
from edgepool.model.twin import small_manifest

POOL = "cell"
FETCH_S = 60.0
SETTLE_S = 60.0
MAX_FILE_BYTES = 12_000


@dataclass(slots=True)
class Report:
    """What a run came to; `visible` counts files that a killed requester had, all of them right."""

    seed: int
    kills: int = 0
    holders: int = 0
    requesters: int = 0
    over: int = 0
    visible: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Plant:
    """A coordinator, two holders of the same small files, and a requester, in `folder`."""

    def __init__(self, folder: Path, report: Report, files: int) -> None:
        self.report = report
        self._cloud, *self.holders, self.requester = make_folders(folder)
        draw = Random(report.seed)
        self._data = {
            f"PART-{number:04d}/features": draw.randbytes(draw.randrange(1, MAX_FILE_BYTES))
            for number in range(files)
        }
        self._folder = folder
        self._out = folder / "out"
        self._out.mkdir()
        self._took_s = 0.0

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
            await self._fetch_all()
            while self.report.kills < kills:
                await self._forget()
                await self._kill_one(draw)
                await self._fetch_all()
        finally:
            for one in everybody:
                one.end()

    async def _publish(self, holder: Validator) -> None:
        deadline_s = time.monotonic() + SETTLE_S
        source = self._folder / "source"
        async with ApiClient.of(holder.folder) as client:
            for key, content in self._data.items():
                source.write_bytes(content)
                while True:
                    try:
                        await client.publish(key, source, version=1, chain=POOL)
                        break
                    except EdgepoolError as error:  # the pool is only being formed
                        if time.monotonic() > deadline_s:
                            raise Wrong(f"{holder.name} cannot publish: {error}") from None
                    await asyncio.sleep(0.1)

    async def _fetch(self) -> dict[str, Any]:
        async with ApiClient.of(self.requester.folder) as client:
            return await client.fetch_many(list(self._data), self._out, timeout_ms=int(FETCH_S * 1000))

    async def _kill_one(self, draw: Random) -> None:
        """Kill somebody at a random point of a fetch."""
        victim = draw.choice((*self.holders, self.requester, self.requester))
        fetching = asyncio.create_task(self._fetch())
        await asyncio.wait({fetching}, timeout=draw.uniform(0, 1.1 * self._took_s))
        if fetching.done():
            await fetching
            self.report.over += 1
            return
        victim.kill()
        self.report.kills += 1
        with suppress(EdgepoolError):
            await fetching
        if victim is self.requester:
            self.report.requesters += 1
            self.report.visible += self._check_visible()
        else:
            self.report.holders += 1
        victim.start()
        await victim.answers()

    async def _fetch_all(self) -> None:
        """Fetch until all is here; a peer that has just started may have to wait for its pool."""
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            began_s, why = time.monotonic(), ""
            try:
                done = await self._fetch()
                why = done["failed"][0]["problem"] if done["failed"] else ""
            except EdgepoolError as error:
                why = str(error)
            if not why:
                break
            if time.monotonic() > deadline_s:
                raise Wrong(f"the requester cannot fetch any more: {why}")
            await asyncio.sleep(0.1)
        self._took_s = self._took_s or time.monotonic() - began_s
        for key, content in self._data.items():
            if (self._out / key).read_bytes() != content:
                raise Wrong(f"{key} is not what was published")
        if self._check_visible() < len(set(self._data.values())):
            raise Wrong("what was fetched is not kept")

    def _check_visible(self) -> int:
        """Return how many files are visible at the requester; Wrong if one is not whole."""
        found = 0
        for path in (self.requester.folder / "blobs").glob("*.data"):
            if small_manifest(path.read_bytes()).root.hex() != path.stem:
                raise Wrong(f"{path.name} was visible and is not whole")
            found += 1
        return found

    async def _forget(self) -> None:
        """Let the requester drop what it has fetched."""
        for key in self._data:
            (self._out / key).unlink()
        deadline_s = time.monotonic() + START_S
        async with ApiClient.of(self.requester.folder) as client:
            while roots := [one.root for one in await client.stored()]:
                for root in roots:
                    with suppress(EdgepoolError):
                        await client.evict(root)
                if time.monotonic() > deadline_s:
                    raise Wrong("the requester does not drop what it has fetched")


def run(kills: int, seed: int, files: int, folder: Path) -> Report:
    """Make a plant in `folder` and kill so often during fetches of many files."""
    report = Report(seed)
    began_s = time.perf_counter()
    try:
        asyncio.run(Plant(folder, report, files).run(kills, Random(f"{seed}/bundles")))
    except (Wrong, EdgepoolError) as wrong:
        report.violations.append(str(wrong))
    report.seconds = round(time.perf_counter() - began_s, 1)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill holders and requesters while small files are fetched.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgepool-bundles-") as folder:
        report = run(options.kills, options.seed, options.files, Path(folder))
    return tell(
        report,
        options.json,
        f"{report.kills} kills in {report.seconds} s, of holders {report.holders}, of requesters "
        f"{report.requesters} ({report.over} fetches were over before); {report.visible} files were "
        "visible then, all of them whole",
    )


if __name__ == "__main__":
    sys.exit(main())

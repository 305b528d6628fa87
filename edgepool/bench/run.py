"""Runs the parts of the benchmark in order, within a bounded time, each with its own temporary folder."""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from edgepool.bench.chain import measure_chain
from edgepool.bench.figures import Figure
from edgepool.bench.link import measure_link
from edgepool.bench.records import measure_codec, measure_ledger, measure_signatures, measure_store
from edgepool.errors import EdgepoolError, LocalError

FORMAT = 1
"""Rises whenever the keys of the JSON output change their meaning."""

LIMIT_S = 56.0
QUICK_LIMIT_S = 14.0
"""A run is over by then; parts that have not ended are given up."""

Measure = Callable[[bool, Path], Awaitable[list[Figure]]]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the benchmark; `about_s` is how long it takes on an ordinary machine."""

    name: str
    what: str
    about_s: float
    measure: Measure


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run was made on. `load` is the machine's load when it began, which others caused."""

    system: str
    processor: str
    processors: int
    python: str
    event_loop: str
    filesystem: str
    load: float


@dataclass(frozen=True, slots=True)
class Report:
    """A run: `figures` by part, `problems` by part that failed."""

    format: int
    edgepool: str
    quick: bool
    duration_s: float
    machine: Machine
    figures: dict[str, list[Figure]]
    problems: dict[str, str]


async def run(
    names: Sequence[str] = (),
    *,
    quick: bool = False,
    on_part: Callable[[Part], None] = lambda part: None,
    parts: Mapping[str, Part] | None = None,
) -> Report:
    """Run those of `parts` (PARTS, if none) with these names (all, if none) and return the report.

    `on_part` is told each part before it begins. LocalError for an unknown name. A part that fails
    or is not done in time becomes a problem in the report, and the others go on.
    """
    parts = PARTS if parts is None else parts
    unknown = [name for name in names if name not in parts]
    if unknown:
        raise LocalError(f"there is no part '{unknown[0]}': use one of {', '.join(parts)}")
    machine = this_machine()
    start_s = monotonic()
    limit_s = QUICK_LIMIT_S if quick else LIMIT_S
    figures: dict[str, list[Figure]] = {}
    problems: dict[str, str] = {}
    for part in parts.values():
        if names and part.name not in names:
            continue
        on_part(part)
        with tempfile.TemporaryDirectory(prefix="edgepool-bench-", ignore_cleanup_errors=True) as folder:
            try:
                async with asyncio.timeout(start_s + limit_s - monotonic()):
                    figures[part.name] = await part.measure(quick, Path(folder))
            except TimeoutError:
                problems[part.name] = f"not done when the {limit_s:g} s for everything were over"
            except (EdgepoolError, OSError) as error:
                problems[part.name] = str(error)
    duration_s = round(monotonic() - start_s, 3)
    return Report(FORMAT, version("edgepool"), quick, duration_s, machine, figures, problems)


async def _codec(quick: bool, folder: Path) -> list[Figure]:
    return measure_codec(quick)


async def _signatures(quick: bool, folder: Path) -> list[Figure]:
    return measure_signatures(quick)


async def _store(quick: bool, folder: Path) -> list[Figure]:
    return measure_store(quick, folder)


async def _ledger(quick: bool, folder: Path) -> list[Figure]:
    return measure_ledger(quick)


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part("codec", "bytes of a record", 2, _codec),
        Part("signatures", "Ed25519", 2, _signatures),
        Part("ledger", "rules and lottery", 4, _ledger),
        Part("store", "blocks on disk", 1, _store),
        Part("link", "links and transfers", 10, measure_link),
        Part("chain", "a pool of four", 18, measure_chain),
    )
}
"""All parts by name, in the order in which they run."""


def this_machine() -> Machine:
    """Return what this run is made on."""
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        processors=os.cpu_count() or 1,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        event_loop="uvloop" if find_spec("uvloop") else "asyncio",
        filesystem=_filesystem(Path(tempfile.gettempdir())),
        load=round(os.getloadavg()[0], 2),
    )


def _processor() -> str:
    """Return what the processor calls itself, or ''."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, "")


def _filesystem(folder: Path) -> str:
    """Return the kind of file system that temporary folders are on ('tmpfs' syncs nothing), or ''."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    places = {mount[1]: mount[2] for mount in mounts}
    real = folder.resolve()
    return next((places[str(place)] for place in (real, *real.parents) if str(place) in places), "")

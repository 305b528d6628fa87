"""Runs the parts of `edgepool bench transfer` in order; one that fails does not stop the others."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

from edgepool.bench.run import Machine, this_machine
from edgepool.bench.transfer.bars import Verdict, judge
from edgepool.bench.transfer.delta import measure_delta
from edgepool.bench.transfer.links import measure_delay_loss, measure_slow_link
from edgepool.bench.transfer.many import measure_mixed, measure_multi, measure_one_dies
from edgepool.bench.transfer.order import Order, Tell
from edgepool.bench.transfer.single import measure_single
from edgepool.bench.transfer.small import measure_rr_1k, measure_small_files
from edgepool.errors import EdgepoolError, LocalError

FORMAT = 1
"""Rises whenever the keys of the JSON output change their meaning."""
LONGEST_S = 240.0
"""A part that takes longer is given up."""

Measure = Callable[[Order, Path, Tell], Awaitable[dict[str, Any]]]

_SINGLE, _PEERS = "single", "peers"
_PARTS: dict[str, Measure] = {
    "rr_1k": measure_rr_1k,
    "small_files": measure_small_files,
    "multi": measure_multi,
    "mixed": measure_mixed,
    "one_dies": measure_one_dies,
    "slow_link": measure_slow_link,
    "delay_loss": measure_delay_loss,
    "delta": measure_delta,
}
NAMES = (_SINGLE, _PEERS, *_PARTS)
"""All parts, in the order in which they run; the first two run together."""


@dataclass(frozen=True, slots=True)
class TransferReport:
    """A run: `figures` by part. `skipped` is what is not here, `problems` what failed, with reasons."""

    format: int
    edgepool: str
    machine: Machine
    order: Order
    duration_s: float
    figures: dict[str, Any]
    verdicts: list[Verdict]
    skipped: dict[str, str]
    problems: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the report with each part's figures at the top."""
        whole = asdict(self)
        figures: dict[str, Any] = whole.pop("figures")
        return {**whole, **figures}


async def measure_transfer(
    order: Order, names: Sequence[str] = (), tell: Tell = lambda what: None
) -> TransferReport:
    """Run the parts with these names (all, if none). LocalError for an unknown name."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise LocalError(f"there is no part '{unknown[0]}': use one of {', '.join(NAMES)}")
    machine = this_machine()
    start_s = monotonic()
    figures: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    problems: dict[str, str] = {}
    if not names or _SINGLE in names or _PEERS in names:
        with_peers = not names or _PEERS in names

        async def single(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
            return await measure_single(order, folder, tell, with_peers)

        found = await _measured(_SINGLE, single, order, tell, problems)
        skipped |= {f"{_PEERS}.{name}": why for name, why in found.pop("skipped", {}).items()}
        figures |= found
    for name, measure in _PARTS.items():
        if not names or name in names:
            found = await _measured(name, measure, order, tell, problems)
            if found:
                figures[name] = found
    duration_s = round(monotonic() - start_s, 1)
    return TransferReport(
        FORMAT, version("edgepool"), machine, order, duration_s, figures, judge(figures), skipped, problems
    )


async def _measured(
    name: str, measure: Measure, order: Order, tell: Tell, problems: dict[str, str]
) -> dict[str, Any]:
    """Return the figures of a part, measured in a folder of its own; {} and a problem if it fails."""
    with tempfile.TemporaryDirectory(prefix="edgepool-bench-", ignore_cleanup_errors=True) as folder:
        try:
            async with asyncio.timeout(LONGEST_S):
                return await measure(order, Path(folder), lambda what: tell(f"{name}: {what}"))
        except TimeoutError:
            problems[name] = f"not done within {LONGEST_S:g} s"
        except (EdgepoolError, OSError) as error:
            problems[name] = str(error) or type(error).__name__
    return {}

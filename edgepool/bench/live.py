"""What a live stream costs and how late samples are; and what votes notice of it, and of bulk on a budget.

One publisher and its subscribers, in a process each, all in one pool with the coordinator, which is in a
third. Samples carry the time at which they were put, by the one monotonic clock of the machine.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from edgepool.bench.figures import percentile
from edgepool.bench.material import NETWORK
from edgepool.bench.processes import Helper
from edgepool.config import KnownPeer
from edgepool.gateway.pools import gather_members, pool_stands
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.model.ids import ChainId
from edgepool.model.record import DataDemand
from edgepool.model.twin import DataKey
from edgepool.peer.peer import Peer

KEY = "BENCH/telemetry"
BULK = "BENCH/model"
RECORD_EVERY_S = 0.02
START_S = 30
SETTLE_S = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LiveReport:
    """One run. Delays are from `put` to the subscriber's reader; CPU is percent of one processor.

    `records` is the p99 in ms from submitting a record until it is final, while nothing else goes on
    (`calm`), while the stream runs (`live`), and while bulk on a budget of `budget_mbit_s` runs beside it
    (`live_and_bulk`); `records_ratio` is the latter two by the first.
    """

    rate_hz: int
    sample_bytes: int
    subscribers: int
    seconds: float
    samples: int
    missed: int
    delay_p50_us: float
    delay_p99_us: float
    delay_max_us: float
    delay_p99_us_with_bulk: float
    publisher_cpu_percent: float
    subscribers_cpu_percent: float
    publisher_rss_MiB: float
    budget_mbit_s: int
    bulk_mbit_s: float
    records: dict[str, float]
    records_ratio: dict[str, float]


async def measure_live(
    rate_hz: int, size_bytes: int, subscribers: int, seconds: float, budget_mbit_s: int, say: Say
) -> LiveReport:
    """Measure for `seconds` in each of three states; see LiveReport."""
    with tempfile.TemporaryDirectory(prefix="edgepool-bench-", ignore_cleanup_errors=True) as name:
        async with AsyncExitStack() as stack:
            say("starting")
            cell = await _open(stack, Path(name), subscribers)
            say("records alone")
            calm = await _records(cell, seconds)
            say(f"{rate_hz} samples a second to {subscribers} subscribers")
            stream = {"key": KEY, "rate_hz": rate_hz, "size_bytes": size_bytes}
            await cell.publisher.ask("publish_live", name="p", **stream)
            await cell.followers.ask("follow", key=KEY)
            await asyncio.sleep(SETTLE_S)
            live = await _window(cell, seconds)
            say(f"the same, and bulk at {budget_mbit_s} Mbit/s")
            bulk_bytes = int(1.5 * seconds * budget_mbit_s * 125_000)
            offer = {"name": "p", "key": BULK, "size_bytes": bulk_bytes, "mbit_s": budget_mbit_s}
            await cell.publisher.ask("offer", **offer)
            await cell.followers.ask("fetch", name="f0", key=BULK)
            await asyncio.sleep(SETTLE_S)
            before = await cell.followers.ask("received_bytes", name="f0")
            both = await _window(cell, seconds)
            after = await cell.followers.ask("received_bytes", name="f0")
    delays = live.followers["delays_us"]
    return LiveReport(
        rate_hz,
        size_bytes,
        subscribers,
        seconds,
        live.followers["samples"],
        live.followers["missed"] + both.followers["missed"],
        delays["p50"],
        delays["p99"],
        delays["max"],
        both.followers["delays_us"]["p99"],
        100 * live.publisher["cpu_s"] / live.passed_s,
        100 * live.followers["cpu_s"] / live.passed_s,
        live.publisher["rss_bytes"] / 2**20,
        budget_mbit_s,
        (after - before) / 125_000 / both.passed_s,
        {"calm": calm, "live": live.records_ms, "live_and_bulk": both.records_ms},
        {"live": live.records_ms / calm, "live_and_bulk": both.records_ms / calm},
    )


@dataclass(frozen=True, slots=True)
class _Cell:
    cloud: Peer
    chain: ChainId
    publisher: Helper
    followers: Helper


@dataclass(frozen=True, slots=True)
class _Window:
    passed_s: float
    records_ms: float
    publisher: dict[str, Any]
    followers: dict[str, Any]


async def _open(stack: AsyncExitStack, folder: Path, subscribers: int) -> _Cell:
    authority = folder / "authority"
    make_peer_folder(folder / "cloud", PeerPlan("cloud", NETWORK, "coordinator"), authority)
    cloud = await stack.enter_async_context(Peer.open(folder / "cloud"))
    known = KnownPeer(name="cloud", address=f"{cloud.addresses[0]}/p2p/{cloud.id}")
    names = [f"f{number}" for number in range(subscribers)]
    for name in ("p", *names):
        plan = PeerPlan(name, NETWORK, "machine", "Milling", coordinators=(cloud.id,), known_peers=(known,))
        make_peer_folder(folder / name, plan, authority)
    sides = [await stack.enter_async_context(Helper("liveside", folder)) for _ in range(2)]
    await sides[0].ask("open", names=["p"])
    await sides[1].ask("open", names=names)
    members = await gather_members(cloud, ["cloud", "p", *names], timeout_s=START_S)
    pool = await cloud.form_pool("bench", "fixed", members)
    await pool_stands(pool, [cloud], timeout_s=START_S)
    return _Cell(cloud, pool.chain, sides[0], sides[1])


async def _window(cell: _Cell, seconds: float) -> _Window:
    for side in (cell.publisher, cell.followers):
        await side.ask("begin")
    began_s = monotonic()
    records_ms = await _records(cell, seconds)
    passed_s = monotonic() - began_s
    counted = [await side.ask("counted") for side in (cell.publisher, cell.followers)]
    return _Window(passed_s, records_ms, *counted)


async def _records(cell: _Cell, seconds: float) -> float:
    """Submit records for some time; return the p99 of how long each takes to be final, in ms."""
    took_ms: list[float] = []

    async def submit(number: int) -> None:
        began_s = monotonic()
        await cell.cloud.submit(DataDemand(DataKey("P", "model"), number, "", ""), chain=cell.chain)
        took_ms.append(1000 * (monotonic() - began_s))

    tasks: list[asyncio.Task[None]] = []
    end_s = monotonic() + seconds
    while monotonic() < end_s:
        tasks.append(asyncio.create_task(submit(len(tasks))))
        await asyncio.sleep(RECORD_EVERY_S)
    await asyncio.gather(*tasks)
    return percentile(took_ms, 99)

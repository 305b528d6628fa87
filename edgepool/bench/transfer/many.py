"""Many holders of the same data, each behind a link of its own: what arrives of what they could give."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from edgepool.bench.netlab import slow_links
from edgepool.bench.transfer.material import Data, make_data, make_folder, make_sides
from edgepool.bench.transfer.order import LINK_MBPS, Order, Tell
from edgepool.bench.transfer.side import copying

COUNTS = (1, 2, 4, 8)
MIXED_MBPS = (5.0, 10.0, 20.0, 40.0)
DIES_AT = 0.25


async def measure_multi(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return, by how many holders of 20 MB/s serve, the fraction of their rates that arrives.

    Beside one holder stands what a bare TLS copy reaches over the same link, headers and all.
    """
    figures: dict[str, Any] = {}
    for count in COUNTS:
        rates = [LINK_MBPS] * count
        figures[str(count)] = await _fraction(
            order, folder / f"of-{count}", rates, _at(tell, f"{count} holders")
        )
    bare = await _fraction(order, folder / "bare", [LINK_MBPS], _at(tell, "bare copy"), means="bare")
    figures["1"]["bare_fraction"] = bare["fraction"]
    return figures


async def measure_mixed(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return the fraction that arrives of holders of 5, 10, 20 and 40 MB/s."""
    return await _fraction(order, folder / "mixed", list(MIXED_MBPS), tell)


async def measure_one_dies(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return the fraction of what the living could give if one of four is killed at a quarter."""
    return await _fraction(order, folder / "dies", [LINK_MBPS] * 4, tell, dies_at=DIES_AT)


async def _fraction(
    order: Order, folder: Path, rates_MBps: list[float], tell: Tell, means: str = "lane", dies_at: float = 0.0
) -> dict[str, Any]:
    """Measure one set of holders; the ideal is that every holder sends at its rate as long as it lives."""
    everybody_MBps = sum(rates_MBps)
    data = make_data(make_folder(folder) / "data", int(everybody_MBps * 1e6 * order.link_s))
    living_MBps = everybody_MBps - rates_MBps[0] if dies_at else everybody_MBps
    ideal_s = data.size_bytes / 1e6 * (dies_at / everybody_MBps + (1 - dies_at) / living_MBps)
    took_s = []
    forbidden = ""
    for number in range(1, order.link_rounds + 1):
        tell(f"round {number} of {order.link_rounds}")
        one_s, forbidden = await _once(folder / str(number), data, rates_MBps, means, dies_at)
        took_s.append(one_s)
    figures: dict[str, Any] = {
        "fraction": round(median(ideal_s / one for one in took_s), 3),
        "lowest": round(ideal_s / max(took_s), 3),
        "MBps": round(data.size_bytes / 1e6 / median(took_s), 1),
        "of_MBps": round(data.size_bytes / 1e6 / ideal_s, 1),
        "by": "a limiter in user space" if forbidden else "tbf in namespaces",
    }
    if forbidden:
        figures["forbidden"] = forbidden
    return figures


async def _once(
    folder: Path, data: Data, rates_MBps: list[float], means: str, dies_at: float
) -> tuple[float, str]:
    """Copy once with fresh processes; return how long it took, and why there are no namespaces."""
    names = [f"holder-{number}" for number in range(1, len(rates_MBps) + 1)]
    receiver, *senders = make_sides(make_folder(folder), "requester", *names)
    async with (
        slow_links(folder, [0.0, *(rate * 8 for rate in rates_MBps)]) as lab,
        copying(means, data, senders, receiver, lab) as made,
    ):
        told = await made.receiver.ask("receive", options={"kill_at": dies_at})
        return float(told["took_s"]), lab.forbidden


def _at(tell: Tell, what: str) -> Tell:
    return lambda more: tell(f"{what}, {more}")

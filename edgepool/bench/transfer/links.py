"""A slow link, and a far one that loses packets, each beside a bare TCP copy over the same link."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from edgepool.bench.netlab import Lab, bad_links, slow_links
from edgepool.bench.transfer.material import make_data, make_sides
from edgepool.bench.transfer.order import Order, Tell
from edgepool.bench.transfer.side import copying

SLOW_MBIT_S = 20.0
ROUND_TRIP_MS, LOSS = 50.0, 0.01
_EXPECTED_MBPS = {"bbr": 10.0}
_EXPECTED_OTHERWISE_MBPS = 0.5
"""About what one TCP connection reaches there, so that a copy takes as long as the others do."""


async def measure_slow_link(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return the rates over 20 Mbit/s, ours and bare."""
    async with slow_links(folder, [SLOW_MBIT_S, SLOW_MBIT_S]) as lab:
        size_bytes = int(SLOW_MBIT_S / 8 * 1e6 * order.link_s)
        figures = await _beside_tcp(order, folder, tell, lab, size_bytes, order.link_rounds)
        if lab.forbidden:
            figures["forbidden"] = lab.forbidden
        return {"mbit_s": SLOW_MBIT_S, **figures}


async def measure_delay_loss(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return the rates over 50 ms there and back with 1 % of packets lost each way, ours and bare."""
    async with bad_links(folder, 2, ROUND_TRIP_MS / 2, LOSS, seed=1) as lab:
        control = congestion_control()
        expected_MBps = _EXPECTED_MBPS.get(control, _EXPECTED_OTHERWISE_MBPS)
        size_bytes = int(expected_MBps * 1e6 * order.link_s)
        figures = await _beside_tcp(order, folder, tell, lab, size_bytes, 2 * order.link_rounds + 1)
        return {"round_trip_ms": ROUND_TRIP_MS, "loss": LOSS, "congestion_control": control, **figures}


async def _beside_tcp(
    order: Order, folder: Path, tell: Tell, lab: Lab, size_bytes: int, rounds: int
) -> dict[str, Any]:
    data = make_data(folder / "data", size_bytes)
    rates: dict[str, list[float]] = {"lane": [], "bare_tcp": []}
    async with AsyncExitStack() as stack:
        made = {}
        for means in rates:
            sender, receiver = make_sides(folder, f"{means}-sender", f"{means}-receiver")
            made[means] = await stack.enter_async_context(copying(means, data, [sender], receiver, lab))
        for number in range(1, rounds + 1):
            for means, rate in rates.items():
                tell(f"{means}, round {number} of {rounds}")
                told = await made[means].once()
                rate.append(size_bytes / told["took_s"] / 1e6)
    return {
        "size_bytes": size_bytes,
        "MBps": round(median(rates["lane"]), 3),
        "bare_MBps": round(median(rates["bare_tcp"]), 3),
        "ratio": round(median(a / b for a, b in zip(rates["lane"], rates["bare_tcp"], strict=True)), 3),
    }


def congestion_control() -> str:
    """Return the name of this machine's TCP congestion control, '' if it does not tell."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return ""

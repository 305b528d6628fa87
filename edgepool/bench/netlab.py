"""A laboratory of slow, far and lossy links, kept by a process that removes it whatever happens.

Run as a helper process (see processes.py): it ends, and removes what it has made, when whoever started
it is gone. Where namespaces are forbidden it limits rates by proxies instead, and says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepool.bench.limiter import Limiter
from edgepool.bench.namespaces import Host, Namespaces, bridge
from edgepool.bench.processes import Answer, Helper, serve
from edgepool.bench.switch import Switch, Weather
from edgepool.errors import Unavailable

MODULE = "netlab"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Lab:
    """Hosts to measure between. `forbidden` says why they are on loopback behind proxies, '' if not."""

    hosts: list[Host]
    rates_mbit_s: list[float]
    forbidden: str
    _helper: Helper

    async def dial(self, number: int, port: int) -> tuple[str, int]:
        """Return where others reach `port` of a host."""
        if not self.forbidden or not self.rates_mbit_s[number]:
            return self.hosts[number].address, port
        rate = self.rates_mbit_s[number] * 1e6 / 8
        found: int = await self._helper.ask("limit", port=port, bytes_per_s=rate)
        return LOOPBACK, found


@asynccontextmanager
async def slow_links(folder: Path, rates_mbit_s: list[float]) -> AsyncIterator[Lab]:
    """Have hosts on a bridge, each sending at its rate at most (0: as fast as it can).

    By namespaces and tbf, or by proxies where those are forbidden.
    """
    async with Helper(MODULE, folder) as helper:
        forbidden = ""
        try:
            found = await helper.ask("bridge", rates_mbit_s=rates_mbit_s)
            hosts = [Host(tuple(within), address) for within, address in found]
        except Unavailable as error:
            forbidden = str(error)
            hosts = [Host((), LOOPBACK)] * len(rates_mbit_s)
        yield Lab(hosts, rates_mbit_s, forbidden, helper)


@asynccontextmanager
async def bad_links(folder: Path, hosts: int, delay_ms: float, loss: float, seed: int) -> AsyncIterator[Lab]:
    """Have hosts on a switch that delays and loses packets, each way. Unavailable where that is forbidden."""
    async with Helper(MODULE, folder) as helper:
        found = await helper.ask("switch", hosts=hosts, delay_ms=delay_ms, loss=loss, seed=seed)
        yield Lab([Host(tuple(within), address) for within, address in found], [0.0] * hosts, "", helper)


class _Keeper:
    """Makes what is asked for, and removes it at the end."""

    def __init__(self, folder: Path) -> None:
        self._namespaces = Namespaces()
        self._limiter = Limiter()
        self._switch: Switch | None = None

    async def bridge(self, rates_mbit_s: list[float]) -> list[Any]:
        """Make hosts on a bridge."""
        try:
            return _told(bridge(self._namespaces, rates_mbit_s))
        except Unavailable:
            self._namespaces.remove()
            raise

    async def switch(self, hosts: int, delay_ms: float, loss: float, seed: int) -> list[Any]:
        """Make hosts on a switch in user space."""
        self._switch = Switch(self._namespaces, hosts, Weather(delay_ms, loss), seed)
        return _told(self._switch.hosts)

    async def limit(self, port: int, bytes_per_s: float) -> int:
        """Return the port of a proxy before `port`."""
        return await self._limiter.before(LOOPBACK, port, bytes_per_s)

    async def end(self) -> None:
        """Remove everything."""
        await self._limiter.close()
        if self._switch is not None:
            self._switch.close()
        self._namespaces.remove()


def _told(hosts: list[Host]) -> list[Any]:
    return [(host.within, host.address) for host in hosts]


def _answers(folder: Path) -> dict[str, Answer]:
    keeper = _Keeper(folder)
    return {"bridge": keeper.bridge, "switch": keeper.switch, "limit": keeper.limit, "end": keeper.end}


if __name__ == "__main__":
    serve(_answers)

"""The members of the pool that is measured: one or more peers in one process.

Run as a helper process (see processes.py). Times are of the monotonic clock, which all processes of a
machine share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from time import monotonic, process_time
from typing import Any

from edgepool.bench.material import offer
from edgepool.bench.processes import Answer, serve
from edgepool.errors import Unavailable
from edgepool.gateway.pools import gather_members, pool_stands
from edgepool.model.ids import ChainId
from edgepool.peer.peer import Peer

STAND_S = 15.0


class Members:
    """The peers of this process, and what they are told to do on their one chain."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()
        self._peers: list[Peer] = []
        self._written = 0

    async def open(self, name: str) -> dict[str, str]:
        """Start the peer of a folder; return where it can be dialled."""
        peer = await self._stack.enter_async_context(Peer.open(self._folder / name))
        self._peers.append(peer)
        return {"peer": peer.id, "address": f"{peer.addresses[0]}/p2p/{peer.id}"}

    async def form(self, names: list[str]) -> str:
        """Form the pool of these peers (the first peer is its coordinator); return its chain."""
        coordinator = self._peers[0]
        members = await gather_members(coordinator, names, STAND_S)
        return (await coordinator.form_pool("bench", "fixed", members)).chain

    async def stand(self) -> None:
        """Return once the pool stands and all peers here are linked to a quorum of it."""
        await _until(lambda: all(peer.pools for peer in self._peers))
        await pool_stands(self._peers[0].pools[0], self._peers, STAND_S)

    async def gentle(self, per_s: float, duration_s: float) -> list[float]:
        """Submit from each peer at random moments, `per_s` on average; return what each took, in ms."""
        took = await asyncio.gather(*(self._trickle(peer, per_s, duration_s) for peer in self._peers))
        return [ms for one in took for ms in one]

    async def burst(self, records: int) -> dict[str, float]:
        """Submit `records` from each peer at once; return when that began and when all were final."""
        bodies = [[self._next_offer(peer) for _ in range(records)] for peer in self._peers]
        began_s, cpu_s = monotonic(), process_time()
        await asyncio.gather(
            *(
                peer.submit(body, chain=peer.chains[0])
                for peer, mine in zip(self._peers, bodies, strict=True)
                for body in mine
            )
        )
        return {"began_s": began_s, "ended_s": monotonic(), "cpu_s": process_time() - cpu_s}

    async def where(self, at_least: int) -> dict[str, Any]:
        """Return height and records of the chain as soon as all peers here have `at_least` records."""
        await _until(lambda: all(self._records(peer) >= at_least for peer in self._peers))
        peer = self._peers[0]
        return {"height": peer.chain_state(peer.chains[0]).height, "records": self._records(peer)}

    async def end(self) -> None:
        """Close all peers."""
        await self._stack.aclose()

    def _records(self, peer: Peer) -> int:
        chain: ChainId = peer.chains[0]
        return sum(peer.chain_state(chain).counts.values())

    async def _trickle(self, peer: Peer, per_s: float, duration_s: float) -> list[float]:
        random = Random(peer.name)
        end_s = monotonic() + duration_s
        under_way: list[asyncio.Task[float]] = []
        while monotonic() < end_s:
            await asyncio.sleep(random.expovariate(per_s))
            under_way.append(asyncio.create_task(self._timed_submit(peer)))
        return list(await asyncio.gather(*under_way))

    async def _timed_submit(self, peer: Peer) -> float:
        body = self._next_offer(peer)
        start_s = monotonic()
        await peer.submit(body, chain=peer.chains[0])
        return (monotonic() - start_s) * 1000

    def _next_offer(self, peer: Peer) -> Any:
        self._written += 1
        return offer(f"{peer.name}-{self._written}", 1)


async def _until(condition: Callable[[], bool]) -> None:
    end_s = monotonic() + STAND_S
    while not condition():
        if monotonic() > end_s:
            raise Unavailable(f"the pool did not get there within {STAND_S:g} s")
        await asyncio.sleep(0.005)


def _answers(folder: Path) -> dict[str, Answer]:
    members = Members(folder)
    return {
        "open": members.open,
        "form": members.form,
        "stand": members.stand,
        "gentle": members.gentle,
        "burst": members.burst,
        "where": members.where,
        "end": members.end,
    }


if __name__ == "__main__":
    serve(_answers)

"""The members of the pool that is measured: one or more peers in one process.

Run as a helper process (see processes.py). Times are of the monotonic clock, which all processes of a
machine share.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from time import monotonic, process_time
from typing import Any

from edgepool.bench.material import wide_offer
from edgepool.bench.processes import Answer, serve
from edgepool.errors import Refused, Unavailable
from edgepool.gateway.pools import gather_members, pool_stands
from edgepool.model.ids import ChainId
from edgepool.peer.peer import Peer
from edgepool.runtime.collector import collect_rarely

STAND_S = 15.0
_REFUSED_PAUSE_S = 0.02


class Members:
    """The peers of this process, and what they are told to do on their one chain."""

    def __init__(self, folder: Path) -> None:
        collect_rarely()  # as 'edgepool run' does
        self._folder = folder
        self._stack = AsyncExitStack()
        self._peers: list[Peer] = []
        self._written: dict[str, int] = {}
        self._unanswered: dict[str, dict[int, None]] = {}

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
        began_s, cpu_s = monotonic(), process_time()
        await asyncio.gather(*(self._submit(peer) for peer in self._peers for _ in range(records)))
        return {"began_s": began_s, "ended_s": monotonic(), "cpu_s": process_time() - cpu_s}

    async def flood(self, under_way: int, warm_s: float, duration_s: float) -> dict[str, float]:
        """Keep `under_way` records of each peer on their way; return what `duration_s` of that gave.

        `records` and `blocks` are those that the first peer's chain got, `cpu_s` is the processor time of
        this process, from `warm_s` after the beginning on.
        """
        going = True

        async def keep_on(peer: Peer) -> None:
            while going:
                try:
                    await self._submit(peer)
                except (Refused, Unavailable):
                    await asyncio.sleep(_REFUSED_PAUSE_S)

        work = [asyncio.create_task(keep_on(peer)) for peer in self._peers for _ in range(under_way)]
        await asyncio.sleep(warm_s)
        before = self._sample()
        await asyncio.sleep(duration_s)
        after = self._sample()
        going = False
        await asyncio.gather(*work)
        return {name: after[name] - value for name, value in before.items()}

    async def written(self) -> dict[str, tuple[int, list[int]]]:
        """Return, by name, how many records each peer here has written, and which were not acknowledged."""
        return {name: (count, list(self._unanswered[name])) for name, count in self._written.items()}

    async def missing(self, written: dict[str, tuple[int, list[int]]]) -> int:
        """Return how many acknowledged records a peer here lacks, after giving it time to get them."""
        wanted = [
            wide_offer(f"{name}-{number}").key
            for name, (count, unanswered) in written.items()
            for number in sorted(set(range(1, count + 1)) - set(unanswered))
        ]
        lacking = {peer.name: wanted for peer in self._peers}
        end_s = monotonic() + STAND_S
        while any(lacking.values()) and monotonic() < end_s:
            for peer in self._peers:
                state = peer.chain_state(peer.chains[0])
                lacking[peer.name] = [key for key in lacking[peer.name] if not state.offers(key)]
            await asyncio.sleep(0.005)
        return sum(map(len, lacking.values()))

    async def rss_mib(self) -> float:
        """Return the most memory that this process has held, in MiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

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

    def _sample(self) -> dict[str, float]:
        peer = self._peers[0]
        return {
            "time_s": monotonic(),
            "cpu_s": process_time(),
            "records": self._records(peer),
            "blocks": peer.chain_state(peer.chains[0]).height,
        }

    async def _trickle(self, peer: Peer, per_s: float, duration_s: float) -> list[float]:
        random = Random(peer.name)
        next_s = monotonic()
        end_s = next_s + duration_s
        under_way: list[asyncio.Task[float]] = []
        while (next_s := next_s + random.expovariate(per_s)) < end_s:
            await asyncio.sleep(max(0.0, next_s - monotonic()))
            under_way.append(asyncio.create_task(self._submit(peer)))
        return list(await asyncio.gather(*under_way))

    async def _submit(self, peer: Peer) -> float:
        """Submit a record and return how many ms it took to be final."""
        number = self._written.get(peer.name, 0) + 1
        self._written[peer.name] = number
        unanswered = self._unanswered.setdefault(peer.name, {})
        unanswered[number] = None
        body = wide_offer(f"{peer.name}-{number}")
        start_s = monotonic()
        await peer.submit(body, chain=peer.chains[0])
        del unanswered[number]
        return (monotonic() - start_s) * 1000


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
        "flood": members.flood,
        "written": members.written,
        "missing": members.missing,
        "rss_mib": members.rss_mib,
        "where": members.where,
        "end": members.end,
    }


if __name__ == "__main__":
    serve(_answers)

"""What the way through a conduit costs beside the direct one: two peers and a conduit, three processes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from edgepool.bench.figures import Figure, Rounds
from edgepool.bench.link import FULL_BYTES, QUICK_BYTES, Asker, manifest_of, round_trips
from edgepool.bench.material import NETWORK
from edgepool.bench.processes import Helper
from edgepool.config import PeerSettings
from edgepool.gateway.setup import PeerPlan, make_peer_folder, read_peer_id
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member
from edgepool.model.twin import Manifest
from edgepool.transport.dialler import directly

_BESIDE = "the direct path"


class _Sides:
    """Two peers that ask the same holder: the first through a conduit, the second directly."""

    def __init__(self, settings: tuple[PeerSettings, PeerSettings], far: dict[str, Any]) -> None:
        direct = directly(far["addresses"])
        through = [address for address in far["addresses"] if address not in direct]
        self._settings = settings
        self._holders = [
            Member(PeerId(far["holder"]), "answerer", "", tuple(way)) for way in (through, direct)
        ]

    def make(self) -> list[Asker]:
        """Return new askers, one for each path."""
        return [Asker(*one) for one in zip(self._settings, self._holders, strict=True)]


async def measure_conduit(quick: bool, folder: Path) -> list[Figure]:
    """Measure the time to a link, 1 KB there and back, and a transfer, on both paths."""
    size_bytes = QUICK_BYTES if quick else FULL_BYTES
    rounds = 3 if quick else 7
    async with AsyncExitStack() as stack:
        host, far, sides = await _open(stack, folder, size_bytes)
        linking = await _links(sides, rounds)
        through, direct = sides.make()
        for asker in (through, direct):
            stack.push_async_callback(asker.close)
            await asker.open()
        asking = await round_trips(through.ask, direct.ask, rounds, 200 if quick else 500)
        moving, working = await _transfers((through, direct), manifest_of(far, size_bytes), host, rounds)
    return [
        linking.figure("link", "time until a first link stands", "ms", _BESIDE),
        asking.figure("round_trip", "1 KB there and back, p50", "us", _BESIDE),
        moving.figure(
            "transfer", f"transfer {size_bytes >> 20} MiB, checked", "MB/s", _BESIDE, amount=size_bytes / 1e6
        ),
        working.figure("conduit_cpu", "the conduit's processor time for 1 GiB", "ms"),
    ]


async def _open(
    stack: AsyncExitStack, folder: Path, size_bytes: int
) -> tuple[Helper, dict[str, Any], _Sides]:
    """Start the conduit, and a holder that has a place there and can be dialled, too."""
    authority = folder / "authority"
    make_peer_folder(folder / "conduit", PeerPlan("conduit", NETWORK, serve_conduit=True), authority)
    host = await stack.enter_async_context(Helper("conduithost", folder))
    address: str = await host.ask("open")
    plan = PeerPlan("answerer", NETWORK, conduits=(address,))
    holder = read_peer_id(make_peer_folder(folder / "answerer", plan, authority))
    through, direct = (_make_asker(folder, name, holder) for name in ("through", "direct"))
    answerer = await stack.enter_async_context(Helper("answerer", folder))
    far = {**await answerer.ask("open", size_bytes=size_bytes), "holder": holder}
    return host, far, _Sides((through, direct), far)


def _make_asker(folder: Path, name: str, holder: PeerId) -> PeerSettings:
    """Make a peer that dials the holder at once: the larger of two ids would wait a moment."""
    for number in count():
        plan = PeerPlan(name, NETWORK, listen="")
        settings = make_peer_folder(folder / f"{name}-{number}", plan, folder / "authority")
        if read_peer_id(settings) < holder:
            return settings
    raise AssertionError


async def _links(sides: _Sides, rounds: int) -> Rounds:
    """Return how long it takes from nothing to a link, on each path."""
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for asker, took_s in zip(sides.make(), took, strict=True):
            start_s = perf_counter()
            await asker.open()
            took_s.append(perf_counter() - start_s)
            await asker.close()
    return Rounds(tuple(took[0][1:]), tuple(took[1][1:]))


async def _transfers(
    askers: tuple[Asker, Asker], manifest: Manifest, host: Helper, rounds: int
) -> tuple[Rounds, Rounds]:
    """Return how long a transfer takes on each path, and what 1 GiB costs the conduit."""
    took: tuple[list[float], list[float]] = ([], [])
    spent_s: list[float] = []
    for _ in range(rounds + 1):
        before_s = await host.ask("cpu_s")
        for asker, took_s in zip(askers, took, strict=True):
            start_s = perf_counter()
            await asker.transfer(manifest)
            took_s.append(perf_counter() - start_s)
        spent_s.append((await host.ask("cpu_s") - before_s) * 2**30 / manifest.size_bytes)
    return Rounds(tuple(took[0][1:]), tuple(took[1][1:])), Rounds(tuple(spent_s[1:]))

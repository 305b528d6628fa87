"""One holder, one requester: beside the bare ceiling, and beside what others do, in the same rounds."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edgepool.bench.processes import Helper
from edgepool.bench.transfer.material import GIB, MIB, Data, make_data, make_sides
from edgepool.bench.transfer.order import LARGE_BYTES, Order, Tell
from edgepool.bench.transfer.peers import PEERS, PeerKind
from edgepool.bench.transfer.side import MODULE, Copying, copying
from edgepool.errors import EdgepoolError, Unavailable

OURS, CEILING = "lane", "bare"
_KEPT_ROUNDS = 3

Told = dict[str, Any]
"""What a copy has told, and how many bytes it moved."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something that copies, with its data."""

    name: str
    copying: Copying
    data: Data

    async def once(self, keep: bool = False) -> Told:
        """Copy once."""
        return {**await self.copying.once(keep=keep), "bytes": self.data.size_bytes}


async def measure_single(order: Order, folder: Path, tell: Tell, with_peers: bool) -> Told:
    """Return 'single', and 'peers' with those that are here, and 'skipped' with those that are not."""
    async with AsyncExitStack() as stack:
        tell("making data")
        data = make_data(folder / "data", order.size_bytes)
        field = [
            Contestant(name, await _pair(stack, folder, name, name, data), data) for name in (OURS, CEILING)
        ]
        skipped: dict[str, str] = {}
        kinds = [kind for kind in PEERS if with_peers]
        for kind in kinds:
            tell(f"starting {kind.name}")
            try:
                field.append(await _peer(stack, folder, kind, data))
            except (EdgepoolError, OSError) as error:
                skipped[kind.name] = str(error)
        rounds = await _rounds(field, order.rounds, tell)
        single = _beside_ceiling(rounds)
        tell("into files")
        single["file"] = _beside_ceiling(
            await _rounds(field[:2], min(_KEPT_ROUNDS, order.rounds), tell, keep=True)
        )
    if order.large:
        single["large"] = await _large(folder, data, tell)
    peers = {kind.name: _peer_figures(kind, rounds) for kind in kinds if kind.name in rounds}
    if peers:
        best = min(peers, key=lambda name: float(peers[name]["ratio"]))
        single |= {"best_peer": best, "best_peer_ratio": peers[best]["ratio"]}
    return {"single": single, "skipped": skipped, **({"peers": peers} if with_peers else {})}


async def _pair(stack: AsyncExitStack, folder: Path, name: str, means: str, data: Data) -> Copying:
    sender, receiver = make_sides(folder, f"{name}-sender", f"{name}-receiver")
    return await stack.enter_async_context(copying(means, data, [sender], receiver))


async def _peer(stack: AsyncExitStack, folder: Path, kind: PeerKind, data: Data) -> Contestant:
    """Start a peer's processes, in this stack only if all of them start."""
    if missing := kind.missing():
        raise Unavailable(missing)
    size_bytes = int(data.size_bytes * kind.share)
    part = data if kind.share == 1 else make_data(folder / f"data-{size_bytes}", size_bytes)
    means = f"peers.{kind.means}"
    async with AsyncExitStack() as own:
        made = await _pair(own, folder, kind.name, means, part)
        if kind.relayed:
            (place,) = make_sides(folder, f"{kind.name}-relay")
            relay = await own.enter_async_context(Helper(MODULE, place))
            origin = await made.senders[0].ask("send", means=means, host="127.0.0.1", path=str(part.path))
            where = await relay.ask("relay", means=means, host="127.0.0.1", origin=origin)
            await made.connect(means, [where], part)
            made.senders.append(relay)
        await made.once()
        stack.push_async_exit(own.pop_all())
    return Contestant(kind.name, made, part)


async def _rounds(
    field: list[Contestant], rounds: int, tell: Tell, keep: bool = False
) -> dict[str, list[Told]]:
    """Let all copy in turn, so often after a round that does not count; return what they told, by name."""
    told: dict[str, list[Told]] = {one.name: [] for one in field}
    for number in range(rounds + 1):
        for one in field:
            tell(f"{one.name}, {f'round {number} of {rounds}' if number else 'warming up'}")
            found = await one.once(keep)
            if number:
                told[one.name].append(found)
    return told


def _beside_ceiling(rounds: dict[str, list[Told]]) -> Told:
    ours, ceiling = rounds[OURS], rounds[CEILING]
    return {
        "size_bytes": ours[0]["bytes"],
        "MBps": round(median(map(_rate, ours)), 1),
        "MBps_lowest": round(min(map(_rate, ours)), 1),
        "MBps_highest": round(max(map(_rate, ours)), 1),
        "ceiling_MBps": round(median(map(_rate, ceiling)), 1),
        "ratio": _ratio(ours, ceiling),
        "cpu_s_per_GiB": _cpu(ours),
        "sender_cpu_s_per_GiB": _cpu(ours, "sender_cpu_s"),
        "receiver_cpu_s_per_GiB": _cpu(ours, "receiver_cpu_s"),
        "ceiling_cpu_s_per_GiB": _cpu(ceiling),
        "receiver_rss_MiB": _grown(ours),
    }


def _peer_figures(kind: PeerKind, rounds: dict[str, list[Told]]) -> Told:
    found = rounds[kind.name]
    return {
        "what": kind.what,
        "size_bytes": found[0]["bytes"],
        "MBps": round(median(map(_rate, found)), 1),
        "cpu_s_per_GiB": _cpu(found),
        "ratio": _ratio(rounds[OURS], found),
    }


async def _large(folder: Path, small: Data, tell: Tell) -> Told:
    """Copy 8 GiB once into a file: what counts is the receiver's memory."""
    small.path.unlink()
    tell("making 8 GiB of data")
    data = make_data(folder / "large", LARGE_BYTES)
    async with AsyncExitStack() as stack:
        made = await _pair(stack, folder, "large", OURS, data)
        tell("copying 8 GiB into a file")
        told = {**await made.once(keep=True), "bytes": LARGE_BYTES}
    data.path.unlink()
    return {
        "size_bytes": LARGE_BYTES,
        "MBps": round(_rate(told), 1),
        "cpu_s_per_GiB": _cpu([told]),
        "receiver_rss_MiB": _grown([told]),
    }


def _rate(told: Told) -> float:
    return float(told["bytes"] / told["took_s"] / 1e6)


def _ratio(ours: list[Told], others: list[Told]) -> float:
    """Return the median of the rounds' ratios: how many times as fast ours is."""
    return float(round(median(_rate(a) / _rate(b) for a, b in zip(ours, others, strict=True)), 3))


def _cpu(told: list[Told], which: str = "cpu_s") -> float:
    return float(round(median(one[which] * GIB / one["bytes"] for one in told), 3))


def _grown(told: list[Told]) -> float:
    return float(round(max(one["grown_bytes"] for one in told) / MIB, 1))

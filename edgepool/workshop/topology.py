"""Topologies: who is in which pool, and what is exchanged, as a TOML file says it.

    [network]     name
    [[peers]]     name, role ("machine"), machine_type ("")
    [[pools]]     name, kind ("fixed"), members, combination ([])
    [[exchanges]] from, to, key, size_bytes, expect_hops (not checked unless it is given)

One peer is the coordinator: the one with that role, or else the first. Peers with the role "witness"
need no pool: they join pools of fewer than four members. `run` starts all peers in
this process, over real links on loopback, forms the pools and plays the exchanges one by one.
"""

from __future__ import annotations

import asyncio
import filecmp
import random
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import networkx as nx
from msgspec import Meta

from edgepool.config import KnownPeer, Role, Settings, convert, read_toml
from edgepool.core.machine import RecordRef
from edgepool.errors import ConfigError, EdgepoolError, LocalError, Unavailable
from edgepool.gateway.pools import POLL_S, gather_members, pool_stands
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.gateway.witnesses import choose_witnesses
from edgepool.model.fields import Name
from edgepool.model.pool import MAX_MEMBERS, Genesis, PoolKind
from edgepool.model.twin import DataKey
from edgepool.peer.peer import Peer
from edgepool.workshop.orders import Workshop

MAX_PEERS = 64
CONNECT_TIMEOUT_S = 30
_WRITE_BYTES = 1024 * 1024

Report = Callable[[str], None]
_Node = tuple[str, str]


class NetworkTable(Settings, frozen=True):
    """What the network is called."""

    name: Name


class TopologyPeer(Settings, frozen=True):
    """One peer."""

    name: Name
    role: Role = "machine"
    machine_type: Annotated[str, Meta(max_length=64)] = ""


class TopologyPool(Settings, frozen=True):
    """One pool; `combination` is the route that a manufacturing pool serves."""

    name: Name
    members: tuple[Name, ...]
    kind: PoolKind = "fixed"
    combination: tuple[Name, ...] = ()


class Exchange(Settings, frozen=True, rename={"source": "from", "target": "to"}):
    """Data of `size_bytes` is published by `source` and fetched by `target`.

    `expect_hops` is how many pools lie between: 0 if both are in one pool.
    """

    source: Name
    target: Name
    key: str
    size_bytes: Annotated[int, Meta(ge=0, le=2**30)] = 65536
    expect_hops: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """How an exchange can go: the pool it is published in, pools and peers passed, pools between."""

    pool: str
    path: tuple[str, ...]
    hops: int


class Topology(Settings, frozen=True):
    """A network of peers and pools, and the exchanges to play in it."""

    network: NetworkTable
    peers: Annotated[tuple[TopologyPeer, ...], Meta(min_length=1, max_length=MAX_PEERS)]
    pools: Annotated[tuple[TopologyPool, ...], Meta(min_length=1, max_length=256)]
    exchanges: Annotated[tuple[Exchange, ...], Meta(max_length=10_000)] = ()

    @property
    def coordinator(self) -> TopologyPeer:
        """The peer that forms the pools."""
        return next((peer for peer in self.peers if peer.role == "coordinator"), self.peers[0])

    def pools_of(self, peer: str) -> tuple[TopologyPool, ...]:
        """Return the pools that a peer is in, in the order of the file."""
        return tuple(pool for pool in self.pools if peer in pool.members)

    def graph(self) -> nx.Graph:
        """Return the graph of ("peer", name) and ("pool", name) nodes; an edge is a membership."""
        graph = nx.Graph()
        graph.add_nodes_from(("peer", peer.name) for peer in self.peers)
        graph.add_nodes_from(("pool", pool.name) for pool in self.pools)
        graph.add_edges_from(
            (("pool", pool.name), ("peer", member)) for pool in self.pools for member in pool.members
        )
        return graph

    def route(self, exchange: Exchange) -> Route | None:
        """Return the shortest way of an exchange, from the pool of `source` nearest to `target`."""
        graph = self.graph()
        paths: list[list[_Node]] = []
        for pool in self.pools_of(exchange.source):
            if nx.has_path(graph, ("peer", exchange.target), ("pool", pool.name)):
                paths.append(nx.shortest_path(graph, ("peer", exchange.target), ("pool", pool.name)))
        if not paths:
            return None
        path = min(paths, key=len)
        return Route(path[-1][1], tuple(name for _, name in path), len(path) // 2 - 1)

    def check(self) -> list[str]:
        """Return what is wrong with this topology, a sentence each; nothing if it can be run."""
        problems = [*self._check_peers(), *self._check_pools()]
        return problems or [*self._check_connected(), *self._check_exchanges()]

    def _check_peers(self) -> Iterable[str]:
        yield from _twice("peer", (peer.name for peer in self.peers))
        for peer in self.peers:
            if not peer.name.isprintable() or peer.name in (".", "..") or set(peer.name) & set("/\\"):
                yield f"peer '{peer.name}' cannot name a folder: use letters, digits and dashes"
        coordinators = [peer.name for peer in self.peers if peer.role == "coordinator"]
        if len(coordinators) > 1:
            yield f"{' and '.join(coordinators)} are all coordinators: one is enough"

    def _check_pools(self) -> Iterable[str]:
        names = {peer.name for peer in self.peers}
        yield from _twice("pool", (pool.name for pool in self.pools))
        for pool in self.pools:
            yield from _twice(f"member of pool '{pool.name}'", pool.members)
            for member in pool.members:
                if member not in names:
                    yield f"pool '{pool.name}' has a member '{member}' who is not among the peers"
            if not 1 <= len(pool.members) <= MAX_MEMBERS:
                yield f"pool '{pool.name}' has {len(pool.members)} members: a pool has 1 to {MAX_MEMBERS}"
            if pool.combination and pool.kind == "fixed":
                yield f"pool '{pool.name}' is fixed: only a manufacturing pool has a combination"

    def _check_connected(self) -> Iterable[str]:
        graph = self.graph()
        alone = {peer.name: peer.role for peer in self.peers if not self.pools_of(peer.name)}
        for name, role in alone.items():
            graph.remove_node(("peer", name))
            if name != self.coordinator.name and role not in ("witness", "regulator"):
                yield f"peer '{name}' is in no pool: it can reach nobody's data"
        parts = [
            sorted(name for kind, name in part if kind == "pool") for part in nx.connected_components(graph)
        ]
        if len(parts) > 1:
            groups = " | ".join(", ".join(part) for part in sorted(parts))
            yield f"the pools fall apart into {len(parts)} groups that share no peer: {groups}"

    def _check_exchanges(self) -> Iterable[str]:
        names = {peer.name for peer in self.peers}
        for number, exchange in enumerate(self.exchanges, 1):
            where = f"exchange {number} ({exchange.key})"
            unknown = [name for name in (exchange.source, exchange.target) if name not in names]
            if unknown:
                yield f"{where} names '{unknown[0]}', who is not among the peers"
                continue
            if exchange.source == exchange.target:
                yield f"{where} goes from '{exchange.source}' to itself"
                continue
            try:
                DataKey.parse(exchange.key)
            except LocalError as error:
                yield f"{where}: {error}"
            route = self.route(exchange)
            if route is None:
                yield f"{where}: no pool leads from '{exchange.source}' to '{exchange.target}'"
            elif exchange.expect_hops not in (None, route.hops):
                yield f"{where} expects {exchange.expect_hops} hops, but the pools make it {route.hops}"


def load_topology(path: Path) -> Topology:
    """Read a topology file; ConfigError names what is malformed. `Topology.check` says the rest."""
    return convert(path, read_toml(path), Topology)


def is_workshop(path: Path) -> bool:
    """Say whether a TOML file is a whole workshop (orders and machines) instead of a topology."""
    tables = read_toml(path)
    return "parts" in tables and "machines" in tables


def topology_of(workshop: Workshop) -> Topology:
    """Return the fixed pools of a workshop, with the coordinator in each, as a topology [S3.4]."""
    functions = workshop.function_of
    return Topology(
        NetworkTable(workshop.name),
        (
            TopologyPeer("coordinator", "coordinator"),
            *(TopologyPeer(name, "machine", function) for name, function in functions.items()),
            *(TopologyPeer(name, "witness") for name in workshop.witness_names),
        ),
        tuple(
            TopologyPool(pool.name, ("coordinator", *workshop.machines_of(pool.name)))
            for pool in workshop.fixed_pools
        ),
    )


async def run(topology: Topology, folder: Path, report: Report | None = None) -> dict[str, Any]:
    """Start all peers in this process, form the pools, play the exchanges; return what happened.

    Each peer has a folder of its own under `folder`/peers (which must be new), beside a small
    authority. Raises ConfigError if the topology cannot be run, Unavailable if a pool does not
    come to stand; an exchange that fails says so in its own entry.
    """
    problems = topology.check()
    if problems:
        raise ConfigError(f"this topology cannot be run: {'; '.join(problems[:3])}")
    say = report or (lambda _: None)
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        peers = await _start(topology, folder, stack)
        say(f"{len(peers)} peers are up")
        pools = await _form(topology, peers)
        say(f"{len(pools)} {'pool stands' if len(pools) == 1 else 'pools stand'}, each with its chain")
        data = folder / "data"
        await asyncio.to_thread(data.mkdir)
        results = []
        for number, exchange in enumerate(topology.exchanges, 1):
            results.append(await _play(topology, exchange, peers, pools, data / f"{number:05d}"))
            say(sentence(results[-1]))
        return {
            "network": topology.network.name,
            "peers": len(peers),
            "coordinator": topology.coordinator.name,
            "pools": [_pool_view(pool, pools[pool.name], peers) for pool in topology.pools],
            "exchanges": results,
            "failed": sum(not result["verified"] for result in results),
            "wall_s": round(time.monotonic() - started, 3),
        }


def sentence(result: dict[str, Any]) -> str:
    """Return an exchange's outcome for people."""
    what = f"{result['to']} asks for {result['key']}"
    if not result["verified"]:
        return f"{what}: {result['error']}"
    way = " → ".join(result["path"])
    hops = f"{result['hops']} hop{'' if result['hops'] == 1 else 's'}"
    return (
        f"{what}: {result['holder']} has it ({way}: {hops}, found in {result['search_ms']} ms), "
        f"{result['size_bytes']} bytes came directly in {result['duration_ms']} ms and are whole"
    )


async def _start(topology: Topology, folder: Path, stack: AsyncExitStack) -> dict[str, Peer]:
    """Start the coordinator, then the others with a link to it."""
    authority = folder / "authority"
    first = topology.coordinator
    plan = PeerPlan(first.name, topology.network.name, "coordinator", first.machine_type)
    coordinator = await _open(folder / "peers" / first.name, plan, authority, stack)
    known = KnownPeer(first.name, f"{coordinator.addresses[0]}/p2p/{coordinator.id}")
    peers = {first.name: coordinator}
    for peer in topology.peers:
        if peer.name != first.name:
            plan = PeerPlan(
                peer.name,
                topology.network.name,
                peer.role,
                peer.machine_type,
                coordinators=(coordinator.id,),
                known_peers=(known,),
            )
            peers[peer.name] = await _open(folder / "peers" / peer.name, plan, authority, stack)
    return {peer.name: peers[peer.name] for peer in topology.peers}


async def _open(folder: Path, plan: PeerPlan, authority: Path, stack: AsyncExitStack) -> Peer:
    settings = await asyncio.to_thread(make_peer_folder, folder, plan, authority)
    return await stack.enter_async_context(Peer.open(settings))


async def _form(topology: Topology, peers: dict[str, Peer]) -> dict[str, Genesis]:
    """Form all pools at once; return them by name when every member is in them."""
    coordinator = peers[topology.coordinator.name]
    names = [peer.name for peer in topology.peers if peer.role == "witness"]
    witnesses = await gather_members(coordinator, names, CONNECT_TIMEOUT_S)
    used = {witness.peer: 0 for witness in witnesses}

    async def form(pool: TopologyPool) -> Genesis:
        members = await gather_members(coordinator, pool.members, CONNECT_TIMEOUT_S)
        chosen = choose_witnesses(members, witnesses, used)
        used.update((witness.peer, used[witness.peer] + 1) for witness in chosen)
        members += chosen
        return await coordinator.form_pool(pool.name, pool.kind, members, combination=pool.combination)

    genesises = await asyncio.gather(*(form(pool) for pool in topology.pools))
    pools = {pool.name: genesis for pool, genesis in zip(topology.pools, genesises, strict=True)}
    for genesis in genesises:
        members = [peers[member.name] for member in genesis.invitation.members]
        await pool_stands(genesis, members, CONNECT_TIMEOUT_S)
    return pools


async def _play(
    topology: Topology,
    exchange: Exchange,
    peers: dict[str, Peer],
    pools: dict[str, Genesis],
    file: Path,
) -> dict[str, Any]:
    route = topology.route(exchange)
    assert route is not None
    source, target = peers[exchange.source], peers[exchange.target]
    home = topology.pools_of(exchange.target)[0].name
    result: dict[str, Any] = {
        "key": exchange.key,
        "from": exchange.source,
        "to": exchange.target,
        "size_bytes": exchange.size_bytes,
        "published_in": route.pool,
        "found": [],
        "path": [],
        "hops": None,
        "holder": "",
        "search_ms": None,
        "duration_ms": None,
        "verified": False,
        "error": "",
    }
    try:
        await asyncio.to_thread(_write_data, file, exchange)
        published = await source.publish(exchange.key, path=file, chain=pools[route.pool].chain)
        await _settle(published.ref, [peers[name] for name in _members(topology, route.pool)])
        started = time.monotonic()
        offers = await target.request(exchange.key, version=published.version)
        result["search_ms"] = round(1000 * (time.monotonic() - started))
        result["found"] = [offer.holder.name for offer in offers]
        chain = pools[route.pool if target.name in _members(topology, route.pool) else home].chain
        fetched = await target.fetch(exchange.key, version=published.version, chain=chain)
        same = await asyncio.to_thread(filecmp.cmp, file, fetched.path, False)
        result |= {
            "path": [*route.path, exchange.source],
            "hops": route.hops,
            "holder": exchange.source if fetched.holder == source.id else fetched.holder,
            "size_bytes": fetched.size_bytes,
            "duration_ms": fetched.duration_ms,
            "verified": same and fetched.root == published.root,
            "error": "" if same else "what arrived is not what was published",
        }
    except EdgepoolError as error:
        result["error"] = str(error)
    return result


async def _settle(ref: RecordRef, members: list[Peer]) -> None:
    """Wait until all members have the block: they follow the publisher within milliseconds."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while any(member.chain_state(ref.chain).height < ref.height for member in members):
        if time.monotonic() > deadline:
            raise Unavailable(f"block {ref.height} does not reach all members of its pool")
        await asyncio.sleep(POLL_S)


def _members(topology: Topology, pool: str) -> tuple[str, ...]:
    return next(p.members for p in topology.pools if p.name == pool)


def _write_data(file: Path, exchange: Exchange) -> None:
    """Write the data of an exchange, the same in every run."""
    source = random.Random(f"{exchange.source} {exchange.key} {exchange.size_bytes}")
    with file.open("wb") as written:
        for start in range(0, exchange.size_bytes, _WRITE_BYTES):
            written.write(source.randbytes(min(_WRITE_BYTES, exchange.size_bytes - start)))


def _pool_view(pool: TopologyPool, genesis: Genesis, peers: dict[str, Peer]) -> dict[str, Any]:
    return {
        "name": pool.name,
        "kind": pool.kind,
        "members": [member.name for member in genesis.invitation.members],
        "chain": genesis.chain,
        "height": max(peers[name].chain_state(genesis.chain).height for name in pool.members),
    }


def _twice(what: str, names: Iterable[str]) -> Iterable[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"{what} '{name}' stands there twice"
        seen.add(name)

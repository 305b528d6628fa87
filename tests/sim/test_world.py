"""Eighteen machines and a coordinator, the very code of a gateway, in virtual time."""

from __future__ import annotations

import msgspec
import pytest

from edgepool.config import Limits
from edgepool.core.machine import (
    ChangeMembers,
    ConfirmTransfer,
    FindData,
    FormPool,
    RankedOffer,
    RecordRef,
)
from edgepool.errors import Refused
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis, Invitation
from edgepool.model.record import DataDemand, DataOffer, SignedRecord
from edgepool.model.twin import DataKey
from edgepool.model.vote import quorum
from edgepool.sim.network import NetworkConditions
from edgepool.sim.world import EPOCH_MS, NETWORK, SimPeer, World

POOLS = {"turning": 7, "milling": 8, "wire-cutting": 3}
ROOT = bytes(range(32))


class Workshop:
    """The case study's machines: three fixed pools of 7, 8 and 3, kept with the coordinator."""

    def __init__(self, seed: int, conditions: NetworkConditions | None = None) -> None:
        self.world = World(seed, conditions)
        self.cloud = self.world.add("cloud", role="coordinator")
        self.machines: dict[str, list[SimPeer]] = {}
        for pool, count in POOLS.items():
            self.machines[pool] = [
                self.world.add(f"{pool}-{n}", machine_type=pool, coordinator=self.cloud.id)
                for n in range(1, count + 1)
            ]
        for machines in self.machines.values():
            for machine in machines:
                self.world.connect(self.cloud, machine)
        self.pools = {
            pool: self.form(pool, "fixed", [*machines, self.cloud])
            for pool, machines in self.machines.items()
        }

    def form(
        self, name: str, kind: str, members: list[SimPeer], observers: tuple[SimPeer, ...] = ()
    ) -> Genesis:
        invitation = Invitation(
            NETWORK,
            name,
            kind,  # type: ignore[arg-type]
            self.cloud.id,
            tuple(peer.member for peer in members),
            tuple(peer.member for peer in observers),
            (),
            EPOCH_MS,
            self.world.steps,
        )
        genesis = self.world.command(self.cloud, FormPool(invitation))
        assert isinstance(genesis, Genesis)
        assert self.world.run_until(
            lambda: all(genesis.chain in peer.node.chains for peer in [*members, *observers]), 1_000
        )
        return genesis

    def offer(self, holder: SimPeer, chain: ChainId, key: DataKey) -> None:
        self.world.hold(holder, ROOT, 1000)
        self.world.submit(holder, DataOffer(key, 1, ROOT, 1000, "", 96), chain)


KEY = DataKey("PTVA10212-01", "model")


def demand(n: int) -> DataDemand:
    return DataDemand(KEY, n, "hole", "machining parameters")


def test_every_pool_commits_the_same_blocks_on_every_member() -> None:
    workshop = Workshop(seed=1)
    for pool, genesis in workshop.pools.items():
        for n, machine in enumerate(workshop.machines[pool]):
            workshop.world.submit(machine, demand(n), genesis.chain)
    workshop.world.run_for(2_000)
    for pool, genesis in workshop.pools.items():
        states = [p.node.chains[genesis.chain].state for p in [*workshop.machines[pool], workshop.cloud]]
        assert len({state.last_block_id for state in states}) == 1
        assert states[0].counts["demand"] == len(workshop.machines[pool])


def test_same_seed_same_trace_other_seed_other_trace() -> None:
    def trace(seed: int) -> str:
        workshop = Workshop(seed)
        chain = workshop.pools["milling"].chain
        workshop.world.submit(workshop.machines["milling"][0], demand(1), chain)
        return workshop.world.trace

    assert trace(7) == trace(7)
    assert trace(7) != trace(8)


def test_data_is_found_across_pools_and_confirmed_by_both() -> None:
    workshop = Workshop(seed=2)
    holder = workshop.machines["wire-cutting"][1]
    asker = workshop.machines["turning"][3]
    workshop.offer(holder, workshop.pools["wire-cutting"].chain, KEY)
    found = workshop.world.command(asker, FindData(KEY, 0, 5_000))
    assert isinstance(found, tuple)
    assert [offer.holder.peer for offer in found] == [holder.id]
    offer = found[0]
    assert isinstance(offer, RankedOffer)
    assert offer.reachable
    until_ms = EPOCH_MS + workshop.world.now_ms + 60_000
    record = workshop.world.command(asker, ConfirmTransfer(offer.holder, KEY, ROOT, until_ms))
    assert isinstance(record, SignedRecord)
    workshop.world.run_for(2_000)
    state = holder.node.chains[workshop.pools["wire-cutting"].chain].state
    assert state.counts["confirmation"] == 1


def test_manufacturing_pool_goes_on_without_the_coordinator() -> None:
    workshop = Workshop(seed=3)
    members = [
        workshop.machines["turning"][0],
        *workshop.machines["milling"][:2],
        workshop.machines["wire-cutting"][0],
    ]
    pool = workshop.form("task-1", "manufacturing", members, (workshop.cloud,))
    workshop.world.crash(workshop.cloud)
    for n, member in enumerate(members):
        ref = workshop.world.submit(member, demand(n), pool.chain)
        assert isinstance(ref, RecordRef)
    main = workshop.pools["wire-cutting"]
    workshop.world.submit(workshop.machines["wire-cutting"][0], demand(9), main.chain)
    workshop.world.restart(workshop.cloud)
    caught_up = workshop.world.run_until(
        lambda: (
            workshop.cloud.node.chains[pool.chain].state.counts["demand"] == 4
            and workshop.cloud.node.chains[main.chain].state.counts["demand"] == 1
        ),
        60_000,
    )
    assert caught_up


def test_acknowledged_records_survive_a_power_cut_of_the_whole_pool() -> None:
    workshop = Workshop(seed=4)
    chain = workshop.pools["wire-cutting"].chain
    machines = workshop.machines["wire-cutting"]
    refs = [workshop.world.submit(machine, demand(n), chain) for n, machine in enumerate(machines)]
    for machine in machines:
        workshop.world.crash(machine)
    workshop.world.run_for(1_000)
    for machine in machines:
        workshop.world.restart(machine)
    workshop.world.submit(machines[0], demand(99), chain)
    workshop.world.run_for(5_000)
    for machine in machines:
        state = machine.node.chains[chain].state
        assert state.counts["demand"] == len(refs) + 1


@pytest.mark.parametrize("seed", [5, 6])
def test_lossy_network_loses_no_acknowledged_record(seed: int) -> None:
    workshop = Workshop(seed)
    conditions = NetworkConditions(delay_min_ms=1, delay_max_ms=80, loss_per_mille=100)
    workshop.world.network.conditions = conditions
    chain = workshop.pools["milling"].chain
    for n, machine in enumerate(workshop.machines["milling"]):
        assert isinstance(workshop.world.submit(machine, demand(n), chain, 300_000), RecordRef)
    workshop.world.network.conditions = NetworkConditions()
    workshop.world.run_for(20_000)
    everybody = [*workshop.machines["milling"], workshop.cloud]
    states = [peer.node.chains[chain].state for peer in everybody]
    assert {state.counts["demand"] for state in states} == {len(workshop.machines["milling"])}
    assert len({state.last_block_id for state in states}) == 1


def test_minority_side_of_a_partition_commits_nothing_and_catches_up() -> None:
    workshop = Workshop(seed=9)
    chain = workshop.pools["milling"].chain
    members = [*workshop.machines["milling"], workshop.cloud]
    enough = quorum(len(members))
    majority, minority = members[:enough], members[enough:]
    rest = [p for pool in ("turning", "wire-cutting") for p in workshop.machines[pool]]
    workshop.world.network.partition([p.id for p in majority], [p.id for p in minority], [p.id for p in rest])
    workshop.world.submit(majority[0], demand(1), chain, 300_000)
    assert minority[0].node.chains[chain].state.height == 0
    workshop.world.network.heal()
    height = majority[0].node.chains[chain].state.height
    assert workshop.world.run_until(
        lambda: all(p.node.chains[chain].state.height >= height for p in minority), 60_000
    )


def test_a_peer_is_in_no_more_pools_than_its_limit() -> None:
    world = World(seed=10)
    cloud = world.add("cloud", role="coordinator")
    machine = world.add("m1", coordinator=cloud.id)
    machine.settings = msgspec.structs.replace(machine.settings, limits=Limits(chains=3))
    world.crash(machine)
    world.restart(machine)
    world.connect(cloud, machine)
    for n in range(6):
        invitation = Invitation(
            NETWORK, f"p{n}", "fixed", cloud.id, (cloud.member,), (machine.member,), (), EPOCH_MS, n
        )
        world.command(cloud, FormPool(invitation))
    world.run_for(1_000)
    assert len(machine.node.chains) == 3


def test_a_peer_that_is_full_says_so_before_a_pool_counts_on_it_and_pools_that_it_left_do_not_count() -> None:
    world = World(seed=11)
    cloud = world.add("cloud", role="coordinator")
    machines = [world.add(f"m{n}", coordinator=cloud.id) for n in range(4)]
    busy = machines[0]
    busy.settings = msgspec.structs.replace(busy.settings, limits=Limits(chains=2))
    world.crash(busy)
    world.restart(busy)
    for machine in machines:
        world.connect(cloud, machine)

    def form(name: str) -> Genesis:
        members = tuple(machine.member for machine in machines)
        invitation = Invitation(
            NETWORK, name, "manufacturing", cloud.id, members, (cloud.member,), (), EPOCH_MS, 0
        )
        formed = world.command(cloud, FormPool(invitation))
        assert isinstance(formed, Genesis)
        return formed

    first = form("first")
    form("second")
    with pytest.raises(Refused, match="m0 declined: it is in as many pools"):
        form("third")
    world.command(cloud, ChangeMembers(first.chain, busy.id, None, "its part is done"))
    for n in range(3):
        world.submit(machines[1], demand(n), first.chain)
    assert world.run_until(lambda: not busy.node.room.takes_part(busy.node.chains[first.chain]), 60_000)
    third = form("third")
    assert world.run_until(lambda: third.chain in busy.node.chains, 60_000)
    assert len(busy.node.chains) == 3
    with pytest.raises(Refused, match="m0 declined"):
        form("fourth")

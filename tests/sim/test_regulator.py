"""A regulator sees all records of its network, comes whenever it likes, and gets no data [S1.2]."""

from __future__ import annotations

import pytest

from edgepool.core.machine import ConfirmTransfer, FindData, FormPool, RankedOffer
from edgepool.errors import Refused
from edgepool.model.pool import Genesis, Invitation
from edgepool.model.record import DataDemand, DataOffer
from edgepool.model.twin import DataKey
from edgepool.sim.world import EPOCH_MS, NETWORK, SimPeer, World

KEY = DataKey("PTVA10212-01", "model")
ROOT = bytes(range(32))


class Plant:
    """Four machines in a pool, their coordinator beside it."""

    def __init__(self) -> None:
        self.world = World(seed=4)
        self.cloud = self.world.add("cloud", role="coordinator")
        self.machines = [self.world.add(f"m{n}", coordinator=self.cloud.id) for n in range(4)]
        for machine in self.machines:
            self.world.connect(self.cloud, machine)

    def form(self, name: str, members: list[SimPeer]) -> Genesis:
        people = tuple(peer.member for peer in members)
        invitation = Invitation(
            *(NETWORK, name, "fixed", self.cloud.id, people, (self.cloud.member,), (), EPOCH_MS, 0)
        )
        genesis = self.world.command(self.cloud, FormPool(invitation))
        assert isinstance(genesis, Genesis)
        assert self.world.run_until(lambda: all(genesis.chain in one.node.chains for one in members), 1_000)
        return genesis

    def regulator(self) -> SimPeer:
        eye = self.world.add("eye", role="regulator", coordinator=self.cloud.id)
        self.world.connect(self.cloud, eye)
        return eye


def demand(number: int) -> DataDemand:
    return DataDemand(KEY, number, "hole", "")


def test_it_follows_pools_that_stand_and_pools_to_come_and_goes_on_without_the_coordinator() -> None:
    plant = Plant()
    first = plant.form("first", plant.machines)
    for number in range(3):
        plant.world.submit(plant.machines[0], demand(number), first.chain)
    eye = plant.regulator()
    second = plant.form("second", plant.machines[:2])
    plant.world.submit(plant.machines[1], demand(1), second.chain)

    def has(chain: str, count: int) -> bool:
        followed = eye.node.chains.get(chain)  # type: ignore[call-overload]
        return followed is not None and followed.state.counts["demand"] == count

    assert plant.world.run_until(lambda: has(first.chain, 3) and has(second.chain, 1), 20_000)
    plant.world.crash(plant.cloud)
    plant.world.submit(plant.machines[2], demand(9), first.chain)
    assert plant.world.run_until(lambda: has(first.chain, 4), 20_000)
    assert not eye.node.chains[first.chain].member
    assert all(eye.id not in one.node.chains[first.chain].people for one in plant.machines)


def test_it_comes_back_to_what_it_has_missed() -> None:
    plant = Plant()
    pool, eye = plant.form("first", plant.machines), plant.regulator()
    assert plant.world.run_until(lambda: pool.chain in eye.node.chains, 5_000)
    plant.world.crash(eye)
    for number in range(5):
        plant.world.submit(plant.machines[number % 4], demand(number), pool.chain)
    plant.world.restart(eye)
    plant.world.connect(plant.cloud, eye)
    assert plant.world.run_until(lambda: eye.node.chains[pool.chain].state.counts["demand"] == 5, 20_000)


def test_it_writes_nothing_asks_nothing_and_gets_no_data() -> None:
    plant = Plant()
    pool, eye = plant.form("first", plant.machines), plant.regulator()
    holder = plant.machines[0]
    plant.world.hold(holder, ROOT, 1000)
    plant.world.submit(holder, DataOffer(KEY, 1, ROOT, 1000, "", 96), pool.chain)
    found = plant.world.command(plant.machines[1], FindData(KEY, 0, 5_000))
    assert isinstance(found, tuple)
    offer = found[0]
    assert isinstance(offer, RankedOffer)
    assert plant.world.run_until(lambda: eye.node.chains[pool.chain].state.height == 1, 20_000)
    with pytest.raises(Refused, match="the author is no member of this pool"):
        plant.world.submit(eye, demand(1), pool.chain)
    with pytest.raises(Refused, match="a regulator may not ask who has data"):
        plant.world.command(eye, FindData(KEY, 0, 5_000))
    with pytest.raises(Refused, match="a regulator may not read data"):
        plant.world.command(eye, ConfirmTransfer(offer.holder, KEY, ROOT, EPOCH_MS + 300_000))

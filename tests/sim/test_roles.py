"""Roles without a vote [S1.2]: a regulator sees all records and no data, a client demands and is granted."""

from __future__ import annotations

import pytest

from edgepool.core.machine import ConfirmTransfer, FindData, FormPool, RankedOffer
from edgepool.errors import Refused
from edgepool.model.policy import DataPolicy, PolicyTerms
from edgepool.model.pool import Genesis, Invitation
from edgepool.model.record import DataDemand, DataOffer, SignedRecord
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

    def form(self, name: str, members: list[SimPeer], *watching: SimPeer) -> Genesis:
        people = tuple(peer.member for peer in members)
        observers = tuple(peer.member for peer in (self.cloud, *watching))
        invitation = Invitation(*(NETWORK, name, "fixed", self.cloud.id, people, observers, (), EPOCH_MS, 0))
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


def test_a_client_in_a_pool_demands_data_and_has_it_where_a_policy_names_clients() -> None:
    plant = Plant()
    customer = plant.world.add("customer", role="client", coordinator=plant.cloud.id)
    plant.world.connect(plant.cloud, customer)
    pool, holder = plant.form("first", plant.machines, customer), plant.machines[0]
    plant.world.hold(holder, ROOT, 1000)
    plant.world.submit(holder, DataOffer(KEY, 1, ROOT, 1000, "", 96), pool.chain)
    assert plant.world.run_until(lambda: pool.chain in customer.node.chains, 20_000)
    plant.world.submit(customer, demand(0), pool.chain)
    with pytest.raises(Refused, match="a client may not offer data"):
        plant.world.submit(customer, DataOffer(KEY, 2, ROOT, 1000, "", 96), pool.chain)
    found = plant.world.command(customer, FindData(KEY, 0, 5_000))
    assert isinstance(found, tuple)
    offer = found[0]
    assert isinstance(offer, RankedOffer)
    assert "a client may read data only where a policy" in offer.refusal
    command = ConfirmTransfer(offer.holder, KEY, ROOT, EPOCH_MS + 300_000, "acceptance")
    with pytest.raises(Refused, match="a client may read data only where a policy"):
        plant.world.command(customer, command)
    terms = PolicyTerms(roles=("client",), purposes=("acceptance",))
    plant.world.submit(holder, DataPolicy(KEY.part, "*", 1, terms), pool.chain)
    confirmed = plant.world.command(customer, command)
    assert isinstance(confirmed, SignedRecord)
    assert confirmed.record.body.purpose == "acceptance"  # type: ignore[union-attr]
    (origin,) = customer.node.directory.access.origins.values()
    assert origin is not None
    assert (origin.owner, origin.terms) == (holder.id, terms)


def test_what_a_policy_hides_is_found_on_its_chain_only() -> None:
    plant = Plant()
    here, there = plant.form("here", plant.machines[:3]), plant.form("there", plant.machines[2:])
    holder, inside, outside = plant.machines[0], plant.machines[1], plant.machines[3]
    plant.world.hold(holder, ROOT, 1000)
    plant.world.submit(holder, DataOffer(KEY, 1, ROOT, 1000, "", 96), here.chain)
    assert there.chain in outside.node.chains

    def finds(peer: SimPeer) -> int:
        found = plant.world.command(peer, FindData(KEY, 0, 5_000))
        assert isinstance(found, tuple)
        return len(found)

    assert (finds(inside), finds(outside)) == (1, 1)
    plant.world.submit(holder, DataPolicy("*", "*", 1, PolicyTerms(hidden=True)), here.chain)
    assert plant.world.run_until(
        lambda: all(one.node.chains[here.chain].state.height == 2 for one in plant.machines[:3]), 5_000
    )
    assert (finds(inside), finds(outside)) == (1, 0)


def test_a_policy_travels_with_the_data_from_pool_to_pool() -> None:
    plant = Plant()
    owner, middle, last = plant.machines[0], plant.machines[2], plant.machines[3]
    first = plant.form("first", plant.machines[:2])
    plant.form("second", plant.machines[1:3])
    third = plant.form("third", plant.machines[2:])
    plant.world.hold(owner, ROOT, 1000)
    plant.world.submit(owner, DataOffer(KEY, 1, ROOT, 1000, "", 96), first.chain)
    plant.world.submit(owner, DataPolicy("*", "*", 1, PolicyTerms(purposes=("production",))), first.chain)

    def ask(asker: SimPeer, holder: SimPeer, purpose: str) -> object:
        command = ConfirmTransfer(holder.member, KEY, ROOT, EPOCH_MS + 300_000, purpose)
        return plant.world.command(asker, command)

    with pytest.raises(Refused, match="refused by m0: purpose 'marketing' is not among production"):
        ask(middle, owner, "marketing")
    assert isinstance(ask(middle, owner, "production"), SignedRecord)
    plant.world.hold(middle, ROOT, 1000)
    plant.world.submit(middle, DataOffer(KEY, 1, ROOT, 1000, "", 96), third.chain)
    with pytest.raises(Refused, match="refused by m2: purpose 'marketing' is not among production"):
        ask(last, middle, "marketing")
    assert isinstance(ask(last, middle, "production"), SignedRecord)
    (origin,) = last.node.directory.access.origins.values()
    assert origin is not None
    assert (origin.owner, origin.chain) == (owner.id, first.chain), "twice removed, it is still the owner's"

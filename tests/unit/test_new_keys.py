"""Who is named without a vote goes on under a new key [S3.6]: observers, and coordinators."""

from __future__ import annotations

import pytest
from ledger_world import KEY, NETWORK, World, signer
from msgspec.structs import replace

from edgepool.core.ledger.proof import proof_problem, prove
from edgepool.core.ledger.roster import MAX_VOTELESS
from edgepool.core.ledger.state import ChainState
from edgepool.core.membership import MembershipPolicy
from edgepool.core.people import People, listeners
from edgepool.core.rosters import RosterFollower, RosterHistory
from edgepool.model.crypto import Signer
from edgepool.model.pool import Member
from edgepool.model.record import DataDemand
from edgepool.model.succession import Adoption, KeySuccession, is_trusted
from edgepool.model.trust import RevokePeer, TrustChange


@pytest.fixture
def world() -> World:
    return World(observers=("client", "regulator"))


def go_on(world: World, old: Signer, name: str = "new key") -> Signer:
    """Let `old`, who has no vote, go on under a new key, which is returned."""
    new = world.newcomer(name)
    world.pack(world.record(old, world.new_key(old, new)))
    return new


def verdict(world: World, author: Signer, body: KeySuccession | DataDemand) -> str:
    return world.state.draft().add(world.record(author, body))


# --- what it does


def test_the_coordinators_new_key_plans_and_its_old_one_does_not(world: World) -> None:
    new = go_on(world, world.coordinator)
    assert world.state.coordinator == new.peer
    assert world.state.heir(world.coordinator.peer) == new.peer
    assert world.state.draft().add(world.requirement(0, 0, author=new)) == ""
    assert "no member" in world.state.draft().add(world.requirement(0, 0))


def test_nobodys_vote_is_touched_and_no_handover_is_made(world: World) -> None:
    before = (world.state.roster, world.state.change_number)
    go_on(world, world.coordinator)
    world.pack(world.demand(0), packer=1)
    assert (world.state.roster, world.state.change_number) == before
    assert world.handovers == []


def test_an_observer_follows_and_writes_under_its_new_key(world: World) -> None:
    old = world.observers["client"]
    new = go_on(world, old)
    demand = DataDemand(KEY, 0, "hole", "steel")
    assert verdict(world, new, demand) == ""
    assert "no member" in verdict(world, old, demand)
    assert [one.peer for one in world.state.observers] == [new.peer, world.observers["regulator"].peer]
    assert world.state.observers[0].name == "client"


def test_the_old_key_hears_of_the_block_that_ends_it_and_of_no_other(world: World) -> None:
    old = world.observers["regulator"]
    new = go_on(world, old)
    told = listeners(world.state)
    assert told[old.peer] == 1
    assert told[new.peer] > 1
    # It is one of the people still, so that it can ask for that block if it was cut off meanwhile.
    people = People(world.signers[0].peer, world.state, world.handovers)
    assert people.known[old.peer].name == "regulator"
    assert people.present(old.peer) is None


def test_others_look_for_the_new_key_where_the_old_one_was(world: World) -> None:
    old = world.observers["client"]
    linked = {old.peer}
    people = People(world.peers[0], world.state, (), linked.__contains__)
    people.links()
    new = go_on(world, old)
    assert people.meet(world.state, ()) == [], "it is still linked under the old one"
    linked.clear()
    (wanted,) = [one for one in people.link_lost(old.peer) if one.member.peer == new.peer]
    assert wanted.instead_of == old.peer


def test_what_the_coordinator_has_proposed_is_the_word_of_its_new_key(world: World) -> None:
    change = world.change(world.signers[3], world.newcomer("mill"))
    world.pack(world.record(world.coordinator, change))
    new = go_on(world, world.coordinator)
    assert world.state.open_changes() == ((change, (new.peer,)),)
    policy = MembershipPolicy(world.peers[0], "coordinator")
    assert policy.changes(world.state) == [change]


def test_members_approve_what_the_new_key_proposes_and_nothing_of_the_old_one(world: World) -> None:
    new = go_on(world, world.coordinator)
    policy = MembershipPolicy(world.peers[0], "coordinator")
    change = world.change(world.signers[3], world.newcomer("mill"))
    assert world.state.draft().add(world.record(world.coordinator, change)) != ""
    world.pack(world.record(new, change))
    assert policy.changes(world.state) == [change]


def test_a_key_after_the_next_leads_back_to_the_first(world: World) -> None:
    second = go_on(world, world.coordinator, "second")
    third = go_on(world, second, "third")
    assert world.state.coordinator == third.peer
    assert world.state.heir(world.coordinator.peer) == third.peer
    assert [one.heir for one in world.state.successions] == [third.peer, third.peer]


def test_a_state_with_new_keys_is_the_same_from_its_snapshot(world: World) -> None:
    go_on(world, world.coordinator)
    go_on(world, world.observers["client"], "another")
    restored = ChainState.restore(world.genesis, world.state.snapshot())
    assert restored.root == world.state.root
    assert restored.coordinator == world.state.coordinator
    assert restored.observers == world.state.observers
    assert restored.adoption == world.state.adoption


def test_the_new_key_is_called_what_the_old_one_was(world: World) -> None:
    follower = RosterFollower(world.genesis)
    client = world.observers["client"]
    new = world.newcomer("new key")
    follower.take(world.certify(world.pack(world.record(client, world.new_key(client, new)))))
    names = follower.history.names()
    assert names[new.peer] == names[client.peer] == "client"
    assert follower.history == RosterHistory(world.genesis, (), (world.state.observers[0],))


def test_of_a_peer_without_a_vote_few_keys_are_remembered(world: World) -> None:
    """Else an observer could push out what evidence against members needs."""
    client = world.observers["client"]
    for number in range(MAX_VOTELESS + 3):
        client = go_on(world, client, f"key {number}")
    assert len(world.state.successions) == MAX_VOTELESS
    assert {one.heir for one in world.state.successions} == {client.peer}
    assert len(world.state.former) == 1


# --- what may not stand


def test_a_member_goes_another_way(world: World) -> None:
    member = world.signers[0]
    body = world.new_key(member, world.newcomer("new key"), name="m0", machine_type="milling", role="machine")
    assert "may say, without a vote" in verdict(world, member, body)
    voting = World(coordinator_votes=True)
    body = voting.new_key(voting.coordinator, voting.newcomer("new key"))
    assert "by a change of the members" in verdict(voting, voting.coordinator, body)


def test_who_is_not_named_has_no_heir(world: World) -> None:
    body = world.new_key(world.outsider, world.newcomer("new key"))
    assert "no member" in verdict(world, world.outsider, body)


def test_the_new_key_has_signed_for_this_chain_and_for_this_old_key(world: World) -> None:
    new, other = world.newcomer("new key"), World(5, observers=("client",))
    for old, body in (
        (world.coordinator, other.new_key(other.coordinator, new)),
        (world.coordinator, world.new_key(world.coordinator, signer("another"))),
        (world.coordinator, world.new_key(world.outsider, new)),
    ):
        if body.incoming.peer != new.peer:
            body = replace(body, incoming=replace(body.incoming, peer=new.peer))
        assert "has not signed" in verdict(world, old, body)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"name": "other"}, "the name"),
        ({"role": "machine"}, "the role"),
        ({"machine_type": "x"}, "machine type"),
    ],
)
def test_nothing_but_the_key_changes(world: World, what: dict[str, str], said: str) -> None:
    old = world.observers["client"]
    assert said in verdict(world, old, world.new_key(old, world.newcomer("new key"), **what))


def test_a_coordinator_stays_a_coordinator(world: World) -> None:
    body = world.new_key(world.coordinator, world.newcomer("new key"), role="machine")
    assert "the role" in verdict(world, world.coordinator, body)


def test_a_key_that_the_pool_knows_is_no_new_one(world: World) -> None:
    old = world.observers["client"]
    used = go_on(world, world.coordinator)
    coming = world.newcomer("mill")
    world.pack(world.record(used, world.change(incoming=coming)))
    for known in (world.signers[0], world.observers["regulator"], world.coordinator, used, coming):
        assert "a new key is one that nobody had" in verdict(world, old, world.new_key(old, known))


def test_two_do_not_go_on_as_one_in_the_same_block(world: World) -> None:
    new, draft = world.newcomer("new key"), world.state.draft()
    first, second = world.observers["client"], world.observers["regulator"]
    assert draft.add(world.record(first, world.new_key(first, new))) == ""
    assert "nobody had" in draft.add(world.record(second, world.new_key(second, new)))
    assert "said so already" in draft.add(world.record(first, world.new_key(first, world.newcomer("third"))))


def test_a_member_does_not_go_on_under_the_key_that_an_observer_takes_in_the_same_block(world: World) -> None:
    new, draft, client = world.newcomer("new key"), world.state.draft(), world.observers["client"]
    assert draft.add(world.record(client, world.new_key(client, new))) == ""
    change = world.succession(world.signers[1], new)
    assert "nobody had" in draft.add(world.record(world.signers[0], change))


def test_a_thief_does_not_flee_into_a_new_key() -> None:
    world = World(kind="fixed", observers=("client",))
    client = world.observers["client"]
    revocation = TrustChange(RevokePeer(client.peer), "stolen")
    world.pack(world.record(world.coordinator, revocation))
    body = world.new_key(client, world.newcomer("new key"))
    assert "asks for the revocation" in verdict(world, client, body)
    world.pack(*(world.record(one, revocation) for one in world.signers[:3]))
    assert "nobody succeeds it" in verdict(world, client, body)


# --- what strangers make of it


def test_a_proof_is_believed_for_the_new_key_that_has_adopted_the_pool(world: World) -> None:
    new = go_on(world, world.coordinator)
    certified = world.certify(world.pack(world.offer(0)))
    proof = prove(world.genesis, (), certified, 0, world.state.adoption)
    assert proof is not None
    assert proof_problem(proof, NETWORK, [new.peer]) == ""
    assert "not trusted" in proof_problem(proof, NETWORK, [world.coordinator.peer])
    without = replace(proof, adoption=None)
    assert "not trusted" in proof_problem(without, NETWORK, [new.peer])


def test_nobody_adopts_a_pool_for_somebody_else(world: World) -> None:
    """A former key invents a pool: the new one has not signed for that chain."""
    new, invented = go_on(world, world.coordinator), World(5)
    assert is_trusted(world.genesis, world.state.adoption, NETWORK, [new.peer])
    assert not is_trusted(invented.genesis, world.state.adoption, NETWORK, [new.peer])
    member = Member(new.peer, "cloud", "", (), "coordinator")
    forged = Adoption(0, invented.coordinator.peer, member, b"", bytes(64))
    assert not is_trusted(invented.genesis, forged, NETWORK, [new.peer])

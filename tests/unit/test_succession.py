"""A member goes on under a new key [S3.6]: what the chain lets stand, and what passes to the new key."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from ledger_world import KEY, NETWORK, World, signer

from edgepool.config import Limits
from edgepool.core.intake import Intake
from edgepool.core.ledger.state import ChainState
from edgepool.core.ledger.succession import has_own, inherited_offers
from edgepool.core.machine import Instant
from edgepool.core.membership import MembershipPolicy
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId
from edgepool.model.message import Records
from edgepool.model.policy import DataPolicy, PolicyTerms
from edgepool.model.pool import Member
from edgepool.model.record import MembershipChange
from edgepool.model.trust import RevokePeer, TrustChange, own_revocation


@pytest.fixture
def world() -> World:
    return World()


def succeed(world: World, place: int = 1, name: str = "new key") -> Signer:
    """Let a member go on under a new key: two blocks, the second by the old key's own word."""
    old, new = world.signers[place], world.newcomer(name)
    change = world.succession(old, new)
    world.decide(change)
    world.pack(world.record(old, change))
    world.signers[place], world.peers[place] = new, new.peer
    return new


def verdict(world: World, author: Signer, change: MembershipChange) -> str:
    return world.state.draft().add(world.record(author, change))


# --- what may stand


def test_the_new_key_has_the_place_of_the_old_one_and_its_vote(world: World) -> None:
    old = world.signers[1]
    new = succeed(world)
    state = world.state
    assert state.members == (world.peers[0], new.peer, *world.peers[2:])
    assert state.former == {old.peer: 2}
    assert state.heir(old.peer) == new.peer == state.heir(new.peer)
    assert world.pack(world.demand(1), packer=1).header.proposer == new.peer
    assert "no member" in state.draft().add(world.record(old, world.demand(0).record.body))


def test_the_old_key_brings_an_idle_chain_to_the_new_one_by_saying_once_more_that_it_goes(
    world: World,
) -> None:
    old, new = world.signers[1], world.newcomer("new key")
    change = world.succession(old, new)
    world.decide(change)
    assert verdict(world, world.signers[0], change) != "", "the word of another one is of no use"
    assert verdict(world, old, change) == ""
    world.pack(world.record(old, change))
    assert "the next is 2" in verdict(world, world.signers[0], change), "it is over"


def test_a_new_key_writes_nothing_before_it_votes(world: World) -> None:
    new = world.newcomer("new key")
    world.decide(world.succession(world.signers[1], new))
    demand = world.demand(0).record.body
    assert "no member" in world.state.draft().add(world.record(new, demand))
    assert world.state.draft().add(world.record(world.signers[1], demand)) == ""


def test_what_a_new_key_writes_waits_where_its_vote_is_not_known_yet(world: World) -> None:
    """Others may be a block ahead of this member; else they would hear that it refuses."""
    new = world.newcomer("new key")
    change = world.succession(world.signers[1], new)
    world.decide(change)
    intake = Intake(world.state, world.peers[0], Limits())
    early = world.record(new, world.demand(0).record.body)
    effects, added = intake.receive(new.peer, Records(world.state.chain, (early,)), Instant(0, 0))
    assert (effects, added) == ([], True)
    assert not intake.any_fit()
    world.pack(world.record(world.signers[1], change))
    assert intake.any_fit()


def unsigned(change: MembershipChange) -> MembershipChange:
    return msgspec.structs.replace(change, succession=bytes(64))


def not_wanted(change: MembershipChange) -> MembershipChange:
    return msgspec.structs.replace(change, incoming_signature=change.succession)


def named(change: MembershipChange) -> MembershipChange:
    assert change.incoming is not None
    return msgspec.structs.replace(change, incoming=msgspec.structs.replace(change.incoming, name="other"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (unsigned, "the old key has not signed"),
        (not_wanted, "the new key has not signed"),
        (named, "does not change the name"),
    ],
)
def test_a_succession_that_both_keys_have_not_signed_as_it_is_does_not_stand(
    world: World, change: Callable[[MembershipChange], MembershipChange], reason: str
) -> None:
    real = world.succession(world.signers[1], world.newcomer("new key"))
    assert verdict(world, world.signers[0], real) == "", "anybody may bring it"
    assert reason in verdict(world, world.signers[0], change(real))


def test_a_signature_to_join_is_none_to_succeed_somebody(world: World) -> None:
    """Else a liar could have an honest newcomer convicted in its place."""
    joins = world.change(outgoing=world.signers[1], incoming=world.newcomer("honest"))
    taken = world.succession(world.signers[1], world.newcomer("honest"))
    assert "the new key has not signed" in verdict(
        world,
        world.signers[1],
        msgspec.structs.replace(taken, incoming_signature=joins.incoming_signature),
    )


def test_who_is_convicted_or_revoked_keeps_the_key_that_it_is_known_by() -> None:
    world = World(kind="fixed")
    world.pack(world.demand(0))
    world.pack(world.record(world.signers[0], world.evidence(world.signers[3], 1)))
    revocation = TrustChange(RevokePeer(world.peers[2]), "stolen")
    world.pack(*(world.record(one, revocation) for one in world.signers[:3]))
    for place in (2, 3):
        change = world.succession(world.signers[place], world.newcomer("new key"))
        assert "nobody succeeds it" in verdict(world, world.signers[0], change)


def test_a_coordinator_that_votes_coordinates_under_its_new_key() -> None:
    world = World(coordinator_votes=True)
    new = succeed(world, 3)
    assert world.state.coordinator == new.peer
    assert world.state.draft().add(world.requirement(0, 0, author=new)) == ""
    assert "no member" in world.state.draft().add(world.requirement(0, 0, author=world.coordinator))
    adoption = world.state.adoption
    assert adoption is not None
    assert adoption.incoming.peer == new.peer
    assert adoption.holds(NETWORK, world.genesis.chain)


def test_a_key_that_the_pool_has_known_is_no_new_one(world: World) -> None:
    first = world.signers[1]
    succeed(world)
    for known in (first, world.coordinator):
        world.beacons[known.peer] = world.beacons[world.peers[0]]
        change = world.succession(world.signers[2], known)
        assert "before" in verdict(world, world.signers[0], change)


# --- who approves


@pytest.mark.parametrize("approve", ["coordinator", "manual"])
def test_every_member_approves_a_succession_by_itself(world: World, approve: str) -> None:
    change = world.succession(world.signers[1], world.newcomer("new key"))
    world.pack(world.record(world.signers[1], change))
    for place in (0, 2, 3):
        mine = MembershipPolicy(world.peers[place], approve)  # type: ignore[arg-type]
        assert mine.changes(world.state) == [change]
    revoked = MembershipPolicy(world.peers[0], "coordinator")
    assert change not in revoked.changes(world.state, [world.peers[1]])


@pytest.mark.parametrize(("by_coordinator", "approved"), [(True, False), (False, True)])
def test_a_thief_does_not_flee_into_another_key_while_its_revocation_is_asked_for(
    by_coordinator: bool, approved: bool
) -> None:
    """The word of a mere member stops nobody: else each could keep every other from changing its key."""
    world = World(kind="fixed")
    revocation = TrustChange(RevokePeer(world.peers[1]), "stolen")
    world.pack(world.record(world.coordinator if by_coordinator else world.signers[2], revocation))
    change = world.succession(world.signers[1], world.newcomer("the thief's own"))
    world.pack(world.record(world.signers[1], change))
    mine = MembershipPolicy(world.peers[0], "coordinator")
    assert (change in mine.changes(world.state)) is approved


# --- what the new key has


def test_the_new_key_goes_on_with_the_work_of_the_old_one_and_keeps_its_weight(world: World) -> None:
    world.pack(*world.step_records(0, 1))
    world.pack(world.requirement(1, 1), world.procedure(1, 1))
    world.pack(world.inspection(0, 2))
    old = world.peers[1]
    earned = world.state._work.minutes[0][old]
    assert earned > 0
    new = succeed(world)
    assert world.state._work.minutes[0] == {new.peer: earned}
    assert old not in world.state._work.booked
    assert world.state.draft().add(world.completion(1, 1)) == "", "a step that was under way"
    world.pack_until(64)
    assert world.state.work() == {new.peer: earned}, "the odds of the cycle after next"


def test_who_has_inspected_under_the_old_key_does_not_count_twice(world: World) -> None:
    world.pack(*world.step_records(0, 1))
    world.pack(world.inspection(0, 2, accepted=False))
    new = succeed(world, 2)
    step = world.state.tasks["T1"].steps[0]
    assert step.rejecters() == (new.peer,)
    assert "inspected already" in world.state.draft().add(world.inspection(0, 2, accepted=False))


def test_the_new_key_owns_the_data_and_changes_the_policies_of_the_old_one(world: World) -> None:
    policy = DataPolicy(KEY.part, KEY.kind, 1, PolicyTerms(members=(world.peers[2],), purposes=("repair",)))
    world.pack(world.offer(1), world.record(world.signers[1], policy))
    world.pack(world.offer(2))
    new = succeed(world)
    state = world.state
    root = state.offers(KEY)[0].offer.root
    assert state.holders(KEY, root) == [new.peer, world.peers[2]], "it is still the one who offered it first"
    found = state.policy(new.peer, KEY)
    assert found is not None
    assert found.policy == policy
    changed = DataPolicy(KEY.part, KEY.kind, 2, None)
    assert state.draft().add(world.record(new, changed)) == ""


def test_policies_that_name_the_old_key_name_the_new_one(world: World) -> None:
    policy = DataPolicy(KEY.part, KEY.kind, 1, PolicyTerms(members=(world.peers[1], world.peers[2])))
    world.pack(world.record(world.signers[0], policy))
    new = succeed(world)
    found = world.state.policy(world.peers[0], KEY)
    assert found is not None
    assert found.policy.terms == PolicyTerms(members=(new.peer, world.peers[2]))


def test_the_new_key_offers_once_more_what_the_old_one_has_offered(world: World) -> None:
    world.pack(world.offer(1), world.offer(1, 2, b"second"))
    world.pack(world.offer(2, 2, b"second"))
    new = succeed(world)
    state = world.state
    assert [offer.version for offer in inherited_offers(state, new.peer)] == [1, 2]
    assert [has_own(state, entry) for entry in state.offers(KEY)] == [False, True]
    again = world.pack(world.offer(1, 1), world.offer(1, 2, b"second"))
    assert len(again.records) == 2
    assert {entry.offer.version for entry in state.offers(KEY)} == {2}, "it is still the newest"
    assert inherited_offers(state, new.peer) == []
    assert "offers version 2 already" in state.draft().add(world.offer(1, 2, b"second"))


def test_what_several_old_keys_have_offered_is_to_be_offered_again_once(world: World) -> None:
    world.pack(world.offer(1))
    succeed(world, name="second")
    world.pack(world.offer(1))
    third = succeed(world, name="third")
    assert len(inherited_offers(world.state, third.peer)) == 1
    world.pack(world.offer(1))
    assert inherited_offers(world.state, third.peer) == []


def test_what_is_open_about_the_pool_and_its_trust_counts_as_before() -> None:
    world = World(kind="fixed")
    wanted = TrustChange(RevokePeer(world.outsider.peer), "")
    old, key = world.signers[1], world.newcomer("new key")
    change = world.succession(old, key)
    world.pack(world.record(old, wanted))
    world.decide(change)
    leaves = world.change(outgoing=world.signers[3])
    world.pack(world.record(old, leaves))
    assert world.state.open_changes() == ((leaves, (key.peer,)),)
    assert world.state.trust.open == ((wanted, (key.peer,)),)
    assert "said so already" in verdict(world, key, leaves)


def test_its_anchors_are_the_new_keys() -> None:
    world = World(kind="fixed")
    sub_chain = world.genesis.chain[::-1]
    world.pack(world.record(world.signers[1], world.anchor(sub_chain, 7)))  # type: ignore[arg-type]
    new = succeed(world)
    reason = world.state.draft().add(world.record(new, world.anchor(sub_chain, 7)))  # type: ignore[arg-type]
    assert "up to height 7" in reason


# --- whom evidence convicts


def test_a_liar_does_not_get_away_by_a_new_key(world: World) -> None:
    world.pack(world.demand(0))
    liar = world.signers[1]
    late, false = world.evidence(liar, 1), world.evidence(liar, 4)
    new = succeed(world)
    world.pack(world.demand(0))
    assert world.state.height == 4
    reason = world.state.draft().add(world.record(world.signers[0], false))
    assert "no member any more" in reason, "what a stolen old key signs harms nobody"
    world.pack(world.record(world.signers[0], late))
    assert world.state.convicted() == (new.peer,)
    assert "already" in world.state.draft().add(world.record(world.signers[2], late))


def test_who_is_convicted_while_its_key_changes_stays_so(world: World) -> None:
    world.pack(world.demand(0))
    liar, new = world.signers[1], world.newcomer("new key")
    change = world.succession(liar, new)
    evidence = world.record(world.signers[0], world.evidence(liar, 1))
    world.pack(*(world.record(one, change) for one in world.signers[:3]), evidence)
    assert world.state.pending_change == change
    world.pack(world.demand(0))
    assert world.state.convicted() == (new.peer,)


def test_the_old_key_revokes_itself_and_the_new_one_stays() -> None:
    world = World(kind="fixed")
    old = world.signers[1]
    new = succeed(world)
    gone = TrustChange(own_revocation(old, NETWORK), "")
    world.pack(*(world.record(one, gone) for one in world.signers[:3]))
    assert world.state.trust.is_revoked(old.peer)
    mine = MembershipPolicy(world.peers[0], "coordinator")
    assert mine.changes(world.state, [old.peer]) == []
    assert new.peer in world.state.members


# --- the state


def test_a_state_with_successions_is_the_same_from_its_snapshot() -> None:
    world = World(kind="fixed")
    policy = DataPolicy(KEY.part, KEY.kind, 1, PolicyTerms(members=(world.peers[1],)))
    world.pack(world.offer(1), world.record(world.signers[1], policy), world.demand(0))
    world.pack(*world.step_records(0, 1))
    world.pack(world.inspection(0, 2))
    for place, name in ((1, "second"), (2, "other"), (1, "third")):
        succeed(world, place, name)
        taken = ChainState.restore(world.genesis, world.state.snapshot())
        assert taken.root == world.state.root
    oldest = signer("member 1").peer
    assert world.state.heir(oldest) == world.peers[1] == signer("third").peer
    assert [one.former for one in world.state.successions] == [
        oldest,
        signer("member 2").peer,
        signer("second").peer,
    ]
    again = ChainState.restore(world.genesis, world.state.snapshot())
    block = world.pack(world.offer(1))
    again.apply(block)
    assert again.root == world.state.root


def test_a_new_key_is_named_as_a_member(world: World) -> None:
    with_address = Member(world.newcomer("new key").peer, "m1", "milling", ("/ip4/10.0.0.1/tcp/1",))
    change = world.succession(world.signers[1], signer("new key"), member=with_address)
    world.decide(change)
    assert change.heir == PeerId(with_address.peer)
    assert with_address in world.state.next_roster

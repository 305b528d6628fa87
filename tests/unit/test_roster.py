from __future__ import annotations

import msgspec
import pytest
from ledger_world import NETWORK, World, signer

from edgepool.core.ledger.roster import MAX_FORMER, MAX_OPENED, first_roster
from edgepool.core.ledger.state import ChainState
from edgepool.model.block import roster_after
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import MAX_MEMBERS, Member, members_hash
from edgepool.model.record import MembershipChange, SignedRecord, join_terms
from edgepool.model.vote import PREVOTE, quorum, sign_vote


@pytest.fixture
def world() -> World:
    return World()


def verdict(world: World, *records: SignedRecord) -> str:
    """Return what is said of the last record, after the others were let in."""
    draft = world.state.draft()
    for signed in records[:-1]:
        assert draft.add(signed) == ""
    return draft.add(records[-1])


def said_by(world: World, change: MembershipChange, *authors: int) -> list[SignedRecord]:
    return [world.record(world.signers[author], change) for author in authors]


# --- when a change is decided, and when it is in force


@pytest.mark.parametrize(("members", "needed"), [(1, 1), (2, 2), (3, 3), (4, 3), (7, 5)])
def test_change_is_decided_by_more_than_two_thirds(members: int, needed: int) -> None:
    world = World(members)
    change = world.change(incoming=world.newcomer("new"))
    for author in range(needed - 1):
        world.pack(*said_by(world, change, author))
        assert world.state.change_number == 1
        assert world.state.open_changes() == ((change, tuple(world.peers[: author + 1])),)
    world.pack(*said_by(world, change, needed - 1))
    assert (world.state.change_number, world.state.open_changes()) == (2, ())
    assert world.state.pending_change == change


def test_decided_change_votes_from_two_heights_later(world: World) -> None:
    state, old = world.state, tuple(world.peers)
    newcomer = world.newcomer("new")
    world.decide(world.change(outgoing=world.signers[1], incoming=newcomer))
    new = (old[0], newcomer.peer, *old[2:])
    assert state.members == old
    assert tuple(member.peer for member in state.next_roster) == new
    assert state.members_hash == members_hash(state.roster)
    assert state.next_members_hash == members_hash(state.next_roster) != state.members_hash
    assert newcomer.peer not in state.tips
    last = world.pack(world.demand(0))
    assert last.header.members_hash != last.header.next_members_hash
    assert state.members == new
    assert state.pending_change is None
    assert state.former == {old[1]: 2}
    first = world.pack(world.demand(0), packer=1)
    assert first.header.members_hash == last.header.next_members_hash
    assert first.header.proposer == newcomer.peer
    assert state.packed == {new[0]: 2, newcomer.peer: 1, new[2]: 0, new[3]: 0}
    assert list(state.tips) == list(state.reveals) == list(new)
    assert "no member" in verdict(world, world.demand(1))
    assert verdict(world, world.record(newcomer, world.demand(0).record.body)) == ""


def test_one_who_leaves_may_pack_its_last_height(world: World) -> None:
    world.decide(world.change(outgoing=world.signers[3]))
    world.pack(world.demand(3), packer=3)
    assert world.state.members == tuple(world.peers[:3])


def test_changes_follow_each_other_at_every_height(world: World) -> None:
    first, second = world.newcomer("first"), world.newcomer("second")
    world.decide(world.change(incoming=first))
    world.decide(world.change(outgoing=world.signers[0], incoming=second))
    assert world.state.members == (*world.peers, first.peer)
    assert world.state.pending_change is not None
    world.pack(world.demand(1), packer=1)
    assert world.state.members == (second.peer, *world.peers[1:], first.peer)
    assert world.state.former == {world.peers[0]: 3}
    assert roster_after(NETWORK, world.state.chain, world.genesis.invitation.members, world.handovers) == (
        world.state.roster
    )


def test_leaver_can_come_back_and_begins_anew(world: World) -> None:
    leaver = world.signers[3]
    world.decide(world.change(outgoing=leaver))
    world.decide(world.change(incoming=leaver))
    assert (world.state.former, leaver.peer in world.state.tips) == ({}, False)
    world.pack(world.demand(0))
    assert world.state.members == tuple(world.peers)
    assert world.state.former == {}
    assert (world.state.reveals[leaver.peer], world.state.packed[leaver.peer]) == (0, 0)


def test_former_members_are_remembered_up_to_a_bound() -> None:
    world = World(1)
    roster = first_roster(world.genesis)
    previous = world.peers[0]
    for height in range(1, MAX_FORMER + 10):
        member = Member(PeerId(f"{height:050}"), "new", "milling", ())
        change = MembershipChange(roster.number, previous, member, b"", b"", "")
        roster = roster.supported(roster.members[0], change).closed(height)
        assert roster.pending == change
        previous = member.peer
    assert len(roster.former) == MAX_FORMER
    assert roster.former[-1][1] == height


def test_smaller_roster_decides_what_has_its_quorum_already() -> None:
    """Of five, four are needed; when one of those who are silent leaves, the three suffice."""
    world = World(5)
    world.decide(world.change(outgoing=world.signers[4]))
    waiting = world.change(incoming=world.newcomer("new"))
    world.pack(*said_by(world, waiting, 0, 1, 2))
    assert world.state.pending_change is None
    assert world.state.change_number == 2
    assert len(world.state.members) == 4
    world.pack(world.demand(0))
    assert world.state.change_number == 3
    assert world.state.pending_change == waiting


def test_who_has_left_counts_no_more() -> None:
    world = World(5)
    world.decide(world.change(outgoing=world.signers[4]))
    change = world.change(incoming=world.newcomer("new"))
    world.pack(*said_by(world, change, 4, 0, 1))
    world.pack(world.demand(0))
    assert world.state.pending_change is None
    world.pack(*said_by(world, change, 2))
    assert world.state.pending_change == change


def test_coordinator_proposes_without_a_vote(world: World) -> None:
    change = world.change(outgoing=world.signers[0])
    world.pack(world.record(world.coordinator, change), *said_by(world, change, 0, 1))
    assert world.state.open_changes() == ((change, (world.coordinator.peer, *world.peers[:2])),)
    world.pack(*said_by(world, change, 2))
    assert world.state.pending_change == change


def test_coordinator_that_is_a_member_votes() -> None:
    world = World(coordinator_votes=True)
    change = world.change(outgoing=world.signers[0])
    world.pack(world.record(world.coordinator, change), *said_by(world, change, 0, 1))
    assert world.state.pending_change == change


def test_first_change_with_a_quorum_wins_and_the_others_are_stale(world: World) -> None:
    lost, won = world.change(outgoing=world.signers[0]), world.change(outgoing=world.signers[1])
    world.pack(*said_by(world, lost, 0, 1), *said_by(world, won, 0, 1))
    draft = world.state.draft()
    assert draft.add(world.record(world.signers[2], won)) == ""
    assert "1 changes are decided here: the next is 2, not 1" in draft.add(
        world.record(world.signers[2], lost)
    )
    following = world.change(outgoing=world.signers[2], number=2)
    assert "has decided a change already" in draft.add(world.record(world.signers[0], following))
    world.pack(*said_by(world, won, 2))
    assert (world.state.pending_change, world.state.open_changes()) == (won, ())
    assert verdict(world, *said_by(world, following, 0)) == ""


def test_newcomers_are_those_of_open_and_of_decided_changes(world: World) -> None:
    first, second = world.newcomer("first"), world.newcomer("second")
    one, other = world.change(incoming=first), world.change(incoming=second)
    world.pack(*said_by(world, one, 0), *said_by(world, other, 1))
    assert [member.peer for member in world.state.newcomers()] == [first.peer, second.peer]
    world.pack(*said_by(world, other, 0, 2))
    assert [member.peer for member in world.state.newcomers()] == [second.peer]
    world.pack(world.demand(0))
    assert world.state.newcomers() == ()


# --- what may stand


def test_number_of_a_change_is_the_next(world: World) -> None:
    late = world.change(outgoing=world.signers[0], number=2)
    assert "0 changes are decided here: the next is 1, not 2" in verdict(world, *said_by(world, late, 0))


def test_who_leaves_is_a_member_and_who_comes_is_none(world: World) -> None:
    assert "is no member" in verdict(world, *said_by(world, world.change(outgoing=world.outsider), 0))
    again = world.change(outgoing=world.signers[0], incoming=world.newcomer("member 1"))
    assert "is a member already" in verdict(world, *said_by(world, again, 0))
    newcomer = world.newcomer("new")
    world.decide(world.change(outgoing=world.signers[0], incoming=newcomer))
    assert "is a member already" in verdict(world, *said_by(world, world.change(incoming=newcomer), 0))
    assert "is no member" in verdict(world, *said_by(world, world.change(outgoing=world.signers[0]), 1))


def test_pool_keeps_one_member_and_takes_thirty() -> None:
    alone = World(1)
    assert "would have 0 members" in verdict(
        alone, *said_by(alone, alone.change(outgoing=alone.signers[0]), 0)
    )
    full = World(MAX_MEMBERS, beacon_length=2)
    newcomer = full.newcomer("new")
    assert "would have 31 members" in verdict(full, *said_by(full, full.change(incoming=newcomer), 0))
    swapped = full.change(outgoing=full.signers[0], incoming=newcomer)
    assert verdict(full, *said_by(full, swapped, 0)) == ""


def test_strangers_do_not_propose(world: World) -> None:
    change = world.change(outgoing=world.signers[0])
    assert "no member" in verdict(world, world.record(world.outsider, change))


def test_author_says_the_same_only_once(world: World) -> None:
    change = world.change(outgoing=world.signers[0])
    assert "said so already" in verdict(world, *said_by(world, change, 0, 0))
    world.pack(*said_by(world, change, 0))
    assert "said so already" in verdict(world, *said_by(world, change, 0))
    other = world.change(outgoing=world.signers[0], reason="it is sold")
    assert verdict(world, *said_by(world, other, 0)) == ""


def test_nobody_fills_the_table_of_open_changes(world: World) -> None:
    """An author's own oldest gives way; what others support stays, and then the author is refused."""
    many = [world.change(outgoing=world.signers[1], reason=str(n)) for n in range(MAX_OPENED + 2)]
    world.pack(*(said_by(world, change, 3)[0] for change in many))
    assert [change for change, _ in world.state.open_changes()] == many[2:]
    world.pack(*(said_by(world, change, 0)[0] for change in many[2:]))
    more = world.change(outgoing=world.signers[1], reason="one more")
    assert "others support them all" in verdict(world, *said_by(world, more, 3))
    assert verdict(world, *said_by(world, world.change(outgoing=world.signers[3]), 1)) == ""


@pytest.mark.parametrize("forgery", ["signature", "tip", "member", "number", "chain"])
def test_newcomer_has_signed_for_this_place(world: World, forgery: str) -> None:
    newcomer = world.newcomer("new")
    good = world.change(incoming=newcomer)
    assert good.incoming is not None
    chain = ChainId("a" * 40) if forgery == "chain" else world.state.chain
    number = 2 if forgery == "number" else 1
    terms = join_terms(NETWORK, chain, number, good.incoming, good.beacon_tip)
    forged = {
        "signature": {"incoming_signature": signer("somebody").sign("join", terms)},
        "tip": {"beacon_tip": bytes(32)},
        "member": {"incoming": msgspec.structs.replace(good.incoming, name="another")},
        "number": {"incoming_signature": newcomer.sign("join", terms)},
        "chain": {"incoming_signature": newcomer.sign("join", terms)},
    }[forgery]
    assert "newcomer's signature" in verdict(
        world, *said_by(world, msgspec.structs.replace(good, **forged), 0)
    )
    assert verdict(world, *said_by(world, good, 0)) == ""


def test_change_that_changes_nothing_is_refused(world: World) -> None:
    assert "names nobody" in verdict(world, *said_by(world, world.change(), 0))
    signed = msgspec.structs.replace(world.change(outgoing=world.signers[0]), beacon_tip=bytes(32))
    assert "nobody comes" in verdict(world, *said_by(world, signed, 0))


# --- evidence


def test_evidence_convicts_once(world: World) -> None:
    liar = world.signers[2]
    world.pack(world.record(world.signers[0], world.evidence(liar, 1)))
    assert world.state.convicted() == (liar.peer,)
    again = world.record(world.signers[1], world.evidence(liar, 2))
    assert "evidence against" in verdict(world, again)
    other = world.record(world.signers[1], world.evidence(world.signers[3], 2))
    assert verdict(world, other) == ""


@pytest.mark.parametrize("fault", ["stranger", "future", "forged", "same"])
def test_evidence_that_convicts_nobody_is_refused(world: World, fault: str) -> None:
    good = world.evidence(world.signers[2], 1)
    body, reason = {
        "stranger": (world.evidence(world.outsider, 1), "is no member"),
        "future": (world.evidence(world.signers[2], 2), "is to come"),
        "forged": (msgspec.structs.replace(good, member=world.peers[1]), "not the member's"),
        "same": (msgspec.structs.replace(good, second=good.first), "the same or out of order"),
    }[fault]
    assert reason in verdict(world, world.record(world.signers[0], body))
    assert verdict(world, world.record(world.signers[0], good)) == ""


def test_evidence_is_for_heights_after_the_admission_and_goes_with_the_member(world: World) -> None:
    liar = world.signers[2]
    world.pack(world.record(world.signers[0], world.evidence(liar, 1)))
    world.decide(world.change(outgoing=liar))
    assert world.state.convicted() == ()
    assert "is no member" in verdict(world, world.record(world.signers[0], world.evidence(liar, 2)))
    world.pack(world.demand(0))
    world.decide(world.change(incoming=liar))
    world.pack(world.demand(0))
    assert world.state.height == 5
    assert world.state.members[-1] == liar.peer
    assert world.state.convicted() == ()
    for height in (1, 4, 5):
        early = world.record(world.signers[0], world.evidence(liar, height))
        assert "was no member yet" in verdict(world, early)
    assert verdict(world, world.record(world.signers[0], world.evidence(liar, 6))) == ""


def test_one_vote_said_twice_is_no_evidence(world: World) -> None:
    vote = sign_vote(world.signers[0], NETWORK, world.state.chain, PREVOTE, 1, 0, bytes(32))
    assert vote.authentic(NETWORK, world.state.chain)
    body = world.evidence(world.signers[0], 1)
    elsewhere = msgspec.structs.replace(body, round=1)
    assert "not the member's" in verdict(world, world.record(world.signers[1], elsewhere))


# --- anchors


def test_anchors_stand_on_main_chains_and_rise() -> None:
    world = World(kind="fixed")
    sub, other = ChainId("a" * 40), ChainId("b" * 40)
    world.pack(world.record(world.signers[0], world.anchor(sub, 5)))
    for height, reason in ((5, "up to height 5 already"), (4, "up to height 5 already"), (6, "")):
        problem = verdict(world, world.record(world.signers[0], world.anchor(sub, height)))
        assert (reason in problem) if reason else problem == ""
    assert verdict(world, world.record(world.signers[1], world.anchor(sub, 3))) == ""
    assert verdict(world, world.record(world.signers[0], world.anchor(other, 1))) == ""
    own = world.record(world.signers[0], world.anchor(world.state.chain, 1))
    assert "does not anchor itself" in verdict(world, own)
    in_one_block = [world.record(world.signers[0], world.anchor(sub, height)) for height in (7, 7)]
    assert "up to height 7" in verdict(world, *in_one_block)


def test_sub_chains_keep_no_anchors(world: World) -> None:
    anchor = world.record(world.signers[0], world.anchor(ChainId("a" * 40), 5))
    assert "only a main chain" in verdict(world, anchor)


def test_anchored_chains_of_an_author_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepool.core.ledger.facts.MAX_ANCHORED", 2)
    world = World(kind="fixed")
    chains = [ChainId(letter * 40) for letter in "abc"]
    for chain in (*chains[:2], chains[0], chains[2]):
        height = world.state.height + 5
        world.pack(world.record(world.signers[0], world.anchor(chain, height)))
    assert "already" in verdict(world, world.record(world.signers[0], world.anchor(chains[0], 5)))
    assert verdict(world, world.record(world.signers[0], world.anchor(chains[1], 1))) == ""


def test_anchors_go_with_their_author() -> None:
    world = World(kind="fixed")
    leaver = world.signers[3]
    world.pack(world.record(leaver, world.anchor(ChainId("a" * 40), 5)))
    world.decide(world.change(outgoing=leaver))
    world.decide(world.change(incoming=leaver))
    world.pack(world.demand(0))
    assert verdict(world, world.record(leaver, world.anchor(ChainId("a" * 40), 5))) == ""
    assert ChainState.restore(world.genesis, world.state.snapshot()).root == world.state.root


def test_quorums_are_more_than_two_thirds() -> None:
    assert [quorum(n) for n in (1, 2, 3, 4, 5, 6, 7, 10, 30)] == [1, 2, 3, 3, 4, 5, 5, 7, 21]

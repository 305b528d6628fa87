"""What a member says of its pool by itself: which changes it approves, and that liars are to go."""

from __future__ import annotations

import pytest
from ledger_world import World

from edgepool.config import Limits
from edgepool.core.intake import Intake
from edgepool.core.machine import Broadcast, ChangeMembers, Effect, Failed, Instant, Notify
from edgepool.core.membership import CONVICTED, Governance, MembershipPolicy, exclusion
from edgepool.core.rights import Subject
from edgepool.model.message import Records
from edgepool.model.record import MembershipChange, SignedRecord
from edgepool.model.vote import Equivocation

NOW = Instant(0, 1_700_000_000_000)


def policy(world: World, me: int, approve: str = "coordinator") -> MembershipPolicy:
    return MembershipPolicy(world.peers[me], approve)  # type: ignore[arg-type]


def convict(world: World, *places: int) -> None:
    world.pack(world.demand(0))
    evidence = (world.evidence(world.signers[place], 1) for place in places)
    world.pack(*(world.record(world.signers[0], one) for one in evidence))


def test_members_exclude_a_convicted_one_with_the_very_same_words() -> None:
    world = World(4)
    convict(world, 3)
    expected = [exclusion(1, world.peers[3], CONVICTED)]
    for place in range(3):
        assert policy(world, place).changes(world.state) == expected
        assert policy(world, place, "manual").changes(world.state) == expected
    assert policy(world, 3).changes(world.state) == [], "it does not exclude itself"


def test_two_convicted_ones_are_excluded_in_the_order_of_the_chain() -> None:
    world = World(7)
    convict(world, 5, 2)
    assert policy(world, 2).changes(world.state) == [exclusion(1, world.peers[5], CONVICTED)]
    first = policy(world, 0).changes(world.state)
    assert first == [exclusion(1, world.peers[5], CONVICTED)]
    world.decide(first[0])
    second = policy(world, 0).changes(world.state)
    assert second == [exclusion(2, world.peers[2], CONVICTED)], "at once, before the first is in force"
    world.decide(second[0])
    assert policy(world, 0).changes(world.state) == []


def test_what_the_coordinator_proposes_is_approved_unless_people_are_to_be_asked() -> None:
    world = World(4)
    newcomer = world.newcomer("n")
    change = world.change(world.signers[1], newcomer, reason="worn")
    world.pack(world.record(world.coordinator, change))
    assert policy(world, 0).changes(world.state) == [change]
    assert policy(world, 0, "manual").changes(world.state) == []
    assert policy(world, 1).changes(world.state) == [], "not its own exclusion"
    world.pack(world.record(world.signers[0], change))
    assert policy(world, 0).changes(world.state) == [], "it has said so"


def test_a_newcomer_whose_certificate_says_another_role_is_left_to_people() -> None:
    world = World(4)
    newcomer = world.newcomer("n")
    change = world.change(incoming=newcomer)
    world.pack(world.record(world.coordinator, change))
    for role, said in (("machine", [change]), ("witness", [])):
        subject = Subject(newcomer.peer, role)  # type: ignore[arg-type]
        policy = MembershipPolicy(world.peers[0], "coordinator", {newcomer.peer: subject}.get)
        assert policy.changes(world.state) == said


def test_what_another_member_proposes_waits_for_people() -> None:
    world = World(4)
    world.pack(world.record(world.signers[1], world.change(world.signers[2])))
    assert policy(world, 0).changes(world.state) == []


@pytest.mark.parametrize("approve", ["coordinator", "manual"])
def test_a_members_own_wish_is_approved(approve: str) -> None:
    world = World(4)
    leave = world.change(world.signers[2])
    world.pack(world.record(world.signers[2], leave))
    assert policy(world, 0, approve).changes(world.state) == [leave]


def test_a_convicted_member_does_not_choose_who_takes_its_place() -> None:
    world = World(4)
    convict(world, 3)
    change = world.change(world.signers[3], world.newcomer("accomplice"))
    world.pack(world.record(world.signers[3], change))
    assert policy(world, 0).changes(world.state) == [exclusion(1, world.peers[3], CONVICTED)]


def test_a_coordinator_that_has_lied_as_a_member_is_not_followed() -> None:
    world = World(4, coordinator_votes=True)
    convict(world, 3)
    world.pack(world.record(world.coordinator, world.change(world.signers[0])))
    assert policy(world, 1).changes(world.state) == [exclusion(1, world.peers[3], CONVICTED)]


def test_an_exclusion_that_was_asked_for_is_asked_for_again_under_the_next_number() -> None:
    world = World(5)
    mine = policy(world, 0)
    mine.ask(world.peers[4], "sold")
    assert mine.changes(world.state) == [exclusion(1, world.peers[4], "sold")]
    world.decide(world.change(world.signers[3]))
    assert mine.changes(world.state) == [exclusion(2, world.peers[4], "sold")]
    world.decide(world.change(world.signers[4]))
    assert mine.changes(world.state) == []


def test_who_has_no_vote_approves_nothing() -> None:
    world = World(4)
    convict(world, 3)
    outsider = MembershipPolicy(world.coordinator.peer, "coordinator")
    assert outsider.changes(world.state) == []


# --- what is written down -------------------------------------------------------------------------


class Writer:
    """The governance of one member of a world's pool, with an intake of its own."""

    def __init__(self, world: World, me: int = 0) -> None:
        self.world = world
        signer = world.signers[me]
        self.intake = Intake(world.state, signer.peer, Limits())
        self.governance = Governance(signer, "coordinator", self.intake)

    def say(self, behind: bool = False) -> list[SignedRecord]:
        effects, taken = self.governance.say(NOW, behind=behind)
        records = written(effects)
        assert taken == bool(records)
        return records

    def pack(self, *records: SignedRecord) -> list[Effect]:
        return self.intake.committed(self.world.pack(*records), NOW)


def written(effects: list[Effect]) -> list[SignedRecord]:
    sent = [effect.message for effect in effects if isinstance(effect, Broadcast)]
    return [signed for message in sent if isinstance(message, Records) for signed in message.records]


def test_evidence_is_written_once_and_dropped_when_anothers_stands() -> None:
    world = World(4)
    world.pack(world.demand(0))
    writer = Writer(world)
    writer.governance.caught(world.evidence(world.signers[3], 1))
    (mine,) = writer.say()
    assert (mine.record.author, mine.record.since) == (world.peers[0], 1)
    assert mine.authentic()
    assert writer.say() == [], "it waits"
    writer.pack(world.record(world.signers[1], world.evidence(world.signers[3], 1)))
    assert not writer.intake.has(mine.id)
    assert [signed.record.body for signed in writer.say()] == [exclusion(1, world.peers[3], CONVICTED)]


def test_evidence_is_not_written_where_anothers_waits() -> None:
    world = World(4)
    world.pack(world.demand(0))
    writer = Writer(world)
    evidence = world.evidence(world.signers[3], 1)
    signed = world.record(world.signers[1], evidence)
    writer.intake.receive(world.peers[1], Records(world.genesis.chain, (signed,)), NOW)
    writer.governance.caught(evidence)
    assert writer.say() == []


def test_false_evidence_that_waits_keeps_nobody_from_writing_true() -> None:
    world = World(4)
    world.pack(world.demand(0))
    writer = Writer(world)
    true = world.evidence(world.signers[3], 1)
    false = Equivocation(true.member, true.kind, true.height, true.round, true.second, true.first)
    signed = world.record(world.signers[3], false)
    writer.intake.receive(world.peers[3], Records(world.genesis.chain, (signed,)), NOW)
    writer.governance.caught(true)
    assert [signed.record.body for signed in writer.say()] == [true]


def test_nothing_is_said_while_behind_and_all_of_it_soon_after() -> None:
    world = World(4)
    convict(world, 3)
    writer = Writer(world)
    assert writer.say(behind=True) == []
    assert writer.governance.deadline is not None
    assert len(writer.say()) == 1
    assert writer.governance.deadline is None


def test_a_word_that_went_stale_on_the_chain_is_said_anew() -> None:
    world = World(5)
    writer = Writer(world)
    effects, taken = writer.governance.change(7, exclusion(1, world.peers[4], "sold"), NOW)
    assert taken
    writer.pack(*written(effects))
    assert writer.say() == []
    writer.pack(*(world.record(one, world.change(world.signers[3])) for one in world.signers[:4]))
    assert [signed.record.body for signed in writer.say()] == [exclusion(2, world.peers[4], "sold")]


def test_a_word_that_went_stale_before_it_stood_has_failed_and_is_not_repeated() -> None:
    world = World(5)
    writer = Writer(world)
    effects, _ = writer.governance.change(7, exclusion(1, world.peers[4], "sold"), NOW)
    (mine,) = written(effects)
    outcome = writer.pack(*(world.record(one, world.change(world.signers[3])) for one in world.signers[1:5]))
    failed = [effect.notice for effect in outcome if isinstance(effect, Notify)]
    assert [(one.ticket, "the next is 2" in one.reason) for one in failed if isinstance(one, Failed)] == [
        (7, True)
    ]
    assert not writer.intake.has(mine.id)
    assert writer.say() == []


def test_a_newcomer_that_another_change_has_outdated_is_to_be_asked_again_once() -> None:
    world = World(4)
    writer = Writer(world)
    newcomer = world.newcomer("n")
    change = world.change(None, newcomer, reason="hands")
    effects, _ = writer.governance.change(7, change, NOW)
    writer.pack(*written(effects))
    assert writer.say() == []
    assert writer.governance.outdated() == []
    world.decide(world.change(world.signers[3]))
    assert change.incoming is not None
    wish = ChangeMembers(world.genesis.chain, "", change.incoming, "hands")
    assert writer.governance.outdated() == [wish]
    assert writer.governance.outdated() == []


def test_the_same_change_is_not_written_twice() -> None:
    world = World(4)
    proposed = world.change(None, world.newcomer("n"))
    world.pack(world.record(world.coordinator, proposed))
    writer = Writer(world)
    bodies = [signed.record.body for signed in (*writer.say(), *writer.say())]
    assert bodies == [proposed]
    assert isinstance(bodies[0], MembershipChange)

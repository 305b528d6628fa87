"""Asking somebody into a pool that stands: what is asked, believed, signed and refused."""

from __future__ import annotations

import msgspec
import pytest
from ledger_world import NETWORK, World, signer

from edgepool.core.machine import (
    ChangeMembers,
    Done,
    Failed,
    Instant,
    Misbehaved,
    Notify,
    Send,
    WantLink,
)
from edgepool.core.pools.joining import (
    JOIN_TIMEOUT_MS,
    JOINS_A_WINDOW,
    MAX_ASKING,
    WINDOW_MS,
    Agreed,
    Following,
    Joining,
    Output,
    OwnBeacon,
    later_secret,
    present_secret,
)
from edgepool.core.pools.lifecycle import beacon_secret
from edgepool.model.beacon import BeaconChain
from edgepool.model.block import CertifiedBlock, Handover
from edgepool.model.crypto import Signer, sha256
from edgepool.model.message import Join, JoinAnswer
from edgepool.model.pool import Genesis, Member
from edgepool.model.succession import key_succession

WORLD = World(3)
NEW = signer("newcomer")
MEMBER = Member(NEW.peer, "new", "milling", ("/ip4/10.0.0.9/tcp/4001",))
COMMAND = ChangeMembers(WORLD.genesis.chain, WORLD.peers[0], MEMBER, "worn")


def at(ms: int) -> Instant:
    return Instant(ms, 1_700_000_000_000 + ms)


def room(one: Signer, problem: str = "", trusts: bool = True, name: str = "new") -> Joining:
    member = msgspec.structs.replace(MEMBER, peer=one.peer, name=name)
    return Joining(
        signer=one,
        network=NETWORK,
        coordinators=[WORLD.coordinator.peer] if trusts else [],
        own=lambda: member,
        problem=lambda genesis: problem,
    )


def asked(joining: Joining, ms: int = 0) -> list[Output]:
    return joining.ask(5, WORLD.genesis, 3, COMMAND, at(ms))


def answer_of(joining: Joining, genesis: Genesis = WORLD.genesis, number: int = 3) -> JoinAnswer:
    outputs = joining.receive(WORLD.peers[1], Join(genesis, number), at(0))
    return next(one.message for one in outputs if isinstance(one, Send))  # type: ignore[return-value]


def failures(outputs: list[Output]) -> list[Failed]:
    notices = [one.notice for one in outputs if isinstance(one, Notify)]
    assert not any(isinstance(one, Done) for one in notices)
    return [one for one in notices if isinstance(one, Failed)]


def test_a_newcomer_agrees_and_its_yes_makes_a_change_that_may_stand() -> None:
    here = room(WORLD.signers[0])
    here.peer_up(NEW.peer)
    join = Join(WORLD.genesis, 3)
    assert asked(here) == [WantLink(MEMBER), Send(NEW.peer, join)]
    outputs = room(NEW).receive(WORLD.peers[0], join, at(0))
    assert outputs[0] == Following(WORLD.genesis), "stored before it says yes"
    assert isinstance(outputs[1], Send)
    (agreed,) = here.receive(NEW.peer, outputs[1].message, at(10))  # type: ignore[arg-type]
    assert isinstance(agreed, Agreed)
    assert (agreed.ticket, agreed.command) == (5, COMMAND)
    change = agreed.change
    assert change.terms_problem(NETWORK, WORLD.genesis.chain) == ""
    assert (change.number, change.outgoing, change.incoming, change.reason) == (
        3,
        WORLD.peers[0],
        MEMBER,
        "worn",
    )
    assert here.deadline is None


def test_who_is_not_linked_yet_is_asked_when_the_link_stands() -> None:
    here = room(WORLD.signers[0])
    assert asked(here) == [WantLink(MEMBER)]
    assert here.peer_up(NEW.peer) == [Send(NEW.peer, Join(WORLD.genesis, 3))]


def test_a_peer_can_be_its_own_newcomer() -> None:
    here = room(NEW)
    following, agreed = asked(here)
    assert following == Following(WORLD.genesis)
    assert isinstance(agreed, Agreed)
    assert agreed.change.terms_problem(NETWORK, WORLD.genesis.chain) == ""


@pytest.mark.parametrize(
    ("joining", "reason"),
    [
        (room(NEW, "it is a member already"), "new declined: it is a member already"),
        (room(NEW, trusts=False), "new declined: the pool's coordinator is not among those"),
        (room(NEW, name="other"), "new answered as 'other'"),
    ],
)
def test_the_reason_of_a_no_reaches_who_has_asked(joining: Joining, reason: str) -> None:
    here = room(WORLD.signers[0])
    asked(here)
    (failed,) = failures(here.receive(NEW.peer, answer_of(joining), at(0)))
    assert failed.reason.startswith(reason)
    assert failed.refused


def test_a_false_yes_is_no_yes() -> None:
    good = answer_of(room(NEW))
    false = (
        msgspec.structs.replace(good, signature=bytes(64)),
        msgspec.structs.replace(good, beacon_tip=bytes(32)),
        msgspec.structs.replace(good, member=msgspec.structs.replace(MEMBER, addresses=())),
    )
    for answer in false:
        here = room(WORLD.signers[0])
        asked(here)
        (failed,) = failures(here.receive(NEW.peer, answer, at(0)))
        assert "the newcomer's signature does not hold" in failed.reason


def test_an_answer_that_nobody_waits_for_counts_for_nothing() -> None:
    here = room(WORLD.signers[0])
    good = answer_of(room(NEW))
    assert here.receive(NEW.peer, good, at(0)) == []
    asked(here)
    assert here.receive(WORLD.peers[2], good, at(0)) == [], "of somebody else"
    assert here.receive(NEW.peer, msgspec.structs.replace(good, number=4), at(0)) == []
    assert len(here.receive(NEW.peer, good, at(0))) == 1
    assert here.receive(NEW.peer, good, at(0)) == []


def test_a_silent_newcomer_is_given_up_in_time() -> None:
    here = room(WORLD.signers[0])
    asked(here)
    assert here.deadline == JOIN_TIMEOUT_MS
    (failed,) = failures(here.wake(at(JOIN_TIMEOUT_MS)))
    assert (failed.reason, failed.refused) == ("new was not reached within 10 s", False)
    asked(here)
    here.peer_up(NEW.peer)
    (failed,) = failures(here.wake(at(2 * JOIN_TIMEOUT_MS)))
    assert "did not answer" in failed.reason


def test_nobody_is_asked_twice_at_once_and_not_too_many_are() -> None:
    here = room(WORLD.signers[0])
    asked(here)
    assert "is being asked already" in failures(asked(here))[0].reason
    for number in range(4, 3 + MAX_ASKING):
        assert failures(here.ask(6, WORLD.genesis, number, COMMAND, at(0))) == []
    assert "try again later" in failures(here.ask(6, WORLD.genesis, 99, COMMAND, at(0)))[0].reason


def test_a_newcomer_believes_a_pool_that_its_coordinator_has_adopted() -> None:
    """It has joined after the coordinator's key changed, and has never heard of the former one."""
    cloud = signer("cloud's new key")
    member = Member(cloud.peer, "cloud", "", (), "coordinator")
    adoption = key_succession(cloud, NETWORK, WORLD.genesis.chain, WORLD.coordinator.peer, member).adoption(
        WORLD.coordinator.peer
    )
    own = msgspec.structs.replace(MEMBER, peer=NEW.peer)
    newcomer = Joining(
        signer=NEW, network=NETWORK, coordinators=[cloud.peer], own=lambda: own, problem=lambda _: ""
    )
    first = newcomer.receive(WORLD.peers[1], Join(WORLD.genesis, 1, adoption), at(0))
    assert first[0] == Following(WORLD.genesis)
    without = newcomer.receive(WORLD.peers[1], Join(WORLD.genesis, 1), at(0))
    assert not any(isinstance(one, Following) for one in without)


def test_a_forged_genesis_is_the_senders_fault() -> None:
    forged = msgspec.structs.replace(WORLD.genesis, coordinator_signature=bytes(64))
    outputs = room(NEW).receive(WORLD.peers[1], Join(forged, 1), at(0))
    assert not any(isinstance(one, Following) for one in outputs)
    assert [
        one.notice.peer for one in outputs if isinstance(one, Notify) and isinstance(one.notice, Misbehaved)
    ] == [WORLD.peers[1]]


def test_a_peer_that_asks_all_the_time_is_not_answered_all_the_time() -> None:
    joining = room(NEW)
    answers = [joining.receive(WORLD.peers[1], Join(WORLD.genesis, 1), at(0)) for _ in range(20)]
    assert len([one for one in answers if one]) == JOINS_A_WINDOW
    assert joining.receive(WORLD.peers[2], Join(WORLD.genesis, 1), at(0)) != []
    assert joining.receive(WORLD.peers[1], Join(WORLD.genesis, 1), at(WINDOW_MS)) != []


def test_each_admission_has_a_beacon_of_its_own_and_the_last_one_counts() -> None:
    chain = WORLD.genesis.chain
    block = WORLD.certify(WORLD.pack(WORLD.demand(0)))
    assert isinstance(block, CertifiedBlock)

    def handover(incoming: Member | None) -> Handover:
        return Handover(block.block.header, block.certificate, WORLD.peers[0], incoming)

    assert answer_of(room(NEW)).beacon_tip == BeaconChain(later_secret(NEW, chain, 3)).tip
    assert answer_of(room(NEW), number=4).beacon_tip != answer_of(room(NEW)).beacon_tip
    first = [handover(None), handover(MEMBER)]
    again = [*first, handover(None), handover(MEMBER)]
    assert present_secret(NEW, WORLD.genesis, first) == later_secret(NEW, chain, 2)
    assert present_secret(NEW, WORLD.genesis, again) == later_secret(NEW, chain, 4)
    old = WORLD.signers[1]
    assert present_secret(old, WORLD.genesis, again) == beacon_secret(old, WORLD.genesis.invitation)
    beacon = OwnBeacon(NEW, WORLD.genesis)
    for handovers, number in ((first, 2), (again, 4)):
        assert sha256(beacon.reveal(handovers, 0)) == BeaconChain(later_secret(NEW, chain, number)).tip

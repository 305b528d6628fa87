"""Forming of a pool: what each side says, believes and refuses; no network, no waiting."""

from __future__ import annotations

import msgspec
import pytest

from edgepool.core.machine import Broadcast, Done, Failed, Instant, Misbehaved, Notify, Send, WantLink
from edgepool.core.pools.lifecycle import Formed, Output, PoolLifecycle, beacon_secret
from edgepool.core.rights import Subject
from edgepool.model.beacon import BeaconChain
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer, sha256
from edgepool.model.identity import Role
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import PoolAccept, PoolDecline, PoolFormed, PoolInvite, decode_message
from edgepool.model.pool import Genesis, Invitation, Member, accept, sign_invitation
from edgepool.model.succession import key_succession

NETWORK = "works"
NAMES = ("cloud", "a", "b", "c", "eye", "stranger", "rogue", "wit")
SIGNERS = {name: Signer(sha256(name.encode())) for name in NAMES}
PEER = {name: signer.peer for name, signer in SIGNERS.items()}
ROLE: dict[str, Role] = dict.fromkeys(NAMES, "machine") | {
    "cloud": "coordinator",
    "rogue": "coordinator",
    "eye": "regulator",
    "wit": "witness",
}
ROLES = {PEER[name]: role for name, role in ROLE.items()}


def at(ms: int) -> Instant:
    return Instant(ms, 1_700_000_000_000 + ms)


def person(name: str) -> Member:
    return Member(PEER[name], name, "Milling", (f"/dns4/{name}/tcp/4001",), ROLE[name])


def plan(
    *members: str, observers: tuple[str, ...] = ("cloud",), role: Role | None = None, **changes: object
) -> Invitation:
    invitation = Invitation(
        network=NETWORK,
        name="PTVA10212",
        kind="manufacturing",
        coordinator=PEER["cloud"],
        members=tuple(msgspec.structs.replace(person(name), role=role or ROLE[name]) for name in members),
        observers=tuple(person(name) for name in observers),
        combination=("Milling", "Wire cutting"),
        created_ms=0,
        nonce=0,
    )
    return msgspec.structs.replace(invitation, **changes)


def lifecycle(name: str, limit: int = 4, known: dict[ChainId, None] | None = None) -> PoolLifecycle:
    return PoolLifecycle(
        signer=SIGNERS[name],
        network=NETWORK,
        coordinators=[PEER["cloud"]],
        known=lambda chain: chain in (known or {}),
        who=lambda peer: Subject(peer, ROLES[peer]),
        chains_limit=limit,
    )


def invite(invitation: Invitation, by: str = "cloud") -> PoolInvite:
    return PoolInvite(invitation, sign_invitation(SIGNERS[by], invitation))


def acceptance(name: str, invitation: Invitation) -> PoolAccept:
    tip = BeaconChain(beacon_secret(SIGNERS[name], invitation)).tip
    return PoolAccept(invitation.hash, accept(SIGNERS[name], invitation, tip))


def notices(outputs: list[Output]) -> list[object]:
    return [output.notice for output in outputs if isinstance(output, Notify)]


class Workshop:
    """Several lifecycles whose messages go through the codec, between those that are linked."""

    def __init__(self, *names: str) -> None:
        self.rooms = {PEER[name]: lifecycle(name) for name in names}
        self.links: set[frozenset[PeerId]] = set()
        self.log: list[tuple[PeerId, object]] = []
        self.ms = 0

    def link(self, one: str, other: str) -> None:
        self.links.add(frozenset((PEER[one], PEER[other])))
        for here, there in ((one, other), (other, one)):
            self.perform(PEER[here], self.rooms[PEER[here]].peer_up(PEER[there], at(self.ms)))

    def perform(self, peer: PeerId, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Send(to, message):
                    self.deliver(peer, (to,), message)
                case Broadcast(peers, message):
                    self.deliver(peer, peers, message)
                case Formed() | Notify():
                    self.log.append((peer, output))

    def deliver(self, sender: PeerId, receivers: tuple[PeerId, ...], message: object) -> None:
        for to in receivers:
            if frozenset((sender, to)) in self.links:
                received = decode_message(encode(message))
                assert isinstance(received, PoolInvite | PoolAccept | PoolDecline | PoolFormed)
                self.perform(to, self.rooms[to].receive(sender, received, at(self.ms)))

    def formed(self) -> dict[PeerId, Genesis]:
        return {peer: output.genesis for peer, output in self.log if isinstance(output, Formed)}


def test_a_pool_forms_once_its_members_have_reached_each_other() -> None:
    shop = Workshop("cloud", "a", "b", "eye")
    for name in ("a", "b", "eye"):
        shop.link("cloud", name)
    outputs = shop.rooms[PEER["cloud"]].form(7, plan("a", "b", observers=("cloud", "eye")), at(0))
    shop.perform(PEER["cloud"], outputs)
    assert shop.formed() == {}

    shop.link("a", "b")
    assert set(shop.formed()) == {PEER["cloud"], PEER["a"], PEER["b"], PEER["eye"]}
    genesis = shop.formed()[PEER["a"]]
    assert all(other == genesis for other in shop.formed().values())
    assert genesis.problem(NETWORK) == ""
    assert (PEER["cloud"], Notify(Done(7, genesis))) in shop.log
    assert shop.rooms[PEER["cloud"]].deadline is None


def test_a_coordinator_can_be_a_member_itself() -> None:
    shop = Workshop("cloud", "a")
    outputs = shop.rooms[PEER["cloud"]].form(1, plan("cloud", "a", observers=()), at(0))
    shop.perform(PEER["cloud"], outputs)
    shop.link("cloud", "a")
    assert set(shop.formed()) == {PEER["cloud"], PEER["a"]}


def test_a_pool_of_the_coordinator_alone_forms_at_once() -> None:
    outputs = lifecycle("cloud").form(1, plan("cloud", observers=()), at(0))
    assert [type(output) for output in outputs] == [Formed, Notify]


def test_the_chain_is_started_before_anybody_hears_that_it_stands() -> None:
    room, invitation = lifecycle("cloud"), plan("a")
    room.peer_up(PEER["a"], at(0))
    outputs = room.form(1, invitation, at(0))
    assert outputs == [WantLink(person("a")), Broadcast((PEER["a"],), invite(invitation))]
    outputs = room.receive(PEER["a"], acceptance("a", invitation), at(1))
    assert [type(output) for output in outputs] == [Formed, Broadcast, Notify]


def test_who_connects_later_is_invited_then_and_again_until_it_has_accepted() -> None:
    room, invitation = lifecycle("cloud"), plan("a", "b")
    room.form(1, invitation, at(0))
    assert room.peer_up(PEER["a"], at(1)) == [Send(PEER["a"], invite(invitation))]
    room.peer_down(PEER["a"], at(2))
    assert room.peer_up(PEER["a"], at(3)) == [Send(PEER["a"], invite(invitation))]
    room.receive(PEER["a"], acceptance("a", invitation), at(4))
    assert room.peer_up(PEER["a"], at(5)) == []


def test_a_decline_fails_the_pool_and_is_quoted() -> None:
    room, invitation = lifecycle("cloud"), plan("a", "b")
    room.form(1, invitation, at(0))
    outputs = room.receive(PEER["b"], PoolDecline(invitation.hash, "the door is open"), at(1))
    assert outputs == [Notify(Failed(1, "b declined: the door is open", refused=True))]
    assert room.receive(PEER["a"], acceptance("a", invitation), at(2)) == []


def test_silence_fails_the_pool_after_ten_seconds_and_is_named() -> None:
    room, invitation = lifecycle("cloud"), plan("a", "b", "c")
    room.peer_up(PEER["b"], at(0))
    room.form(1, invitation, at(0))
    room.receive(PEER["a"], acceptance("a", invitation), at(1))
    assert room.deadline == 10_000
    assert room.wake(at(9_999)) == []
    reason = "not accepted within 10 s by b (no answer), c (not connected)"
    assert room.wake(at(10_000)) == [Notify(Failed(1, reason, refused=False))]


def test_an_observer_cannot_stop_a_pool() -> None:
    room, invitation = lifecycle("cloud"), plan("a", observers=("cloud", "eye"))
    room.form(1, invitation, at(0))
    assert room.receive(PEER["eye"], PoolDecline(invitation.hash, "no"), at(1)) == []
    assert isinstance(room.receive(PEER["a"], acceptance("a", invitation), at(2))[0], Formed)


def test_a_member_dials_its_partners_and_accepts_once_all_are_there() -> None:
    room, invitation = lifecycle("a"), plan("a", "b", "c")
    outputs = room.receive(PEER["cloud"], invite(invitation), at(0))
    assert outputs == [WantLink(person("b")), WantLink(person("c"))]
    assert room.receive(PEER["cloud"], invite(invitation), at(1)) == []
    assert room.peer_up(PEER["b"], at(2)) == []
    room.peer_down(PEER["b"], at(3))
    assert room.peer_up(PEER["c"], at(4)) == []
    assert room.peer_up(PEER["b"], at(5)) == [Send(PEER["cloud"], acceptance("a", invitation))]
    assert room.deadline is None


def test_a_member_that_misses_partners_declines_after_five_seconds_and_names_them() -> None:
    room, invitation = lifecycle("a"), plan("a", "b", "c")
    room.peer_up(PEER["b"], at(0))
    room.receive(PEER["cloud"], invite(invitation), at(0))
    assert room.deadline == 5_000
    decline = PoolDecline(invitation.hash, "it did not reach its partners c")
    assert room.wake(at(5_000)) == [Send(PEER["cloud"], decline)]


def test_an_observer_dials_the_members_and_says_nothing() -> None:
    room, invitation = lifecycle("eye"), plan("a", observers=("eye",))
    assert room.receive(PEER["cloud"], invite(invitation), at(0)) == [WantLink(person("a"))]
    assert room.peer_up(PEER["a"], at(1)) == []
    assert room.deadline is None


@pytest.mark.parametrize(
    ("sender", "message", "reason", "forged"),
    [
        ("b", invite(plan("a", "b")), "does not come from its coordinator", True),
        ("b", invite(plan("a", "b", coordinator=PEER["b"]), by="b"), "a machine may not form pools", False),
        (
            "rogue",
            invite(plan("a", coordinator=PEER["rogue"]), by="rogue"),
            "the settings of those",
            False,
        ),
        ("cloud", invite(plan("a", "b"), by="b"), "signature does not hold", True),
        ("cloud", invite(plan("a", "b", network="other")), "for network 'other', not 'works'", False),
        ("cloud", invite(plan("b", "c")), "neither a member nor an observer", False),
        ("cloud", invite(plan("a", "b", role="client")), "a: a client may not be a member", False),
        ("cloud", invite(plan("a", "b", "b")), "stands in the invitation twice", False),
    ],
)
def test_an_invitation_that_cannot_be_believed_is_declined_by_reason(
    sender: str, message: PoolInvite, reason: str, forged: bool
) -> None:
    outputs = lifecycle("a").receive(PEER[sender], message, at(0))
    send = outputs[0]
    assert isinstance(send, Send)
    assert send.peer == PEER[sender]
    assert isinstance(send.message, PoolDecline)
    assert reason in send.message.reason
    assert [type(notice) for notice in notices(outputs)] == ([Misbehaved] if forged else [])


def test_whoever_is_invited_under_another_role_than_its_certificate_has_is_found_out() -> None:
    room, invitation = lifecycle("a"), plan("a", "wit", role="machine")
    room.receive(PEER["cloud"], invite(invitation), at(0))
    (send,) = room.peer_up(PEER["wit"], at(1))
    reason = "wit is invited as a machine, and is a witness"
    assert send == Send(PEER["cloud"], PoolDecline(invitation.hash, reason))


def test_a_regulator_is_told_of_pools_that_it_is_not_in_and_nobody_else_is() -> None:
    room, invitation = lifecycle("cloud"), plan("a")
    for name in ("a", "eye", "b"):
        room.peer_up(PEER[name], at(0))
    room.form(1, invitation, at(0))
    outputs = room.receive(PEER["a"], acceptance("a", invitation), at(1))
    told = next(output for output in outputs if isinstance(output, Broadcast))
    assert told.peers == (PEER["a"], PEER["eye"])
    assert isinstance(told.message, PoolFormed)
    formed = Formed(told.message.genesis)
    assert lifecycle("eye").receive(PEER["cloud"], told.message, at(2)) == [formed]
    assert lifecycle("b").receive(PEER["cloud"], told.message, at(2)) == []


def test_no_more_invitations_wait_than_are_allowed() -> None:
    room = lifecycle("a", limit=2)
    for nonce in (1, 2):
        room.receive(PEER["cloud"], invite(plan("a", "b", nonce=nonce)), at(0))
    (send,) = room.receive(PEER["cloud"], invite(plan("a", "b", nonce=3)), at(0))
    assert isinstance(send, Send)
    assert isinstance(send.message, PoolDecline)
    assert send.message.reason == "2 invitations wait here already"


def test_an_acceptance_counts_only_from_the_member_that_signed_it() -> None:
    room, invitation = lifecycle("cloud"), plan("a", "b")
    room.form(1, invitation, at(0))
    forged = PoolAccept(invitation.hash, accept(SIGNERS["b"], plan("a", "b", nonce=9), bytes(32)))
    for sender, message in (
        ("b", acceptance("a", invitation)),
        ("stranger", acceptance("stranger", invitation)),
        ("b", forged),
    ):
        (notice,) = notices(room.receive(PEER[sender], message, at(1)))
        assert isinstance(notice, Misbehaved)
        assert notice.peer == PEER[sender]
    room.receive(PEER["a"], acceptance("a", invitation), at(2))
    assert isinstance(room.receive(PEER["b"], acceptance("b", invitation), at(3))[0], Formed)


def test_a_genesis_is_believed_from_anybody_but_only_if_it_is_true_and_new() -> None:
    invitation = plan("a", "b")
    acceptances = tuple(acceptance(name, invitation).acceptance for name in ("a", "b"))
    genesis = Genesis(invitation, sign_invitation(SIGNERS["cloud"], invitation), acceptances)
    assert lifecycle("a").receive(PEER["b"], PoolFormed(genesis), at(0)) == [Formed(genesis)]
    known = lifecycle("a", known={genesis.chain: None})
    assert known.receive(PEER["b"], PoolFormed(genesis), at(0)) == []
    assert lifecycle("c").receive(PEER["b"], PoolFormed(genesis), at(0)) == []
    came_later = lifecycle("c")
    came_later.remembered = {genesis.chain}
    assert came_later.receive(PEER["b"], PoolFormed(genesis), at(0)) == [Formed(genesis)]

    false = msgspec.structs.replace(genesis, acceptances=(acceptances[0], acceptances[0]))
    (notice,) = notices(lifecycle("a").receive(PEER["b"], PoolFormed(false), at(0)))
    assert isinstance(notice, Misbehaved)
    assert "acceptances" in notice.reason


def test_a_genesis_of_an_untrusted_coordinator_starts_nothing() -> None:
    invitation = plan("a", "b", coordinator=PEER["b"])
    acceptances = tuple(acceptance(name, invitation).acceptance for name in ("a", "b"))
    genesis = Genesis(invitation, sign_invitation(SIGNERS["b"], invitation), acceptances)
    assert lifecycle("a").receive(PEER["b"], PoolFormed(genesis), at(0)) == []


def test_a_genesis_of_a_former_key_is_believed_if_the_trusted_one_has_adopted_the_pool() -> None:
    """Who was away when its pool was formed, and while that key changed, has a pool all the same."""
    invitation = plan("a", "b", coordinator=PEER["b"])
    acceptances = tuple(acceptance(name, invitation).acceptance for name in ("a", "b"))
    genesis = Genesis(invitation, sign_invitation(SIGNERS["b"], invitation), acceptances)
    adopted = key_succession(SIGNERS["cloud"], NETWORK, genesis.chain, PEER["b"], person("cloud"))
    formed = PoolFormed(genesis, adopted.adoption(PEER["b"]))
    assert lifecycle("a").receive(PEER["cloud"], formed, at(0)) == [Formed(genesis)]
    elsewhere = key_succession(SIGNERS["cloud"], NETWORK, ChainId("0" * 40), PEER["b"], person("cloud"))
    forged = PoolFormed(genesis, elsewhere.adoption(PEER["b"]))
    assert lifecycle("a").receive(PEER["cloud"], forged, at(0)) == []


@pytest.mark.parametrize(
    ("former", "invitation", "reason"),
    [
        ("a", plan("a"), "names another coordinator"),
        ("a", plan("a", coordinator=PEER["a"]), "a machine may not form pools"),
        ("cloud", plan("a", network="other"), "for network 'other', not 'works'"),
        ("cloud", plan("a", "a"), "twice"),
        ("cloud", plan("a", name=""), "not well formed"),
    ],
)
def test_a_pool_that_cannot_be_is_refused_at_once(former: str, invitation: Invitation, reason: str) -> None:
    (notice,) = notices(lifecycle(former).form(3, invitation, at(0)))
    assert isinstance(notice, Failed)
    assert (notice.ticket, notice.refused) == (3, True)
    assert reason in notice.reason


def test_who_changes_its_key_forms_no_pool_and_waits_for_those_that_it_is_forming() -> None:
    cloud = lifecycle("cloud")
    invitation = plan("a", "b")
    cloud.form(1, invitation, at(0))
    cloud.closed = "its key is being changed"
    assert cloud.settled_ms > 0
    assert cloud.form(2, plan("a", "c"), at(1)) == [
        Notify(Failed(2, "its key is being changed", refused=True))
    ]
    for name in ("a", "b"):
        cloud.receive(PEER[name], acceptance(name, invitation), at(2))
    assert cloud.settled_ms == 0
    cloud.closed = ""
    cloud.form(3, plan("a", "c"), at(3))
    cloud.wake(at(cloud.settled_ms))
    assert cloud.settled_ms == 0


def test_those_whom_a_peer_trusts_may_change_while_it_runs() -> None:
    trusted = {PEER["cloud"]: None}
    one = PoolLifecycle(
        signer=SIGNERS["a"],
        network=NETWORK,
        coordinators=trusted,
        known=lambda _: False,
        who=lambda peer: Subject(peer, ROLES[peer]),
        chains_limit=4,
    )
    theirs = plan("a", "b", coordinator=PEER["rogue"])
    (no,) = one.receive(PEER["rogue"], invite(theirs, by="rogue"), at(0))
    assert isinstance(no, Send)
    assert isinstance(no.message, PoolDecline)
    del trusted[PEER["cloud"]]
    trusted[PEER["rogue"]] = None
    assert one.receive(PEER["rogue"], invite(theirs, by="rogue"), at(1)) == [WantLink(person("b"))]
    (no,) = one.receive(PEER["cloud"], invite(plan("a", "b")), at(2))
    assert isinstance(no, Send)
    assert isinstance(no.message, PoolDecline)

"""Whom a main chain trusts: what can be decided, by whom, once; and what members say of it by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_world import World

from edgepool.core.ledger import trust as trust_module
from edgepool.core.ledger.state import ChainState
from edgepool.core.ledger.trust import NEVER_MS, Trust, UnitedTrust, united
from edgepool.core.membership import REVOKED, MembershipPolicy, exclusion
from edgepool.core.trusting import CARRIED, TrustPolicy, root_problem
from edgepool.errors import DecodeError
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import PeerId
from edgepool.model.record import MAX_RECORD_BYTES, SignedRecord
from edgepool.model.trust import (
    MAX_ROOT_BYTES,
    AdmitRoot,
    RetireRoot,
    RevokePeer,
    TrustChange,
    TrustStep,
    own_revocation,
)
from edgepool.transport.certificates import create_authority

MOLE = Signer(sha256(b"mole"))
ROOT = AdmitRoot("B works", b"the root of B")
FINGERPRINT = sha256(ROOT.root)


@pytest.fixture
def world() -> World:
    return World(kind="fixed")


def say(world: World, step: TrustStep, *places: int, reason: str = "") -> None:
    """Pack a block in which the members at `places` say the same."""
    world.pack(*(world.record(world.signers[place], TrustChange(step, reason)) for place in places))


def refusal(world: World, step: TrustStep, place: int = 3) -> str:
    return world.state.draft().add(world.record(world.signers[place], TrustChange(step, "")))


def policy(world: World, me: int, approve: str = "coordinator") -> TrustPolicy:
    return TrustPolicy(world.peers[me], approve)  # type: ignore[arg-type]


# --- what is decided


def test_three_of_four_decide_and_two_do_not(world: World) -> None:
    say(world, ROOT, 0, 1)
    assert world.state.trust.roots == ()
    assert [authors for _, authors in world.state.trust.open] == [tuple(world.peers[:2])]
    say(world, ROOT, 2)
    (root,) = world.state.trust.roots
    assert (root.fingerprint, root.organisation, root.der) == (FINGERPRINT, "B works", ROOT.root)
    assert root.retired_ms == NEVER_MS
    assert world.state.trust.open == ()


def test_the_coordinator_may_propose_but_has_no_vote(world: World) -> None:
    world.pack(world.record(world.coordinator, TrustChange(ROOT, "")))
    say(world, ROOT, 0, 1)
    assert world.state.trust.roots == ()
    outsider = world.record(world.outsider, TrustChange(ROOT, ""))
    assert world.state.draft().add(outsider)


def test_each_step_is_decided_once(world: World) -> None:
    say(world, ROOT, 0, 1, 2)
    assert "admitted already" in refusal(world, ROOT)
    assert "admitted already" in refusal(world, AdmitRoot("B under another name", ROOT.root))
    say(world, RetireRoot(FINGERPRINT, 500), 0, 1, 2)
    assert "retired already" in refusal(world, ROOT)
    assert "retired already" in refusal(world, RetireRoot(FINGERPRINT, 500))
    assert "retired already" in refusal(world, RetireRoot(FINGERPRINT, 501)), "it can be put off by nobody"
    say(world, RetireRoot(FINGERPRINT, 400), 0, 1, 2)
    assert [root.retired_ms for root in world.state.trust.roots] == [400]
    say(world, RevokePeer(MOLE.peer), 0, 1, 2)
    assert "revoked already" in refusal(world, RevokePeer(MOLE.peer))
    assert "revoked already" in refusal(world, own_revocation(MOLE, "net"))


def test_a_root_that_was_never_admitted_can_be_retired(world: World) -> None:
    say(world, RetireRoot(FINGERPRINT, 0), 0, 1, 2)
    assert [(root.der, root.retired_ms) for root in world.state.trust.roots] == [(b"", 0)]
    assert "retired already" in refusal(world, ROOT)


def test_what_is_open_beside_stays_open_and_what_is_settled_goes(world: World) -> None:
    say(world, RevokePeer(world.peers[3]), 0, reason="one")
    say(world, RevokePeer(world.peers[3]), 1, reason="another")
    say(world, ROOT, 0)
    say(world, RevokePeer(world.peers[3]), 1, 2, reason="one")
    assert world.state.trust.revoked == ((world.peers[3], world.state.height),)
    assert [change.step for change, _ in world.state.trust.open] == [ROOT]


def test_words_count_once_more_when_the_roster_has_shrunk(world: World) -> None:
    say(world, ROOT, 0, 1)
    world.decide(world.change(world.signers[3]))
    assert world.state.trust.roots == ()
    world.pack(world.demand(0))  # the change of the members is in force: two of three, still too few
    world.decide(world.change(world.signers[2]))
    world.pack(world.demand(0))
    assert [root.fingerprint for root in world.state.trust.roots] == [FINGERPRINT]


def test_only_main_chains_say_whom_to_trust() -> None:
    assert "only a main chain" in refusal(World(), ROOT)


def test_what_is_no_peer_or_a_false_signature_cannot_be_revoked(world: World) -> None:
    assert "not a peer id" in refusal(world, RevokePeer(PeerId("!" * 52)))
    own = own_revocation(MOLE, world.state.network)
    assert refusal(world, own) == ""
    for false in (
        RevokePeer(world.peers[0], own.signature),
        own_revocation(MOLE, "another network"),
        RevokePeer(MOLE.peer, bytes(64)),
    ):
        assert "signature" in refusal(world, false)


def test_the_tables_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_module, "MAX_ROOTS", 1)
    monkeypatch.setattr(trust_module, "MAX_REVOKED", 1)
    say(world, ROOT, 0, 1, 2)
    say(world, RevokePeer(MOLE.peer), 0, 1, 2)
    assert "can know no more" in refusal(world, AdmitRoot("C", b"c"))
    assert "can know no more" in refusal(world, RetireRoot(sha256(b"c"), 0))
    assert "can revoke no more" in refusal(world, RevokePeer(world.outsider.peer))
    for number in range(16):
        say(world, RetireRoot(FINGERPRINT, number), 3)
    assert len(world.state.trust.open) == 16
    say(world, RetireRoot(FINGERPRINT, 16), 3)
    assert len(world.state.trust.open) == 16, "its oldest that nobody supports gave way"
    largest = TrustChange(AdmitRoot("o" * 64, bytes(MAX_ROOT_BYTES)), "r" * 256)
    signed = world.record(world.signers[0], largest)
    assert decode(SignedRecord, encode(signed), MAX_RECORD_BYTES) == signed
    with pytest.raises(DecodeError):
        decode(TrustChange, encode(TrustChange(AdmitRoot("o", bytes(MAX_ROOT_BYTES + 1)), "")))


def test_it_is_in_the_state_root_and_in_snapshots(world: World) -> None:
    before = world.state.root
    say(world, ROOT, 0, 1, 2)
    say(world, RevokePeer(MOLE.peer), 0, 1, 2)
    say(world, RetireRoot(sha256(b"c"), 7), 0)
    assert world.state.root != before
    restored = ChainState.restore(world.genesis, world.state.snapshot())
    assert (restored.trust, restored.root) == (world.state.trust, world.state.root)
    restored.apply(world.pack(world.record(world.signers[1], TrustChange(RetireRoot(sha256(b"c"), 7), ""))))
    assert restored.root == world.state.root
    for false in (
        Trust(roots=(world.state.trust.roots[0],) * 2),
        Trust(revoked=((MOLE.peer, 1), (MOLE.peer, 2))),
        Trust(revoked=((MOLE.peer, 1),), open=((TrustChange(RevokePeer(MOLE.peer), ""), (world.peers[0],)),)),
    ):
        assert false.problem()


# --- what follows of it


def test_who_is_revoked_is_excluded_by_everybody_with_the_same_words(world: World) -> None:
    say(world, RevokePeer(world.peers[3]), 0, 1, 2)
    revoked = [world.peers[3]]
    for place, approve in ((0, "coordinator"), (1, "manual")):
        rule = MembershipPolicy(world.peers[place], approve)  # type: ignore[arg-type]
        assert rule.changes(world.state, revoked) == [exclusion(1, world.peers[3], REVOKED)]
    cloud = MembershipPolicy(world.coordinator.peer, "coordinator")
    assert cloud.changes(world.state, revoked) == [exclusion(1, world.peers[3], REVOKED)]
    assert MembershipPolicy(world.peers[3], "coordinator").changes(world.state, revoked) == [], (
        "not by itself"
    )


def test_who_is_revoked_does_not_come_back_with_the_same_key(world: World) -> None:
    mole = world.newcomer("mole")
    say(world, RevokePeer(mole.peer), 0, 1, 2)
    record = world.record(world.signers[0], world.change(None, mole))
    assert "was revoked" in world.state.draft().add(record)


def test_members_approve_what_their_coordinator_proposes_and_own_revocations(
    world: World, tmp_path: Path
) -> None:
    create_authority(tmp_path, "B works")
    pem = (tmp_path / "authority.pem").read_bytes()
    good = AdmitRoot("B works", x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
    steps: list[TrustStep] = [
        good,
        AdmitRoot("C works", good.root),
        ROOT,
        RevokePeer(world.peers[0]),
        RevokePeer(world.outsider.peer),
    ]
    world.pack(*(world.record(world.coordinator, TrustChange(step, "")) for step in steps))
    own = own_revocation(MOLE, world.state.network)
    say(world, own, 2)
    none = UnitedTrust()
    approved = [change.step for change in policy(world, 0).changes(world.state, none)]
    assert approved == [good, RevokePeer(world.outsider.peer), own], "not its own, nor what is no such root"
    assert [change.step for change in policy(world, 1, "manual").changes(world.state, none)] == [own]
    assert "not of 'C works'" in root_problem(steps[1])
    assert root_problem(ROOT)


def test_a_coordinator_carries_what_one_main_chain_has_decided_to_the_others() -> None:
    first, second = World(kind="fixed"), World(members=5, kind="fixed")
    say(first, ROOT, 0, 1, 2)
    say(first, RetireRoot(FINGERPRINT, 9), 0, 1, 2)
    say(first, RevokePeer(MOLE.peer), 0, 1, 2)
    everything = united((first.state.trust, second.state.trust))
    cloud = TrustPolicy(second.coordinator.peer, "coordinator")
    carried = cloud.changes(second.state, everything)
    assert [change.step for change in carried] == [RevokePeer(MOLE.peer), ROOT, RetireRoot(FINGERPRINT, 9)]
    assert {change.reason for change in carried} == {CARRIED}
    assert cloud.changes(first.state, everything) == []
    assert policy(second, 0).changes(second.state, everything) == [], "the others leave that to it"
    second.pack(*(second.record(second.coordinator, change) for change in carried))
    assert cloud.changes(second.state, everything) == [], "it has said so"


STEPS: tuple[TrustStep, ...] = (
    AdmitRoot("B", b"b"),
    AdmitRoot("C", b"c"),
    RetireRoot(sha256(b"b"), 5),
    RetireRoot(sha256(b"b"), 3),
    RetireRoot(sha256(b"d"), 3),
    RevokePeer(MOLE.peer),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(STEPS)), max_size=40))
def test_whatever_is_said_in_whatever_order_makes_a_state_that_a_snapshot_restores(
    words: list[tuple[int, TrustStep]],
) -> None:
    world = World(kind="fixed")
    said: dict[TrustStep, set[int]] = {}
    for place, step in words:
        record = world.record(world.signers[place], TrustChange(step, ""))
        if world.state.draft().add(record):
            continue
        said.setdefault(step, set()).add(place)
        world.pack(record)
        trust = world.state.trust
        assert trust.problem() == ""
        # What three have said is decided, and nothing else.
        assert bool(trust.misfit(step)) == (len(said[step]) >= 3)
    restored = ChainState.restore(world.genesis, world.state.snapshot())
    assert (restored.trust, restored.root) == (world.state.trust, world.state.root)

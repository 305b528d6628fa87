"""What owners say of who may have their data: what stands on chains, and how holders judge by it [S2.3]."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ledger_world import KEY, World

from edgepool.core.access import UNOFFERED, Access
from edgepool.core.ledger import chainfacts, contracts
from edgepool.core.ledger.proof import proof_problem, prove
from edgepool.core.ledger.state import ChainState
from edgepool.core.rights import Reading, Subject, data_refusal
from edgepool.model.crypto import sha256
from edgepool.model.fields import MaybePeer
from edgepool.model.identity import ROLES, Role
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Origin
from edgepool.model.policy import DataPolicy, PolicyTerms, fits, precision
from edgepool.model.record import SignedRecord
from edgepool.model.twin import DataKey

HERE, THERE = ChainId("1" * 40), ChainId("2" * 40)
READERS: tuple[Role, ...] = ("machine", "coordinator", "witness", "inspector")
ROOT = sha256(b"data")
PRODUCTION = PolicyTerms(purposes=("production", "inspection"))


def policy(
    world: World,
    author: int,
    pattern: str = str(KEY),
    version: int = 1,
    terms: PolicyTerms | None = PRODUCTION,
) -> SignedRecord:
    part, _, kind = pattern.rpartition("/")
    return world.record(world.signers[author], DataPolicy(part, kind, version, terms))


def verdict(world: World, *records: SignedRecord) -> str:
    draft = world.state.draft()
    return [draft.add(one) for one in records][-1]


def said(
    terms: PolicyTerms | None,
    subject: Subject | None = None,
    *,
    purpose: str = "",
    now_ms: int = 1000,
    pools: tuple[ChainId, ...] = (HERE,),
    default: Any = "network",
) -> str:
    reading = Reading(purpose, now_ms, pools, HERE, default)
    return data_refusal(subject or Subject(PeerId("p")), terms, reading)


# --- what a chain lets stand ----------------------------------------------------------------------


def test_policies_of_an_author_and_pattern_follow_each_other() -> None:
    world = World()
    assert "has version 1, not 2" in verdict(world, policy(world, 0, version=2))
    assert "no policy for PTVA10212-03/model that could be taken back" in verdict(
        world, policy(world, 0, terms=None)
    )
    first, second = policy(world, 0), policy(world, 0, version=2)
    assert verdict(world, first, second) == ""
    assert "has version 2, not 1" in verdict(world, first, policy(world, 0))
    assert verdict(world, first, policy(world, 1)) == "", "each author has its own"
    assert verdict(world, first, policy(world, 0, version=2, terms=None), policy(world, 0)) == ""


@pytest.mark.parametrize("pattern", ["a/b/c", " x/model", "x/\n"])
def test_a_pattern_is_a_key_or_begins_like_one(pattern: str) -> None:
    world = World()
    assert "not a pattern of data keys" in verdict(world, policy(world, 0, pattern))
    assert verdict(world, policy(world, 0, "*/*")) == ""
    assert verdict(world, policy(world, 0, "PTVA*/model")) == ""


def test_authors_and_chains_have_so_many_policies_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contracts, "MAX_POLICIES_OF", 2)
    monkeypatch.setattr(contracts, "MAX_POLICIES", 3)
    world = World()
    full = [policy(world, 0, f"P{n}/model") for n in range(2)]
    assert "take one back" in verdict(world, *full, policy(world, 0))
    assert verdict(world, *full, policy(world, 0, "P0/model", 2)) == "", "a later version takes no room"
    assert "3 policies" in verdict(world, *full, policy(world, 1), policy(world, 2))


def test_the_most_precise_policy_counts_part_before_kind() -> None:
    world = World()
    patterns = ("*/*", "*/model", "PTVA*/*", "PTVA10212-0*/*", f"{KEY.part}/*", str(KEY))
    for pattern in patterns:
        world.pack(policy(world, 0, pattern))
        entry = world.state.policy(world.peers[0], KEY)
        assert entry is not None
        assert str(entry.policy.pattern) == pattern
    assert world.state.policy(world.peers[1], KEY) is None
    assert sorted(patterns, key=lambda one: precision(DataKey.parse(one))) == list(patterns)
    assert not fits(DataKey("PTVA", "model"), KEY)


def test_policies_are_part_of_the_state_and_of_its_snapshots() -> None:
    world = World()
    world.pack(policy(world, 1), policy(world, 0, "*/*"))
    before = world.state.root
    world.pack(policy(world, 0, "*/*", 2, PolicyTerms(hidden=True)))
    assert world.state.root != before
    restored = ChainState.restore(world.genesis, world.state.snapshot())
    assert restored.root == world.state.root
    assert restored.policies() == world.state.policies()
    assert [owner for owner, _ in restored.policies()] == sorted(world.peers[:2])
    assert world.state.standing_places(1) == ((1, 0),), "the records of standing policies are kept"
    world.pack(policy(world, 0, "*/*", 3, None))
    assert [entry.policy.pattern for _, entry in world.state.policies()] == [KEY]


def test_policies_of_who_has_left_stay_while_its_data_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chainfacts, "FORGET_BLOCKS", 2)
    world = World()
    world.pack(policy(world, 3), policy(world, 2), world.offer(2))
    world.decide(world.change(world.signers[3]))
    world.pack(world.demand(0))
    world.decide(world.change(world.signers[2]))
    for _ in range(4):
        world.pack(world.demand(0))
    assert [owner for owner, _ in world.state.policies()] == [world.peers[2]]


def test_a_policy_is_proved_to_strangers_and_is_no_offer() -> None:
    world = World()
    block = world.pack(policy(world, 0))
    proof = prove(world.genesis, (), world.certify(block), 0)
    assert proof is not None
    coordinators = [world.coordinator.peer]
    assert proof_problem(proof, "works", coordinators, DataPolicy) == ""
    assert proof_problem(proof, "works", coordinators) == "the record is no data offer"
    assert "not trusted" in proof_problem(proof, "works", [], DataPolicy)


# --- what a policy says ---------------------------------------------------------------------------


def test_without_a_policy_the_holders_default_decides() -> None:
    for role in ROLES:
        allowed = said(None, Subject(PeerId("p"), role)) == ""
        assert allowed == (role in READERS)
    assert said(None, pools=(THERE,)) == ""
    assert said(None, default="pool") == ""
    assert "only to peers of the pool" in said(None, pools=(THERE,), default="pool")
    assert "only what its owner has set a policy for" in said(None, default="owner")
    assert said(PolicyTerms(), default="owner") == "", "a policy goes before the default"


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("named", [(), ("machine",), ("client", "regulator"), ROLES])
def test_roles_read_by_default_or_where_a_policy_names_them_and_regulators_never(
    role: Role, named: tuple[Role, ...]
) -> None:
    reason = said(PolicyTerms(roles=named), Subject(PeerId("p"), role))
    allowed = role != "regulator" and (role in named if named else role in READERS)
    assert (reason == "") == allowed
    if role == "regulator":
        assert "a regulator may not read data" in reason
    elif named and not allowed:
        assert reason == f"role '{role}' is not among {', '.join(named)}"


@pytest.mark.parametrize(
    ("terms", "given", "reason"),
    [
        (PRODUCTION, {"purpose": "inspection"}, ""),
        (PRODUCTION, {"purpose": "marketing"}, "purpose 'marketing' is not among production, inspection"),
        (PRODUCTION, {}, "no purpose is stated, and it must be one of production, inspection"),
        (PolicyTerms(members=("p",)), {}, ""),  # type: ignore[arg-type]
        (PolicyTerms(members=("q",)), {}, "peer p is not among the members"),  # type: ignore[arg-type]
        (PolicyTerms(pools=(HERE, THERE)), {"pools": (THERE,)}, ""),
        (PolicyTerms(pools=(THERE,)), {}, "in none of the pools"),
        (PolicyTerms(organisations=("Works",)), {"subject": Subject(PeerId("p"), "machine", "Works")}, ""),
        (
            PolicyTerms(organisations=("Works",)),
            {"subject": Subject(PeerId("p"), "machine", "Other")},
            "organisation 'Other' is not among those",
        ),
        (PolicyTerms(organisations=("Works",)), {}, "organisation '' is not among those"),
        (PolicyTerms(valid_until_ms=1000), {}, ""),
        (PolicyTerms(valid_until_ms=999), {}, "the owner's policy has ended"),
        (PolicyTerms(hidden=True), {}, ""),
    ],
)
def test_each_condition_of_a_policy_is_named_when_it_fails(
    terms: PolicyTerms, given: dict[str, Any], reason: str
) -> None:
    refusal = said(terms, **given)
    assert reason in refusal
    assert (refusal == "") == (reason == "")


# --- how a holder finds the policy ----------------------------------------------------------------


class Holder:
    """A peer on chains, of which each is a world's state; `people` are those it knows on all of them."""

    def __init__(self, me: PeerId, *worlds: World, default: Any = "network") -> None:
        self.chains: dict[ChainId, Any] = {}
        for world in worlds:
            people = dict.fromkeys(world.peers)
            member = me in world.state.members
            chain = SimpleNamespace(state=world.state, people=people, member=member, genesis=world.genesis)
            self.chains[world.genesis.chain] = chain
        self.access = Access(me, self.chains, default)

    def admit(self, peer: MaybePeer, purpose: str = "production") -> tuple[ChainId | None, str]:
        return self.access.admit(Subject(PeerId(peer)), KEY, ROOT, purpose, 1000)


class Other(World):
    """A pool of some other people beside members 0 and 1 of the first."""

    def make_genesis(self, network: str = "works") -> Any:
        self.coordinator = self.outsider
        return super().make_genesis(network)


def test_the_owners_policy_counts_and_not_that_of_who_offers_it_too() -> None:
    world = World()
    world.pack(world.offer(0), world.offer(1), world.offer(2), policy(world, 0))
    world.pack(policy(world, 1, terms=PolicyTerms(members=(world.peers[1],))))
    for holder in (0, 1, 2):
        access = Holder(world.peers[holder], world)
        assert access.admit("stranger") == (world.genesis.chain, "")
        assert access.admit("stranger", "marketing") == (
            None,
            "purpose 'marketing' is not among production, inspection",
        )


def test_what_is_offered_nowhere_is_not_for_sharing_and_observers_record_nothing() -> None:
    world = World()
    assert Holder(world.peers[0], world).admit("p") == (None, UNOFFERED)
    world.pack(world.offer(0))
    assert Holder(world.peers[0], world).admit("p") == (world.genesis.chain, "")
    assert Holder(world.outsider.peer, world).admit("p") == (None, UNOFFERED)


def test_nobody_has_data_by_offering_it_under_another_key() -> None:
    world = World()
    other = DataKey("free", "model")
    world.pack(world.offer(0), policy(world, 0), world.offer(1, key=other))
    access = Holder(world.peers[0], world).access
    assert access.admit(Subject(PeerId("p")), other, ROOT, "marketing", 1000) == (None, UNOFFERED)


def test_who_has_left_or_is_only_proposed_is_in_no_pool() -> None:
    world = World()
    terms = PolicyTerms(pools=(world.genesis.chain,))
    world.pack(world.offer(0), policy(world, 0, terms=terms))
    newcomer = world.newcomer("n").peer
    world.pack(world.record(world.coordinator, world.change(incoming=world.newcomer("n"))))
    holder = Holder(world.peers[0], world)
    assert holder.admit(world.peers[3])[1] == ""
    assert "in none of the pools" in holder.admit(newcomer)[1]
    world.decide(world.change(world.signers[3]))
    world.pack(world.demand(0))
    assert "in none of the pools" in holder.admit(world.peers[3])[1]


def test_of_several_chains_with_the_data_the_one_that_allows_it_is_taken_the_common_one_first() -> None:
    strict, open_ = World(), Other()
    strict.pack(strict.offer(0), policy(strict, 0, terms=PolicyTerms(members=(strict.peers[3],))))
    open_.pack(open_.offer(0))
    holder = Holder(strict.peers[0], strict, open_)
    assert holder.admit("stranger") == (open_.genesis.chain, "")
    assert holder.admit(strict.peers[3]) == (strict.genesis.chain, "")


def test_who_offers_others_data_as_its_own_elsewhere_frees_nobody_else_to_hand_it_on() -> None:
    strict, open_ = World(), Other()
    strict.pack(strict.offer(0), strict.offer(2), policy(strict, 0))
    open_.pack(open_.offer(1))
    third = Holder(strict.peers[2], strict, open_)
    assert "marketing" in third.admit("stranger", "marketing")[1]
    assert third.admit("stranger")[1] == ""
    owner = Holder(strict.peers[0], strict, open_)
    assert owner.admit("stranger")[1] == "", "and takes nothing from the owner"


def test_what_came_under_a_policy_is_handed_on_under_it_and_never_as_ones_own() -> None:
    source, here = World(), Other()
    block = source.pack(policy(source, 0))
    proof = prove(source.genesis, (), source.certify(block), 0)
    assert proof is not None
    here.pack(here.offer(1))
    holder = Holder(here.peers[1], here)
    assert holder.admit("stranger", "marketing")[1] == ""
    holder.access.origins[ROOT] = Origin(KEY, proof)
    assert "marketing" in holder.admit("stranger", "marketing")[1]
    assert holder.admit("stranger") == (here.genesis.chain, "")
    source.pack(policy(source, 0, version=2, terms=PolicyTerms(purposes=("marketing",))))
    informed = Holder(here.peers[1], here, source)
    assert here.peers[1] == source.peers[1]
    informed.access.origins[ROOT] = Origin(KEY, proof)
    assert informed.admit("stranger", "marketing")[1] == "", (
        "the policy that stands now, where it can be seen"
    )
    assert "production" in informed.admit("stranger")[1]


def test_hidden_offers_are_told_from_others() -> None:
    world = World()
    world.pack(world.offer(0), policy(world, 0, terms=PolicyTerms(hidden=True)))
    access = Holder(world.peers[1], world).access
    assert access.hides(world.genesis.chain, KEY, ROOT)
    assert not access.hides(world.genesis.chain, DataKey("other", "model"), ROOT)

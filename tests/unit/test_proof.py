from __future__ import annotations

import msgspec
import pytest
from changing_pool import ChangingPool, twice_changed
from ledger_world import NETWORK, World

from edgepool.core.ledger import proof as proof_module
from edgepool.core.ledger.proof import (
    KnownRosters,
    handovers_before,
    keep_record,
    proof_problem,
    prove,
    prove_kept,
    roster_of,
)
from edgepool.model.block import CertifiedBlock, Handover, Header, changed_roster
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import sha256
from edgepool.model.ids import PeerId
from edgepool.model.message import MAX_HANDOVERS, OfferProof
from edgepool.model.pool import Genesis

replace = msgspec.structs.replace


@pytest.fixture
def world() -> World:
    return World()


def block_of(world: World, size: int, offer_at: int) -> CertifiedBlock:
    records = [world.offer(0) if i == offer_at else world.demand(1) for i in range(size)]
    return world.certify(world.pack(*records))


def proof_of(world: World | ChangingPool, certified: CertifiedBlock, place: int) -> OfferProof:
    handovers = world.handovers if isinstance(world, ChangingPool) else ()
    proof = prove(world.genesis, handovers, certified, place)
    assert proof is not None
    return proof


def problem(world: World | ChangingPool, proof: OfferProof) -> str:
    return proof_problem(proof, NETWORK, [world.coordinator.peer])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_offer_at_any_place_of_a_block_is_proved(size: int) -> None:
    for place in range(size):
        world = World()
        proof = proof_of(world, block_of(world, size, place), place)
        assert problem(world, decode(OfferProof, encode(proof))) == ""


def test_only_offers_are_proved(world: World) -> None:
    with pytest.raises(AssertionError):
        proof_of(world, block_of(world, 3, 0), 1)


def test_genesis_must_be_whole_of_this_network_and_by_a_trusted_coordinator(world: World) -> None:
    proof = proof_of(world, block_of(world, 3, 1), 1)
    assert "not trusted" in proof_problem(proof, NETWORK, [world.outsider.peer])
    assert "for network" in proof_problem(proof, "other works", [world.coordinator.peer])
    forged = replace(proof.genesis, coordinator_signature=bytes(64))
    assert "coordinator's signature" in problem(world, replace(proof, genesis=forged))


def test_members_who_did_not_accept_prove_nothing(world: World) -> None:
    """A stranger names the pool's members in a genesis of its own and signs for them."""
    proof = proof_of(world, block_of(world, 3, 1), 1)
    others = tuple(replace(yes, signature=bytes(64)) for yes in proof.genesis.acceptances)
    assert "member" in problem(world, replace(proof, genesis=replace(proof.genesis, acceptances=others)))


def test_genesis_with_text_for_a_peer_id_is_refused_not_raised(world: World) -> None:
    proof = proof_of(world, block_of(world, 3, 1), 1)
    bad = PeerId("0" * 50)
    invitation = replace(proof.genesis.invitation, coordinator=bad)
    genesis = Genesis(invitation, proof.genesis.coordinator_signature, proof.genesis.acceptances)
    assert proof_problem(replace(proof, genesis=genesis), NETWORK, [bad])


def test_record_must_be_an_authentic_offer_that_the_members_have_certified(world: World) -> None:
    proof = proof_of(world, block_of(world, 3, 1), 1)
    forged = replace(proof.record, signature=bytes(64))
    assert "author's signature" in problem(world, replace(proof, record=forged))
    stranger = world.record(world.outsider, proof.record.record.body)
    assert "does not lead to the block's root" in problem(world, replace(proof, record=stranger))
    assert "no data offer" in problem(world, replace(proof, record=world.demand(0)))
    other = World(members=5).offer(0)
    assert "another chain" in problem(world, replace(proof, record=other))


def test_record_that_is_not_in_the_block_is_refused(world: World) -> None:
    proof = proof_of(world, block_of(world, 3, 1), 1)
    assert "does not lead" in problem(world, replace(proof, record=world.offer(0, 2)))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_path_has_exactly_one_form(size: int) -> None:
    """Else one record could be shown at several places, or several records at one."""
    world = World()
    last = size - 1
    proof = proof_of(world, block_of(world, size, last), last)
    path = proof.path
    wrong = [(*path, b""), (*path, bytes(32)), (b"", *path)]
    if path:
        assert "below the root" in problem(world, replace(proof, path=path[:-1]))
    wrong += [
        (*path[:i], sibling, *path[i + 1 :])
        for i in range(len(path))
        for sibling in (b"", bytes(31), bytes(32))
        if sibling != path[i]
    ]
    assert all(problem(world, replace(proof, path=other)) for other in wrong)
    assert all(problem(world, replace(proof, index=i)) for i in range(size + 3) if i != last)


def header_of(proof: OfferProof, **changes: object) -> Header:
    return replace(proof.header, **changes)


def test_certificate_must_be_for_this_header(world: World) -> None:
    proof = proof_of(world, block_of(world, 3, 1), 1)
    certificate = proof.certificate
    for header in (
        header_of(proof, time_ms=1),
        header_of(proof, height=2),
        header_of(proof, proposer=world.peers[1]),
    ):
        assert "another block" in problem(world, replace(proof, header=header))
        resealed = replace(certificate, block_id=header.id, height=header.height)
        assert "signature of member" in problem(world, replace(proof, header=header, certificate=resealed))
    assert "signature of member" in problem(world, replace(proof, certificate=replace(certificate, round=1)))
    assert "another block" in problem(world, replace(proof, certificate=replace(certificate, height=2)))
    few = replace(certificate, signatures=certificate.signatures[:-1])
    assert "are needed" in problem(world, replace(proof, certificate=few))
    assert "another chain" in problem(world, replace(proof, header=header_of(proof, network="other works")))


def test_forged_block_under_a_real_certificate_is_refused(world: World) -> None:
    proof = proof_of(world, block_of(world, 1, 0), 0)
    record = world.offer(0, 2, b"forged")
    header = header_of(proof, records_root=sha256(b"\0" + encode(record)))
    assert "another block" in problem(world, replace(proof, record=record, header=header))


# --- a roster that changes ----------------------------------------------------------------------


@pytest.fixture
def pool() -> ChangingPool:
    return twice_changed()


def test_an_offer_is_proved_by_the_roster_of_its_height(pool: ChangingPool) -> None:
    """Newcomers' votes count after the handover, and the proof carries what leads there, no more."""
    early = pool.blocks[0]
    offers = [pool.offer(pool.signers[member.peer]) for member in pool.roster]
    late = pool.block(*offers)
    for place in range(len(offers)):
        proof = proof_of(pool, late, place)
        assert problem(pool, decode(OfferProof, encode(proof))) == ""
        assert proof.handovers == pool.handovers
    first = proof_of(pool, early_with_offer(pool), 0)
    assert first.handovers == ()
    assert problem(pool, first) == ""
    assert handovers_before(pool.handovers, early.block.header.height) == ()
    names = [member.name for member in roster_of(pool.genesis, pool.handovers)]
    assert names == ["n5", "m1", "m2", "m3", "n4"]


def early_with_offer(pool: ChangingPool) -> CertifiedBlock:
    """Return another first block of the same pool, with an offer."""
    other = ChangingPool()
    assert other.chain == pool.chain
    return other.block(other.offer(other.signer(0)))


def test_handovers_that_are_missing_too_many_or_in_disorder_prove_nothing(pool: ChangingPool) -> None:
    proof = proof_of(pool, pool.block(pool.offer(pool.signer(1))), 0)
    one, two = pool.handovers
    for handovers, reason in (
        ((), "another roster than the block's"),
        ((one,), "another roster than the block's"),
        ((two,), "the handover at height 4: the block is of another roster"),
        ((two, one), "the handover at height 4: the block is of another roster"),
        ((one, one), "out of order"),
    ):
        assert reason in problem(pool, replace(proof, handovers=handovers))
    later = pool.change(outgoing=pool.roster[4].peer)
    assert "beyond the block" in problem(pool, replace(proof, handovers=(one, two, later)))


def test_a_forged_handover_does_not_let_strangers_vote(pool: ChangingPool) -> None:
    """Whoever left, or never was in, cannot name the next roster."""
    proof = proof_of(pool, pool.block(pool.offer(pool.signer(1))), 0)
    one, two = pool.handovers
    stranger = pool.person("stranger")
    for forged in (
        replace(two, incoming=stranger),
        replace(two, incoming=None),
        replace(two, outgoing=PeerId("")),
        replace(two, certificate=replace(two.certificate, signatures=two.certificate.signatures[:-1])),
        Handover(two.header, pool.certify(two.header), two.outgoing, two.incoming),  # by the next roster
    ):
        assert "handover at height 4" in problem(pool, replace(proof, handovers=(one, forged)))


def test_what_a_newcomer_wrote_before_it_had_a_vote_is_proved() -> None:
    pool = ChangingPool()
    newcomer = pool.person("n4")
    pool.block()
    offered = pool.block(
        pool.offer(pool.signers[newcomer.peer]), following=changed_roster(pool.roster, "", newcomer)
    )
    assert problem(pool, proof_of(pool, offered, 0)) == ""


def test_what_was_kept_of_a_pruned_block_proves_as_the_block_did(pool: ChangingPool) -> None:
    certified = pool.block(pool.demand(), pool.offer(pool.signer(1)), pool.demand())
    kept = keep_record(certified, 1)
    assert prove_kept(pool.genesis, pool.handovers, kept) == proof_of(pool, certified, 1)
    with pytest.raises(AssertionError):
        prove_kept(pool.genesis, pool.handovers, keep_record(certified, 0))


def test_a_pool_that_changed_too_often_proves_no_more(pool: ChangingPool) -> None:
    certified = pool.block(pool.offer(pool.signer(1)))
    many = (pool.handovers[0],) * (MAX_HANDOVERS + 1)
    assert prove(pool.genesis, many, certified, 0) is None
    assert prove(pool.genesis, many[:-1], certified, 0) is not None


def test_handovers_are_verified_once_and_again_if_one_byte_differs(
    pool: ChangingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []

    def counting(network: str, chain: str, roster: object, handovers: tuple[Handover, ...]) -> object:
        checked.append(len(handovers))
        return original(network, chain, roster, handovers)  # type: ignore[arg-type]

    original = proof_module.roster_after
    monkeypatch.setattr(proof_module, "roster_after", counting)
    one, two = pool.handovers
    known = KnownRosters(2)
    assert known.after(pool.genesis, ()) == pool.genesis.invitation.members
    for _ in range(3):
        known.after(pool.genesis, (one,))
    assert len(checked) == 1
    for _ in range(3):
        assert known.after(pool.genesis, (one, two)) == pool.roster
    assert len(checked) == 2, "what is known is gone on from"
    bad = replace(one, certificate=replace(one.certificate, round=1))
    for _ in range(2):
        assert isinstance(known.after(pool.genesis, (bad, two)), str)
    assert len(checked) == 4, "a refusal is not remembered"
    assert known.after(pool.genesis, (one, two, two)) == "the handovers are out of order"
    three = pool.change(outgoing=pool.roster[4].peer)
    checked.clear()
    for _ in range(2):
        assert known.after(pool.genesis, (one, two, three)) == pool.roster
    assert len(checked) == 1
    known.after(pool.genesis, (one,))
    assert len(checked) == 2, "only those asked for last are remembered"


def test_good_handovers_before_a_bad_one_are_not_verified_again(
    pool: ChangingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a stranger could have them verified again and again, at no cost to itself."""
    one, two = pool.handovers
    known = KnownRosters(4)
    bad = replace(two, incoming=None)
    assert "names another roster" in str(known.after(pool.genesis, (one, bad)))
    checked: list[object] = []
    original = proof_module.roster_after
    monkeypatch.setattr(
        proof_module, "roster_after", lambda *given: (checked.append(given), original(*given))[1]
    )
    assert "names another roster" in str(known.after(pool.genesis, (one, bad)))
    assert len(checked) == 1

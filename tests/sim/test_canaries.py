"""A check that has never failed proves nothing: each seeded bug must be found within its budget."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import canaries
import ledger_canaries
import pytest
import succession_canaries
from canaries import CANARIES, switched_on
from consensus_cluster import CHAIN, NETWORK, PEERS, SIGNERS, Cluster, at, make_block
from ledger_canaries import LEDGER_CANARIES
from msgspec.structs import replace
from succession_canaries import SUCCESSION_CANARIES
from test_members_change import Pool, succeed
from trust_canaries import TRUST_CANARIES

from edgepool.core import replay
from edgepool.core.consensus import lottery
from edgepool.core.consensus.votes import VoteBook
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import ChangeTrust
from edgepool.model.block import Block, CertifiedBlock
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import PeerId
from edgepool.model.message import Blocks, Proposal, Votes, sign_proposal
from edgepool.model.pool import Genesis
from edgepool.model.succession import key_succession
from edgepool.model.vote import NIL, PRECOMMIT, PREVOTE, Certificate, Vote, sign_vote
from edgepool.sim.chaos import Chaos
from edgepool.sim.checkers import Violation
from edgepool.sim.memo import ideal_signatures
from edgepool.sim.plan import Fault, Plan
from edgepool.sim.run import run_plan

Switch = Callable[[ExitStack], None]
ALL = {**CANARIES, **LEDGER_CANARIES, **TRUST_CANARIES, **SUCCESSION_CANARIES}


@pytest.mark.parametrize("name", ALL)
def test_random_schedules_find_the_canary(name: str) -> None:
    canary = ALL[name]
    with switched_on(canary.switch):
        for seed in range(canary.seeds):
            violations = run_plan(canary.plan(seed)).violations
            if violations and violations[0].partition(":")[0] in canary.rules:
                return
    pytest.fail(f"not found within {canary.seeds} seeds")


@pytest.mark.parametrize(
    "name",
    [
        "no lock",
        "missing fsync of votes",
        "stale certificate accepted",
        "change under an old number",
        "other chains convict",
        "snapshot without its root",
        "trust forgotten at restart",
        "who has left still counts",
        "former keys convict",
        "former keys convict for ever",
    ],
)
def test_the_same_schedules_are_clean_without_the_canary(name: str) -> None:
    canary = ALL[name]
    for seed in range(3):
        assert run_plan(canary.plan(seed)).violations == []


# --- directed schedules: for what random ones cannot find, or find by comparison only ---------------


def second_vote_counts() -> bool:
    """An equivocator's first vote was nil; with its second, three of four have prevoted a block."""
    book = VoteBook(PEERS[:4], PEERS[0])
    block_id = bytes(32)
    for place, value in ((3, NIL), (3, block_id), (0, block_id), (1, block_id)):
        book.add(sign_vote(SIGNERS[place], NETWORK, CHAIN, PREVOTE, 1, 0, value))
    return book.polkas.get(0) == block_id


def a_lock_survives_a_restart() -> bool:
    """Locked on a block in round 0 and restarted, a member prevotes nil for another one in round 1."""
    cluster = Cluster(4, goal=1)
    spoken: list[Vote] = []
    member, previous = 3, cluster.seats[3].app.previous()

    def note(place: int, output: object) -> None:
        message = getattr(output, "message", None)
        if place == member and isinstance(message, Votes):
            spoken.extend(message.votes)

    def hear(sender: int, message: Proposal | Votes) -> None:
        seat = cluster.seats[member]
        cluster.perform(seat, seat.engine.receive(PEERS[sender], message, at(0)))

    def vote(sender: int, round: int, block_id: bytes) -> None:
        signed = sign_vote(SIGNERS[sender], NETWORK, CHAIN, PREVOTE, 1, round, block_id)
        hear(sender, Votes(CHAIN, (signed,)))

    cluster.trace = note
    first = make_block(1, 0, previous, PEERS[0])
    other = make_block(1, 1, previous, PEERS[1], time_ms=5)
    cluster.perform(cluster.seats[member], cluster.seats[member].engine.start(at(0)))
    hear(0, sign_proposal(SIGNERS[0], NETWORK, CHAIN, 0, first, -1, ()))
    for sender in range(3):
        vote(sender, 0, first.header.id)
    assert spoken[-1].kind == PRECOMMIT, "a quorum of prevotes must lock"
    cluster.restart(member)
    for sender in (0, 2):
        vote(sender, 1, NIL)
    hear(1, sign_proposal(SIGNERS[1], NETWORK, CHAIN, 1, other, -1, ()))
    prevotes = [one for one in spoken if (one.kind, one.round) == (PREVOTE, 1)]
    return bool(prevotes) and all(one.block_id == NIL for one in prevotes)


def turns_follow_work() -> bool:
    """Over 4,000 draws, first turns fit the weights: chi-square per degree of freedom below 3."""
    weights = dict(zip(PEERS, (70, 15, 10, 5), strict=False))
    draws = 4_000
    turns = dict.fromkeys(weights, 0)
    for number in range(draws):
        turns[replay.leader_order(sha256(encode(number)), weights)[0]] += 1
    total = sum(weights.values())
    expected = {peer: draws * weight / total for peer, weight in weights.items()}
    return sum((turns[p] - expected[p]) ** 2 / expected[p] for p in weights) / (len(weights) - 1) < 3


def choosing_a_block_gains_nothing() -> bool:
    """Whatever time and records a packer chooses, the turns of the next height are the same."""
    with ideal_signatures():
        world = Chaos(Plan(seed=1, heights=1, members=4, observed=True, chains=1, faults=()))
        world.form()
        world.work(True)
        world.run_until(lambda: world.height(world.members[0], world.chains[0]) >= 1, 10_000)
        block = world.members[0].store.block(world.chains[0], 1)
        assert block is not None
        genesis = world.judge.oracles[world.chains[0]].genesis
        return len({_turns_after(genesis, block.block, time_ms) for time_ms in range(20)}) == 1


def _turns_after(genesis: Genesis, block: Block, time_ms: int) -> tuple[PeerId, ...]:
    state = ChainState(genesis)
    state.apply(Block(replace(block.header, time_ms=time_ms), block.records))
    seed = lottery.lottery_seed(NETWORK, state.chain, 2, state.beacon)
    return lottery.leader_order(seed, dict.fromkeys(state.members, 1))


def an_old_roster_decides_nothing() -> bool:
    """Those who voted on height 2 have all left: their votes on a block of height 3 make it stand nowhere."""
    cluster = Cluster(4, changes={3: PEERS[4:8]})
    cluster.start()
    cluster.submit(0, goal=2)
    cluster.run_until(2_000)
    seat = cluster.seats[4]
    assert seat.app.height == 2, "who comes has followed the chain"
    block = make_block(3, 0, seat.app.previous(), seat.app.leader(0))
    terms = (NETWORK, CHAIN, PRECOMMIT, 3, 0, block.header.id)
    votes = tuple((place, sign_vote(SIGNERS[place], *terms).signature) for place in range(3))
    forged = CertifiedBlock(block, Certificate(3, 0, block.header.id, votes))
    cluster.perform(seat, seat.engine.receive(PEERS[5], Blocks(CHAIN, (forged,)), at(cluster.now_ms)))
    return seat.app.height == 2


def anchors_go_over() -> bool:
    """On a chain at rest, on which heads of a sub-chain are anchored, everybody's key changes."""
    with ideal_signatures():
        world = Chaos(Plan(seed=1, heights=30, members=4, observed=True, chains=2, faults=()))
        world.form()
        world.work(True)
        world.run_for(1_000)
        world.work(False)
        assert world.run_until(lambda: bool(world.judge.happened.get("anchors")), 60_000)
        for place in range(4):
            world.inject(Fault(0, "key", {"peer": place}))
        try:
            return world.run_until(lambda: not world.keys.unsettled(), 60_000)
        except Violation:
            return False


def words_go_over() -> bool:
    """A member says that a root be trusted, and gets another key; with it two others make a quorum."""
    with ideal_signatures():
        world = Chaos(Plan(seed=1, heights=1, members=4, observed=True, chains=1, faults=()))
        world.form()
        world.inject(Fault(0, "admit-root", {"root": 1, "by": 0}))
        world.run_for(1_000)
        world.inject(Fault(0, "key", {"peer": 0}))
        assert world.run_until(lambda: not world.keys.unsettled(), 60_000)
        first, second, third = world.people[:3]
        ((change, authors),) = first.node.chains[world.chains[0]].state.trust.open
        assert len(authors) == 1
        for peer in (second, third):
            world.ask(peer, ChangeTrust(world.chains[0], change))
        try:
            return world.run_until(lambda: "roots admitted" in world.judge.happened, 60_000)
        except Violation:
            return False


def old_evidence_convicts_the_new_key() -> bool:
    """A member signs two votes on the last height of its old key."""
    with ideal_signatures():
        pool = Pool(4)
        liar, other = pool.members[:2]
        old = liar.id
        heir, _ = succeed(pool, liar, "heir")
        chains = [pool.chain(one) for one in pool.members]
        assert pool.world.run_until(lambda: all(one.state.pending_change for one in chains), 60_000)
        pool.lie(liar)
        assert pool.world.run_until(lambda: heir.peer in pool.roster(other), 60_000)
        pool.world.change_key(liar, heir)
        assert old not in pool.roster(other)
        roster = pool.chain(other).state
        return pool.world.run_until(lambda: heir.peer not in {one.peer for one in roster.next_roster}, 60_000)


def nobody_becomes_an_heir_unasked() -> bool:
    """An observer names as its next key one that has not signed that."""
    with ideal_signatures():
        world = Chaos(Plan(seed=1, heights=1, members=4, observed=True, chains=1, faults=()))
        world.form()
        cloud, chain = world.cloud, world.chains[0]
        member = replace(cloud.member, peer=Signer(sha256(b"somebody honest")).peer)
        said = key_succession(cloud.signer, cloud.settings.network, chain, cloud.id, member)
        ticket = world.put(cloud, said, chain, world.settling)
        try:
            assert world.run_until(lambda: world.settled(ticket), 60_000)
        except Violation:
            return False
        return "has not signed" in world.refusal(ticket)


def last_votes_are_stored() -> bool:
    """Where votes overtake each other, a slow disk has the last one of the old key still to store."""
    storm = (
        Fault(450, "reordering", {"per_mille": 500, "most_ms": 600, "for_ms": 6_000}),
        Fault(450, "slow-disk", {"peer": 0, "sync_ms": 100, "for_ms": 6_000}),
        Fault(600, "key", {"peer": 0}),
        Fault(6_000, "heal", {}),
    )
    plan = Plan(seed=0, heights=20, members=3, observed=True, chains=1, faults=storm)
    return not any(run_plan(replace(plan, seed=seed)).violations for seed in range(12))


DIRECTED: dict[str, tuple[Switch, Callable[[], bool]]] = {
    "anchors not passed on": (succession_canaries.anchors_left_behind, anchors_go_over),
    "evidence lost with the key": (
        succession_canaries.evidence_lost,
        old_evidence_convicts_the_new_key,
    ),
    "a new key is an escape": (
        succession_canaries.a_new_key_is_an_escape,
        old_evidence_convicts_the_new_key,
    ),
    "adoptions unsigned": (succession_canaries.unsigned_adoptions, nobody_becomes_an_heir_unasked),
    "words for trust not passed on": (succession_canaries.words_left_behind, words_go_over),
    "doors close early": (succession_canaries.doors_close_early, last_votes_are_stored),
    "lock forgotten at restart": (canaries.lock_forgotten_at_restart, a_lock_survives_a_restart),
    "old roster accepted": (ledger_canaries.old_roster_accepted, an_old_roster_decides_nothing),
    "first vote only": (canaries.first_vote_only, second_vote_counts),
    "biased lottery": (canaries.biased_lottery, turns_follow_work),
    "grindable beacon": (canaries.grindable_beacon, choosing_a_block_gains_nothing),
}


@pytest.mark.parametrize("name", DIRECTED)
def test_a_directed_schedule_finds_the_canary(name: str) -> None:
    switch, holds = DIRECTED[name]
    assert holds(), "the rule must hold without the canary"
    with switched_on(switch):
        assert not holds(), "the canary was not found"

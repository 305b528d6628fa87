"""Members come, go and are thrown out: whole nodes in virtual time, over a network that reorders."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from edgepool.config import ConsensusSettings, Limits
from edgepool.core.chain import Chain
from edgepool.core.machine import ApproveChange, ChangeMembers, FormPool, Received, RecordRef, Succeed
from edgepool.core.membership import CONVICTED
from edgepool.core.pools.joining import succession
from edgepool.errors import Refused, Unavailable
from edgepool.model.block import CertifiedBlock, roster_after
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import PeerId
from edgepool.model.message import Votes
from edgepool.model.pool import Genesis, Invitation
from edgepool.model.record import ChainAnchor, DataDemand, MembershipChange
from edgepool.model.twin import DataKey
from edgepool.model.vote import NIL, PREVOTE, Equivocation, quorum, sign_vote
from edgepool.sim.memo import ideal_signatures
from edgepool.sim.network import NetworkConditions
from edgepool.sim.world import EPOCH_MS, NETWORK, SimPeer, World

ROUGH = NetworkConditions(delay_min_ms=1, delay_max_ms=40, held_per_mille=50, held_max_ms=300)
"""Messages overtake each other."""


@pytest.fixture(autouse=True)
def _fast_signatures() -> Iterator[None]:
    with ideal_signatures():
        yield


class Pool:
    """Members m0, m1, ... of one pool whose coordinator, 'cloud', observes; and 'new', who is outside."""

    def __init__(self, members: int, seed: int = 1, conditions: NetworkConditions = ROUGH) -> None:
        self.world = World(seed, cast=0)
        self.cloud = self.world.add("cloud", role="coordinator")
        self.members = [self.add(f"m{place}") for place in range(members)]
        self.new = self.add("new")
        invitation = Invitation(
            NETWORK,
            "pool",
            "fixed",
            self.cloud.id,
            tuple(peer.member for peer in self.members),
            (self.cloud.member,),
            (),
            EPOCH_MS,
            1,
        )
        genesis = self.world.command(self.cloud, FormPool(invitation))
        assert isinstance(genesis, Genesis)
        self.genesis = genesis
        self.id = genesis.chain
        assert self.world.run_until(lambda: all(self.id in peer.node.chains for peer in self.members), 10_000)
        self.world.network.conditions = conditions
        self._demands = 0

    def add(self, name: str) -> SimPeer:
        peer = self.world.add(name, machine_type="milling", coordinator=self.cloud.id)
        self.world.connect(self.cloud, peer)
        return peer

    def settle_for(self, peer: SimPeer, **changes: object) -> None:
        """Let `peer` restart with other settings."""
        peer.settings = msgspec.structs.replace(peer.settings, **changes)
        self.world.crash(peer)
        self.world.restart(peer)

    def chain(self, peer: SimPeer) -> Chain:
        return peer.node.chains[self.id]

    def change(self, by: SimPeer, outgoing: SimPeer | None, incoming: SimPeer | None) -> object:
        newcomer = incoming.member if incoming is not None else None
        command = ChangeMembers(self.id, outgoing.id if outgoing else "", newcomer, "for the test")
        return self.world.command(by, command, 120_000)

    def work(self, by: SimPeer, blocks: int = 3) -> None:
        """Let records of `by` make so many blocks."""
        for _ in range(blocks):
            self._demands += 1
            body = DataDemand(DataKey("P", "model"), self._demands, "", "")
            assert isinstance(self.world.submit(by, body, self.id, 300_000), RecordRef)

    def lie(self, liar: SimPeer, height: int | None = None) -> None:
        """Let everybody who works on the present height hear two prevotes of `liar`."""
        for peer in self.members:
            if peer is liar or not peer.up:
                continue
            engine = self.chain(peer).engine
            both = tuple(
                sign_vote(liar.signer, NETWORK, self.id, PREVOTE, engine.height, engine.round, block_id)
                for block_id in (NIL, bytes(32))
            )
            self.world.step(peer, Received(liar.id, Votes(self.id, both)))

    def roster(self, peer: SimPeer) -> tuple[PeerId, ...]:
        return self.chain(peer).state.members

    def agreed(self, *peers: SimPeer) -> bool:
        """Wait until these are at one height and say whether they have the same state and handovers."""
        chains = [self.chain(peer) for peer in peers]
        level = self.world.run_until(lambda: len({chain.state.height for chain in chains}) == 1, 300_000)
        return (
            level
            and len({(chain.state.root, tuple(h.header.id for h in chain.handovers)) for chain in chains})
            == 1
        )

    def certified(self, by: SimPeer, height: int) -> CertifiedBlock:
        found = by.store.block(self.id, height)
        assert found is not None
        return found

    def voters(self, by: SimPeer, height: int) -> list[PeerId]:
        """Return whose votes certify a height for `by`, by the roster that voted on it."""
        chain = self.chain(by)
        before = [one for one in chain.handovers if one.header.height < height]
        roster = roster_after(NETWORK, self.id, self.genesis.invitation.members, before)
        assert not isinstance(roster, str), roster
        certificate = self.certified(by, height).certificate
        assert certificate.problem(NETWORK, self.id, [member.peer for member in roster]) == ""
        assert len(certificate.signatures) == quorum(len(roster))
        return [roster[index].peer for index, _ in certificate.signatures]

    def decided_at(self, by: SimPeer, place: int = -1) -> int:
        """Return the height h whose block decided a change: the header after it is the handover."""
        return self.chain(by).handovers[place].header.height - 1


@pytest.mark.parametrize("seed", range(4))
def test_a_newcomer_catches_up_and_votes_from_two_heights_after_the_decision(seed: int) -> None:
    pool = Pool(4, seed)
    pool.work(pool.members[0], 5)
    assert isinstance(pool.change(pool.cloud, None, pool.new), RecordRef)
    pool.work(pool.members[1], 12)
    everybody = [*pool.members, pool.new, pool.cloud]
    assert pool.agreed(*everybody)
    assert pool.roster(pool.new) == (*pool.genesis.members, pool.new.id)
    assert pool.chain(pool.new).member
    decided = pool.decided_at(pool.members[0])
    votes = [pool.voters(peer, height) for peer in everybody for height in range(1, decided + 2)]
    assert all(pool.new.id not in one for one in votes)
    assert all(len(one) == 3 for one in votes)
    height = pool.chain(pool.cloud).state.height
    later = [pool.voters(peer, one) for peer in everybody for one in range(decided + 2, height + 1)]
    assert all(len(one) == 4 for one in later), "four of five from the very height on"
    assert any(pool.new.id in one for one in later)
    pool.work(pool.new)  # what it writes stands
    assert pool.agreed(*everybody)


def test_a_newcomer_of_an_idle_pool_comes_in_by_its_own_first_record() -> None:
    pool = Pool(4)
    pool.change(pool.cloud, None, pool.new)
    pool.world.run_for(30_000)
    chain = pool.chain(pool.new)
    assert chain.state.pending_change is not None, "decided, and nobody has anything more to say"
    assert pool.new.id not in chain.state.members
    pool.work(pool.new, 1)
    assert pool.new.id in chain.state.members
    pool.work(pool.new, 2)
    assert pool.agreed(*pool.members, pool.new, pool.cloud)


def test_a_newcomer_packs_blocks_with_a_beacon_of_its_own() -> None:
    pool = Pool(3)
    pool.change(pool.cloud, None, pool.new)
    pool.work(pool.members[0], 40)
    assert pool.agreed(*pool.members, pool.new)
    assert pool.chain(pool.new).state.packed[pool.new.id] > 0


@pytest.mark.parametrize("seed", range(4))
def test_who_is_excluded_votes_to_its_last_height_and_learns_of_it(seed: int) -> None:
    pool = Pool(5, seed)
    gone = pool.members[4]
    pool.change(pool.members[0], gone, None)  # a member's wish is not approved by itself
    pool.work(pool.members[1])
    assert gone.id in pool.roster(pool.cloud)
    pool.change(pool.cloud, gone, None)
    pool.work(pool.members[0], 8)
    rest = [*pool.members[:4], pool.cloud]
    assert pool.agreed(*rest)
    decided = pool.decided_at(pool.cloud)
    assert pool.roster(pool.cloud) == pool.genesis.members[:4]
    pool.world.run_for(20_000)
    state = pool.chain(gone).state
    assert (state.height, gone.id in state.members) == (decided + 1, False), "served to its last height"
    top = pool.chain(pool.cloud).state.height
    for height in range(decided + 2, top + 1):
        assert gone.id not in pool.voters(pool.cloud, height)
    with pytest.raises(Refused, match="is no member"):
        pool.work(gone)


def test_a_member_leaves_at_its_own_wish_and_comes_back_with_a_fresh_beacon() -> None:
    pool = Pool(4)
    leaver = pool.members[2]
    pool.work(leaver, 10)
    pool.change(leaver, leaver, None)
    pool.work(pool.members[0], 4)
    assert pool.agreed(*pool.members[:2], pool.members[3], pool.cloud)
    assert leaver.id not in pool.roster(pool.cloud)
    pool.change(pool.cloud, None, leaver)
    pool.work(pool.members[0], 30)
    assert pool.agreed(*pool.members, pool.cloud)
    state = pool.chain(leaver).state
    assert state.members[-1] == leaver.id
    assert state.packed[leaver.id] > 0, "it packs with what it has registered anew"
    assert len(pool.chain(leaver).handovers) == 2


def test_a_member_is_replaced_in_its_place() -> None:
    pool = Pool(4)
    pool.change(pool.cloud, pool.members[1], pool.new)
    pool.work(pool.members[0], 6)
    assert pool.agreed(pool.members[0], *pool.members[2:], pool.new, pool.cloud)
    first, _, third, fourth = pool.genesis.members
    assert pool.roster(pool.new) == (first, pool.new.id, third, fourth)


def succeed(pool: Pool, peer: SimPeer, name: str) -> tuple[Signer, MembershipChange]:
    """Let `peer` say on the chain which key follows its own."""
    heir = Signer(sha256(name.encode()))
    chain = pool.chain(peer)
    member = msgspec.structs.replace(peer.member, peer=heir.peer)
    change = succession(peer.signer, heir, NETWORK, pool.id, chain.state.change_number, member)
    assert isinstance(pool.world.command(peer, Succeed(pool.id, change), 120_000), RecordRef)
    return heir, change


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("members", [1, 3, 4])
def test_a_member_goes_on_under_a_new_key_and_an_idle_pool_lets_it(seed: int, members: int) -> None:
    pool = Pool(members, seed)
    peer = pool.members[0]
    old = peer.id
    heir, _ = succeed(pool, peer, "heir")
    # Nobody else has anything to say: the old key's own word makes the block on which it votes last.
    assert pool.world.run_until(lambda: heir.peer in pool.roster(peer), 60_000)
    first = pool.decided_at(peer) + 2
    assert pool.chain(peer).state.height == first - 1
    pool.world.change_key(peer, heir)
    assert pool.world.run_until(lambda: peer.node.directory.connected(pool.cloud.id), 60_000)
    # What it had not synced it is told again.
    assert pool.world.run_until(lambda: heir.peer in pool.roster(peer), 60_000)
    for by in pool.members:
        pool.work(by)
    assert pool.agreed(*pool.members)
    seen = [pool.voters(peer, height) for height in range(1, pool.chain(peer).state.height + 1)]
    assert all(heir.peer not in voters for voters in seen[: first - 1])
    assert all(old not in voters for voters in seen[first - 1 :])
    assert any(heir.peer in voters for voters in seen)


@pytest.mark.parametrize("seed", range(6))
def test_a_pool_of_four_goes_on_whenever_the_power_of_who_changes_its_key_fails(seed: int) -> None:
    pool = Pool(4, seed)
    peer, others = pool.members[0], pool.members[1:]
    heir, _ = succeed(pool, peer, "heir")
    pool.world.run_for(37 * seed)
    pool.world.crash(peer)
    pool.work(others[0], 4)
    assert heir.peer in pool.roster(others[0]), "the others need nobody for that"
    pool.world.restart(peer)
    assert pool.world.run_until(lambda: heir.peer in pool.roster(peer), 60_000), "it hears of its end"
    pool.world.change_key(peer, heir)
    pool.work(others[1])
    pool.work(peer)
    assert pool.agreed(*pool.members)


def test_a_pool_of_one_becomes_one_of_two() -> None:
    pool = Pool(1)
    pool.work(pool.members[0])
    pool.change(pool.cloud, None, pool.new)
    pool.work(pool.members[0], 4)
    assert pool.agreed(pool.members[0], pool.new, pool.cloud)
    assert len(pool.voters(pool.cloud, pool.chain(pool.cloud).state.height)) == 2


def test_people_decide_where_the_settings_say_so() -> None:
    pool = Pool(4)
    for peer in pool.members:
        pool.settle_for(peer, consensus=ConsensusSettings(approve="manual"))
    pool.change(pool.cloud, None, pool.new)
    pool.work(pool.members[0])
    assert pool.new.id not in pool.roster(pool.members[0])
    for peer in pool.members[:3]:
        pool.world.command(peer, ApproveChange(pool.id, pool.cloud.id), 120_000)
    pool.work(pool.members[0], 4)
    assert pool.new.id in pool.roster(pool.members[0])
    with pytest.raises(Refused, match="has proposed nothing"):
        pool.world.command(pool.members[3], ApproveChange(pool.id, pool.cloud.id))


def test_a_newcomer_that_trusts_another_coordinator_declines() -> None:
    pool = Pool(3)
    stranger = pool.world.add("stranger", machine_type="milling")
    pool.world.connect(pool.cloud, stranger)
    with pytest.raises(Refused, match="stranger declined: the pool's coordinator is not among those"):
        pool.change(pool.cloud, None, stranger)
    assert pool.id not in stranger.node.chains


def test_a_newcomer_that_is_full_or_in_already_declines() -> None:
    pool = Pool(3)
    pool.settle_for(pool.new, limits=Limits(chains=1))
    pool.change(pool.cloud, None, pool.new)
    pool.work(pool.members[0], 4)
    with pytest.raises(Refused, match="declined: it is a member already"):
        pool.change(pool.cloud, None, pool.new)
    invitation = msgspec.structs.replace(pool.genesis.invitation, nonce=2)
    second = pool.world.command(pool.cloud, FormPool(invitation))
    assert isinstance(second, Genesis)
    with pytest.raises(Refused, match="declined: it is in as many pools as"):
        pool.world.command(pool.cloud, ChangeMembers(second.chain, "", pool.new.member, ""))


def test_a_newcomer_that_is_away_is_told_of() -> None:
    pool = Pool(3)
    pool.world.crash(pool.new)
    with pytest.raises(Unavailable, match="new was not reached within 10 s"):
        pool.change(pool.cloud, None, pool.new)


def test_a_newcomer_that_nobody_admits_is_told_nothing() -> None:
    pool = Pool(4)
    pool.change(pool.members[0], None, pool.new)  # nobody approves what one member proposes
    pool.settle_for(pool.members[0])  # and it does not propose it again
    pool.change(pool.cloud, pool.members[3], None)  # and now its number is past
    pool.work(pool.members[0], 6)
    height = pool.chain(pool.new).state.height
    pool.work(pool.members[0], 6)
    pool.world.run_for(20_000)
    assert pool.chain(pool.new).state.height == height
    assert not pool.chain(pool.new).member


def test_a_liar_is_convicted_and_excluded_without_anybodys_help() -> None:
    pool = Pool(4)
    pool.work(pool.members[0])
    liar, height = pool.members[3], pool.chain(pool.members[0]).state.height
    pool.lie(liar)
    rest = pool.members[:3]
    assert pool.world.run_until(lambda: all(liar.id not in _next(pool, one) for one in rest), 60_000)
    assert pool.agreed(*rest)
    state = pool.chain(rest[0]).state
    assert state.height <= height + 6, "in a bounded number of blocks"
    bodies = _bodies(pool, rest[0])
    assert len([body for body in bodies if isinstance(body, Equivocation)]) == 1
    assert {body.reason for body in bodies if isinstance(body, MembershipChange)} == {CONVICTED}
    pool.work(rest[0], 4)
    assert pool.roster(rest[0]) == pool.genesis.members[:3]
    assert all(len(pool.voters(rest[0], one)) == 3 for one in range(1, height))


@pytest.mark.parametrize("seed", range(3))
def test_two_liars_at_once_are_excluded_one_after_the_other(seed: int) -> None:
    pool = Pool(7, seed)
    pool.work(pool.members[0])
    liars, rest = pool.members[5:], pool.members[:5]
    height = pool.chain(rest[0]).state.height
    for liar in liars:
        pool.lie(liar)
    excluded = pool.world.run_until(
        lambda: all(_next(pool, one) == pool.genesis.members[:5] for one in rest), 120_000
    )
    assert excluded
    assert pool.agreed(*rest)
    assert pool.chain(rest[0]).state.height <= height + 14
    pool.work(rest[0], 4)
    assert pool.agreed(*rest)
    assert pool.roster(rest[0]) == pool.genesis.members[:5]
    assert len(pool.chain(rest[0]).handovers) == 2


def test_an_exclusion_goes_on_after_everybody_has_restarted() -> None:
    pool = Pool(4)
    pool.work(pool.members[0])
    liar, rest = pool.members[3], pool.members[:3]
    pool.lie(liar)
    convicted = pool.world.run_until(lambda: all(pool.chain(one).state.convicted() for one in rest), 60_000)
    assert convicted
    for peer in rest:
        pool.world.crash(peer)
    for peer in rest:
        pool.world.restart(peer)
    assert pool.world.run_until(lambda: all(liar.id not in _next(pool, one) for one in rest), 120_000)
    pool.work(rest[0], 3)
    assert pool.agreed(*rest)
    assert pool.roster(rest[0]) == pool.genesis.members[:3]


@pytest.mark.parametrize("seed", range(4))
def test_restarts_in_the_middle_of_a_change_contradict_nothing(seed: int) -> None:
    pool = Pool(5, seed)
    pool.work(pool.members[0])
    pool.world.ask(pool.cloud, ChangeMembers(pool.id, pool.members[4].id, pool.new.member, "worn"))
    for turn in range(8):
        pool.world.run_for(150 + 40 * seed)
        victim = [*pool.members, pool.new][(turn + seed) % 6]
        pool.world.crash(victim)
        pool.world.run_for(100)
        pool.world.restart(victim)
    pool.world.run_for(5_000)
    pool.work(pool.members[0], 6)
    stay = [*pool.members[:4], pool.new, pool.cloud]
    assert pool.agreed(*stay)
    assert pool.new.id in pool.roster(pool.cloud)
    assert pool.members[4].id not in pool.roster(pool.cloud)


def test_two_proposals_of_one_number_come_one_after_the_other() -> None:
    """The one that loses is proposed again, and its newcomer asked again."""
    pool = Pool(4)
    second = pool.add("second")
    for peer in (pool.new, second):
        pool.world.ask(pool.cloud, ChangeMembers(pool.id, "", peer.member, "more hands"))
    pool.world.ask(pool.cloud, ChangeMembers(pool.id, pool.members[3].id, None, "sold"))
    for _ in range(10):
        pool.world.run_for(2_000)
        pool.work(pool.members[0], 1)
    expected = {*pool.genesis.members[:3], pool.new.id, second.id}
    assert set(pool.roster(pool.members[0])) == expected
    assert pool.agreed(*pool.members[:3], pool.new, second, pool.cloud)


def test_a_member_that_was_away_while_all_others_were_replaced_comes_back() -> None:
    """It knows nobody of the present roster, and they know it."""
    pool = Pool(4)
    *old, away = pool.members
    pool.work(away)
    pool.world.crash(away)
    young = [pool.add(f"young{place}") for place in range(3)]
    for place in range(3):
        pool.change(old[place], old[place], young[place])
        pool.work(old[2] if place < 2 else young[0], 3)
        assert pool.agreed(*old[place + 1 :], *young[: place + 1])
    for peer in (*old, pool.cloud):
        pool.world.crash(peer)
    pool.world.restart(away)
    pool.work(young[0], 2)
    assert pool.agreed(*young, away)
    assert pool.roster(away) == (*(peer.id for peer in young), away.id)
    pool.work(away)


def _next(pool: Pool, peer: SimPeer) -> tuple[PeerId, ...]:
    return tuple(member.peer for member in pool.chain(peer).state.next_roster)


def _bodies(pool: Pool, peer: SimPeer) -> list[object]:
    height = pool.chain(peer).state.height
    return [
        signed.record.body
        for one in range(1, height + 1)
        for signed in pool.certified(peer, one).block.records
    ]


def test_heads_of_a_sub_chain_are_anchored_on_the_main_chain_of_its_members() -> None:
    """By one of them, unless somebody has not heard of that anchor in time."""
    pool = Pool(4)
    plan = msgspec.structs.replace(pool.genesis.invitation, kind="manufacturing", nonce=2)
    sub = pool.world.command(pool.cloud, FormPool(plan))
    assert isinstance(sub, Genesis)
    assert pool.world.run_until(lambda: all(sub.chain in peer.node.chains for peer in pool.members), 10_000)
    body = DataDemand(DataKey("P", "model"), 0, "", "")
    for peer in pool.members:
        pool.world.submit(peer, body, sub.chain)
    pool.world.run_for(30_000)
    height = pool.members[0].node.chains[sub.chain].state.height
    anchors = [one for one in _bodies(pool, pool.members[0]) if isinstance(one, ChainAnchor)]
    assert [(one.sub_chain, one.certificate.height) for one in anchors] == [(sub.chain, height)]


# --- links ----------------------------------------------------------------------------------------


def test_who_is_excluded_is_dialled_no_more_and_dials_nobody_until_it_comes_back() -> None:
    """Links that stand are left alone: what is still under way may go on."""
    pool = Pool(5)
    *staying, gone = pool.members
    pool.change(pool.cloud, gone, None)
    pool.work(staying[0], 8)
    rest = [*staying, pool.cloud]
    assert pool.world.run_until(lambda: pool.agreed(*rest), 60_000)
    pool.world.run_for(20_000)
    for peer in rest:
        assert list(peer.unwanted) == [gone.id]
        assert peer.id in gone.unwanted
        assert pool.world.linked(peer, gone)
    pool.settle_for(gone)
    pool.world.run_for(20_000)
    assert not gone.node.partners.in_pools(), "after a restart it dials nobody of the pool, either"
    pool.change(pool.cloud, None, gone)
    pool.work(staying[0], 8)
    assert pool.agreed(*pool.members, pool.cloud)
    assert [peer.name for peer in (*rest, gone) if peer.unwanted] == []


def test_who_is_away_while_it_is_excluded_finds_its_pool_and_hears_of_it() -> None:
    pool = Pool(5)
    *staying, gone = pool.members
    pool.world.crash(gone)
    pool.change(pool.cloud, gone, None)
    pool.work(staying[0], 8)
    assert all(gone.id in peer.unwanted for peer in [*staying, pool.cloud])
    pool.world.restart(gone)
    assert {one.peer for one in gone.node.partners.in_pools()} == set(pool.genesis.members) | {pool.cloud.id}
    pool.world.run_for(20_000)
    assert gone.id not in pool.roster(gone)
    assert all(peer.id in gone.unwanted for peer in [*staying, pool.cloud])


def test_a_partner_in_two_pools_stays_one_while_either_stands() -> None:
    pool = Pool(5)
    other = msgspec.structs.replace(pool.genesis.invitation, name="other", nonce=2)
    second = pool.world.command(pool.cloud, FormPool(other))
    assert isinstance(second, Genesis)
    *staying, gone = pool.members
    for chain, wanted in ((pool.id, True), (second.chain, False)):
        command = ChangeMembers(chain, gone.id, None, "for the test")
        assert isinstance(pool.world.command(pool.cloud, command, 120_000), RecordRef)
        for n in range(8):
            body = DataDemand(DataKey("P", "model"), n + 1, "", "")
            assert isinstance(pool.world.submit(staying[0], body, chain, 300_000), RecordRef)
        pool.world.run_for(20_000)
        for peer in [*staying, pool.cloud]:
            assert peer.node.partners.needs(gone.id) == wanted
            assert (gone.id in peer.unwanted) == (not wanted)


def test_a_liar_is_dialled_no_more_when_it_is_out() -> None:
    pool = Pool(4)
    liar = pool.members[1]
    pool.lie(liar)
    pool.work(pool.members[0], 8)
    honest = [peer for peer in pool.members if peer is not liar]
    assert pool.agreed(*honest)
    pool.world.run_for(20_000)
    assert all(liar.id in peer.unwanted for peer in honest)

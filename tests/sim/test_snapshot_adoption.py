"""History shrinks while a member is away, or before a newcomer comes: it goes on from a snapshot."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from test_members_change import Pool

from edgepool.config import Limits
from edgepool.core import pruning
from edgepool.core.ledger import window
from edgepool.core.machine import FindData, Instant, NewChain, RankedOffer, Received
from edgepool.core.recalling import WindowFetcher
from edgepool.model.message import sign_proposal
from edgepool.model.record import DataOffer
from edgepool.model.twin import DataKey
from edgepool.model.vote import NIL, PREVOTE
from edgepool.sim.faults import SimStore
from edgepool.sim.memo import ideal_signatures
from edgepool.sim.network import NetworkConditions
from edgepool.sim.world import EPOCH_MS, NETWORK, SimPeer


@pytest.fixture(autouse=True)
def _small_chains(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(window, "WINDOW_BLOCKS", 6)
    monkeypatch.setattr(pruning, "CHECK_BLOCKS", 4)
    with ideal_signatures():
        yield


def small_pool(members: int) -> Pool:
    """Return a pool that prunes as soon as it may."""
    pool = Pool(members, conditions=NetworkConditions())
    for peer in [*pool.members, pool.new, pool.cloud]:
        pool.settle_for(peer, limits=msgspec.structs.replace(Limits(), chain_bytes=4_000))
    pool.world.run_for(1_000)
    return pool


def test_a_member_that_was_away_goes_on_from_a_snapshot_and_votes_again() -> None:
    pool = small_pool(4)
    away, rest = pool.members[3], pool.members[:3]
    pool.work(away, 3)
    pool.world.crash(away)
    pool.work(rest[0], 60)
    assert rest[0].store.block(pool.id, 4) is None, "pruned"
    pool.world.restart(away)
    assert pool.agreed(*pool.members, pool.cloud)
    pool.world.crash(rest[0])
    pool.work(away, 3)  # three of four are needed: its vote counts
    pool.world.crash(away)
    pool.world.restart(away)
    pool.work(away, 2)
    assert pool.agreed(away, *rest[1:])


@pytest.fixture
def nothing_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has the blocks between the horizon and a snapshot, or nobody answers."""
    monkeypatch.setattr(window, "WINDOW_BLOCKS", 40)
    monkeypatch.setattr(WindowFetcher, "begin", lambda self, state, now_ms: None)


def lost_disks(pool: Pool) -> list[SimPeer]:
    """Let two of four members come back with empty disks, and adopt snapshots far above the horizon."""
    steady, lost = pool.members[0], pool.members[1:3]
    pool.work(steady, 70)
    assert steady.store.block(pool.id, 4) is None, "pruned"
    for peer in lost:
        pool.world.crash(peer)
        peer.store = SimStore()
        peer.store.open()
        peer.store.write([NewChain(pool.genesis)])
        peer.store.sync()
        pool.work(steady, 2)
        pool.world.restart(peer)
        assert pool.agreed(*pool.members)
        assert pool.chain(peer).state.unknown_height > pool.chain(peer).state.horizon + 20
    return lost


@pytest.mark.usefixtures("nothing_recalled")
def test_who_has_a_snapshot_above_the_horizon_votes_at_once() -> None:
    pool = small_pool(4)
    lost = lost_disks(pool)
    pool.world.crash(pool.members[3])
    pool.work(pool.members[0], 3)  # three of four are needed, two of them do not know their windows
    pool.work(lost[0], 3)
    assert all(pool.chain(peer).state.unknown_height for peer in lost)
    pool.world.crash(lost[0])
    pool.world.restart(pool.members[3])
    pool.work(lost[1], 3)
    pool.world.restart(lost[0])
    assert pool.chain(lost[0]).state.unknown_height, "stored blocks do not tell either"
    pool.work(lost[0], 3)
    assert pool.agreed(*pool.members)


@pytest.mark.usefixtures("nothing_recalled")
def test_who_might_not_know_a_record_again_does_not_vote_for_it() -> None:
    pool = small_pool(4)
    knowing, lacking = pool.members[0], lost_disks(pool)[0]
    old = pool.certified(knowing, pool.chain(lacking).state.unknown_height).block.records[0]
    assert "already" in pool.chain(knowing).state.draft().add(old)
    assert pool.chain(lacking).state.draft().add(old) == "", "it has forgotten"
    leader = next(peer for peer in pool.members if peer.id == pool.chain(lacking).leader(0))
    others = [peer for peer in pool.members if peer is not leader]
    pool.chain(leader)._intake.pick = lambda now: [old]  # type: ignore[method-assign]
    block = pool.chain(leader).make_block(0, Instant(pool.world.now_ms, EPOCH_MS))
    assert block is not None
    said = sign_proposal(leader.signer, NETWORK, pool.id, 0, block, -1, ())
    for peer in others:
        pool.world.step(peer, Received(leader.id, said))
        (vote,) = pool.chain(peer).engine._rounds.ballot.book.votes_of(peer.id)
        assert (vote.kind, vote.block_id) == (PREVOTE, NIL)


def test_a_newcomer_of_an_old_pool_starts_from_a_snapshot() -> None:
    pool = small_pool(4)
    pool.change(pool.cloud, pool.members[3], None)
    pool.work(pool.members[0], 60)
    pool.change(pool.cloud, None, pool.new)
    pool.work(pool.members[0], 30)
    assert pool.agreed(*pool.members[:3], pool.new, pool.cloud)
    assert pool.new.store.block(pool.id, 1) is None
    assert len(pool.chain(pool.new).handovers) == 2
    assert pool.chain(pool.new).member
    pool.work(pool.new, 30)
    state = pool.chain(pool.new).state
    assert state.packed[pool.new.id] > 0
    pool.world.crash(pool.new)
    pool.world.restart(pool.new)
    pool.work(pool.new, 10)
    assert pool.agreed(*pool.members[:3], pool.new, pool.cloud)


def test_an_offer_is_proved_although_its_block_is_gone() -> None:
    pool = small_pool(3)
    key, root = DataKey("P", "drawing"), bytes(range(32))
    holder, asker = pool.members[0], pool.members[2]
    pool.world.hold(holder, root, 1_000)
    pool.world.submit(holder, DataOffer(key, 1, root, 1_000, "", 96), pool.id)
    pool.work(pool.members[1], 60)
    assert asker.store.block(pool.id, 2) is None
    found = pool.world.command(asker, FindData(key, 0, 5_000))
    assert isinstance(found, tuple)
    (offer,) = found
    assert isinstance(offer, RankedOffer)
    assert offer.holder.peer == holder.id

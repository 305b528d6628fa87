"""History shrinks while a member is away, or before a newcomer comes: it goes on from a snapshot."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from test_members_change import Pool

from edgepool.config import Limits
from edgepool.core import pruning
from edgepool.core.ledger import window
from edgepool.core.machine import FindData, RankedOffer
from edgepool.model.record import DataOffer
from edgepool.model.twin import DataKey
from edgepool.sim.memo import ideal_signatures
from edgepool.sim.network import NetworkConditions


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
    pool.work(rest[0], 8)  # until it knows all records that might come again it only follows
    assert pool.agreed(*pool.members, pool.cloud)
    assert pool.chain(away).state.knows_window
    pool.world.crash(rest[0])
    pool.work(away, 3)  # three of four are needed: its vote counts
    pool.world.crash(away)
    pool.world.restart(away)
    pool.work(away, 2)
    assert pool.agreed(away, *rest[1:])


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

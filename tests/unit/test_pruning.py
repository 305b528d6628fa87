"""A chain's history shrinks: when a snapshot is taken and blocks go, and what a restart makes of the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ledger_world import World, signer

from edgepool.config import Limits, PeerSettings, convert
from edgepool.core import pruning
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import CommitBlock, NewChain, Persist, Prune, SavedSnapshot, SaveSnapshot
from edgepool.core.pruning import CHECK_BLOCKS, Pruner
from edgepool.core.replay import load_state
from edgepool.errors import ConfigError, StorageError
from edgepool.model.block import Block, CertifiedBlock
from edgepool.model.codec import encode
from edgepool.model.ids import ChainId
from edgepool.model.message import MAX_HANDOVERS
from edgepool.storage.memory import MemoryStore

WINDOW = 80
TINY_BYTES = 4 * 16_000
"""A limit of which the blocks between two looks take more than a quarter."""


@pytest.fixture(autouse=True)
def _short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepool.core.ledger.window.WINDOW_BLOCKS", WINDOW)


@dataclass
class Site:
    """A peer's chain with its store, and what the pruner did at which height."""

    limit_bytes: int = TINY_BYTES
    world: World = field(default_factory=World)
    store: MemoryStore = field(default_factory=MemoryStore)
    done: list[tuple[int, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chain: ChainId = self.world.genesis.chain
        self.store.write([NewChain(self.world.genesis)])
        self.pruner = Pruner(self.store, self.chain, self.limit_bytes)

    def enter(self, block: Block) -> None:
        """Store a block that the world has packed, and do what the pruner says."""
        self.store.write([CommitBlock(self.world.certify(block))])
        for effect in self.pruner.after_block(self.world.state, self.world.handovers):
            assert isinstance(effect, Persist)
            assert isinstance(effect.item, SaveSnapshot | Prune)
            self.store.write([effect.item])
            self.done.append((block.header.height, type(effect.item).__name__, effect.item.height))

    def grow(self, height: int) -> None:
        while self.world.state.height < height:
            self.enter(self.world.pack(self.world.demand(0), packer=self.world.state.height % 4))

    def restart(self) -> ChainState:
        """Load the chain anew, compare it, and go on with another pruner."""
        state, handovers = load_state(self.world.genesis, self.store, self.world.state.height)
        assert (state.root, state.height) == (self.world.state.root, self.world.state.height)
        assert handovers == self.world.handovers
        self.pruner = Pruner(self.store, self.chain, self.limit_bytes)
        return state


# --- when -----------------------------------------------------------------------------------------


def test_blocks_go_when_a_snapshot_is_taken_and_the_window_has_passed_them() -> None:
    site = Site()
    site.grow(256)
    assert site.done == [
        (65, "SaveSnapshot", 64),
        (128, "Prune", 48),
        (129, "SaveSnapshot", 128),
        (192, "Prune", 112),
        (193, "SaveSnapshot", 192),
        (256, "Prune", 176),
    ]
    assert site.store.block(site.chain, 176) is None
    assert site.store.block(site.chain, 177) is not None


def test_a_snapshot_is_taken_when_a_restart_would_have_much_to_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pruning, "SNAPSHOT_RECORDS", 60)
    site = Site(limit_bytes=1024**3)
    site.grow(50)
    site.restart()
    site.grow(200)
    assert site.done == [(61, "SaveSnapshot", 60), (125, "SaveSnapshot", 124), (189, "SaveSnapshot", 188)]
    monkeypatch.setattr(pruning, "SNAPSHOT_RECORDS", 8_192)
    monkeypatch.setattr(pruning, "SNAPSHOT_BLOCKS", 30)
    site.restart()
    site.grow(230)
    assert site.done[3:] == [(219, "SaveSnapshot", 218)]


def test_snapshots_are_never_most_of_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "SNAPSHOT_BLOCKS", 10)
    site = Site(limit_bytes=1024**3)
    offers = (site.world.offer(1, version=version) for version in range(1, 201))
    blocks_bytes = snapshots_bytes = 0
    for height, offer in enumerate(offers, 1):
        site.enter(site.world.pack(offer, packer=height % 4))
        certified = site.store.block(site.chain, height)
        blocks_bytes += len(encode(certified))
        if site.done and site.done[-1][0] == height:
            saved = site.store.snapshot(site.chain)
            assert saved is not None
            snapshots_bytes += len(saved.state)
    assert len(site.done) > 2
    assert snapshots_bytes < 1.1 * blocks_bytes


def test_nothing_is_dropped_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "SNAPSHOT_BLOCKS", 64)
    site = Site(limit_bytes=1024**2)
    site.grow(300)
    assert [kind for _, kind, _ in site.done] == ["SaveSnapshot"] * 4
    assert site.store.block(site.chain, 1) is not None


def test_the_snapshot_before_stays_until_the_block_is_there_that_certifies_the_next_one() -> None:
    whole, site = Site(), Site()
    whole.grow(250)
    saves = [(at, height) for at, what, height in whole.done if what == "SaveSnapshot"]
    assert len(saves) > 1
    assert all(at == height + 1 for at, height in saves)
    (_, first), (at, second) = saves[:2]
    site.grow(second)
    before = site.store.snapshot(site.chain)
    assert before is not None
    assert before.height == first
    site.grow(at)
    saved, certified = site.store.snapshot(site.chain), site.store.block(site.chain, at)
    assert saved is not None
    assert certified is not None
    root = ChainState.restore(site.world.genesis, saved.state).root
    assert (saved.height, certified.block.header.state_root) == (second, root)


def test_a_state_that_could_not_be_read_again_is_not_stored() -> None:
    site = Site()
    site.grow(10)
    site.world.state.counts["demand"] = 2**53 - 20  # as a state may say that was taken over
    site.grow(250)
    assert [what for _, what, _ in site.done] == []


def test_nothing_happens_while_the_chain_is_small() -> None:
    site = Site(limit_bytes=1024**2)
    site.grow(200)
    assert site.done == []


def test_standing_offers_stay_provable() -> None:
    site = Site()
    site.enter(site.world.pack(site.world.demand(0), site.world.offer(1), packer=0))
    site.grow(CHECK_BLOCKS + WINDOW)
    assert site.store.block(site.chain, 1) is None
    kept = site.store.kept(site.chain, 1, 1)
    assert kept is not None
    assert kept.index == 1
    assert site.store.kept(site.chain, 1, 0) is None


def test_a_snapshot_with_which_nobody_could_join_is_not_taken() -> None:
    site = Site(limit_bytes=1024**3)
    site.enter(site.world.decide(site.world.change(incoming=site.world.newcomer("new"))))
    site.grow(CHECK_BLOCKS)
    many = site.world.handovers * (MAX_HANDOVERS + 1)
    pruner = Pruner(site.store, site.chain, TINY_BYTES)
    assert pruner.after_block(site.world.state, many) == []
    assert pruner.after_block(site.world.state, many) == []
    assert pruner.after_block(site.world.state, many[:MAX_HANDOVERS]) == []  # it comes with the next block
    assert pruner.after_block(site.world.state, many[:MAX_HANDOVERS]) != []


class Counting(MemoryStore):
    """A store that counts how often it is asked for its size."""

    asked = 0

    def size_bytes(self, chain: ChainId) -> int:
        self.asked += 1
        return super().size_bytes(chain)


def test_the_store_is_asked_for_its_size_now_and_then_only() -> None:
    store = Counting()
    site = Site(limit_bytes=1024**3, store=store)
    site.grow(4 * CHECK_BLOCKS)
    assert store.asked == 4


class Segments:
    """A source of blocks from `first` on that all have the same size, though fewer are needed."""

    def __init__(self, first: int, last: int, snapshot: int) -> None:
        self.range = range(first, last + 1)
        self.saved = SavedSnapshot(snapshot, (), b"x")

    def block(self, chain: ChainId, height: int) -> object:
        return object() if height in self.range else None

    def snapshot(self, chain: ChainId) -> SavedSnapshot:
        return self.saved

    def size_bytes(self, chain: ChainId) -> int:
        return 100 * len(self.range)


@pytest.mark.parametrize("first", [1, 2, 700, 999, 1_000, 1_001])
def test_blocks_that_stay_in_an_old_segment_do_not_count_as_growth(first: int) -> None:
    source = Segments(first, 1_100, snapshot=1_000)
    pruner = Pruner(source, ChainId("ab" * 20), 40_000)  # type: ignore[arg-type]
    assert pruner._share(source.size_bytes(ChainId("")), 100, 1_100) == 10_000


# --- restarts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [1, 63, 64, 65, 100, 143, 144, 145, 200])
def test_a_restart_at_any_height_comes_back_to_the_same_state_and_knows_its_window(height: int) -> None:
    site = Site()
    first = site.world.demand(0)
    site.enter(site.world.pack(first, packer=0))
    site.grow(height)
    state = site.restart()
    assert state.knows_window
    assert state.has_record(first.id) == (height <= WINDOW)
    again = site.world.state.draft().add(first)
    assert again != ""
    assert state.draft().add(first) == again


def test_a_restart_does_not_put_pruning_off() -> None:
    site = Site()
    for height in range(1, 200):
        site.grow(height)
        if height % 10 == 0:
            site.restart()
    assert [step for step in site.done if step[1] == "SaveSnapshot"] == [
        (65, "SaveSnapshot", 64),
        (129, "SaveSnapshot", 128),
        (193, "SaveSnapshot", 192),
    ]
    assert (192, "Prune", 112) in site.done
    assert site.store.block(site.chain, 112) is None


def test_handovers_come_back_from_the_snapshot_and_from_the_blocks_after_it() -> None:
    site = Site()
    site.grow(10)
    site.enter(site.world.decide(site.world.change(incoming=site.world.newcomer("new"))))
    site.grow(80)
    site.enter(site.world.decide(site.world.change(outgoing=signer("member 2"))))
    site.restart()
    assert site.world.handovers
    site.grow(82)
    site.restart()
    site.grow(150)
    site.restart()
    assert [one.header.height for one in site.world.handovers] == [12, 82]
    assert site.store.block(site.chain, 12) is None


def test_a_chain_that_was_adopted_goes_on_from_there_and_says_what_it_does_not_know() -> None:
    site = Site(limit_bytes=1024**3)
    site.grow(70)
    data, handovers = site.world.state.snapshot(), tuple(site.world.handovers)
    here = MemoryStore()
    here.write([NewChain(site.world.genesis), SaveSnapshot(site.chain, 70, handovers, data, adopted=True)])
    state, _ = load_state(site.world.genesis, here, 70)
    assert state.root == site.world.state.root
    assert not state.knows_window
    pruner = Pruner(here, site.chain, TINY_BYTES)
    for height in range(71, 130):
        block = site.world.pack(site.world.demand(0), packer=height % 4)
        here.write([CommitBlock(site.world.certify(block))])
        effects = pruner.after_block(site.world.state, handovers)
    assert [type(effect.item) for effect in effects] == [SaveSnapshot]  # type: ignore[union-attr]


# --- damage ---------------------------------------------------------------------------------------


class Damaged:
    """A store that lacks something, or has something else."""

    def __init__(self, site: Site, lacks: int = 0, saved: SavedSnapshot | None = None) -> None:
        self._store, self._lacks, self._saved = site.store, lacks, saved

    def block(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        return None if height == self._lacks else self._store.block(chain, height)

    def snapshot(self, chain: ChainId) -> SavedSnapshot | None:
        return self._saved or self._store.snapshot(chain)

    def record_ids(self, chain: ChainId, height: int) -> tuple[bytes, ...] | None:
        return self._store.record_ids(chain, height)


def refusal(site: Site, **damage: object) -> str:
    source = Damaged(site, **damage)  # type: ignore[arg-type]
    with pytest.raises(StorageError) as raised:
        load_state(site.world.genesis, source, site.world.state.height)  # type: ignore[arg-type]
    return str(raised.value).replace(site.chain, "C")


def test_what_is_missing_or_damaged_is_named() -> None:
    site = Site()
    site.grow(65)
    true = site.store.snapshot(site.chain)
    assert true is not None
    other = Site()
    other.enter(other.world.pack(other.world.demand(1), packer=0))
    other.grow(64)
    site.grow(70)
    assert refusal(site, lacks=67) == "chain C lacks block 67: it is missing in the store"
    assert refusal(site, saved=SavedSnapshot(64, (), b"rubbish")).startswith(
        "the stored snapshot of chain C at height 64 cannot be read: "
    )
    assert refusal(site, saved=SavedSnapshot(63, (), true.state)) == (
        "the stored snapshot of chain C at height 63 holds the state of height 64"
    )
    foreign = SavedSnapshot(64, (), other.world.state.snapshot())
    assert refusal(site, saved=foreign).startswith(
        "the stored snapshot of chain C at height 64 does not fit the blocks after it: "
    )
    assert refusal(site, saved=SavedSnapshot(71, (), true.state)) == (
        "the stored snapshot of chain C at height 71 is above the last stored block, 70: "
        "blocks are missing in the store"
    )


def test_a_chain_without_a_snapshot_names_its_first_missing_block() -> None:
    site = Site(limit_bytes=1024**3)
    site.grow(5)
    assert refusal(site, lacks=1) == "chain C lacks block 1: it is missing in the store"
    state, handovers = load_state(site.world.genesis, site.store, 0)
    assert (state.height, handovers) == (0, [])


# --- the setting ----------------------------------------------------------------------------------


def test_the_limit_is_a_setting_with_a_floor() -> None:
    assert Limits().chain_bytes == 1024**3
    tables = {"name": "m", "network": "n", "limits": {"chain_bytes": 1024**2 - 1}}
    with pytest.raises(ConfigError, match=r"limits\.chain_bytes"):
        convert(Path("edgepool.toml"), tables, PeerSettings)

"""A peer without the blocks before its state fetches them backwards, and believes only those that fit."""

from __future__ import annotations

from itertools import pairwise

import pytest
from ledger_world import World
from msgspec.structs import replace

from edgepool.core.consensus.catchup import MAX_BATCH_BLOCKS
from edgepool.core.ledger import window as window_module
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import Effect, Misbehaved, Notify, Send
from edgepool.core.recalling import ASK_MS, WindowFetcher
from edgepool.model.block import Block, CertifiedBlock
from edgepool.model.ids import ChainId
from edgepool.model.message import Blocks, Status

WINDOW = 50
HEIGHT = 70


class Past:
    """A pool with blocks up to HEIGHT, and a state that was restored of a snapshot at `at`."""

    def __init__(self, at: int = HEIGHT) -> None:
        self.world = World()
        self.blocks: list[CertifiedBlock] = []
        for height in range(1, HEIGHT + 1):
            block = self.world.pack(self.world.demand(0))
            self.blocks.append(self.world.certify(block))
            if height == at:
                self.state = ChainState.restore(self.world.genesis, self.world.state.snapshot())
        for certified in self.blocks[at:]:
            self.state.apply(certified.block)
        self.fetcher = WindowFetcher(self.world.peers[0], self, self.world.state.chain)  # type: ignore[arg-type]
        self.now_ms = 0
        self.fetcher.begin(self.state, 0)

    def block(self, chain: ChainId, height: int) -> CertifiedBlock | None:
        return self.blocks[height - 1]

    def asked(self) -> tuple[str, int]:
        """Let time pass until somebody is asked; return who, and from which height on."""
        assert self.fetcher.deadline is not None
        self.now_ms = self.fetcher.deadline
        (effect,) = self.fetcher.wake(self.state, self.now_ms)
        assert isinstance(effect, Send)
        assert isinstance(effect.message, Status)
        return effect.peer, effect.message.height

    def answer(self, peer: str, first: int, last: int) -> list[Effect]:
        return self.send(peer, *self.blocks[first - 1 : last])

    def send(self, peer: str, *blocks: CertifiedBlock) -> list[Effect]:
        message = Blocks(self.world.state.chain, blocks)
        return self.fetcher.take(peer, message, self.state, self.now_ms)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "WINDOW_BLOCKS", WINDOW)


@pytest.mark.parametrize("at", [HEIGHT, HEIGHT - 7])
def test_all_records_of_the_window_are_known_in_the_end(at: int) -> None:
    past = Past(at)
    known = [one.block.records[0].id for one in past.blocks]
    assert not past.state.has_record(known[at - 1])
    first = at
    while past.fetcher.deadline is not None:
        peer, begin = past.asked()
        assert begin == max(HEIGHT - WINDOW + 1, first - MAX_BATCH_BLOCKS + 1)
        assert past.answer(peer, begin, min(HEIGHT, begin + MAX_BATCH_BLOCKS - 1)) == []
        first = begin - 1
    assert past.state.knows_window
    assert [past.state.has_record(one) for one in known] == [False] * 20 + [True] * 50
    assert past.state.root == past.world.state.root


def test_members_are_asked_in_turn_and_ever_more_seldom() -> None:
    past = Past()
    asked = [(past.asked()[0], past.now_ms) for _ in range(9)]
    assert [peer for peer, _ in asked] == [*past.world.peers[1:]] * 3
    pauses = [later - before for (_, before), (_, later) in pairwise(asked)]
    assert pauses == [ASK_MS] * 2 + [2 * ASK_MS] * 3 + [4 * ASK_MS] * 3


def test_a_block_that_is_not_the_chains_is_told_of_and_not_believed() -> None:
    past = Past()
    peer, _ = past.asked()
    genuine = past.blocks[HEIGHT - 1]
    other = Block(genuine.block.header, past.blocks[3].block.records)
    for false in (CertifiedBlock(other, genuine.certificate), _moved(past.blocks[HEIGHT - 2], HEIGHT)):
        (effect,) = past.send(peer, false)
        assert isinstance(effect, Notify)
        assert isinstance(effect.notice, Misbehaved)
    assert past.state.unknown_height == HEIGHT
    assert past.answer(peer, HEIGHT - 3, HEIGHT) == []
    assert past.state.unknown_height == HEIGHT - 4


def test_batches_that_do_not_reach_far_enough_become_shorter() -> None:
    past = Past()
    begins = []
    for _ in range(6):
        peer, begin = past.asked()
        begins.append(begin)
        past.answer(peer, begin, begin)  # blocks are so large that one fills a message
    assert begins == [HEIGHT - span + 1 for span in (32, 16, 8, 4, 2, 1)]
    assert past.state.unknown_height == HEIGHT - 1


def test_nobody_is_asked_by_who_knows_its_window() -> None:
    past = Past()
    whole = WindowFetcher(past.world.peers[0], past, past.world.state.chain)  # type: ignore[arg-type]
    whole.begin(past.world.state, 0)
    assert whole.deadline is None


def _moved(certified: CertifiedBlock, height: int) -> CertifiedBlock:
    header = replace(certified.block.header, height=height)
    return CertifiedBlock(Block(header, certified.block.records), certified.certificate)

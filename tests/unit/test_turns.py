"""The lottery as `edgepool chain lottery` shows it, replayed from blocks."""

from __future__ import annotations

from fractions import Fraction

import msgspec
from ledger_world import World

from edgepool.core.chain import next_leaders
from edgepool.core.ledger.credit import CYCLE_BLOCKS
from edgepool.core.turns import LotteryReplay
from edgepool.model.block import Block

replace = msgspec.structs.replace


def replayed(world: World, blocks: list[Block]) -> LotteryReplay:
    replay = LotteryReplay(world.genesis)
    assert [replay.take(block) for block in blocks] == [""] * len(blocks)
    return replay


def test_work_of_the_cycle_before_last_makes_the_odds() -> None:
    world = World()
    blocks = [
        world.pack(*world.step_records(0, 1, minutes=60), packer=2),
        world.pack(*world.step_records(1, 2, minutes=180)),
        world.pack(world.requirement(2, 3), world.procedure(2, 3)),
    ]
    while world.state.height < 2 * CYCLE_BLOCKS:
        blocks.append(world.pack(world.demand(0), packer=world.state.height % 4))
    equal = replayed(world, blocks[:-1])
    assert [odds.chance for odds in equal.odds()] == [Fraction(1, 4)] * 4
    assert equal.counted_heights == (0, 0)

    replay = replayed(world, blocks)
    assert replay.counted_heights == (1, CYCLE_BLOCKS)
    assert [odds.work_minutes for odds in replay.odds()] == [0, 60, 180, 0]
    chances = [odds.chance for odds in replay.odds()]
    assert sum(chances) == 1
    assert chances[2] > chances[1] > chances[0] == chances[3] > 0
    assert replay.leaders() == next_leaders(world.state)
    assert [odds.packed for odds in replay.odds()] == list(world.state.packed.values())
    assert [odds.expected for odds in replay.odds()] == [2 * CYCLE_BLOCKS / 4] * 4


def test_rounds_that_were_led_in_vain_are_counted() -> None:
    world = World()
    leaders = next_leaders(world.state)
    block = Block(header := world.header([record := world.demand(0)]), (record,))
    late = replace(block, header=replace(header, round=6))
    missed = {odds.member: odds.missed for odds in replayed(world, [late]).odds()}
    assert [missed[leader] for leader in leaders] == [2, 2, 1, 1]


def test_a_missed_turn_halves_the_weight_two_cycles_later() -> None:
    world = World()
    replay = LotteryReplay(world.genesis)
    idler = replay.leaders()[0]
    record = world.demand(0)
    late = replace(world.header([record]), round=1)
    assert replay.take(Block(late, (record,))) == ""
    world.state.apply(Block(late, (record,)), (idler,))
    while world.state.height < 3 * CYCLE_BLOCKS:
        halved = [odds.member for odds in replay.odds() if odds.halved]
        assert halved == ([idler] if world.state.height >= 2 * CYCLE_BLOCKS else [])
        chances = {odds.member: odds.chance for odds in replay.odds()}
        assert chances[idler] == (Fraction(1, 7) if halved else Fraction(1, 4))
        assert replay.take(world.pack(world.demand(0))) == ""
    assert not any(odds.halved for odds in replay.odds())


def test_a_block_that_cannot_stand_is_refused_and_not_counted() -> None:
    world = World()
    replay = LotteryReplay(world.genesis)
    early = world.procedure(0, 0)
    assert "record 0: operation 10" in replay.take(Block(world.header([early]), (early,)))
    record = world.demand(0)
    header = replace(world.header([record]), height=2)
    assert "has height 2" in replay.take(Block(header, (record,)))
    assert replay.height == 0
    assert replay.take(world.pack(world.demand(0))) == ""

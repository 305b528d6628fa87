"""What becomes of records that wait: their owner hears soon why one can stand no more."""

from __future__ import annotations

from ledger_world import World

from edgepool.config import Limits
from edgepool.core.intake import JUDGE_MS, UNFIT_MS, Intake
from edgepool.core.machine import Failed, Instant, Notify


def at(ms: int) -> Instant:
    return Instant(ms, 1_700_000_000_000 + ms)


def test_the_owner_of_a_record_that_can_stand_no_more_hears_why_before_its_command_times_out() -> None:
    world = World()
    intake = Intake(world.state, world.peers[0], Limits())
    _, taken = intake.submit(7, world.offer(0), at(0))
    assert taken
    world.pack(world.offer(1, version=2))
    failed: list[Failed] = []
    now_ms = 0
    while not failed:
        now_ms += 100
        told = [effect.notice for effect in intake.wake(at(now_ms), ()) if isinstance(effect, Notify)]
        failed = [notice for notice in told if isinstance(notice, Failed)]
        assert now_ms <= UNFIT_MS + 2 * JUDGE_MS <= 15_000
    (found,) = failed
    assert (found.ticket, found.refused) == (7, True)
    assert "older than version 2" in found.reason
    assert now_ms >= UNFIT_MS
    assert len(intake) == 0


def test_what_might_stand_already_waits_until_that_is_known() -> None:
    world = World()
    old = world.demand(0)  # signed at height 0
    blocks = [world.pack(world.demand(0)) for _ in range(3)]
    restored = type(world.state).restore(world.genesis, world.state.snapshot())
    intake = Intake(restored, world.peers[0], Limits())
    _, taken = intake.submit(0, old, at(0))
    assert taken
    assert not intake.any_fit()
    assert intake.pick(at(1)) == []
    for block in reversed(blocks):
        restored.recall(block)
    assert intake.any_fit()
    assert intake.pick(at(2)) == [old]

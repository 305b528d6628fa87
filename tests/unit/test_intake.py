"""What becomes of records that wait: their owner hears soon why one can stand no more."""

from __future__ import annotations

from ledger_world import World

from edgepool.config import Limits
from edgepool.core.intake import JUDGE_MS, UNFIT_MS, Intake
from edgepool.core.machine import Effect, Failed, Instant, Notify


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


def told(effects: list[Effect]) -> list[Failed]:
    notices = [effect.notice for effect in effects if isinstance(effect, Notify)]
    return [notice for notice in notices if isinstance(notice, Failed)]


def test_what_was_said_before_a_crash_and_comes_to_stand_need_not_be_waited_for_twice() -> None:
    """The first record was sent, its author died, and says the same again before it knows of the block."""
    world = World()
    early, again, other = world.offer(0), world.offer(0), world.offer(0, version=2)
    assert early.id != again.id
    intake = Intake(world.state, world.peers[0], Limits())
    for ticket, signed in ((7, again), (8, other)):
        _, taken = intake.submit(ticket, signed, at(0))
        assert taken
    (failed,) = told(intake.committed(world.pack(early), at(50)))
    assert (failed.ticket, failed.refused) == (7, True)
    assert "offers version 1 already" in failed.reason
    assert len(intake) == 1, "the other version waits on"


def test_what_may_be_said_twice_stands_twice() -> None:
    world = World()
    early, again = world.demand(0), world.demand(0)
    intake = Intake(world.state, world.peers[0], Limits())
    _, taken = intake.submit(7, again, at(0))
    assert taken
    assert told(intake.committed(world.pack(early), at(50))) == []
    assert intake.pick(at(51)) == [again]


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

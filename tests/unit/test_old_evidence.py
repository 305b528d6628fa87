"""Up to when a former key convicts its heir [S3.6]: as long as the window has the last height it voted on."""

from __future__ import annotations

import pytest
from ledger_world import World
from stored_line import Line

from edgepool.config import Limits
from edgepool.core.intake import Intake
from edgepool.core.ledger import window
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import Broadcast, Instant, Notify
from edgepool.core.membership import Governance
from edgepool.core.verification import ChainChecker
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer
from edgepool.model.message import Records

WINDOW = 4
NOW = Instant(0, 0)


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "WINDOW_BLOCKS", WINDOW)


def changed(line: Line) -> tuple[Signer, Signer]:
    """Let member 1 go on under a new key, which votes from height 4 on; return both keys."""
    world = line.world
    line.stand()
    old, new = world.signers[1], world.newcomer("new key")
    change = world.succession(old, new)
    line.stand(*(world.record(one, change) for one in world.signers[:3]))
    line.stand()
    assert new.peer in world.state.members
    return old, new


def first_problem(checker: ChainChecker, blocks: list[CertifiedBlock]) -> str:
    problems = (checker.check(encode(block)) for block in blocks)
    return next((problem for problem in problems if problem), "")


def verdict(world: World, accused: Signer, height: int) -> str:
    return world.state.draft().add_new(world.record(world.signers[0], world.evidence(accused, height)))


def test_a_former_key_convicts_its_heir_as_long_as_its_last_height_is_in_the_window() -> None:
    line = Line()
    old, _ = changed(line)
    while line.world.state.height < 3 + WINDOW - 1:
        assert verdict(line.world, old, 3) == verdict(line.world, old, 1) == "", "a change is no escape"
        line.stand()
    assert line.world.state.horizon == 2
    assert verdict(line.world, old, 1) == "", "whatever it has signed as long as it had a vote"
    line.stand()
    assert "forgotten" in verdict(line.world, old, 3)
    assert "forgotten" in verdict(line.world, old, 1)


def test_present_keys_answer_for_all_that_they_have_signed() -> None:
    line = Line()
    _, new = changed(line)
    for _ in range(3 * WINDOW):
        line.stand()
    assert verdict(line.world, line.world.signers[2], 1) == ""
    assert verdict(line.world, new, 4) == ""


def test_whose_key_has_changed_twice_answers_for_each_key_as_long_as_for_its_last_height() -> None:
    line = Line()
    first, second = changed(line)
    world, third = line.world, line.world.newcomer("third key")
    for _ in range(WINDOW):
        line.stand()
    change = world.succession(second, third)
    line.stand(*(world.record(one, change) for one in (world.signers[0], *world.signers[2:])))
    line.stand()
    assert "forgotten" in verdict(world, first, 2)
    assert verdict(world, second, 5) == ""
    assert world.state.heir(first.peer) == third.peer


def test_a_block_of_before_this_rule_stands_and_its_liar_stays_convicted() -> None:
    """It has its certificate; but nobody prevotes for such a block any more."""
    line = Line()
    old, new = changed(line)
    for _ in range(WINDOW):
        line.stand()
    late = line.world.record(line.world.signers[0], line.world.evidence(old, 2))
    checker = ChainChecker(line.world.genesis)
    assert first_problem(checker, line.blocks) == ""
    before = len(line.blocks)
    block = line.stand(late)
    assert not checker._chain.may_prevote(block.block)
    assert first_problem(checker, line.blocks[before:]) == ""
    line.stand()
    assert first_problem(checker, line.blocks[before + 1 :]) == ""
    assert checker.state.convicted() == (new.peer,)
    again = ChainState(line.world.genesis)
    for one in line.blocks:
        again.apply(one.block)
    assert again.root == checker.state.root == line.world.state.root


def test_a_snapshot_tells_the_same() -> None:
    line = Line()
    old, _ = changed(line)
    for _ in range(WINDOW):
        line.stand()
        restored = ChainState.restore(line.world.genesis, line.world.state.snapshot())
        reason = restored.draft().expiry_problem(line.world.evidence(old, 2))
        assert bool(reason) == ("forgotten" in verdict(line.world, old, 2))
    assert reason


def test_a_member_does_not_go_on_accusing_whom_nothing_convicts_any_more() -> None:
    line = Line()
    old, _ = changed(line)
    world = line.world
    intake = Intake(world.state, world.peers[0], Limits())
    governance = Governance(world.signers[0], "coordinator", intake)
    governance.caught(world.evidence(old, 2))
    for _ in range(WINDOW):
        line.stand()
    assert governance.say(NOW, behind=False) == ([], False)
    assert governance.deadline is None, "and asks no more"


def test_evidence_that_has_waited_too_long_is_given_up() -> None:
    line = Line()
    old, _ = changed(line)
    world = line.world
    intake = Intake(world.state, world.peers[0], Limits())
    accusation = world.record(world.signers[2], world.evidence(old, 2))
    _, added = intake.receive(world.peers[2], Records(world.state.chain, (accusation,)), NOW)
    assert added
    assert intake.any_fit()
    for _ in range(WINDOW):
        line.stand()
    assert not intake.any_fit()
    assert intake.pick(NOW) == []
    other = world.record(world.signers[0], world.evidence(world.signers[3], 2))
    effects = intake.committed(line.stand(other).block, NOW)
    assert not intake.has(accusation.id)
    assert not [one for one in effects if isinstance(one, Broadcast | Notify)]

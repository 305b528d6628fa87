"""Pools whose members keep their chains and votes on simulated disks; `members.py` runs many more."""

from __future__ import annotations

from unittest.mock import patch

import members
import pytest

from edgepool.storage.log import AppendLog
from edgepool.storage.votes import VoteLog

SEEDS = 20
PRUNING_SEEDS = 8
CANARY_SEEDS = 30


def test_no_member_signs_twice_or_loses_a_record_through_power_cuts() -> None:
    report = members.Report()
    for seed in range(1, SEEDS + 1):
        members.run_world(seed, report, members=7 if seed % 10 == 0 else 4)
    assert report.violations == []
    assert report.cuts > 10 * SEEDS
    assert report.acknowledged > 20 * SEEDS
    assert report.kills > SEEDS
    assert report.troubles > SEEDS // 2


def test_members_that_drop_the_beginning_of_their_chain_do_not_either() -> None:
    report = members.Report()
    for seed in range(1, PRUNING_SEEDS + 1):
        members.run_world(seed, report, heights=60, prunes=True)
    assert report.violations == []
    assert report.cuts > 10 * PRUNING_SEEDS
    assert report.pruned > 5 * PRUNING_SEEDS


def found_by(rules: tuple[str, ...], lies: frozenset[str] = frozenset()) -> bool:
    for seed in range(1, CANARY_SEEDS + 1):
        result = members.run_world(seed, members.Report(), lies=lies)
        if result.violations:
            assert result.violations[0].split(":")[0] in rules
            return True
    return False


@pytest.mark.parametrize("lies", ["fdatasync", "fsync", "fsync of a folder"])
def test_a_disk_that_lies_is_found(lies: str) -> None:
    assert found_by(("durability", "signatures", "locks"), frozenset([lies]))


def test_votes_that_are_spoken_before_they_are_durable_are_found() -> None:
    sync = VoteLog.sync

    def unsynced(self: VoteLog) -> None:
        with patch.object(AppendLog, "sync", lambda log: None):
            sync(self)

    with patch.object(VoteLog, "sync", unsynced):
        assert found_by(("signatures", "locks"))

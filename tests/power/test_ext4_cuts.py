"""A real ext4 shut down under the store; `ext4.py` cuts more. EDGEPOOL_EXT4_CUTS says how often here."""

from __future__ import annotations

import os
from collections.abc import Iterator

import ext4
import pytest

CUTS = int(os.environ.get("EDGEPOOL_EXT4_CUTS", "40"))
CANARY_CUTS = 10


@pytest.fixture
def mount() -> Iterator[ext4.Mount]:
    try:
        with ext4.loop_mount() as mount:
            yield mount
    except ext4.Unsupported as why:
        pytest.skip(f"an ext4 cannot be mounted here: {why}")


def test_nothing_acknowledged_is_lost(mount: ext4.Mount) -> None:
    report = ext4.Rig(mount, seed=1).run(CUTS)
    assert report.violations == []
    assert (report.cuts, report.lost) == (CUTS, 0)
    assert report.acknowledged > 10 * CUTS
    assert report.told > CUTS // 4, "a writer must say that its disk does not work"


def test_a_store_that_does_not_sync_is_found(mount: ext4.Mount) -> None:
    report = ext4.Rig(mount, seed=1, syncs=False).run(CANARY_CUTS)
    assert report.violations

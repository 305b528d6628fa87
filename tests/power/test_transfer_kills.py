"""Holders and requesters killed with SIGKILL in the middle of transfers; `transfers.py` kills more.

EDGEPOOL_TRANSFER_KILLS says how many here.
"""

from __future__ import annotations

import os
from pathlib import Path

import bundles
import transfers

KILLS = int(os.environ.get("EDGEPOOL_TRANSFER_KILLS", "4"))


def test_whoever_is_killed_every_byte_is_right_and_nothing_on_disk_is_fetched_again(tmp_path: Path) -> None:
    report = transfers.run(KILLS, seed=2, size_bytes=48 * transfers.MIB, folder=tmp_path / "plant")
    assert report.violations == []
    assert (report.kills, report.lost) == (KILLS, 0)


def test_whoever_is_killed_no_small_file_is_visible_that_is_not_whole(tmp_path: Path) -> None:
    report = bundles.run(KILLS, seed=2, files=60, folder=tmp_path / "plant")
    assert report.violations == []
    assert report.kills == KILLS

"""Real validators killed with SIGKILL under load; `kill.py` kills more. EDGEPOOL_KILLS says how many here."""

from __future__ import annotations

import os
from pathlib import Path

import kill

KILLS = int(os.environ.get("EDGEPOOL_KILLS", "20"))


def test_killed_validators_lose_nothing_and_sign_nothing_twice(tmp_path: Path) -> None:
    report = kill.run(KILLS, seed=1, folder=tmp_path / "plant")
    assert report.violations == []
    assert (report.kills, report.lost) == (KILLS, 0)
    assert report.acknowledged > KILLS
    assert report.votes > report.blocks

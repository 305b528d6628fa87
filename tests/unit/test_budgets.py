from __future__ import annotations

from pathlib import Path

import pytest

from edgepool.config import BudgetHours, BudgetSettings, PeerSettings, convert, load_peer_settings
from edgepool.errors import ConfigError
from edgepool.peer.budgets import Budgets, budget_text
from edgepool.runtime.clock import SystemClock

PAGE = """
name = "m"
network = "n"
[budget]
mbit_s = 200
per_peer_mbit_s = 100
priorities = { model = 2, telemetry = 9 }
[[budget.hours]]
from = "06:00"
to = "22:00"
mbit_s = 50
"""
OTHER = BudgetSettings(
    mbit_s=7,
    hours=(
        BudgetHours(begin="22:00", end="06:00", mbit_s=9),
        BudgetHours(begin="06:00", end="07:00", mbit_s=1),
    ),
    priorities={"model": 3, 'sur"face': 9},
)


def folder(tmp_path: Path) -> PeerSettings:
    (tmp_path / "edgepool.toml").write_text(PAGE)
    return load_peer_settings(tmp_path)


async def test_what_is_set_at_run_time_is_in_force_at_once_and_after_a_restart(tmp_path: Path) -> None:
    settings = folder(tmp_path)
    assert settings.budget.hours == (BudgetHours(begin="06:00", end="22:00", mbit_s=50),)
    budgets = Budgets(settings, SystemClock())
    assert budgets.sending.limits
    changed = await budgets.change(OTHER)
    assert (changed.settings, changed.set_at_run_time) == (OTHER, True)
    assert changed.now_mbit_s in (1, 7, 9)
    assert load_peer_settings(tmp_path).budget == OTHER
    back = await budgets.change(None)
    assert (back.settings, back.set_at_run_time) == (settings.budget, False)
    assert load_peer_settings(tmp_path).budget == settings.budget
    await budgets.change(BudgetSettings())
    assert not budgets.receiving.limits
    assert load_peer_settings(tmp_path).budget == BudgetSettings()


def test_the_text_says_what_the_settings_say(tmp_path: Path) -> None:
    for settings in (BudgetSettings(), OTHER):
        (tmp_path / "budget.toml").write_text(budget_text(settings))
        assert load_peer_settings(_written(tmp_path)).budget == settings


def _written(tmp_path: Path) -> Path:
    (tmp_path / "edgepool.toml").write_text(PAGE)
    return tmp_path


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"mbit_s": 0}, "mbit_s: expected `int` >= 1"),
        ({"hours": [{"from": "6:00", "to": "22:00", "mbit_s": 5}]}, r"hours\[0\].from"),
        ({"hours": [{"from": "06:00", "mbit_s": 5}]}, "'to' is missing"),
        ({"priorities": {"model": 10}}, "priorities"),
        ({"mbits": 3}, "no setting 'mbits'"),
    ],
)
def test_a_wrong_budget_is_refused_with_its_place(table: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        convert(Path("budget.toml"), table, BudgetSettings)

"""A peer's budget for bulk data: in force at once when it is changed, and durable [`budget.toml`]."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

from edgepool.config import BUDGET_FILE, CONFIG_FILE, BudgetSettings, PeerSettings, load_peer_settings
from edgepool.core.transfer.budget import BudgetPlan, Hours
from edgepool.model.ids import PeerId
from edgepool.peer.datavalues import BudgetStatus
from edgepool.runtime.pacer import Pacer
from edgepool.runtime.ports import Clock
from edgepool.storage.files import guarded, sync_folder, write_durably

_BYTES_S = 125_000
"""One Mbit/s."""


class Budgets:
    """Both directions of one peer; `sending` and `receiving` are asked before bulk data moves."""

    def __init__(self, settings: PeerSettings, clock: Clock) -> None:
        self._folder = settings.folder
        self._settings = settings.budget
        plan = plan_of(settings.budget)
        self.sending = Pacer(plan, clock)
        self.receiving = Pacer(plan, clock)

    @property
    def settings(self) -> BudgetSettings:
        """What is in force."""
        return self._settings

    async def change(self, settings: BudgetSettings | None) -> BudgetStatus:
        """Set another budget, durably, in force when this returns; None goes back to the settings file."""
        if settings is None:
            await asyncio.to_thread(_remove, self._folder / BUDGET_FILE)
            known = (self._folder / CONFIG_FILE).exists()
            settings = load_peer_settings(self._folder).budget if known else BudgetSettings()
        else:
            await asyncio.to_thread(_replace, self._folder / BUDGET_FILE, budget_text(settings))
        self._settings = settings
        for pacer in (self.sending, self.receiving):
            pacer.change(plan_of(settings))
        return self.status()

    def status(self) -> BudgetStatus:
        """Return what is in force, and how many wait for it."""
        bytes_s = self.sending.bytes_s()
        return BudgetStatus(
            settings=self._settings,
            set_at_run_time=(self._folder / BUDGET_FILE).exists(),
            now_mbit_s=None if bytes_s is None else bytes_s // _BYTES_S,
            waiting_to_send=self.sending.waiting,
            waiting_to_receive=self.receiving.waiting,
        )

    def close(self) -> None:
        """Let nothing more move under a budget; who waits is told so."""
        self.sending.close()
        self.receiving.close()


@dataclass(frozen=True, slots=True)
class PeerPace:
    """What moves to or from one peer, of one kind of data, within the budget."""

    pacer: Pacer
    peer: PeerId
    kind: str

    @property
    def limits(self) -> bool:
        """Whether anything is limited; nobody needs to wait otherwise."""
        return self.pacer.limits

    def wait(self, size_bytes: int) -> None:
        """Return when so many bytes may move; blocks a thread. Raises PaceEnded."""
        self.pacer.wait(self.peer, self.kind, size_bytes)


def plan_of(settings: BudgetSettings) -> BudgetPlan:
    """Return settings as the core takes them."""
    hours = tuple(
        Hours(_minute(one.begin), _minute(one.end), one.mbit_s * _BYTES_S) for one in settings.hours
    )
    return BudgetPlan(
        None if settings.mbit_s is None else settings.mbit_s * _BYTES_S,
        None if settings.per_peer_mbit_s is None else settings.per_peer_mbit_s * _BYTES_S,
        hours,
        dict(settings.priorities),
    )


def budget_text(settings: BudgetSettings) -> str:
    """Return settings as TOML."""
    lines = ["# Set with 'edgepool budget set'; it goes before [budget] in edgepool.toml."]
    if settings.mbit_s is not None:
        lines.append(f"mbit_s = {settings.mbit_s}")
    if settings.per_peer_mbit_s is not None:
        lines.append(f"per_peer_mbit_s = {settings.per_peer_mbit_s}")
    if settings.priorities:
        pairs = (f"{json.dumps(kind)} = {number}" for kind, number in sorted(settings.priorities.items()))
        lines.append(f"priorities = {{ {', '.join(pairs)} }}")
    for one in settings.hours:
        lines += ["", "[[hours]]", f'from = "{one.begin}"', f'to = "{one.end}"', f"mbit_s = {one.mbit_s}"]
    return "\n".join(lines) + "\n"


def _minute(time_of_day: str) -> int:
    return 60 * int(time_of_day[:2]) + int(time_of_day[3:])


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".new")
    with guarded(path, "written"):
        aside.unlink(missing_ok=True)
        write_durably(aside, text.encode())
        aside.rename(path)
        sync_folder(path.parent)


def _remove(path: Path) -> None:
    with guarded(path, "removed"):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)

"""Rehearses what must never happen, at the size of a release, and prints what was done (docs/reliability.md).

    python tests/rehearse.py             what a change of weight goes through: half an hour
    python tests/rehearse.py --part 10   a tenth of that: what every change goes through
    python tests/rehearse.py --soak      what a release goes through: many hours

Each row is a command of its own, printed if it fails, so that it can be repeated; --only NAME runs one of
them. Exit code 1 if anything was violated or lost, or could not be run to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PYTHON = sys.executable
ROOT = Path(__file__).parents[1]
CANNOT_RUN = 3
"""The exit code of a rig that says that this machine lacks what it needs."""


@dataclass(frozen=True)
class Row:
    """One rehearsal: its name, the command, and its sizes for every change and for a release."""

    name: str
    command: str
    amount: int
    soak: int

    def words(self, soak: bool, part: int, seed: int) -> list[str]:
        """Return the command with its size and seed filled in."""
        amount = self.soak if soak else max(1, self.amount // part)
        filled = self.command.format(amount=amount, seed=seed, jobs=os.cpu_count() or 1)
        return [PYTHON, *filled.split()]


SIM = "-m edgepool sim run --json --jobs {jobs} --seeds {amount} --seed {seed} "
ROWS = (
    Row("pools of 4 to 10 under faults and liars", SIM + "--members 4-10 --heights 90", 1_000, 35_000),
    Row("the same seeds give the same traces", SIM + "--heights 30 --twice", 100, 2_000),
    Row(
        "whole peers on virtual time",
        "-m edgepool sim stack --json --jobs {jobs} --seeds {amount} --blocks 50 --seed {seed}",
        200,
        10_000,
    ),
    Row(
        "power cuts of a store", "tests/power/rig.py --json --cuts {amount} --seed {seed}", 20_000, 5_000_000
    ),
    Row(
        "power cuts of members",
        "tests/power/members.py --json --prunes --seeds {amount} --seed {seed}",
        20,
        5_000,
    ),
    Row("power cuts of an ext4", "tests/power/ext4.py --json --cuts {amount} --seed {seed}", 40, 10_000),
    Row("validators killed", "tests/power/kill.py --json --kills {amount} --seed {seed}", 50, 5_000),
    Row(
        "either side of a transfer killed",
        "tests/power/transfers.py --json --kills {amount} --seed {seed}",
        100,
        5_000,
    ),
    Row(
        "connections left half open",
        "tests/power/half_open.py --json --connections {amount}",
        10_000,
        10_000,
    ),
    Row(
        "mutated frames and messages",
        "tests/fuzz.py --executions {amount} --seed {seed} --processes {jobs}",
        10_000_000,
        1_500_000_000,
    ),
)


def main() -> int:
    """Run the rows; return the exit code."""
    parser = argparse.ArgumentParser(description="Rehearse what must never happen; print what was done.")
    parser.add_argument("--soak", action="store_true", help="the sizes of a release: many hours")
    parser.add_argument("--part", type=int, default=1, help="only one of as many parts of each row")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other rehearsals")
    parser.add_argument("--only", default="", help="rows with this in their name")
    arguments = parser.parse_args()
    chosen = [row for row in ROWS if arguments.only in row.name]
    if not chosen:
        parser.error(f"no row has '{arguments.only}' in its name: {', '.join(row.name for row in ROWS)}")
    if arguments.part < 1:
        parser.error("--part is 1 or more")
    failed = [
        row.name for row in chosen if not run(row, row.words(arguments.soak, arguments.part, arguments.seed))
    ]
    print(f"FAILED: {', '.join(failed)}" if failed else "nothing was violated, nothing was lost")
    return 1 if failed else 0


def run(row: Row, words: list[str]) -> bool:
    """Run one row by its command and print its line; say whether all was well."""
    began = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode == CANNOT_RUN:
        print(f"{row.name:38} not here: {_last_line(done.stderr or done.stdout)}", flush=True)
        return True
    told = _told(done.stdout)
    well = done.returncode == 0 and not any(told.get(key) for key in ("violations", "lost", "failed"))
    facts = ", ".join(f"{key} {told[key]:,}" for key in _SHOWN if isinstance(told.get(key), int))
    print(
        f"{row.name:38} {'well' if well else 'BAD '} {seconds:7.0f} s  {facts or _last_line(done.stdout)}",
        flush=True,
    )
    if not well:
        print(
            f"    {' '.join(['python', *words[1:]])}\n{done.stdout[-4000:]}{done.stderr[-4000:]}", flush=True
        )
    return well


_SHOWN = (
    "seeds",
    "blocks",
    "cuts",
    "kills",
    "connections",
    "acknowledged",
    "violations",
    "lost",
    "heal_p99_ms",
    "heal_rounds",
)


def _told(text: str) -> dict[str, object]:
    """Return the JSON that a command printed; nothing if it printed none."""
    start = text.find("{")
    try:
        told = json.loads(text[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:160] if lines else "it said nothing"


if __name__ == "__main__":
    sys.exit(main())

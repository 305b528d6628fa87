"""What all commands print with: two consoles, JSON for machines, and units for people.

Results go to standard output, everything else (progress, errors) to standard error.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Coroutine
from contextlib import suppress
from datetime import datetime
from importlib import import_module
from typing import Any, TypeVar

from rich.console import Console, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from edgepool.errors import LocalError, Unavailable

_T = TypeVar("_T")
_FILE_COLUMNS = 160
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 24 * 3_600_000}


def _console(stderr: bool) -> Console:
    # Into a file or a pipe, lines may be longer than on the narrow screen that rich assumes.
    is_screen = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if is_screen or "COLUMNS" in os.environ else _FILE_COLUMNS
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


out = _console(stderr=False)
err = _console(stderr=True)


def say(text: str, style: str = "") -> None:
    """Print a line for people as it is, without breaking it; `style` is rich's."""
    out.print(Text(printable(text), style=style), soft_wrap=True)


def show_error(error: Exception) -> None:
    """Print an error's one sentence to standard error."""
    err.print(Text.assemble(("error: ", "bold red"), printable(str(error))), soft_wrap=True)


def printable(text: str) -> str:
    """Return text that others may have written without what would steer a terminal; lines stay."""
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)


def print_json(value: Any) -> None:
    """Print `value` (dicts, lists, msgspec structs, slotted dataclasses) as indented JSON."""
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_json_line(value: Any) -> None:
    """Print `value` as one line of JSON, at once."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def run_async(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` in an event loop of its own, uvloop's where it is installed."""
    loop_factory = None
    with suppress(ImportError):
        loop_factory = import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(work)


class PlainTable(Table):
    """A table whose cells are shown as they are, without what would steer a terminal."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row; see rich's Table."""
        super().add_row(*map(_plain_cell, cells), **options)


def columns(*names: str, title: str = "") -> Table:
    """Return an empty table in the one style of all commands; numbers stand in 'height' columns."""
    empty = PlainTable(
        box=None, padding=(0, 2, 0, 0), title=title or None, title_justify="left", title_style="bold"
    )
    for column in names:
        justify: JustifyMethod = "right" if column == "height" else "left"
        empty.add_column(column, header_style="dim", justify=justify, overflow="fold")
    return empty


def _plain_cell(cell: RenderableType | None) -> RenderableType | None:
    if isinstance(cell, str):
        return printable(cell)
    if isinstance(cell, Text) and not cell.plain.isprintable():
        return Text(printable(cell.plain), style=cell.style)
    return cell


def size(size_bytes: float) -> str:
    """Return a size for people: '812 B', '64.0 MB'; 1 MB is a million bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5 or unit == "GB":
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    raise AssertionError


def duration(duration_ms: float) -> str:
    """Return a duration for people: '40 ms', '3.2 s', '12 min', '5 h'."""
    if duration_ms < 1000:
        return f"{duration_ms:.0f} ms"
    seconds = duration_ms / 1000
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def span_ms(text: str) -> int:
    """Return a span of time as people write it: 90s, 15m, 1h or 7d; LocalError if it is none."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip())
    if not found:
        raise LocalError(f"'{text[:40]}' is no time: write 90s, 15m, 1h or 7d")
    return int(found[1]) * _UNITS_MS[found[2]]


def moment(time_ms: int) -> str:
    """Return a wall time as this machine's clocks show it; '' for 0."""
    if not time_ms:
        return ""
    try:
        return datetime.fromtimestamp(time_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        # Others write the times of blocks and records, and no calendar has all of them.
        return f"{time_ms} ms"


def tell_outcome(outcome: dict[str, Any], json: bool, waited_s: float, command: str) -> None:
    """Say what came of a proposal; Unavailable if it was waited for and is not decided.

    `waited_s` is 0 if nobody waited; `command` shows what is open.
    """
    if json:
        print_json(outcome)
    if waited_s and not outcome["decided"]:
        raise Unavailable(
            f"not decided after {waited_s:g} s: {outcome['says']}; it stays open, '{command}' shows it"
        )
    if not json:
        say(outcome["says"])

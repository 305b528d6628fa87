"""The live screen of a running workshop: rich on a terminal, plain lines elsewhere [S3.17].

It has to explain itself: who looks at it knows nothing of edgepool yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edgepool.peer.values import ChainStatus
from edgepool.workshop.site import COORDINATOR
from edgepool.workshop.view import StepRow, TaskRow, View

REFRESH_PER_S = 4
LINE_EVERY_S = 5.0
WIDE = 150
"""From so many columns on, pools and parts stand side by side."""

# What a phase looks like in a row of steps: a mark, and rich's style.
_MARKS = {
    "": ("·", "dim"),
    "outside": ("~", "magenta"),
    "fetching": ("↓", "cyan"),
    "waiting": ("…", "yellow"),
    "machining": ("▶", "bold green"),
    "publishing": ("↑", "cyan"),
    "done": ("✔", "green"),
}
_LEGEND = {
    "outside": "outside",
    "fetching": "gets data",
    "waiting": "waits",
    "machining": "machines",
    "publishing": "publishes",
    "done": "done",
}


class Screen(Protocol):
    """Shows a view while something runs."""

    def show(self, view: View) -> None:
        """Show `view` from now on."""
        ...

    def say(self, text: str) -> None:
        """Print a line of its own."""
        ...

    async def follow(self) -> None:
        """Keep what is shown up to date until cancelled."""
        ...


class LiveScreen:
    """One full screen on a terminal, drawn anew several times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._view: View | None = None

    @contextmanager
    def running(self) -> Iterator[LiveScreen]:
        """Take the terminal; give it back at the end."""
        with Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=REFRESH_PER_S,
            transient=True,
            vertical_overflow="crop",
        ) as live:
            self._live = live
            try:
                yield self
            finally:
                self._live = None

    def show(self, view: View) -> None:
        """Show `view` from now on."""
        self._view = view

    def say(self, text: str) -> None:
        """Print a line above the screen."""
        self._console.print(text)

    async def follow(self) -> None:
        """Do nothing: the screen draws itself."""
        await asyncio.Event().wait()

    def _render(self) -> RenderableType:
        if self._view is None:
            return Text("")
        width, height = self._console.size
        return render(self._view, width, height)


class PlainScreen:
    """Lines for logs and pipes: each event worth telling, and every few seconds where things stand."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._view: View | None = None
        self._printed = 0

    @contextmanager
    def running(self) -> Iterator[PlainScreen]:
        """Print for as long as this is entered."""
        yield self
        self._print_told()

    def show(self, view: View) -> None:
        """Follow `view` from now on."""
        self._print_told()
        self._view, self._printed = view, 0

    def say(self, text: str) -> None:
        """Print a line."""
        self._print_told()
        self._print(text)

    async def follow(self) -> None:
        """Print until cancelled."""
        ticks = 0
        with suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(0.25)
                ticks += 1
                self._print_told()
                if self._view is not None and ticks % int(LINE_EVERY_S / 0.25) == 0:
                    self._print(standing(self._view))

    def _print_told(self) -> None:
        view = self._view
        if view is None:
            return
        fresh = min(view.told_count - self._printed, len(view.told))
        self._printed = view.told_count
        for sentence in list(view.told)[len(view.told) - fresh :]:
            self._print(f"{view.elapsed_s:6.1f} s  {sentence}")

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)


class SilentScreen:
    """Shows nothing."""

    @contextmanager
    def running(self) -> Iterator[SilentScreen]:
        """Do nothing."""
        yield self

    def show(self, view: View) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    async def follow(self) -> None:
        """Do nothing."""
        await asyncio.Event().wait()


def megabytes(size_bytes: float) -> str:
    """Return a size in MB (a million bytes) with one digit behind the point; less than one in kB."""
    return (
        f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 1e6 or not size_bytes else f"{size_bytes / 1e3:.1f} kB"
    )


def standing(view: View) -> str:
    """Return where things stand, in a line."""
    running = sum(row.running for row in view.tasks.values())
    pools = sum(chain.kind == "manufacturing" for chain in view.chains())
    blocks = sum(chain.height for chain in view.chains())
    carried = "the relay" if view.cloud else "the coordinator"
    return (
        f"{view.elapsed_s:6.1f} s  {view.phase}: {view.done_by_stations} of {len(view.tasks)} parts done, "
        f"{running} in work; {pools} manufacturing pools, {blocks} blocks; "
        f"{megabytes(view.bytes_direct)} direct, {megabytes(view.bytes_via_cloud)} through {carried}"
    )


# --- the full screen ------------------------------------------------------------------------------


def render(view: View, width: int, height: int) -> RenderableType:
    """Return the whole screen, made to fit `width` columns and `height` lines."""
    high = height >= 40
    events, transfers = (6, 5) if high else (3, 2)
    headline = _headline(view, brief=not high)
    head_lines = 4 + -(-len(_purpose(view, brief=not high)) // max(20, width - 4))
    left = max(8, height - head_lines - (events + 2) - (transfers + 2) - 1)
    if width >= WIDE:
        both = Table.grid(expand=True, padding=(0, 2, 0, 0))
        both.add_column(ratio=2)
        both.add_column(ratio=3)
        both.add_row(_pools(view, left - 2), _tasks(view, left - 2))
        middle: list[RenderableType] = [both]
    else:
        pool_rows = max(3, min(len(_shown_chains(view)), left // 2 - 2))
        middle = [_pools(view, pool_rows), _tasks(view, max(3, left - pool_rows - 4))]
    return Group(headline, *middle, _transfers(view, transfers), _events(view, events))


def _purpose(view: View, brief: bool) -> str:
    if view.cloud:
        return (
            "The same orders, with a cloud in the middle: every file goes up to a relay server and down "
            "again, for comparison."
        )
    told = (
        "Machines hand their data straight to each other. To make a part, the machines of its route form a "
        "pool and keep a chain together; each gets models and measurements from the one before, checked "
        "against the chain."
    )
    more = (
        " Each machine is a peer of its own. The coordinator (the cloud) plans, and carries none of the data."
    )
    return told if brief else told + more


def _headline(view: View, brief: bool) -> RenderableType:
    line = Text.assemble(
        (f"{view.done_by_stations} of {len(view.tasks)}", "bold"),
        " parts finished   ",
        (f"{view.elapsed_s:.0f} s", "bold"),
        f" (1 h of machining = {view.hour_seconds:g} s)   ",
        _coordinator(view),
    )
    amount = Text.assemble(
        "data straight from machine to machine ",
        (megabytes(view.bytes_direct), "dim" if view.cloud else "bold green"),
        "   through the relay " if view.cloud else "   through the coordinator ",
        (megabytes(view.bytes_via_cloud), "bold red" if view.bytes_via_cloud else "bold green"),
        (f"   {_asked(view)}", "dim"),
    )
    for text in (line, amount):
        text.no_wrap, text.overflow = True, "ellipsis"
    title = f"[bold]edgepool[/] · {escape(view.title)}"
    return Panel(Group(Text(_purpose(view, brief)), line, amount), title=title, border_style="blue")


def _asked(view: View) -> str:
    totals = view.totals()
    asked = sum(t.demands for t in totals)
    answered = sum(t.answered for t in totals)
    failed = sum(t.failed for t in totals)
    return f"{asked} demands, {answered} answered, {failed} failed"


def _coordinator(view: View) -> Text:
    if COORDINATOR in view.down:
        return Text("the coordinator is DOWN, killed on purpose: see, the work goes on", style="bold red")
    return Text(view.phase, style="green")


def _shown_chains(view: View) -> list[ChainStatus]:
    """Return the fixed pools, and the pools in which a part is being made."""
    busy = {row.pool for row in view.tasks.values() if row.running}
    return [chain for chain in view.chains() if chain.kind == "fixed" or chain.name in busy]


def _pools(view: View, rows: int) -> RenderableType:
    table = _table("Pools, each with a chain of its own")
    table.add_column("pool", no_wrap=True)
    table.add_column("height", justify="right")
    table.add_column("last packed by", no_wrap=True)
    table.add_column("members", ratio=1, no_wrap=True, overflow="ellipsis")
    shown = _shown_chains(view)
    for chain in shown[: rows - 1]:
        style = "bold" if chain.kind == "fixed" else ""
        table.add_row(
            Text(chain.name, style=style), str(chain.height), chain.last_packer, ", ".join(chain.members)
        )
    more = len(view.chains()) - len(shown[: rows - 1])
    if more:
        table.add_row(Text(f"{more} more", style="dim"), "", "", Text("idle, or not shown", style="dim"))
    return table


def _tasks(view: View, rows: int) -> RenderableType:
    running = [row for row in view.tasks.values() if row.running and row.steps[-1].phase != "done"]
    waiting = sum(not row.pool for row in view.tasks.values())
    table = _table(f"Parts in work: {len(running)}; {waiting} wait for free machines")
    table.add_column("part", no_wrap=True)
    table.add_column("pool", no_wrap=True)
    table.add_column(Text.assemble("route   ", *_legend()), ratio=1, no_wrap=True, overflow="ellipsis")
    for row in running[:rows]:
        table.add_row(row.part, row.pool, _route(row))
    return table


def _legend() -> list[tuple[str, str]]:
    return [(f"{_MARKS[phase][0]} {meaning}  ", _MARKS[phase][1]) for phase, meaning in _LEGEND.items()]


def _route(row: TaskRow) -> Text:
    """Return a mark for each step that is done, and the others in words."""
    text = Text()
    for step in row.steps:
        text.append_text(_step(step))
    return text


def _step(step: StepRow) -> Text:
    mark, style = _MARKS.get(step.phase, ("?", ""))
    if step.phase == "done":
        return Text(f"{mark} ", style=style)
    where = f" {step.station}" if step.phase else ""
    return Text(f"{mark} {step.operation}{where}  ", style=style)


def _transfers(view: View, rows: int) -> RenderableType:
    table = _table("Transfers, those under way first")
    table.add_column("data", no_wrap=True)
    table.add_column("from → to", ratio=1, no_wrap=True)
    table.add_column("arrived", justify="right", no_wrap=True)
    table.add_column("rate", justify="right", no_wrap=True)
    if view.cloud:
        counts = f"{view.relay.uploads} uploads and {view.relay.downloads} downloads so far"
        table.add_row(counts, "machines → relay → machines", megabytes(view.bytes_via_cloud), "")
        return table
    for row in view.transfers()[:rows]:
        going = row.done_bytes < row.size_bytes
        table.add_row(
            row.key,
            f"{row.source} → {row.target}",
            f"{megabytes(row.done_bytes)} of {megabytes(row.size_bytes)}",
            f"{megabytes(row.bytes_per_s)}/s",
            style="cyan" if going else "",
        )
    return table


def _events(view: View, rows: int) -> RenderableType:
    lines = list(view.told)[-rows:]
    return Panel(
        Text("\n".join(lines) or "…", no_wrap=True, overflow="ellipsis"),
        title="What happens",
        title_align="left",
        border_style="dim",
    )


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=None,
        expand=True,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )

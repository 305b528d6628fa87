"""`edgepool budget show|set`: how fast a running peer moves bulk data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepool.cli.console import columns, out, print_json, run_async, say
from edgepool.errors import LocalError

if TYPE_CHECKING:
    from edgepool.config import BudgetHours, BudgetSettings
    from edgepool.peer.datavalues import BudgetStatus

MAX_MBIT_S = 1_000_000

app = typer.Typer(
    no_args_is_help=True,
    help="See and change how fast a running peer moves bulk data.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="The folder of a running peer.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def show(folder: Folder, json: Json = False) -> None:
    """Show the budget that is in force, and the rate at this hour.

    Example: edgepool budget show plant/mill-1
    """

    async def work() -> BudgetStatus:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.budget()

    _print(run_async(work()), json)


@app.command("set")
def set_(
    folder: Folder,
    mbit_s: Annotated[
        str, typer.Option(metavar="N", help="Mbit/s for the whole machine, each way; 'none' for any rate.")
    ] = "",
    per_peer_mbit_s: Annotated[
        str, typer.Option(metavar="N", help="Mbit/s for each peer, each way; 'none' for any rate.")
    ] = "",
    hours: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FROM-TO=N",
            help="Mbit/s of the machine in a part of each day, such as 06:00-22:00=50; can be repeated, and "
            "replaces all hours there were; 'none' for no hours.",
        ),
    ] = None,
    priority: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=P",
            help="The priority of a kind of data, 1 to 9 (others have 5): kinds that wait share by them. "
            "Can be repeated.",
        ),
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Go back to the budget in the settings file.")
    ] = False,
    json: Json = False,
) -> None:
    """Change the budget of a running peer: at once, also for transfers under way, and for good.

    What is not named stays as it is. Votes and records are never counted and never wait.

    Example: edgepool budget set plant/mill-1 --mbit-s 200 --hours 06:00-22:00=50
    """
    if reset == bool(mbit_s or per_peer_mbit_s or hours or priority):
        raise LocalError("say what to change (see --help), or --reset, one of the two")

    async def work() -> BudgetStatus:
        from msgspec.structs import replace

        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            if reset:
                return await client.set_budget(None)
            budget: BudgetSettings = (await client.budget()).settings
            if mbit_s:
                budget = replace(budget, mbit_s=_rate(mbit_s, "--mbit-s"))
            if per_peer_mbit_s:
                budget = replace(budget, per_peer_mbit_s=_rate(per_peer_mbit_s, "--per-peer-mbit-s"))
            if hours:
                budget = replace(budget, hours=() if hours == ["none"] else tuple(map(_hours, hours)))
            if priority:
                priorities = {**budget.priorities, **dict(map(_priority, priority))}
                budget = replace(budget, priorities=priorities)
            return await client.set_budget(budget)

    _print(run_async(work()), json)


def _rate(text: str, option: str) -> int | None:
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_MBIT_S):
        raise LocalError(f"{option}: '{text[:40]}' is no rate: write Mbit/s from 1 to {MAX_MBIT_S}, or none")
    return int(text)


def _hours(text: str) -> BudgetHours:
    from edgepool.config import BudgetHours

    time = "([01][0-9]|2[0-3]):[0-5][0-9]"
    found = re.fullmatch(f"(?P<begin>{time})-(?P<end>{time})=(?P<rate>[0-9]{{1,7}})", text)
    if found is None:
        raise LocalError(f"--hours: '{text[:40]}' is not understood: write it as 06:00-22:00=50")
    rate = _rate(found["rate"], "--hours")
    assert rate is not None
    return BudgetHours(begin=found["begin"], end=found["end"], mbit_s=rate)


def _priority(text: str) -> tuple[str, int]:
    kind, equals, number = text.rpartition("=")
    if not (equals and 1 <= len(kind) <= 32 and number in set("123456789")):
        raise LocalError(f"--priority: '{text[:40]}' is not understood: write it as model=2, from 1 to 9")
    return kind, int(number)


def _print(status: BudgetStatus, json: bool) -> None:
    if json:
        print_json(status)
        return
    budget = status.settings
    table = columns("budget", "Mbit/s each way")
    table.add_row("machine", _shown(budget.mbit_s))
    for one in budget.hours:
        table.add_row(f"machine, {one.begin} to {one.end}", str(one.mbit_s))
    table.add_row("machine, now", _shown(status.now_mbit_s))
    table.add_row("each peer", _shown(budget.per_peer_mbit_s))
    out.print(table)
    for kind, number in sorted(budget.priorities.items()):
        say(f"{kind} has priority {number}")
    if status.set_at_run_time:
        say("set at run time, and kept; 'edgepool budget set FOLDER --reset' goes back to the settings file")


def _shown(mbit_s: int | None) -> str:
    return "any" if mbit_s is None else str(mbit_s)

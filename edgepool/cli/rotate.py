"""`edgepool org rotate`: an organisation's next root, by one command."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from edgepool.cli.console import err, moment, print_json, run_async, say, span_ms
from edgepool.errors import Unavailable

if TYPE_CHECKING:
    from edgepool.gateway.rotationplan import Renewer, RotationStatus

LOOK_EVERY_S = 0.2
_SHOWN_NAMES = 8


def rotate(
    folder: Annotated[Path, typer.Argument(help="The folder of the running registrar.")],
    overlap: Annotated[
        str,
        typer.Option(
            help="How long the old root is trusted beside the next one, such as 7d, 12h or 0s "
            "(default: 7d, or what was said before)."
        ),
    ] = "",
    leave_behind: Annotated[
        bool,
        typer.Option(
            "--leave-behind",
            help="Retire the old root after the overlap though members have not renewed; "
            "they come back with 'edgepool renew'.",
        ),
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until the old root's retirement is decided.")] = True,
    timeout: Annotated[float, typer.Option(min=1, max=86_400, help="How long to wait, in seconds.")] = 120,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Replace an organisation's root by a next one, without anybody noticing at work.

    The registrar makes the next authority beside the present one, has it admitted on its main chains, issues
    with it from then on, and retires the old root when the overlap is over. Members renew by themselves.
    As long as one has not, it is named and nothing is retired, unless you say --leave-behind. The registrar
    goes on by itself when this command or the power ends; say it again to see how far it is.

    Example: edgepool org rotate plant/cloud --overlap 7d
    """
    overlap_s = span_ms(overlap) // 1000 if overlap else None
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("renewed"),
        console=err,
        disable=json or not err.is_terminal,
        transient=True,
    )
    task = bar.add_task("", total=None)
    told = [""]

    def show(found: RotationStatus) -> None:
        line = says(found)
        done = len(found.renewed)
        total = done + len(found.waiting) or None
        bar.update(task, description=line, completed=done, total=total)
        if not json and not err.is_terminal and line != told[0]:
            told[0] = line
            say(line)

    with bar:
        found = run_async(_rotate(folder, overlap_s, leave_behind, timeout if wait else 0.0, show))
    if json:
        print_json(found)
    if wait and not _is_retired(found):
        raise Unavailable(f"not over after {timeout:g} s: {says(found)}; the registrar goes on by itself")
    if not json:
        _tell(folder, found)


async def _rotate(
    folder: Path,
    overlap_s: int | None,
    leave_behind: bool,
    timeout_s: float,
    show: Callable[[RotationStatus], None],
) -> RotationStatus:
    from edgepool.gateway.client import ApiClient

    async with ApiClient.of(folder) as client:
        until = time.monotonic() + timeout_s
        found = await client.rotate(overlap_s, leave_behind)
        show(found)
        while not _is_retired(found) and time.monotonic() < until:
            await asyncio.sleep(LOOK_EVERY_S)
            found = await client.rotation()
            show(found)
        return found


def _is_retired(found: RotationStatus) -> bool:
    """Say whether it is decided from when on the old root is trusted no more."""
    decided = bool(found.pools) and all(pool.decided for pool in found.pools)
    return found.stage == "done" or (found.stage == "retiring" and decided)


def says(found: RotationStatus) -> str:
    """Return how far a rotation is, in a sentence."""
    if found.problem:
        return found.problem
    match found.stage:
        case "making":
            return f"the next authority of '{found.organisation}' is made"
        case "admitting" | "switching":
            return f"the members decide on the next root: {_deciding(found)}"
        case "renewing":
            if not found.waiting:
                return "the registrar renews its own certificate"
            return f"not renewed yet: {_names(found)}"
        case "retiring":
            return f"the old root goes on {moment(found.retire_ms)}: {_deciding(found)}"
        case "done":
            return f"the old root is trusted no more since {moment(found.retire_ms)}"


def _deciding(found: RotationStatus) -> str:
    parts = []
    for pool in found.pools:
        so_far = f"{len(pool.approved_by)} of {len(pool.approved_by) + len(pool.missing)} have approved"
        if pool.decided:
            so_far = "decided"
        elif pool.missing:
            so_far += f", {pool.needed} must; not yet {', '.join(pool.missing[:_SHOWN_NAMES])}"
        parts.append(f"pool {pool.pool}: {so_far}")
    return "; ".join(parts) or "nothing is written yet"


def _names(found: RotationStatus) -> str:
    names = [f"{one.name}{_why(one)}" for one in found.waiting]
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _why(one: Renewer) -> str:
    if one.coordinator:
        return " (a registrar itself: 'edgepool org hand-over' gives it the next authority)"
    return "" if one.linked else " (not linked)" if one.seen else " (not seen since it began)"


def _tell(folder: Path, found: RotationStatus) -> None:
    following = found.next[:16] or "one that is made now"
    say(f"root {found.old[:16]} of '{found.organisation}' is followed by {following}")
    say(f"the authority's folder is {found.folder} from {folder} now: keep it safe, with a copy offline")
    if found.void:
        say(f"codes made before are void, invite again: {', '.join(found.void)}", "yellow")
    say(f"renewed: {', '.join(found.renewed) or 'nobody else'}")
    if found.waiting:
        say(f"not renewed: {_names(found)}; later they come back with 'edgepool renew'", "yellow")
    say(says(found))

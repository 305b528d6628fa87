"""`edgepool org list|admit|retire|approve|trust` and `edgepool member revoke`: whom a network trusts."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from edgepool.cli.console import (
    columns,
    err,
    moment,
    out,
    print_json,
    printable,
    run_async,
    say,
    tell_outcome,
)
from edgepool.errors import LocalError

if TYPE_CHECKING:
    from edgepool.gateway.client import ApiClient
    from edgepool.peer.trustview import RootStatus, TrustStatus

LOOK_EVERY_S = 0.1

Folder = Annotated[Path, typer.Argument(help="The folder of a running peer, best the coordinator's.")]
Reason = Annotated[str, typer.Option(help="Why, in a few words for the others.")]
Wait = Annotated[bool, typer.Option(help="Wait until enough members have approved it.")]
Timeout = Annotated[float, typer.Option(min=1, max=3600, help="How long to wait, in seconds.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def list_(folder: Folder, json: Json = False) -> None:
    """Show which roots a peer trusts, who is revoked, and which changes of that are open.

    Example: edgepool org list plant/cloud
    """
    found = run_async(_ask(folder))
    if json:
        print_json(found)
    else:
        _print(found)


def admit(
    folder: Folder,
    root: Annotated[Path, typer.Argument(help="The other organisation's authority.pem.")],
    reason: Reason = "",
    wait: Wait = True,
    timeout: Timeout = 60,
    json: Json = False,
) -> None:
    """Propose that the members of another organisation are let in, by its root certificate.

    Decided when more than two thirds of the members of the main chain agree, which they do by themselves with
    their coordinator unless their settings say consensus.approve = "manual"; see 'edgepool org approve'. The
    file is public: compare its fingerprint with the other side by another way.

    Example: edgepool org admit plant/cloud partner/authority.pem
    """
    try:
        pem = root.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        raise LocalError(f"{root} is no certificate in PEM that can be read") from None
    _propose(folder, ("admit", pem, 0, reason), wait, timeout, json)


def retire(
    folder: Folder,
    root: Annotated[str, typer.Argument(help="The beginning of its fingerprint, or its organisation.")],
    days: Annotated[float, typer.Option("--in-days", min=0, max=3650, help="When; 0 is at once.")] = 0,
    reason: Reason = "",
    wait: Wait = True,
    timeout: Timeout = 60,
    json: Json = False,
) -> None:
    """Propose that a root is trusted no more; the links of all whose certificates it has issued end then.

    Example: edgepool org retire plant/cloud "Old Works" --in-days 30
    """
    at_ms = int((datetime.now(UTC) + timedelta(days=days)).timestamp() * 1000) if days else 1
    _propose(folder, ("retire", root, at_ms, reason), wait, timeout, json)


def revoke(
    folder: Folder,
    who: Annotated[str, typer.Argument(help="The peer: its name in a pool, or its peer id.")],
    reason: Reason = "",
    wait: Wait = True,
    timeout: Timeout = 60,
    json: Json = False,
) -> None:
    """Propose that a peer is let in no more, and cut off: its key was stolen, or it must go at once.

    As soon as that is decided, all members end its links and transfers, and exclude it from their pools. Its
    key cannot come back; the machine can, with a new one. What it has written stays valid.
    A pool of fewer than four cannot decide it without the peer itself: the command says so, and what to do.

    Example: edgepool member revoke plant/cloud mill-2 --reason "stolen"
    """
    _propose(folder, ("revoke", who, 0, reason), wait, timeout, json)


def approve(
    folder: Folder,
    change: Annotated[str, typer.Argument(help="The beginning of its id (default: the only one).")] = "",
    json: Json = False,
) -> None:
    """Approve an open change of trust, as the member whose folder this is.

    Example: edgepool org approve plant/mill-1
    """

    async def work() -> dict[str, Any]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.approve_trust(change)

    done = run_async(work())
    if json:
        print_json(done)
    else:
        say(f"approved; it stands in block {done['height']}")


def trust(
    folder: Annotated[Path, typer.Argument(help="A peer's folder.")],
    root: Annotated[Path, typer.Argument(help="The other organisation's authority.pem.")],
    json: Json = False,
) -> None:
    """Have one peer trust another organisation from its next start on, before any main chain says so.

    For a peer that is to be the first of its organisation in somebody else's pool.

    Example: edgepool org trust partner/cloud plant/authority/authority.pem
    """
    from edgepool.gateway.roots import add_trusted

    added = add_trusted(folder, root)
    if json:
        print_json(
            {"folder": str(folder), "organisation": added.organisation, "root": added.fingerprint.hex()}
        )
    else:
        say(
            f"from its next start {folder} trusts '{added.organisation}', root {added.fingerprint.hex()[:16]}"
        )


def _propose(folder: Path, call: tuple[str, str, int, str], wait: bool, timeout_s: float, json: bool) -> None:
    step, what, from_ms, reason = call

    async def work() -> dict[str, Any]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            until = time.monotonic() + timeout_s
            hindrance = await client.hindrance(what) if step == "revoke" else ""
            if hindrance:
                err.print(Text(printable(hindrance), style="yellow"), soft_wrap=True)
            done = await client.change_trust(step, what, from_ms=from_ms, reason=reason)
            return await _decided(client, step, done, until if wait else 0.0)

    outcome = run_async(work())
    tell_outcome(outcome, json, timeout_s if wait else 0.0, f"edgepool org list {folder}")


async def _decided(client: ApiClient, step: str, done: dict[str, Any], until: float) -> dict[str, Any]:
    """Return what came of a proposal, looking again until it is decided or `until` has come."""
    while True:
        found = await client.trust()
        decided = _is_decided(found, step, done["subject"])
        if decided or time.monotonic() >= until:
            break
        await asyncio.sleep(LOOK_EVERY_S)
    mine = next((one for one in found.open if one.id == done["id"]), None)
    says = f"{step} {done['subject'][:16]}: decided and in force"
    if not decided:
        says = (
            f"{len(mine.approved_by)} of {mine.of} have approved, {mine.needed} must" if mine else "not open"
        )
    return {"step": step, **done, "decided": decided, "says": says}


def _is_decided(found: TrustStatus, step: str, subject: str) -> bool:
    if step == "revoke":
        return any(one.peer == subject and one.pool for one in found.revoked)
    root = next((one for one in found.roots if one.fingerprint == subject), None)
    return root is not None and (root.admitted if step == "admit" else bool(root.retired_ms))


async def _ask(folder: Path) -> TrustStatus:
    from edgepool.gateway.client import ApiClient

    async with ApiClient.of(folder) as client:
        return await client.trust()


def _print(found: TrustStatus) -> None:
    say(f"this peer is of '{found.organisation}'", "bold")
    table = columns("organisation", "root", "valid until", "trusted")
    for root in found.roots:
        until = moment(root.valid_until_ms) if root.valid_until_ms else ""
        table.add_row(root.organisation or "?", root.fingerprint[:16], until, _trusted(root))
    out.print(table)
    for one in found.revoked:
        where = f"by pool {one.pool}, block {one.height}" if one.pool else "by this peer's own file"
        say(f"{one.name or one.peer} is revoked {where}", "red")
    for change in found.open:
        who = f"proposed by {change.proposer_name or change.proposer}"
        say(
            f"{change.id}: {change.says}: {len(change.approved_by)} of {change.of} have approved, "
            f"{change.needed} must; {who}",
            "yellow",
        )


def _trusted(root: RootStatus) -> Text:
    why = ["own"] if root.own else []
    why += ["installed"] if root.installed and not root.own else []
    why += ["admitted"] if root.admitted else []
    if not root.trusted:
        return Text("no: retired" if root.retired_ms else "no", style="red")
    until = f", until {moment(root.retired_ms)}" if root.retired_ms else ""
    return Text(f"{', '.join(why)}{until}", style="yellow" if until else "")

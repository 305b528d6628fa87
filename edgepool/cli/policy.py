"""`edgepool policy set|show|drop`: who may have a peer's data."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepool.cli.console import columns, moment, out, print_json, run_async, say
from edgepool.errors import LocalError

if TYPE_CHECKING:
    from edgepool.peer.policyview import PolicyView

_UNITS_MS = {"m": 60_000, "h": 3_600_000, "d": 24 * 3_600_000}

app = typer.Typer(
    no_args_is_help=True,
    help="Say who may have the data of a running peer, until when and for what.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="The folder of a running peer.")]
Pattern = Annotated[
    str, typer.Argument(metavar="KEY", help="PART/KIND; each may end in '*': 'PTVA10212-*/model', '*/*'.")
]
Chain = Annotated[
    str, typer.Option(help="The pool's chain (default: all on which this peer offers such data).")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("set")
def set_(
    folder: Folder,
    key: Pattern,
    members: Annotated[str, typer.Option(help="Only these peers: names or peer ids, with commas.")] = "",
    pools: Annotated[str, typer.Option(help="Only peers of these pools: names or chain ids.")] = "",
    organisations: Annotated[str, typer.Option(help="Only peers of these organisations.")] = "",
    roles: Annotated[str, typer.Option(help="Only these roles; a client has data only where named.")] = "",
    purpose: Annotated[str, typer.Option(help="Only for one of these purposes, which the asker signs.")] = "",
    until: Annotated[str, typer.Option(help="Until then: 2027-01-31, '2027-01-31 17:00', or 90d.")] = "",
    hidden: Annotated[bool, typer.Option(help="Keep the offers out of answers to other pools.")] = False,
    chain: Chain = "",
    json: Json = False,
) -> None:
    """Set the policy for this peer's data of a key, or of all keys that fit; all conditions must hold.

    Every holder keeps to it, and a refusal names the condition that failed. The most precise policy
    counts, part before kind. Without any, the holder's setting rights.default decides. Regulators never get
    data.

    Example: edgepool policy set plant/mill 'PTVA10212-*/model' --roles machine --purpose production
    """
    body = {
        "pattern": key,
        "members": _list(members),
        "pools": _list(pools),
        "organisations": _list(organisations),
        "roles": _roles(roles),
        "purposes": _list(purpose),
        "valid_until_ms": until_ms(until, time.time()),
        "hidden": hidden,
        "chain": chain,
    }
    _told(folder, key, body, "is set", json)


@app.command()
def drop(folder: Folder, key: Pattern, chain: Chain = "", json: Json = False) -> None:
    """Take the policy of a key or pattern back: a broader one counts then, or the holders' defaults.

    Example: edgepool policy drop plant/mill 'PTVA10212-*/model'
    """
    _told(folder, key, {"pattern": key, "back": True, "chain": chain}, "is taken back", json)


@app.command()
def show(
    folder: Folder,
    key: Annotated[str, typer.Argument(help="Only policies that are for this key (default: all).")] = "",
    json: Json = False,
) -> None:
    """Show the policies on the chains of a running peer, its own and those of others.

    Example: edgepool policy show plant/mill PTVA10212-03/model
    """

    async def work() -> list[PolicyView]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.policies(key)

    found = run_async(work())
    if json:
        print_json(found)
        return
    if not found:
        which = f"for {key} " if key else ""
        say(f"no policy {which}stands on this peer's chains: each holder's own default counts")
        return
    table = columns("key", "owner", "pool", "who", "purposes", "until", "version")
    for one in found:
        until = moment(one.valid_until_ms)
        ended = 0 < one.valid_until_ms < time.time() * 1000
        table.add_row(
            one.pattern,
            one.owner_name or one.owner,
            one.pool,
            "; ".join(_who(one)) or "all who read by default",
            ", ".join(one.purposes) or "any",
            f"{until} (over)" if ended else until,
            f"{one.version}{', hidden' if one.hidden else ''}",
            style="dim" if ended else "",
        )
    out.print(table)


def until_ms(text: str, now_s: float) -> int:
    """Return the wall time that `text` means in ms, 0 for ''; LocalError says what to write."""
    if not text:
        return 0
    span = re.fullmatch(r"([0-9]{1,5})([mhd])", text.strip())
    if span:
        return int(now_s * 1000) + int(span[1]) * _UNITS_MS[span[2]]
    try:
        meant = datetime.fromisoformat(text.strip())
        if len(text.strip()) == 10:
            meant = meant.replace(hour=23, minute=59, second=59)  # a day is meant with its end
        found = int(meant.timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise LocalError(f"'{text[:40]}' is no time: write 2027-01-31, '2027-01-31 17:00', or 90d") from None
    if found <= now_s * 1000:
        raise LocalError(f"'{text[:40]}' is over: nobody would have the data")
    return found


def _told(folder: Path, key: str, body: dict[str, Any], what: str, json: bool) -> None:
    from edgepool.model.twin import DataKey

    DataKey.parse(key)

    async def work() -> list[dict[str, Any]]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            return await client.set_policy(body)

    stands = run_async(work())
    if json:
        print_json(stands)
        return
    for one in stands:
        say(f"the policy for {key} {what} in block {one['height']} of chain {one['chain'][:8]}")


def _who(policy: PolicyView) -> list[str]:
    """Return whom a policy is for, a condition each."""
    members = [name or peer for peer, name in zip(policy.members, policy.member_names, strict=True)]
    pools = [name or chain[:8] for chain, name in zip(policy.pools, policy.pool_names, strict=True)]
    conditions = (
        ("members", members),
        ("pools", pools),
        ("organisations", policy.organisations),
        ("roles", policy.roles),
    )
    return [f"{what} {', '.join(names)}" for what, names in conditions if names]


def _list(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _roles(text: str) -> list[str]:
    from edgepool.model.identity import ROLES

    for role in _list(text):
        if role not in ROLES:
            raise LocalError(f"'{role}' is not a role: use some of {', '.join(ROLES)}")
    return _list(text)

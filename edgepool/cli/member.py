"""`edgepool member list|admit|exclude|approve`: members come to the pools of a running peer and go."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from edgepool.cli.console import columns, err, out, print_json, printable, run_async, say, tell_outcome
from edgepool.errors import Refused

if TYPE_CHECKING:
    from edgepool.gateway.client import ApiClient
    from edgepool.peer.values import Change, OpenChange, PoolMembers

LOOK_EVERY_S = 0.2

app = typer.Typer(
    no_args_is_help=True,
    help="See who is in the pools of a running peer, and let members come and go.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="The folder of a running peer.")]
Pool = Annotated[str, typer.Argument(help="A pool's name, or a chain id or its beginning.")]
Reason = Annotated[str, typer.Option(help="Why, in a few words for the others.")]
Wait = Annotated[bool, typer.Option(help="Wait until enough members have approved it.")]
Timeout = Annotated[float, typer.Option(min=1, max=3600, help="How long to wait, in seconds.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("list")
def list_(
    folder: Folder,
    pool: Annotated[str, typer.Argument(help="Only this pool (default: all).")] = "",
    json: Json = False,
) -> None:
    """Show the members of each pool, changes that are open, who is convicted, and who has left.

    Example: edgepool member list plant/mill-1
    """
    pools = run_async(_ask(folder, pool))
    if json:
        print_json(pools)
        return
    for number, members in enumerate(pools):
        if number:
            say("")
        _print_pool(members)
    if not pools:
        say("this peer is in no pool yet: a coordinator forms the pools")


@app.command()
def admit(
    folder: Folder,
    pool: Pool,
    who: Annotated[str, typer.Argument(help="The name of a linked peer, or a peer id.")],
    replaces: Annotated[str, typer.Option(help="The member whose place it takes: a name or a peer id.")] = "",
    address: Annotated[
        str, typer.Option(help="Where it listens, as /ip4/ADDRESS/tcp/PORT, if it is not linked.")
    ] = "",
    reason: Reason = "",
    wait: Wait = True,
    timeout: Timeout = 60,
    json: Json = False,
) -> None:
    """Propose that a peer becomes a member of a pool. It is asked first, and must trust the coordinator.

    The change is decided when more than two thirds of the members approve it. They do so by themselves
    if the pool's coordinator proposes it, unless their settings say consensus.approve = "manual"; else
    each of them says 'edgepool member approve'. The newcomer votes two blocks later. Exit code 1 if the
    newcomer declines, or if it is not decided in time: it stays open then.

    Example: edgepool member admit plant/cloud milling mill-4
    """
    call = {"admit": who, "exclude": replaces, "address": address, "reason": reason}
    _propose(folder, pool, call, wait, timeout, json)


@app.command()
def exclude(
    folder: Folder,
    pool: Pool,
    who: Annotated[str, typer.Argument(help="The member that is to leave: a name or a peer id.")],
    reason: Reason = "",
    wait: Wait = True,
    timeout: Timeout = 60,
    json: Json = False,
) -> None:
    """Propose that a member leaves a pool; a member may also propose that of itself.

    Approved as 'edgepool member admit --help' says. Who leaves has no vote from two blocks later on, and
    keeps the chain up to then. Fewer than four members must all agree, so there the one
    that leaves says it. A manufacturing pool has ended when all have left but the last.

    Example: edgepool member exclude plant/cloud milling mill-2 --reason "sold"
    """
    _propose(folder, pool, {"admit": "", "exclude": who, "reason": reason}, wait, timeout, json)


@app.command()
def approve(
    folder: Folder,
    pool: Pool,
    proposer: Annotated[
        str, typer.Argument(help="Whose change (default: the only one that is open): a name or a peer id.")
    ] = "",
    json: Json = False,
) -> None:
    """Approve the change that somebody has proposed, as the member whose folder this is.

    Example: edgepool member approve plant/mill-1 milling cloud
    """

    async def work() -> dict[str, Any]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            done = await client.approve_change(pool, proposer)
            return _outcome(done, await client.members(pool))

    outcome = run_async(work())
    if json:
        print_json(outcome)
    else:
        say(outcome["says"])


def _propose(folder: Path, pool: str, call: dict[str, str], wait: bool, timeout_s: float, json: bool) -> None:
    async def work() -> dict[str, Any]:
        from edgepool.gateway.client import ApiClient

        async with ApiClient.of(folder) as client:
            until = time.monotonic() + timeout_s
            done = await _proposed(client, pool, call, timeout_s)
            return await _decided(client, pool, done, until if wait else 0.0, quiet=json)

    outcome = run_async(work())
    tell_outcome(outcome, json, timeout_s if wait else 0.0, f"edgepool member list {folder}")


async def _proposed(client: ApiClient, pool: str, call: dict[str, str], timeout_s: float) -> dict[str, Any]:
    """Propose a change; return it. One that this peer has proposed before is as good."""
    from msgspec.structs import asdict

    try:
        return await client.change_members(pool, **call, timeout_ms=min(30_000, int(timeout_s * 1000)))
    except Refused:
        for change in (await client.members(pool)).open:
            outgoing, incoming = call["exclude"], call["admit"]
            same = (
                outgoing in (change.outgoing, change.outgoing_name)
                and incoming in (change.incoming, change.incoming_name)
                and bool(outgoing) == bool(change.outgoing)
                and bool(incoming) == bool(change.incoming)
            )
            if same and change.approved:
                return asdict(change)
        raise


async def _decided(
    client: ApiClient, pool: str, done: dict[str, Any], until: float, quiet: bool
) -> dict[str, Any]:
    """Return what came of a proposal, looking again until it is decided or `until` has come."""
    told = ""
    while True:
        outcome = _outcome(done, await client.members(pool))
        if outcome["decided"] or time.monotonic() >= until:
            return outcome
        if not quiet and outcome["says"] != told:
            told = outcome["says"]
            err.print(Text(printable(told), style="dim"), soft_wrap=True)
        await asyncio.sleep(LOOK_EVERY_S)


def _outcome(done: dict[str, Any], pool: PoolMembers) -> dict[str, Any]:
    """Say where a change stands that is known by who comes and who goes, whatever its number is by now."""
    goes, comes = done["outgoing"], done["incoming"]
    facts = {"chain": pool.chain, "pool": pool.name, "outgoing": goes, "incoming": comes}
    change = pool.decided
    if change is not None and (change.outgoing, change.incoming) == (goes, comes):
        height = change.in_force_height
        says = f"{_text(change)}: decided, in force from block {height} on"
        return {**facts, "number": change.number, "decided": True, "in_force_height": height, "says": says}
    voting = {member.peer: member for member in pool.members}
    left = {former.peer: former for former in pool.former}
    if goes not in voting and (not comes or comes in voting):
        height = voting[comes].since_height if comes else left[goes].until_height + 1 if goes in left else 0
        names = [f"{voting[comes].name} votes"] if comes else []
        names += [f"{left[goes].name} has left"] if goes in left else []
        says = f"{' and '.join(names)}: in force since block {height}"
        return {**facts, "number": done["number"], "decided": True, "in_force_height": height, "says": says}
    same = [one for one in pool.open if (one.outgoing, one.incoming) == (goes, comes)]
    best = max(same, key=lambda one: len(one.approved_by), default=None)
    says = f"{_text(best)}: {_approvals(best)}" if best is not None else "it is being proposed again"
    return {
        **facts,
        "number": best.number if best is not None else done["number"],
        "decided": False,
        "in_force_height": 0,
        "approved_by": best.approved_by if best is not None else [],
        "needed": best.needed if best is not None else pool.quorum,
        "says": says,
    }


async def _ask(folder: Path, pool: str) -> list[PoolMembers]:
    from edgepool.gateway.client import ApiClient

    async with ApiClient.of(folder) as client:
        if pool:
            return [await client.members(pool)]
        return [await client.members(chain.id) for chain in await client.chains()]


def _print_pool(pool: PoolMembers) -> None:
    count = len(pool.members)
    observing = "" if pool.voting else "; this peer has no vote in it"
    say(
        f"{pool.kind} pool {pool.name}, chain {pool.chain[:8]}, {pool.height} blocks: {count} "
        f"{'member' if count == 1 else 'members'}, {pool.quorum} must agree{observing}",
        "bold",
    )
    table = columns("member", "machine", "peer", "votes since", "link", "")
    for one in pool.members:
        link = Text("linked") if one.linked else Text("no link", style="yellow")
        note = Text("convicted: has voted twice", style="red") if one.convicted else Text("")
        since = f"block {one.since_height}"
        table.add_row(one.name, one.machine_type, one.peer, since, link, note)
    out.print(table)
    if pool.decided is not None:
        say(f"{_text(pool.decided)}: decided, in force from block {pool.decided.in_force_height} on")
    for change in pool.open:
        by = f" ({', '.join(change.approved_by)})" if change.approved_by else ""
        say(f"{_text(change)}: {_approvals(change)}{by}; proposed by {_proposer(change)}", "yellow")
    if pool.ended:
        say(f"the pool has ended: put its chain away with 'edgepool chain archive FOLDER {pool.name}'")
    for former in pool.former:
        what = "has had another key" if former.heir else "has left"
        say(f"{former.name} {what}: its last vote was for block {former.until_height}", "dim")


def _text(change: Change) -> str:
    comes, goes = change.incoming_name or change.incoming, change.outgoing_name or change.outgoing
    what = f"{comes} replaces {goes}" if comes and goes else f"{comes} comes" if comes else f"{goes} leaves"
    return f"change {change.number}: {what}" + (f" ({change.reason})" if change.reason else "")


def _approvals(change: OpenChange) -> str:
    have = "has" if len(change.approved_by) == 1 else "have"
    return f"{len(change.approved_by)} of {change.of} members {have} approved, {change.needed} must"


def _proposer(change: OpenChange) -> str:
    return change.proposer_name or change.proposer

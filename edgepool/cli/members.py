"""`edgepool chain members`: who votes on a chain, who is to come or to go, and who has left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from edgepool.cli.console import columns, out, print_json, say

if TYPE_CHECKING:
    from edgepool.core.ledger.state import ChainState
    from edgepool.core.rosters import RosterHistory
    from edgepool.model.ids import PeerId
    from edgepool.model.pool import Member
    from edgepool.model.record import MembershipChange


def members(
    folder: Annotated[Path, typer.Argument(help="A peer's folder; the peer may run.")],
    chain: Annotated[str, typer.Argument(help="A pool's name, or a chain id or its beginning.")],
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show the members of a chain: who votes, which changes are open, who is convicted, who has left.

    A change is decided when more than two thirds of those who vote have approved it, and in force two
    blocks later. 'since' and 'until' are the first and the last block on which somebody has had a vote.

    Example: edgepool chain members plant/mill-1 milling
    """
    from edgepool.cli.query import one_peer_folder, stored_pools
    from edgepool.gateway.views import choose_chain
    from edgepool.peer.rosters import replay

    peer_folder = one_peer_folder(folder)
    state, rosters = replay(peer_folder, choose_chain(chain, stored_pools(peer_folder)))
    view = _view(state, rosters)
    if json:
        print_json(view)
    else:
        _print_members(view)


def _view(state: ChainState, rosters: RosterHistory) -> dict[str, Any]:
    """Return who votes after the last block of a chain, as JSON."""
    from edgepool.core.ledger.succession import known_heir
    from edgepool.model.vote import quorum

    plan = state.genesis.invitation
    names = rosters.names()
    since = rosters.since()
    staying = {member.peer for member in state.next_roster}
    voting = {member.peer for member in state.roster}
    coming = [member for member in state.next_roster if member.peer not in voting]
    last_height = state.height + 1
    pending = state.pending_change
    return {
        "chain": state.chain,
        "name": plan.name,
        "kind": plan.kind,
        "height": state.height,
        "quorum": quorum(len(state.roster)),
        "members": [
            {
                **_person(member),
                "since": since.get(member.peer, 1),
                "until": None if member.peer in staying else last_height,
                "vote": True,
                "convicted": member.peer in state.convicted(),
            }
            for member in state.roster
        ]
        + [
            {
                **_person(member),
                "since": last_height + 1,
                "until": None,
                "vote": False,
                "convicted": member.peer in state.convicted(),
            }
            for member in coming
        ],
        "observers": [_person(member) for member in state.observers],
        "decided": _change(state, pending, names) if pending is not None else None,
        "open": [
            {
                **_change(state, change, names),
                "approved_by": [names.get(author, author) for author in authors if author in voting],
                "approvals": sum(author in voting for author in authors),
                "needed": quorum(len(voting)),
            }
            for change, authors in state.open_changes()
        ],
        "convicted": [{"peer": peer, "name": names.get(peer, "")} for peer in state.convicted()],
        "former": [
            {
                **_person(former.member),
                "last_height": former.last_height,
                "heir": known_heir(state, former.member.peer),
            }
            for former in rosters.former()
        ],
    }


def _person(member: Member) -> dict[str, Any]:
    return {"peer": member.peer, "name": member.name, "machine_type": member.machine_type}


def _change(state: ChainState, change: MembershipChange, names: dict[PeerId, str]) -> dict[str, Any]:
    from edgepool.gateway.views import change_text

    return {
        "number": change.number,
        "outgoing": change.outgoing,
        "outgoing_name": names.get(change.outgoing, ""),
        "incoming": _person(change.incoming) if change.incoming is not None else None,
        "reason": change.reason,
        "says": change_text(change, names),
    }


def _print_members(view: dict[str, Any]) -> None:
    say(f"chain {view['name']} ({view['chain']}), {view['height']} blocks", "bold")
    table = columns("member", "machine", "peer", "vote", "since", "until", "")
    for row in view["members"]:
        until = str(row["until"] or "")
        note = Text("convicted", style="red") if row["convicted"] else Text("")
        vote = "yes" if row["vote"] else "to come"
        table.add_row(row["name"], row["machine_type"], row["peer"], vote, str(row["since"]), until, note)
    for row in view["observers"]:
        table.add_row(row["name"], row["machine_type"], row["peer"], "no, observes", "", "", "")
    for row in view["former"]:
        vote = "no, a former key" if row["heir"] else "no, has left"
        table.add_row(row["name"], row["machine_type"], row["peer"], vote, "", str(row["last_height"]), "")
    out.print(table)
    say(f"{view['quorum']} of {sum(row['vote'] for row in view['members'])} votes make a block stand")
    if view["decided"] is not None:
        say(f"{view['decided']['says']}: decided, in force from block {view['height'] + 2} on")
    for change in view["open"]:
        by = f" ({', '.join(change['approved_by'])})" if change["approved_by"] else ""
        say(f"{change['says']}: approved by {change['approvals']} of {change['needed']} that are needed{by}")

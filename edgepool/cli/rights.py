"""`edgepool rights`: the table of who may do what in a network."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgepool.cli.console import columns, out, print_json, say


def rights(
    role: Annotated[str, typer.Option(help="Only this role: machine, witness, client, ...")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show which role may do what, and on what footing; every peer goes by this one table.

    A role stands in a peer's certificate. What the owner of data allows besides is a policy of its own:
    'edgepool policy set'.

    Example: edgepool rights --role witness
    """
    from edgepool.core.rights import RIGHTS, STANDINGS
    from edgepool.errors import LocalError
    from edgepool.model.identity import ROLES

    if role and role not in ROLES:
        raise LocalError(f"'{role}' is not a role: use one of {', '.join(ROLES)}")
    roles = [one for one in ROLES if role in ("", one)]
    table: dict[str, dict[str, Any]] = {
        act: {one: list(right.grant(one)) for one in roles} for act, right in RIGHTS.items()
    }
    if json:
        print_json({"rights": table, "footings": STANDINGS})
        return
    shown = columns("act", *roles)
    for act, grants in table.items():
        shown.add_row(act, *(" or ".join(grants[one]) or "-" for one in roles))
    out.print(shown)
    say("")
    for standing, meaning in STANDINGS.items():
        say(f"{standing:<12} {meaning}")
    say(f"{'-':<12} never")

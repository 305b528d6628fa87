"""`edgepool audit`: who asked a peer for data, and was granted or refused it."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from edgepool.cli.console import columns, moment, out, print_json, say


def audit(
    folder: Annotated[Path, typer.Argument(help="The folder of a peer, running or not.")],
    refused: Annotated[bool, typer.Option("--refused", help="Only what was refused.")] = False,
    last: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many, the last ones.")] = 100,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show who asked this peer for which data and for what, and which condition failed if it was refused.

    The log is in FOLDER/audit, bounded by the setting rights.audit_bytes: the oldest goes. Of a flood by one
    peer the first are written, and then one every ten seconds with how many went before it unwritten.

    Example: edgepool audit plant/mill --refused
    """
    from edgepool.config import load_peer_settings
    from edgepool.storage.audit import read_audit

    load_peer_settings(folder)
    found = deque((one for one in read_audit(folder) if not (refused and one.granted)), maxlen=last)
    if json:
        print_json(list(found))
        return
    if not found:
        say(f"nobody was {'refused' if refused else 'granted or refused'} data here yet")
        return
    table = columns("time", "peer", "role", "organisation", "key", "purpose", "decision")
    for one in found:
        decision = "granted" if one.granted else f"refused: {one.reason}"
        more = f" (and {one.unwritten} more before)" if one.unwritten else ""
        table.add_row(
            moment(one.time_ms),
            one.name or one.peer,
            one.role,
            one.organisation,
            one.key,
            one.purpose,
            decision + more,
            style="" if one.granted else "yellow",
        )
    out.print(table)

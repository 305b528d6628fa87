"""`edgepool chain verify`: every stored copy of every chain, checked alone, together, and by anchors."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from edgepool.cli.chain import named_peer_folders, print_copies
from edgepool.cli.console import print_json, say
from edgepool.errors import LocalError, StorageError

if TYPE_CHECKING:
    from edgepool.model.ids import ChainId
    from edgepool.peer.copies import CopyReport
    from edgepool.peer.verify import CheckedCopy

_SETTLE_S = 0.5


def verify(
    folders: Annotated[
        list[Path], typer.Argument(help="Peers' folders, or folders with many of them.", metavar="FOLDER...")
    ],
    chain: Annotated[
        str | None, typer.Option(help="Only this chain: a pool's name, or an id or its beginning.")
    ] = None,
    all_copies: Annotated[
        bool, typer.Option("--all", help="A row for each peer's copy, not only for each chain.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON: all copies.")] = False,
) -> None:
    """Check chains from their first block: hashes, Merkle roots, signatures, lottery, states and votes.

    Every copy is checked. Copies of one chain are compared with each other, and with the anchors on the
    main chains that are there: they show when a whole pool has rewritten its past. So the more folders of
    different peers are named, the more is seen. Exit code 1 if anything is wrong; it is named.

    Example: edgepool chain verify plant/mill-1 plant/cloud
    """
    from edgepool.peer.copies import compare

    named = named_peer_folders(folders)
    only = None if chain is None else _chains_named(chain, named.values())
    if only is not None and not only:
        where = " or ".join(f"'{folder}'" for folder in folders)
        raise LocalError(
            f"there is no chain '{chain}' in {where}: 'edgepool chain list {folders[0]}' shows all"
        )
    checked = [(peer, copy) for peer, folder in named.items() for copy in _check_folder(folder, only)]
    reports = [report for report in compare(checked) if only is None or report.copy.verdict.id in only]
    rows = [_row(report) for report in reports]
    bad = [row for row in rows if not row["good"]]
    if json:
        print_json(rows)
    else:
        _print_rows(rows, bad, all_copies)
    if bad:
        raise typer.Exit(1)


def _chains_named(text: str, folders: Iterable[Path]) -> set[ChainId]:
    """Return the chains that `text` names in any folder: a copy with a damaged genesis has no name."""
    from edgepool.gateway.views import names_chain
    from edgepool.storage.store import list_chains

    return {
        chain
        for folder in folders
        for chain in list_chains(folder)
        if names_chain(text, chain, _genesis_facts(folder, chain)[0])
    }


def _check_folder(folder: Path, only: set[ChainId] | None) -> list[CheckedCopy]:
    """Check the chains in a peer's folder; if only some are wanted, also the main chains, for anchors."""
    from edgepool.gateway.client import find_endpoint
    from edgepool.peer.verify import check_copy
    from edgepool.storage.store import list_chains

    copies = []
    for chain in list_chains(folder):
        if only is not None and chain not in only and _genesis_facts(folder, chain)[1] != "fixed":
            continue
        copy = check_copy(folder, chain)
        if not copy.verdict.verified and (folder / "edgepool.toml").is_file() and find_endpoint(folder):
            # The peer may have been half-way through writing this block; damage stays.
            time.sleep(_SETTLE_S)
            copy = check_copy(folder, chain)
        copies.append(copy)
    return copies


def _genesis_facts(folder: Path, chain: ChainId) -> tuple[str, str]:
    """Return name and kind of a stored chain's pool, both '' if its genesis is damaged."""
    from edgepool.storage.store import read_genesis

    try:
        plan = read_genesis(folder / "chains" / chain).invitation
    except StorageError:
        return "", ""
    return plan.name, plan.kind


def _row(report: CopyReport) -> dict[str, Any]:
    verdict = report.copy.verdict
    return {
        "peer": report.peer,
        "id": verdict.id,
        "name": verdict.name,
        "kind": verdict.kind,
        "height": verdict.height,
        "first_height": verdict.first_height,
        "members": verdict.members,
        "verified": verdict.verified,
        "problem": verdict.problem,
        "bad_height": verdict.bad_height,
        "note": verdict.note,
        "anchors": {
            "equal": report.anchors_equal,
            "pruned": report.anchors_pruned,
            "ahead": report.anchors_ahead,
            "false": report.anchors_false,
        },
        "faults": report.faults,
        "good": report.good,
    }


# --- printing -----------------------------------------------------------------------------------


def _print_rows(rows: list[dict[str, Any]], bad: list[dict[str, Any]], all_copies: bool) -> None:
    def cells(copies: list[dict[str, Any]]) -> tuple[str | Text, ...]:
        members = max(len(row["members"]) for row in copies)
        return str(members), str(len(copies)), _anchors(copies), _verdict(copies)

    print_copies(rows, all_copies, ("members", "copies", "anchors", "verdict"), cells)
    notes = {(row["name"], row["note"]): row["peer"] for row in rows if row["note"]}
    for (name, note), peer in notes.items():
        say(f"{peer}, chain {name}: {note}")
    for sentence in dict.fromkeys(one for row in rows for one in row["anchors"]["false"]):
        say(f"no fault of the chain: {sentence}", "yellow")
    peers = len({row["peer"] for row in rows})
    stored = f"{len(rows)} stored chains ({len({row['id'] for row in rows})} different) of {peers} peers"
    if not rows:
        say("no chain is stored there yet: a peer's chains begin with its first pool")
    elif not bad:
        say(f"{stored}: every hash, signature and Merkle root holds", "green")
    else:
        say(f"{stored}: {len(bad)} bad", "red")
        for row in bad:
            for problem in filter(None, (row["problem"], *row["faults"])):
                say(f"  {row['peer']}, chain {row['id']} ({row['name']}): {problem}", "red")


def _anchors(copies: list[dict[str, Any]]) -> str:
    """Return what came of the anchors of a chain, by the copy that most could be compared with."""
    best = max((row["anchors"] for row in copies), key=lambda anchors: anchors["equal"])
    parts = (
        (best["equal"], "hold"),
        (best["pruned"], "not checkable"),
        (len(best["false"]), "false"),
    )
    return ", ".join(f"{count} {what}" for count, what in parts if count)


def _verdict(copies: list[dict[str, Any]]) -> Text:
    bad = [row for row in copies if not row["good"]]
    if not bad:
        first = min(row["first_height"] for row in copies)
        return Text("whole" if first == 1 else f"whole from {first}", style="green")
    if len(copies) > 1:
        return Text(f"{len(bad)} of {len(copies)} bad", style="red")
    (row,) = bad
    if row["verified"]:
        return Text("contradicted", style="red")
    if row["problem"].startswith("snapshot"):
        return Text("bad snapshot", style="red")
    return Text(f"bad at block {row['bad_height']}" if row["bad_height"] else "bad at genesis", style="red")

"""`edgepool chain query`: records of all chains in a folder, by what they are about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.text import Text

from edgepool.cli.chain import find_peer_folders, record_text
from edgepool.cli.console import columns, err, moment, out, print_json, say, show_error
from edgepool.errors import LocalError, StorageError

if TYPE_CHECKING:
    from edgepool.model.ids import ChainId, PeerId
    from edgepool.model.pool import Genesis
    from edgepool.storage.index import FoundRecords, RecordIndex

_LONGEST = 200
_CHANGES_READ = 1000
"""How many of a chain's changes are read, of each kind, for the names of those whom they brought."""


def query(
    folder: Annotated[Path, typer.Argument(help="A peer's folder; the peer may run.")],
    part: Annotated[str, typer.Option(help="Records about this part, by data key or task.")] = "",
    key: Annotated[str, typer.Option(help="Records about this data, as PART/KIND.")] = "",
    machine: Annotated[str, typer.Option(help="Records of this author: a peer's name or its id.")] = "",
    kind: Annotated[str, typer.Option(help="Records of this kind, such as offer or inspection.")] = "",
    task: Annotated[str, typer.Option(help="Records of this task.")] = "",
    since: Annotated[str, typer.Option(help="Records from this time on, in ISO 8601.")] = "",
    until: Annotated[str, typer.Option(help="Records before this time, in ISO 8601.")] = "",
    chain: Annotated[str, typer.Option(help="Only this chain: a pool's name, or an id or its end.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many, the newest first.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find records in all chains of a peer, newest first; all conditions must be met.

    Kinds are requirement, procedure, completion, inspection, demand, offer, confirmation, receipt, complaint,
    membership, trust, evidence, anchor, statement, policy and succession. Times are those that the authors
    gave; without an offset they are this machine's local time. Who has had several keys has one name.

    The index, index.sqlite in the folder, is made from the chains and kept up with them; it can be
    deleted at any time.

    Example: edgepool chain query plant/mill-1 --part PTVA10212-03 --kind offer --since 2026-10-01
    """
    from edgepool.gateway.views import choose_chain, record_view
    from edgepool.model.record import RECORD_KINDS
    from edgepool.model.twin import DataKey
    from edgepool.storage.index import RecordQuery

    for text in (part, key, machine, task):
        _check_text(text)
    if kind and kind not in RECORD_KINDS:
        raise LocalError(f"'{kind[:80]}' is no kind of record: there are {', '.join(RECORD_KINDS)}")
    peer_folder = one_peer_folder(folder)
    pools = stored_pools(peer_folder)
    wanted = RecordQuery(
        part=part,
        key=DataKey.parse(key) if key else None,
        kind=kind,
        task=task,
        chain=choose_chain(chain, pools).chain if chain else None,
        since_ms=_time_ms(since) if since else None,
        until_ms=_time_ms(until) if until else None,
        limit=limit,
    )
    with open_index(peer_folder) as index:
        names = {pool.chain: names_of(peer_folder, pool, index) for pool in pools}
        if machine:
            wanted = replace(wanted, authors=_authors(machine, pools, names))
        found = index.find(wanted)
    pool_names = {pool.chain: pool.invitation.name for pool in pools}
    rows: list[dict[str, Any]] = [
        {
            "chain": one.ref.chain,
            "name": pool_names.get(one.ref.chain, ""),
            "height": one.ref.height,
            "index": one.ref.index,
            **record_view(one.signed, names.get(one.ref.chain, {})),
        }
        for one in found.records
    ]
    if json:
        print_json({"total": found.total, "records": rows})
    else:
        _print_rows(rows, found)


def one_peer_folder(folder: Path) -> Path:
    """Return the one peer's folder at or below `folder`; LocalError if there are none or several."""
    folders = find_peer_folders(folder)
    if len(folders) > 1:
        raise LocalError(f"'{folder}' holds {len(folders)} peers: name the folder of one of them")
    return folders[0]


def stored_pools(folder: Path) -> list[Genesis]:
    """Return the pools of the chains in a peer's folder; a damaged genesis is told and left out."""
    from edgepool.storage.store import list_chains, read_genesis

    pools = []
    for chain in list_chains(folder):
        try:
            pools.append(read_genesis(folder / "chains" / chain))
        except StorageError as error:
            show_error(error)
    return pools


@contextmanager
def open_index(folder: Path) -> Iterator[RecordIndex]:
    """Give the index of a peer's folder, up to date; a long update shows a bar."""
    from edgepool.storage.index import RecordIndex

    bar = Progress(
        TextColumn("indexing the chains"),
        BarColumn(),
        DownloadColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )
    task = bar.add_task("", total=None)
    with bar:
        index = RecordIndex(folder, lambda done, total: bar.update(task, completed=done, total=total))
    with index:
        for problem in index.problems:
            show_error(StorageError(problem))
        yield index


def names_of(folder: Path, pool: Genesis, index: RecordIndex) -> dict[PeerId, str]:
    """Return the names of all who were ever in a pool, under each of their keys, or were to come in."""
    from edgepool.model.record import MembershipChange
    from edgepool.model.succession import KeySuccession
    from edgepool.peer.rosters import follower_of
    from edgepool.storage.index import RecordQuery

    names: dict[PeerId, str] = {}
    formers: dict[PeerId, str] = {}
    for kind in ("membership", "succession"):
        for one in index.find(RecordQuery(kind=kind, chain=pool.chain, limit=_CHANGES_READ)).records:
            record = one.signed.record
            if isinstance(record.body, MembershipChange | KeySuccession) and record.body.incoming is not None:
                names[record.body.incoming.peer] = record.body.incoming.name
            if isinstance(record.body, KeySuccession):
                formers[record.author] = record.body.incoming.name
    try:
        return formers | names | follower_of(folder, pool).history.names()
    except StorageError as error:
        show_error(error)
        return formers | names


def _authors(text: str, pools: list[Genesis], names: dict[ChainId, dict[PeerId, str]]) -> tuple[PeerId, ...]:
    """Return the peers that `text` names: those with this name in any pool, or this id."""
    people = [pair for of_chain in names.values() for pair in of_chain.items()]
    found = dict.fromkeys(peer for peer, name in people if text in (name, peer))
    coordinators = [pool.invitation.coordinator for pool in pools]
    found.update(dict.fromkeys(peer for peer in coordinators if peer == text))
    if not found:
        known = ", ".join(sorted({name for _, name in people})[:40])
        raise LocalError(
            f"no pool here has a machine '{text[:80]}'" + (f": there are {known}" if known else "")
        )
    return tuple(found)


def _time_ms(text: str) -> int:
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise LocalError(
            f"'{text[:80]}' is no time: write ISO 8601, such as 2026-10-01 or 2026-10-01T14:30+02:00"
        ) from None


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LocalError("an option is not valid text in UTF-8") from None
    if len(text) > _LONGEST:
        raise LocalError(f"'{text[:40]}…' is too long: no part, key, name or task is")


def _print_rows(rows: list[dict[str, Any]], found: FoundRecords) -> None:
    table = columns("time", "chain", "place", "record", "kind", "machine", "says")
    for row in rows:
        table.add_row(
            moment(row["time_ms"]),
            row["name"] or row["chain"][:8],
            f"{row['height']}:{row['index']}",
            row["id"][:8],
            row["kind"],
            row["author_name"] or row["author"][-6:],
            Text(record_text(row)),
        )
    if rows:
        out.print(table)
    if found.total == len(rows):
        say(f"{found.total} records" if found.total != 1 else "1 record")
    else:
        say(f"the newest {len(rows)} of {found.total} records: --limit shows more")

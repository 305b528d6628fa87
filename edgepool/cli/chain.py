"""`edgepool chain list|show`: what is on the chains, read from folders; their peers may run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from edgepool.cli.console import PlainTable, columns, moment, out, print_json, say, show_error
from edgepool.errors import LocalError, StorageError

if TYPE_CHECKING:
    from edgepool.core.rosters import RosterFollower
    from edgepool.model.block import CertifiedBlock
    from edgepool.model.pool import Genesis

FOLDER_DEPTH = 4

app = typer.Typer(
    no_args_is_help=True,
    help="Look at chains and check them, whether their peers run or not.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="A peer's folder, or a folder with many of them.")]
All = Annotated[bool, typer.Option("--all", help="A row for each peer's copy, not only for each chain.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON: all copies.")]


@app.command("list")
def list_(folder: Folder, all_copies: All = False, json: Json = False) -> None:
    """List the chains in a peer's folder, or in all peers' folders below it.

    Exit code 1 if something there is damaged; it is named.

    Example: edgepool chain list plant/mill-1
    """
    rows: list[dict[str, Any]] = []
    damaged = False
    for peer, peer_folder in named_peer_folders([folder]).items():
        chains, whole = _read_all(peer_folder)
        damaged = damaged or not whole
        for genesis, last, follower in chains:
            plan, rosters = genesis.invitation, follower.history
            header = last.block.header if last else None
            names, present = rosters.names(), [member.name for member in rosters.present]
            left = [former.member.name for former in rosters.former()]
            rows.append(
                {
                    "peer": peer,
                    "id": genesis.chain,
                    "name": plan.name,
                    "kind": plan.kind,
                    "height": header.height if header else follower.height,
                    "members": present,
                    "former": [name for name in left if name not in present],
                    "ended": plan.has_ended(len(present)),
                    "last_packer": names.get(header.proposer, "") if header else "",
                    "last_block_ms": header.time_ms if header else 0,
                }
            )
    if json:
        print_json(rows)
    else:
        _print_chains(rows, all_copies)
    if damaged:
        raise typer.Exit(1)


@app.command()
def archive(
    folder: Annotated[Path, typer.Argument(help="The folder of a peer that does not run.")],
    chain: Annotated[str, typer.Argument(help="A pool's name, or a chain id or its beginning.")],
    json: Json = False,
) -> None:
    """Put the chain of a pool away that the peer has left, or that has ended: it is loaded no more.

    It is moved to FOLDER/archive as it is, where 'edgepool chain verify' still checks it, and counts for no
    limit. Refused, with what it is needed for, while the peer has a part in the pool, or holds data that only
    this chain knows of.

    Example: edgepool chain archive plant/mill-1 PTVA10212
    """
    from edgepool.gateway.archiving import archive_chain

    done = archive_chain(folder, chain)
    if json:
        told = {"chain": done.chain, "pool": done.pool, "height": done.height, "folder": str(done.folder)}
        print_json(told)
        return
    say(f"the chain of pool {done.pool} (height {done.height}) is in {done.folder} now")
    say(f"check it there with: edgepool chain verify {done.folder}")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A peer's folder.")],
    chain: Annotated[str, typer.Argument(help="A pool's name, or a chain id or its beginning.")],
    height: Annotated[int | None, typer.Argument(min=1, help="Which block (default: the last).")] = None,
    json: Json = False,
) -> None:
    """Show one block: header, packer, records, and the votes that make it stand.

    Example: edgepool chain show plant/mill-1 milling 12
    """
    from edgepool.cli.query import one_peer_folder, stored_pools
    from edgepool.gateway.views import block_view, choose_chain
    from edgepool.model.record import MembershipChange
    from edgepool.model.vote import quorum

    peer_folder = one_peer_folder(folder)
    genesis = choose_chain(chain, stored_pools(peer_folder))
    certified, follower = _find_block(peer_folder, genesis, height)
    rosters = follower.history
    view = block_view(certified, rosters)
    voters = {member.peer for member in rosters.at(certified.block.header.height)}
    for record, signed in zip(view["records"], certified.block.records, strict=True):
        body = signed.record.body
        if isinstance(body, MembershipChange):
            record["approvals"] = sum(author in voters for author in follower.authors(body))
            record["needed"] = quorum(len(voters))
    if json:
        print_json(view)
    else:
        _print_block(view)


def find_peer_folders(folder: Path) -> list[Path]:
    """Return the peers' folders at or below `folder`, by name; LocalError if there are none."""
    from edgepool.config import CONFIG_FILE

    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise LocalError(f"'{folder}' {what}: name a peer's folder, or one that holds peers' folders")
    found: list[Path] = []
    level = [folder]
    for _ in range(FOLDER_DEPTH):
        peers = [path for path in level if (path / CONFIG_FILE).is_file() or (path / "chains").is_dir()]
        found += peers
        level = [
            child
            for path in level
            if path not in peers
            for child in sorted(path.iterdir())
            if child.is_dir() and not child.is_symlink() and not child.name.startswith(".")
        ]
    if not found:
        raise LocalError(f"there is no peer's folder in '{folder}': name one that 'edgepool init' has made")
    return sorted(found)


def named_peer_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the peers' folders at or below `folders`, each once, by short names that tell them apart."""
    found = list({path.resolve(): path for folder in folders for path in find_peer_folders(folder)}.values())
    if len({path.name for path in found}) == len(found):
        return {path.name: path for path in found}
    top = folders[0] if len(folders) == 1 else Path(os.path.commonpath([path.absolute() for path in folders]))
    return {os.path.relpath(path, top): path for path in found}


def _read_all(
    folder: Path,
) -> tuple[list[tuple[Genesis, CertifiedBlock | None, RosterFollower]], bool]:
    """Return each chain's genesis, last whole block (None if it has none) and rosters, and if all are whole.

    What is damaged is told; a chain without a readable genesis is left out.
    """
    from edgepool.peer.rosters import follower_of
    from edgepool.storage.store import list_chains, read_chain

    chains = []
    whole = True
    for chain in list_chains(folder):
        try:
            genesis, blocks = read_chain(folder, chain)
            follower = follower_of(folder, genesis)
        except StorageError as error:
            show_error(error)
            whole = False
            continue
        last: CertifiedBlock | None = None
        for _, block in blocks:
            if isinstance(block, StorageError):
                show_error(block)
                whole = False
                break
            follower.take(block)
            last = block
        chains.append((genesis, last, follower))
    return chains, whole


def _find_block(folder: Path, genesis: Genesis, height: int | None) -> tuple[CertifiedBlock, RosterFollower]:
    """Return a block of a stored chain (None: the last one), and a follower that has come up to it."""
    from edgepool.peer.rosters import follower_of
    from edgepool.storage.reading import first_height
    from edgepool.storage.store import read_chain

    last: CertifiedBlock | None = None
    follower = follower_of(folder, genesis)
    for at, block in read_chain(folder, genesis.chain)[1]:
        if isinstance(block, StorageError):
            if height is None or at <= height:
                raise block
            break
        follower.take(block)
        last = block
        if at == height:
            return block, follower
    if height is None and last is not None:
        return last, follower
    top = last.block.header.height if last else follower.height
    first = first_height(folder / "chains" / genesis.chain)
    if height is not None and height < first:
        raise LocalError(
            f"block {height} of chain '{genesis.invitation.name}' is pruned: the first is {first}"
        )
    raise LocalError(f"chain '{genesis.invitation.name}' has no block {height or 1}: its height is {top}")


def _print_chains(rows: list[dict[str, Any]], all_copies: bool) -> None:
    def cells(copies: list[dict[str, Any]]) -> tuple[str, ...]:
        last = max(copies, key=lambda row: row["height"])
        about = (last["last_packer"], moment(last["last_block_ms"]))
        members = ", ".join(last["members"])
        return (*about, str(len(copies)), f"ended; {members} was the last" if last["ended"] else members)

    print_copies(rows, all_copies, ("last packer", "last block", "copies", "members"), cells)


def print_copies(
    rows: list[dict[str, Any]],
    all_copies: bool,
    names: tuple[str, ...],
    cells: Callable[[list[dict[str, Any]]], tuple[str | Text, ...]],
) -> None:
    """Print a row for each chain, or for each copy; `cells` are those under `names`."""
    chains = [[row] for row in rows] if all_copies else _by_chain(rows)
    places = [copies[0]["peer"] if all_copies else _place(copies) for copies in chains]
    first = ("peer",) if all_copies else ("in",) if any(places) else ()
    table = columns(*first, "pool", "chain", "kind", "height", *names)
    for place, copies in zip(places, chains, strict=True):
        table.add_row(*((place,) if first else ()), *_chain_cells(copies), *cells(copies))
    out.print(table)
    if len(chains) < len(rows):
        say("one row for each chain; --all shows the copy of each peer", "dim")


def _by_chain(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the copies of each chain together: folder by folder, fixed pools first, then by name."""
    copies: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        copies.setdefault(row["id"], []).append(row)

    def order(of_chain: list[dict[str, Any]]) -> tuple[str, ...]:
        name, chain, kind, _ = _chain_cells(of_chain)
        return _place(of_chain), kind, name, chain

    return sorted(copies.values(), key=order)


def _place(copies: list[dict[str, Any]]) -> str:
    """Return the folder that the peers of all copies are in, '' if it is the one that was named."""
    return os.path.commonpath([Path(row["peer"]).parent for row in copies])


def _chain_cells(copies: list[dict[str, Any]]) -> tuple[str, str, str, str]:
    """Return pool, chain, kind and height of copies of one chain.

    A copy whose genesis is damaged knows no name, so that is taken from any that does.
    """
    heights = sorted({row["height"] for row in copies})
    return (
        max(row["name"] for row in copies),
        copies[0]["id"][:8],
        max(row["kind"] for row in copies),
        str(heights[0]) if len(heights) == 1 else f"{heights[0]} to {heights[-1]}",
    )


def _print_block(view: dict[str, Any]) -> None:
    grid = PlainTable.grid(padding=(0, 2))
    grid.add_row("chain", f"{view['name']} ({view['chain']})")
    grid.add_row("height", f"{view['height']} (round {view['round']})")
    grid.add_row("block", view["id"])
    grid.add_row("previous", view["previous"])
    members, following = view["members_hash"][:16], view["next_members_hash"][:16]
    grid.add_row("members", f"{members}, {view['members']} of them")
    if following != members:
        grid.add_row("next members", f"{following}, from block {view['height'] + 1} on")
    grid.add_row("state before", view["state_root"][:16])
    grid.add_row("records root", view["records_root"][:16])
    grid.add_row("packer", view["packer_name"] or view["packer"])
    grid.add_row("time", moment(view["time_ms"]))
    voters = ", ".join(vote["name"] for vote in view["votes"])
    grid.add_row("votes", f"{len(view['votes'])} of {view['members']} ({view['quorum']} needed): {voters}")
    out.print(grid)
    table = columns("#", "record", "kind", "author", "says")
    for number, record in enumerate(view["records"]):
        says = record_text(record)
        if "approvals" in record:
            says += f"; approved by {record['approvals']} of {record['needed']} so far"
        author = record["author_name"] or record["author"][-6:]
        table.add_row(str(number), record["id"][:8], record["kind"], author, Text(says))
    out.print()
    out.print(table)


def record_text(record: dict[str, Any]) -> str:
    """Return what a record says in a line of a table, from its JSON."""
    fields = (f"{field} {brief(value)}" for field, value in record["body"].items())
    return record["says"] or ", ".join(fields)


def brief(value: object) -> str:
    """Return a field of a record shortened for a table."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"

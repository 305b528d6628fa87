"""`edgepool chain list|show|verify`: what is on the chains, from folders or from a running peer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from edgepool.cli.console import PlainTable, columns, moment, out, print_json, say, show_error
from edgepool.errors import LocalError, StorageError

if TYPE_CHECKING:
    from edgepool.model.block import CertifiedBlock
    from edgepool.model.ids import ChainId
    from edgepool.model.pool import Genesis
    from edgepool.peer.verify import ChainVerdict

FOLDER_DEPTH = 4
_SETTLE_S = 0.5

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
    for peer, peer_folder in named_peer_folders(folder).items():
        chains, whole = _read_all(peer_folder)
        damaged = damaged or not whole
        for genesis, last in chains:
            plan = genesis.invitation
            header = last.block.header if last else None
            names = {member.peer: member.name for member in plan.people()}
            rows.append(
                {
                    "peer": peer,
                    "id": genesis.chain,
                    "name": plan.name,
                    "kind": plan.kind,
                    "height": header.height if header else 0,
                    "members": [member.name for member in plan.members],
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
def show(
    folder: Annotated[Path, typer.Argument(help="A peer's folder.")],
    chain: Annotated[str, typer.Argument(help="A pool's name, or a chain id or its beginning.")],
    height: Annotated[int | None, typer.Argument(min=1, help="Which block (default: the last).")] = None,
    json: Json = False,
) -> None:
    """Show one block: header, packer, records, and the votes that make it stand.

    Example: edgepool chain show plant/mill-1 milling 12
    """
    from edgepool.gateway.views import block_view, choose_chain

    folders = find_peer_folders(folder)
    if len(folders) > 1:
        raise LocalError(f"'{folder}' holds {len(folders)} peers: name the folder of one of them")
    genesis = choose_chain(chain, [genesis for genesis, _ in _read_all(folders[0])[0]])
    certified = _find_block(folders[0], genesis, height)
    view = block_view(certified, genesis)
    if json:
        print_json(view)
    else:
        _print_block(view)


@app.command()
def verify(
    folder: Folder,
    chain: Annotated[
        str | None, typer.Argument(help="Only this chain: a pool's name, or an id or its beginning.")
    ] = None,
    all_copies: All = False,
    json: Json = False,
) -> None:
    """Check chains from their first block: hashes, Merkle roots, signatures, lottery and votes.

    Every copy is checked. Exit code 1 if anything is wrong; the first bad block of each bad copy is
    named.

    Example: edgepool chain verify build/demo
    """
    rows: list[dict[str, Any]] = []
    folders = named_peer_folders(folder)
    only = None if chain is None else _chains_named(chain, folders.values())
    if only is not None and not only:
        raise LocalError(
            f"there is no chain '{chain}' in '{folder}': 'edgepool chain list {folder}' shows all"
        )
    for peer, peer_folder in folders.items():
        for verdict in _verify_folder(peer_folder, only):
            rows.append({"peer": peer, **_verdict_view(verdict)})
    bad = [row for row in rows if not row["verified"]]
    if json:
        print_json(rows)
    else:
        _print_verdicts(rows, bad, all_copies)
    if bad:
        raise typer.Exit(1)


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


def named_peer_folders(folder: Path) -> dict[str, Path]:
    """Return the peers' folders by the shortest names that tell them apart."""
    found = find_peer_folders(folder)
    if len({path.name for path in found}) == len(found):
        return {path.name: path for path in found}
    return {str(path.relative_to(folder)): path for path in found}


def _read_all(folder: Path) -> tuple[list[tuple[Genesis, CertifiedBlock | None]], bool]:
    """Return each chain's genesis and last whole block (None if it has none), and if all are whole.

    What is damaged is told; a chain without a readable genesis is left out.
    """
    from edgepool.storage.store import list_chains, read_chain

    chains = []
    whole = True
    for chain in list_chains(folder):
        try:
            genesis, blocks = read_chain(folder, chain)
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
            last = block
        chains.append((genesis, last))
    return chains, whole


def _find_block(folder: Path, genesis: Genesis, height: int | None) -> CertifiedBlock:
    from edgepool.storage.store import read_chain

    last: CertifiedBlock | None = None
    for at, block in read_chain(folder, genesis.chain)[1]:
        if isinstance(block, StorageError):
            if height is None or at <= height:
                raise block
            break
        last = block
        if at == height:
            return block
    if height is None and last is not None:
        return last
    top = last.block.header.height if last else 0
    raise LocalError(f"chain '{genesis.invitation.name}' has no block {height or 1}: its height is {top}")


def _chains_named(text: str, folders: Iterable[Path]) -> set[ChainId]:
    """Return the chains that `text` names in any folder: a copy with a damaged genesis has no name."""
    from edgepool.gateway.views import names_chain
    from edgepool.storage.store import list_chains

    return {
        chain
        for folder in folders
        for chain in list_chains(folder)
        if names_chain(text, chain, _name(folder, chain))
    }


def _verify_folder(folder: Path, only: set[ChainId] | None) -> list[ChainVerdict]:
    from edgepool.gateway.client import find_endpoint
    from edgepool.peer.verify import verify_chain
    from edgepool.storage.store import list_chains

    verdicts = []
    for chain in list_chains(folder):
        if only is not None and chain not in only:
            continue
        verdict = verify_chain(folder, chain)
        if not verdict.verified and (folder / "edgepool.toml").is_file() and find_endpoint(folder):
            # The peer may have been half-way through writing this block; damage stays.
            time.sleep(_SETTLE_S)
            verdict = verify_chain(folder, chain)
        verdicts.append(verdict)
    return verdicts


def _name(folder: Path, chain: ChainId) -> str:
    """Return the name of a stored chain's pool, '' if its genesis is damaged."""
    from edgepool.storage.store import read_chain

    try:
        return read_chain(folder, chain)[0].invitation.name
    except StorageError:
        return ""


def _verdict_view(verdict: ChainVerdict) -> dict[str, Any]:
    return {
        "id": verdict.id,
        "name": verdict.name,
        "kind": verdict.kind,
        "height": verdict.height,
        "members": verdict.members,
        "verified": verdict.verified,
        "problem": verdict.problem,
        "bad_height": verdict.bad_height,
    }


def _print_chains(rows: list[dict[str, Any]], all_copies: bool) -> None:
    def cells(copies: list[dict[str, Any]]) -> tuple[str, ...]:
        last = max(copies, key=lambda row: row["height"])
        about = (last["last_packer"], moment(last["last_block_ms"]))
        return (*about, str(len(copies)), ", ".join(last["members"]))

    _print_copies(rows, all_copies, ("last packer", "last block", "copies", "members"), cells)


def _print_verdicts(rows: list[dict[str, Any]], bad: list[dict[str, Any]], all_copies: bool) -> None:
    def cells(copies: list[dict[str, Any]]) -> tuple[str | Text, ...]:
        return str(max(len(row["members"]) for row in copies)), str(len(copies)), _verdict(copies)

    _print_copies(rows, all_copies, ("members", "copies", "verdict"), cells)
    peers = len({row["peer"] for row in rows})
    stored = f"{len(rows)} stored chains ({len({row['id'] for row in rows})} different) of {peers} peers"
    if not rows:
        say("no chain is stored there yet: a peer's chains begin with its first pool")
    elif not bad:
        say(f"{stored}: every hash, signature and Merkle root holds", "green")
    else:
        say(f"{stored}: {len(bad)} bad", "red")
        for row in bad:
            say(f"  {row['peer']}, chain {row['id']} ({row['name']}): {row['problem']}", "red")


def _print_copies(
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


def _verdict(copies: list[dict[str, Any]]) -> Text:
    bad = [row for row in copies if not row["verified"]]
    if not bad:
        return Text("whole", style="green")
    if len(copies) > 1:
        return Text(f"{len(bad)} of {len(copies)} bad", style="red")
    height = bad[0]["bad_height"]
    return Text("bad at genesis" if height == 0 else f"bad at block {height}", style="red")


def _print_block(view: dict[str, Any]) -> None:
    grid = PlainTable.grid(padding=(0, 2))
    grid.add_row("chain", f"{view['name']} ({view['chain']})")
    grid.add_row("height", f"{view['height']} (round {view['round']})")
    grid.add_row("block", view["id"])
    grid.add_row("previous", view["previous"])
    grid.add_row("records root", view["records_root"])
    grid.add_row("packer", view["packer_name"] or view["packer"])
    grid.add_row("time", moment(view["time_ms"]))
    voters = ", ".join(vote["name"] for vote in view["votes"])
    grid.add_row("votes", f"{len(view['votes'])} of {view['members']} ({view['quorum']} needed): {voters}")
    out.print(grid)
    table = columns("#", "record", "kind", "author", "says")
    for number, record in enumerate(view["records"]):
        says = ", ".join(f"{field} {brief(value)}" for field, value in record["body"].items())
        author = record["author_name"] or record["author"][-6:]
        table.add_row(str(number), record["id"][:8], record["kind"], author, Text(says))
    out.print()
    out.print(table)


def brief(value: object) -> str:
    """Return a field of a record shortened for a table."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"

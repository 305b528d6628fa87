"""`edgepool chain lottery`: who leads a chain next, with which odds, and who has led it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgepool.cli.console import columns, out, print_json, say, show_error
from edgepool.errors import StorageError


def lottery(
    folder: Annotated[Path, typer.Argument(help="A peer's folder; the peer may run.")],
    chain: Annotated[str, typer.Argument(help="A pool's name, or a chain id or its beginning.")],
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show the lottery of a chain: work, weights, exact odds, the next leaders, and turns so far.

    The chance to pack the next block is in proportion to the work that others have stood for in
    the cycle of 32 blocks before last; a tenth is shared equally. 'expected' is how many blocks a
    member would have packed had every draw met its odds exactly; 'missed' counts the rounds it led
    in which no block of its own came to stand.

    Example: edgepool chain lottery plant/mill-1 milling
    """
    from edgepool.cli.query import one_peer_folder, stored_pools
    from edgepool.gateway.views import choose_chain

    peer_folder = one_peer_folder(folder)
    pool = choose_chain(chain, stored_pools(peer_folder))
    view = _replay(peer_folder, pool.chain)
    if json:
        print_json(view)
    else:
        _print_lottery(view)


def _replay(folder: Path, chain: str) -> dict[str, Any]:
    """Return the lottery after the last whole block of a stored chain, as JSON."""
    from edgepool.core.turns import LotteryReplay
    from edgepool.model.ids import ChainId
    from edgepool.peer.rosters import first_state, follower_of
    from edgepool.storage.store import read_chain

    genesis, blocks = read_chain(folder, ChainId(chain))
    follower = follower_of(folder, genesis)
    replay = LotteryReplay(genesis, first_state(folder, genesis))
    for height, certified in blocks:
        if isinstance(certified, StorageError):
            show_error(certified)
            break
        follower.take(certified)
        if height < replay.counted_from:
            continue
        problem = replay.take(certified.block)
        if problem:
            raise StorageError(
                f"block {height} of chain '{genesis.invitation.name}' cannot stand ({problem}): "
                f"'edgepool chain verify {folder}' checks all of it"
            )
    names = follower.history.names()
    first, last = replay.counted_heights
    return {
        "chain": genesis.chain,
        "name": genesis.invitation.name,
        "height": replay.height,
        "next_height": replay.height + 1,
        "counted_from": replay.counted_from,
        "work_from_height": first,
        "work_to_height": last,
        "members": [
            {
                "peer": odds.member,
                "name": names[odds.member],
                "work_minutes": odds.work_minutes,
                "weight": odds.weight,
                "halved": odds.halved,
                "odds": str(odds.chance),
                "odds_percent": round(100 * float(odds.chance), 4),
                "packed": odds.packed,
                "expected": round(odds.expected, 3),
                "missed": odds.missed,
            }
            for odds in replay.odds()
        ],
        "leaders": [
            {"round": round_, "peer": peer, "name": names[peer]}
            for round_, peer in enumerate(replay.leaders())
        ],
    }


def _print_lottery(view: dict[str, Any]) -> None:
    table = columns("member", "work", "weight", "odds", "percent", "packed", "expected", "missed")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in view["members"]:
        table.add_row(
            row["name"],
            f"{row['work_minutes']} min",
            f"{row['weight']}{' (halved)' if row['halved'] else ''}",
            row["odds"],
            f"{row['odds_percent']:.2f} %",
            str(row["packed"]),
            f"{row['expected']:.1f}",
            str(row["missed"]),
        )
    say(f"chain {view['name']} ({view['chain']}), {view['height']} blocks", "bold")
    out.print(table)
    if view["counted_from"] > 1:
        say(f"blocks before {view['counted_from']} are pruned: turns and what was expected count from there")
    if not view["work_to_height"]:
        say("no work counts yet, so all are equal: that of blocks 1 to 32 counts from block 65 on")
    else:
        of = f"the work of blocks {view['work_from_height']} to {view['work_to_height']} counts"
        worked = any(row["work_minutes"] for row in view["members"])
        say(of if worked else f"{of}; nobody has any there, so all are equal")
    order = ", ".join(f"{leader['round']} {leader['name']}" for leader in view["leaders"])
    say(f"block {view['next_height']} is led, by round, by: {order}")

"""`edgepool topology show|run`: networks of pools from a TOML file, drawn, checked and played."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from edgepool.cli.console import columns, duration, err, out, print_json, run_async, say, size

if TYPE_CHECKING:
    from edgepool.workshop.topology import Topology

app = typer.Typer(
    no_args_is_help=True,
    help="Draw, check and run networks of peers and pools from a TOML file.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[Path, typer.Argument(help="A topology, or a workshop with its orders, in TOML.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def show(file: File, json: Json = False) -> None:
    """Draw the pools and peers of a file as text, and check that it can be run.

    Peers in several pools are marked: through them queries pass from pool to pool. Exit code 1 if
    the check finds something.

    Example: edgepool topology show examples/line.toml
    """
    topology = _load(file)
    problems = topology.check()
    facts = _facts(topology)
    if json:
        print_json({"network": topology.network.name, **facts, "problems": problems})
    else:
        out.print(_tree(topology))
        _print_exchanges(topology, bool(problems))
        say(
            f"{facts['peers']} peers, {facts['pools']} pools, "
            + ("connected" if facts["connected"] else "not connected")
            + (f", at most {facts['most_hops']} hops between pools" if facts["connected"] else "")
        )
        for problem in problems:
            say(f"problem: {problem}", "red")
    if problems:
        raise typer.Exit(1)


@app.command()
def run(
    file: File,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Keep the peers' folders here (default: a temporary one; build/topology for a workshop)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Start all peers of a file in this process, form its pools, and play its exchanges.

    Links are real (TLS on loopback), and so are chains and data. A file with orders and machines, such
    as examples/rocket_motor.toml, is run as the demo, without cloud mode. Exit code 1 if an exchange
    fails.

    Example: edgepool topology run examples/line.toml
    """
    from edgepool.workshop.topology import is_workshop, load_topology

    if is_workshop(file):
        from edgepool.cli.demo import run_workshop

        run_workshop(file, folder, json)
        return
    topology = load_topology(file)
    with ExitStack() as stack:
        if folder is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepool-")))
        else:
            place = folder
        result = run_async(_play(topology, place, quiet=json))
    if json:
        print_json(result)
    else:
        out.print(_results(result))
        for row in result["exchanges"]:
            if row["error"]:
                say(f"{row['key']} from {row['from']} to {row['to']}: {row['error']}", "red")
        say(
            f"{len(result['exchanges'])} exchanges, {result['failed']} failed, in {result['wall_s']:.1f} s",
            "red" if result["failed"] else "green",
        )
        if folder is not None:
            say(f"the peers' folders are in {folder}: try 'edgepool chain verify {folder}'")
    if result["failed"]:
        raise typer.Exit(1)


async def _play(topology: Topology, folder: Path, quiet: bool) -> dict[str, Any]:
    from edgepool.workshop.topology import run

    def report(text: str) -> None:
        if not quiet:
            err.print(Text(text, style="dim"), soft_wrap=True)

    return await run(topology, folder, report)


def _load(file: Path) -> Topology:
    from edgepool.workshop.orders import load_workshop
    from edgepool.workshop.topology import is_workshop, load_topology, topology_of

    return topology_of(load_workshop(file)) if is_workshop(file) else load_topology(file)


def _facts(topology: Topology) -> dict[str, Any]:
    """Return what networkx says of the graph of peers and pools."""
    import networkx as nx

    graph = topology.graph()
    graph.remove_nodes_from([node for node in list(graph) if graph.degree(node) == 0])
    connected = len(graph) > 0 and nx.is_connected(graph)
    pools = [node for node in graph if node[0] == "pool"]
    most_hops = None
    if connected:
        lengths = dict(nx.all_pairs_shortest_path_length(graph))
        most_hops = max(lengths[a][b] for a in pools for b in pools) // 2
    return {
        "coordinator": topology.coordinator.name,
        "peers": len(topology.peers),
        "pools": len(topology.pools),
        "exchanges": len(topology.exchanges),
        "connected": connected,
        "most_hops": most_hops,
        "bridges": [peer.name for peer in topology.peers if len(topology.pools_of(peer.name)) > 1],
    }


def _tree(topology: Topology) -> Tree:
    coordinator = topology.coordinator
    tree = Tree(Text(topology.network.name, style="bold"), guide_style="dim")
    peers = {peer.name: peer for peer in topology.peers}
    for pool in topology.pools:
        label = Text.assemble((pool.name, "bold"), f" ({pool.kind} pool, {len(pool.members)} members)")
        if pool.combination:
            label.append(f": {' → '.join(pool.combination)}", style="dim")
        branch = tree.add(label)
        for member in pool.members:
            branch.add(
                _member(topology, pool.name, member, peers[member].machine_type if member in peers else "?")
            )
    alone = [peer.name for peer in topology.peers if not topology.pools_of(peer.name)]
    if alone:
        tree.add(Text(f"in no pool: {', '.join(alone)}", style="dim"))
    tree.add(Text(f"pools are formed by {coordinator.name}", style="dim"))
    return tree


def _member(topology: Topology, pool: str, member: str, machine_type: str) -> Text:
    text = Text(member)
    if machine_type:
        text.append(f" ({machine_type})", style="dim")
    others = [other.name for other in topology.pools_of(member) if other.name != pool]
    if others:
        text.append(f" ⇄ {', '.join(others)}", style="cyan")
    return text


def _print_exchanges(topology: Topology, wrong: bool) -> None:
    if not topology.exchanges or wrong:
        return
    table = columns("exchange", "from", "to", "size", "way of the query", "hops")
    for exchange in topology.exchanges:
        route = topology.route(exchange)
        way = " → ".join((*route.path, exchange.source)) if route else "none"
        table.add_row(
            exchange.key,
            exchange.source,
            exchange.target,
            size(exchange.size_bytes),
            way,
            str(route.hops) if route else "",
        )
    out.print(table)


def _results(result: dict[str, Any]) -> Table:
    table = columns("exchange", "from", "to", "size", "hops", "search", "transfer", "outcome")
    for row in result["exchanges"]:
        table.add_row(
            row["key"],
            row["from"],
            row["to"],
            size(row["size_bytes"]),
            "" if row["hops"] is None else str(row["hops"]),
            "" if row["search_ms"] is None else duration(row["search_ms"]),
            "" if row["duration_ms"] is None else duration(row["duration_ms"]),
            Text("whole", style="green") if row["verified"] else Text("failed", style="red"),
        )
    return table

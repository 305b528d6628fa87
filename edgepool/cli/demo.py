"""`edgepool demo`: the rocket-motor workshop, whole, on this machine [S3.16]."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepool.cli.console import out, print_json, run_async
from edgepool.errors import ConfigError

if TYPE_CHECKING:
    from edgepool.workshop.demo import DemoOptions

DEFAULT_FOLDER = Path("build/demo")
TOPOLOGY_FOLDER = Path("build/topology")


def demo(
    hour_seconds: Annotated[
        float, typer.Option(help="How many seconds an hour of machining takes: 0.01 to 3600.")
    ] = 0.5,
    tasks: Annotated[int, typer.Option(min=0, help="Only the first so many tasks; 0 is all.")] = 0,
    one_process_per_machine: Annotated[
        bool, typer.Option("--one-process-per-machine", help="A process for each machine, not for each pool.")
    ] = False,
    no_cloud: Annotated[
        bool, typer.Option("--no-cloud", help="Leave out the second run, where data goes through a server.")
    ] = False,
    no_kill: Annotated[bool, typer.Option("--no-kill", help="Do not kill the coordinator half-way.")] = False,
    folder: Annotated[
        Path, typer.Option(help="Where the peers' folders and report.json go; made anew each time.")
    ] = DEFAULT_FOLDER,
    seed: Annotated[int, typer.Option(help="What the twin data is made from.")] = 1,
    keep_data: Annotated[
        bool, typer.Option("--keep-data", help="Keep the twin data too (2 GB), not only chains and reports.")
    ] = False,
    transport: Annotated[
        str, typer.Option(help="Over what links go: tls, or libp2p, which is an extra.")
    ] = "tls",
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines instead of the live screen.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Run a factory: 18 machines and a coordinator make 36 parts and hand their data on directly.

    All is real but the machining: processes, links, certificates, chains, files of up to 64 MB.
    Half-way the coordinator is killed, and the work goes on. At the end the same orders are run
    with all data through a server, and both are compared. It takes about three minutes. Exit code 1
    if anything did not go as it must.

    Example: edgepool demo --tasks 8 --no-cloud
    """
    from edgepool.workshop.demo import DemoOptions

    if transport not in ("tls", "libp2p"):
        raise ConfigError(f"links go over tls or libp2p, not '{transport}': name one of the two")
    options = DemoOptions(
        folder=folder,
        hour_seconds=hour_seconds,
        seed=seed,
        tasks=tasks,
        one_process_per_machine=one_process_per_machine,
        cloud=not no_cloud,
        kill=not no_kill,
        plain=plain,
        keep_data=keep_data,
        transport="libp2p" if transport == "libp2p" else "tls",
        quiet=json,
    )
    _run(options, json)


def run_workshop(file: Path, folder: Path | None, json: bool) -> None:
    """Run a workshop file as the demo, once, with nothing killed."""
    from edgepool.workshop.demo import DemoOptions

    folder = folder or TOPOLOGY_FOLDER
    _run(DemoOptions(workshop=file, folder=folder, cloud=False, kill=False, quiet=json), json)


def _run(options: DemoOptions, json: bool) -> None:
    from edgepool.workshop.demo import run_demo

    report = run_async(run_demo(options, out))
    if json:
        print_json(report)
    if not report["ok"]:
        raise typer.Exit(1)

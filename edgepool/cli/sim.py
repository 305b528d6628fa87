"""`edgepool sim`: whole pools under faults in virtual time, from a seed; replayed and shrunk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepool.cli.console import err, print_json, say

if TYPE_CHECKING:
    from edgepool.sim.plan import Plan
    from edgepool.sim.run import Result

app = typer.Typer(no_args_is_help=True, help="Rehearse faults on simulated pools, from a seed.")

Seed = Annotated[int, typer.Option(help="Everything follows from it.", min=0)]
Heights = Annotated[int, typer.Option(help="How many blocks the main chain gets.", min=1, max=100_000)]
Members = Annotated[int, typer.Option(help="How many members vote.", min=1, max=30)]
Faults = Annotated[str, typer.Option(help="all, none, or kinds such as loss,crash,byzantine.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]


@app.command()
def run(
    seed: Seed = 0,
    heights: Heights = 100,
    members: Members = 4,
    faults: Faults = "all",
    seeds: Annotated[int, typer.Option(help="Run this many seeds, from --seed on.", min=1)] = 1,
    jobs: Annotated[int, typer.Option(help="Processes that share the seeds.", min=1, max=64)] = 1,
    json: Json = False,
) -> None:
    """Run pools under faults in virtual time; the very code of a gateway, judged at every step.

    The same seed gives the same trace in any process. Exit code 1 if anything happened that must
    never happen; 'edgepool sim shrink' with the same seed then finds the smallest cause.

    Example: edgepool sim run --seed 7 --heights 100 --members 4 --faults all
    """
    from edgepool.sim.plan import parse_kinds

    kinds = parse_kinds(faults)
    began_s = time.monotonic()
    results = []
    for result in _results(range(seed, seed + seeds), heights, members, kinds, jobs):
        results.append(result)
        if result.violations and not json:
            say(f"seed {result.seed}: {result.violations[0]}", "bold red")
        elif err.is_terminal:
            err.print(f"\r{len(results)} of {seeds} seeds", end="")
    report = _summary(results, faults, time.monotonic() - began_s)
    if json:
        print_json(report)
    else:
        _print(report)
    if any(result.violations for result in results):
        raise typer.Exit(1)


@app.command()
def shrink(
    seed: Seed = 0,
    heights: Heights = 100,
    members: Members = 4,
    faults: Faults = "all",
    plan: Annotated[
        Path | None, typer.Option(help="A plan in a JSON file, instead of that of the seed.")
    ] = None,
    most_runs: Annotated[int, typer.Option(help="Stop looking after as many runs.", min=1)] = 400,
) -> None:
    """Reduce a failing run to a smallest plan of faults, and print it as JSON for 'sim replay'.

    Exit code 1 if the plan fails (as it should here), 0 if there is nothing to shrink.
    """
    import msgspec

    from edgepool.sim.shrink import shrink as shrink_plan

    found = shrink_plan(_plan(plan, seed, heights, members, faults), most_runs)
    if found is None:
        say("nothing to shrink: no violation in this run")
        return
    err.print(found.violation, soft_wrap=True)
    err.print(f"{found.faults_before} faults became {len(found.plan.faults)} in {found.runs} runs")
    say(msgspec.json.encode(found.plan).decode())
    raise typer.Exit(1)


@app.command()
def replay(
    plan: Annotated[Path, typer.Argument(help="A plan as 'sim shrink' or 'sim plan' prints it.")],
    json: Json = False,
) -> None:
    """Run a plan of faults from a JSON file; exit code 1 if it violates something."""
    from edgepool.sim.plan import load_plan
    from edgepool.sim.run import run_plan

    began_s = time.monotonic()
    result = run_plan(load_plan(plan))
    report = _summary([result], "plan", time.monotonic() - began_s)
    if json:
        print_json(report)
    else:
        for violation in result.violations:
            say(violation, "bold red")
        _print(report)
    if result.violations:
        raise typer.Exit(1)


@app.command("plan")
def show_plan(seed: Seed = 0, heights: Heights = 100, members: Members = 4, faults: Faults = "all") -> None:
    """Print the plan of faults that a seed stands for, as JSON."""
    import msgspec

    say(msgspec.json.encode(_plan(None, seed, heights, members, faults)).decode())


def _plan(path: Path | None, seed: int, heights: int, members: int, faults: str) -> Plan:
    from edgepool.sim.plan import load_plan, make_plan, parse_kinds

    return load_plan(path) if path is not None else make_plan(seed, heights, members, parse_kinds(faults))


def _results(seeds: range, heights: int, members: int, kinds: tuple[str, ...], jobs: int) -> Iterator[Result]:
    """Yield the results in the order of the seeds."""
    from functools import partial

    from edgepool.sim.run import run_seed

    one = partial(run_seed, heights=heights, members=members, faults=kinds)
    if jobs == 1 or len(seeds) == 1:
        yield from map(one, seeds)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(one, seeds, chunksize=4)


def _summary(results: list[Result], faults: str, seconds: float) -> dict[str, Any]:
    """Return what a run prints: totals, and for a single seed its trace."""
    from edgepool.sim.run import combined_trace, percentile

    injected: dict[str, int] = {}
    for result in results:
        for kind, count in result.faults.items():
            injected[kind] = injected.get(kind, 0) + count
    blocks = sum(result.blocks for result in results)
    heals_ms = [ms for result in results for ms in result.heals_ms]
    return {
        "seed": results[0].seed,
        "seeds": len(results),
        "heights": results[0].heights,
        "members": results[0].members,
        "asked": faults,
        "faults": dict(sorted(injected.items())),
        "violations": sum(len(result.violations) for result in results),
        "failed": {str(r.seed): r.violations[0] for r in results if r.violations},
        "trace": combined_trace(results),
        "blocks": blocks,
        "virtual_ms": sum(result.virtual_ms for result in results),
        "heals": len(heals_ms),
        "heal_p99_ms": percentile(heals_ms, 99),
        "heal_max_ms": max(heals_ms, default=0),
        "heal_rounds": max(result.heal_rounds for result in results),
        "blocks_per_s": round(blocks / max(seconds, 1e-9)),
        "seconds": round(seconds, 2),
    }


def _print(report: dict[str, Any]) -> None:
    for name, value in report.items():
        if name == "failed":
            continue
        text = ", ".join(f"{k} {n}" for k, n in value.items()) or "none" if isinstance(value, dict) else value
        say(f"{name:<13} {text}", "bold red" if name == "violations" and value else "")

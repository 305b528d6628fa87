"""`edgepool sim`: whole pools under faults in virtual time, from a seed; replayed and shrunk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from edgepool.cli.console import err, print_json, say

if TYPE_CHECKING:
    from edgepool.rehearsal.run import StackResult
    from edgepool.sim.plan import Plan
    from edgepool.sim.run import Result

_R = TypeVar("_R", "Result", "StackResult")

app = typer.Typer(no_args_is_help=True, help="Rehearse faults on simulated pools, from a seed.")

Seed = Annotated[int, typer.Option(help="Everything follows from it.", min=0)]
Heights = Annotated[int, typer.Option(help="How many blocks the main chain gets.", min=1, max=100_000)]
Members = Annotated[int, typer.Option(help="How many members vote.", min=1, max=30)]
Pools = Annotated[
    str, typer.Option("--members", help="How many members vote at first; 4-10: each of these in turn.")
]
Faults = Annotated[str, typer.Option(help="all, none, or kinds such as loss,crash,byzantine.")]
Seeds = Annotated[int, typer.Option(help="Run this many seeds, from --seed on.", min=1)]
Jobs = Annotated[int, typer.Option(help="Processes that share the seeds.", min=1, max=64)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
TOLD_EVERY_S = 30
"""How often it is told how far a long run is, where nobody watches."""
HASH_SEEDS = ("1", "2")
"""What Python's hashes begin with in processes whose traces are compared."""


@app.command()
def run(
    seed: Seed = 0,
    heights: Heights = 100,
    members: Pools = "4",
    faults: Faults = "all",
    seeds: Seeds = 1,
    jobs: Jobs = 1,
    twice: Annotated[
        bool, typer.Option(help="Run each seed in two processes, and compare all that happened.")
    ] = False,
    json: Json = False,
) -> None:
    """Run pools under faults in virtual time; the very code of a gateway, judged at every step.

    Members come, go and lie; history is forgotten. The same seed gives the same trace in any process. Exit
    code 1 if anything happened that must never happen; 'edgepool sim shrink' then finds the smallest cause.

    Example: edgepool sim run --seeds 1000 --heights 100 --members 4-10 --jobs 2
    """
    from edgepool.sim.plan import parse_kinds, parse_members

    one = partial(_run_one, heights=heights, members=parse_members(members), faults=parse_kinds(faults))
    wanted = range(seed, seed + seeds)
    began_s = time.monotonic()
    if not twice:
        report = _summary(_run_all(one, wanted, jobs, json), faults, time.monotonic() - began_s)
    else:
        first, second = (_run_all(one, wanted, jobs, json, hash_seed) for hash_seed in HASH_SEEDS)
        report = _summary(first, faults, time.monotonic() - began_s)
        differing = [a.seed for a, b in zip(first, second, strict=True) if a.trace != b.trace]
        report["differing"] = len(differing)
        report["violations"] += len(differing)
        report["failed"] |= {str(one): "order: another trace in another process" for one in differing}
    _finish(report, json)
    if report["failed"] and not json:
        _tell_how_to_replay(report, parse_members(members))
    if report["violations"]:
        raise typer.Exit(1)


def _run_one(seed: int, heights: int, members: range, faults: Sequence[str]) -> Result:
    """Run one seed of many; pools of all sizes in turn."""
    from edgepool.sim.run import run_seed

    return run_seed(seed, heights, members[seed % len(members)], faults)


def _tell_how_to_replay(report: dict[str, Any], members: range) -> None:
    """Say how the first failing seed is run again, and made smaller."""
    seed = next((int(one) for one in report["failed"] if one.isdecimal()), None)
    if seed is not None:
        size, faults = members[seed % len(members)], report["asked"]
        for command in ("run", "shrink"):
            options = f"--seed {seed} --heights {report['heights']} --members {size} --faults {faults}"
            say(f"edgepool sim {command} {options}")


@app.command()
def stack(
    seed: Seed = 0,
    blocks: Annotated[
        int, typer.Option(help="How many blocks the main chain gets.", min=1, max=100_000)
    ] = 50,
    members: Members = 4,
    seeds: Seeds = 1,
    jobs: Jobs = 1,
    json: Json = False,
) -> None:
    """Run whole peers, folders and all, in virtual time: lost links, power cuts, full disks, wrong clocks.

    Only wire, disk and clock are rehearsed: all else is what a gateway runs. The same seed gives the
    same trace in any process. Exit code 1 if anything happened that must never happen.

    Example: edgepool sim stack --seed 7 --blocks 50 --members 4
    """
    from edgepool.rehearsal.run import run_stack_seed

    one = partial(run_stack_seed, blocks=blocks, members=members)
    began_s = time.monotonic()
    results = _run_all(one, range(seed, seed + seeds), jobs, json)
    report = _stack_summary(results, blocks, time.monotonic() - began_s)
    _finish(report, json)
    if report["violations"]:
        raise typer.Exit(1)


@app.command()
def shrink(
    seed: Seed = 0,
    heights: Heights = 100,
    members: Pools = "4",
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
    if not json:
        for violation in result.violations:
            say(violation, "bold red")
    report = _summary([result], "plan", time.monotonic() - began_s)
    _finish(report, json)
    if report["violations"]:
        raise typer.Exit(1)


@app.command("plan")
def show_plan(seed: Seed = 0, heights: Heights = 100, members: Pools = "4", faults: Faults = "all") -> None:
    """Print the plan of faults that a seed stands for, as JSON."""
    import msgspec

    say(msgspec.json.encode(_plan(None, seed, heights, members, faults)).decode())


def _plan(path: Path | None, seed: int, heights: int, members: str, faults: str) -> Plan:
    from edgepool.sim.plan import load_plan, make_plan, parse_kinds, parse_members

    if path is not None:
        return load_plan(path)
    sizes = parse_members(members)
    return make_plan(seed, heights, sizes[seed % len(sizes)], parse_kinds(faults))


def _run_all(one: Callable[[int], _R], seeds: range, jobs: int, json: bool, hash_seed: str = "") -> list[_R]:
    """Run all seeds; tell of violations, or of how far it is, unless JSON is wanted."""
    results: list[_R] = []
    told_s = time.monotonic()
    for result in _results(one, seeds, jobs, hash_seed):
        results.append(result)
        progress = f"{len(results)} of {len(seeds)} seeds"
        if result.violations and not json:
            say(f"seed {result.seed}: {result.violations[0]}", "bold red")
        elif err.is_terminal:
            err.print(f"\r{progress}", end="")
        elif not json and time.monotonic() - told_s > TOLD_EVERY_S:
            told_s = time.monotonic()
            say(progress)
    return results


def _results(one: Callable[[int], _R], seeds: range, jobs: int, hash_seed: str) -> Iterator[_R]:
    """Yield the results in the order of the seeds; with `hash_seed` always in processes of their own."""
    if not hash_seed and (jobs == 1 or len(seeds) == 1):
        yield from map(one, seeds)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with _hash_seed(hash_seed), ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(one, seeds, chunksize=4)


@contextmanager
def _hash_seed(value: str) -> Iterator[None]:
    """Let processes that are started meanwhile hash strings in another way."""
    before = os.environ.get("PYTHONHASHSEED")
    if value:
        os.environ["PYTHONHASHSEED"] = value
    try:
        yield
    finally:
        if value and before is None:
            del os.environ["PYTHONHASHSEED"]
        elif before is not None:
            os.environ["PYTHONHASHSEED"] = before


def _summary(results: list[Result], faults: str, seconds: float) -> dict[str, Any]:
    """Return what a run prints: totals, and for a single seed its trace."""
    from edgepool.sim.run import combined_trace, percentile, slow_healing

    blocks = sum(result.blocks for result in results)
    heals_ms = [ms for result in results for ms in result.heals_ms]
    failed = {str(r.seed): r.violations[0] for r in results if r.violations}
    slow = slow_healing(heals_ms)
    if slow:
        failed["all"] = slow
    sizes = dict.fromkeys(str(result.members) for result in results)
    return {
        "seed": results[0].seed,
        "seeds": len(results),
        "heights": results[0].heights,
        "members": results[0].members if len(sizes) == 1 else ", ".join(sizes),
        "asked": faults,
        "faults": _totals([result.faults for result in results]),
        "happened": _totals([result.happened for result in results]),
        "violations": sum(len(result.violations) for result in results) + bool(slow),
        "failed": failed,
        "trace": combined_trace([result.trace for result in results]),
        "blocks": blocks,
        "virtual_ms": sum(result.virtual_ms for result in results),
        "heals": len(heals_ms),
        "heal_p99_ms": percentile(heals_ms, 99),
        "heal_max_ms": max(heals_ms, default=0),
        "heal_rounds": max(result.heal_rounds for result in results),
        "blocks_per_s": round(blocks / max(seconds, 1e-9)),
        "seconds": round(seconds, 2),
    }


def _stack_summary(results: list[StackResult], blocks: int, seconds: float) -> dict[str, Any]:
    """Return what a rehearsal prints; `lives` counts the starts of peers, `promises` records returned."""
    from edgepool.sim.run import combined_trace, percentile

    done = sum(result.blocks for result in results)
    heals_ms = [ms for result in results for ms in result.heals_ms]
    return {
        "seed": results[0].seed,
        "seeds": len(results),
        "heights": blocks,
        "members": results[0].members,
        "faults": _totals([result.faults for result in results]),
        "violations": sum(len(result.violations) for result in results),
        "failed": {str(r.seed): r.violations[0] for r in results if r.violations},
        "trace": combined_trace([result.trace for result in results]),
        "blocks": done,
        "lives": sum(result.lives for result in results),
        "promises": sum(result.promises for result in results),
        "keys_changed": sum(result.keys_changed for result in results),
        "virtual_ms": sum(result.virtual_ms for result in results),
        "heals": len(heals_ms),
        "heal_p99_ms": percentile(heals_ms, 99),
        "heal_max_ms": max(heals_ms, default=0),
        "heal_rounds": max(result.heal_rounds for result in results),
        "blocks_per_s": round(done / max(seconds, 1e-9)),
        "seconds": round(seconds, 2),
    }


def _totals(counts: list[dict[str, int]]) -> dict[str, int]:
    """Return the sums by name."""
    totals: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            totals[name] = totals.get(name, 0) + count
    return dict(sorted(totals.items()))


def _finish(report: dict[str, Any], json: bool) -> None:
    """Print a report."""
    if json:
        print_json(report)
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    for name, value in report.items():
        if name == "failed":
            continue
        text = ", ".join(f"{k} {n}" for k, n in value.items()) or "none" if isinstance(value, dict) else value
        say(f"{name:<13} {text}", "bold red" if name == "violations" and value else "")

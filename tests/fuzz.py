"""Fuzzing of everything that comes from outside: `make fuzz`, or `python tests/fuzz.py --help`.

Decoders get mutated frames of every kind and may raise DecodeError only. One execution in
`--node-share` goes through whole nodes instead, as a mutated or a hostile, well-signed message, and
there nothing at all may be raised (fuzz_cell.py says what else is checked); as many go through proof
files, states and stored folders (fuzz_files.py), and to the doors (fuzz_door.py). The same seed,
executions and processes make the same run, which `trace` shows.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import multiprocessing
import resource
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from random import Random

from fuzz_captured import Puppeteer
from fuzz_cell import Cell, Manner
from fuzz_corpus import DEEDS, corpus, work
from fuzz_door import Doors
from fuzz_files import Folders, Proofs, States
from fuzz_hostile import Hostile
from fuzz_kinds import BODIES, MESSAGES, kinds_in, missing
from fuzz_mutation import Seed, mutate_bytes, mutate_value
from fuzz_world import COORDINATOR, GENESES, HONEST, HOSTILE, LIAR, small_world

from edgepool.errors import DecodeError
from edgepool.model.codec import decode, encode
from edgepool.model.message import Message, decode_message

MANNERS = (
    Manner("calm", forgiving=True, manual=True, writes=False),
    Manner("long", forgiving=True, manual=True, writes=True, life=6_000),
    Manner("changing", forgiving=False, manual=False, writes=True, life=2_000),
    Manner("captured", forgiving=True, manual=True, writes=True, captured="small", life=1_000),
    Manner("captured, large", forgiving=True, manual=True, writes=True, captured="large", life=400),
)
"""How cells live, one for each manner at a time; the first lives as long as the run."""
PROVED_EVERY = 500
"""After how many injections a cell must show that its pools still live."""
ERRORS_KEPT = 5
MAX_GROWTH_MB = 10.0
_STEP = 2_000


@dataclass(frozen=True)
class Job:
    """One process' part of a run."""

    seed: int
    worker: int
    executions: int
    node_share: int


@dataclass
class Outcome:
    """What one process found. `nodes` of the executions went through a node, `files` through
    files, `doors` to doors.

    `kinds` counts the messages, and the bodies of records in them, that have reached nodes.
    """

    executions: int = 0
    accepted: int = 0
    nodes: int = 0
    files: int = 0
    doors: int = 0
    blames: int = 0
    adopted: int = 0
    blocks: int = 0
    changes: int = 0
    trace: int = 0
    growth_mb: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


class Stage:
    """A cell with those who are hostile to it."""

    def __init__(self, rng: Random, manner: Manner) -> None:
        self.cell = Cell(rng, manner)
        self.hostile = Hostile(rng, self.cell)
        self.puppeteer = Puppeteer(rng, self.cell) if manner.captured else None
        self.injections = 0


class Fuzzer:
    """Runs one job, inside `small_world`. `say` is told how many executions have been done."""

    def __init__(self, job: Job, say: Callable[[int], None] = lambda done: None) -> None:
        self.outcome = Outcome()
        self._job = job
        self._say = say
        self._rng = Random(f"{job.seed}/{job.worker}")
        self._corpus = corpus(self._rng)
        self._stages = [Stage(self._rng, manner) for manner in MANNERS]
        self._proofs, self._states = Proofs(self._rng), States(self._rng)
        self._folders, self._doors = Folders(self._rng), Doors(self._rng)

    def run(self) -> Outcome:
        """Do all executions; give up early if errors abound."""
        try:
            self._run()
        finally:
            self._folders.close()
            self._doors.close()
        for stage in self._stages:
            self._count(stage)
        return self.outcome

    def _run(self) -> None:
        job, outcome = self._job, self.outcome
        warm_at, warm_mb = max(1, job.executions // 5), 0.0
        while outcome.executions < job.executions and len(outcome.errors) < ERRORS_KEPT:
            if warm_mb == 0.0 and outcome.executions >= warm_at:
                warm_mb = resident_mb()
            for _ in range(min(_STEP, job.executions - outcome.executions)):
                dice = self._rng.random() * job.node_share
                if dice < 1:
                    self._through_node()
                elif dice < 2:
                    self._through_files(dice - 1)
                elif dice < 3:
                    self._at_a_door()
                else:
                    self._through_decoder()
                outcome.executions += 1
                if len(outcome.errors) >= ERRORS_KEPT:
                    break
            self._say(outcome.executions)
        outcome.growth_mb = resident_mb() - (warm_mb or resident_mb())

    def _through_decoder(self) -> None:
        rng, outcome = self._rng, self.outcome
        kind, seeds = self._corpus[int(rng.random() * len(self._corpus))]
        seed, other = seeds[int(rng.random() * len(seeds))], seeds[int(rng.random() * len(seeds))]
        frame = (mutate_bytes if rng.random() < 0.6 else mutate_value)(rng, seed, other)
        outcome.trace = zlib.crc32(frame, outcome.trace)
        try:
            decode(kind, frame)
            outcome.accepted += 1
        except DecodeError:
            pass
        except Exception:
            self._unhandled(f"decoding {getattr(kind, '__name__', kind)}", frame)

    def _through_files(self, dice: float) -> None:
        outcome = self.outcome
        outcome.files += 1
        target = self._folders if dice < 0.05 else self._states if dice < 0.5 else self._proofs
        try:
            outcome.trace = zlib.crc32(target.run(), outcome.trace)
        except Exception:
            self._unhandled(type(target).__name__.lower(), b"")

    def _at_a_door(self) -> None:
        outcome = self.outcome
        outcome.doors += 1
        try:
            outcome.trace = zlib.crc32(self._doors.run(), outcome.trace)
        except Exception:
            self._unhandled("a door", b"")

    def _through_node(self) -> None:
        rng, outcome = self._rng, self.outcome
        place = outcome.nodes % len(self._stages)
        stage = self._stages[place]
        cell = stage.cell
        outcome.nodes += 1
        stage.injections += 1
        frame = b""
        try:
            frame, address = self._hostile_frame(stage)
            outcome.trace = zlib.crc32(frame, outcome.trace)
            message: Message = decode_message(frame)
            outcome.accepted += 1
            outcome.kinds.update(kinds_in(message))
            sender = (LIAR.peer, LIAR.peer, COORDINATOR.peer, HOSTILE[2])[int(rng.random() * 4)]
            receiver = HONEST[int(rng.random() * len(HONEST))]
            cell.inject(*(address or (sender, receiver)), message)
            self._pass(stage)
            if self._worn(stage):
                self._renew(place)
        except DecodeError:
            if not isinstance(frame, bytes) or _decodes(frame):
                self._unhandled(f"a node of the cell '{cell.manner.name}'", frame)
        except Exception:
            self._unhandled(f"a node of the cell '{cell.manner.name}'", frame)
            self._renew(place)

    def _hostile_frame(self, stage: Stage) -> tuple[bytes, tuple[str, str] | None]:
        """Return something made up, something heard, or that with odd values; and who says it to whom."""
        rng, heard, address = self._rng, stage.cell.heard, None
        if stage.puppeteer is not None and rng.random() < 0.6:
            frame = encode(stage.puppeteer.next())
            address = stage.puppeteer.address
            if rng.random() < 0.8:
                return frame, address
        elif not heard or rng.random() < 0.6:
            frame = encode(stage.hostile.next())
            address = stage.hostile.address
        else:
            frame = heard[int(rng.random() * len(heard))]
        if rng.random() < 0.6 or len(frame) > 20_000:
            return frame, address
        seed = Seed(frame)
        return mutate_value(rng, seed, seed), address

    def _pass(self, stage: Stage) -> None:
        """Let time pass, and now and then something happen that is nobody's fault."""
        rng, cell, manner = self._rng, stage.cell, stage.cell.manner
        wait_ms = stage.puppeteer.wait_ms if stage.puppeteer is not None else 0
        cell.pass_time(wait_ms or (60, 60, 60, 1_000)[int(rng.random() * 4)])
        dice = rng.random()
        if dice < 0.001 and manner.writes:
            self._absence(stage)
        elif dice < 0.002:
            cell.restart(int(rng.random() * len(HONEST)))
        elif dice < 0.01:
            cell.flap(HOSTILE[int(rng.random() * len(HOSTILE))], HONEST[int(rng.random() * len(HONEST))])
        elif dice < 0.02:
            cell.pass_time(12_000)
        elif dice < 0.04:
            cell.away = None if cell.away else HONEST[int(rng.random() * len(HONEST))]
        elif dice < (0.3 if manner.writes else 0.1):
            deeds = DEEDS if not manner.manual else DEEDS[:5] if manner.writes else ("find",)
            work(cell, rng, deeds[int(rng.random() * len(deeds))])
        if stage.injections % PROVED_EVERY == 0:
            cell.prove_alive()

    def _absence(self, stage: Stage) -> None:
        """Let an honest member miss so many blocks that it needs a snapshot; the hostile help the others."""
        rng, cell = self._rng, stage.cell
        place = int(rng.random() * len(HONEST))
        cell.away, others = HONEST[place], HONEST[:place] + HONEST[place + 1 :]
        for turn in range(80):
            work(cell, rng, "demand")
            chain = cell.nodes[others[0]].chains[GENESES[turn % 2].chain]
            for peer in others:
                cell.inject(LIAR.peer, peer, stage.hostile.fair_votes(chain))
            cell.pass_time(1_000)
        cell.away = None

    def _worn(self, stage: Stage) -> bool:
        """Say whether a cell has lived long enough: longer if its pools are what they were."""
        manner = stage.cell.manner
        return 0 < manner.life < stage.injections or (
            manner.writes and stage.cell.changed and self._rng.random() < 0.01
        )

    def _renew(self, place: int) -> None:
        self._count(self._stages[place])
        self._stages[place] = Stage(self._rng, MANNERS[place])

    def _count(self, stage: Stage) -> None:
        outcome, cell = self.outcome, stage.cell
        outcome.blames += cell.blames
        outcome.adopted += cell.adopted
        chains = [chain for node in cell.nodes.values() for chain in node.chains.values()]
        outcome.blocks += cell.committed
        outcome.changes += sum(len(chain.handovers) for chain in chains)

    def _unhandled(self, where: str, frame: bytes) -> None:
        job = self._job
        self.outcome.errors.append(
            f"unhandled in {where}: seed {job.seed}, process {job.worker}, "
            f"execution {self.outcome.executions}\n"
            f"{traceback.format_exc(limit=-6)}bytes: {frame.hex()}"
        )


def _decodes(frame: bytes) -> bool:
    try:
        decode_message(frame)
    except DecodeError:
        return False
    return True


def resident_mb() -> float:
    """Return this process' resident memory in MB (where there is no /proc, the most it ever had).

    What was freed is given back first, for it is not growth.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# --- the whole run --------------------------------------------------------------------------------


def work_through(job: Job, done: Synchronized[int], results: multiprocessing.Queue[Outcome]) -> None:
    """Run `job` in a process of its own."""

    def say(count: int) -> None:
        done.value = count

    with small_world():
        results.put(Fuzzer(job, say).run())


def run(seed: int, executions: int, processes: int, node_share: int) -> list[Outcome]:
    """Fuzz in `processes` processes with a progress line; return what each found."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[Outcome] = context.Queue()
    counts = [context.Value("q", 0) for _ in range(processes)]
    jobs = [Job(seed, worker, executions // processes, node_share) for worker in range(processes)]
    workers = [
        context.Process(target=work_through, args=(job, count, results), daemon=True)
        for job, count in zip(jobs, counts, strict=True)
    ]
    for worker in workers:
        worker.start()
    outcomes: list[Outcome] = []
    began_s = time.monotonic()
    while len(outcomes) < processes:
        try:
            outcomes.append(results.get(timeout=2))
        except Exception as error:
            if type(error).__name__ != "Empty":
                raise
        if any(worker.exitcode not in (None, 0) for worker in workers):
            raise SystemExit("a fuzzing process died: run again with --processes 1 to see why")
        done, spent_s = sum(count.value for count in counts), time.monotonic() - began_s
        line = f"{done:>12,} of {executions:,} executions, {done / spent_s:>9,.0f}/s"
        print(line, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
    return outcomes


def main() -> int:
    """Fuzz as the command line says; 1 if anything was found."""
    parser = argparse.ArgumentParser(description="Fuzz all decoders and whole nodes with mutated messages.")
    parser.add_argument("--executions", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--node-share", type=int, default=50, help="one execution in so many is a node's")
    given = parser.parse_args()
    if min(given.executions, given.processes, given.node_share) < 1:
        parser.error("executions, processes and node share must be at least 1")
    began_s = time.monotonic()
    outcomes = run(given.seed, given.executions, given.processes, given.node_share)
    spent_s = time.monotonic() - began_s
    errors = [error for outcome in outcomes for error in outcome.errors]
    unseen = missing(sum((outcome.kinds for outcome in outcomes), Counter()))
    growth_mb = max(outcome.growth_mb for outcome in outcomes)
    done = sum(outcome.executions for outcome in outcomes)
    trace = zlib.crc32(",".join(sorted(f"{outcome.trace:08x}" for outcome in outcomes)).encode())
    print(f"executions        {done:>12,}")
    print(f"per second        {done / spent_s:>12,.0f}")
    print(f"through a node    {sum(outcome.nodes for outcome in outcomes):>12,}")
    print(f"through files     {sum(outcome.files for outcome in outcomes):>12,}")
    print(f"to the doors      {sum(outcome.doors for outcome in outcomes):>12,}")
    print(f"decoded           {sum(outcome.accepted for outcome in outcomes):>12,}")
    print(f"blocks committed  {sum(outcome.blocks for outcome in outcomes):>12,}")
    print(f"rosters changed   {sum(outcome.changes for outcome in outcomes):>12,}")
    print(f"states taken over {sum(outcome.adopted for outcome in outcomes):>12,}")
    print(f"faults told       {sum(outcome.blames for outcome in outcomes):>12,}")
    print(
        f"kinds seen        {len(MESSAGES) + len(BODIES) - len(unseen):>12,} of {len(MESSAGES) + len(BODIES)}"
    )
    print(f"memory growth     {growth_mb:>12.1f} MB")
    print(f"unhandled errors  {len(errors):>12,}")
    print(f"seed and trace    {given.seed:>3} {trace:08x}")
    for error in errors:
        print(f"\n{error}")
    if unseen:
        print(f"\nno node has met {', '.join(unseen)}: the run was too short, or the hostile never say it")
    if growth_mb >= MAX_GROWTH_MB:
        print(f"\nmemory grew by {growth_mb:.1f} MB after the first fifth, {MAX_GROWTH_MB:.0f} are allowed")
    return 1 if errors or unseen or growth_mb >= MAX_GROWTH_MB else 0


if __name__ == "__main__":
    sys.exit(main())

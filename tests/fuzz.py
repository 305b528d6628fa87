"""Fuzzing of everything that comes from outside: `make fuzz`, or `python tests/fuzz.py --help`.

Decoders get mutated frames of every kind and may raise DecodeError only. One execution in
`--node-share` goes through whole nodes instead, as a mutated or a hostile, well-signed message, and
there nothing at all may be raised (fuzz_cell.py says what else is checked). The same seed, executions
and processes make the same run, which `trace` shows.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from random import Random
from typing import Any

from fuzz_cell import (
    COORDINATOR,
    EPOCH_MS,
    GENESES,
    HONEST,
    HOSTILE,
    KEYS,
    LIAR,
    MEMBERS,
    NETWORK,
    ROOT,
    Cell,
)
from fuzz_hostile import Hostile
from fuzz_mutation import Seed, mutate_bytes, mutate_value

from edgepool.core.consensus.ballot import SavedBallot
from edgepool.core.machine import ConfirmTransfer, FindData, SubmitRecord, Submitted
from edgepool.errors import DecodeError
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import decode, encode
from edgepool.model.message import (
    Blocks,
    Message,
    TransferAccept,
    TransferRefusal,
    TransferRequest,
    decode_message,
)
from edgepool.model.pool import Genesis
from edgepool.model.record import DataDemand, DataOffer, SignedRecord, sign_record
from edgepool.model.twin import Manifest

ANSWER: Any = TransferAccept | TransferRefusal
BUSY_INJECTIONS = 4_000
"""How long a pool lives in which records are written; the other pool lives as long as the run."""
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
    """What one process found. `nodes` of the executions went through a node."""

    executions: int = 0
    accepted: int = 0
    nodes: int = 0
    blames: int = 0
    trace: int = 0
    growth_mb: float = 0.0
    errors: list[str] = field(default_factory=list)


# --- valid frames of every kind -------------------------------------------------------------------


def honest_frames(rng: Random) -> list[bytes]:
    """Return what a calm pool says while it writes records, finds data and confirms a transfer."""
    cell = Cell(rng)
    frames: list[bytes] = []
    for turn in range(12):
        work(cell, rng, turn)
        cell.pass_time(300)
        frames += cell.heard
        cell.heard.clear()
    return frames


def work(cell: Cell, rng: Random, turn: int) -> None:
    """Let an honest member do something that members do."""
    place = turn % len(HONEST)
    node, signer = cell.nodes[HONEST[place]], MEMBERS[place]
    chain = GENESES[turn // 3 % 2].chain
    match turn % 4:
        case 0:
            body = DataOffer(KEYS[0], 1, ROOT, 1000, "/ip4/10.0.0.1/tcp/4001", 96)
            record = sign_record(signer, NETWORK, chain, body, EPOCH_MS, turn)
            cell.step(node.peer, Submitted(turn + 1, SubmitRecord(record)))
        case 1:
            nonce = int(rng.random() * 2**53)
            record = sign_record(signer, NETWORK, chain, DataDemand(KEYS[0], 0, "", ""), EPOCH_MS, nonce)
            cell.step(node.peer, Submitted(turn + 1, SubmitRecord(record)))
        case 2:
            cell.step(node.peer, Submitted(turn + 1, FindData(KEYS[turn // 4 % 3], turn % 3, 4_000)))
        case _:
            holder = GENESES[0].invitation.members[int(rng.random() * 4)]
            until_ms = EPOCH_MS + cell.now_ms + 60_000
            cell.step(node.peer, Submitted(turn + 1, ConfirmTransfer(holder, KEYS[0], ROOT, until_ms)))
    cell.settle()


def corpus(rng: Random) -> list[tuple[Any, list[Seed]]]:
    """Return every kind that is decoded from a wire or a disk, with valid frames of it."""
    by_tag: dict[str, list[bytes]] = {}
    frames = honest_frames(rng)
    cell = Cell(rng)
    hostile = Hostile(rng, cell, writes=True)
    for turn in range(600):
        message = hostile.next()
        frames.append(encode(message))
        if turn % 20 == 0:
            work(cell, rng, turn // 20)
    for frame in frames:
        try:
            message = decode_message(frame)
        except DecodeError:
            continue
        kept = by_tag.setdefault(type(message).__name__, [])
        if len(kept) < 12 and len(frame) < 6_000:
            kept.append(frame)
    messages = [Seed(frame) for tag in sorted(by_tag) for frame in by_tag[tag]]
    blocks = [decode_message(frame) for frame in by_tag["Blocks"]]
    certified = [one for message in blocks if isinstance(message, Blocks) for one in message.blocks[:2]]
    records = [one for block in certified for one in block.block.records[:3]]
    manifest = Manifest(2_500_000, 1_048_576, (bytes(32), ROOT, bytes(32)))
    ballots = [
        chain.engine._ballot.save(peer, 2) for peer in HONEST for chain in cell.nodes[peer].chains.values()
    ]
    others: list[tuple[Any, list[Any]]] = [
        (CertifiedBlock, certified[:8]),
        (Genesis, list(GENESES)),
        (SignedRecord, records[:12]),
        (SavedBallot, ballots),
        (TransferRequest, [TransferRequest(records[0], first) for first in (0, 1, 65536)]),
        (ANSWER, [TransferAccept(manifest), TransferRefusal(""), TransferRefusal("does not hold this")]),
    ]
    seeds = [(kind, [Seed(encode(value)) for value in values]) for kind, values in others]
    # Messages come first and weigh most: they are what strangers can send.
    return [(Message, messages)] * 6 + seeds


# --- executions -------------------------------------------------------------------------------------


class Fuzzer:
    """Runs one job. `say` is told how many executions have been done."""

    def __init__(self, job: Job, say: Callable[[int], None] = lambda done: None) -> None:
        self.outcome = Outcome()
        self._job = job
        self._say = say
        self._rng = Random(f"{job.seed}/{job.worker}")
        self._corpus = corpus(self._rng)
        self._standing = Cell(self._rng)
        self._quiet = Hostile(self._rng, self._standing, writes=False)
        self._busy, self._writer, self._busy_since = self._new_busy()

    def run(self) -> Outcome:
        """Do all executions; give up early if errors abound."""
        job, outcome = self._job, self.outcome
        warm_at, warm_mb = max(1, job.executions // 5), 0.0
        while outcome.executions < job.executions and len(outcome.errors) < ERRORS_KEPT:
            if warm_mb == 0.0 and outcome.executions >= warm_at:
                warm_mb = resident_mb()
            for _ in range(min(_STEP, job.executions - outcome.executions)):
                if self._rng.random() * job.node_share < 1:
                    self._through_node()
                else:
                    self._through_decoder()
                outcome.executions += 1
            self._say(outcome.executions)
        outcome.growth_mb = resident_mb() - (warm_mb or resident_mb())
        return outcome

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

    def _through_node(self) -> None:
        rng, outcome = self._rng, self.outcome
        outcome.nodes += 1
        busy = outcome.nodes % 2 == 0
        cell, hostile = (self._busy, self._writer) if busy else (self._standing, self._quiet)
        frame = b""
        try:
            frame = self._hostile_frame(cell, hostile)
            outcome.trace = zlib.crc32(frame, outcome.trace)
            message: Message = decode_message(frame)
            outcome.accepted += 1
            sender = (LIAR.peer, LIAR.peer, COORDINATOR.peer, HOSTILE[2])[int(rng.random() * 4)]
            cell.inject(sender, HONEST[int(rng.random() * len(HONEST))], message)
            self._pass(cell, busy)
        except DecodeError:
            if not isinstance(frame, bytes) or _decodes(frame):
                self._unhandled("a node", frame)
        except Exception:
            self._unhandled("a node", frame)
            self._standing = Cell(rng)
            self._quiet = Hostile(rng, self._standing, writes=False)
            self._busy, self._writer, self._busy_since = self._new_busy()

    def _hostile_frame(self, cell: Cell, hostile: Hostile) -> bytes:
        """Return something made up, something heard, or one of both with odd values in it."""
        rng = self._rng
        heard = cell.heard
        if not heard or rng.random() < 0.6:
            frame = encode(hostile.next())
        else:
            frame = heard[int(rng.random() * len(heard))]
        if rng.random() < 0.6 or len(frame) > 20_000:
            return frame
        seed = Seed(frame)
        return mutate_value(rng, seed, seed)

    def _pass(self, cell: Cell, busy: bool) -> None:
        """Let time pass, and now and then something happen that is nobody's fault."""
        rng, outcome = self._rng, self.outcome
        cell.pass_time(60)
        dice = rng.random()
        if dice < 0.002:
            cell.restart(int(rng.random() * len(HONEST)))
        elif dice < 0.01:
            cell.flap(HOSTILE[int(rng.random() * len(HOSTILE))], HONEST[int(rng.random() * len(HONEST))])
        elif dice < 0.02:
            cell.pass_time(12_000)
        elif dice < 0.04:
            cell.away = None if cell.away else HONEST[int(rng.random() * len(HONEST))]
        elif dice < 0.1:
            work(cell, rng, int(rng.random() * 12) if busy else 2 + 4 * int(rng.random() * 3))
        if busy and outcome.nodes - self._busy_since > 2 * BUSY_INJECTIONS:
            outcome.blames += cell.blames
            self._busy, self._writer, self._busy_since = self._new_busy()

    def _new_busy(self) -> tuple[Cell, Hostile, int]:
        cell = Cell(self._rng)
        return cell, Hostile(self._rng, cell, writes=True), self.outcome.nodes

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
    parser.add_argument("--node-share", type=int, default=100, help="one execution in so many is a node's")
    given = parser.parse_args()
    if min(given.executions, given.processes, given.node_share) < 1:
        parser.error("executions, processes and node share must be at least 1")
    began_s = time.monotonic()
    outcomes = run(given.seed, given.executions, given.processes, given.node_share)
    spent_s = time.monotonic() - began_s
    errors = [error for outcome in outcomes for error in outcome.errors]
    growth_mb = max(outcome.growth_mb for outcome in outcomes)
    done = sum(outcome.executions for outcome in outcomes)
    trace = zlib.crc32(",".join(sorted(f"{outcome.trace:08x}" for outcome in outcomes)).encode())
    print(f"executions        {done:>12,}")
    print(f"per second        {done / spent_s:>12,.0f}")
    print(f"through a node    {sum(outcome.nodes for outcome in outcomes):>12,}")
    print(f"decoded           {sum(outcome.accepted for outcome in outcomes):>12,}")
    print(f"memory growth     {growth_mb:>12.1f} MB")
    print(f"unhandled errors  {len(errors):>12,}")
    print(f"seed and trace    {given.seed:>3} {trace:08x}")
    for error in errors:
        print(f"\n{error}")
    if growth_mb >= MAX_GROWTH_MB:
        print(f"\nmemory grew by {growth_mb:.1f} MB after the first fifth, {MAX_GROWTH_MB:.0f} are allowed")
    return 1 if errors or growth_mb >= MAX_GROWTH_MB else 0


if __name__ == "__main__":
    sys.exit(main())

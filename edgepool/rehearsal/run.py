"""Runs the plan of a seed on a stack from beginning to end, and says what came of it.

After each episode everything is mended, and the pool must go on: each member gets a record onto each chain,
all peers come to one height, what was promised is with everybody, and what was published is found. At the
end all peers close; then nothing may be left of them in the event loop, and the folders must hold up to a
full check.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from edgepool.errors import EdgepoolError
from edgepool.model.ids import ChainId
from edgepool.model.record import DataDemand
from edgepool.model.twin import DataKey
from edgepool.peer.verify import verify_chain
from edgepool.rehearsal.cast import CASTS
from edgepool.rehearsal.disk import RehearsedStore, open_files
from edgepool.rehearsal.faults import Faults
from edgepool.rehearsal.gateway import Gateway
from edgepool.rehearsal.network import SILENT_S
from edgepool.rehearsal.plan import KINDS, StackPlan, make_stack_plan
from edgepool.rehearsal.stack import Stack
from edgepool.rehearsal.virtualtime import START_S, Standstill, VirtualTimeLoop
from edgepool.sim.checkers import Violation
from edgepool.sim.memo import ideal_signatures
from edgepool.sim.run import HEAL_LIMIT_MS, HEAL_ROUNDS, MS_A_HEIGHT

ANSWER_LIMIT_S = 60.0
"""Within as much virtual time after healing, each owner has an answer (a peer gives up after 45 s)."""
LEAD_MS = 1.0
"""How long work for a disk waits at most until it begins."""
PROBE_RETRY_S = 1.0
LOOK_S = 0.01
"""How often it is looked whether something has come true."""
REST_S = 2 * SILENT_S
"""How long after the end the last links may take to fall silent."""


class StackResult(msgspec.Struct, frozen=True):
    """What a rehearsal came to. `faults` are those injected, by kind; `blocks` those of all its chains.

    `heals_ms` are its healings in virtual time; `promises` counts the records that owners were promised,
    `keys_changed` the gateways that go on under another key.
    """

    seed: int
    members: int
    faults: dict[str, int]
    violations: list[str]
    trace: str
    virtual_ms: int
    blocks: int
    lives: int
    promises: int
    keys_changed: int
    heals_ms: list[int]
    heal_rounds: int


def run_stack_seed(seed: int, blocks: int, members: int, faults: Sequence[str] = KINDS) -> StackResult:
    """Make the plan of `seed` and run it. `faults` are kinds of plan.KINDS."""
    return run_stack(make_stack_plan(seed, blocks, members, faults))


def run_stack(plan: StackPlan) -> StackResult:
    """Run `plan`; the first violation ends it and stands in the result."""
    with ideal_signatures(), _seeded_chance(plan.seed), _no_collection(), _folder() as folder:
        files = len(open_files())
        draw = Random(f"{plan.seed}/lead").random
        loop = VirtualTimeLoop(lambda: draw() * LEAD_MS / 1000)
        rehearsal = _Rehearsal(plan, loop, folder)
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(rehearsal.run())
        except Standstill as standstill:
            rehearsal.violations.append(f"liveness: {standstill}")
        left = len(open_files()) - files
        if left > 0 and not rehearsal.violations:
            rehearsal.violations.append(f"leaks: {left} files are still open after the end")
        return rehearsal.result()


class _Rehearsal:
    """One run of one plan."""

    def __init__(self, plan: StackPlan, loop: VirtualTimeLoop, folder: Path) -> None:
        self.violations: list[str] = []
        self._plan = plan
        self._loop = loop
        self._folder = folder
        self._stack: Stack | None = None
        self._injected: dict[str, int] = {}
        self._heals_ms: list[int] = []
        self._heal_rounds = 0
        self._random = Random(f"{plan.seed}/probe")

    def result(self) -> StackResult:
        """Return what came of it."""
        stack, plan = self._stack, self._plan
        assert stack is not None
        return StackResult(
            seed=plan.seed,
            members=plan.members,
            faults=dict(sorted(self._injected.items())),
            violations=self.violations,
            trace=stack.trace,
            virtual_ms=round((self._loop.time() - START_S) * 1000),
            blocks=sum(oracle.height for oracle in stack.judge.oracles.values()),
            lives=sum(gateway.life for gateway in stack.gateways),
            promises=stack.promises,
            keys_changed=stack.keys_changed,
            heals_ms=self._heals_ms,
            heal_rounds=self._heal_rounds,
        )

    async def run(self) -> None:
        """Run to the end, or to the first violation, and close everything."""
        stack = self._stack = Stack(self._plan, self._loop, self._folder)
        self._loop.set_exception_handler(lambda _, context: stack.found(_unhandled(context)))
        scenario = asyncio.create_task(self._scenario(stack), name="scenario")
        either: set[asyncio.Future[Any]] = {scenario, stack.violation}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        scenario.cancel()
        ended = (await asyncio.gather(scenario, return_exceptions=True))[0]
        await stack.close()
        try:
            if stack.violation.done():
                raise stack.violation.result()
            if isinstance(ended, BaseException):
                raise ended
            await asyncio.sleep(REST_S)
            self._check_leaks()
            self._check_folders(stack)
        except Violation as violation:
            self.violations.append(str(violation))
        except EdgepoolError as error:
            self.violations.append(f"order: {error}")

    async def _scenario(self, stack: Stack) -> None:
        faults = Faults(stack)
        self._injected = faults.injected
        await stack.form()
        start_s = self._loop.time()
        for fault in self._plan.faults:
            stack.work(True)
            await self._await_height(stack, start_s + fault.time_ms / 1000)
            if stack.enough.is_set():
                break
            if fault.kind == "heal":
                began_s = self._loop.time()
                await self._heal(stack, faults)
                stack.judge.forget_promises()
                start_s += self._loop.time() - began_s
            else:
                faults.inject(fault)
        stack.work(True)
        limit_s = MS_A_HEIGHT / 1000 * self._plan.blocks
        await self._await_height(stack, self._loop.time() + limit_s)
        if not stack.enough.is_set():
            raise Violation("liveness", f"not {self._plan.blocks} blocks after {limit_s:g} s without faults")
        await self._heal(stack, faults)

    async def _await_height(self, stack: Stack, time_s: float) -> None:
        """Wait for the wanted height, at most up to `time_s`."""
        try:
            async with asyncio.timeout_at(time_s):
                await stack.enough.wait()
        except TimeoutError:
            pass

    # --- healing --------------------------------------------------------------------------------

    async def _heal(self, stack: Stack, faults: Faults) -> None:
        stack.work(False)
        faults.heal()
        began_s = self._loop.time()
        places = {chain: _place(stack, chain) for chain in stack.chains}
        try:
            async with asyncio.timeout(HEAL_LIMIT_MS / 1000):
                probes = [(gateway, chain) for chain in stack.chains for gateway in stack.members]
                await asyncio.gather(*(self._probe(stack, gateway, chain) for gateway, chain in probes))
                await _until(lambda: not stack.changing(settled=False) and _level(stack))
        except TimeoutError:
            raise Violation("liveness", f"{HEAL_LIMIT_MS} ms after healing: {_stuck(stack)}") from None
        self._heals_ms.append(round((self._loop.time() - began_s) * 1000))
        self._check_rounds(stack, places)
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await _until(lambda: not stack.waiting() and not stack.changing() and _level(stack))
                await self._find_published(stack)
        except TimeoutError:
            waiting = ", ".join((*stack.waiting(), *stack.changing())) or "who asked for what was published"
            raise Violation("liveness", f"owners never get an answer: {waiting}") from None
        _check_revoked(stack)
        for gateway in stack.gateways:
            assert gateway.store is not None
            stack.judge.at_rest(gateway.id, gateway.store)

    async def _probe(self, stack: Stack, gateway: Gateway, chain: ChainId) -> None:
        """Have a member put a record on a chain."""
        while True:
            if gateway.peer is not None:
                body = DataDemand(DataKey("probe", "model"), 0, "", "")
                try:
                    await stack.submit(gateway, gateway.peer, body, chain)
                    return
                except EdgepoolError as refusal:
                    stack.refused(gateway, refusal)
            await asyncio.sleep(PROBE_RETRY_S)

    async def _find_published(self, stack: Stack) -> None:
        """What somebody has published is found by somebody else, and its holder answers."""
        if not stack.published:
            return
        publisher, published = self._random.choice(stack.published)
        others = [gateway for gateway in stack.gateways if gateway is not publisher]
        peer = self._random.choice(others or stack.gateways).peer
        assert peer is not None
        # What a holder whose link is just being made again does not answer, it answers a little later.
        while True:
            if any(offer.reachable for offer in await peer.request(published.key)):
                return
            await asyncio.sleep(PROBE_RETRY_S)

    def _check_rounds(self, stack: Stack, places: dict[ChainId, tuple[int, int]]) -> None:
        for chain, (height, round) in places.items():
            store = stack.gateways[0].store
            certified = store.block(chain, height) if store is not None else None
            if certified is None:
                raise Violation("liveness", f"height {height} was not decided by the probes")
            rounds = certified.certificate.round - round
            self._heal_rounds = max(self._heal_rounds, rounds)
            if rounds > HEAL_ROUNDS:
                raise Violation("liveness", f"height {height} took {rounds} rounds after healing")

    # --- the end --------------------------------------------------------------------------------

    def _check_leaks(self) -> None:
        current = asyncio.current_task()
        tasks = sorted(task.get_name() for task in asyncio.all_tasks() if task is not current)
        left = tasks + self._loop.pending()
        if left:
            raise Violation("leaks", f"after the end there is still {'; '.join(left)[:600]}")

    def _check_folders(self, stack: Stack) -> None:
        """All promises are on every disk, and one folder, whole, is checked as `chain verify` does."""
        for gateway in stack.gateways:
            store = RehearsedStore(gateway.disk, lambda _: None, lambda _: None)
            store.open()
            try:
                stack.judge.at_rest(gateway.id, store)
            finally:
                store.close()
        folder = self._random.choice(stack.gateways).folder
        for chain in stack.chains:
            verdict = verify_chain(folder, chain)
            if not verdict.verified:
                raise Violation("validity", f"a folder does not hold up to a check: {verdict.problem}")


def _check_revoked(stack: Stack) -> None:
    """See that no main chain has a word for keys of which the change is over."""
    for oracle in stack.judge.oracles.values():
        if oracle.genesis.invitation.kind == "fixed":
            for former, name in stack.formers.items():
                if former not in oracle.revoked:
                    raise Violation(
                        "trust", f"the former key of {name} is not revoked, and nobody will do it"
                    )


async def _until(true: Callable[[], bool]) -> None:
    """Look now and again, until it is true."""
    while True:
        if true():
            return
        await asyncio.sleep(LOOK_S)


def _level(stack: Stack) -> bool:
    """Say whether all peers stand at one height on each chain."""
    return all(len(set(_heights(stack, chain))) == 1 for chain in stack.chains)


def _heights(stack: Stack, chain: ChainId) -> list[int]:
    """Return how many blocks of `chain` each peer has on its disk; -1 for one that is down."""
    heights = []
    for gateway in stack.gateways:
        up = gateway.peer is not None and gateway.store is not None
        stored = gateway.store.open() if up and gateway.store is not None else ()
        heights.append(next((saved.height for saved in stored if saved.genesis.chain == chain), -1))
    return heights


def _place(stack: Stack, chain: ChainId) -> tuple[int, int]:
    """Return the height that is being decided, and the highest round that anybody is in there."""
    places = [(stack.judge.oracles[chain].height + 1, 0)]
    for gateway in stack.gateways:
        for one in gateway.peer.status().chains if gateway.peer is not None else ():
            if one.id == chain and one.voting:
                places.append((one.height + 1, one.round))
    return max(places)


def _stuck(stack: Stack) -> str:
    up = [gateway.name for gateway in stack.gateways if gateway.peer is not None]
    heights = [str(_heights(stack, chain)) for chain in stack.chains]
    changing = f"; keys change of {', '.join(stack.changing())}" if stack.changing() else ""
    return f"up are {', '.join(up) or 'none'}; heights {', '.join(heights)}{changing}"


def _unhandled(context: dict[str, Any]) -> Violation:
    """Return what the event loop has to complain of."""
    error = context.get("exception")
    return Violation("order", f"{context.get('message')}: {type(error).__name__}: {error}")


# --- the world outside of the loop ------------------------------------------------------------------


@contextmanager
def _seeded_chance(seed: int) -> Iterator[None]:
    """Make the two things deterministic that a peer asks of its machine: nonces, and how busy it is.

    The first nonces, those of pools, depend on the cast alone.
    """
    randbits, getloadavg = secrets.randbits, os.getloadavg
    draw = Random(f"{seed % CASTS}/nonces")
    _replace(draw.getrandbits, lambda: (0.0, 0.0, 0.0))
    try:
        yield
    finally:
        _replace(randbits, getloadavg)


def _replace(randbits: object, getloadavg: object) -> None:
    for module, name, function in (secrets, "randbits", randbits), (os, "getloadavg", getloadavg):
        setattr(module, name, function)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Leave garbage where it is: stacks are short, and full of cycles that live as long as they do."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
            gc.collect(1)


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder, in memory where there is such a thing, and take it away afterwards."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="edgepool-rehearsal-", dir=where) as folder:
        yield Path(folder)

"""Whole peers in virtual time: nothing goes wrong under faults, and what goes wrong is found.

The canaries break a rule in this process and for a while; a check that has never failed proves nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
from canaries import no_catch_up, swap, switched_on, votes_forgotten_at_restart
from msgspec.structs import replace
from typer.testing import CliRunner

from edgepool.cli.main import app
from edgepool.config import Limits
from edgepool.core.chain import Chain
from edgepool.core.machine import Effect, Persist, RecordRef
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member
from edgepool.model.record import DataDemand, DataOffer
from edgepool.model.twin import DataKey
from edgepool.peer.rotation import KeyRotation
from edgepool.rehearsal.disk import Disk, PowerCut
from edgepool.rehearsal.network import SILENT_S, RehearsedNetwork, RehearsedTransport
from edgepool.rehearsal.plan import KINDS, StackPlan, make_stack_plan
from edgepool.rehearsal.run import run_stack, run_stack_seed
from edgepool.rehearsal.stack import Stack
from edgepool.rehearsal.virtualtime import Standstill, VirtualClock, VirtualTimeLoop
from edgepool.runtime.loop import NodeLoop, join_records
from edgepool.runtime.ports import PeerIdentity
from edgepool.sim.memo import ideal_signatures
from edgepool.sim.plan import Fault
from edgepool.sim.run import combined_trace
from edgepool.storage.store import FolderStore
from edgepool.transport import identity

# --- nothing goes wrong ---------------------------------------------------------------------------

RUNS = [(seed, 50, 4) for seed in range(20)] + [
    (seed, 20, members) for members in (1, 5, 7) for seed in (0, 1)
]


@pytest.mark.parametrize(("seed", "blocks", "members"), RUNS)
def test_nothing_that_must_never_happen_happens(seed: int, blocks: int, members: int) -> None:
    result = run_stack_seed(seed, blocks, members)
    assert result.violations == []
    assert result.blocks >= blocks
    assert result.promises >= members
    assert result.heals_ms, "a run ends with a healing, after which all promises are looked up"


def with_new_keys(observed: bool) -> StackPlan:
    """The keys of all gateways change while their power fails again and again."""
    people = 4 + observed
    keys = [Fault(300 * place, "key", {"peer": place}) for place in range(people)]
    cuts = [
        Fault(150 + 250 * number, "power", {"peer": number % people, "skip": number, "for_ms": 60})
        for number in range(3 * people)
    ]
    faults = (*sorted((*keys, *cuts), key=lambda fault: fault.time_ms), Fault(5_000, "heal", {}))
    return StackPlan(3, 40, 4, observed, 2, faults)


@pytest.mark.parametrize("observed", [True, False])
def test_the_keys_of_all_gateways_change_while_their_power_fails(observed: bool) -> None:
    """Each goes on under its next key, is found by whose settings name the former one, and has it revoked."""
    result = run_stack(with_new_keys(observed))
    assert (result.violations, result.keys_changed) == ([], 4 + observed)


def test_every_kind_of_fault_is_injected_by_some_seed() -> None:
    kinds = {fault.kind for seed in range(10) for fault in make_stack_plan(seed, 50, 4).faults}
    assert kinds == {*KINDS, "heal"}


def test_same_seeds_same_trace_in_other_processes() -> None:
    command = [sys.executable, "-m", "edgepool", "sim", "stack", "--seed", "3", "--seeds", "3", "--json"]
    others = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONHASHSEED": hash_seed})
        for hash_seed in ("1", "4711")
    ]
    here = [run_stack_seed(seed, 50, 4) for seed in range(3, 6)]
    assert len({result.trace for result in here}) == 3
    for other in others:
        report = json.loads(other.communicate()[0])
        assert report["violations"] == 0
        assert report["trace"] == combined_trace([result.trace for result in here])
        assert report["promises"] == sum(result.promises for result in here)


def test_the_command_says_what_it_found_and_fails_if_it_found_something() -> None:
    asked = ["sim", "stack", "--blocks", "5", "--json"]
    good = CliRunner().invoke(app, asked)
    assert good.exit_code == 0
    assert json.loads(good.stdout)["violations"] == 0
    with switched_on(sync_skipped):
        bad = CliRunner().invoke(app, asked)
    assert bad.exit_code == 1
    assert "durability" in json.loads(bad.stdout)["failed"]["0"]


def test_an_owner_whose_record_was_overtaken_hears_why(tmp_path: Path) -> None:
    """Both offers passed the door; only one can stand, and the other's owner must not be told to wait on."""

    async def work(loop: VirtualTimeLoop) -> list[RecordRef | BaseException]:
        stack = Stack(make_stack_plan(1, 1, 4, ()), loop, tmp_path)
        await stack.form()
        await asyncio.sleep(1)
        peers = [gateway.peer for gateway in stack.gateways[:2]]
        offers = [DataOffer(DataKey("part", "model"), 1, bytes([n]) * 32, 1, "", 50) for n in range(2)]
        told = await asyncio.gather(
            *(peer.submit(offer, chain=stack.chains[0]) for peer, offer in zip(peers, offers, strict=True)),
            return_exceptions=True,
        )
        await stack.close()
        return told

    with ideal_signatures():
        told = run(work)
    assert sorted(type(one).__name__ for one in told) == ["RecordRef", "Refused"], told


def test_what_was_published_is_found_by_a_peer_whose_blocks_come_late(tmp_path: Path) -> None:
    """It has no block of the offer when it is asked to fetch that, nor when it has looked again and again."""

    async def work(loop: VirtualTimeLoop) -> list[int]:
        stack = Stack(make_stack_plan(1, 1, 4, ()), loop, tmp_path)
        await stack.form()
        await asyncio.sleep(1)
        holder, *_, late = [gateway.peer for gateway in stack.gateways[:4]]
        stack.network.slow_ms[late.id] = 8_000
        found = []
        for number in range(8):
            key = DataKey(f"part-{number}", "model")
            await holder.publish(key, b"data" * number, chain=stack.chains[0])
            demand = DataDemand(key, 0, "", "")
            found.append(len(await late.data.find_demanded(demand, stack.chains[0], "")))
        await stack.close()
        return found

    with ideal_signatures():
        assert run(work) == [1] * 8


# --- canaries -------------------------------------------------------------------------------------


def sync_skipped(stack: ExitStack) -> None:
    """The store says that all is durable, and has synced nothing."""
    swap(stack, FolderStore, "sync", lambda self: None)


def sync_that_lies(stack: ExitStack) -> None:
    """The disk itself says so, as some do; only a power cut shows it."""

    def sync(self: Disk, fd: int) -> None:
        self.dirty.clear()

    swap(stack, Disk, "_sync", sync)


def notice_before_persist(stack: ExitStack) -> None:
    """Everything leaves first, and is stored then."""
    persist = NodeLoop._perform

    async def perform(self: NodeLoop, effects: Sequence[Effect]) -> bool:
        for effect in join_records(effects):
            self._speak(effect)
        return await persist(self, [effect for effect in effects if isinstance(effect, Persist)])

    swap(stack, NodeLoop, "_perform", perform)


def votes_before_persist(stack: ExitStack) -> None:
    """Messages leave first; only the owner is told afterwards."""
    perform_well = NodeLoop._perform

    async def perform(self: NodeLoop, effects: Sequence[Effect]) -> bool:
        for effect in join_records(effects):
            if not hasattr(effect, "notice"):
                self._speak(effect)
        kept = [effect for effect in effects if hasattr(effect, "notice") or isinstance(effect, Persist)]
        return await perform_well(self, kept)

    swap(stack, NodeLoop, "_perform", perform)


def task_left_behind(stack: ExitStack) -> None:
    async def close(self: NodeLoop) -> None:
        if self._cancel_timer is not None:
            self._cancel_timer()

    swap(stack, NodeLoop, "close", close)


def file_left_open(stack: ExitStack) -> None:
    """Whoever closes a store opens a file and forgets it."""
    close = FolderStore.close

    def leave(self: FolderStore) -> None:
        stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        close(self)

    swap(stack, FolderStore, "close", leave)


def with_power_cuts(seed: int, cuts: int) -> StackPlan:
    """A pool whose gateways lose their power again and again where they store something, shortly."""
    draw = Random(f"cuts/{seed}")
    faults = [
        Fault(250 * number, "power", {"peer": draw.randrange(4), "skip": draw.randrange(6), "for_ms": 50})
        for number in range(cuts)
    ]
    return replace(make_stack_plan(seed, 40, 4, ()), faults=tuple(faults))


@pytest.mark.parametrize(
    ("switch", "rules", "cuts", "seeds"),
    [
        (sync_skipped, ("durability",), 0, 1),
        (sync_that_lies, ("durability",), 10, 1),
        (notice_before_persist, ("records",), 0, 1),
        (votes_before_persist, ("signatures", "locks"), 60, 20),
        (votes_forgotten_at_restart, ("signatures", "locks"), 60, 20),
        (no_catch_up, ("liveness",), 10, 3),
        (task_left_behind, ("leaks",), 0, 1),
        (file_left_open, ("leaks",), 0, 1),
    ],
)
def test_a_bug_on_purpose_is_found(
    switch: Callable[[ExitStack], None], rules: tuple[str, ...], cuts: int, seeds: int
) -> None:
    found: list[str] = []
    with switched_on(switch):
        for seed in range(seeds):
            found = run_stack(with_power_cuts(seed, cuts)).violations
            if found:
                break
    assert found, f"{switch.__name__} was not found in {seeds} seeds"
    assert found[0].split(":")[0] in rules, found[0]


def key_changed_too_early(stack: ExitStack) -> None:
    """The key changes though one of the pools has not been told of it."""
    places = KeyRotation._places

    def told(self: KeyRotation) -> list[Chain]:
        return [chain for chain in places(self) if chain.genesis.invitation.name == "pool-0"]

    swap(stack, KeyRotation, "_places", told)


def change_not_finished(stack: ExitStack) -> None:
    """Where the power fails after the rename, no start puts the next key in the place of the old one."""
    swap(stack, identity, "finish_change", lambda settings: None)


def former_key_not_revoked(stack: ExitStack) -> None:
    async def forget(self: KeyRotation, *_: object) -> None:
        pass

    swap(stack, KeyRotation, "_revoke", forget)


@pytest.mark.parametrize(
    ("switch", "rules"),
    [
        (key_changed_too_early, ("liveness", "trust")),
        (change_not_finished, ("liveness", "durability")),
        (former_key_not_revoked, ("trust",)),
    ],
)
def test_a_bug_in_the_change_of_keys_is_found(
    switch: Callable[[ExitStack], None], rules: tuple[str, ...]
) -> None:
    with switched_on(switch):
        found = run_stack(with_new_keys(observed=False)).violations
    assert found, f"{switch.__name__} was not found"
    assert found[0].split(":")[0] in rules, found[0]


# --- the world itself -------------------------------------------------------------------------------


def run(work: Callable[[VirtualTimeLoop], Any]) -> Any:
    loop = VirtualTimeLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(loop))


def test_hours_pass_at_once_and_in_order() -> None:
    async def work(loop: VirtualTimeLoop) -> tuple[float, list[int]]:
        began_s, done = loop.time(), list[int]()

        async def wait(hours: int) -> None:
            await asyncio.sleep(3_600 * hours)
            done.append(hours)

        await asyncio.gather(*(wait(hours) for hours in (30, 1, 7, 100)))
        return loop.time() - began_s, done

    passed_s, done = run(work)
    assert passed_s == pytest.approx(360_000)
    assert done == [1, 7, 30, 100]


def test_a_clock_is_never_short_of_the_moment_it_wakes_for() -> None:
    async def work(loop: VirtualTimeLoop) -> list[int]:
        clock, late_ms = VirtualClock(loop, 0), list[int]()
        for number in range(1, 300):
            at_ms, due = clock.now().monotonic_ms + number % 7 + 1, asyncio.Event()
            clock.call_at(at_ms, due.set)
            await due.wait()
            late_ms.append(clock.now().monotonic_ms - at_ms)
            await asyncio.sleep(Random(number).random())
        clock.offset_ms = -5
        assert clock.now().wall_ms == clock.now().monotonic_ms - 5
        return late_ms

    assert set(run(work)) == {0}


def test_work_for_an_executor_runs_in_one_piece_and_takes_virtual_time() -> None:
    async def work(loop: VirtualTimeLoop) -> None:
        began_s, order = loop.time(), list[str]()

        def store() -> str:
            loop.spend(40.0)
            order.append("stored")
            return "durable"

        given = loop.run_in_executor(None, store)
        assert not order, "it has not begun when it is given"
        loop.finish_work()
        assert order == ["stored"]
        assert not given.done()
        assert await given == "durable"
        assert loop.time() - began_s == pytest.approx(40.0)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)

    run(work)


def test_waiting_for_nothing_and_going_round_in_circles_are_told() -> None:
    async def wait(loop: VirtualTimeLoop) -> None:
        await loop.create_future()

    async def spin(loop: VirtualTimeLoop) -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(Standstill, match="no timer"):
        run(wait)
    with pytest.raises(Standstill, match="one instant"):
        run(spin)


def test_a_power_cut_takes_what_was_not_synced_and_nothing_else(tmp_path: Path) -> None:
    sizes = set()
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        cuts: list[str] = []
        disk = Disk(folder, Random(seed), VirtualTimeLoop(), lambda cuts=cuts: cuts.append("cut"))
        fd = os.open(folder / "log", os.O_RDWR | os.O_CREAT)
        with disk.at_work():
            os.pwrite(fd, b"a" * 100, 0)
            os.fdatasync(fd)
            os.pwrite(fd, b"b" * 100, 100)
        assert list(disk.dirty.values()) == [None]
        disk.trap = 0
        with pytest.raises(PowerCut), disk.at_work():
            os.fdatasync(fd)
        assert cuts == ["cut"]
        os.close(fd)
        disk.settle()
        left = (folder / "log").read_bytes()
        assert left.startswith(b"a" * 100)
        assert set(left[100:]) <= set(b"b\0")
        sizes.add(len(left))
    assert {100, 200} <= sizes
    assert len(sizes) > 5


def test_a_full_disk_takes_what_fits(tmp_path: Path) -> None:
    disk = Disk(tmp_path, Random(1), VirtualTimeLoop(), lambda: None)
    disk.room_bytes = 10
    fd = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    with disk.at_work():
        assert os.pwrite(fd, b"x" * 25, 0) == 10
        with pytest.raises(OSError, match="No space left"):
            os.pwrite(fd, b"x", 10)
    os.close(fd)
    assert disk.complained


class Ears:
    """A link handler that remembers."""

    def __init__(self) -> None:
        self.heard: list[bytes | str] = []

    def link_up(self, identity: PeerIdentity) -> None:
        self.heard.append("up")

    def link_down(self, peer: PeerId, reason: str) -> None:
        self.heard.append(f"down: {reason}")

    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        self.heard.append(frame)


async def two_linked(limits: Limits) -> tuple[RehearsedNetwork, list[RehearsedTransport], list[Ears]]:
    network = RehearsedNetwork(1, lambda *_: None)
    names = [PeerIdentity(PeerId(name), name, "machine", "") for name in "ab"]
    transports = [RehearsedTransport(network, name, limits, lambda _: None) for name in names]
    ears = [Ears(), Ears()]
    for transport, ear in zip(transports, ears, strict=True):
        await transport.start(ear)
    transports[0].want(Member(PeerId("b"), "b", "", ()))
    await asyncio.sleep(1)
    assert [ear.heard for ear in ears] == [["up"], ["up"]]
    return network, transports, ears


def test_frames_wait_in_order_and_in_bounds_while_a_path_is_silent() -> None:
    async def work(_: VirtualTimeLoop) -> None:
        network, (a, _b), (_, ears) = await two_linked(Limits(outbox_bytes=65_536))
        network.silence([(PeerId("a"), PeerId("b"))])
        sent = [a.send(PeerId("b"), bytes([number]) * 20_000) for number in range(5)]
        assert sent == [True, True, True, False, False]
        assert a.counters == {"dropped_outbox": 2}
        await asyncio.sleep(SILENT_S / 2)
        assert ears.heard == ["up"]
        network.silence([])
        await asyncio.sleep(1)
        assert [frame[0] for frame in ears.heard[1:] if isinstance(frame, bytes)] == [0, 1, 2]

    run(work)


def test_a_silent_path_costs_the_link_and_it_is_made_again() -> None:
    async def work(_: VirtualTimeLoop) -> None:
        network, (a, _b), ears = await two_linked(Limits())
        network.silence([(PeerId("a"), PeerId("b")), (PeerId("b"), PeerId("a"))])
        await asyncio.sleep(2 * SILENT_S)
        assert [ear.heard[1:] for ear in ears] == [["down: nothing was heard of the other side"]] * 2
        assert not a.send(PeerId("b"), b"nobody hears")
        network.silence([])
        await asyncio.sleep(10)
        assert [ear.heard[-1] for ear in ears] == ["up", "up"]

    run(work)


def test_a_power_cut_is_noticed_late_and_a_close_at_once() -> None:
    async def work(_: VirtualTimeLoop) -> None:
        _, (a, b), (ears, _b) = await two_linked(Limits())
        b.cut_power()
        await asyncio.sleep(SILENT_S - 1)
        assert ears.heard == ["up"]
        assert a.send(PeerId("b"), b"into the void")
        await asyncio.sleep(2)
        assert ears.heard[1:] == ["down: nothing was heard of the other side"]
        _, (a, b), (_a, other) = await two_linked(Limits())
        a.send(PeerId("b"), b"last word")
        await a.close()
        await asyncio.sleep(0.1)
        assert other.heard[1:] == [b"last word", "down: the other side closed the link"]

    run(work)


def test_a_plan_has_the_faults_that_were_asked_for() -> None:
    plan = make_stack_plan(7, 50, 4, ("crash",))
    assert {fault.kind for fault in plan.faults} == {"crash", "heal"}
    assert [fault for fault in make_stack_plan(7, 50, 4).faults if fault.kind == "crash"] == [
        fault for fault in plan.faults if fault.kind == "crash"
    ]


def test_clocks_that_jump_by_decades_harm_nobody() -> None:
    jumps = [
        Fault(100 * place, "clock", {"peer": place, "offset_ms": offset_ms})
        for place, offset_ms in enumerate((-1_500_000_000_000, 300_000_000_000, -60_000, 3_600_000))
    ]
    plan = replace(make_stack_plan(5, 20, 4, ()), faults=tuple(jumps))
    assert isinstance(plan, StackPlan)
    result = run_stack(plan)
    assert result.violations == []
    assert result.faults == {"clock": 4}

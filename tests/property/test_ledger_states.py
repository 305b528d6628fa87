"""Random chains with everything in them: drafts foresee what blocks make, snapshots go on like the chain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_world import KEY, World
from msgspec.structs import replace

from edgepool.core.ledger import chainfacts, facts, statements
from edgepool.core.ledger import window as window_module
from edgepool.core.ledger.draft import Draft
from edgepool.core.ledger.facts import PolicyEntry, TaskState
from edgepool.core.ledger.snapshot import read_snapshot
from edgepool.core.ledger.state import ChainState
from edgepool.core.ledger.statements import register
from edgepool.core.ledger.view import View
from edgepool.model.block import Block, roster_after
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.policy import DataPolicy, PolicyTerms
from edgepool.model.record import SignedRecord, Statement
from edgepool.model.twin import DataKey

NAMES = ("member 0", "member 1", "member 2", "member 3", "new 0", "new 1")


class Tally:
    """Counts what it is told, and refuses what it has counted three times."""

    name = "tally"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        key = signed.record.body.payload.decode()  # type: ignore[union-attr]
        return "enough" if view.values("tally").get(key) == b"3" else ""

    def effects(self, view: View, signed: SignedRecord) -> dict[str, bytes]:
        key = signed.record.body.payload.decode()  # type: ignore[union-attr]
        count = int(view.values("tally").get(key, b"0")) + 1
        return {key: str(count).encode(), "gone": b"", "last": b"" if count == 2 else key.encode()}


@contextmanager
def small() -> Iterator[World]:
    """Yield a world in which all bounds are near."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(window_module, "WINDOW_BLOCKS", 3))
        stack.enter_context(patch.object(window_module, "WINDOW_RECORDS", 16))
        stack.enter_context(patch.object(chainfacts, "FORGET_BLOCKS", 2))
        stack.enter_context(patch.object(facts, "MAX_ANCHORED", 2))
        stack.enter_context(patch.object(statements, "STATEMENTS", {}))
        register(Tally())
        yield World(kind="fixed", observers=("regulator",))


# What a record is about, its author, and two small numbers. Many are refused somewhere.
ATTEMPT = st.tuples(st.integers(0, 16), st.integers(0, 5), st.integers(0, 1), st.integers(1, 3))
CHAIN = st.lists(st.lists(ATTEMPT, min_size=1, max_size=8), min_size=1, max_size=20)


def written(world: World, attempt: tuple[int, int, int, int]) -> SignedRecord:
    kind, who, step, number = attempt
    member = who % 4
    author: Signer = world.newcomer(NAMES[who])
    task = f"T{number}"
    match kind:
        case 0 | 1:
            return world.requirement(step, member, steps=2, task=task)
        case 2 | 3:
            return world.procedure(step, member, task)
        case 4 | 5:
            return world.completion(step, member, task)
        case 6:
            return world.inspection(step, member, accepted=number > 1, task=task)
        case 7:
            return world.offer(member, number, b"data" if step else b"other")
        case 8:
            return world.record(author, world.anchor(ChainId("abc"[step + number - 2] * 40), number))
        case 9:
            return world.record(author, Statement("tally", 1, b"ab"[step : step + 1]))
        case 10:
            return world.record(author, world.evidence(world.newcomer(NAMES[number]), world.state.height))
        case 12:
            terms = PolicyTerms(purposes=("production",)) if number > 1 else None
            pattern = KEY if step else DataKey("PTVA*", "*")
            return world.record(author, DataPolicy(pattern.part, pattern.kind, number, terms))
        case _:
            out, new = world.newcomer(NAMES[number]), world.newcomer(NAMES[4 + who % 2])
            return world.record(author, world.change(out if number > 1 else None, new if step else None))


def all_written(world: World, attempts: list[tuple[int, int, int, int]]) -> list[SignedRecord]:
    """Return the records of a block; some attempts are a task done at once, or a change that all want."""
    records = []
    for kind, who, step, number in attempts:
        if kind == 13:
            task, station = f"T{number}", who % 4
            for place in range(2):
                records.append(world.requirement(place, station, steps=2, task=task))
                records += [world.procedure(place, station, task), world.completion(place, station, task)]
            records.append(world.inspection(1, station, task=task))
        elif kind == 14:
            out, new = world.newcomer(NAMES[number]), world.newcomer(NAMES[4 + who % 2])
            change = world.change(out if number > 1 else None, new if step else None)
            records += [world.record(world.newcomer(name), change) for name in NAMES]
        elif kind == 15:
            change = world.succession(world.newcomer(NAMES[number]), world.newcomer(NAMES[4 + who % 2]))
            records += [world.record(world.newcomer(name), change) for name in NAMES]
        elif kind == 16:
            old = [world.coordinator, *world.observers.values()][step]
            records.append(world.record(old, world.new_key(old, world.newcomer(NAMES[4 + who % 2]))))
        else:
            records.append(written(world, (kind, who, step, number)))
    return records


def too_late(world: World, state: ChainState) -> list[PeerId]:
    """Return the former keys of which nothing convicts anybody any more."""
    formers = [one.former for one in state.successions if not one.voteless]
    accused = {former: world.evidence(world._signer_of[former], 1) for former in formers}
    return [peer for peer, evidence in accused.items() if state.draft().expiry_problem(evidence)]


def named_in(state: ChainState, peer: PeerId) -> bool:
    """Say whether a state has anything of a key, but that it was there once."""
    snapshot = read_snapshot(state.snapshot())
    roster = replace(snapshot.core.roster, successions=(), former=(), adoption=None)
    core = replace(snapshot.core, roster=roster, last_packer=PeerId(""))
    return peer.encode() in encode(replace(snapshot, core=core))


def without_credit(task: TaskState) -> TaskState:
    """Return what the records themselves say of a task; credit is worked out when a block is entered."""
    task = task.copy()
    task.steps = {place: step.copy() for place, step in task.steps.items()}
    for step in task.steps.values():
        step.earns, step.credit = 0, None
    return task


def _set(policies: dict[PeerId, dict[DataKey, PolicyEntry]]) -> dict[PeerId, dict[DataKey, PolicyEntry]]:
    """Return the policies of those who have any."""
    return {author: known for author, known in policies.items() if known}


def try_all(draft: Draft, attempts: list[SignedRecord]) -> list[SignedRecord]:
    return [signed for signed in attempts if not draft.add(signed)]


@given(CHAIN)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_draft_is_what_the_block_makes(plan: list[list[tuple[int, int, int, int]]]) -> None:
    with small() as world:
        for attempts in plan:
            draft = world.state.draft()
            records = try_all(draft, all_written(world, attempts))
            if not records:
                continue
            # Before the end of a block forgets something and moves the roster on.
            with patch.object(chainfacts.ChainFacts, "close"), patch.object(ChainState, "_close"):
                before = ChainState.restore(world.genesis, world.state.snapshot())
                before.apply(Block(world.header(records), tuple(records)))
            layer, made = draft._facts, before._facts
            assert layer.roster == made.roster
            for task in made.tasks.values():
                found = layer.task(task.task)
                assert found is not None
                assert without_credit(found) == without_credit(task)
            for key in made._offers:
                assert layer.offers_of(key) == made.offers_of(key)
                assert layer.newest_version(key) == made.newest_version(key)
            assert _set(layer.policies()) == _set(made.policies())
            assert dict(layer.values("tally")) == dict(made.values("tally"))
            assert all(layer._anchors_of(one) == made._anchors_of(one) for one in made._anchors)
            world.pack(*records)
            assert all(world.state.has_record(signed.id) for signed in records)
        genesis = world.genesis.invitation
        assert roster_after(genesis.network, world.state.chain, genesis.members, world.handovers) == (
            world.state.roster
        )


@given(CHAIN, st.integers(0, 20))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_restored_state_goes_on_like_the_chain(
    plan: list[list[tuple[int, int, int, int]]], saved_after: int
) -> None:
    with small() as world:
        restored, blocks, later = None, [], []
        for number, attempts in enumerate(plan):
            if number == min(saved_after, len(plan) - 1):
                restored = ChainState.restore(world.genesis, world.state.snapshot())
            signed = all_written(world, attempts)
            records = try_all(world.state.draft(), signed)
            if restored is not None:
                assert [record.id for record in try_all(restored.draft(), signed)] == [
                    record.id for record in records
                ]
            if not records:
                continue
            blocks.append(world.pack(*records, packer=number % len(world.state.members)))
            gone = [one.former for one in world.state.successions if not world.state.may_write(one.former)]
            assert not any(named_in(world.state, former) for former in gone)
            assert too_late(world, world.state) == [
                one.former
                for one in world.state.successions
                if one.last <= world.state.horizon and not (one.voteless or world.state.may_write(one.former))
            ]
            if restored is not None:
                restored.apply(blocks[-1])
                later += [record.id for record in records]
                assert restored.root == world.state.root
                assert restored.snapshot() == world.state.snapshot()
                assert (restored.horizon, restored.former) == (world.state.horizon, world.state.former)
                assert too_late(world, restored) == too_late(world, world.state)
        assert restored is not None
        assert [restored.has_record(one) for one in later] == [world.state.has_record(one) for one in later]
        replayed = ChainState(world.genesis)
        for block in blocks:
            replayed.apply(block)
        assert replayed.snapshot() == world.state.snapshot()
        assert replayed.root == world.state.root

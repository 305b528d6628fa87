from __future__ import annotations

from random import Random

import msgspec
import pytest
from ledger_world import KEY, World

from edgepool.core.ledger import chainfacts, draft, root
from edgepool.core.ledger import window as window_module
from edgepool.core.ledger.root import EntrySum, Key
from edgepool.core.ledger.snapshot import Snapshot
from edgepool.core.ledger.state import STATE_VERSION, ChainState
from edgepool.errors import DecodeError
from edgepool.model.codec import decode, encode
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import MembershipChange, SignedRecord
from edgepool.model.twin import DataKey


@pytest.fixture
def world() -> World:
    return World()


# --- the sum


def summed(entries: list[tuple[object, ...]]) -> bytes:
    found = EntrySum(lambda key: ())
    for entry in entries:
        found.add(entry)
    return found.value()


def test_order_in_which_entries_come_leaves_no_trace() -> None:
    entries: list[tuple[object, ...]] = [("offer", height, 0, b"x") for height in range(50)]
    shuffled = list(entries)
    Random(1).shuffle(shuffled)
    assert summed(entries) == summed(shuffled) != summed(entries[1:])
    assert len(summed([])) == 256


def test_what_came_and_went_leaves_no_trace() -> None:
    table: dict[Key, tuple[object, ...]] = {}
    found = EntrySum(lambda key: table.get(key, ()))
    empty = found.value()
    found.add(("offer", 1))
    for value in range(3):
        found.touch(("step", "T", 0))
        table["step", "T", 0] = ("step", "T", 0, value)
    assert found.value() == summed([("offer", 1), ("step", "T", 0, 2)])
    found.touch(("step", "T", 0))
    del table["step", "T", 0]
    found.remove(("offer", 1))
    assert found.value() == empty


def test_entry_that_changes_often_is_hashed_twice_in_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []
    expanded = root._expanded
    monkeypatch.setattr(root, "_expanded", lambda entry: hashed.append(entry) or expanded(entry))
    table: dict[Key, tuple[object, ...]] = {("step", "T", 0): ("step", "T", 0, 0)}
    found = EntrySum(lambda key: table.get(key, ()))
    for value in range(1, 100):
        found.touch(("step", "T", 0))
        table["step", "T", 0] = ("step", "T", 0, value)
    found.value()
    assert len(hashed) == 2


def test_waiting_changes_are_bounded(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """A chain that is replayed asks for no root, and still comes to the same one."""
    blocks = [world.pack(*world.step_records(0, 0)), world.pack(world.offer(1), world.offer(2))]
    monkeypatch.setattr(root, "MAX_WAITING", 0)
    again = ChainState(world.genesis)
    for block in blocks:
        again.apply(block)
        assert not again._facts.sum._added
    assert again.root == world.state.root


# --- the state's root


def test_every_kind_of_change_changes_the_root() -> None:
    world = World(kind="fixed")
    world.pack(*world.step_records(0, 0, steps=2))
    world.pack(world.requirement(1, 1, steps=2))
    world.pack(world.offer(0))
    liar = world.signers[3]
    records = [
        world.demand(0),
        world.requirement(0, 0, task="T2"),
        world.procedure(1, 1),
        world.inspection(0, 0),
        world.inspection(0, 0, accepted=False),
        world.inspection(0, 2),
        world.offer(1),
        world.offer(1, 2),
        world.confirmation(world.signers[0], world.outsider),
        world.record(world.signers[0], world.change(outgoing=liar)),
        world.record(world.signers[0], world.evidence(liar, 1)),
        world.record(world.signers[0], world.anchor(ChainId("a" * 40), 5)),
    ]
    before = world.state.snapshot()
    roots = {world.state.root}
    for signed in records:
        state = world.state = ChainState.restore(world.genesis, before)
        world.pack(signed)
        # Only what the record itself does may tell the states apart.
        state.last_block_id, state.counts, state._rest = bytes(32), dict.fromkeys(state.counts, 0), None
        roots.add(state.root)
    # Demand and confirmation do nothing but stand.
    assert len(roots) == len(records)


def test_blocks_of_the_same_content_make_the_same_root(world: World) -> None:
    blocks = [world.pack(*world.step_records(0, 0)), world.pack(world.offer(1), world.offer(2))]
    asked, unasked = ChainState(world.genesis), ChainState(world.genesis)
    for block in blocks:
        asked.apply(block)
        assert asked.root == asked.root
        unasked.apply(block)
    assert asked.root == unasked.root == world.state.root


def test_header_on_another_state_is_refused(world: World) -> None:
    header = world.header([world.demand(0)])
    other = msgspec.structs.replace(header, state_root=bytes(32))
    assert "another state" in world.state.header_problem(other)
    other = msgspec.structs.replace(header, next_members_hash=bytes(32))
    assert "another roster" in world.state.header_problem(other)


# --- forgetting


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose window has four blocks and that forgets at every eighth height."""
    monkeypatch.setattr(window_module, "WINDOW_BLOCKS", 4)
    monkeypatch.setattr(chainfacts, "FORGET_BLOCKS", 8)
    return World()


def finish(world: World, task: str) -> None:
    records: list[SignedRecord] = [world.requirement(0, 0, steps=1, task=task)]
    world.pack(*records, world.procedure(0, 0, task), world.completion(0, 0, task))


def test_finished_tasks_below_the_horizon_are_forgotten(forgetful: World) -> None:
    world, state = forgetful, forgetful.state
    finish(world, "old")
    finish(world, "inspected")
    world.pack(world.requirement(0, 0, steps=1, task="open"))
    world.pack_until(5)
    world.pack(world.inspection(0, 0, task="inspected"))
    world.pack_until(7)
    assert list(state.tasks) == ["old", "inspected", "open"]
    world.pack_until(8)
    assert list(state.tasks) == ["inspected", "open"]
    world.pack_until(16)
    assert list(state.tasks) == ["open"]
    assert state.draft().add(world.requirement(0, 0, steps=2, task="old")) == ""


def test_outdated_versions_below_the_horizon_are_forgotten(forgetful: World) -> None:
    world, state = forgetful, forgetful.state
    other = DataKey("PTVA10212-03", "error")
    world.pack(world.offer(0), world.offer(0, key=other))
    world.pack(world.offer(1))
    world.pack_until(5)
    world.pack(world.offer(0, 2))
    world.pack(world.offer(0, 3))
    assert [entry.offer.version for entry in state.offers_of(KEY)] == [1, 1, 2, 3]
    assert state.standing_places(6) == ((1, 0), (1, 1), (2, 0), (6, 0))
    world.pack_until(8)
    assert [entry.offer.version for entry in state.offers_of(KEY)] == [2, 3]
    assert state.standing_places(6) == ((1, 1), (6, 0))
    world.pack_until(16)
    assert [entry.offer.version for entry in state.offers_of(KEY)] == [3]
    assert len(state.offers_of(other)) == 1
    assert state.standing_places(6) == ((1, 1),)
    assert state.draft().add(world.offer(1, 3)) == ""


def test_forgetting_takes_the_entries_out_of_the_root(forgetful: World) -> None:
    world = forgetful
    finish(world, "old")
    world.pack(world.inspection(0, 0, task="old"), world.offer(0))
    world.pack(world.offer(1, 2))
    world.pack_until(8)
    assert not world.state.tasks
    restored = ChainState.restore(world.genesis, world.state.snapshot())
    assert restored.root == world.state.root


# --- snapshots


def full() -> World:
    """A world with something of everything in its state."""
    world = World(kind="fixed")
    world.pack(*world.step_records(0, 0), world.requirement(1, 1), world.procedure(1, 1))
    world.pack(
        world.inspection(0, 0), world.inspection(0, 2, accepted=False), world.offer(1), world.offer(0, 2)
    )
    world.pack(world.record(world.signers[0], world.anchor(ChainId("a" * 40), 5)))
    world.pack(world.record(world.signers[0], world.evidence(world.signers[3], 1)))
    world.decide(world.change(outgoing=world.signers[2], incoming=world.newcomer("new")))
    world.pack(world.record(world.signers[0], world.change(outgoing=world.signers[3])), packer=1)
    world.decide(world.change(incoming=world.newcomer("newer")))
    return world


def test_restored_state_is_the_same_and_goes_on_alike() -> None:
    world = full()
    data = world.state.snapshot()
    restored = ChainState.restore(world.genesis, data)
    assert restored.snapshot() == data
    assert restored.root == world.state.root
    for name in (
        *("height", "last_block_id", "beacon", "time_ms", "last_packer", "tips", "reveals", "counts"),
        *("packed", "tasks", "roster", "next_roster", "members", "pending_change", "change_number", "former"),
        "horizon",
    ):
        assert getattr(restored, name) == getattr(world.state, name), name
    assert restored.offers_of(KEY) == world.state.offers_of(KEY)
    assert restored.convicted() == world.state.convicted()
    assert restored.newcomers() == world.state.newcomers()
    assert restored.open_changes() == world.state.open_changes()
    for _ in range(3):
        restored.apply(world.pack(world.demand(0)))
        assert restored.root == world.state.root
        assert restored.snapshot() == world.state.snapshot()


def test_snapshot_of_the_beginning_is_one_too(world: World) -> None:
    assert ChainState.restore(world.genesis, world.state.snapshot()).root == world.state.root


def test_snapshot_of_another_chain_or_version_is_refused(world: World) -> None:
    data = world.state.snapshot()
    other = World(members=3)
    with pytest.raises(DecodeError, match="it is of the chain"):
        ChainState.restore(other.genesis, data)
    snapshot = decode(Snapshot, data)
    newer = msgspec.structs.replace(
        snapshot, core=msgspec.structs.replace(snapshot.core, version=STATE_VERSION + 1)
    )
    with pytest.raises(DecodeError, match="state version"):
        ChainState.restore(world.genesis, encode(newer))


def test_damaged_snapshot_is_refused_or_makes_another_root() -> None:
    world = full()
    data = world.state.snapshot()
    random = Random(7)
    for _ in range(300):
        place = random.randrange(len(data))
        damaged = data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]
        try:
            restored = ChainState.restore(world.genesis, damaged)
        except DecodeError:
            continue
        assert restored.root != world.state.root
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(DecodeError):
            ChainState.restore(world.genesis, data[:cut])


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("tasks", "tasks are out of order"),
        ("offers", "offers are out of order"),
        ("blocks", "its blocks are not"),
        ("turns", "turns in the lottery are not"),
        ("members", "twice"),
        ("next members", "next roster does not come of its last change"),
        ("no change", "next roster does not come of its last change"),
        ("nobody left", "open that cannot be decided"),
        ("old number", "open that cannot be decided"),
        ("a block's middle", "not one between two blocks"),
        ("above", "an offer stands above its height"),
        ("doubled", "tasks' numbers are out of order"),
        ("steps", "steps are out of order"),
    ],
)
def test_snapshot_out_of_its_form_is_refused(world: World, table: str, reason: str) -> None:
    world.pack(world.requirement(0, 0), world.requirement(1, 1), world.offer(0))
    world.pack(world.requirement(0, 0, task="T2"), world.offer(1))
    found = decode(Snapshot, world.state.snapshot())
    replace = msgspec.structs.replace
    core, roster = found.core, found.core.roster
    doubled = replace(found.tasks[1], task="T1")
    backward = replace(found.tasks[0], steps=found.tasks[0].steps[::-1])

    def rostered(**changes: object) -> Snapshot:
        return replace(found, core=replace(core, roster=replace(roster, **changes)))

    here, me = roster.present, world.signers[0]
    leaves = world.change(outgoing=me)
    stays = MembershipChange(1, PeerId(""), None, b"", b"", "")
    wrong = {
        "tasks": replace(found, tasks=found.tasks[::-1]),
        "offers": replace(found, offers=found.offers[::-1]),
        "blocks": replace(found, blocks=found.blocks[1:]),
        "turns": replace(found, core=replace(core, turns=core.turns[1:])),
        "members": rostered(present=here[:1] * 4),
        "next members": rostered(following=here[1:]),
        "no change": rostered(pending=stays),
        "nobody left": rostered(present=here[1:], following=here[1:], open=((leaves, (me.peer,)),)),
        "old number": rostered(number=2, open=((leaves, (me.peer,)),)),
        "a block's middle": rostered(decided=leaves),
        "above": replace(found, offers=(found.offers[0], (3, *found.offers[1][1:]))),
        "doubled": replace(found, tasks=(found.tasks[0], doubled)),
        "steps": replace(found, tasks=(backward, found.tasks[1])),
    }[table]
    with pytest.raises(DecodeError, match=reason):
        ChainState.restore(world.genesis, encode(wrong))


def test_what_is_forgotten_does_not_depend_on_who_began_with_a_snapshot(
    forgetful: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody offers an outdated version once more, as only a key may that follows another."""
    monkeypatch.setattr(chainfacts, "FORGET_BLOCKS", 2)
    world = forgetful
    world.pack(world.offer(0))
    world.pack_until(2)
    world.pack(world.offer(0, 2))
    world.pack(world.offer(0, 3))
    with monkeypatch.context() as patch:
        patch.setattr(draft, "record_problem", lambda view, signed: "")
        world.pack(world.offer(1))
    world.pack_until(6)
    assert [entry.offer.version for entry in world.state.offers_of(KEY)] == [1, 2, 3]
    taken = ChainState.restore(world.genesis, world.state.snapshot())
    for _ in range(2):
        taken.apply(world.pack())
        assert taken.root == world.state.root
    assert [entry.offer.version for entry in world.state.offers_of(KEY)] == [1, 3]

"""Full checks of stored chains: rosters that change, pruned beginnings, copies and anchors compared."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from stored_line import Line
from typer.testing import CliRunner, Result

from edgepool.cli.main import app
from edgepool.core.machine import Prune, SavedSnapshot
from edgepool.core.verification import ChainChecker
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import encode
from edgepool.model.record import ChainAnchor
from edgepool.peer.verify import check_copy, verify_chain
from edgepool.storage.store import FolderStore

replace = msgspec.structs.replace


@pytest.fixture
def line() -> Line:
    """Return a chain of nine blocks that has admitted 'new' and let member 0 go."""
    line = Line()
    line.stand()
    line.change(incoming=line.world.newcomer("new"))
    line.stand()
    line.change(outgoing=line.world.signers[0])
    line.stand(line.world.demand(1))
    line.take_snapshot()
    line.stand(line.world.demand(2))
    line.stand(line.world.demand(3))
    return line


def problem_of(line: Line, checker: ChainChecker, blocks: list[CertifiedBlock]) -> str:
    assert checker.problem == ""
    for block in blocks:
        problem = checker.check(encode(block))
        if problem:
            return f"{block.block.header.height}: {problem}"
    return ""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# --- one chain ----------------------------------------------------------------------------------


def test_every_block_is_checked_by_the_roster_of_its_height(line: Line) -> None:
    checker = ChainChecker(line.world.genesis)
    assert problem_of(line, checker, line.blocks) == ""
    assert checker.height == len(line.blocks) == 9
    assert [len(checker.rosters.at(height)) for height in (1, 3, 4, 6, 7, 9)] == [4, 4, 5, 5, 4, 4]
    assert checker.rosters.handovers == tuple(line.world.handovers)


def test_votes_of_who_has_left_prove_nothing(line: Line) -> None:
    """The old roster signs a block of its own behind the handover."""
    world, last = line.world, line.blocks[-1]
    old = {9: world.genesis.members}
    world._voters.update(old)
    forged = world.certify(last.block)
    found = problem_of(line, ChainChecker(world.genesis), [*line.blocks[:-1], forged])
    assert found.startswith("9: the signature of member")


def test_a_header_of_another_state_or_roster_is_refused(line: Line) -> None:
    for change, reason in (
        ({"state_root": bytes(32)}, "another state"),
        ({"members_hash": bytes(32)}, "another roster"),
        ({"next_members_hash": bytes(32)}, "another roster"),
    ):
        last = line.blocks[-1].block
        header = replace(last.header, **change)
        forged = line.world.certify(replace(last, header=header))
        found = problem_of(line, ChainChecker(line.world.genesis), [*line.blocks[:-1], forged])
        assert reason in found


def test_a_pruned_chain_is_checked_from_its_snapshot(line: Line) -> None:
    assert line.snapshot is not None
    for first in (8, 7, 4):
        checker = ChainChecker(line.world.genesis, line.snapshot, first)
        assert problem_of(line, checker, line.blocks[first - 1 : 7]) == ""
        assert not checker.snapshot_certified
        assert problem_of(line, checker, line.blocks[7:]) == ""
        assert checker.snapshot_certified
        assert checker.height == 9
        assert checker.rosters.handovers == tuple(line.world.handovers)


def test_a_snapshot_that_no_certified_header_names_is_refused(line: Line) -> None:
    assert line.snapshot is not None
    other = Line()
    while other.world.state.height < 7:
        other.stand(other.world.demand(1))
    other.take_snapshot()
    assert other.snapshot is not None
    genesis = line.world.genesis
    for snapshot, reason in (
        (replace_saved(line.snapshot, state=other.snapshot.state), "another roster than its handovers"),
        (other.snapshot, "8: the block does not stand on the last one"),
        (replace_saved(line.snapshot, handovers=line.snapshot.handovers[:1]), "another roster than its"),
        (replace_saved(line.snapshot, handovers=line.snapshot.handovers[1:]), "of another roster"),
        (replace_saved(line.snapshot, height=8), "is that of height 7"),
        (replace_saved(line.snapshot, state=b"\x90"), "is damaged"),
    ):
        checker = ChainChecker(genesis, snapshot, 8)
        assert reason in (checker.problem or problem_of(line, checker, line.blocks[7:]))
    assert "without a snapshot" in ChainChecker(genesis, None, 8).problem
    assert "blocks 8 to 8 are missing" in ChainChecker(genesis, line.snapshot, 9).problem
    assert problem_of(line, ChainChecker(genesis, other.snapshot), line.blocks).startswith("7: the snapshot")


def replace_saved(saved: SavedSnapshot, **changes: object) -> SavedSnapshot:
    names = ("height", "handovers", "state")
    return SavedSnapshot(**{**{name: getattr(saved, name) for name in names}, **changes})  # type: ignore[arg-type]


def test_a_block_before_the_snapshot_is_checked_for_signatures_and_votes(line: Line) -> None:
    few = line.blocks[3].certificate
    few = replace(few, signatures=few.signatures[:-1])
    forged = CertifiedBlock(line.blocks[3].block, few)
    checker = ChainChecker(line.world.genesis, line.snapshot, 4)
    assert "4: 3 of 5 members sign, 4 are needed" in problem_of(line, checker, [forged])
    checker = ChainChecker(line.world.genesis, line.snapshot, 4)
    assert "does not stand on the last" in problem_of(line, checker, [line.blocks[3], *other_blocks(line)])


def other_blocks(line: Line) -> list[CertifiedBlock]:
    """Return block 5 on another block 4, certified by the same members."""
    block = line.blocks[4].block
    return [line.world.certify(replace(block, header=replace(block.header, previous=bytes(32))))]


# --- in folders ---------------------------------------------------------------------------------


def test_a_pruned_copy_is_whole_and_says_from_where(line: Line, tmp_path: Path) -> None:
    folder, chain = line.store(tmp_path / "p", pruned=True), line.world.genesis.chain
    verdict = verify_chain(folder, chain)
    assert (verdict.verified, verdict.height, verdict.first_height) == (True, 9, 8)
    assert verdict.note == "blocks 1 to 7 are pruned; the snapshot at 7 is certified"
    assert verdict.members == ["m1", "m2", "m3", "new"]
    shown = call("chain", "verify", folder)
    assert shown.exit_code == 0
    assert "whole from 8" in shown.stdout
    assert "the snapshot at 7 is certified" in shown.stdout
    listed = json.loads(call("chain", "list", folder, "--json").stdout)
    assert (listed[0]["members"], listed[0]["former"]) == (["m1", "m2", "m3", "new"], ["m0"])
    assert "is pruned: the first is 8" in call("chain", "show", folder, "liner", 3).stderr


def test_a_snapshot_at_the_end_is_no_fault_and_a_damaged_one_is(line: Line, tmp_path: Path) -> None:
    line.blocks = line.blocks[:7]
    folder, chain = line.store(tmp_path / "p", pruned=True), line.world.genesis.chain
    verdict = verify_chain(folder, chain)
    assert (verdict.verified, verdict.height) == (True, 7)
    assert "not certified yet: block 8" in verdict.note
    file = folder / "chains" / chain / "snapshot.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    verdict = verify_chain(folder, chain)
    assert not verdict.verified
    assert verdict.problem.startswith("snapshot: ")


def test_copies_that_differ_are_named_with_both_folders(line: Line, tmp_path: Path) -> None:
    """Both stand every check of their own: the whole pool has signed two histories."""
    line.store(tmp_path / "mill")
    short = Line()
    short.blocks = line.blocks[:5]
    short.store(tmp_path / "saw")
    agree = json.loads(call("chain", "verify", tmp_path / "mill", tmp_path / "saw", "--json").stdout)
    assert [row["good"] for row in agree] == [True, True], "a shorter copy is no fault"
    other = Line()
    other.blocks = [*line.blocks[:1]]
    other.world.state.apply(line.blocks[0].block)
    other.stand(other.world.demand(3))
    other.store(tmp_path / "lathe")
    bad = call("chain", "verify", tmp_path / "mill", tmp_path / "lathe", tmp_path / "saw")
    assert bad.exit_code == 1
    one, two = (copies[1].block.header.id.hex()[:16] for copies in (line.blocks, other.blocks))
    assert f"block 2 is {one} in mill and {two} in lathe" in bad.stdout
    assert "the pool itself has forked" in bad.stdout


# --- anchors ------------------------------------------------------------------------------------


def anchored(line: Line, *anchors: ChainAnchor) -> Line:
    """Return a main chain that keeps these anchors, each by another member of its pool."""
    main = Line(kind="fixed")
    main.stand(*(main.world.record(main.world.signers[i], one) for i, one in enumerate(anchors)))
    return main


def rows_of(tmp_path: Path, code: int) -> dict[str, dict[str, object]]:
    result = call("chain", "verify", tmp_path, "--json")
    assert result.exit_code == code, result.output
    return {row["peer"]: row for row in json.loads(result.stdout) if row["kind"] == "manufacturing"}


def test_anchors_of_all_rosters_hold(line: Line, tmp_path: Path) -> None:
    line.store(tmp_path / "mill")
    line.store(tmp_path / "saw", pruned=True)
    anchored(line, line.anchor(1), line.anchor(5), line.anchor(9)).store(tmp_path / "cloud")
    rows = rows_of(tmp_path, 0)
    assert rows["mill"]["anchors"] == {"equal": 3, "pruned": 0, "ahead": 0, "false": []}
    assert rows["saw"]["anchors"] == {"equal": 1, "pruned": 2, "ahead": 0, "false": []}
    assert "3 hold" in call("chain", "verify", tmp_path).stdout


def test_a_rewritten_past_is_found_by_an_anchor(line: Line, tmp_path: Path) -> None:
    rewritten = Line()
    for _ in range(9):
        rewritten.stand(rewritten.world.demand(3))
    rewritten.store(tmp_path / "mill")
    original = line.blocks[1]
    anchored(line, line.anchor(2)).store(tmp_path / "cloud")
    rows = rows_of(tmp_path, 1)
    (fault,) = rows["mill"]["faults"]  # type: ignore[misc]
    assert rows["mill"]["verified"], "by itself nothing is wrong with it"
    assert "the pool has rewritten its past" in fault
    assert f"block {original.block.header.id.hex()[:16]} was anchored at height 2 on chain liner" in fault
    assert f"this copy has {rewritten.blocks[1].block.header.id.hex()[:16]}" in fault
    assert "contradicted" in call("chain", "verify", tmp_path, "--all").stdout


def test_a_copy_that_ends_too_early_is_found_unless_another_goes_on(line: Line, tmp_path: Path) -> None:
    whole = list(line.blocks)
    anchored(line, line.anchor(9)).store(tmp_path / "cloud")
    line.snapshot = None
    line.blocks = whole[:8]
    line.store(tmp_path / "mill")
    (fault,) = rows_of(tmp_path, 1)["mill"]["faults"]  # type: ignore[misc]
    assert "this copy ends at 8, yet height 9 on chain liner (block 1, by m0) was anchored" in fault
    line.blocks = whole[:5]
    line.store(tmp_path / "lathe")
    line.blocks = whole
    line.store(tmp_path / "saw")
    rows = rows_of(tmp_path, 0)
    assert rows["mill"]["anchors"]["ahead"] == rows["lathe"]["anchors"]["ahead"] == 1  # type: ignore[index]
    assert rows["saw"]["anchors"]["equal"] == 1  # type: ignore[index]


def test_who_votes_beyond_the_end_of_a_copy_may_be_unknown(line: Line, tmp_path: Path) -> None:
    line.snapshot, anchor = None, line.anchor(9)
    line.blocks = line.blocks[:5]
    line.store(tmp_path / "mill")
    anchored(line, anchor).store(tmp_path / "cloud")
    (unsure,) = rows_of(tmp_path, 0)["mill"]["anchors"]["false"]  # type: ignore[index]
    assert "members may have changed since the end of this copy" in unsure


def test_a_false_anchor_is_its_authors_and_no_fault_of_the_chain(line: Line, tmp_path: Path) -> None:
    line.store(tmp_path / "mill")
    genuine = line.blocks[2].certificate
    forged = replace(genuine, block_id=bytes(32))
    anchored(line, ChainAnchor(line.world.genesis.chain, forged), line.anchor(3)).store(tmp_path / "cloud")
    (false,) = rows_of(tmp_path, 0)["mill"]["anchors"]["false"]  # type: ignore[index]
    assert "height 3 on chain liner (block 1, by m0) is not genuine" in false
    shown = call("chain", "verify", tmp_path).stdout
    assert "1 hold, 1 false" in shown
    assert "no fault of the chain: the anchor of height 3" in shown


def test_what_former_members_sign_is_told_apart(line: Line, tmp_path: Path) -> None:
    """The first roster signs a block 9 of its own; it was not asked any more."""
    world = line.world
    world._voters[9] = world.genesis.members
    header = replace(line.blocks[8].block.header, time_ms=1)
    forged = world.certify(replace(line.blocks[8].block, header=header))
    line.store(tmp_path / "mill")
    anchored(line, line.anchor(9, forged)).store(tmp_path / "cloud")
    (false,) = rows_of(tmp_path, 0)["mill"]["anchors"]["false"]  # type: ignore[index]
    assert "the roster of height 1 has signed it" in false


# --- members ------------------------------------------------------------------------------------


def test_members_are_shown_with_open_changes_and_who_has_left(line: Line, tmp_path: Path) -> None:
    world = line.world
    world.signers.append(world._signer_of[world.state.members[-1]])
    change = world.change(outgoing=world.signers[1], reason="sold")
    line.stand(world.record(world.signers[2], change), world.record(world.coordinator, change))
    evidence = world.evidence(world.signers[3], 5)
    line.stand(world.record(world.signers[2], evidence))
    for pruned in (False, True):
        folder = line.store(tmp_path / f"{pruned}", pruned=pruned)
        view = json.loads(call("chain", "members", folder, "liner", "--json").stdout)
        assert [(row["name"], row["since"], row["vote"]) for row in view["members"]] == [
            ("m1", 1, True),
            ("m2", 1, True),
            ("m3", 1, True),
            ("new", 4, True),
        ]
        (opened,) = view["open"]
        assert (opened["approvals"], opened["needed"], opened["approved_by"]) == (1, 3, ["m2"])
        assert (opened["outgoing_name"], opened["reason"]) == ("m1", "sold")
        assert [one["name"] for one in view["convicted"]] == ["m3"]
        assert [(one["name"], one["last_height"]) for one in view["former"]] == [("m0", 6)]
        shown = call("chain", "members", folder, "liner").stdout
        assert "approved by 1 of 3 that are needed (m2)" in shown
        block = call("chain", "show", folder, "liner", 10).stdout
        assert "change 3: m1" in block
        assert "(sold); approved by 1 of 3 so far" in block
        assert "m3" in call("chain", "show", folder, "liner", 11).stdout
    line.change(incoming=world.newcomer("late"))
    folder = line.store(tmp_path / "later")
    late = json.loads(call("chain", "members", folder, "liner", "--json").stdout)["members"][-1]
    assert (late["name"], late["vote"], late["since"]) == ("new", True, 14)


def test_the_lottery_of_a_changed_roster_is_shown(line: Line, tmp_path: Path) -> None:
    for pruned, packed in ((False, 9), (True, 2)):
        folder = line.store(tmp_path / f"{pruned}", pruned=pruned)
        view = json.loads(call("chain", "lottery", folder, "liner", "--json").stdout)
        assert [row["name"] for row in view["members"]] == ["m1", "m2", "m3", "new"]
        leaders = {leader["peer"] for leader in view["leaders"]}
        assert leaders == set(line.world.state.members)
        left = line.world.genesis.members[0]
        by_m0 = sum(block.block.header.proposer == left for block in line.blocks[-packed:])
        assert sum(row["packed"] for row in view["members"]) == packed - by_m0
        assert ("are pruned" in call("chain", "lottery", folder, "liner").stdout) == pruned


def test_a_header_that_hands_over_is_shown_as_such(line: Line, tmp_path: Path) -> None:
    folder = line.store(tmp_path / "p")
    shown = call("chain", "show", folder, "liner", 3).stdout
    assert "from block 4 on" in shown
    assert "4 of 4 members" not in shown
    view = json.loads(call("chain", "show", folder, "liner", 7, "--json").stdout)
    assert {vote["name"] for vote in view["votes"]} <= {"m1", "m2", "m3", "new"}
    assert view["state_root"] == line.blocks[6].block.header.state_root.hex()


def test_a_newcomers_record_is_proved_and_found_by_name(line: Line, tmp_path: Path) -> None:
    world = line.world
    newcomer = world._signer_of[world.state.members[-1]]
    line.stand(world.record(newcomer, world.demand(1).record.body))
    for pruned in (False, True):
        folder, file = line.store(tmp_path / f"{pruned}", pruned=pruned), tmp_path / "x.proof"
        made = call("proof", "make", folder, "liner:10:0", "--out", file, "--json")
        assert made.exit_code == 0, made.output
        checked = call("proof", "check", file, "--genesis", world.genesis.chain)
        assert checked.exit_code == 0, checked.output
        assert "new came" in checked.stdout
        assert "m0 left" in checked.stdout
        found = json.loads(call("chain", "query", folder, "--machine", "new", "--json").stdout)
        assert [record["height"] for record in found["records"]] == [10]


def test_a_kept_record_of_a_pruned_block_is_proved(tmp_path: Path) -> None:
    line = Line()
    offer = line.world.offer(1)
    line.stand(line.world.demand(0), offer)
    line.stand()
    line.take_snapshot()
    line.stand()
    folder = line.store(tmp_path / "p")
    store = FolderStore(folder, segment_bytes=1)
    store.open()
    store.write([Prune(line.world.genesis.chain, 2, ((1, 1),))])
    store.close()
    assert check_copy(folder, line.world.genesis.chain).verdict.first_height == 3
    for name in ("liner:1:1", offer.id.hex()[:12]):
        file = tmp_path / "x.proof"
        assert call("proof", "make", folder, name, "--out", file).exit_code == 0
        assert call("proof", "check", file, "--genesis", line.world.genesis.chain).exit_code == 0
    assert "only records behind standing offers" in call("proof", "make", folder, "liner:1:0").stderr


def test_a_change_that_is_decided_in_the_last_block_before_a_snapshot_is_followed(tmp_path: Path) -> None:
    """Who goes and comes stands in no block that is left, only in the state."""
    line = Line()
    world = line.world
    change = world.change(outgoing=world.signers[1], incoming=world.newcomer("new"))
    line.stand(*(world.record(one, change) for one in world.signers[:3]))
    line.take_snapshot()
    decided = json.loads(call("chain", "members", line.store(tmp_path / "early"), "liner", "--json").stdout)
    assert [(row["name"], row["vote"], row["until"]) for row in decided["members"]] == [
        ("m0", True, None),
        ("m1", True, 2),
        ("m2", True, None),
        ("m3", True, None),
        ("new", False, None),
    ]
    assert decided["decided"]["says"].startswith("change 1: new")
    line.stand()
    line.stand()
    folder = line.store(tmp_path / "late", pruned=True)
    assert verify_chain(folder, world.genesis.chain).verified
    (row,) = json.loads(call("chain", "list", folder, "--json").stdout)
    assert (row["members"], row["former"]) == (["m0", "new", "m2", "m3"], ["m1"])
    file = tmp_path / "x.proof"
    assert call("proof", "make", folder, "liner:3:0", "--out", file).exit_code == 0
    assert call("proof", "check", file, "--genesis", world.genesis.chain).exit_code == 0

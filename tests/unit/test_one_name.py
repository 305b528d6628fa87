"""A peer that has had several keys is one peer to who reads its chains from the disk [S3.6]."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stored_line import Line
from typer.testing import CliRunner

from edgepool.cli.main import app
from edgepool.model.crypto import Signer

CHANGED = "has another key"


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.split())


def coordinator_changed(line: Line) -> Signer:
    """Let the coordinator, who has no vote and no name in the genesis, go on and plan under a new key."""
    world, new = line.world, line.world.newcomer("new key")
    line.stand(world.requirement(0, 0))
    line.stand(world.record(world.coordinator, world.new_key(world.coordinator, new)))
    line.stand(world.requirement(1, 1, author=new))
    return new


@pytest.mark.parametrize("pruned", [False, True])
def test_a_coordinator_without_a_vote_is_found_by_its_name_under_each_key(
    tmp_path: Path, pruned: bool
) -> None:
    line = Line()
    new = coordinator_changed(line)
    if pruned:
        line.take_snapshot()
        line.stand(line.world.requirement(2, 2, author=new))
    folder = line.store(tmp_path / "p", pruned=pruned)
    found = json.loads(call("chain", "query", folder, "--json"))["records"]
    assert {one["author_name"] for one in found} == {"cloud"}
    by_name = json.loads(call("chain", "query", folder, "--machine", "cloud", "--json"))["records"]
    keys = {new.peer} if pruned else {line.world.coordinator.peer, new.peer}
    assert {one["author"] for one in by_name} == keys


def test_a_proof_names_the_coordinator_as_far_as_it_can(tmp_path: Path) -> None:
    """Who has the chain knows more than the proof says, which has no room for keys without a vote."""
    line = Line()
    new = coordinator_changed(line)
    folder, chain, file = line.store(tmp_path / "p"), line.world.genesis.chain, tmp_path / "record.proof"
    for height, author in ((1, line.world.coordinator), (2, line.world.coordinator), (3, new)):
        made = json.loads(call("proof", "make", folder, f"liner:{height}:0", "--out", file, "--json"))
        assert made["record"]["author_name"] == "cloud"
        shown = call("proof", "check", file, "--genesis", chain)
        named = {1: f"the coordinator ({author.peer})", 2: f"cloud ({author.peer})", 3: "does not name"}
        assert named[height] in shown


def test_a_member_that_goes_on_under_another_key_neither_comes_nor_leaves(tmp_path: Path) -> None:
    line = Line()
    world = line.world
    old, new = world.signers[1], world.newcomer("new key")
    change = world.succession(old, new)
    line.stand(*(world.record(one, change) for one in world.signers[:3]))
    line.stand()
    line.stand(world.demand(2))
    folder, file = line.store(tmp_path / "p"), tmp_path / "record.proof"
    says = f"m1 (…{old.peer[-6:]}) goes on under the key …{new.peer[-6:]}"
    assert says in call("chain", "query", folder, "--kind", "membership")
    call("proof", "make", folder, "liner:3:0", "--out", file)
    shown = call("proof", "check", file, "--genesis", world.genesis.chain)
    assert "after block 2 m1 has another key" in shown
    assert "came" not in shown

"""Who may do what: every role, every act and every footing against the table of docs/rights.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from ledger_world import World
from msgspec.structs import replace
from typer.testing import CliRunner

from edgepool.cli.main import app
from edgepool.core.ledger.state import ChainState
from edgepool.core.rights import RIGHTS, STANDINGS, WRITING, Act, Standing, Subject, refusal
from edgepool.model.crypto import Signer
from edgepool.model.identity import ROLES, Role
from edgepool.model.ids import PeerId
from edgepool.model.pool import Genesis
from edgepool.model.record import RECORD_KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "rights.md").read_text(encoding="utf-8")


def golden() -> dict[str, dict[str, list[str]]]:
    """Return the table of the page: for each act and role the footings on which it may."""
    rows = [line.strip("| \n").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    head = next(row for row in rows if row[0] == "act")
    assert tuple(head[1:]) == ROLES
    return {
        row[0]: {
            role: [] if cell == "-" else cell.split(" or ") for role, cell in zip(ROLES, row[1:], strict=True)
        }
        for row in rows
        if len(row) == len(head) and row[0] in get_args(Act)
    }


GOLDEN = golden()


def test_the_page_has_every_act_and_every_record_has_one() -> None:
    assert list(GOLDEN) == list(get_args(Act)) == list(RIGHTS)
    assert set(WRITING) == set(RECORD_KINDS)
    assert set(STANDINGS) == set(get_args(Standing))


@pytest.mark.parametrize("act", get_args(Act))
@pytest.mark.parametrize("role", ROLES)
def test_every_role_may_do_what_the_page_says_and_nothing_else(act: Act, role: Role) -> None:
    grant, subject = GOLDEN[act][role], Subject(PeerId("p"), role)
    for standing in (*[(one,) for one in get_args(Standing)], (), tuple(get_args(Standing))):
        allowed = "anybody" in grant or any(one in grant for one in standing)
        said = refusal(act, subject, standing)
        assert (said == "") == allowed, (act, role, standing, said)
        if not grant:
            assert f"{role} may not {RIGHTS[act].does}: only a" in said
        elif said:
            assert STANDINGS[grant[0]] in said  # type: ignore[index]


def test_a_regulator_writes_nothing_and_reads_no_data_and_a_client_writes_of_its_demands_only() -> None:
    writes = {role: [kind for kind, act in WRITING.items() if RIGHTS[act].grant(role)] for role in ROLES}
    assert writes["regulator"] == ["succession"], "only that it has another key"
    assert writes["client"] == ["demand", "receipt", "complaint", "succession"]
    assert not {"procedure", "completion", "inspection"} & set(writes["witness"])
    assert RIGHTS["read data"].regulator == ()


def test_the_command_shows_the_table_of_the_page() -> None:
    shown = CliRunner().invoke(app, ["rights", "--json"])
    assert json.loads(shown.stdout)["rights"] == GOLDEN
    assert "write requirement" in CliRunner().invoke(app, ["rights", "--role", "client"]).stdout
    wrong = CliRunner().invoke(app, ["rights", "--role", "boss"])
    assert wrong.exit_code == 2
    assert "'boss' is not a role" in wrong.stderr


class RolesWorld(World):
    """A pool in which member 1 has another role, with an observer."""

    def __init__(self, role: Role, observer: Role = "client") -> None:
        self.role = role
        self.watcher = Signer(bytes(31) + b"\7")
        self.watches: Role = observer
        super().__init__()

    def make_genesis(self, network: str = "works") -> Genesis:
        genesis = super().make_genesis(network)
        invitation = genesis.invitation
        members = list(invitation.members)
        members[1] = replace(members[1], role=self.role)
        watcher = replace(members[0], peer=self.watcher.peer, name="eye", role=self.watches)
        # The signatures do not hold any more, and a chain does not look at them.
        return replace(genesis, invitation=replace(invitation, members=tuple(members), observers=(watcher,)))


def verdict(world: World, *records: object) -> str:
    draft = world.state.draft()
    return [draft.add(one) for one in records][-1]  # type: ignore[arg-type]


def test_a_chain_judges_by_the_roles_of_its_members() -> None:
    demand = World().demand(0).record.body
    witness = RolesWorld("witness")
    assert verdict(witness, witness.record(witness.signers[1], demand)) == ""
    assert "cannot do it: a witness may not be given work" in verdict(witness, witness.requirement(0, 1))
    assert verdict(witness, *witness.step_records(0, 2)) == ""
    steps = witness.step_records(0, 2)
    refused = verdict(witness, *steps, witness.inspection(0, 1))
    assert "a witness may not report inspections" in refused
    inspector = RolesWorld("inspector")
    assert verdict(inspector, *inspector.step_records(0, 2), inspector.inspection(0, 1)) == ""


@pytest.mark.parametrize(
    ("role", "refused"), [("client", ""), ("regulator", "a regulator may not demand data")]
)
def test_an_observer_writes_demands_if_it_is_a_client(role: Role, refused: str) -> None:
    world = RolesWorld("machine", role)
    demand, offer = World().demand(0).record.body, World().offer(0).record.body
    assert refused in verdict(world, world.record(world.watcher, demand))
    assert (verdict(world, world.record(world.watcher, demand)) == "") == (refused == "")
    assert f"a {role} may not offer data" in verdict(world, world.record(world.watcher, offer))


def test_nobody_comes_into_a_pool_who_may_not_be_a_member() -> None:
    world = World()
    change = world.change(incoming=world.newcomer("n"))
    assert change.incoming is not None
    for role in ("regulator", "client"):
        other = replace(change, incoming=replace(change.incoming, role=role))
        assert f"a {role} may not be a member" in verdict(world, world.record(world.coordinator, other))


def test_roles_survive_a_snapshot() -> None:
    world = RolesWorld("witness")
    world.pack(world.demand(0))
    restored = ChainState.restore(world.genesis, world.state.snapshot())
    assert restored.root == world.state.root
    assert [member.role for member in restored.roster][:2] == ["machine", "witness"]

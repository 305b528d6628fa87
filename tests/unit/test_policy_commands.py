"""'edgepool policy' and 'edgepool audit' before any peer is asked, and what is kept of policies on disk."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from ledger_world import KEY, World
from msgspec.structs import replace
from typer.testing import CliRunner

from edgepool.cli.main import app
from edgepool.cli.policy import until_ms
from edgepool.core.access import SEALED, Access
from edgepool.core.ledger.proof import prove
from edgepool.core.rights import Subject
from edgepool.errors import LocalError
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.model.ids import PeerId
from edgepool.model.message import Origin
from edgepool.model.policy import DataPolicy, PolicyTerms
from edgepool.storage.audit import AuditEntry, AuditLog
from edgepool.storage.origins import Origins

NOW_S = datetime(2026, 11, 29, 12).timestamp()


def complaint(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    return result.stderr


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", None),
        ("90m", datetime(2026, 11, 29, 13, 30)),
        ("36h", datetime(2026, 12, 1)),
        ("90d", datetime(2027, 2, 27, 12)),
        ("2027-01-31", datetime(2027, 1, 31, 23, 59, 59)),
        ("2027-01-31 17:00", datetime(2027, 1, 31, 17)),
    ],
)
def test_until_is_a_day_a_time_or_a_span(text: str, meant: datetime | None) -> None:
    assert until_ms(text, NOW_S) == (0 if meant is None else int(meant.timestamp() * 1000))


@pytest.mark.parametrize(
    ("text", "fault"), [("soon", "write 2027-01-31"), ("31.1.2027", "write"), ("2020-01-01", "is over")]
)
def test_until_says_what_to_write_instead(text: str, fault: str) -> None:
    with pytest.raises(LocalError, match=fault):
        until_ms(text, NOW_S)


def test_bad_input_gets_one_sentence(tmp_path: Path) -> None:
    make_peer_folder(tmp_path / "mill", PeerPlan("mill", "works"), tmp_path / "authority")
    mill = tmp_path / "mill"
    assert "'boss' is not a role" in complaint("policy", "set", mill, KEY, "--roles", "machine,boss")
    assert "is not a data key" in complaint("policy", "set", mill, "model")
    assert "is no gateway's folder" in complaint("audit", tmp_path)


def test_the_audit_is_shown_without_its_peer(tmp_path: Path) -> None:
    make_peer_folder(tmp_path / "mill", PeerPlan("mill", "works"), tmp_path / "authority")
    runner = CliRunner()
    assert "nobody was granted or refused" in runner.invoke(app, ["audit", str(tmp_path / "mill")]).stdout
    entry = AuditEntry(1, "p", "lathe", "machine", "Works", str(KEY), "00", "production", True)
    log = AuditLog(tmp_path / "mill", 64 * 1024)
    log.append(entry)
    log.append(replace(entry, purpose="marketing", granted=False, reason="no \x1b[31m", unwritten=3))
    log.close()
    shown = runner.invoke(app, ["audit", str(tmp_path / "mill")]).stdout
    assert "granted" in shown
    assert "and 3 more before" in shown
    assert "\x1b" not in shown
    assert "production" not in runner.invoke(app, ["audit", str(tmp_path / "mill"), "--refused"]).stdout


def origin() -> Origin:
    world = World()
    policy = DataPolicy(KEY.part, KEY.kind, 1, PolicyTerms(purposes=("production",)))
    proof = prove(world.genesis, (), world.certify(world.pack(world.record(world.signers[0], policy))), 0)
    assert proof is not None
    return Origin(KEY, proof)


def test_policies_of_held_data_come_back_and_those_of_other_data_go(tmp_path: Path) -> None:
    stored, came = Origins(tmp_path), origin()
    for root in (bytes(32), b"\1" * 32):
        stored.save(root, came)
    assert Origins(tmp_path).load({bytes(32): 4}) == {bytes(32): came}
    assert len(list((tmp_path / "origins").iterdir())) == 1
    assert Origins(tmp_path / "other").load({bytes(32): 4}) == {}


def test_data_whose_policy_is_damaged_is_handed_to_nobody(tmp_path: Path) -> None:
    stored, root = Origins(tmp_path), bytes(32)
    stored.save(root, origin())
    (path,) = (tmp_path / "origins").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    access = Access(PeerId("me"), {}, "network")
    access.origins.update(stored.load({root: 4}))
    assert access.admit(Subject(PeerId("p")), KEY, root, "", 0) == (None, SEALED)

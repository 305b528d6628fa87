"""What the doctor finds in a gateway's folder, and what it advises."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as replace_settings
from typer.testing import CliRunner, Result

from edgepool.cli.main import app
from edgepool.config import (
    CONFIG_FILE,
    AuthoritySettings,
    ConduitSettings,
    Limits,
    PeerSettings,
    load_peer_settings,
)
from edgepool.gateway.doctor import (
    CertificateFacts,
    ChainFacts,
    Finding,
    IdentityFacts,
    check_authority_key,
    check_chain,
    check_clock,
    check_descriptors,
    check_filesystem,
    check_folder,
    check_identity,
    check_room,
    check_sync,
    check_time_service,
    check_version,
)
from edgepool.gateway.gathering import (
    authority_key_problem,
    chain_facts,
    filesystem,
    identity_facts,
    stored_members,
    sync_time,
)
from edgepool.gateway.lifetimes import RootFacts, check_members, check_renewal, check_roots
from edgepool.gateway.pools import find_members
from edgepool.gateway.setup import PeerPlan, free_ports, make_peer_folder, read_peer_id
from edgepool.gateway.ways import (
    PlaceFacts,
    check_addresses,
    check_links,
    check_places,
    check_port,
    check_serving,
    firewall_rows,
)
from edgepool.model.ids import peer_id_from_public_key
from edgepool.peer.lifeview import CertificateStatus, overdue_problem
from edgepool.peer.peer import Peer
from edgepool.storage.segments import list_segments
from edgepool.storage.store import list_chains
from edgepool.transport.certificates import create_authority, create_key, issue_certificate

DAY_MS = 86_400_000
CONDUIT = f"/ip4/10.0.0.9/tcp/4009/p2p/{peer_id_from_public_key(bytes(32))}"


def listening(listen: str, **more: object) -> PeerSettings:
    return PeerSettings(name="mill", network="plant", listen=listen, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one peer's folder, whose pool of one has a chain of two blocks."""
    folder = tmp_path_factory.mktemp("doctor")

    async def work() -> None:
        async with Peer.open(folder / "solo") as peer:
            members, _ = find_members(peer, ["solo"])
            await peer.form_pool("workshop", "fixed", members)
            for number in (1, 2):
                await peer.publish(f"P-{number}/model", b"data")

    listen = f"/ip4/127.0.0.1/tcp/{free_ports(1)[0]}"
    plan = PeerPlan("solo", "plant", "coordinator", listen=listen)
    make_peer_folder(folder / "solo", plan, folder / "authority")
    asyncio.run(work())
    return folder


@pytest.fixture
def solo(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that peer's folder, with the authority beside it."""
    monkeypatch.delenv("EDGEPOOL_PASSPHRASE", raising=False)
    shutil.copytree(made / "authority", tmp_path / "authority")
    return Path(shutil.copytree(made / "solo", tmp_path / "solo"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def findings_of(folder: Path, code: int) -> dict[str, dict[str, str]]:
    result = call("doctor", folder, "--json")
    assert result.exit_code == code, result.output
    told = json.loads(result.stdout)
    return {finding["check"]: finding for finding in told["examination"]["findings"]}


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


def own_identity(folder: Path) -> tuple[PeerSettings, IdentityFacts]:
    settings = load_peer_settings(folder)
    return settings, identity_facts(settings)


# --- the whole command --------------------------------------------------------------------------


def test_a_sound_gateway_has_no_fault_and_is_told_so(solo: Path) -> None:
    before = sorted(path.name for path in solo.iterdir())
    found = findings_of(solo, 0)
    assert [check for check, finding in found.items() if finding["level"] == "fault"] == []
    assert found["chain workshop"]["found"] == "height 2, this peer votes"
    assert found["peer"]["found"] == "does not run"
    assert {"key", "certificate", "clock", "port", "disk writes", "open files", "versions"} <= set(found)
    assert sorted(path.name for path in solo.iterdir()) == before
    shown = call("doctor", solo).stdout
    assert "what to do" in shown
    assert "chain workshop" in shown


def test_what_is_no_gateways_folder_is_bad_input(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        result = call("doctor", folder)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")


def test_broken_settings_are_a_fault_and_the_machine_is_looked_at_all_the_same(solo: Path) -> None:
    (solo / CONFIG_FILE).write_text("name = 3\n")
    found = findings_of(solo, 1)
    assert found["settings"]["level"] == "fault"
    assert found["disk writes"]["level"] in ("ok", "warn")
    assert "key" not in found


def test_a_name_that_is_not_the_certificates_is_a_fault(solo: Path) -> None:
    path = solo / CONFIG_FILE
    path.write_text(path.read_text().replace('name = "solo"', 'name = "duo"'))
    found = findings_of(solo, 1)
    assert "for name 'solo', but the settings say 'duo'" in found["names"]["found"]


def test_a_port_that_another_program_has_is_a_fault(solo: Path) -> None:
    port = int(load_peer_settings(solo).listen.rsplit("/", 1)[1])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen(1)
        found = findings_of(solo, 1)
    assert "cannot be bound" in found["port"]["found"]


def test_the_port_of_the_second_road_is_looked_at_where_there_is_one(solo: Path) -> None:
    assert "libp2p port" not in findings_of(solo, 0)
    path = solo / CONFIG_FILE
    path.write_text(path.read_text().replace('transport = "tls"', 'transport = "both"'))
    (found,) = [one for check, one in findings_of(solo, 0).items() if check == "libp2p port"]
    assert found["level"] == "warn"
    assert "'listen' under [libp2p]" in found["advice"]


def test_an_endpoint_of_a_run_that_was_cut_off_is_no_running_peer(solo: Path) -> None:
    endpoint = {"url": f"http://127.0.0.1:{free_ports(1)[0]}", "peer": "x", "pid": os.getpid()}
    (solo / "api.json").write_text(json.dumps(endpoint))
    assert "cut off" in findings_of(solo, 0)["peer"]["found"]


# --- identity -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "level", "advice"),
    [
        (0, "ok", ""),
        (340, "warn", "edgepool renew"),
        (366, "fault", "edgepool renew"),
        (-2, "fault", "clock"),
    ],
)
def test_certificates_are_judged_by_the_days_left(solo: Path, days: int, level: str, advice: str) -> None:
    _, facts = own_identity(solo)
    now_ms = facts.certificate.not_before_ms + 3_600_000 + days * DAY_MS
    found = next(one for one in check_identity(facts, now_ms) if one.check == "certificate")
    assert found.level == level
    assert advice in found.advice


def test_a_certificate_for_a_day_is_warned_of_by_its_own_measure(solo: Path) -> None:
    _, facts = own_identity(solo)
    start_ms = facts.certificate.not_before_ms
    day = replace(facts, certificate=replace(facts.certificate, not_after_ms=start_ms + DAY_MS))
    assert levels(check_identity(day, start_ms + 1))["certificate"] == "ok"
    assert levels(check_identity(day, start_ms + DAY_MS - 1))["certificate"] == "warn"


def lasting(due_ms: int, problem: str = "") -> CertificateStatus:
    return CertificateStatus(
        issued_ms=0, valid_until_ms=100 * DAY_MS, days_left=1.0, due_ms=due_ms, problem=problem
    )


def test_a_renewal_is_warned_of_when_it_is_long_overdue() -> None:
    due_ms = 66 * DAY_MS
    assert check_renewal(lasting(due_ms), 50 * DAY_MS) == Finding("renewal", "ok", "by itself, in 16 days")
    assert check_renewal(lasting(due_ms, "nobody is linked"), 67 * DAY_MS).level == "ok"
    late = check_renewal(lasting(due_ms, "nobody is linked"), 80 * DAY_MS)
    assert (late.level, late.found) == ("warn", "overdue: nobody is linked")
    assert "edgepool renew" in late.advice
    assert overdue_problem(lasting(due_ms), 70 * DAY_MS) == ""
    assert "24 hours and was not renewed (no link)" in overdue_problem(
        lasting(due_ms, "no link"), 80 * DAY_MS
    )
    assert "has expired" in overdue_problem(lasting(due_ms), 101 * DAY_MS)


def test_roots_and_members_are_judged_by_the_days_left() -> None:
    own = RootFacts("A works", "ab" * 32, True, 80 * DAY_MS)
    other = RootFacts("B works", "cd" * 32, False, 200 * DAY_MS)
    assert check_roots([replace(own, valid_until_ms=200 * DAY_MS), other], 0)[0].level == "ok"
    (soon,) = check_roots([own, other], 0)
    assert (soon.level, soon.found) == ("warn", "root abababababababab of 'A works' expires in 80 days")
    assert "edgepool org rotate" in soon.advice
    assert [one.level for one in check_roots([own, other], 300 * DAY_MS)] == ["fault", "warn"]
    assert check_members([("mill-1", 100 * DAY_MS), ("mill-2", 0)], 0) == []
    (late,) = check_members([("mill-1", 100 * DAY_MS), ("mill-2", 300 * DAY_MS)], 90 * DAY_MS)
    assert (late.check, late.found) == ("certificate of mill-1", "expires in 10 days")


def test_a_key_that_others_can_read_or_that_is_gone_is_a_fault(solo: Path) -> None:
    key = solo / "identity/key.pem"
    key.chmod(0o644)
    found = check_identity(own_identity(solo)[1], 0)[0]
    assert (found.check, found.level) == ("key", "fault")
    assert "chmod 600" in found.found
    key.unlink()
    assert "does not exist" in check_identity(own_identity(solo)[1], 0)[0].found


def test_files_that_do_not_match_are_a_fault(solo: Path, tmp_path: Path) -> None:
    settings, facts = own_identity(solo)
    now_ms = facts.certificate.not_before_ms + DAY_MS
    (solo / "identity/key.pem").unlink()
    peer = create_key(solo / "identity/key.pem")
    assert levels(check_identity(identity_facts(settings), now_ms))["certificate matches"] == "fault"
    create_authority(tmp_path / "others", "others")
    pem = issue_certificate(
        tmp_path / "others", peer, name="solo", network="plant", role="coordinator", machine_type=""
    )
    (solo / "identity/certificate.pem").write_bytes(pem)
    found = {one.check: one for one in check_identity(identity_facts(settings), now_ms)}
    assert "was not signed by the authority" in found["certificate matches"].found
    (solo / "identity/certificate.pem").write_bytes(b"junk")
    assert levels(check_identity(identity_facts(settings), now_ms))["certificate"] == "fault"


def test_a_passphrase_beside_the_key_is_warned_of(solo: Path, tmp_path: Path) -> None:
    for path, level in ((solo / "secret", "warn"), (tmp_path / "secret", "ok")):
        path.write_text("open sesame")
        path.chmod(0o600)
        assert call("key", "encrypt", solo, "--passphrase-file", path).exit_code == 0
        _, facts = own_identity(solo)
        assert check_identity(facts, 0)[0].level == level
        assert "sesame" not in call("doctor", solo, "--json").output
        call("key", "decrypt", solo)


def test_a_passphrase_that_only_the_running_peer_has_is_no_fault(
    solo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPOOL_PASSPHRASE", "open sesame")
    own = own_identity(solo)[1].peer
    assert call("key", "encrypt", solo).exit_code == 0
    assert check_identity(own_identity(solo)[1], 0)[0].level == "ok"
    monkeypatch.delenv("EDGEPOOL_PASSPHRASE")
    _, facts = own_identity(solo)
    assert [check_identity(facts, 0, running)[0].level for running in (True, False)] == ["warn", "fault"]
    assert facts.peer == own


# --- chains and clock ---------------------------------------------------------------------------


def test_a_clock_before_the_newest_block_or_the_certificate_is_a_fault(solo: Path) -> None:
    facts = chain_facts(solo, list_chains(solo)[0], None)
    assert facts.newest_ms > 0
    assert check_clock(facts.newest_ms, 0, [facts]).level == "ok"
    found = check_clock(facts.newest_ms - 3 * DAY_MS, 0, [facts])
    assert (found.level, found.found) == ("fault", "3 days before the newest block of pool workshop")
    assert "solo is ahead" in found.advice
    assert check_clock(1_000_000, 1_000_001, []).level == "fault"
    assert check_clock(1_000_000, 0, []).level == "ok"


def test_a_damaged_block_is_a_fault_and_a_write_that_was_cut_off_is_not(solo: Path) -> None:
    chain = list_chains(solo)[0]
    path = list_segments(solo / "chains" / chain)[-1][1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    cut = chain_facts(solo, chain, None)
    assert (cut.unfinished, cut.height) == (True, 1)
    assert check_chain(cut, "solo", running=False).level == "warn"
    assert check_chain(cut, "solo", running=True).level == "ok"
    path.write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    damaged = check_chain(chain_facts(solo, chain, None), "solo", running=False)
    assert damaged.level == "fault"
    assert "edgepool chain verify solo" in damaged.advice
    (solo / "chains" / chain / "genesis.bin").write_bytes(b"junk")
    assert check_chain(chain_facts(solo, chain, None), "solo", running=False).level == "fault"
    assert stored_members(solo, None) == []


def test_membership_is_read_from_the_blocks(solo: Path) -> None:
    own = read_peer_id(load_peer_settings(solo))
    facts = chain_facts(solo, list_chains(solo)[0], own)
    assert (facts.present, facts.open_changes, facts.height) == (True, 0, 2)
    assert stored_members(solo, own) == []
    assert [member.name for member in stored_members(solo, None)] == ["solo"]


def test_pruned_chains_and_open_changes_are_told() -> None:
    facts = ChainFacts("milling", height=900, first=500, present=False, open_changes=0)
    found = check_chain(facts, "mill", running=True)
    assert (found.level, found.found) == ("ok", "height 900, pruned up to 499, this peer has no vote")
    assert check_chain(replace(facts, open_changes=2), "mill", running=True).level == "warn"


def test_the_key_of_an_authority_that_others_can_read_is_a_fault(solo: Path) -> None:
    settings = replace_settings(load_peer_settings(solo), authority=AuthoritySettings(folder="../authority"))
    assert check_authority_key(authority_key_problem(settings), "").level == "ok"
    followed = check_authority_key("", "ab" * 32)
    assert (followed.level, "edgepool org hand-over" in followed.advice) == ("warn", True)
    key = solo.parent / "authority/authority.key"
    key.chmod(0o644)
    found = check_authority_key(authority_key_problem(settings), "")
    assert found.level == "fault"
    assert "chmod 600" in found.found
    key.unlink()
    assert check_authority_key(authority_key_problem(settings), "").level == "fault"


# --- machine and network ------------------------------------------------------------------------


def test_what_the_machine_lacks_is_told() -> None:
    limits = Limits(data_bytes=10**9, chain_bytes=10**9, links=10)
    assert check_room(3 * 10**9, 0, limits, 1).level == "ok"
    assert check_room(10**9, 0, limits, 1).level == "warn"
    assert check_room(10**9, 15 * 10**8, limits, 1).level == "ok"
    assert check_room(10**6, 2 * 10**9, limits, 1).level == "fault"
    assert [check_sync(ms, "").level for ms in (1.0, 50.0, 51.0)] == ["ok", "ok", "warn"]
    assert check_sync(0.0, "read-only file system").level == "fault"
    assert [check_filesystem(kind).level for kind in ("ext4", "tmpfs", "")] == ["ok", "warn", "ok"]
    assert [check_descriptors(limit, limits, ConduitSettings()).level for limit in (64, 4096, -1)] == [
        "warn",
        "ok",
        "ok",
    ]
    assert [check_folder("f", mode, True).level for mode in (0o700, 0o755, 0o770, 0o702)] == [
        "ok",
        "ok",
        "fault",
        "fault",
    ]
    assert check_folder("f", 0o700, False).level == "warn"


@pytest.mark.parametrize(
    ("installed", "wanted", "level"),
    [
        ("3.10", "<4,>=3.10", "ok"),
        ("3.9.9", "<4,>=3.10", "fault"),
        ("4.0.0", "<4,>=3.10", "fault"),
        ("4.0rc1", "<4", "fault"),
        ("1.0", ">=1", "ok"),
        ("7", "", "ok"),
        ("", ">=1", "fault"),
    ],
)
def test_versions_are_compared_by_numbers(installed: str, wanted: str, level: str) -> None:
    assert check_version("lib", installed, wanted).level == level


def test_the_file_system_is_that_of_the_longest_mount_point(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    here = tmp_path.resolve()
    table.write_text(
        "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw\n"
        f"2 1 0:5 / {here} rw - tmpfs tmpfs rw\n"
        f"3 1 0:6 / {here}x rw - xfs /dev/sdb rw\n"
    )
    assert filesystem(tmp_path, table) == "tmpfs"
    assert filesystem(Path("/"), table) == "ext4"
    assert filesystem(tmp_path, tmp_path / "none") == ""


def test_a_folder_that_cannot_be_written_is_found_out(tmp_path: Path) -> None:
    assert sync_time(tmp_path)[1] == ""
    assert list(tmp_path.iterdir()) == []
    assert sync_time(tmp_path / "none")[1] == "no such file or directory"


def test_ports_and_addresses() -> None:
    assert check_port("port", "127.0.0.1", 0, False, "").level == "warn"
    assert check_port("port", "127.0.0.1", 0, True, "").level == "warn"
    assert check_port("libp2p port", "127.0.0.1", 0, True, "").advice.startswith("write a fixed port behind")
    assert check_port("API port", "127.0.0.1", 0, False, "").level == "ok"
    assert check_port("port", "127.0.0.1", 4001, True, "address already in use").level == "ok"
    home, plant = "/ip4/127.0.0.1/tcp/4001", "/ip4/10.0.0.7/tcp/4001"
    assert check_addresses(listening(home), "127.0.0.1", [home]).level == "ok"
    assert check_addresses(listening(home), "127.0.0.1", [home, plant]).level == "warn"
    assert check_addresses(listening(plant), "10.0.0.7", [home, plant]).level == "ok"
    everywhere = listening("/ip4/0.0.0.0/tcp/4001")
    assert check_addresses(everywhere, "10.0.0.7", []).found.endswith("tells others 10.0.0.7")
    assert check_addresses(everywhere, "127.0.0.1", []).level == "warn"


def test_a_peer_that_accepts_nothing_needs_a_conduit_that_keeps_a_place() -> None:
    assert check_addresses(listening(""), "", []).level == "warn"
    assert check_addresses(listening("", conduits=(CONDUIT,)), "", []).level == "ok"
    kept = PlaceFacts("dmz", CONDUIT, True, "", 1.234)
    lost = PlaceFacts("", CONDUIT, False, "nothing listens there", None)
    assert [one.found for one in check_places([kept])] == ["keeps a place, 1.2 ms there and back"]
    found = check_places([kept, lost])
    assert levels(found) == {"conduit dmz": "ok", "conduit 10.0.0.9": "warn"}
    assert "nobody reaches" not in found[1].found
    assert "nobody reaches this peer" in check_places([lost])[0].found


def test_a_conduit_needs_a_port_that_others_know() -> None:
    def serving(listen: str) -> list[Finding]:
        return check_serving(listening(listen, conduit=ConduitSettings(serve=True)))

    assert check_serving(listening("/ip4/0.0.0.0/tcp/0")) == []
    assert levels(serving("/ip4/0.0.0.0/tcp/0")) == {"conduit": "fault"}
    assert levels(serving("/ip4/127.0.0.1/tcp/4001")) == {"conduit": "warn"}
    assert levels(serving("/ip4/0.0.0.0/tcp/4001")) == {"conduit": "ok"}


def test_a_clock_that_nothing_keeps_is_told() -> None:
    assert check_time_service(None) == []
    assert levels(check_time_service(True)) == {"time service": "ok"}
    assert levels(check_time_service(False)) == {"time service": "warn"}


def test_firewall_rows_name_what_leaves_the_machine() -> None:
    others = [
        ("a", "/ip4/10.0.0.7/tcp/4001"),
        ("b", "/ip4/127.0.0.1/tcp/4002"),
        ("a", "/ip4/10.0.0.7/tcp/4001"),
    ]
    rows = firewall_rows(listening("/ip4/0.0.0.0/tcp/4000"), others)
    assert [(row.direction, row.port, row.peers) for row in rows] == [
        ("in", "4000", "10.0.0.7"),
        ("out", "4001", "10.0.0.7 (a)"),
    ]
    assert firewall_rows(listening("/ip4/127.0.0.1/tcp/4000"), []) == []
    assert firewall_rows(listening("/ip4/0.0.0.0/tcp/4000"), [])[0].peers == "all peers of the network"


def test_who_accepts_nothing_needs_rows_out_only_and_one_to_each_conduit() -> None:
    others = [
        ("a", f"{CONDUIT}/p2p-circuit"),
        ("b", f"{CONDUIT}/p2p-circuit"),
        ("c", "/ip4/10.0.0.7/tcp/4001"),
    ]
    rows = firewall_rows(listening("", conduits=(CONDUIT,)), others)
    assert [(row.direction, row.port, row.peers) for row in rows] == [
        ("out", "4009", "10.0.0.9 (conduit)"),
        ("out", "4001", "10.0.0.7 (c)"),
    ]


def test_links_of_a_running_peer() -> None:
    assert levels(check_links(["a", "b"], ["b", "c"], {})) == {"links": "ok", "link to a": "warn"}
    assert levels(check_links(["a"], [], {})) == {"link to a": "warn"}
    (found,) = check_links(["a"], [], {"a": ("nothing listens there", "start it")})
    assert (found.found, found.advice) == ("there is none; nothing listens there", "start it")


def test_an_authority_that_cannot_be_read_is_told_once() -> None:
    missing = CertificateFacts("authority.pem", "authority.pem does not exist")
    there = CertificateFacts("certificate.pem", "", 0, 100 * DAY_MS)
    found = levels(
        check_identity(IdentityFacts(None, "", False, False, False, there, missing, "", ""), DAY_MS)
    )
    assert found == {"key": "ok", "certificate": "ok", "authority": "fault"}

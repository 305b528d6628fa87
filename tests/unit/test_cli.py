"""The command line: what a user meets before any network is involved."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tomllib
from io import StringIO
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner, Result

from edgepool.cli import console
from edgepool.cli.conduits import libp2p_line, path_cells, transfer_peer
from edgepool.cli.console import columns, moment
from edgepool.cli.main import app
from edgepool.cli.status import MEANINGS, ORDINARY, StatusScreen
from edgepool.config import CONFIG_FILE, FixedPool, KnownPeer, PeerSettings, convert, load_peer_settings
from edgepool.errors import LocalError
from edgepool.gateway.pools import find_members
from edgepool.gateway.setup import PeerPlan, config_text, make_peer_folder, read_peer_id
from edgepool.model.twin import DataKey
from edgepool.peer.lifeview import CertificateStatus, overdue_problem
from edgepool.peer.pathvalues import Libp2pStatus, LinkStatus
from edgepool.peer.peer import Peer
from edgepool.peer.statusview import metrics_of
from edgepool.peer.values import ChainStatus, PeerStatus, Totals, TransferStatus
from edgepool.transport import refusals
from edgepool.workshop.demo import DemoOptions

EXAMPLES = Path(__file__).parents[2] / "examples"
PEER = "12D3KooWPSjwuwUkYKvFUSk8zv5LVBxUcTVX3aSK5vqMmMeibTBL"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def complaint(*arguments: object, code: int = 2) -> str:
    """Return the one sentence that a command ends with."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    return result.stderr.strip()


COMMANDS = ("demo", "init", "run", "status", "doctor", "publish", "request", "fetch")
SUBCOMMANDS = (
    "chain list",
    "chain show",
    "chain verify",
    "chain members",
    "chain query",
    "chain lottery",
    "chain genesis",
    "key encrypt",
    "key decrypt",
    "proof make",
    "proof check",
    "topology show",
    "topology run",
)


@pytest.mark.parametrize("command", COMMANDS + SUBCOMMANDS)
def test_every_help_teaches_with_an_example(command: str) -> None:
    result = call(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"edgepool {command}" in result.output.split("Example", 1)[1]


def test_help_needs_neither_crypto_nor_network_libraries() -> None:
    heavy = "{'aiohttp', 'nacl', 'networkx', 'numpy', 'cryptography'}"
    code = f"import sys, edgepool.cli.main; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- init ---------------------------------------------------------------------------------------


def test_init_makes_a_folder_that_a_second_peer_can_know(tmp_path: Path) -> None:
    assert call("init", tmp_path / "cloud", "--role", "coordinator", "--network", "plant").exit_code == 0
    result = call(
        "init", tmp_path / "mill", "--machine-type", "Milling", "--known", tmp_path / "cloud", "--json"
    )
    made = json.loads(result.stdout)
    cloud, mill = load_peer_settings(tmp_path / "cloud"), load_peer_settings(tmp_path / "mill")
    cloud_id = read_peer_id(cloud)
    assert (mill.name, mill.network, mill.role, mill.machine_type) == ("mill", "plant", "machine", "Milling")
    assert mill.coordinators == (cloud_id,)
    assert mill.known_peers == (KnownPeer("cloud", f"{cloud.listen}/p2p/{cloud_id}"),)
    assert made["id"] == read_peer_id(mill) != cloud_id
    assert (tmp_path / "mill" / "identity" / "key.pem").stat().st_mode & 0o077 == 0


def test_init_makes_a_conduit_and_a_peer_that_is_reached_through_it(tmp_path: Path) -> None:
    hub, mill = tmp_path / "hub", tmp_path / "mill"
    assert call("init", hub, "--role", "coordinator", "--serve-conduit").exit_code == 0
    assert call("init", mill, "--conduit", hub, "--known", hub).exit_code == 0
    settings = load_peer_settings(mill)
    assert load_peer_settings(hub).conduit.serve
    assert settings.listen == ""
    assert settings.conduits == (settings.known_peers[0].address,)
    # Nobody can be told to dial it, nor can it be a conduit itself.
    assert "accepts nothing" in call("init", tmp_path / "drill", "--known", mill).stderr
    assert "reached directly" in call("init", tmp_path / "saw", "--conduit", hub, "--serve-conduit").stderr


def test_init_stays_in_the_network_of_the_authority(tmp_path: Path) -> None:
    call("init", tmp_path / "cloud", "--network", "plant")
    assert call("init", tmp_path / "mill").exit_code == 0
    assert load_peer_settings(tmp_path / "mill").network == "plant"


def test_init_never_overwrites_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    call("init", tmp_path / "mill")
    before = (tmp_path / "mill" / CONFIG_FILE).read_bytes()
    assert "never overwritten" in complaint("init", tmp_path / "mill")
    assert (tmp_path / "mill" / CONFIG_FILE).read_bytes() == before
    assert "not a role" in complaint("init", tmp_path / "new", "--role", "king")
    assert "is not an address" in complaint("init", tmp_path / "new", "--listen", "here:80")
    assert "not a peer id" in complaint("init", tmp_path / "new", "--coordinator", "0OIl")
    assert "does not exist" in complaint("init", tmp_path / "new", "--known", tmp_path / "none")
    assert "they could not talk" in complaint(
        "init", tmp_path / "new", "--known", tmp_path / "mill", "--network", "x"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authority", "mill"]


def test_the_settings_file_explains_every_setting_and_shows_its_default(tmp_path: Path) -> None:
    text = config_text(PeerPlan("mill", "plant", role="coordinator", machine_type='5" drill'))
    shown = re.sub(r"(?m)^#(\[|[a-z_]+ = )", r"\1", text)
    tables = tomllib.loads(shown)
    assert tables.pop("known_peers")
    assert tables.pop("fixed_pools")
    assert tables.pop("authority")
    settings = convert(tmp_path / CONFIG_FILE, tables, PeerSettings)
    plain = PeerSettings(name="mill", network="plant", role="coordinator", machine_type='5" drill')
    assert settings == plain
    for part in ("api", "limits", "consensus", "identity"):
        assert set(tables[part]) == set(getattr(plain, part).__struct_fields__)


def test_pools_and_known_peers_are_written_as_planned(tmp_path: Path) -> None:
    known = KnownPeer('a "quoted" name', f"/ip4/10.0.0.1/tcp/4001/p2p/{PEER}")
    pool = FixedPool("cutting", ("mill", "lathe \\ 2"))
    plan = PeerPlan("cloud", "plant", "coordinator", known_peers=(known,), fixed_pools=(pool,))
    settings = make_peer_folder(tmp_path / "cloud", plan, tmp_path / "authority")
    assert (settings.known_peers, settings.fixed_pools) == ((known,), (pool,))


# --- bad input ----------------------------------------------------------------------------------


def test_bad_input_gets_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    call("init", tmp_path / "mill")
    assert "not running: start it with 'edgepool run" in complaint("status", tmp_path / "mill")
    assert "edgepool init" in complaint("status", tmp_path / "none")
    assert "is no gateway's folder" in complaint("status", tmp_path)
    assert "write PART/KIND" in complaint("request", tmp_path / "mill", "model")
    assert "is not a file" in complaint("publish", tmp_path / "mill", "P/model", tmp_path / "none")
    assert "is a folder" in complaint("fetch", tmp_path / "mill", "P/model", tmp_path)
    assert "is not a folder" in complaint("fetch", tmp_path / "mill", "P/model", "P/error", tmp_path / "none")
    assert "is not a folder" in complaint("fetch", tmp_path / "mill", "P/*", tmp_path / "none")
    assert "write PART/KIND" in complaint("fetch", tmp_path / "mill", "P/*", "model", tmp_path)
    assert "--version is for one key" in complaint(
        "fetch", tmp_path / "mill", "P/*", tmp_path, "--version", 2
    )
    assert "does not exist" in complaint("topology", "run", tmp_path / "none.toml")
    assert "no peer's folder" in complaint("chain", "verify", tmp_path / "authority")
    settings = tmp_path / "mill" / CONFIG_FILE
    settings.write_text(settings.read_text() + "\n[api]\nport = 'x'\n")
    assert "api.port: expected `int`, got `str`" in complaint("run", tmp_path / "mill")
    settings.write_text("name = = 1")
    assert "line 1, column 8" in complaint("run", tmp_path / "mill")
    settings.write_text('name = "mill"\nnetwork = [\n')
    assert "at line 2, the end" in complaint("run", tmp_path / "mill")
    settings.write_text('name = "mill"\nnetwork = "plant"\n[api]\ncolour = 1\n')
    assert "there is no setting 'colour' in api" in complaint("run", tmp_path / "mill")
    settings.write_text('name = "mill"\n')
    assert "the setting 'network' is missing" in complaint("run", tmp_path / "mill")
    assert "is no gateway's folder" in complaint("run", tmp_path)
    assert "is no gateway's folder" in complaint("status", settings)
    assert "is not a folder" in complaint("chain", "verify", settings)


def test_numbers_beyond_all_bounds_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    for option in (("--timeout", "inf"), ("--timeout", "nan"), ("--timeout", 1e30), ("--version", 2**31 + 1)):
        result = call("fetch", tmp_path, "P/model", tmp_path / "out", *option)
        assert (result.exit_code, "Invalid value" in result.stderr) == (2, True)


def test_what_the_system_refuses_gets_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()

    def iterdir(_: Path) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "closed"))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert "closed': Permission denied" in complaint("chain", "verify", tmp_path)


def test_nothing_that_others_wrote_steers_the_terminal() -> None:
    table = columns("says")
    table.add_row("\x1b[2Jgone")
    table.add_row(Text("\x9b2J", style="red"))
    with console.out.capture() as captured:
        console.out.print(table)
        console.say("title \x1b]0;mine\x07")
    assert "\x1b[2J" not in captured.get()
    assert "\x9b" not in captured.get()
    assert "\x1b]0" not in captured.get()
    assert moment(2**53) == f"{2**53} ms"


def test_a_topology_is_drawn_and_its_faults_are_named(tmp_path: Path) -> None:
    drawn = call("topology", "show", EXAMPLES / "line.toml")
    assert drawn.exit_code == 0
    assert "c (Grinding) ⇄ c-d" in drawn.stdout
    facts = json.loads(call("topology", "show", EXAMPLES / "line.toml", "--json").stdout)
    assert (facts["most_hops"], facts["bridges"], facts["problems"]) == (2, ["b", "c"], [])
    broken = tmp_path / "broken.toml"
    broken.write_text((EXAMPLES / "line.toml").read_text().replace('["b", "c"]', '["b", "x"]'))
    shown = call("topology", "show", broken)
    assert shown.exit_code == 1
    assert "has a member 'x' who is not among the peers" in shown.stdout


# --- chains in folders --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one peer's folder, whose pool of one has a chain of three blocks."""
    folder = tmp_path_factory.mktemp("plant")

    async def work() -> None:
        async with Peer.open(folder / "solo") as peer:
            members, _ = find_members(peer, ["solo"])
            await peer.form_pool("workshop", "fixed", members)
            for number in (1, 2, 3):
                await peer.publish(f"P-{number}/model", b"data")

    make_peer_folder(folder / "solo", PeerPlan("solo", "plant", "coordinator"), folder / "authority")
    asyncio.run(work())
    return folder


def test_chains_are_listed_shown_and_verified_without_their_peer(plant: Path) -> None:
    (row,) = json.loads(call("chain", "list", plant, "--json").stdout)
    assert (row["peer"], row["name"], row["height"], row["members"]) == ("solo", "workshop", 3, ["solo"])
    block = json.loads(call("chain", "show", plant, "workshop", 2, "--json").stdout)
    assert (block["height"], block["packer_name"]) == (2, "solo")
    assert block["records"][0]["body"]["key"] == "P-2/model"
    assert "P-3/model" in call("chain", "show", plant / "solo", row["id"][:6]).stdout
    assert "its height is 3" in complaint("chain", "show", plant, "workshop", 4)
    assert "there are workshop" in complaint("chain", "show", plant, "elsewhere")
    verified = call("chain", "verify", plant)
    assert (verified.exit_code, "every hash, signature and Merkle root holds" in verified.stdout) == (0, True)
    assert "there is no chain 'other'" in complaint("chain", "verify", plant, "--chain", "other")


def test_one_changed_byte_makes_verify_fail_and_name_the_block(plant: Path, tmp_path: Path) -> None:
    shutil.copytree(plant / "solo", tmp_path / "solo")
    (log,) = (tmp_path / "solo" / "chains").glob("*/blocks-*.log")
    raw = bytearray(log.read_bytes())
    raw[raw.index(b"P-2") + 1] ^= 1
    log.write_bytes(raw)
    result = call("chain", "verify", tmp_path)
    assert result.exit_code == 1
    assert "block 2" in result.stdout
    (verdict,) = json.loads(call("chain", "verify", tmp_path, "--json").stdout)
    assert (verdict["verified"], verdict["bad_height"], verdict["height"]) == (False, 2, 1)


def test_many_copies_are_one_row_for_each_chain_and_every_bad_copy(plant: Path, tmp_path: Path) -> None:
    for site in ("north", "south"):
        for peer in ("mill", "lathe"):
            shutil.copytree(plant / "solo", tmp_path / site / peer)
    (row,) = re.findall("(?m)^.*workshop.*$", call("chain", "verify", tmp_path).stdout)
    assert row.split()[-3:] == ["1", "4", "whole"]
    (row,) = re.findall("(?m)^.*workshop.*$", call("chain", "list", tmp_path).stdout)
    assert row.split()[-2:] == ["4", "solo"]
    for command in ("list", "verify"):
        assert call("chain", command, tmp_path, "--all").stdout.count("workshop") == 4
        assert len(json.loads(call("chain", command, tmp_path, "--json").stdout)) == 4

    (log,) = (tmp_path / "south" / "mill" / "chains").glob("*/blocks-*.log")
    raw = bytearray(log.read_bytes())
    raw[-1] ^= 1
    log.write_bytes(raw)
    (genesis,) = (tmp_path / "south" / "lathe" / "chains").glob("*/genesis.bin")
    genesis.write_bytes(b"")
    for arguments in ((), ("--chain", "workshop")):
        shown = call("chain", "verify", tmp_path, *arguments)
        assert shown.exit_code == 1
        assert "2 of 4 bad" in shown.stdout
        assert re.search("south/mill, chain .*block 3 is damaged", shown.stdout)
        assert re.search("south/lathe, chain .*genesis", shown.stdout)
    listed = call("chain", "list", tmp_path)
    assert (listed.exit_code, "2 to 3" in listed.stdout) == (1, True)


def test_a_chain_named_by_nothing_is_not_verified(plant: Path) -> None:
    assert "there is no chain ''" in complaint("chain", "verify", plant, "--chain", "")


def test_records_are_found_by_part_machine_kind_and_time(plant: Path) -> None:
    def found(*options: object) -> list[str]:
        view = json.loads(call("chain", "query", plant, *options, "--json").stdout)
        assert view["total"] == len(view["records"])
        return [record["body"]["key"] for record in view["records"]]

    assert found() == ["P-3/model", "P-2/model", "P-1/model"]
    assert found("--part", "P-2", "--machine", "solo", "--kind", "offer") == ["P-2/model"]
    assert found("--key", "P-3/model", "--chain", "workshop", "--since", "2020-01-01") == ["P-3/model"]
    assert found("--until", "2020-01-01T00:00:00+00:00") == found("--task", "T1") == []
    shown = call("chain", "query", plant / "solo", "--limit", 2).stdout
    assert "3:0" in shown
    assert "the newest 2 of 3 records" in shown
    assert (plant / "solo" / "index.sqlite").is_file()
    assert "there are solo" in complaint("chain", "query", plant, "--machine", "mill-9")
    assert "no kind of record: there are requirement" in complaint("chain", "query", plant, "--kind", "x")
    assert "write ISO 8601" in complaint("chain", "query", plant, "--since", "yesterday")
    assert "write PART/KIND" in complaint("chain", "query", plant, "--key", "model")
    assert "not valid text" in complaint("chain", "query", plant, "--part", "\udcff")


def test_the_lottery_shows_odds_leaders_and_turns(plant: Path) -> None:
    view = json.loads(call("chain", "lottery", plant, "workshop", "--json").stdout)
    (row,) = view["members"]
    assert (row["odds"], row["odds_percent"], row["packed"], row["expected"]) == ("1", 100, 3, 3)
    assert (view["next_height"], [leader["name"] for leader in view["leaders"]]) == (4, ["solo"])
    assert "block 4 is led, by round, by: 0 solo" in call("chain", "lottery", plant, "workshop").stdout


def test_a_proof_file_holds_far_from_the_chain_and_no_bit_of_it_may_flip(plant: Path, tmp_path: Path) -> None:
    file, genesis = tmp_path / "offer.proof", tmp_path / "workshop.genesis"
    made = json.loads(call("proof", "make", plant, "workshop:2:0", "--out", file, "--json").stdout)
    assert call("chain", "genesis", plant, "workshop", "--out", genesis).exit_code == 0
    checked = call("proof", "check", file, "--genesis", genesis)
    assert checked.exit_code == 0
    assert "P-2/model" in checked.stdout
    assert "1 of 1 members (1 needed): solo" in checked.stdout
    view = json.loads(call("proof", "check", file, "--genesis", made["chain"], "--json").stdout)
    assert (view["holds"], view["height"], view["packer_name"]) == (True, 2, "solo")
    assert view["record"]["id"] == made["record"]["id"]
    same = tmp_path / "same.proof"
    assert call("proof", "make", plant, made["record"]["id"][:12], "--out", same).exit_code == 0
    assert same.read_bytes() == file.read_bytes()

    raw = bytearray(file.read_bytes())
    raw[raw.index(b"P-2") + 1] ^= 1
    file.write_bytes(raw)
    bad = call("proof", "check", file, "--genesis", genesis)
    assert (bad.exit_code, bad.stdout.startswith("the proof does not hold, by its record")) == (1, True)
    told = json.loads(call("proof", "check", file, "--genesis", genesis, "--json").stdout)
    assert (told["holds"], told["part"]) == (False, "record")
    stranger = call("proof", "check", same, "--genesis", "0" * 40)
    assert (stranger.exit_code, "not given as trusted" in stranger.stdout) == (1, True)


def test_what_is_no_proof_no_genesis_or_no_record_gets_one_sentence(plant: Path, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"EPPROOF\x01...")
    assert "its version is 1" in complaint("proof", "check", file, "--genesis", "0" * 40)
    file.write_bytes(b"PK\x03\x04")
    assert "does not begin like a proof" in complaint("proof", "check", file, "--genesis", "0" * 40)
    assert "neither a genesis file nor a chain id" in complaint("proof", "check", file, "--genesis", "abcd")
    assert "is damaged" in complaint("proof", "check", file, "--genesis", file)
    assert "cannot be read" in complaint("proof", "check", tmp_path / "none", "--genesis", "0" * 40)
    assert "its height is 3" in complaint("proof", "make", plant, "workshop:9:0")
    assert "has 1 records" in complaint("proof", "make", plant, "workshop:1:1")
    assert "is no record" in complaint("proof", "make", plant, "xyz")
    assert "begins with '0000000" in complaint("proof", "make", plant, "0" * 32)
    assert "is no place of a record" in complaint("proof", "make", plant, "workshop:1")
    assert "is a folder" in complaint("proof", "make", plant, "workshop:1:0", "--out", tmp_path)


# --- status -------------------------------------------------------------------------------------


def make_status(**changes: object) -> PeerStatus:
    chain = ChainStatus(
        id="ab" * 20,
        name="milling",
        kind="fixed",
        voting=True,
        height=7,
        round=0,
        waiting=0,
        members=["mill-1", "mill-2", "mill-3"],
        observers=[],
        missing=[],
        quorum=3,
        combination=[],
        last_packer="mill-2",
        last_block_ms=1_000_000,
        records={},
    )
    values: dict[str, object] = {
        "id": PEER,
        "name": "mill-1",
        "network": "plant",
        "role": "machine",
        "machine_type": "Milling",
        "addresses": ["/ip4/127.0.0.1/tcp/4001"],
        "started_ms": 900_000,
        "network_load_percent": 3,
        "processing_load_percent": 10,
        "wanted": ["mill-2"],
        "links": [LinkStatus(peer=PEER, name="mill-2", role="machine", machine_type="Milling", up_ms=5)],
        "chains": [chain],
        "transfers": [],
        "totals": Totals(
            demands=0,
            answered=0,
            failed=0,
            bytes_sent=0,
            bytes_received=0,
            transfer_ms=0,
            received_by_kind={},
            received_by_holder={},
            refused={},
            first_data_ms=0,
        ),
        "problems": [],
    }
    return PeerStatus(**{**values, **changes})  # type: ignore[arg-type]


def explanations(status: PeerStatus, now_ms: int = 1_010_000) -> list[str]:
    screen = StatusScreen(status, now_ms)
    screen.render()
    return screen.explanations


def change(status: PeerStatus, **fields: object) -> PeerStatus:
    (chain,) = status.chains
    kept = {name: getattr(chain, name) for name in chain.__struct_fields__}
    return make_status(chains=[ChainStatus(**{**kept, **fields})])


def test_the_status_says_how_long_certificates_last() -> None:
    now_ms, day_ms = 1_010_000, 86_400_000
    fine = CertificateStatus(
        issued_ms=0, valid_until_ms=100 * day_ms, days_left=99.9, due_ms=66 * day_ms, problem=""
    )
    link = LinkStatus(
        peer=PEER,
        name="mill-2",
        role="machine",
        machine_type="",
        up_ms=5,
        certificate_until_ms=5 * day_ms,
        certificate_days_left=4.99,
    )
    status = make_status(certificate=fine, links=[link])
    shown = drawn(StatusScreen(status, now_ms))
    assert "100 days left" in shown
    assert "5 days left" in shown
    assert explanations(status) == []
    late = replace(fine, days_left=-1.0, valid_until_ms=1)
    problem = overdue_problem(late, now_ms)
    (explained,) = explanations(make_status(certificate=late, problems=[problem]))
    assert explained.startswith("this peer's certificate has expired")
    metrics = metrics_of(status)
    assert metrics["edgepool_certificate_days_left"] == 99.9
    assert metrics['edgepool_member_certificate_days_left{peer="mill-2"}'] == 4.99


def drawn(screen: StatusScreen) -> str:
    console = Console(width=200, file=StringIO())
    console.print(screen.render())
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_healthy_peer_has_nothing_red() -> None:
    assert explanations(make_status()) == []


def test_every_red_cell_is_explained() -> None:
    healthy = make_status()
    (away,) = explanations(change(healthy, missing=["mill-3"]))
    assert "mill-3 cannot be reached" in away
    (stuck,) = explanations(change(healthy, waiting=4), now_ms=2_000_000)
    assert "4 records wait" in stuck
    (alone,) = explanations(make_status(wanted=["mill-2", "mill-9"]))
    assert "no link to mill-9" in alone
    (busy,) = explanations(make_status(network_load_percent=97))
    assert "97 %" in busy
    (stopped,) = explanations(make_status(problems=["this peer has stopped: the disk is full"]))
    assert stopped == "this peer has stopped: the disk is full"


def test_what_is_turned_away_is_explained_and_what_is_ordinary_is_not_red() -> None:
    def counted(**refused: int) -> list[str]:
        healthy = make_status()
        kept = {name: getattr(healthy.totals, name) for name in healthy.totals.__struct_fields__}
        return explanations(make_status(totals=Totals(**{**kept, "refused": refused})))

    reasons = {value for name, value in vars(refusals).items() if name.isupper() and isinstance(value, str)}
    assert reasons <= {*ORDINARY, *MEANINGS}
    assert counted(dropped_no_link=13, dropped_duplicate=2) == []
    (strangers,) = counted(refused_handshake=7)
    assert "did not speak TLS" in strangers


def test_an_authority_in_the_folder_that_is_to_be_a_gateways_is_refused_before_it_is_made(
    tmp_path: Path,
) -> None:
    """What a refused command leaves behind stands in the way of the right one."""
    hub = tmp_path / "hub"
    for authority in (hub, hub / "authority", tmp_path / "x/../hub"):
        told = complaint("org", "init", authority, "--name", "Works", "--coordinator", hub)
        assert "would be in the folder of a gateway" in told
        assert "would be in" in complaint("init", hub, "--authority", authority)
    assert not hub.exists()
    assert call("org", "init", tmp_path / "authority", "--name", "Works", "--coordinator", hub).exit_code == 0


def test_what_is_no_key_of_data_is_told_by_what_it_lacks() -> None:
    with pytest.raises(LocalError, match=r"'model' is not a data key \(there is no '/' in it\)"):
        DataKey.parse("model")
    with pytest.raises(LocalError, match="the part is empty"):
        DataKey.parse("/model")


def test_who_was_met_in_anothers_place_is_red_only_while_it_is_there() -> None:
    """Else each change of a key would leave everybody's status red."""
    refused = replace(make_status().totals, refused={"refused_wrong_peer": 1})
    assert explanations(make_status(totals=refused)) == []
    there = "at /ip4/10.0.0.1/tcp/4001, an address of hub, another peer answers, mill-9 (12D3Koo): correct it"
    wrong, named = explanations(make_status(totals=refused, problems=[there]))
    assert "correct its address" in wrong
    assert named == there


def test_a_pool_that_goes_on_without_a_member_is_not_red() -> None:
    assert explanations(change(make_status(), missing=["mill-3"], quorum=2)) == []


# --- demo ---------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[DemoOptions]:
    """Stand in for the demo, which takes minutes; give what it was asked for."""
    calls: list[DemoOptions] = []

    async def run_demo(options: DemoOptions, _: object) -> dict[str, object]:
        calls.append(options)
        return {"ok": options.tasks != 13}

    monkeypatch.setattr("edgepool.workshop.demo.run_demo", run_demo)
    return calls


def test_demo_without_options_is_the_demo_as_its_module_has_it(asked: list[DemoOptions]) -> None:
    assert call("demo").exit_code == 0
    assert asked == [DemoOptions()]


def test_demo_options_reach_it_and_a_bad_run_is_exit_code_1(asked: list[DemoOptions], tmp_path: Path) -> None:
    result = call("demo", "--tasks", 13, "--no-cloud", "--no-kill", "--json", "--folder", tmp_path)
    assert (result.exit_code, json.loads(result.stdout)) == (1, {"ok": False})
    assert asked == [DemoOptions(folder=tmp_path, tasks=13, cloud=False, kill=False, quiet=True)]


def test_a_workshop_is_run_as_the_demo_without_cloud_and_without_kill(asked: list[DemoOptions]) -> None:
    file = EXAMPLES / "rocket_motor.toml"
    assert call("topology", "run", file).exit_code == 0
    assert asked == [DemoOptions(workshop=file, folder=Path("build/topology"), cloud=False, kill=False)]


def test_the_demo_clears_no_folder_that_it_has_not_made(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").touch()
    assert "no demo has made" in complaint("demo", "--folder", tmp_path)
    assert (tmp_path / "thesis.doc").exists()


def test_the_status_says_over_which_road_and_through_whom() -> None:
    link = LinkStatus(
        peer=PEER,
        name="m0",
        role="machine",
        machine_type="",
        up_ms=1,
        conduit="cloud",
        conduit_ms=4,
        road="libp2p",
    )
    assert path_cells(link)[:2] == ("conduit cloud, libp2p", "4.0 ms")
    transfer = TransferStatus(
        key="P/model",
        peer=PEER,
        name="m0",
        conduit="cloud",
        road="libp2p",
        outgoing=False,
        done_bytes=1,
        size_bytes=2,
        bytes_per_s=1,
    )
    assert transfer_peer(transfer) == "m0 (conduit cloud, libp2p)"
    assert transfer_peer(replace(transfer, conduit="", road="tls")) == "m0"
    child = Libp2pStatus(
        running=True,
        restarts=2,
        resident_bytes=95_000_000,
        connections=3,
        streams=5,
        accepted=9,
        places=2,
        circuits=1,
        passed_bytes=4_000_000,
    )
    assert libp2p_line(child) == (
        "3 connections, 5 streams, 95.0 MB of memory, started again 2 times; "
        "as a relay 2 places, 1 circuits open, 4.0 MB passed"
    )
    assert "started again" in libp2p_line(replace(child, running=False))

"""Keys under a passphrase: what opens them, and the one sentence for what does not."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edgepool.cli.main import app
from edgepool.config import CONFIG_FILE, PeerSettings, load_peer_settings
from edgepool.errors import ConfigError, LocalError
from edgepool.gateway.setup import PeerPlan, make_peer_folder, read_peer_id
from edgepool.transport.certificates import create_authority, create_key, issue_certificate
from edgepool.transport.identity import load_identity
from edgepool.transport.keyfiles import read_passphrase_file

SECRET = "a long öpen sesame"


@pytest.fixture
def mill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("EDGEPOOL_PASSPHRASE", "EDGEPOOL_AUTHORITY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    make_peer_folder(tmp_path / "mill", PeerPlan("mill", "plant"), tmp_path / "authority")
    return tmp_path / "mill"


def write_secret(path: Path, text: str = SECRET + "\n", mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert SECRET not in result.output
    return result


def key_of(folder: Path) -> Path:
    return folder / "identity/key.pem"


def test_encrypt_and_decrypt_keep_the_peer_and_leave_nothing_behind(mill: Path, tmp_path: Path) -> None:
    peer = read_peer_id(load_peer_settings(mill))
    plain, text = key_of(mill).read_bytes(), (mill / CONFIG_FILE).read_text()
    secret = write_secret(tmp_path / "secret")
    assert call("key", "encrypt", mill, "--passphrase-file", secret).exit_code == 0
    assert b"ENCRYPTED" in key_of(mill).read_bytes()
    assert key_of(mill).stat().st_mode & 0o777 == 0o600
    settings = load_peer_settings(mill)
    assert settings.identity.passphrase_file == str(secret)
    assert load_identity(settings).peer == peer
    assert (mill / CONFIG_FILE).read_text().startswith(text.rstrip())
    assert "was already encrypted" in call("key", "encrypt", mill).output
    assert call("key", "decrypt", mill).exit_code == 0
    assert key_of(mill).read_bytes() == plain
    assert load_identity(load_peer_settings(mill)).peer == peer
    assert [path.name for path in (mill / "identity").iterdir() if path.name.startswith(".")] == []


def test_a_passphrase_file_in_the_folder_is_named_relative_to_it(mill: Path) -> None:
    call("key", "encrypt", mill, "--passphrase-file", write_secret(mill / "secret"))
    moved = mill.rename(mill.with_name("moved"))
    assert load_peer_settings(moved).identity.passphrase_file == "secret"
    load_identity(load_peer_settings(moved))


def test_the_environment_serves_where_no_file_is_named(mill: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no passphrase is configured" in call("key", "encrypt", mill).stderr
    monkeypatch.setenv("EDGEPOOL_PASSPHRASE", SECRET)
    load_identity(load_peer_settings(mill))  # the key is plain: the environment may be for other peers
    assert call("key", "encrypt", mill, "--json").exit_code == 0
    load_identity(load_peer_settings(mill))
    monkeypatch.delenv("EDGEPOOL_PASSPHRASE")
    with pytest.raises(ConfigError, match="no passphrase is configured: set"):
        load_identity(load_peer_settings(mill))


def test_a_new_peer_has_an_encrypted_key_if_the_environment_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPOOL_PASSPHRASE", SECRET)
    make_peer_folder(tmp_path / "mill", PeerPlan("mill", "plant"), tmp_path / "authority")
    assert b"ENCRYPTED" in key_of(tmp_path / "mill").read_bytes()


@pytest.mark.parametrize(
    ("text", "mode", "complaint"),
    [
        ("another\n", 0o600, "the passphrase is wrong"),
        ("", 0o600, "is empty"),
        ("\n", 0o600, "is empty"),
        ("x" * 1001, 0o600, "more than 1000 bytes"),
        (SECRET, 0o640, "can be read by others than its owner: run 'chmod 600"),
        (None, 0, "does not exist: mount the medium"),
    ],
)
def test_what_does_not_open_the_key_gets_one_sentence(
    mill: Path, tmp_path: Path, text: str | None, mode: int, complaint: str
) -> None:
    secret = write_secret(tmp_path / "secret")
    call("key", "encrypt", mill, "--passphrase-file", secret)
    secret.unlink()
    if text is not None:
        write_secret(secret, text, mode)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_identity(load_peer_settings(mill))
    assert SECRET not in str(caught.value)
    assert "another" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_plain_key_is_refused_where_the_settings_promise_another(mill: Path, tmp_path: Path) -> None:
    plain = key_of(mill).read_bytes()
    call("key", "encrypt", mill, "--passphrase-file", write_secret(tmp_path / "secret"))
    key_of(mill).write_bytes(plain)
    with pytest.raises(ConfigError, match="not encrypted though the settings"):
        load_identity(load_peer_settings(mill))
    assert "is now encrypted" in call("key", "encrypt", mill).output
    load_identity(load_peer_settings(mill))


def test_an_open_or_foreign_passphrase_changes_nothing(mill: Path, tmp_path: Path) -> None:
    before = key_of(mill).read_bytes(), (mill / CONFIG_FILE).read_bytes()
    opened = write_secret(tmp_path / "open", mode=0o644)
    assert call("key", "encrypt", mill, "--passphrase-file", opened).exit_code == 2
    assert call("key", "encrypt", mill, "--passphrase-file", tmp_path / "none").exit_code == 2
    assert (key_of(mill).read_bytes(), (mill / CONFIG_FILE).read_bytes()) == before
    call("key", "encrypt", mill, "--passphrase-file", write_secret(tmp_path / "secret"))
    other = write_secret(tmp_path / "other", "another")
    assert "name another passphrase file" in call("key", "encrypt", mill, "--passphrase-file", other).stderr


@pytest.mark.parametrize(
    ("table", "is_written"),
    [("[identity] # mine\nkey = 'identity/key.pem'\n", True), ("identity = {}\n", False)],
)
def test_the_setting_goes_into_its_table_or_the_user_is_told(
    mill: Path, tmp_path: Path, table: str, is_written: bool
) -> None:
    path = mill / CONFIG_FILE
    tables = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    path.write_text("\n".join(tables) + "\n" + table)
    secret = write_secret(tmp_path / "secret")
    result = call("key", "encrypt", mill, "--passphrase-file", secret)
    identity = tomllib.loads(path.read_text())["identity"]
    assert identity.get("passphrase_file") == (str(secret) if is_written else None)
    assert ("write this line" in result.output) is not is_written
    assert f'passphrase_file = "{secret}"' in (path.read_text() if is_written else result.output)


def test_the_authoritys_key_opens_with_its_own_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPOOL_AUTHORITY_PASSPHRASE", SECRET)
    create_authority(tmp_path / "authority", "plant")
    peer = create_key(tmp_path / "key.pem")
    facts = {"name": "mill", "network": "plant", "role": "machine", "machine_type": ""}
    issue_certificate(tmp_path / "authority", peer, **facts)
    monkeypatch.setenv("EDGEPOOL_AUTHORITY_PASSPHRASE", "another")
    with pytest.raises(LocalError, match="the passphrase is wrong"):
        issue_certificate(tmp_path / "authority", peer, **facts)
    monkeypatch.delenv("EDGEPOOL_AUTHORITY_PASSPHRASE")
    with pytest.raises(LocalError, match="EDGEPOOL_AUTHORITY_PASSPHRASE"):
        issue_certificate(tmp_path / "authority", peer, **facts)
    issue_certificate(tmp_path / "authority", peer, passphrase=SECRET.encode(), **facts)


def test_a_passphrase_may_end_like_a_windows_line(tmp_path: Path) -> None:
    assert read_passphrase_file(write_secret(tmp_path / "a", "x y \r\n"), LocalError) == b"x y "


def test_defaults_name_no_passphrase_file(tmp_path: Path) -> None:
    assert PeerSettings(name="a", network="b", folder=tmp_path).identity.passphrase_file == ""

"""The files of a key that changes: wherever the power fails, the peer is the old key or the new one."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from edgepool.cli.main import app
from edgepool.config import PeerSettings
from edgepool.errors import ConfigError, LocalError, Unavailable
from edgepool.gateway.client import ApiClient
from edgepool.gateway.doctor import check_lineage
from edgepool.gateway.gathering import lineage_problem
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer, sha256
from edgepool.model.lineage import MAX_LINE, Lineage, follow
from edgepool.model.trust import own_revocation
from edgepool.peer.values import KeyStatus
from edgepool.transport import keychange
from edgepool.transport.keychange import KeyChange, finish_change
from edgepool.transport.keyfiles import is_encrypted

OLD, NEW, NEXT = (Signer(sha256(name.encode())) for name in ("old", "new", "next"))
FORMER = own_revocation(OLD, "works")
FIRST, SECOND = follow(OLD, NEW, "works"), follow(NEW, NEXT, "works")


@pytest.fixture
def settings(tmp_path: Path) -> PeerSettings:
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity/key.pem").write_bytes(b"old key")
    (tmp_path / "identity/certificate.pem").write_bytes(b"old certificate")
    return PeerSettings(name="mill", network="works", folder=tmp_path)


def begun(settings: PeerSettings) -> KeyChange:
    change = KeyChange(settings)
    change.begin(None)
    change.certificate.write_bytes(b"new certificate")
    return change


def held(settings: PeerSettings) -> tuple[bytes, bytes]:
    return tuple((settings.folder / "identity" / f"{one}.pem").read_bytes() for one in ("key", "certificate"))  # type: ignore[return-value]


def test_the_next_key_is_protected_as_the_present_one_and_stays_what_it_is(settings: PeerSettings) -> None:
    change = KeyChange(settings)
    change.begin(b"secret")
    path = settings.folder / "identity/next-key.pem"
    assert is_encrypted(path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o600
    first = change.next_key(b"secret").private_bytes_raw()
    change.begin(b"secret")
    assert change.next_key(b"secret").private_bytes_raw() == first
    with pytest.raises(LocalError, match="passphrase is wrong"):
        change.next_key(b"other")
    change.give_up()
    assert sorted(os.listdir(settings.folder / "identity")) == ["certificate.pem", "key.pem"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_one_rename_is_the_change(
    settings: PeerSettings, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """The power fails after so many renames; what was marked before does not count."""
    change = begun(settings)
    new_key = (settings.folder / "identity/next-key.pem").read_bytes()
    left, real = [None] * renames, keychange._rename

    def cut(source: Path, target: Path) -> None:
        if not left:
            raise LocalError("the power fails")
        left.pop()
        real(source, target)

    with monkeypatch.context() as power:
        power.setattr(keychange, "_rename", cut)
        try:
            change.make(FORMER)
        except LocalError:
            assert renames < 2
    finish_change(settings)
    finish_change(settings)
    again = KeyChange(settings)
    if renames == 0:
        assert held(settings) == (b"old key", b"old certificate")
        assert again.begun
        assert again.former() is None
        again.make(FORMER)
    assert held(settings) == (new_key, b"new certificate")
    assert not again.begun
    assert again.former() == FORMER
    again.over()
    assert sorted(os.listdir(settings.folder / "identity")) == ["certificate.pem", "key.pem"]


def test_a_line_counts_once_the_change_is_made(settings: PeerSettings) -> None:
    """Wherever the power fails: under the old key nobody is told of a change, under the new one all are."""
    change = begun(settings)
    assert change.line(OLD.peer) == ()
    change.note(FIRST)
    change.note(FIRST)
    assert change.line(OLD.peer) == ()
    assert change.line(NEW.peer) == (FIRST,)
    change.make(FORMER)
    change.over()
    change.begin(None)
    assert change.line(NEW.peer) == (FIRST,)
    change.note(SECOND)
    assert change.line(NEW.peer) == (FIRST,)
    assert change.line(NEXT.peer) == (FIRST, SECOND)
    other = follow(NEW, OLD, "works")
    change.note(other)  # the next key was thrown away by hand, and another made
    assert change.line(NEW.peer) == (FIRST,)


def test_a_power_cut_in_the_writing_of_a_line_leaves_the_old_or_the_new_one(
    settings: PeerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = KeyChange(settings)
    change.note(FIRST)

    def cut(source: object, target: object) -> None:
        raise OSError(5, "the power fails")

    with monkeypatch.context() as power:
        power.setattr(os, "replace", cut)
        with pytest.raises(LocalError, match=r"key\.pem\.lineage cannot be written"):
            change.note(SECOND)
    assert change.line(NEW.peer) == (FIRST,)
    change.note(SECOND)
    assert change.line(NEW.peer) == (FIRST,)
    assert change.line(NEXT.peer) == (FIRST, SECOND)


def test_the_newest_changes_are_kept(settings: PeerSettings) -> None:
    change = KeyChange(settings)
    keys = [Signer(sha256(str(n).encode())) for n in range(MAX_LINE + 3)]
    for one, later in pairwise(keys):
        change.note(follow(one, later, "works"))
    line = change.line(keys[-1].peer)
    assert len(line) == MAX_LINE
    assert (line[0].former, line[-1].heir) == (keys[2].peer, keys[-1].peer)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        encode(Lineage(())),
        encode(Lineage((follow(OLD, NEXT, "works"),))),
        encode(Lineage((follow(OLD, NEW, "other works"),))),
        encode(Lineage((replace(FIRST, former_signature=bytes(64)),))),
    ],
)
def test_a_damaged_line_is_told_and_begun_anew(settings: PeerSettings, content: bytes) -> None:
    change = KeyChange(settings)
    (settings.folder / "identity/key.pem.lineage").write_bytes(content)
    with pytest.raises(LocalError, match=r"key\.pem\.lineage is damaged, so nobody hears") as told:
        change.line(NEW.peer)
    assert "\n" not in str(told.value)
    assert lineage_problem(settings, NEW.peer) == str(told.value)
    (finding,) = check_lineage(str(told.value))
    assert finding.level == "warn"
    change.note(SECOND)
    assert change.line(NEXT.peer) == (SECOND,)


def test_a_damaged_mark_is_told(settings: PeerSettings) -> None:
    change = begun(settings)
    change.make(FORMER)
    (settings.folder / "identity/key.pem.former").write_bytes(b"garbage")
    with pytest.raises(LocalError, match="member revoke"):
        change.former()


def test_a_folder_that_cannot_be_written_is_told(
    settings: PeerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = begun(settings)
    change.make(FORMER)
    (settings.folder / "identity/next-key.pem").write_bytes(b"left behind")

    def refuse(source: object, target: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ConfigError, match="cannot be replaced"):
        finish_change(settings)


def test_a_command_waits_for_a_peer_that_is_being_opened_again_but_not_for_ever(
    settings: PeerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepool.gateway.client.OPENING_S", 0.0)
    (settings.folder / "edgepool.toml").write_text('name = "mill"\nnetwork = "works"\n')
    begun(settings)
    with pytest.raises(LocalError, match="is not running"):
        ApiClient.of(settings.folder)


class Reopening:
    """As much of a client as the command needs, of a peer that closes just when it is asked."""

    def __init__(self, settings: PeerSettings) -> None:
        self.asked = 0
        self._folder = settings.folder
        self._settling = KeyStatus(
            peer=NEW.peer, state="settling", next="", former=OLD.peer, waiting=[], problem=""
        )

    def of(self, folder: Path) -> Reopening:
        assert folder == self._folder
        return self

    async def __aenter__(self) -> Reopening:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def rotate_key(self) -> KeyStatus:
        self.asked += 1
        if self.asked < 3:
            raise Unavailable("the peer ended before it had answered")
        return self._settling

    async def key_status(self) -> KeyStatus:
        return replace(self._settling, state="")

    async def trust(self) -> SimpleNamespace:
        return SimpleNamespace(revoked=[SimpleNamespace(peer=OLD.peer)])


def test_the_command_asks_again_while_the_peer_opens_under_its_new_key(
    settings: PeerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.folder / "edgepool.toml").write_text('name = "mill"\nnetwork = "works"\n')
    peer = Reopening(settings)
    monkeypatch.setattr("edgepool.gateway.client.ApiClient", peer)
    monkeypatch.setattr("edgepool.gateway.client.find_endpoint", lambda folder: "there")
    told = CliRunner().invoke(app, ["key", "rotate", str(settings.folder), "--json"])
    assert (told.exit_code, peer.asked) == (1, 1), "nothing is under way: its no counts"
    begun(settings)
    told = CliRunner().invoke(app, ["key", "rotate", str(settings.folder), "--json"])
    assert json.loads(told.stdout) == {"id": NEW.peer, "former": OLD.peer, "revoked": True}

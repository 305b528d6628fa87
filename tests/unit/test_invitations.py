"""Invitations on disk: who gets in by which secret, when, and what a crash leaves behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from edgepool.errors import LocalError, StorageError
from edgepool.gateway import invitations as module
from edgepool.gateway.invitations import Invitation, Invitations

HOUR_MS = 3_600_000
NOW_MS = 1_700_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "invitations.json"


def add(to: Invitations, name: str = "mill-4", **more: Any) -> tuple[Invitation, bytes]:
    return to.add(**{"role": "machine", "name": name, "now_ms": NOW_MS, "valid_ms": HOUR_MS, **more})


def only(path: Path) -> Invitation:
    (one,) = Invitations(path).all()
    return one


def test_an_invitation_lets_one_key_in_until_it_expires(path: Path) -> None:
    book = Invitations(path)
    one, secret = add(book)
    assert (one.state(NOW_MS), one.refusal(secret, "A", NOW_MS)) == ("open", "")
    assert one.refusal(bytes(16), "A", NOW_MS) == "unknown"
    assert one.refusal(secret, "A", NOW_MS + HOUR_MS) == "expired"
    assert one.state(NOW_MS + HOUR_MS) == "expired"
    used = book.use(one.id, "A", "/ip4/10.0.0.4/tcp/1", "certificate")
    assert used.state(NOW_MS) == "used"
    assert used.refusal(secret, "A", NOW_MS + 1) == ""
    assert used.refusal(secret, "B", NOW_MS + 1) == "used"
    assert used.refusal(bytes(16), "B", NOW_MS + 1) == "unknown"
    assert used.refusal(secret, "A", NOW_MS + HOUR_MS) == "expired"
    assert only(path) == used


def test_a_revoked_one_is_worthless_and_a_used_one_cannot_be_revoked(path: Path) -> None:
    book = Invitations(path)
    one, secret = add(book)
    with pytest.raises(LocalError, match="open already"):
        add(book)
    book.revoke(one.id)
    assert only(path).refusal(secret, "A", NOW_MS) == "revoked"
    again, _ = add(book)
    book.use(again.id, "A", "", "certificate")
    with pytest.raises(LocalError, match="cannot be revoked"):
        book.revoke(again.id)
    with pytest.raises(LocalError, match="there is no invitation 'ab'"):
        book.revoke("ab")


def test_the_file_is_private_and_holds_no_secret(path: Path) -> None:
    _, secret = add(Invitations(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret.hex() not in path.read_text()
    assert secret not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_what_could_not_be_written_down_has_not_happened(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    book = Invitations(path)
    one, secret = add(book)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        with pytest.raises(StorageError, match="No space left"):
            book.use(one.id, "A", "", "certificate")
    for seen in (book, Invitations(path)):
        assert seen.all() == (one,)
    # The machine may have died in between: the next writer is not held up by what it left.
    assert Invitations(path).use(one.id, "B", "", "other").refusal(secret, "A", NOW_MS) == "used"


def test_a_newcomer_awaits_admission_until_that_is_written_down(path: Path) -> None:
    book = Invitations(path)
    one, _ = add(book, pool="cell", chain="c" * 40)
    assert not one.awaits_admission
    book.use(one.id, "A", "", "certificate")
    assert only(path).awaits_admission
    book.admit(one.id)
    assert not only(path).awaits_admission


def test_their_number_is_bounded_and_those_that_are_over_make_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_INVITATIONS", 3)
    book = Invitations(path)
    waiting, _ = add(book, "m0", pool="cell", chain="c" * 40)
    book.use(waiting.id, "A", "", "certificate")
    add(book, "m1")
    add(book, "m2")
    with pytest.raises(LocalError, match="there are 3 invitations already"):
        add(book, "m3")
    add(book, "m3", now_ms=NOW_MS + HOUR_MS)
    assert [one.name for one in book.all()] == ["m0", "m2", "m3"]


def test_a_damaged_file_is_told_of_in_one_sentence(path: Path) -> None:
    path.write_bytes(b'[{"id": 1')
    with pytest.raises(StorageError, match="is damaged"):
        Invitations(path)

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgepool.errors import StorageError
from edgepool.model.twin import DataKey
from edgepool.storage.catalogue import FILE, Catalogue, Entry, ScrubState

ROOT, OTHER = b"r" * 32, b"o" * 32
KEY = DataKey("P1", "model")


def test_a_pin_is_durable_when_it_is_set_and_the_rest_when_it_is_written(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "blobs")
    catalogue.note(ROOT, 7, KEY, 2)
    assert Catalogue(tmp_path / "blobs").entry(ROOT).used_ms == 0
    catalogue.pin(OTHER, True)
    again = Catalogue(tmp_path / "blobs")
    assert again.entry(ROOT) == Entry(KEY, 2, 7, False)
    assert (again.pinned(OTHER), again.pinned(ROOT)) == (True, False)
    again.scrub = ScrubState(5, ROOT, 3)
    again.pin(OTHER, False)
    third = Catalogue(tmp_path / "blobs")
    assert not third.pinned(OTHER)
    assert third.scrub == ScrubState(5, ROOT, 3)


def test_forgotten_data_stays_pinned(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.note(ROOT, 1)
    catalogue.pin(OTHER, True)
    catalogue.forget(ROOT)
    catalogue.forget(OTHER)
    assert catalogue.roots() == (OTHER,)


def test_a_pin_that_cannot_be_written_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.note(ROOT, 1, KEY)

    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for root in (ROOT, OTHER):
        with pytest.raises(StorageError, match="the disk is full"):
            catalogue.pin(root, True)
        assert not catalogue.pinned(root)
    monkeypatch.undo()
    catalogue.pin(ROOT, True)
    assert Catalogue(tmp_path).pinned(ROOT)


@pytest.mark.parametrize("damage", [b"", b"EPCATAL1....?", bytes(100)])
def test_with_a_damaged_catalogue_everything_counts_as_pinned(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE).write_bytes(damage)
    catalogue = Catalogue(tmp_path)
    assert "nothing is evicted" in catalogue.damaged
    assert catalogue.pinned(ROOT)
    catalogue.note(ROOT, 1)
    catalogue.flush()
    with pytest.raises(StorageError, match="pin again what must stay"):
        catalogue.pin(ROOT, True)
    assert (tmp_path / FILE).read_bytes() == damage

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgepool.storage.blobs import BlobStore
from edgepool.storage.scrub import Checked, Scrub

MIB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", 1 << 25)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def steps(scrub: Scrub) -> list[Checked]:
    found = []
    while (checked := scrub.step()) is not None:
        found.append(checked)
    return found


def test_all_data_is_read_once_and_one_flipped_bit_is_found(store: BlobStore) -> None:
    sizes = (0, 1, MIB, 3 * MIB + 5, 2 * MIB)
    roots = {store.import_bytes(os.urandom(size)).root: size for size in sizes}
    bad = next(root for root, size in roots.items() if size > 3 * MIB)
    assert sum(one.size_bytes for one in steps(Scrub(store))) == sum(sizes)
    flip(store.path(bad), 2 * MIB + 17)
    found = steps(Scrub(store))
    assert [one.root for one in found if one.ended] == sorted(roots)
    assert [(one.root, one.damage) for one in found if one.damage] == [
        (bad, "chunk 2 of 4 is not what it was")
    ]


def test_a_round_goes_on_where_it_was_stopped(store: BlobStore) -> None:
    roots = sorted(store.import_bytes(os.urandom(10)).root for _ in range(5))
    scrub = Scrub(store)
    first = [scrub.step(), scrub.step()]
    assert [one.root for one in first if one is not None] == roots[:2]
    scrub.close()
    assert [one.root for one in steps(Scrub(store, after=roots[1]))] == roots[2:]
    assert [one.root for one in steps(Scrub(store, only=roots[3]))] == roots[3:4]


def test_lost_bytes_and_damaged_manifests_are_damage_and_deleted_data_is_none(store: BlobStore) -> None:
    short, headless, gone, lost = sorted(store.import_bytes(os.urandom(100)).root for _ in range(4))
    os.truncate(store.path(short), 99)
    store.path(headless).with_suffix(".manifest").write_bytes(b"?")
    scrub = Scrub(store)
    assert [scrub.step() for _ in range(2)] == [
        Checked(
            short,
            0,
            True,
            f"{store.path(short).with_suffix('.manifest')} or its data is damaged "
            "(the data has 99 bytes, it should have 100): delete both files and get the data again",
        ),
        Checked(headless, 0, True, scrub_damage(store, headless)),
    ]
    store.delete(gone)
    store.path(lost).unlink()
    last = scrub.step()
    assert last is not None
    assert (last.root, bool(last.damage)) == (lost, True)
    assert scrub.step() is None


def scrub_damage(store: BlobStore, root: bytes) -> str:
    found = Scrub(store, only=root).step()
    assert found is not None
    assert "is damaged" in found.damage
    return found.damage


def test_quarantined_data_is_not_held_and_gives_way_to_the_same_data_or_others(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", 2500)
    data = os.urandom(1000)
    root = store.import_bytes(data).root
    flip(store.path(root), 5)
    store.quarantine(root)
    for one in (store, BlobStore(tmp_path / "blobs", 2500)):
        assert not one.has(root)
        assert one.manifest(root) is None
        assert one.damaged() == {root: 1000}
    assert (tmp_path / "blobs" / f"{root.hex()}.damaged").exists()
    assert store.import_bytes(data).root == root
    assert store.damaged() == {}
    assert store.path(root).read_bytes() == data
    store.quarantine(root)
    store.import_bytes(os.urandom(1400))  # fits beside it
    assert store.damaged() == {root: 1000}
    store.import_bytes(os.urandom(500))  # needs its space
    assert store.damaged() == {}

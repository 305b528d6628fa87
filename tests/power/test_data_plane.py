"""Real processes against the data plane: lying holders, half-open connections, full disks, odd keys.

One plant serves all tests here (plant.py): a holder that lies as it is told, an honest holder of the same
data, and a requester, whose events are looked at. EDGEPOOL_HALF_OPEN says how many connections are left
half open.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import half_open
import pytest
from plant import SIZE_BYTES, Plant, publish
from rogue import BEHAVIOURS

from edgepool.bench.transfer.material import MIB, make_data
from edgepool.errors import EdgepoolError, LocalError, StorageError

GROWTH_BYTES = 96 * MIB
ATTEMPTS = 20
HALF_OPEN = int(os.environ.get("EDGEPOOL_HALF_OPEN", "1000"))
BLAMED = ("corrupt",)
"""What only a liar can do: the seal is right, and the chunk is wrong."""
HELPLESS = ("stalled", "trickle", "never_answers")
"""Who does that is not needed any more before anybody knows."""


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    made = Plant(tmp_path_factory.mktemp("data-plane") / "plant")
    try:
        asyncio.run(made.start())
        yield made
    finally:
        made.end()


@pytest.fixture(autouse=True)
def clean(plant: Plant) -> Iterator[None]:
    """Begin with an honest rogue and a requester that has nothing; all must be alive at the end."""
    yield
    plant.rogue_does("honest")
    asyncio.run(plant.forget())
    for one in plant.everybody:
        words = one.last_words()
        assert one is plant.rogue or "Traceback" not in words, words[-3000:]
        os.kill(one.pid, 0)


@pytest.mark.parametrize("what", BEHAVIOURS[1:])
def test_a_lying_holder_changes_nothing_in_what_arrives(plant: Plant, what: str) -> None:
    before = len(plant.requester.events("transfer"))
    blamed = len(plant.requester.events("misbehaved"))
    memory_bytes = plant.requester.memory_bytes()
    plant.rogue_does(what)
    for _ in range(ATTEMPTS):
        assert asyncio.run(plant.fetch()) == plant.data.path.read_bytes()
        told = plant.transfers(before)
        if what in HELPLESS or any(one["peer"] == plant.rogue.id and one["failure"] for one in told):
            break
        asyncio.run(plant.forget())  # the honest one was so quick that the other's lie was not heard
    else:
        pytest.fail("the lying holder was never found out")
    assert plant.requester.memory_bytes() - memory_bytes < GROWTH_BYTES
    accused = plant.requester.events("misbehaved")[blamed:]
    assert all(one["peer"] == plant.rogue.id for one in accused)
    if what in BLAMED:
        assert any("is not what its manifest says" in one["reason"] for one in accused)


def test_half_open_connections_keep_nobody_from_his_data(plant: Plant) -> None:
    assert half_open.attack(plant, HALF_OPEN).violations == []


def test_a_disk_that_is_full_midway_costs_the_fetch_and_nothing_else(plant: Plant) -> None:
    limit = resource.RLIMIT_FSIZE
    free = resource.prlimit(plant.requester.pid, limit)
    resource.prlimit(plant.requester.pid, limit, (SIZE_BYTES // 3, free[1]))
    try:
        with pytest.raises(StorageError, match="disk is full"):
            asyncio.run(plant.fetch())
    finally:
        resource.prlimit(plant.requester.pid, limit, free)
    assert not plant.out.exists()
    assert not list(plant.requester.folder.rglob("*.data"))
    assert asyncio.run(plant.fetch()) == plant.data.path.read_bytes()


ODD_KEYS = (
    "../model",
    "..%2f..%2fetc/model",
    "..\\..\\x/model",
    "CON/model",
    "-rf/model",
    "~/model",
    "a b/'; --",
)


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "/etc/passwd", "", "a\0b/model", "x" * 80 + "/model", "a\n/b"]
)
def test_a_key_that_is_none_is_refused(plant: Plant, key: str) -> None:
    with pytest.raises(LocalError, match="key"):
        asyncio.run(publish(plant.honest, key, plant.data.path))


def test_odd_keys_never_become_paths(plant: Plant) -> None:
    content = plant.out.with_name("odd.bin")
    before = everything_in(plant.honest.folder.parent)
    for number, key in enumerate(ODD_KEYS):
        content.write_bytes(key.encode() * (number + 1))
        asyncio.run(publish(plant.honest, key, content))
        assert asyncio.run(plant.fetch(key)) == content.read_bytes()
    made = {path for path in everything_in(plant.honest.folder.parent) - before if "/blobs/" not in path}
    assert {Path(path).suffix for path in made} <= {".bin", ".blocks", ".index", ".db", ".log", ""}
    assert not any("model" in path or "etc" in path for path in made)


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_key_used_again_for_other_data_never_mixes_the_two(plant: Plant) -> None:
    key = "PART-2/model"
    first, second, third = (
        make_data(plant.out.with_name(f"{number}.bin"), 9 * MIB, seed=number).path for number in (1, 2, 3)
    )
    asyncio.run(publish(plant.honest, key, first))
    asyncio.run(publish(plant.honest, key, second, version=2))
    assert asyncio.run(plant.fetch(key, version=1)) == first.read_bytes()
    assert asyncio.run(plant.fetch(key, version=2)) == second.read_bytes()
    assert asyncio.run(plant.fetch(key, version=0)) == second.read_bytes()
    # Another holder calls other data by the same name and version: one or the other, whole.
    with suppress(EdgepoolError):
        asyncio.run(publish(plant.rogue, key, third, version=2, patience_s=0))
    asyncio.run(plant.forget())
    assert asyncio.run(plant.fetch(key, version=2)) in (second.read_bytes(), third.read_bytes())

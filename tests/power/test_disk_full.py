"""A validator whose disk fills up: it says so, falls silent, loses nothing, and goes on with space."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import kill
import pytest

BEFORE, MEANWHILE = 10, 10
"""How many records must be acknowledged before the disk is full, and by the others meanwhile."""
DISK_BYTES = 4 * 1024 * 1024


async def starve(plant: kill.Plant, fill: Callable[[], None], clear: Callable[[], None]) -> None:
    """Fill the disk of one validator, see how it ends, give it room and see how it comes back."""
    starving = plant.validators[-1]
    async with plant.at_work(Random(1)):
        while len(plant.receipts) < BEFORE:
            await plant.goes_on()
        fill()
        assert await starving.ended() == 2
        words = starving.last_words()
        assert "Traceback" not in words
        assert "the disk is full; free some space and try again" in words.splitlines()[-1]
        told = len(plant.receipts)
        while len(plant.receipts) < told + MEANWHILE:  # three of four can go on
            await plant.goes_on()
        clear()
        starving.start()
        await starving.answers()
    plant.check()


def check(plant: kill.Plant, fill: Callable[[], None], clear: Callable[[], None]) -> None:
    asyncio.run(starve(plant, fill, clear))
    assert plant.report.lost == 0
    assert plant.report.acknowledged >= BEFORE + MEANWHILE


def test_no_file_may_grow_any_more(tmp_path: Path) -> None:
    """A limit on the size of files is a full disk that needs no rights."""
    plant = kill.Plant(tmp_path, kill.Report(1))
    starving = plant.validators[-1]

    def fill() -> None:
        log = starving.folder / "votes.log"
        starving.limit_files(log.stat().st_size + 2_000)

    check(plant, fill, lambda: None)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small tmpfs in `folder`."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a disk of its own needs root, and the command mount")
    done = subprocess.run(mounting, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_disk_is_full(tmp_path: Path) -> None:
    plant = kill.Plant(tmp_path, kill.Report(1))
    starving = plant.validators[-1]
    with small_disk(tmp_path / "small") as disk:
        shutil.move(starving.folder, disk / starving.name)
        starving.folder.symlink_to(disk / starving.name)
        ballast = disk / "ballast"

        def fill() -> None:
            with ballast.open("wb", buffering=0) as stream, suppress(OSError):
                while True:
                    stream.write(bytes(4096))

        check(plant, fill, ballast.unlink)

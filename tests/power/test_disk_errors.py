"""Every call of the store fails once, on a simulated disk: with an I/O error, and with a full disk."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import cast
from unittest.mock import patch

import pytest
from disk import Disk, PowerCut
from diskcalls import root_of
from ledger_model import Ledger
from rig import FULL, SEGMENT_BYTES, SYNCS, small_sizes

from edgepool.errors import StorageError
from edgepool.storage import chainfiles
from edgepool.storage.store import FolderStore

BATCHES = 12
SYNCS_AND_WRITES = {
    "pwrite",
    "fdatasync",
    "fsync",
    "fsync of a folder",
    "create",
    "rename",
    "mkdir",
    "ftruncate",
}


@pytest.fixture(autouse=True)
def simulated() -> Iterator[None]:
    with small_sizes("errors"):
        yield


def store_on(disk: Disk) -> FolderStore:
    return FolderStore(cast(Path, root_of(disk) / "peer"), SEGMENT_BYTES)


def write_some(store: FolderStore, ledger: Ledger, batches: int) -> None:
    for _ in range(batches):
        items = ledger.batch()
        store.write(items)
        store.sync()
        ledger.acknowledge()


def live(disk: Disk, ledger: Ledger) -> str:
    """Open the store, write, close it; return the sentence of the failure, or ''."""
    store = store_on(disk)
    try:
        ledger.check(store, store.open())
        write_some(store, ledger, BATCHES)
        store.close()
    except StorageError as error:
        return str(error)
    return ""


def new_life(disk: Disk, ledger: Ledger) -> None:
    """What was acknowledged is there, and everything works."""
    store = store_on(disk)
    ledger.check(store, store.open())
    write_some(store, ledger, 2)
    store.close()


def fail(at: int, number: int, names: tuple[str, ...]) -> tuple[Callable[[str], int], list[str]]:
    """Return trouble for the call with number `at` of those in `names` (any if empty), and whom it met."""
    met: list[str] = []
    left = at

    def trouble(name: str) -> int:
        nonlocal left
        if names and name not in names:
            return 0
        left -= 1
        if left:
            return 0
        met.append(name)
        return number

    return trouble, met


def calls_of_a_life() -> int:
    with Disk(Random(1)) as disk:
        assert live(disk, Ledger(Random(2))) == ""
        assert set(disk.seen) > SYNCS_AND_WRITES - {"ftruncate"}
        return disk.calls


@pytest.mark.parametrize("second_life", [False, True], ids=["a new folder", "a folder with chains"])
@pytest.mark.parametrize(
    ("number", "names"), [(errno.EIO, ()), (errno.ENOSPC, FULL)], ids=["I/O error", "disk full"]
)
def test_a_call_that_fails_is_told_and_nothing_is_lost(
    number: int, names: tuple[str, ...], second_life: bool
) -> None:
    told: dict[str, int] = {}
    silent: list[str] = []
    for at in range(1, 2 * calls_of_a_life()):
        with Disk(Random(1)) as disk:
            ledger = Ledger(Random(2))
            if second_life:
                assert live(disk, ledger) == ""
                disk.kill()
            disk.trouble, met = fail(at, number, names)
            sentence = live(disk, ledger)
            disk.trouble = None
            if not met:
                break
            if sentence:
                told[met[0]] = told.get(met[0], 0) + 1
                assert "\n" not in sentence
                assert disk.name in sentence
                why = "check the disk" if number == errno.EIO else "the disk is full; free some space"
                assert why in sentence or "could not be undone" in sentence
            else:
                silent.append(met[0])
            disk.kill()
            new_life(disk, ledger)  # a new process finds all of it
            disk.cut()
            new_life(disk, ledger)  # and so does one after a power cut
    else:
        pytest.fail("a life has more calls than expected")
    print(told, silent)
    assert set(names or SYNCS_AND_WRITES - {"ftruncate"}) <= set(told)


def test_a_disk_that_fills_up_holds_what_it_has_promised_and_goes_on_with_space() -> None:
    for room_bytes in range(0, 30_000, 111):
        with Disk(Random(1)) as disk:
            ledger = Ledger(Random(2))
            new_life(disk, ledger)
            disk.kill()
            disk.room_bytes = room_bytes
            sentence = live(disk, ledger)
            assert not sentence or "the disk is full; free some space and try again" in sentence
            disk.kill()
            again = live(disk, ledger)  # started again without space: it says so, and loses nothing
            assert not again or "the disk is full" in again
            disk.room_bytes = None
            disk.cut()
            new_life(disk, ledger)


ADOPTING = (206, 3)
"""Seed of a ledger, and the number of the batch in which it adopts a snapshot over blocks of its own."""
DRAWS = 4


def interrupted(kill_at: int, cut_at: int, draw: int) -> tuple[bool, bool]:
    """Kill the process at one of the syncs of a batch, cut the power at a call of the next opening.

    Check what is left, and return whether there were such calls.
    """
    seed, batch = ADOPTING
    with Disk(Random(draw)) as disk:
        ledger = Ledger(Random(seed))
        store = store_on(disk)
        store.open()
        write_some(store, ledger, batch)
        disk.trouble = dying(disk, kill_at, SYNCS)
        killed = dies(lambda: write_some(store, ledger, 1))
        disk.kill()
        store = store_on(disk)
        disk.trouble = dying(disk, cut_at, ())
        cut = dies(lambda: ledger.check(store, store.open()))
        disk.trouble = None
        disk.cut()
        new_life(disk, ledger)
    return killed, cut


def dying(disk: Disk, at: int, names: tuple[str, ...]) -> Callable[[str], int]:
    """Return what ends the process at the call with number `at` of those in `names` (any if empty)."""
    left = at

    def trouble(name: str) -> int:
        nonlocal left
        left -= name in names or not names
        if left == 0:
            raise PowerCut
        return 0

    return trouble


def dies(live: Callable[[], object]) -> bool:
    try:
        live()
    except PowerCut:
        return True
    return False


def interrupt_everywhere() -> None:
    kill_at, killed = 0, True
    while killed:
        kill_at, cut_at, cut = kill_at + 1, 0, True
        while killed and cut:
            cut_at += 1
            for draw in range(DRAWS):
                killed, cut = interrupted(kill_at, cut_at, draw)
    assert kill_at > 4


def test_what_a_killed_process_has_left_does_not_mislead_its_successor() -> None:
    """A name that is seen need not be durable: nothing may be removed on its account before it is."""
    interrupt_everywhere()


def test_a_successor_that_trusts_what_it_sees_is_found() -> None:
    with (
        patch.object(chainfiles, "sync_folder", lambda _: None),
        pytest.raises(StorageError, match="missing"),
    ):
        interrupt_everywhere()

"""Power cuts of a real file system: ext4 on a loop device is shut down under a writing process.

    python tests/power/ext4.py --cuts 10000 --json        (as root)

The ioctl EXT4_IOC_SHUTDOWN stops the file system at once: nothing reaches the device any more, whatever the
page cache and the journal still hold. Then it is mounted again, which replays the journal, and the store is
opened and compared with what was written. An acknowledgement counts if it had arrived before the shutdown
began; what arrives later may or may not be true.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from ledger_model import Ledger, Loss
from telling import tell

from edgepool.errors import StorageError
from edgepool.storage.store import FolderStore

EXT4_IOC_SHUTDOWN = 2 << 30 | 4 << 16 | ord("X") << 8 | 125
LOG_FLUSH, NO_LOG_FLUSH = 1, 2
"""With 1 the journal is written out before the end, with 2 nothing is."""
IMAGE_BYTES = 32 * 1024 * 1024
CUTS_A_LEDGER = 10
MAX_HEIGHT = 300
MAX_LOAD_S = 0.15
PATIENCE_S = 60.0
"""How long others may take to let go of a file system that was shut down."""
SEGMENT_BYTES = 100_000


@dataclass(slots=True)
class Report:
    """What a run came to."""

    seed: int
    cuts: int = 0
    acknowledged: int = 0
    lost: int = 0
    torn: int = 0
    told: int = 0
    """Writers that said, in one sentence, that the disk does not work."""
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Unsupported(Exception):
    """This machine cannot mount an ext4 on a loop device; the text says why."""


@contextmanager
def loop_mount(size_bytes: int = IMAGE_BYTES) -> Iterator[Mount]:
    """Give a new ext4, mounted; Unsupported if that is not possible here."""
    if os.geteuid() != 0:
        raise Unsupported("only root can mount a file system")
    for tool in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(tool) is None:
            raise Unsupported(f"there is no {tool}")
    with tempfile.TemporaryDirectory(prefix="edgepool-ext4-") as folder:
        mount = Mount(Path(folder), size_bytes)
        mount.attach()
        try:
            yield mount
        finally:
            mount.detach()


class Mount:
    """An ext4 in a file, mounted at `folder`."""

    def __init__(self, where: Path, size_bytes: int) -> None:
        self._image = where / "image"
        self.folder = where / "mounted"
        self.folder.mkdir()
        with self._image.open("wb") as image:
            image.truncate(size_bytes)
        self._call("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))

    def attach(self) -> None:
        """Mount the image; Unsupported if what was shut down cannot be got rid of."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self._call("mount", "-t", "ext4", "-o", "loop", str(self._image), str(self.folder))
            try:
                (self.folder / "alive").touch()
                return
            except OSError:
                # Somebody made a mount namespace meanwhile and holds the old mount, so it has come back.
                self.detach()
            if time.monotonic() > deadline:
                raise Unsupported("another mount namespace holds the file system that was shut down")
            time.sleep(0.1)

    def detach(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if subprocess.run(["umount", str(self.folder)], capture_output=True).returncode == 0:
                return
            time.sleep(0.02)
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True)

    def shut_down(self, handle: int, flag: int) -> None:
        """Stop the file system, of which `handle` is any open file, at once."""
        fcntl.ioctl(handle, EXT4_IOC_SHUTDOWN, struct.pack("I", flag))

    def _call(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unsupported(f"{command[0]} says: {done.stderr.strip()[:200]}")


class Rig:
    """Cuts the power of one mounted file system again and again; without `syncs` the writer never syncs."""

    def __init__(self, mount: Mount, seed: int, syncs: bool = True) -> None:
        self.report = Report(seed)
        self._mount = mount
        self._syncs = syncs
        self._random = Random(f"{seed}/ext4")
        self._ledger = Ledger(Random(self._random.getrandbits(48)), MAX_HEIGHT)
        self._folder = mount.folder / "peer"

    def run(self, cuts: int) -> Report:
        """Go on until there were so many cuts, or one violation."""
        began = time.perf_counter()
        report = self.report
        while report.cuts < cuts and not report.violations:
            if report.cuts % CUTS_A_LEDGER == 0:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._ledger = Ledger(Random(self._random.getrandbits(48)), MAX_HEIGHT)
            try:
                self._cut()
            except (Loss, StorageError) as loss:
                report.lost += getattr(loss, "count", 0)
                report.violations.append(f"cut {report.cuts}: {loss}")
        report.seconds = round(time.perf_counter() - began, 1)
        return report

    def _cut(self) -> None:
        report, draw = self.report, self._random
        flag = LOG_FLUSH if draw.random() < 0.2 else NO_LOG_FLUSH
        load_s = MAX_LOAD_S * draw.random()
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        writer = os.fork()
        if writer == 0:
            os.close(reading)
            if not self._syncs:
                os.fsync = os.fdatasync = lambda fd: None
            write_for_ever(self._folder, self._ledger, writing)
        os.close(writing)
        handle = os.open(self._mount.folder, os.O_RDONLY)
        try:
            heard = _wait_for_first(reading)
            time.sleep(load_s)
            heard += _drain(reading)
            self._mount.shut_down(handle, flag)
        finally:
            os.close(handle)
            time.sleep(0.005 * draw.random())  # the writer may find out, or be killed before
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
        late = _drain(reading)
        os.close(reading)
        report.cuts += 1
        self._mount.detach()
        self._mount.attach()
        self._check(heard, heard + late)

    def _check(self, heard: bytes, everything: bytes) -> None:
        """Repeat what the writer wrote, and compare it with what is there."""
        ledger, report = self._ledger, self.report
        promised = heard.count(b"\n")
        written = everything.count(b"synced\n")
        if complaint := everything.partition(b"failed: ")[2]:
            report.told += 1
            if complaint.count(b"\n") != 1 or b"check the disk" not in complaint:
                raise Loss(f"this is no sentence for people: {complaint!r}")
        before = ledger.acknowledgements
        for _ in range(promised):
            ledger.batch()
            ledger.acknowledge()
        for _ in range(written - promised + 1):
            ledger.batch()
        report.acknowledged += ledger.acknowledgements - before
        store = FolderStore(self._folder, SEGMENT_BYTES)
        try:
            ledger.check(store, store.open())
            report.torn += len(store.recovered)
        finally:
            store.close()


def write_for_ever(folder: Path, ledger: Ledger, told: int) -> None:
    """Be the writer: tell of each batch that is synced, and of the error that ends it."""
    try:
        store = FolderStore(folder, SEGMENT_BYTES)
        store.open()
        while True:
            items = ledger.batch()
            store.write(items)
            store.sync()
            ledger.acknowledge()
            os.write(told, b"synced\n")
    except StorageError as error:
        with suppress(OSError):
            os.write(told, f"failed: {error}\n".encode())
    finally:
        os._exit(0)


def _drain(reading: int) -> bytes:
    said = b""
    with suppress(BlockingIOError):
        while data := os.read(reading, 65536):
            said += data
    return said


def _wait_for_first(reading: int) -> bytes:
    """Wait until the writer has got going, at most a few seconds."""
    deadline = time.monotonic() + 5
    while not (said := _drain(reading)) and time.monotonic() < deadline:
        time.sleep(0.001)
    return said


def run(cuts: int, seed: int) -> Report:
    """Make so many cuts; Unsupported if this machine cannot."""
    with loop_mount() as mount:
        return Rig(mount, seed).run(cuts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Shut an ext4 down under the store, again and again.")
    parser.add_argument("--cuts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        report = run(options.cuts, options.seed)
    except Unsupported as why:
        print(f"not possible here: {why}", file=sys.stderr)
        return 3
    return tell(
        report,
        options.json,
        f"{report.cuts} cuts in {report.seconds} s: of {report.acknowledged} acknowledged items "
        f"{report.lost} were lost; {report.torn} unfinished writes were set aside; "
        f"{report.told} writers said that the disk does not work",
    )


if __name__ == "__main__":
    sys.exit(main())

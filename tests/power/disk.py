"""A disk in memory under the real storage code, which loses at a power cut what a real one may lose.

What may be lost. A written byte is safe once an fsync of its file has returned, a name once an fsync of
its folder has. At a cut, each sector of 512 bytes that was not synced is old or new, whatever became of
its neighbours; a file may have grown without its new bytes (zeros, or what stood there before); names
that were not synced come back in any combination, but a rename is never half done. After a failed fsync
the pages that did not reach the disk are forgotten, while readers still see them until the cut, and the
next fsync reports success. A process that is killed leaves everything as it is for the next one.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

SECTOR_BYTES = 512


class PowerCut(BaseException):
    """The power went, or the process was killed, in the middle of a call; nothing may catch it."""


@dataclass(slots=True)
class File:
    """`data` is what readers see, `durable` what is on the disk, `steps` what lies between.

    A step is (offset of a sector, what the sectors from there on hold after it, size after it).
    """

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    steps: list[tuple[int, bytes, int]] = field(default_factory=list)
    changed: int = 0


@dataclass(slots=True)
class Folder:
    """The names in a folder as the running system sees them, and as they are on the disk."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)


Node = File | Folder
Move = tuple[tuple[Folder, str, Node | None], ...]
"""Names that change together: (folder, name, what it names now or None)."""


@dataclass(slots=True)
class Handle:
    """An open file or folder."""

    disk: Disk
    node: Node
    path: str
    locked: bool = False


disks: dict[str, Disk] = {}
"""By name; the one called '' has the folder above all disks, which never changes."""
handles: dict[int, Handle] = {}
numbers = itertools.count(1_000_000)


class Disk:
    """One machine's disk; all draws come from `random`. Use as a context manager.

    At the call with number `dies_at` the machine or the process dies (`cut` or `kill` says which). `trouble`
    is asked at each call, by name, for an error number (0: none). `room_bytes` is the free space, any
    amount if None. `lies` holds names of calls that report success and do nothing.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.name = f"disk{next(numbers)}"
        self.root = Folder()
        self.moves: list[Move] = []
        self.calls = 0
        self.seen: Counter[str] = Counter()
        self.dies_at = 0
        self.dies_in: tuple[str, ...] = ()
        self.trouble: Callable[[str], int] | None = None
        self.room_bytes: int | None = None
        self.short_writes = 0.02
        self.lies: frozenset[str] = frozenset()
        self._dead = False

    def __enter__(self) -> Disk:
        disks[self.name] = self
        return self

    def __exit__(self, *_: object) -> None:
        self._drop_handles()
        del disks[self.name]

    def kill(self) -> None:
        """End the process: files are closed, locks are free, the system keeps what was written."""
        self._drop_handles()
        self._dead, self.dies_at, self.dies_in = False, 0, ()

    def cut(self) -> None:
        """Cut the power, and give it back: from now on the disk holds what it held durably."""
        self.kill()
        for move in self._surviving():
            self._apply(move, durable=True)
        self.moves.clear()
        self._settle(self.root)

    # --- what calls come to -----------------------------------------------------------------------

    def call(self, name: str) -> bool:
        """Begin a call; False if it is to be skipped. Raises PowerCut, or OSError for trouble."""
        if self._dead:
            raise PowerCut
        self.calls += 1
        self.seen[name] += 1
        if 0 < self.dies_at <= self.calls and (name in self.dies_in or not self.dies_in):
            self._dead = True
            raise PowerCut
        if self.trouble is not None and (number := self.trouble(name)):
            raise disk_fault(number)
        return name not in self.lies

    def find(self, path: str) -> Node:
        """Return what `path` names. FileNotFoundError or NotADirectoryError if nothing."""
        node: Node = self.root
        for name in path.split("/")[2:]:
            if not isinstance(node, Folder):
                raise disk_fault(errno.ENOTDIR, path)
            found = node.names.get(name)
            if found is None:
                raise disk_fault(errno.ENOENT, path)
            node = found
        return node

    def place(self, path: str) -> tuple[Folder, str]:
        """Return the folder of `path` and the name in it."""
        above, _, name = path.rpartition("/")
        folder = self.find(above)
        if not isinstance(folder, Folder):
            raise disk_fault(errno.ENOTDIR, path)
        return folder, name

    def move(self, *changes: tuple[Folder, str, Node | None]) -> None:
        """Change names at once; durable when one of the folders is synced."""
        self._apply(changes, durable=False)
        self.moves.append(changes)

    def write(self, file: File, data: bytes, offset: int) -> int:
        """Write a part of `data`, all of it in most cases; return how many bytes."""
        count = len(data)
        if self.short_writes and count > 1 and self.random.random() < self.short_writes:
            count = self.random.randrange(1, count)
        growth = offset + count - len(file.data)
        if self.room_bytes is not None and growth > self.room_bytes:
            count -= growth - self.room_bytes
            if count <= 0:
                raise disk_fault(errno.ENOSPC)
            growth = self.room_bytes
        if growth > 0:
            self._take(growth)
            file.data.extend(bytes(max(0, offset - len(file.data))))
        file.data[offset : offset + count] = data[:count]
        start = offset - offset % SECTOR_BYTES
        end = -(-(offset + count) // SECTOR_BYTES) * SECTOR_BYTES
        file.steps.append((start, bytes(file.data[start:end]), len(file.data)))
        file.changed = self.calls
        return count

    def truncate(self, file: File, size: int) -> None:
        """Give `file` another size."""
        self._take(size - len(file.data))
        del file.data[size:]
        file.data.extend(bytes(size - len(file.data)))
        start = size - size % SECTOR_BYTES
        file.steps.append((start, bytes(file.data[start:]), size))

    def sync(self, node: Node) -> None:
        """Make the bytes of a file, or the names of a folder, durable."""
        if isinstance(node, File):
            for start, image, size in node.steps:
                _overwrite(node.durable, start, image, size)
            node.steps.clear()
            return
        rest = []
        for move in self.moves:
            if any(folder is node for folder, _, _ in move):
                self._apply(move, durable=True)
            else:
                rest.append(move)
        self.moves = rest

    def fail_sync(self, node: Node) -> None:
        """What an fsync that reports an error leaves: some pages written, the others forgotten."""
        if isinstance(node, File):
            node.durable = self._torn(node)
            node.steps.clear()

    # --- the cut ----------------------------------------------------------------------------------

    def _surviving(self) -> list[Move]:
        """Choose which names that were not synced came to be: the first few, or any."""
        draw = self.random
        if draw.random() < 0.5:
            return self.moves[: draw.randrange(len(self.moves) + 1)]
        return [move for move in self.moves if draw.random() < 0.5]

    def _settle(self, folder: Folder) -> None:
        folder.names = dict(folder.durable)
        for node in folder.names.values():
            if isinstance(node, Folder):
                self._settle(node)
                continue
            if node.steps:
                node.durable = self._torn(node)
                node.steps.clear()
            node.data = bytearray(node.durable)

    def _torn(self, file: File) -> bytearray:
        """Return what the disk holds of `file` if the steps since its last sync came in part."""
        draw, durable, steps = self.random, file.durable, file.steps
        fate = draw.random()
        if fate < 0.4:  # some steps came whole, the one behind them in part, no later one
            whole = draw.randrange(len(steps) + 1)
            durable = bytearray(durable)
            for start, image, size in steps[:whole]:
                _overwrite(durable, start, image, size)
            steps = steps[whole : whole + 1]
            if not steps or fate < 0.1:
                return durable
        sizes = [len(durable)]
        sectors: dict[int, list[bytes]] = {}
        for start, image, size in steps:
            for at in range(0, len(image), SECTOR_BYTES):
                sectors.setdefault(start + at, []).append(image[at : at + SECTOR_BYTES])
            for gone in range(start + SECTOR_BYTES, sizes[-1] if size < sizes[-1] else 0, SECTOR_BYTES):
                sectors.setdefault(gone, []).append(b"")
            sizes.append(size)
        return self._mixed(durable, sizes, sectors)

    def _mixed(self, durable: bytearray, sizes: list[int], sectors: dict[int, list[bytes]]) -> bytearray:
        draw = self.random
        low, high = min(sizes), max(sizes)
        size = draw.choice(sizes)
        if draw.random() < 0.5:
            size = min(high, max(low, draw.randrange(low, high + 1) // SECTOR_BYTES * SECTOR_BYTES))
        came = draw.choice((0.1, 0.5, 0.9, 1.0))
        mixed = bytearray(size)
        kept = min(size, len(durable))
        mixed[:kept] = durable[:kept]
        for start, versions in sectors.items():
            room = min(SECTOR_BYTES, size - start)
            if room <= 0:
                continue
            if draw.random() < came:
                version = versions[-1] if draw.random() < 0.7 else draw.choice(versions)
                mixed[start : start + room] = version.ljust(SECTOR_BYTES, b"\0")[:room]
            elif start >= len(durable) and draw.random() < 0.1:
                mixed[start : start + room] = draw.randbytes(room)
        return mixed

    def _take(self, growth: int) -> None:
        if self.room_bytes is not None:
            self.room_bytes -= growth

    def _drop_handles(self) -> None:
        for number in [number for number, handle in handles.items() if handle.disk is self]:
            del handles[number]

    @staticmethod
    def _apply(move: Move, durable: bool) -> None:
        for folder, name, node in move:
            names = folder.durable if durable else folder.names
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node


def _overwrite(content: bytearray, start: int, image: bytes, size: int) -> None:
    if len(content) < start:
        content.extend(bytes(start - len(content)))
    content[start : start + len(image)] = image
    del content[size:]
    content.extend(bytes(size - len(content)))


def disk_fault(number: int, path: str = "") -> OSError:
    """Return the OSError that the system would raise."""
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))


disks[""] = Disk(Random(0))
disks[""].name = ""

"""What the coordinator meant to do, written down before it does it.

One JSON line for each intent, durable before the next step is taken. The chains say what came of
it; the journal says it for the moment in between, so that a coordinator that is killed at any
instant gives no task out twice and loses none.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from edgepool.errors import StorageError
from edgepool.storage.files import guarded, sync_folder, write_all


class Intent(msgspec.Struct, frozen=True):
    """Task `task` goes to the pool named `pool`, whose `stations` (peer ids) serve its steps in order.

    `given_up` takes an earlier intent for the task back.
    """

    task: str
    pool: str
    stations: tuple[str, ...]
    reused: bool
    given_up: bool = False


class Journal:
    """The intents in the file `path`, which is made if it is missing; StorageError if the disk refuses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.intents: dict[str, Intent] = {}
        """The intent that holds for each task."""
        self.pools: dict[str, None] = {}
        """Every pool name that was ever used in an intent."""
        with guarded(path, "opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._size_bytes = self._load()
            os.ftruncate(self._fd, self._size_bytes)
            os.fsync(self._fd)
            sync_folder(path.parent)

    def write(self, intent: Intent) -> None:
        """Make an intent durable; it holds from then on."""
        line = msgspec.json.encode(intent) + b"\n"
        with guarded(self._path, "written"):
            os.ftruncate(self._fd, self._size_bytes)  # what an earlier failure left half-written
            write_all(self._fd, line, self._size_bytes)
            os.fdatasync(self._fd)
        self._size_bytes += len(line)
        self._enter(intent)

    def close(self) -> None:
        """Release the file."""
        os.close(self._fd)

    def _load(self) -> int:
        """Enter all whole lines; return their size. A last line without its end was never acted on."""
        whole, newline, _ = self._path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if newline else (), 1):
            try:
                self._enter(msgspec.json.decode(line, type=Intent))
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise StorageError(
                    f"{self._path}, line {number} is damaged: restore the file from a backup"
                ) from None
        return len(whole) + len(newline)

    def _enter(self, intent: Intent) -> None:
        self.pools[intent.pool] = None
        if intent.given_up:
            self.intents.pop(intent.task, None)
        else:
            self.intents[intent.task] = intent

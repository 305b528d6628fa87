"""The vote log: what this peer has said last on each chain, durable before it is spoken.

A lost vote is a vote that may be cast twice, so nothing here is ever guessed: what was synced comes
back, or opening fails. One file serves all chains, so that one sync serves all votes of a step.
"""

from __future__ import annotations

from pathlib import Path

from edgepool.errors import StorageError
from edgepool.model.ids import ChainId
from edgepool.storage.files import guarded, sync_folder
from edgepool.storage.log import AppendLog

COMPACT_BYTES = 1024 * 1024
_KIND = b"EPVOTES1"
_NOUN = "vote state"
_CHAIN_BYTES = 20
_REMEDY = (
    "Without it, or with an older copy of it, this peer could vote twice: give the machine a new identity "
    "and have its pools formed again."
)


class VoteLog:
    """The last vote state of each chain in the file `path`, which is made if it is missing.

    An unfinished write at the end is set aside and told in `recovered`; damage in the middle is a
    StorageError. The file is rewritten when it has grown above 1 MiB and twice its content.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._states: dict[ChainId, bytes] = {}
        self._unsynced: dict[ChainId, bytes] = {}
        self._compact_above_bytes = COMPACT_BYTES
        with guarded(self._aside, "removed"):
            self._aside.unlink(missing_ok=True)
        self._log = AppendLog(path, _KIND, _NOUN, _REMEDY)
        for number in range(1, len(self._log) + 1):
            payload = self._log.read(number) or b""
            self._states[ChainId(payload[:_CHAIN_BYTES].hex())] = payload[_CHAIN_BYTES:]

    @property
    def recovered(self) -> str:
        """What was set aside on opening, in a sentence, or ''."""
        return self._log.recovered

    def put(self, chain: ChainId, state: bytes) -> None:
        """Replace the state of `chain`; it reaches the disk with the next `sync`."""
        if len(chain) != 2 * _CHAIN_BYTES:
            raise StorageError(f"{self._path}: '{chain[:80]}' is not a chain id")
        self._unsynced[chain] = state

    def sync(self) -> None:
        """Write and make durable what was put; on failure it can be called again."""
        if not self._unsynced:
            return
        if self._log.size_bytes > self._compact_above_bytes:
            self._compact()
        for chain, state in self._unsynced.items():
            self._log.append(bytes.fromhex(chain) + state)
        self._log.sync()
        self._states.update(self._unsynced)
        self._unsynced.clear()

    def states(self) -> dict[ChainId, bytes]:
        """Return the last state of each chain, with what was put and is not yet synced."""
        return {**self._states, **self._unsynced}

    def close(self) -> None:
        """Release the file; what was put and not synced is lost."""
        self._log.close()

    @property
    def _aside(self) -> Path:
        return self._path.with_name(self._path.name + ".new")

    def _compact(self) -> None:
        """Rewrite the log aside with the states that count; if that fails, go on with the old one."""
        fresh: AppendLog | None = None
        try:
            with guarded(self._aside, "written"):
                self._aside.unlink(missing_ok=True)
                fresh = AppendLog(self._aside, _KIND, _NOUN, _REMEDY)
                for chain, state in self._states.items():
                    fresh.append(bytes.fromhex(chain) + state)
                fresh.sync()
                fresh.rename(self._path)
        except StorageError:
            if fresh is not None:
                fresh.close()
            self._compact_above_bytes = self._log.size_bytes + COMPACT_BYTES
            return
        self._log.close()
        self._log = fresh
        self._compact_above_bytes = max(COMPACT_BYTES, 2 * fresh.size_bytes)
        try:
            with guarded(self._path, "replaced"):
                sync_folder(self._path.parent)
        except StorageError:
            self._log.close()  # a power cut may bring the old file back: no vote may go to the new one
            raise

"""The snapshot of a chain: `snapshot.bin` in its folder, a checked file (checked.py)."""

from __future__ import annotations

from pathlib import Path

from edgepool.core.machine import SavedSnapshot, SaveSnapshot
from edgepool.errors import DecodeError
from edgepool.model.block import Handover
from edgepool.model.codec import Wire, decode, encode
from edgepool.model.fields import KnownHeight
from edgepool.storage.checked import damaged_file, read_checked, replace_checked
from edgepool.storage.files import guarded
from edgepool.storage.segments import REMEDY

SNAPSHOT_FILE = "snapshot.bin"
_KIND = b"EPSNAPS1"


class StoredSnapshot(Wire, frozen=True):
    """What a snapshot file holds; `adopted` if the chain has no blocks up to `height` here."""

    height: KnownHeight
    adopted: bool
    handovers: tuple[Handover, ...]
    state: bytes

    def saved(self) -> SavedSnapshot:
        """Return it as the core knows it."""
        return SavedSnapshot(self.height, self.handovers, self.state)


def read_snapshot(folder: Path) -> StoredSnapshot | None:
    """Return the snapshot in a chain's folder, or None; StorageError if it is damaged."""
    path = folder / SNAPSHOT_FILE
    with guarded(path, "read"):
        if not path.exists():
            return None
    payload = read_checked(path, _KIND, REMEDY)
    try:
        return decode(StoredSnapshot, payload, len(payload))
    except DecodeError as error:
        raise damaged_file(path, str(error), REMEDY) from None


def save_snapshot(folder: Path, item: SaveSnapshot, adopted: bool) -> None:
    """Store a snapshot durably in place of the one before; StorageError leaves that one."""
    stored = StoredSnapshot(item.height, adopted, item.handovers, item.state)
    replace_checked(folder / SNAPSHOT_FILE, _KIND, encode(stored))

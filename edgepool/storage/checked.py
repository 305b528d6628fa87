"""Small files that are written as a whole: 8 bytes kind, CRC-32 of the payload (little-endian), payload.

Such a file is written aside, synced, renamed, and its folder synced: what is there is whole, or damaged
by something else than a power cut.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from edgepool.errors import StorageError
from edgepool.storage.files import guarded, sync_folder, write_durably

ASIDE = ".new"
"""What the name of a file ends in that was never finished; it may be removed."""

_HEAD_BYTES = 12


def checked_bytes(kind: bytes, payload: bytes) -> bytes:
    """Return what a file of this kind (8 bytes) with this payload holds."""
    return kind + zlib.crc32(payload).to_bytes(4, "little") + payload


def read_checked(path: Path, kind: bytes, remedy: str) -> bytes:
    """Return the payload of the file `path`; StorageError with `remedy` if it is damaged."""
    with guarded(path, "read"):
        raw = path.read_bytes()
    payload = raw[_HEAD_BYTES:]
    if raw[:_HEAD_BYTES] != checked_bytes(kind, payload)[:_HEAD_BYTES]:
        raise damaged_file(path, "its checksum does not hold", remedy)
    return payload


def replace_checked(path: Path, kind: bytes, payload: bytes) -> None:
    """Put a file at `path`, durably, in place of what is there; StorageError leaves that as it was.

    (If only the sync of the folder fails, the new file may be there, or the old one after a power cut.)
    """
    aside = path.with_name(path.name + ASIDE)
    with guarded(path, "written"):
        try:
            aside.unlink(missing_ok=True)
            write_durably(aside, checked_bytes(kind, payload))
            aside.rename(path)
            sync_folder(path.parent)
        except OSError:
            remove_aside(aside)
            raise


def remove_aside(path: Path) -> None:
    """Remove a file that was not finished, if that can be done now; the next opening tries again."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def damaged_file(path: Path, why: str, remedy: str) -> StorageError:
    """Return the error for a file that holds something else than what was written."""
    return StorageError(f"{path} is damaged ({why}): {remedy}")

"""Where data came from that was handed over under a policy: `origins/<root>.bin`, the policy with its proof.

It is there before the data is: what came under a policy never lies here without it. Where it is damaged the
data is handed to nobody, until it is fetched again.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgepool.errors import DecodeError, StorageError
from edgepool.model.codec import decode, encode
from edgepool.model.message import Origin
from edgepool.storage.checked import read_checked, replace_checked
from edgepool.storage.files import guarded, make_folder

FOLDER = "origins"
_KIND = b"EPORIGN1"


class Origins:
    """The stored origins of a peer's `folder`. All methods raise StorageError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def save(self, root: bytes, origin: Origin) -> None:
        """Keep an origin durably in place of an earlier one; may run in a worker thread."""
        make_folder(self._folder)
        replace_checked(self._path(root), _KIND, encode(origin))

    def load(self, held: Collection[bytes]) -> dict[bytes, Origin | None]:
        """Return the origins of the data that is held, None for one that is damaged; remove all others."""
        found: dict[bytes, Origin | None] = {}
        with guarded(self._folder, "read"):
            for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
                try:
                    root = bytes.fromhex(path.stem)
                except ValueError:
                    continue
                if root in held:
                    found[root] = _read(path)
                else:
                    path.unlink()
        return found

    def _path(self, root: bytes) -> Path:
        return self._folder / f"{root.hex()}.bin"


def _read(path: Path) -> Origin | None:
    try:
        return decode(Origin, read_checked(path, _KIND, ""))
    except (DecodeError, StorageError):
        return None

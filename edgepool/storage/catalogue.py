"""What a peer knows of the data that it holds, beside the data itself: `blobs/catalogue.bin`.

For each manifest root: the key under which it came, when it was used last, and whether somebody pinned it;
and how far the scrub has come. It is a checked file, replaced as a whole. A pin is durable when `pin`
returns; the rest is written now and then, and what a power cut takes of it can be known again.

A damaged catalogue may have held pins, so then everything counts as pinned until a person has looked.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from edgepool.errors import DecodeError, StorageError
from edgepool.model.codec import Wire, decode, encode
from edgepool.model.fields import Hash, MaybeHash, TimeMs
from edgepool.model.twin import DataKey
from edgepool.storage.checked import damaged_file, read_checked, replace_checked
from edgepool.storage.files import make_folder

FILE = "catalogue.bin"
MAX_ENTRIES = 1_000_000
_MAX_BYTES = 512 * 1024 * 1024
_KIND = b"EPCATAL1"
_REMEDY = (
    "it may have named pinned data, so nothing is evicted: stop the peer, delete the file, start it "
    "and pin again what must stay"
)


class Entry(Wire, frozen=True):
    """What is known of one root; `key` is None and `version` 0 if nobody has said."""

    key: DataKey | None
    version: Annotated[int, Meta(ge=0, le=2**31)]
    used_ms: TimeMs
    pinned: bool


class ScrubState(Wire, frozen=True):
    """Where the scrub stands: `after` is the last root checked in the round that began at `began_ms`.

    `began_ms` is 0 if no round is under way; `ended_ms` is when the last whole round ended, 0 if none has.
    """

    began_ms: TimeMs = 0
    after: MaybeHash = b""
    ended_ms: TimeMs = 0


class Contents(Wire, frozen=True):
    """The payload of `catalogue.bin`."""

    entries: Annotated[tuple[tuple[Hash, Entry], ...], Meta(max_length=MAX_ENTRIES)]
    scrub: ScrubState


NOTHING_KNOWN = Entry(None, 0, 0, False)


class Catalogue:
    """The catalogue in `folder`; its methods may be called from several threads.

    `damaged` says what is wrong with the file, '' if nothing is. Such a file is never written again.
    """

    def __init__(self, folder: Path) -> None:
        self.damaged = ""
        self._folder = folder
        self._path = folder / FILE
        self._lock = threading.RLock()
        self._entries: dict[bytes, Entry] = {}
        self._scrub = ScrubState()
        self._changed = False
        if not self._path.exists():
            return
        try:
            payload = read_checked(self._path, _KIND, _REMEDY)
            contents = decode(Contents, payload, _MAX_BYTES)
        except StorageError as error:
            self.damaged = str(error)
        except DecodeError as error:
            self.damaged = str(damaged_file(self._path, str(error), _REMEDY))
        else:
            self._entries = dict(contents.entries)
            self._scrub = contents.scrub

    def entry(self, root: bytes) -> Entry:
        """Return what is known of `root`."""
        return self._entries.get(root, NOTHING_KNOWN)

    def pinned(self, root: bytes) -> bool:
        """Say whether `root` must stay; everything must if the file is damaged."""
        return bool(self.damaged) or self.entry(root).pinned

    def roots(self) -> tuple[bytes, ...]:
        """Return the roots of which something is known."""
        with self._lock:
            return tuple(self._entries)

    def note(self, root: bytes, now_ms: int, key: DataKey | None = None, version: int = 0) -> None:
        """Note that `root` is used now, and under which key if that is said."""
        with self._lock:
            entry = replace(self.entry(root), used_ms=max(now_ms, 0))
            if key is not None:
                entry = replace(entry, key=key, version=version)
            self._put(root, entry)

    def pin(self, root: bytes, pinned: bool) -> None:
        """Pin `root`, or let it go again; durable on return. StorageError leaves it as it was."""
        with self._lock:
            before = self._entries.get(root)
            if self.damaged:
                raise StorageError(self.damaged)
            self._put(root, replace(self.entry(root), pinned=pinned))
            try:
                self.flush()
            except StorageError:
                if before is None:
                    del self._entries[root]
                else:
                    self._entries[root] = before
                raise

    def forget(self, root: bytes) -> None:
        """Forget data that is gone; a pin stays, for the data may come again."""
        with self._lock:
            if root in self._entries and not self._entries[root].pinned:
                del self._entries[root]
                self._changed = True

    @property
    def scrub(self) -> ScrubState:
        """Where the scrub stands."""
        return self._scrub

    @scrub.setter
    def scrub(self, state: ScrubState) -> None:
        with self._lock:
            self._scrub = state
            self._changed = True

    def flush(self) -> None:
        """Write what has changed, durably. StorageError if the disk refuses; it can be tried again."""
        with self._lock:
            if not self._changed or self.damaged:
                return
            payload = encode(Contents(tuple(self._entries.items()), self._scrub))
            make_folder(self._folder)
            replace_checked(self._path, _KIND, payload)
            self._changed = False

    def _put(self, root: bytes, entry: Entry) -> None:
        if len(self._entries) >= MAX_ENTRIES and root not in self._entries:
            oldest = min(
                self._entries, key=lambda one: (self._entries[one].pinned, self._entries[one].used_ms)
            )
            del self._entries[oldest]
        self._entries[root] = entry
        self._changed = True

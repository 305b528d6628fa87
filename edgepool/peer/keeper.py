"""Keeps the data that a peer holds: makes room, pins, and says why what is kept [S3.8].

What may go is decided by core/transfer/retention.py, what is promised by promises.py; scrubbing.py looks
for damage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from edgepool.config import PeerSettings
from edgepool.core.transfer.retention import Held, may_go, plan_eviction
from edgepool.errors import LocalError, Refused, StorageError, Unavailable
from edgepool.model.record import TransmissionConfirmation
from edgepool.model.twin import DataKey
from edgepool.peer.datavalues import ScrubReport, StorageStatus, StoredData
from edgepool.peer.promises import Promises
from edgepool.peer.scrubbing import Scrubber
from edgepool.peer.values import DataEvicted
from edgepool.runtime.loop import FreshBlocks
from edgepool.runtime.ports import Clock
from edgepool.storage.blobs import BlobStore
from edgepool.storage.catalogue import Catalogue

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

STATUS_EVERY_MS = 1_000
"""How often a status looks through all offers: there can be many."""
ROOT_DIGITS = 8
"""A root can be named by so many of its first hex digits."""

_STEP_S = 0.002
_STEP_TIMEOUT_S = 5.0


class DataKeeper:
    """Keeps the data of `peer` in `blobs`; started and closed with the peer, on its event loop."""

    def __init__(self, peer: Peer, blobs: BlobStore, source: FreshBlocks, clock: Clock) -> None:
        self._peer = peer
        self._blobs = blobs
        self._clock = clock
        self._evict_policy = peer.settings.storage.evict
        self._quota_bytes = peer.settings.limits.data_bytes
        self._catalogue = Catalogue(peer.settings.path("blobs"))
        self._promises = Promises(peer.node, source)
        self._scrubber = Scrubber(peer, self, blobs, self._catalogue, clock)
        self._room = asyncio.Lock()
        self._evicted = 0
        self._looked_ms = 0
        self._looked: list[Held] = []

    def start(self) -> None:
        """Begin to look after what is held."""
        now_ms = self._now_ms()
        self._promises.recall(now_ms)
        for root in self._blobs.roots():
            if not self._catalogue.entry(root).used_ms:
                self._catalogue.note(root, now_ms)
        self._scrubber.start()

    async def close(self) -> None:
        """Stop, and write down what is known."""
        await self._scrubber.close()

    # --- what the data plane tells ----------------------------------------------------------------

    def used(self, root: bytes, key: DataKey | None = None, version: int = 0) -> None:
        """Data was published, fetched or asked for."""
        self._catalogue.note(root, self._now_ms(), key, version)

    def confirmed(self, confirmation: TransmissionConfirmation) -> None:
        """A transfer was countersigned."""
        if self._blobs.has(confirmation.root):
            self.used(confirmation.root)
        self._promises.confirmed(confirmation, self._now_ms())

    @contextmanager
    def publishing(self, root: bytes, key: DataKey, version: int) -> Iterator[None]:
        """Keep data while it is being offered; drop it if the offer is refused and the data is new."""
        known = bool(self._catalogue.entry(root).used_ms)
        self.used(root, key, version)
        try:
            with self._promises.publishing(root):
                yield
        except (Refused, LocalError):
            if not known and not self._why_kept(root):
                self._drop(root)
            raise

    def versions(self, key: DataKey) -> list[bytes]:
        """Return the roots of the versions of `key` that are held whole, the newest first."""
        entries = [(self._catalogue.entry(root), root) for root in self._blobs.roots()]
        mine = [(entry.version, root) for entry, root in entries if entry.key == key]
        return [root for _, root in sorted(mine, reverse=True)]

    def doubt(self, root: bytes, index: int) -> None:
        """Chunk `index` of held data could not be read, or came damaged: it is looked at soon."""
        self._scrubber.doubt(root, index)

    # --- room -------------------------------------------------------------------------------------

    async def make_room(self, size_bytes: int) -> None:
        """See to it that `size_bytes` more fit; what may go goes as far as is needed.

        StorageError, and nothing has gone, if that is not enough.
        """
        async with self._room:
            lacking_bytes = await asyncio.to_thread(self._blobs.lacking_bytes, size_bytes)
            if lacking_bytes:
                await self._evict(lacking_bytes, size_bytes)

    async def evict(self, wanted_bytes: int) -> list[StoredData]:
        """Drop what was used least recently until `wanted_bytes` are free of it; return what went.

        StorageError, and nothing has gone, if all that may go is not enough.
        """
        async with self._room:
            return await self._evict(wanted_bytes, 0)

    async def evict_these(self, what: str) -> list[StoredData]:
        """Drop what `what` names (see `find`); Refused if any of it is kept, with the reason."""
        async with self._room:
            found = [one for one in self.find(what) if one.state == "whole"]
            for one in found:
                if one.kept:
                    raise Refused("data is kept", f"{_name(one)} is {one.kept}")
            await self._go([bytes.fromhex(one.root) for one in found])
            return found

    async def _evict(self, lacking_bytes: int, for_bytes: int) -> list[StoredData]:
        held = self._held()
        chosen = None
        if self._evict_policy == "lru" or not for_bytes:
            chosen = plan_eviction(held, lacking_bytes, self._now_ms())
        if chosen is None:
            raise StorageError(self._no_room(held, lacking_bytes, for_bytes))
        going = [one for one in self.stored() if bytes.fromhex(one.root) in chosen and one.state == "whole"]
        await self._go(list(chosen))
        return going

    async def _go(self, roots: list[bytes]) -> None:
        """Drop data. What is confirmed to somebody before the node knows of it stays after all."""
        sizes = {root: self._blobs.sizes().get(root, 0) for root in roots}
        for root, size_bytes in sizes.items():
            self._peer.holding(root, size_bytes, held=False)
        try:
            async with asyncio.timeout(_STEP_TIMEOUT_S):
                while any(root in self._peer.node.directory.held for root in roots):  # noqa: ASYNC110
                    await asyncio.sleep(_STEP_S)
            reasons = self._promises.reasons(self._now_ms())
            for root in [root for root in roots if root not in reasons]:
                key = self.key_of(root)[0]
                await asyncio.to_thread(self._blobs.delete, root)
                self._catalogue.forget(root)
                self._evicted += 1
                self._peer.tell(DataEvicted(root, key, sizes[root]))
        except TimeoutError:
            raise Unavailable("this peer is too busy to drop data: try again later") from None
        finally:
            for root, size_bytes in sizes.items():
                if self._blobs.has(root):
                    self._peer.holding(root, size_bytes)

    def _no_room(self, held: list[Held], lacking_bytes: int, for_bytes: int) -> str:
        now_ms = self._now_ms()
        kept = sum(one.size_bytes for one in held if one.kept)
        free = sum(one.size_bytes for one in held if may_go(one, now_ms))
        what = f"{for_bytes} bytes do not fit" if for_bytes else f"{lacking_bytes} bytes cannot be freed"
        if self._evict_policy != "lru" and for_bytes:
            why = 'storage.evict = "never" lets nothing go'
        else:
            why = f"only {free} of {lacking_bytes} bytes may go, {kept} are pinned or promised"
        return (
            f"{what}: of the {self._quota_bytes} bytes of limits.data_bytes {self._blobs.size_bytes} are in "
            f"use, and {why}; raise limits.data_bytes, free some of the disk, or unpin what is not needed"
        )

    # --- pins -------------------------------------------------------------------------------------

    async def pin(self, what: str, pinned: bool = True) -> list[StoredData]:
        """Pin what `what` names, or unpin it; durable on return. Return it as it is then."""
        roots = [bytes.fromhex(one.root) for one in self.find(what)]
        for root in roots:
            await asyncio.to_thread(self._catalogue.pin, root, pinned)
        names = {root.hex() for root in roots}
        return [one for one in self.stored() if one.root in names]

    # --- what is held -----------------------------------------------------------------------------

    def stored(self) -> list[StoredData]:
        """Return all data that is held, in quarantine or incomplete, what was used last first."""
        keys, reasons = self._promises.keys(), self._promises.reasons(self._now_ms())
        kinds = {
            "incomplete": self._blobs.incomplete(),
            "damaged": self._blobs.damaged(),
            "whole": self._blobs.sizes(),
        }
        rows = []
        for state, sizes in kinds.items():
            for root, size_bytes in sizes.items():
                entry = self._catalogue.entry(root)
                known = keys.get(root) or ([(entry.key, entry.version)] if entry.key is not None else [])
                rows.append(
                    StoredData(
                        root=root.hex(),
                        keys=[f"{key} version {version}" for key, version in known],
                        size_bytes=size_bytes,
                        used_ms=entry.used_ms,
                        state=state,
                        pinned=self._catalogue.pinned(root),
                        kept=self._why(root, reasons),
                    )
                )
        return sorted(rows, key=lambda row: (-row.used_ms, row.root))

    def find(self, what: str) -> list[StoredData]:
        """Return the data that `what` names: a key, or the first hex digits of a root. LocalError if none."""
        if "/" in what:
            key = str(DataKey.parse(what))
            found = [one for one in self.stored() if any(k.startswith(f"{key} version ") for k in one.keys)]
        else:
            whole = len(what) >= ROOT_DIGITS and all(one in "0123456789abcdef" for one in what)
            if not whole:
                raise LocalError(
                    f"'{what[:80]}' names no data: write a key, such as PTVA10212-03/model, or at least the "
                    f"first {ROOT_DIGITS} digits of a root"
                )
            found = [one for one in self.stored() if one.root.startswith(what)]
        if not found:
            raise LocalError(f"no data '{what[:80]}' is held here: 'edgepool data list' shows what is")
        return found

    def status(self) -> StorageStatus:
        """Return how much is held and how much of it may go."""
        now_ms = self._now_ms()
        if not self._looked_ms <= now_ms < self._looked_ms + STATUS_EVERY_MS:
            self._looked_ms, self._looked = now_ms, self._held()
        held = self._looked
        return StorageStatus(
            quota_bytes=self._quota_bytes,
            used_bytes=sum(one.size_bytes for one in held),
            kept_bytes=sum(one.size_bytes for one in held if one.kept),
            evictable_bytes=sum(one.size_bytes for one in held if may_go(one, now_ms)),
            incomplete_bytes=sum(self._blobs.incomplete().values()),
            quarantined_bytes=sum(self._blobs.damaged().values()),
            blobs=len(held),
            evicted=self._evicted,
            damaged=self._scrubber.found,
            restored=self._scrubber.restored,
            scrubbed_bytes=self._scrubber.read_bytes,
            scrubbed_ms=self._catalogue.scrub.ended_ms,
        )

    def problems(self) -> list[str]:
        """Return sentences about what needs a person."""
        return ([self._catalogue.damaged] if self._catalogue.damaged else []) + self._scrubber.problems()

    async def scrub(self, what: str = "") -> ScrubReport:
        """Check all data now, or what `what` names (see `find`), as fast as the disk goes."""
        found = self.find(what) if what else []
        roots = [bytes.fromhex(one.root) for one in found if one.state == "whole"]
        return await self._scrubber.scrub(roots if what else None)

    def key_of(self, root: bytes) -> tuple[DataKey | None, int]:
        """Return under which key and version data is known here; (None, 0) if nobody has said."""
        entry = self._catalogue.entry(root)
        if entry.key is not None and entry.version:
            return entry.key, entry.version
        known = self._promises.keys().get(root)
        return known[0] if known else (entry.key, entry.version)

    def _held(self) -> list[Held]:
        reasons = self._promises.reasons(self._now_ms())
        return [
            Held(root, size_bytes, self._catalogue.entry(root).used_ms, self._why(root, reasons))
            for root, size_bytes in self._blobs.sizes().items()
        ]

    def _why_kept(self, root: bytes) -> str:
        return self._why(root, self._promises.reasons(self._now_ms()))

    def _why(self, root: bytes, reasons: dict[bytes, str]) -> str:
        words = [
            word for word in ("pinned" if self._catalogue.pinned(root) else "", reasons.get(root)) if word
        ]
        return ", ".join(words)

    def _drop(self, root: bytes) -> None:
        self._peer.holding(root, 0, held=False)
        with suppress(StorageError):  # it may go later: nothing has promised it
            self._blobs.delete(root)
        self._catalogue.forget(root)

    def _now_ms(self) -> int:
        return self._clock.now().wall_ms


def blobs_of(settings: PeerSettings) -> BlobStore:
    """Return the store for a peer's data, as large as its settings let it be."""
    keep_free_bytes = settings.storage.keep_free_bytes
    return BlobStore(settings.path("blobs"), settings.limits.data_bytes, keep_free_bytes)


def _name(one: StoredData) -> str:
    return one.keys[0] if one.keys else one.root[:16]

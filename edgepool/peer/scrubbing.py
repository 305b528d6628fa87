"""Looks for damage in the data that a peer holds, and gets again what is damaged.

Damaged data is never served: it is moved aside, told of, and offered again only when it has come, whole,
from another holder; one is looked for by itself, for as long as the data is missing.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgepool.errors import EdgepoolError, StorageError
from edgepool.peer.datavalues import ScrubReport
from edgepool.peer.values import DataDamaged, DataRestored
from edgepool.runtime.ports import Clock
from edgepool.storage.blobs import BlobStore
from edgepool.storage.catalogue import Catalogue, ScrubState
from edgepool.storage.scrub import Checked, Scrub

if TYPE_CHECKING:
    from edgepool.peer.keeper import DataKeeper
    from edgepool.peer.peer import Peer

FIRST_SCRUB_S = 60.0
"""A peer that has just started has better things to do."""
TEND_EVERY_S = 60.0
MAX_RETRY_S = 3600.0
MAX_DOUBTS = 64
"""So many chunks wait to be looked at: somebody said that they are damaged."""

_NOTHING = ScrubReport(checked=0, checked_bytes=0, damaged=[])
_MAX_PROBLEMS = 8
_log = logging.getLogger(__name__)


class Scrubber:
    """Reads the data in `blobs` again, slowly and for ever.

    Since the start it has read `read_bytes`, `found` so much data damaged, and `restored` so much of it.
    """

    def __init__(
        self, peer: Peer, keeper: DataKeeper, blobs: BlobStore, catalogue: Catalogue, clock: Clock
    ) -> None:
        self.read_bytes = self.found = self.restored = 0
        self._peer = peer
        self._keeper = keeper
        self._blobs = blobs
        self._catalogue = catalogue
        self._clock = clock
        self._bytes_s = peer.settings.storage.scrub_bytes_s
        self._every_h = peer.settings.storage.scrub_every_h
        self._scrubbing = asyncio.Lock()
        self._damage_found = asyncio.Event()
        self._doubts: dict[tuple[bytes, int], None] = {}
        self._doubted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._lost: dict[bytes, str] = {}
        """What is in quarantine and could not be replaced, and why."""

    def start(self) -> None:
        """Begin."""
        for root in self._blobs.damaged():
            self._lost[root] = "no holder was asked yet"
        name = self._peer.name
        self._tasks = [
            asyncio.create_task(self._scrub_forever(), name=f"scrub of {name}"),
            asyncio.create_task(self._tend_forever(), name=f"data of {name}"),
            asyncio.create_task(self._look_at_doubts(), name=f"doubts of {name}"),
        ]

    async def close(self) -> None:
        """Stop, and write down what is known."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            self._tasks = []
            with suppress(StorageError):
                await asyncio.to_thread(self._catalogue.flush)

    def problems(self) -> list[str]:
        """Return sentences about what is damaged and not replaced yet."""
        problems = []
        for root, why in list(self._lost.items())[:_MAX_PROBLEMS]:
            key, version = self._keeper.key_of(root)
            name = f"{key} version {version}" if key is not None else root.hex()[:16]
            problems.append(f"data {name} is damaged on this disk and not replaced yet: {why}")
        return problems

    async def scrub(self, roots: list[bytes] | None) -> ScrubReport:
        """Check these data, or all (None), as fast as the disk goes."""
        async with self._scrubbing:
            report = _NOTHING
            for scrub in (
                [Scrub(self._blobs)] if roots is None else [Scrub(self._blobs, only=r) for r in roots]
            ):
                report = await self._scrub(scrub, 0, report)
            if roots is None:
                self._catalogue.scrub = ScrubState(0, b"", self._now_ms())
            return report

    def doubt(self, root: bytes, index: int) -> None:
        """Look at a chunk soon: it could not be read, or somebody got it damaged."""
        if len(self._doubts) < MAX_DOUBTS:
            self._doubts[root, index] = None
            self._doubted.set()

    async def _look_at_doubts(self) -> None:
        """Read what is doubted, one chunk each, however often and by whom it is said."""
        while True:
            await self._doubted.wait()
            self._doubted.clear()
            while self._doubts:
                root, index = next(iter(self._doubts))
                scrub = Scrub(self._blobs, only=root, first=index)
                try:
                    checked = await asyncio.to_thread(scrub.step)
                finally:
                    scrub.close()
                if checked is not None and checked.damage and self._blobs.has(root):
                    await self._is_damaged(checked)
                del self._doubts[root, index]

    async def _scrub_forever(self) -> None:
        bytes_s, every_ms = self._bytes_s, self._every_h * 3_600_000
        await asyncio.sleep(FIRST_SCRUB_S)
        while bytes_s:
            state, now_ms = self._catalogue.scrub, self._now_ms()
            if state.began_ms or state.ended_ms + every_ms <= now_ms:
                async with self._scrubbing:
                    self._catalogue.scrub = replace(state, began_ms=state.began_ms or now_ms)
                    await self._scrub(Scrub(self._blobs, state.after), bytes_s, _NOTHING)
                    self._catalogue.scrub = ScrubState(0, b"", self._now_ms())
            await asyncio.sleep(min(3600.0, every_ms / 1000))

    async def _scrub(self, scrub: Scrub, bytes_s: int, report: ScrubReport) -> ScrubReport:
        try:
            while (checked := await asyncio.to_thread(scrub.step)) is not None:
                self.read_bytes += checked.size_bytes
                report = replace(report, checked_bytes=report.checked_bytes + checked.size_bytes)
                if checked.ended:
                    report = replace(report, checked=report.checked + 1)
                    if bytes_s:
                        self._catalogue.scrub = replace(self._catalogue.scrub, after=checked.root)
                if checked.damage:
                    report = replace(report, damaged=[*report.damaged, checked.root.hex()])
                    await self._is_damaged(checked)
                if bytes_s:
                    await asyncio.sleep(checked.size_bytes / bytes_s)
        finally:
            scrub.close()
        return report

    async def _is_damaged(self, checked: Checked) -> None:
        root = checked.root
        key = self._keeper.key_of(root)[0]
        self._peer.holding(root, 0, held=False)
        self.found += 1
        self._lost[root] = "no holder was asked yet"
        _log.error("data %s is damaged: %s", key or root.hex(), checked.damage)
        self._peer.tell(DataDamaged(root, key, checked.damage))
        with suppress(StorageError):  # the node no longer holds it, so it is not served even so
            await asyncio.to_thread(self._blobs.quarantine, root)
        self._damage_found.set()

    # --- now and then -----------------------------------------------------------------------------

    async def _tend_forever(self) -> None:
        retry_s = TEND_EVERY_S
        waited_s = retry_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TEND_EVERY_S):
                    await self._damage_found.wait()
                    waited_s = retry_s
            self._damage_found.clear()
            if self._lost and waited_s >= retry_s:
                await self._restore_all()
                retry_s = min(2 * retry_s, MAX_RETRY_S) if self._lost else TEND_EVERY_S
                waited_s = 0.0
            waited_s += TEND_EVERY_S
            with suppress(StorageError):  # tried again in a minute; pins are written at once
                await asyncio.to_thread(self._catalogue.flush)

    async def _restore_all(self) -> None:
        for root in list(self._lost):
            key, version = self._keeper.key_of(root)
            if self._blobs.has(root):
                del self._lost[root]
            elif key is None:
                self._lost[root] = "nobody knows under which key it was offered"
            else:
                try:
                    holder = await self._peer.data.refetch(key, version, root)
                except EdgepoolError as error:
                    self._lost[root] = str(error)
                    continue
                del self._lost[root]
                self.restored += 1
                self._peer.tell(DataRestored(root, key, holder))

    def _now_ms(self) -> int:
        return self._clock.now().wall_ms

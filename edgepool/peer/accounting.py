"""What a peer counts: bytes by kind, holder and path, transfers under way, how busy it is."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgepool.model.ids import PeerId
from edgepool.model.twin import DataKey
from edgepool.peer.values import Totals, TransferEnded
from edgepool.runtime.ports import Clock
from edgepool.transport.dial import DIRECT, Way

_WINDOW_MS = 2_000


@dataclass(slots=True, eq=False)
class TransferProgress:
    """A transfer under way, and how its data goes."""

    key: DataKey
    peer: PeerId
    outgoing: bool
    size_bytes: int
    started_ms: int
    done_bytes: int = 0
    way: Way = DIRECT


@dataclass(slots=True)
class Accounting:
    """Counters of one peer since it started; `link_mbit_s` is what its uplink can carry."""

    link_mbit_s: int
    demands: int = 0
    answered: int = 0
    failed: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    transfer_ms: int = 0
    first_data_ms: int = 0
    received_by_kind: dict[str, int] = field(default_factory=dict)
    received_by_holder: dict[PeerId, int] = field(default_factory=dict)
    received_by_conduit: dict[PeerId, int] = field(default_factory=dict)
    sent_by_conduit: dict[PeerId, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    under_way: dict[TransferProgress, None] = field(default_factory=dict)
    _recent: deque[tuple[int, int]] = field(default_factory=deque)

    def moved(self, transfer: TransferProgress, size_bytes: int, now_ms: int, wall_ms: int) -> None:
        """Count bytes of a transfer as they move."""
        transfer.done_bytes += size_bytes
        self._recent.append((now_ms, size_bytes))
        if (conduit := transfer.way.conduit) is not None:
            by_conduit = self.sent_by_conduit if transfer.outgoing else self.received_by_conduit
            by_conduit[conduit] = by_conduit.get(conduit, 0) + size_bytes
        if transfer.outgoing:
            self.bytes_sent += size_bytes
            return
        if not self.first_data_ms:
            self.first_data_ms = wall_ms
        self.bytes_received += size_bytes
        kind, holder = transfer.key.kind, transfer.peer
        self.received_by_kind[kind] = self.received_by_kind.get(kind, 0) + size_bytes
        self.received_by_holder[holder] = self.received_by_holder.get(holder, 0) + size_bytes

    def network_load_percent(self, now_ms: int) -> int:
        """Return the share of the uplink used by transfers over the last two seconds."""
        while self._recent and self._recent[0][0] < now_ms - _WINDOW_MS:
            self._recent.popleft()
        bits = 8 * sum(size for _, size in self._recent)
        capacity = self.link_mbit_s * 1_000 * _WINDOW_MS
        return min(100, 100 * bits // capacity)

    def totals(self, key_of: Callable[[PeerId], PeerId]) -> Totals:
        """Return the counters as they stand; `key_of` says which key one has by now who once had another."""
        return Totals(
            demands=self.demands,
            answered=self.answered,
            failed=self.failed,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            transfer_ms=self.transfer_ms,
            received_by_kind=dict(self.received_by_kind),
            received_by_holder=_by_person(self.received_by_holder, key_of),
            received_by_conduit=_by_person(self.received_by_conduit, key_of),
            sent_by_conduit=_by_person(self.sent_by_conduit, key_of),
            refused=dict(self.refused),
            first_data_ms=self.first_data_ms,
        )


class Transfers:
    """The transfers of one peer: each is begun, moves and ends, and `tell` hears of its end."""

    def __init__(self, accounting: Accounting, clock: Clock, tell: Callable[[TransferEnded], None]) -> None:
        self._accounting = accounting
        self._clock = clock
        self._tell = tell

    def begin(
        self, key: DataKey, peer: PeerId, outgoing: bool, size_bytes: int, way: Way = DIRECT
    ) -> TransferProgress:
        """A transfer to or from `peer` begins; its data goes `way`, as far as that is known yet."""
        started_ms = self._clock.now().monotonic_ms
        transfer = TransferProgress(key, peer, outgoing, size_bytes, started_ms, way=way)
        self._accounting.under_way[transfer] = None
        return transfer

    def moved(self, transfer: TransferProgress, size_bytes: int) -> None:
        """So many bytes more have moved."""
        now = self._clock.now()
        self._accounting.moved(transfer, size_bytes, now.monotonic_ms, now.wall_ms)

    def end(self, transfer: TransferProgress, failure: str) -> None:
        """A transfer has ended; `failure` is '' if it was as it should be."""
        self._accounting.under_way.pop(transfer, None)
        duration_ms = self._clock.now().monotonic_ms - transfer.started_ms
        if not transfer.outgoing and not failure:
            self._accounting.transfer_ms += duration_ms
        self._tell(
            TransferEnded(
                transfer.key, transfer.peer, transfer.outgoing, transfer.done_bytes, duration_ms, failure
            )
        )


def _by_person(counted: Mapping[PeerId, int], key_of: Callable[[PeerId], PeerId]) -> dict[str, int]:
    """Return counters by peer, in which all keys of one are that one."""
    summed: dict[str, int] = {}
    for peer, size_bytes in counted.items():
        now = str(key_of(peer))
        summed[now] = summed.get(now, 0) + size_bytes
    return summed


def processing_load_percent() -> int:
    """Return how busy this machine's processors are: run queue over cores, at most 100."""
    return min(100, int(100 * os.getloadavg()[0] / (os.cpu_count() or 1)))

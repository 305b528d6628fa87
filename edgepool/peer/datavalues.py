"""What a peer tells about the data that it keeps, about its budget, and about what it publishes live.

All sizes are bytes, all times milliseconds since 1970 UTC.
"""

from __future__ import annotations

import msgspec

from edgepool.config import BudgetSettings


class LiveStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A live stream that this peer publishes: samples put so far, those still held, who follows."""

    key: str
    epoch: int
    put: int
    held: int
    held_bytes: int
    subscribers: int


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The budget for bulk data that is in force, and the machine's rate at this hour (None: any).

    `set_at_run_time` says that it is not the one in the settings file.
    """

    settings: BudgetSettings
    set_at_run_time: bool
    now_mbit_s: int | None
    waiting_to_send: int
    waiting_to_receive: int


class StorageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How much twin data a peer holds, in bytes; `quota_bytes` is what it may hold.

    `used_bytes` is whole data: of it `kept_bytes` are pinned or promised and `evictable_bytes` may go now.
    `evicted`, `damaged` and `restored` count data since the start, `scrubbed_bytes` what the scrub has read
    again; its last whole round ended at `scrubbed_ms`.
    """

    quota_bytes: int = 0
    used_bytes: int = 0
    kept_bytes: int = 0
    evictable_bytes: int = 0
    incomplete_bytes: int = 0
    quarantined_bytes: int = 0
    blobs: int = 0
    evicted: int = 0
    damaged: int = 0
    restored: int = 0
    scrubbed_bytes: int = 0
    scrubbed_ms: int = 0


class StoredData(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of twin data on a peer's disk: its root (hex), its keys with versions, its last use.

    `state` is whole, incomplete or damaged; `kept` says why it may not go, '' if it may.
    """

    root: str
    keys: list[str]
    size_bytes: int
    used_ms: int
    state: str
    pinned: bool
    kept: str


class ScrubReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a scrub has read again, and the roots (hex) of what was damaged."""

    checked: int
    checked_bytes: int
    damaged: list[str]

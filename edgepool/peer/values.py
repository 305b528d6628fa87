"""What a peer returns and tells: results, events, and the status that screens and `--json` show.

All sizes are bytes, all times milliseconds; wall times count from 1970 UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgepool.core.machine import RecordRef
from edgepool.model.block import CertifiedBlock
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis
from edgepool.model.record import SignedRecord
from edgepool.model.twin import DataKey


@dataclass(frozen=True, slots=True)
class Published:
    """Data is stored durably and its offer is final on a chain."""

    key: DataKey
    version: int
    root: bytes
    size_bytes: int
    ref: RecordRef


@dataclass(frozen=True, slots=True)
class Fetched:
    """Data has arrived, every chunk checked against the root on chain, and is stored at `path`."""

    key: DataKey
    version: int
    root: bytes
    size_bytes: int
    path: Path
    holder: PeerId
    duration_ms: int

    def read(self) -> bytes:
        """Return the data itself."""
        return self.path.read_bytes()


# --- events of watch() --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecordCommitted:
    """A record is final."""

    ref: RecordRef
    record: SignedRecord


@dataclass(frozen=True, slots=True)
class BlockAdded:
    """A block is final; its records follow as RecordCommitted events."""

    chain: ChainId
    certified: CertifiedBlock


@dataclass(frozen=True, slots=True)
class PoolEntered:
    """This peer is now in a pool, as a member or an observer."""

    genesis: Genesis


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """A link came up or went down (`reason` says why)."""

    peer: PeerId
    name: str
    up: bool
    reason: str


@dataclass(frozen=True, slots=True)
class TransferEnded:
    """A transfer to (`outgoing` False) or from this peer has ended; `failure` is '' if it is whole."""

    key: DataKey
    peer: PeerId
    outgoing: bool
    size_bytes: int
    duration_ms: int
    failure: str


@dataclass(frozen=True, slots=True)
class PeerMisbehaved:
    """A peer provably did what no honest peer does, such as forging a record or voting twice."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class EventsMissed:
    """The reader of watch() was too slow: this many events are not in its sequence."""

    count: int


PeerEvent = (
    RecordCommitted | BlockAdded | PoolEntered | LinkChanged | TransferEnded | PeerMisbehaved | EventsMissed
)


# --- status -------------------------------------------------------------------------------------


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A link that stands."""

    peer: str
    name: str
    role: str
    machine_type: str
    up_ms: int


class ChainStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A chain, as this peer knows it. `kind` is that of its pool: fixed or manufacturing.

    `missing` are names of members without a link to this peer; `waiting` counts records in the
    mempool; `quorum` is how many members must agree.
    """

    id: str
    name: str
    kind: str
    voting: bool
    height: int
    round: int
    waiting: int
    members: list[str]
    observers: list[str]
    missing: list[str]
    quorum: int
    combination: list[str]
    last_packer: str
    last_block_ms: int
    records: dict[str, int]


class TransferStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer under way."""

    key: str
    peer: str
    name: str
    outgoing: bool
    done_bytes: int
    size_bytes: int
    bytes_per_s: int


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What this peer has done since it started.

    `demands` counts fetches asked for, `answered` those that ended whole, `failed` the others.
    `received_by_kind` and `received_by_holder` (peer id) split `bytes_received`. `refused` counts
    what was turned away, by reason; `first_data_ms` is the wall time at which the first byte of
    twin data arrived (0 if none has).
    """

    demands: int
    answered: int
    failed: int
    bytes_sent: int
    bytes_received: int
    transfer_ms: int
    received_by_kind: dict[str, int]
    received_by_holder: dict[str, int]
    refused: dict[str, int]
    first_data_ms: int


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One peer on one screen."""

    id: str
    name: str
    network: str
    role: str
    machine_type: str
    addresses: list[str]
    started_ms: int
    network_load_percent: int
    processing_load_percent: int
    wanted: list[str]
    links: list[LinkStatus]
    chains: list[ChainStatus]
    transfers: list[TransferStatus]
    totals: Totals
    problems: list[str]

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
from edgepool.model.pool import Genesis, Member
from edgepool.model.record import SignedRecord
from edgepool.model.twin import DataKey
from edgepool.peer.datavalues import LiveStatus, StorageStatus
from edgepool.peer.lifeview import CertificateStatus, RootLife
from edgepool.peer.pathvalues import ConduitStatus, Libp2pStatus, LinkStatus, PlaceStatus


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
    """Data has arrived, every chunk checked against the root on chain, and is stored at `path`.

    `shares` says how many bytes came from whom in this fetch, `holder` who sent most. `wire_bytes` is what
    travelled for them: less than that if another version was here already, or the data was packed.
    """

    key: DataKey
    version: int
    root: bytes
    size_bytes: int
    path: Path
    holder: PeerId
    duration_ms: int
    shares: dict[PeerId, int]
    wire_bytes: int = 0

    def read(self) -> bytes:
        """Return the data itself."""
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class FetchedMany:
    """What came of a fetch of many keys: the data that is here, and why the rest of the keys is not."""

    fetched: tuple[Fetched, ...]
    failed: dict[DataKey, str]
    duration_ms: int


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How far a fetch is: bytes that are here and checked, out of how many, and how many holders send now."""

    done_bytes: int
    size_bytes: int
    sources: int


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
class RosterChanged:
    """Others vote on a chain from `height` on: `joined` came, `left` went.

    Told when the block before `height` stands; not for blocks that this peer has not seen itself. `same` says
    that who came is who went, under another key.
    """

    chain: ChainId
    height: int
    joined: tuple[Member, ...]
    left: tuple[Member, ...]
    same: bool = False


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """A link came up or went down (`reason` says why); `conduit` is the name of the one it goes through."""

    peer: PeerId
    name: str
    up: bool
    reason: str
    conduit: str = ""


@dataclass(frozen=True, slots=True)
class TransferEnded:
    """A transfer to (`outgoing` False) or from this peer has ended, after `size_bytes`.

    `failure` is '' if it is whole. Data that comes from several holders is a transfer from each.
    """

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
class DataDamaged:
    """Data on this peer's disk is no longer what it was; it is in quarantine and not served."""

    root: bytes
    key: DataKey | None
    reason: str


@dataclass(frozen=True, slots=True)
class DataRestored:
    """Damaged data was got again, whole, from `holder`, and is offered as before."""

    root: bytes
    key: DataKey
    holder: PeerId


@dataclass(frozen=True, slots=True)
class DataEvicted:
    """Data was dropped to make room: it was neither pinned nor promised."""

    root: bytes
    key: DataKey | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EventsMissed:
    """The reader of watch() was too slow: this many events are not in its sequence."""

    count: int


@dataclass(frozen=True, slots=True)
class DataAsked:
    """Somebody has asked this peer for data, and was granted or refused it; `reason` is what failed."""

    peer: PeerId
    name: str
    organisation: str
    key: DataKey
    purpose: str
    granted: bool
    reason: str


PeerEvent = (
    RecordCommitted
    | BlockAdded
    | PoolEntered
    | RosterChanged
    | LinkChanged
    | TransferEnded
    | PeerMisbehaved
    | DataAsked
    | DataDamaged
    | DataRestored
    | DataEvicted
    | EventsMissed
)


# --- status -------------------------------------------------------------------------------------


class ChainStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A chain, as this peer knows it. `kind` is that of its pool: fixed or manufacturing.

    `members` vote on the next height, `former` have left. `missing` are names of members without a link
    to this peer; `waiting` counts records in the mempool; `quorum` is how many members must agree.
    `left`: this peer was a member and is none any more, so that it needs no links to the others. `ended`: all
    members of a manufacturing pool have left but the last.
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
    former: list[str] = []
    left: bool = False
    ended: bool = False


class TransferStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer under way; `conduit` is the name of the one that its data goes through, or ''.

    `road` says over what that conduit passes it: "libp2p" if it is a relay, else "tls". The data is sealed.
    """

    key: str
    peer: str
    name: str
    conduit: str = ""
    road: str = "tls"
    outgoing: bool
    done_bytes: int
    size_bytes: int
    bytes_per_s: int


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What this peer has done since it started.

    `demands` counts fetches asked for, `answered` those that ended whole, `failed` the others.
    `received_by_kind` and `received_by_holder` (by present peer id) split `bytes_received`;
    `received_by_conduit` and `sent_by_conduit` (the same) are what did not come, or go, directly. `refused`
    counts what was turned away, by reason; `first_data_ms` is the wall time at which the first byte of
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
    received_by_conduit: dict[str, int] = {}
    sent_by_conduit: dict[str, int] = {}


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
    storage: StorageStatus = StorageStatus()
    live: list[LiveStatus] = []
    conduits: list[PlaceStatus] = []
    conduit: ConduitStatus | None = None
    libp2p: Libp2pStatus | None = None
    certificate: CertificateStatus | None = None
    roots: list[RootLife] = []


# --- members ------------------------------------------------------------------------------------


class PoolMember(msgspec.Struct, frozen=True, kw_only=True):
    """A member of a pool, which votes from height `since_height` on; `linked` to this peer or not."""

    peer: str
    name: str
    machine_type: str
    since_height: int
    linked: bool
    convicted: bool


class FormerMember(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who has left a pool; `until_height` is the last one on which it had a vote.

    `heir` is the key that it has by now, '' if it has really left.
    """

    peer: str
    name: str
    until_height: int
    heir: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A change of who votes, by its number: peer ids and names of who leaves and who comes, '' for nobody."""

    number: int
    outgoing: str
    outgoing_name: str
    incoming: str
    incoming_name: str
    reason: str


class OpenChange(Change, frozen=True, kw_only=True):
    """A change that is proposed and not decided.

    `approved_by` are the names of those of the `of` members who have approved it, `needed` is how many
    must; `approved` says if this peer has. The coordinator may propose without being a member.
    """

    proposer: str
    proposer_name: str
    approved_by: list[str]
    needed: int
    of: int
    approved: bool


class DecidedChange(Change, frozen=True, kw_only=True):
    """A change that is decided: the new roster votes from height `in_force_height` on."""

    in_force_height: int


class KeyStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a change of a peer's key is. `peer` is who it is now.

    `state` is '' (none is under way), 'certifying', 'passing' (`next` takes its place, in the pools `waiting`
    not yet), 'ready' (the peer is to be opened again) or 'settling' (`former` is being revoked).
    `problem` is why it does not go on now, '' if it does.
    """

    peer: PeerId
    state: str
    next: str
    former: str
    waiting: list[str]
    problem: str


class PoolMembers(msgspec.Struct, frozen=True, kw_only=True):
    """Who is in a pool, and who is to come or to go. `members` vote on the height after `height`.

    `convicted` are names of members against whom there is evidence on the chain; `decided` is the
    change that is not in force yet, None if there is none. `ended`: see ChainStatus.
    """

    chain: str
    name: str
    kind: str
    height: int
    voting: bool
    quorum: int
    members: list[PoolMember]
    observers: list[str]
    decided: DecidedChange | None
    open: list[OpenChange]
    convicted: list[str]
    former: list[FormerMember]
    ended: bool = False

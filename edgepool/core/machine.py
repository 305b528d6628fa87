"""The shape of every machine in the core: events go in, effects come out.

`Node.step(event, now) -> list[Effect]`; the shell performs the effects in order. `Persist` is a
barrier: it is durable before any later `Send` or `Broadcast` leaves, so that a vote is stored
before it is spoken and a record before it is acknowledged. One deadline is pulled
(`Node.wakeup_at`); no timers are set or cancelled.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgepool.core.rights import Subject
from edgepool.core.stored import BlockSource as BlockSource
from edgepool.core.stored import CommitBlock as CommitBlock
from edgepool.core.stored import Item as Item
from edgepool.core.stored import KeptRecord as KeptRecord
from edgepool.core.stored import NewChain as NewChain
from edgepool.core.stored import Prune as Prune
from edgepool.core.stored import SavedSnapshot as SavedSnapshot
from edgepool.core.stored import SaveSnapshot as SaveSnapshot
from edgepool.core.stored import VoteState as VoteState
from edgepool.model.block import CertifiedBlock
from edgepool.model.certifying import Certifying
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import Message, OfferProof, Origin
from edgepool.model.pool import Genesis, Invitation, Member
from edgepool.model.record import MembershipChange, SignedRecord, TransmissionConfirmation
from edgepool.model.trust import TrustChange
from edgepool.model.twin import DataKey


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment as the shell's clocks see it, in milliseconds.

    Deadlines use `monotonic_ms`; `wall_ms` (since 1970 UTC) is only ever written down for people
    or compared with validity times.
    """

    monotonic_ms: int
    wall_ms: int


# --- events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A message arrived on the link of `peer`, who has proved to be `peer`."""

    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A link stands; the certificate at its other end says who that is."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The link to `peer` is gone."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Submitted:
    """The owner of this peer asks for something; the outcome comes as Done or Failed with `ticket`."""

    ticket: int
    command: Command


@dataclass(frozen=True, slots=True)
class Holding:
    """This peer now holds (or no longer holds) the data with manifest root `root`."""

    root: bytes
    size_bytes: int
    held: bool


@dataclass(frozen=True, slots=True)
class Load:
    """How busy this peer is, in percent of its uplink and of its processors."""

    network_percent: int
    processing_percent: int


@dataclass(frozen=True, slots=True)
class Moved:
    """This peer can be dialled at other addresses from now on."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Woke:
    """The deadline that the node named has passed."""


Event = Received | PeerUp | PeerDown | Submitted | Holding | Load | Moved | Woke

# --- commands: what an owner can ask of its node -----------------------------------------------


@dataclass(frozen=True, slots=True)
class SubmitRecord:
    """Put a record on its chain. Done(RecordRef) once it is final; Failed if a door refuses it."""

    record: SignedRecord


@dataclass(frozen=True, slots=True)
class FindData:
    """Find holders of `key` by Algorithm 2. Done(tuple[RankedOffer, ...]), best first, perhaps empty.

    `version` 0 asks for the newest.
    """

    key: DataKey
    version: int
    budget_ms: int
    purpose: str = ""


@dataclass(frozen=True, slots=True)
class ConfirmTransfer:
    """Have `holder` countersign a transfer. Done(SignedRecord) of a TransmissionConfirmation."""

    holder: Member
    key: DataKey
    root: bytes
    valid_until_ms: int
    purpose: str = ""


@dataclass(frozen=True, slots=True)
class FormPool:
    """Invite the members and form the pool. Done(Genesis), or Failed saying who did not accept."""

    invitation: Invitation


@dataclass(frozen=True, slots=True)
class ChangeMembers:
    """Propose that `outgoing` ('' for nobody) leaves a pool and `incoming` (or None) comes.

    A newcomer is asked first. Done(RecordRef) of this peer's own record once it stands; the change is decided
    when more than two thirds of the roster have said the same, and in force two heights later.
    """

    chain: ChainId
    outgoing: str
    incoming: Member | None
    reason: str


@dataclass(frozen=True, slots=True)
class ApproveChange:
    """Approve the change that `proposer` has on the chain under the present number. Done(RecordRef)."""

    chain: ChainId
    proposer: PeerId


@dataclass(frozen=True, slots=True)
class Succeed:
    """Put on a chain that a new key follows this peer's own there. Done(RecordRef) once that stands there.

    It is decided, and in force, like any other change of the members.
    """

    chain: ChainId
    change: MembershipChange


@dataclass(frozen=True, slots=True)
class ChangeTrust:
    """Put this peer's word for a change of trust on a main chain. Done(RecordRef) once it stands there.

    It is decided, and in force, when more than two thirds of the roster have said the same.
    """

    chain: ChainId
    change: TrustChange


@dataclass(frozen=True, slots=True)
class Certify:
    """Say something about certificates to linked peers. There is no outcome."""

    peers: tuple[PeerId, ...]
    message: Certifying


Command = (
    SubmitRecord
    | FindData
    | ConfirmTransfer
    | FormPool
    | ChangeMembers
    | ApproveChange
    | Succeed
    | ChangeTrust
    | Certify
)


@dataclass(frozen=True, slots=True)
class RecordRef:
    """Where a record stands: chain, height (from 1) and index in the block (from 0)."""

    chain: ChainId
    height: int
    index: int


@dataclass(frozen=True, slots=True)
class RankedOffer:
    """A proven offer with what its holder said of itself; loads in percent, round trip in ms.

    `reachable` is False if the holder did not answer in time; `refusal` is why this peer may not have it.
    """

    proof: OfferProof
    holder: Member
    network_load_percent: int
    processing_load_percent: int
    round_trip_ms: int
    reachable: bool
    refusal: str = ""


# --- effects ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Store `item` durably before any later message leaves."""

    item: Item


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` on the link of `peer`; lost if there is no link."""

    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Send `message` on the link of each of `peers`."""

    peers: tuple[PeerId, ...]
    message: Message


@dataclass(frozen=True, slots=True)
class WantLink:
    """Keep a link to `member` from now on, and none any more to `instead_of`, its old key, if it has one."""

    member: Member
    instead_of: PeerId | None = None


@dataclass(frozen=True, slots=True)
class UnwantLink:
    """Dial `peer` no more. A link that stands stays until it is lost."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Done:
    """A command has been carried out. `result` is what the command's docstring says."""

    ticket: int
    result: object


@dataclass(frozen=True, slots=True)
class Failed:
    """A command was not carried out. `refused` tells a rule's no from nobody's answer."""

    ticket: int
    reason: str
    refused: bool


@dataclass(frozen=True, slots=True)
class BlockCommitted:
    """A chain has grown by a block that is final."""

    chain: ChainId
    block: CertifiedBlock


@dataclass(frozen=True, slots=True)
class PoolJoined:
    """This peer is now a member (or an observer) of a pool."""

    genesis: Genesis


@dataclass(frozen=True, slots=True)
class TrustDecided:
    """The main chains of this peer trust others than before; the node's `trust` says whom."""


@dataclass(frozen=True, slots=True)
class KeySucceeded:
    """The key `heir` has the place of `former`, which the settings name, or which has followed such a key."""

    former: PeerId
    heir: PeerId


@dataclass(frozen=True, slots=True)
class Certified:
    """A linked peer said something about certificates: the shell answers, the core has no part in it."""

    peer: PeerId
    message: Certifying


@dataclass(frozen=True, slots=True)
class Confirmed:
    """This peer has countersigned a transfer to `confirmation.requester`."""

    confirmation: TransmissionConfirmation


@dataclass(frozen=True, slots=True)
class AccessRefused:
    """This peer has refused data to `subject`; `reason` is the condition that failed."""

    subject: Subject
    key: DataKey
    root: bytes
    purpose: str
    reason: str


@dataclass(frozen=True, slots=True)
class CameUnder:
    """The data with manifest root `root` is handed to this peer under a policy, to be kept with it."""

    root: bytes
    origin: Origin


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """A peer sent what no honest peer sends; nothing but this notice came of it."""

    peer: PeerId
    reason: str


_DataNotice = Confirmed | AccessRefused | CameUnder
_PeerNotice = TrustDecided | KeySucceeded | Certified | Misbehaved
Notice = Done | Failed | BlockCommitted | PoolJoined | _DataNotice | _PeerNotice


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell this peer's owner."""

    notice: Notice


Effect = Persist | Send | Broadcast | WantLink | UnwantLink | Notify

"""What the processes of a workshop tell the one that started them: one JSON line for each event.

The lines go to standard output, which the parent reads; standard error is for logs. Times are
milliseconds since 1970 UTC.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import msgspec

from edgepool.errors import LocalError
from edgepool.peer.values import PeerStatus, Totals


class HostedPeer(msgspec.Struct, frozen=True):
    """A peer that runs in a process: its name, peer id and folder."""

    name: str
    id: str
    folder: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """All peers of a process listen. `relay_url` is set by the relay's process."""

    process: str
    peers: tuple[HostedPeer, ...]
    relay_url: str
    time_ms: int


class PoolStands(msgspec.Struct, frozen=True, tag="pool"):
    """The coordinator has formed a pool."""

    name: str
    kind: str
    members: tuple[str, ...]
    combination: tuple[str, ...]
    time_ms: int


class TaskAllotted(msgspec.Struct, frozen=True, tag="allotted"):
    """The coordinator has given a task to a pool, an old one (`reused`) or a new one."""

    task: str
    part: str
    pool: str
    reused: bool
    stations: tuple[str, ...]
    time_ms: int


class TaskEnded(msgspec.Struct, frozen=True, tag="ended-task"):
    """The last step of a task is complete on chain, as the coordinator sees it."""

    task: str
    part: str
    pool: str
    completion_ms: int


class CaughtUp(msgspec.Struct, frozen=True, tag="caught-up"):
    """The coordinator knows again what is on its chains, after `duration_ms`."""

    pools: int
    tasks_done: int
    duration_ms: int


class StepChanged(msgspec.Struct, frozen=True, tag="step"):
    """A station has come to another phase of a step; `step` counts from 0.

    Phases in their order: outside, fetching, waiting, machining, publishing, done.
    """

    task: str
    part: str
    pool: str
    station: str
    operation_number: int
    operation: str
    step: int
    steps: int
    phase: str
    time_ms: int


class DataArrived(msgspec.Struct, frozen=True, tag="arrived"):
    """A station has got data from another one, whole and checked."""

    key: str
    source: str
    station: str
    size_bytes: int
    duration_ms: int


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """Something was refused or not available; `who` tries it again."""

    who: str
    what: str
    reason: str
    time_ms: int


class Note(msgspec.Struct, frozen=True, tag="note"):
    """A sentence for people."""

    who: str
    text: str


class MoverReport(msgspec.Struct, frozen=True):
    """What a station's data mover has done since it started.

    `totals` are the counts; `upload_ms` is the time spent bringing data to the relay (0 where
    there is none); `waits_ms` is how long each answered demand took, from asking to having.
    """

    totals: Totals
    upload_ms: int = 0
    waits_ms: tuple[int, ...] = ()


class DataMoved(msgspec.Struct, frozen=True, tag="data"):
    """How much data a station has moved so far."""

    station: str
    report: MoverReport


class PeerEnds(msgspec.Struct, frozen=True, tag="peer-ends"):
    """The last status of a peer, taken when its process was asked to end."""

    status: PeerStatus
    report: MoverReport | None


class RelayCounts(msgspec.Struct, frozen=True, tag="relay"):
    """What has passed through the relay."""

    uploads: int
    downloads: int
    bytes_in: int
    bytes_out: int
    refused: int


WorkshopEvent = (
    Ready
    | PoolStands
    | TaskAllotted
    | TaskEnded
    | CaughtUp
    | StepChanged
    | DataArrived
    | Fault
    | Note
    | DataMoved
    | PeerEnds
    | RelayCounts
)
"""Everything that a process of the workshop says."""

Tell = Callable[[WorkshopEvent], None]
"""Takes an event to whoever wants to know."""

MAX_LINE_BYTES = 4 * 1024 * 1024

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[WorkshopEvent] = msgspec.json.Decoder(WorkshopEvent)


def print_event(event: WorkshopEvent) -> None:
    """Write an event as a line to standard output; nothing if nobody reads it any more."""
    try:
        sys.stdout.buffer.write(_encoder.encode(event) + b"\n")
        sys.stdout.buffer.flush()
    except (BrokenPipeError, ValueError):
        pass


def parse_event(line: bytes) -> WorkshopEvent:
    """Return the event in a line; LocalError if it is none."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LocalError(f"a process of the workshop wrote a line that is no event: {error}") from None

"""The ports: what the loop needs of the world. Each has a real and an in-memory implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgepool.core.machine import BlockSource, Instant, Item
from edgepool.model.identity import PeerIdentity as PeerIdentity
from edgepool.model.ids import PeerId
from edgepool.model.pool import Genesis, Member


class LinkHandler(Protocol):
    """What a transport calls, on the event loop, never concurrently."""

    def link_up(self, identity: PeerIdentity) -> None:
        """A link stands; at most one for each peer."""
        ...

    def link_down(self, peer: PeerId, reason: str) -> None:
        """The link is gone."""
        ...

    def frame_received(self, peer: PeerId, frame: bytes) -> None:
        """A whole frame of at most `limits.frame_bytes` arrived."""
        ...


class Transport(Protocol):
    """Links between peers: ordered, authenticated, confidential, each bounded both ways."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The multiaddrs at which this peer can be dialled; one behind a conduit ends with /p2p/PEER."""
        ...

    async def start(self, handler: LinkHandler) -> None:
        """Listen and begin to dial. LocalError if the port is in use."""
        ...

    def want(self, member: Member) -> None:
        """Keep a link to `member`: dial it, and again with back-off when it is lost."""
        ...

    def unwant(self, peer: PeerId) -> None:
        """Dial `peer` no more; a link that stands stays until it is lost."""
        ...

    def send(self, peer: PeerId, frame: bytes) -> bool:
        """Queue `frame`; False (and it is counted) if there is no link or its outbox is full."""
        ...

    def close_link(self, peer: PeerId, reason: str) -> None:
        """End the link to `peer`, who broke the protocol; it may be made again after a pause."""
        ...

    async def close(self) -> None:
        """Flush what can be flushed in 1 s, then end all links."""
        ...


@dataclass(frozen=True, slots=True)
class SavedChain:
    """What a store holds of one chain: genesis, height, last vote state or b"".

    `height` is that of the last block; of the snapshot if no block is behind it, 0 if there is neither.
    """

    genesis: Genesis
    height: int
    vote_state: bytes


class Store(BlockSource, Protocol):
    """Durable chains and votes of one peer. All methods raise StorageError."""

    def open(self) -> list[SavedChain]:
        """Recover what was acknowledged, cut what was torn; return the chains, oldest first."""
        ...

    def write(self, items: Iterable[Item]) -> None:
        """Write `items` in order; durable only after `sync`. May run in a worker thread.

        Blocks, snapshots and prunings that were written before may be written again. A snapshot that is not
        adopted must not be above the last block, and no pruning above the snapshot.
        """
        ...

    def sync(self) -> None:
        """Make everything written durable. May run in a worker thread."""
        ...

    def quick(self, items: Sequence[Item]) -> bool:
        """Say whether `items` are surely written and synced in less time than a thread costs."""
        ...

    def close(self) -> None:
        """Release files; no data depends on it."""
        ...


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> Instant:
        """Return the present."""
        ...

    def call_at(self, monotonic_ms: int, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back once at `monotonic_ms`; return what cancels it."""
        ...

"""What consensus asks of the chain that it works for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from edgepool.core.machine import Effect, Instant
from edgepool.model.block import Block
from edgepool.model.ids import PeerId


class Application(Protocol):
    """A chain as the engine sees it; every answer is about the next height."""

    def members(self) -> tuple[PeerId, ...]:
        """Return who votes, in the order of the roster."""
        ...

    def next_members(self) -> tuple[PeerId, ...]:
        """Return who votes on the height after the next, in the order of the roster."""
        ...

    def listeners(self) -> Mapping[PeerId, int]:
        """Return who is told of blocks without a vote, and each one's last height to be told of."""
        ...

    def judges(self) -> bool:
        """Say whether this peer knows enough to judge a new block, so that it may vote."""
        ...

    def pruned(self, peer: PeerId, first: int, now: Instant) -> list[Effect]:
        """Return what to send to a peer that needs blocks from `first` on, which are not stored here."""
        ...

    def make_block(self, round: int, now: Instant) -> Block | None:
        """Return a new block to propose in `round`, or None if nothing waits."""
        ...

    def check_block(self, block: Block) -> str:
        """Say why `block` may not stand at the next height, or return ''."""
        ...

    def leader(self, round: int) -> PeerId:
        """Return who proposes in `round`."""
        ...

    def has_waiting(self) -> bool:
        """Say whether records wait to be packed."""
        ...

    def has_enough(self) -> bool:
        """Say whether so many wait that there is no point in waiting for more."""
        ...

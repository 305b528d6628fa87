"""What consensus asks of the chain that it works for, and what it tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edgepool.core.machine import Effect, Instant
from edgepool.model.block import Block, CertifiedBlock
from edgepool.model.ids import PeerId
from edgepool.model.vote import Equivocation


@dataclass(frozen=True, slots=True)
class Decided:
    """A block stands; always the last output of a call. Persist and apply it, then `advance`."""

    certified: CertifiedBlock


@dataclass(frozen=True, slots=True)
class Caught:
    """A member has signed two values; told once for each member for as long as it is one."""

    equivocation: Equivocation


Output = Effect | Decided | Caught


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

    def may_prevote(self, block: Block) -> bool:
        """Say whether this peer, of itself, may prevote for a new `block`, which it has checked.

        Not if it knows too little to say that it may stand, or if it says what comes too late.
        """
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

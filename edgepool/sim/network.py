"""A network made of a seed: every pair of peers draws delays and losses from a stream of its own.

So taking one fault away does not change what happens on other links.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from edgepool.model.ids import PeerId


@dataclass(frozen=True, slots=True)
class NetworkConditions:
    """How a link behaves: delay in ms, uniformly between two bounds; lost frames in per mille."""

    delay_min_ms: int = 1
    delay_max_ms: int = 10
    loss_per_mille: int = 0


class SimNetwork:
    """Says when, and whether, a frame from one peer reaches another."""

    def __init__(self, seed: int, conditions: NetworkConditions) -> None:
        self.conditions = conditions
        self._seed = seed
        self._streams: dict[tuple[PeerId, PeerId], Random] = {}
        self._last_ms: dict[tuple[PeerId, PeerId], int] = {}
        self._side: dict[PeerId, int] = {}

    def partition(self, *sides: list[PeerId]) -> None:
        """Let frames pass only between peers on the same side; peers on no side reach nobody."""
        self._side = {peer: number for number, side in enumerate(sides) for peer in side}

    def heal(self) -> None:
        """End a partition."""
        self._side = {}

    def reaches(self, sender: PeerId, receiver: PeerId) -> bool:
        """Say whether frames can pass at all."""
        if not self._side:
            return True
        side = self._side.get(sender)
        return side is not None and side == self._side.get(receiver)

    def arrival_ms(self, sender: PeerId, receiver: PeerId, now_ms: int) -> int | None:
        """Return when a frame sent now arrives, or None if it is lost. Links keep their order."""
        if not self.reaches(sender, receiver):
            return None
        pair = (sender, receiver)
        stream = self._streams.get(pair)
        if stream is None:
            stream = self._streams[pair] = Random(f"{self._seed}/{sender}/{receiver}")
        if self.conditions.loss_per_mille > stream.randrange(1000):
            return None
        delay_ms = stream.randint(self.conditions.delay_min_ms, self.conditions.delay_max_ms)
        arrival = max(now_ms + delay_ms, self._last_ms.get(pair, 0))
        self._last_ms[pair] = arrival
        return arrival

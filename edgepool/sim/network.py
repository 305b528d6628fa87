"""A network made of a seed: every pair of peers draws delays and losses from a stream of its own.

So taking one fault away does not change what happens on other links: each frame draws the same
amount of chance, whatever the conditions are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from edgepool.model.ids import PeerId


@dataclass(frozen=True, slots=True)
class NetworkConditions:
    """How links behave: delay in ms, uniformly between two bounds; the rest in frames per mille.

    A frame that is held comes late by up to `held_max_ms`, and later ones pass it.
    """

    delay_min_ms: int = 1
    delay_max_ms: int = 10
    loss_per_mille: int = 0
    duplicate_per_mille: int = 0
    held_per_mille: int = 0
    held_max_ms: int = 0


class SimNetwork:
    """Says when, how often, and whether, a frame from one peer reaches another."""

    def __init__(self, seed: int, conditions: NetworkConditions) -> None:
        self.conditions = conditions
        self._seed = seed
        self._streams: dict[tuple[PeerId, PeerId], Random] = {}
        self._last_ms: dict[tuple[PeerId, PeerId], int] = {}
        self._side: dict[PeerId, int] = {}
        self._cuts: dict[tuple[PeerId, PeerId], None] = {}

    def partition(self, *sides: list[PeerId]) -> None:
        """Let frames pass only between peers on the same side; peers on no side reach nobody."""
        self._side = {peer: number for number, side in enumerate(sides) for peer in side}

    def cut(self, pairs: Iterable[tuple[PeerId, PeerId]]) -> None:
        """Let no frame pass from the first to the second peer of each pair, instead of earlier cuts."""
        self._cuts = dict.fromkeys(pairs)

    def heal(self) -> None:
        """End partitions and cuts."""
        self._side, self._cuts = {}, {}

    def reaches(self, sender: PeerId, receiver: PeerId) -> bool:
        """Say whether frames can pass at all."""
        if self._cuts and (sender, receiver) in self._cuts:
            return False
        if not self._side:
            return True
        side = self._side.get(sender)
        return side is not None and side == self._side.get(receiver)

    def arrivals_ms(self, sender: PeerId, receiver: PeerId, now_ms: int) -> tuple[int, ...]:
        """Return when a frame sent now arrives: once, twice if it is doubled, never if it is lost.

        Frames that are not held keep their order.
        """
        pair = (sender, receiver)
        stream = self._streams.get(pair)
        if stream is None:
            stream = self._streams[pair] = Random(f"{self._seed}/{sender}/{receiver}")
        chance = stream.random
        lost, late, doubled, held = chance(), chance(), chance(), chance()
        conditions = self.conditions
        if lost * 1000 < conditions.loss_per_mille or not self.reaches(sender, receiver):
            return ()
        span_ms = conditions.delay_max_ms - conditions.delay_min_ms + 1
        arrival_ms = now_ms + conditions.delay_min_ms + int(late * span_ms)
        if held * 1000 < conditions.held_per_mille:
            arrival_ms += int(chance() * conditions.held_max_ms)
        else:
            arrival_ms = self._last_ms[pair] = max(arrival_ms, self._last_ms.get(pair, 0))
        if doubled * 1000 < conditions.duplicate_per_mille:
            return arrival_ms, arrival_ms + 1 + int(chance() * 2 * span_ms)
        return (arrival_ms,)

"""Who has led a chain and who leads next: the lottery replayed from a chain's blocks [S3.11].

The blocks are the chain's own, which its members checked; signatures are not checked again.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from edgepool.core.consensus.lottery import weights
from edgepool.core.ledger.credit import CYCLE_BLOCKS, cycle_of
from edgepool.core.ledger.state import ChainState
from edgepool.core.replay import missed_turns, next_leaders
from edgepool.model.block import Block
from edgepool.model.ids import PeerId
from edgepool.model.pool import Genesis


@dataclass(frozen=True, slots=True)
class Odds:
    """A member's part in the lottery of the next height, and its turns so far.

    `chance` is the exact probability to lead round 0, `halved` says whether a missed turn in the cycle
    that counts has halved the weight. `packed` blocks are its own; `expected` is the
    sum of its chances at all heights so far; `missed` counts rounds that it led without its block
    being the one that stood.
    """

    member: PeerId
    work_minutes: int
    weight: int
    halved: bool
    chance: Fraction
    packed: int
    expected: float
    missed: int


class LotteryReplay:
    """Takes a chain's blocks in order, and then says how the lottery stands.

    Begins at the genesis, or with the `state` of a snapshot: then turns count from there on.
    """

    def __init__(self, genesis: Genesis, state: ChainState | None = None) -> None:
        self._state = state if state is not None else ChainState(genesis)
        self.counted_from = self._state.height + 1
        """The first height whose turns are counted."""
        self._chances_of: tuple[int, tuple[PeerId, ...], dict[PeerId, float]] = (-1, (), {})
        self._packed: dict[PeerId, int] = {}
        self._expected: dict[PeerId, float] = {}
        self._missed: dict[PeerId, int] = {}

    @property
    def height(self) -> int:
        """The height of the last block taken."""
        return self._state.height

    @property
    def counted_heights(self) -> tuple[int, int]:
        """The first and last height whose work counts for the next one; (0, 0) if there are none yet."""
        cycle = cycle_of(self.height + 1) - 2
        return (cycle * CYCLE_BLOCKS + 1, (cycle + 1) * CYCLE_BLOCKS) if cycle >= 0 else (0, 0)

    def take(self, block: Block) -> str:
        """Count the next block and return ''; or return why it cannot be the next, and count nothing."""
        state, header = self._state, block.header
        problem = state.header_problem(header) or block.body_problem()
        if problem:
            return problem
        draft = state.draft()
        for index, signed in enumerate(block.records):
            problem = draft.add(signed)
            if problem:
                return f"record {index}: {problem}"
        if header.round:
            turns, rest = divmod(header.round, len(state.members))
            for place, member in enumerate(self.leaders()):
                self._missed[member] = self._missed.get(member, 0) + turns + (place < rest)
        for member, chance in self._chances().items():
            self._expected[member] = self._expected.get(member, 0.0) + chance
        self._packed[header.proposer] = self._packed.get(header.proposer, 0) + 1
        state.apply(block, missed_turns(state, header))
        return ""

    def odds(self) -> tuple[Odds, ...]:
        """Return how each member stands for the next height, in the order of the roster."""
        state = self._state
        work, missed = state.work(), state.missed()
        weight = weights(work, state.members, missed)
        total = sum(weight.values())
        return tuple(
            Odds(
                member,
                work.get(member, 0),
                weight[member],
                member in missed,
                Fraction(weight[member], total),
                self._packed.get(member, 0),
                self._expected.get(member, 0.0),
                self._missed.get(member, 0),
            )
            for member in state.members
        )

    def leaders(self) -> tuple[PeerId, ...]:
        """Return who leads the rounds of the next height: round r is led by [r % n]."""
        return next_leaders(self._state)

    def _chances(self) -> dict[PeerId, float]:
        """Return each member's chance at the next height; weights change with the cycle and the roster."""
        cycle, members = cycle_of(self.height + 1), self._state.members
        if self._chances_of[:2] != (cycle, members):
            weight = weights(self._state.work(), self._state.members, self._state.missed())
            total = sum(weight.values())
            self._chances_of = (cycle, members, {member: of / total for member, of in weight.items()})
        return self._chances_of[2]

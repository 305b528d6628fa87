"""What the hostile choose from: everything odd that is at hand; all choices come from one generator."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

import msgspec
from fuzz_cell import Cell
from fuzz_world import COORDINATOR, GENESES, HONEST, KEYS_OF, LIAR, STRANGER

from edgepool.core.chain import Chain
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import ConfirmRequest, LoadQuery, Proposal, Query, decode_message
from edgepool.model.vote import NIL

T = TypeVar("T")
HEIGHTS_OFF = (-1, -1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 31, 32, 33)
ROUNDS_OFF = (0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 16, 17, 18)
NUMBERS = (0, 1, 2, 29, 2**31 - 1, 2**31)
LAST_HEIGHT = 2**53
LAST_ROUND = 2**31


class Choices:
    """Picks odd values about what stands in `cell`; choices come from `rng`."""

    def __init__(self, rng: Random, cell: Cell) -> None:
        self._rng = rng
        self._cell = cell

    def _one(self, choices: Sequence[T]) -> T:
        return choices[int(self._rng.random() * len(choices))]

    def _often(self) -> bool:
        return self._rng.random() < 0.6

    def _seldom(self) -> bool:
        return self._rng.random() < 0.15

    def _changed(self, value: T, **others: object) -> T:
        """Return `value` with one of `others` in it."""
        name = self._one(tuple(others))
        return msgspec.structs.replace(value, **{name: others[name]})  # type: ignore[type-var]

    def _heard(self, kind: type[T]) -> T | None:
        """Return a message of `kind` that an honest node has sent of late, if one is met soon."""
        heard = self._cell.heard
        for _ in range(min(8, len(heard))):
            message = decode_message(heard[int(self._rng.random() * len(heard))])
            if isinstance(message, kind):
                return message
        return None

    def _chain(self) -> Chain:
        node = self._cell.nodes[self._one(HONEST)]
        return node.chains[self._one(GENESES).chain]

    def _chain_text(self) -> ChainId:
        if not self._often():
            return self._one(GENESES).chain
        return ChainId(sha256(self._rng.randbytes(4)).hex()[:40])

    def _height(self, chain: Chain) -> int:
        if self._rng.random() < 0.05:
            return LAST_HEIGHT
        return max(1, chain.state.height + 1 + self._one(HEIGHTS_OFF))

    def _round(self, chain: Chain) -> int:
        if self._rng.random() < 0.05:
            return LAST_ROUND
        return self._one((chain.engine.round, chain.engine.round, 0)) + self._one(ROUNDS_OFF)

    def _block_id(self, chain: Chain) -> bytes:
        heard = self._heard(Proposal)
        if heard is not None and self._often():
            return heard.block.header.id
        return self._one((NIL, NIL, self._bytes(32), b"x", chain.state.last_block_id))

    def _number(self) -> int:
        """Return a query's number: one that was heard, or any."""
        if self._often():
            asked = self._heard(Query) or self._heard(LoadQuery) or self._heard(ConfirmRequest)
            if asked is not None:
                return asked.query
        return self._one((0, 1, 2**53, int(self._rng.random() * 2**53)))

    def _peer(self) -> PeerId:
        return self._one((*HONEST, LIAR.peer, COORDINATOR.peer, STRANGER.peer, PeerId("1" * 46)))

    def _signer(self) -> Signer:
        return self._one((LIAR, COORDINATOR, STRANGER))

    def _voter(self, chain: Chain) -> Signer:
        """Return the key of a hostile member of a chain, the liar's if there is none."""
        return next((KEYS_OF[peer] for peer in chain.state.members if peer in KEYS_OF), LIAR)

    def _bytes(self, count: int) -> bytes:
        return self._one((bytes(count), self._rng.randbytes(count)))

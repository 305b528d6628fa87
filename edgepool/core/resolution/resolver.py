"""Resolution: from a demand to a ranked list of holders, and to a confirmed transfer.

The four contracts of Liu et al. [S3.13] in their order: node query (`query.py`, Algorithm 2),
network status query and state scheduling (`ranking.py`), transmission confirmation
(`confirmation.py`). This file only deals out ids and routes; a transfer itself is not made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edgepool.core.deadlines import earliest
from edgepool.core.machine import ConfirmTransfer, Effect, FindData, Instant
from edgepool.core.resolution.confirmation import Confirmations, Countersigned, Output
from edgepool.core.resolution.directory import Directory
from edgepool.core.resolution.query import Found, Searches
from edgepool.core.resolution.ranking import StatusQueries
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId
from edgepool.model.message import (
    ConfirmAnswer,
    ConfirmRequest,
    LoadQuery,
    LoadReport,
    OfferProof,
    Query,
    QueryAnswer,
)

__all__ = ["Countersigned", "Directory", "ResolutionMessage", "Resolver"]

ResolutionMessage = Query | QueryAnswer | LoadQuery | LoadReport | ConfirmRequest | ConfirmAnswer
"""The messages that a Resolver takes."""


class Resolver:
    """One peer's part in finding data and confirming transfers.

    `check_proof` and `check_policy` say what is wrong with the proof of an offer, or of a policy, or
    return ''. At most `limit` of each
    kind of request of this peer are under way at a time; the oldest fails for a newer one.
    """

    def __init__(
        self,
        *,
        signer: Signer,
        network: str,
        directory: Directory,
        check_proof: Callable[[OfferProof], str],
        check_policy: Callable[[OfferProof], str],
        limit: int,
    ) -> None:
        self._signer = signer
        self._count = 0
        self._searches = Searches(own=signer.peer, directory=directory, check_proof=check_proof, limit=limit)
        self._status = StatusQueries(own=signer.peer, directory=directory, limit=limit)
        self._confirmations = Confirmations(
            signer=signer, network=network, directory=directory, check_policy=check_policy, limit=limit
        )

    @property
    def deadline(self) -> int | None:
        """The monotonic time in ms at which to call `wake`, if any."""
        return earliest(self._searches.deadline, self._status.deadline, self._confirmations.deadline)

    def find(self, ticket: int, command: FindData, now: Instant) -> list[Output]:
        """Find holders; the end is Done(ticket, tuple[RankedOffer, ...]) within the budget."""
        number = self._next_number(now)
        outputs = self._searches.begin(number, ticket, command, now)
        return self._rank_found(outputs, now)

    def confirm(self, ticket: int, command: ConfirmTransfer, now: Instant) -> list[Output]:
        """Have a transfer confirmed; the end is Done(ticket, SignedRecord) or Failed."""
        return self._confirmations.begin(self._next_number(now), ticket, command, now)

    def receive(self, peer: PeerId, message: ResolutionMessage, now: Instant) -> list[Output]:
        """Take a message of `peer`."""
        match message:
            case Query():
                return self._rank_found(self._searches.receive_query(peer, message, now), now)
            case QueryAnswer():
                return self._rank_found(self._searches.receive_answer(peer, message, now), now)
            case LoadQuery():
                return [*self._status.receive_query(peer, message, now)]
            case LoadReport():
                return [*self._status.receive_report(peer, message, now)]
            case ConfirmRequest():
                return self._confirmations.receive_request(peer, message, now)
            case ConfirmAnswer():
                return self._confirmations.receive_answer(peer, message)

    def peer_up(self, peer: PeerId, now: Instant) -> list[Output]:
        """A link to `peer` stands."""
        return [*self._status.peer_up(peer, now), *self._confirmations.peer_up(peer)]

    def peer_down(self, peer: PeerId, now: Instant) -> list[Output]:
        """The link to `peer` is gone."""
        outputs: list[Output] = [*self._status.peer_down(peer), *self._confirmations.peer_down(peer)]
        return outputs + self._rank_found(self._searches.peer_down(peer), now)

    def wake(self, now: Instant) -> list[Output]:
        """The deadline has passed."""
        outputs: list[Output] = [*self._status.wake(now), *self._confirmations.wake(now)]
        return outputs + self._rank_found(self._searches.wake(now), now)

    def _rank_found(self, outputs: Iterable[Effect | Found], now: Instant) -> list[Output]:
        """Go on from node query to network status query where a search has ended."""
        effects: list[Output] = []
        for output in outputs:
            if isinstance(output, Found):
                effects += self._status.begin(
                    output.query, output.ticket, output.offers, output.give_up_ms, now, output.purpose
                )
            else:
                effects.append(output)
        return effects

    def _next_number(self, now: Instant) -> int:
        """Return an id of 53 bits that others cannot guess; a restarted peer makes other ones."""
        self._count += 1
        raw = self._signer.derive("query", encode([now.wall_ms, now.monotonic_ms, self._count]))
        return int.from_bytes(raw[:8], "big") >> 11

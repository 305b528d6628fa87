"""What a peer's owner wants of its pools: members that come and go, and whom to trust [S3.6].

It stands between the node and the chains: it asks newcomers before it proposes them, and tells all chains of
a peer what its main chains have decided about trust.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgepool.core.chain import Chain
from edgepool.core.ledger.trust import UnitedTrust
from edgepool.core.machine import (
    ApproveChange,
    ChangeMembers,
    ChangeTrust,
    Effect,
    Failed,
    Instant,
    Notify,
    Succeed,
    TrustDecided,
)
from edgepool.core.membership import exclusion
from edgepool.core.pools.joining import Agreed, Joining, Output
from edgepool.core.trusting import MainTrust
from edgepool.model.ids import ChainId, PeerId

Command = ChangeMembers | ApproveChange | Succeed | ChangeTrust


class Governing:
    """The owner of the peer `me`, in the pools of `chains`."""

    def __init__(self, me: PeerId, chains: Mapping[ChainId, Chain], joining: Joining) -> None:
        self._me = me
        self._chains = chains
        self._joining = joining
        self._trust = MainTrust()

    # --- what the owner asks for ------------------------------------------------------------

    def submit(self, ticket: int, command: Command, now: Instant) -> Sequence[Output]:
        """Take a command of the owner."""
        chain = self._chains.get(command.chain)
        if chain is None:
            return failed(ticket, f"this peer is not on chain {command.chain}")
        match command:
            case ChangeMembers():
                return self._change_members(ticket, chain, command, now)
            case ApproveChange(_, proposer):
                return self._approve(ticket, chain, proposer, now)
            case Succeed(_, change):
                return chain.approve(ticket, change, now)
            case ChangeTrust(_, change):
                return chain.trust(ticket, change, now)

    def _change_members(
        self, ticket: int, chain: Chain, command: ChangeMembers, now: Instant
    ) -> Sequence[Output]:
        if not chain.member and chain.state.coordinator != self._me:
            return failed(ticket, "only members and the coordinator change who is in a pool")
        number = chain.state.change_number
        if command.incoming is not None:
            return self._joining.ask(ticket, chain.genesis, number, command, now, chain.state.adoption)
        return chain.change(ticket, exclusion(number, command.outgoing, command.reason), now)

    def _approve(self, ticket: int, chain: Chain, proposer: PeerId, now: Instant) -> Sequence[Output]:
        proposed = [change for change, authors in chain.state.open_changes() if proposer in authors]
        if not proposed:
            number = chain.state.change_number
            return failed(ticket, f"{proposer} has proposed nothing on this chain under number {number}")
        return chain.approve(ticket, proposed[-1], now)

    def agreed(self, agreed: Agreed, now: Instant) -> Sequence[Output]:
        """Propose a newcomer that has agreed; ask it again if another change was decided meanwhile."""
        chain, command = self._chains[agreed.command.chain], agreed.command
        number = chain.state.change_number
        if agreed.change.number != number:
            return self._joining.ask(agreed.ticket, chain.genesis, number, command, now, chain.state.adoption)
        return chain.change(agreed.ticket, agreed.change, now)

    def renew_wishes(self, chain: Chain, now: Instant) -> Sequence[Output]:
        """Ask newcomers again whose number on `chain` is outdated."""
        outputs: list[Output] = []
        number, adoption = chain.state.change_number, chain.state.adoption
        for command in chain.outdated_wishes():
            outputs += self._joining.ask(0, chain.genesis, number, command, now, adoption)
        return outputs

    # --- trust ------------------------------------------------------------------------------

    @property
    def trust(self) -> UnitedTrust:
        """What this peer's main chains say together of whom to trust."""
        return self._trust.united

    def know_trust(self) -> bool:
        """Take in what the main chains say of trust; say whether that is new."""
        return self._trust.take(chain.state for chain in self._chains.values())

    def follow_trust(self, now: Instant) -> list[Effect]:
        """Take in what the main chains say of trust; if that is new, the owner and all chains hear of it."""
        return [Notify(TrustDecided()), *self.spread_trust(now)] if self.know_trust() else []

    def spread_trust(self, now: Instant) -> list[Effect]:
        """Tell all chains what the main chains say of trust, and let them draw their conclusions."""
        chains = list(self._chains.values())
        return [effect for chain in chains for effect in chain.trust_elsewhere(self.trust, now)]


def failed(ticket: int, reason: str) -> list[Effect]:
    """Return that a command was refused; nothing if nobody waits for its outcome."""
    return [Notify(Failed(ticket, reason, refused=True))] if ticket else []

"""The part of the judge that watches who is in a pool: who comes and goes, under which keys, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import MembershipChange
from edgepool.model.vote import Equivocation
from edgepool.sim.rosteroracle import KeyPassed

if TYPE_CHECKING:
    from edgepool.sim.checkers import Judge
    from edgepool.sim.oracle import ChainOracle


class PeopleJudge:
    """What `judge` says about members, about keys that change, and about what members anchor."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def decided(self, oracle: ChainOracle) -> None:
        """Look at what the last block of a chain says of its people."""
        for body in oracle.take_news():
            match body:
                case MembershipChange():
                    self._changed(oracle.chain, body)
                case KeyPassed(old, member):
                    self._changed_key(oracle.chain, old, member.peer)
                case Equivocation():
                    self._convicted(oracle.person(body.member))
        self._anchored(oracle)

    def _convicted(self, person: PeerId) -> None:
        self._judge.count("convicted")
        if person not in self._judge.liars:
            raise self._judge.violation("members", person, "is honest, and convicted")

    def _changed(self, chain: ChainId, change: MembershipChange) -> None:
        """A change of the members is decided."""
        if change.succession:
            self._changed_key(chain, change.outgoing, change.heir)
            return
        judge = self._judge
        coming = change.incoming.peer if change.incoming is not None else PeerId("")
        judge.count("replaced" if change.outgoing and coming else "admitted" if coming else "excluded")
        wanted = judge.wishes is None or (chain, change.outgoing, coming) in judge.wishes
        if not wanted and (coming or change.outgoing not in judge.liars):
            name = judge.names.get(coming, coming)
            text = f"is to leave, and '{name}' to come, as nobody honest has asked for"
            raise judge.violation("members", change.outgoing, text)

    def _changed_key(self, chain: ChainId, old: PeerId, new: PeerId) -> None:
        """Somebody goes on under another key."""
        judge = self._judge
        judge.count("keys changed")
        if judge.wishes is not None and (chain, old, new) not in judge.wishes:
            raise judge.violation("members", old, "is to have another key, as nobody honest has asked for")

    def _anchored(self, oracle: ChainOracle) -> None:
        judge = self._judge
        for author, anchor in oracle.anchors:
            judge.count("anchors")
            certificate, sub = anchor.certificate, judge.oracles.get(anchor.sub_chain)
            if author not in judge.liars and (
                sub is None
                or sub.blocks[certificate.height - 1 : certificate.height] != [certificate.block_id]
            ):
                text = f"anchored a block {certificate.height} there is not"
                raise judge.violation("anchors", author, text)
        oracle.anchors.clear()

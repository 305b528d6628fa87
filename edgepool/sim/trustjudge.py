"""The part of the judge that watches trust: who decides about it, and whom honest peers listen to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepool.core.ledger.trust import NEVER_MS, UnitedTrust
from edgepool.model.ids import PeerId
from edgepool.model.trust import AdmitRoot, RetireRoot, RevokePeer, TrustStep

if TYPE_CHECKING:
    from edgepool.sim.checkers import Judge
    from edgepool.sim.oracle import ChainOracle

_COUNTED = {RevokePeer: "revoked", AdmitRoot: "roots admitted", RetireRoot: "roots retired"}


class TrustJudge:
    """What `judge` says about trust."""

    def __init__(self, judge: Judge) -> None:
        self.wanted: dict[TrustStep, None] = {}
        """What honest owners want; whatever else is decided is a violation."""
        self._judge = judge

    def decided(self, oracle: ChainOracle) -> None:
        """Look at what the last block of a chain has decided."""
        steps, oracle.trust.news = oracle.trust.news, []
        for step in steps:
            self._judge.count(_COUNTED[type(step)])
            if step not in self.wanted:
                who = PeerId(step.peer) if isinstance(step, RevokePeer) else PeerId("a root")
                raise self._judge.violation("trust", who, "is decided about, as nobody honest has asked for")

    def is_revoked(self, peer: PeerId) -> bool:
        """Say whether the revocation of `peer` is decided on some chain."""
        return any(peer in oracle.revoked for oracle in self._judge.oracles.values())

    def at_rest(self, peer: PeerId, trust: UnitedTrust) -> None:
        """`peer` has caught up with its main chain: it trusts whom that says."""
        if peer in self._judge.liars:
            return
        revoked: dict[str, None] = {}
        retired: dict[bytes, int] = {}
        admitted: dict[bytes, None] = {}
        for oracle in self._judge.oracles.values():
            revoked.update(dict.fromkeys(oracle.revoked))
            retired.update(oracle.trust.retired)
            admitted.update(dict.fromkeys(oracle.trust.roots))
        roots = trust.roots.values()
        known = {root.fingerprint: root.retired_ms for root in roots if root.retired_ms != NEVER_MS}
        read = {root.fingerprint for root in roots if root.der}
        if (set(trust.revoked), known, read) != (set(revoked), retired, set(admitted)):
            raise self._judge.violation("trust", peer, "trusts others than its main chain says")

    def took_frame(self, peer: PeerId, sender: PeerId) -> None:
        """`peer` takes a frame that came from `sender`."""
        judge = self._judge
        if peer in judge.liars:
            return
        for chain, oracle in judge.oracles.items():
            height = oracle.revoked.get(sender)
            if height is not None and height <= judge.durable(peer, chain):
                who = judge.names.get(sender, sender)
                text = f"takes a frame of {who}, whom its block {height} has revoked"
                raise judge.violation("trust", peer, text)

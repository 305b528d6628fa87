"""However members ask, come and go, a conduit keeps its bounds and forgets nothing that it should know."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgepool.config import ConduitSettings
from edgepool.core.circuits import REFUSALS, Circuit, CircuitTable
from edgepool.model.ids import PeerId

PEERS = [PeerId(name) for name in "abcdef"]
BOUNDS = ConduitSettings(serve=True, reservations=4, circuits=8, circuits_per_peer=3)
VALID_MS = 100


class Conduit(RuleBasedStateMachine):
    """A table, beside a list of what should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = CircuitTable(BOUNDS)
        self.now_ms = 0
        self.number = 0
        self.good: dict[bytes, tuple[Circuit, PeerId]] = {}
        self.spent: list[bytes] = []

    @rule(peer=st.sampled_from(PEERS))
    def reserve(self, peer: PeerId) -> None:
        refusal = self.table.reserve(peer)
        assert bool(refusal) == (peer not in self.table.reserved)

    @rule(peer=st.sampled_from(PEERS))
    def release(self, peer: PeerId) -> None:
        self.table.release(peer)

    @rule(pair=st.tuples(st.sampled_from(PEERS), st.sampled_from(PEERS)))
    def ask(self, pair: tuple[PeerId, PeerId]) -> None:
        asker, target = pair
        self.number += 1
        mine, theirs = (bytes([side]) + self.number.to_bytes(31, "big") for side in (0, 1))
        circuit = self.table.ask(asker, target, (mine, theirs), self.now_ms, VALID_MS)
        if isinstance(circuit, str):
            assert circuit in REFUSALS
            return
        assert target in self.table.reserved
        assert asker != target
        self.good |= {mine: (circuit, asker), theirs: (circuit, target)}

    @rule(data=st.data())
    def redeem(self, data: st.DataObject) -> None:
        known = [*self.good, *self.spent, bytes(32)]
        token = data.draw(st.sampled_from(known))
        found = self.table.redeem(token, self.now_ms)
        expected = self.good.pop(token, None)
        if expected is not None and expected[0].deadline_ms < self.now_ms:
            expected = None
        assert found == expected
        self.spent.append(token)

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        if self.table.circuits:
            circuit = data.draw(st.sampled_from(list(self.table.circuits)))
            self.table.close(circuit)
            gone = [token for token, (its, _) in self.good.items() if its is circuit]
            self.spent += gone
            self.good = {token: its for token, its in self.good.items() if token not in gone}

    @rule(passed_ms=st.integers(1, 200))
    def wait(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        for circuit in self.table.overdue(self.now_ms):
            assert not circuit.open
            assert circuit.deadline_ms < self.now_ms

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.table.reserved) <= BOUNDS.reservations
        assert len(self.table.circuits) < BOUNDS.circuits
        for peer in PEERS:
            held = [one for one in self.table.circuits if one.asker == peer]
            assert len(held) <= BOUNDS.circuits_per_peer


TestConduit = Conduit.TestCase
TestConduit.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

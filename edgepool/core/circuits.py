"""What a conduit decides: who may have a circuit to whom, which token is good, and whose turn it is to pass.

A conduit passes bytes between peers that accept nothing from outside [S3.6]. Everything here is bounded by
its settings, and no member can take it from the others: how many circuits one may hold shrinks with the
places that are left, and where bytes are rationed every member that waits gets as much as the next.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgepool.config import ConduitSettings
from edgepool.model.ids import PeerId

ASKS_PER_S = 20
ASKS_AT_ONCE = 100
"""How many circuits one member may ask for in one go, and then each second."""
PAIRS_KEPT = 1024
QUANTUM_BYTES = 64 * 1024
"""So much one member passes before it is the next one's turn."""

ITSELF = "a circuit leads to somebody else"
NOT_HERE = "that peer keeps no link to this conduit"
FULL = "all places of this conduit are taken"
SHARE = "this peer has its share of the circuits of this conduit"
TOO_OFTEN = "this peer asks for circuits too often"
REFUSALS = (ITSELF, NOT_HERE, FULL, SHARE, TOO_OFTEN)

Pair = tuple[PeerId, PeerId]
K = TypeVar("K", bound=Hashable)


@dataclass(slots=True, eq=False)
class Circuit:
    """A way between two peers. `tokens` are those that nobody has come with yet; `bytes` went both ways."""

    asker: PeerId
    target: PeerId
    tokens: dict[bytes, PeerId]
    deadline_ms: int
    bytes: int = 0

    @property
    def open(self) -> bool:
        """Whether both sides have come."""
        return not self.tokens

    @property
    def pair(self) -> Pair:
        """Both peers, the smaller id first: what passes between them is counted together."""
        return min(self.asker, self.target), max(self.asker, self.target)


@dataclass(slots=True)
class Passed:
    """What has gone between two peers through this conduit: `circuits` so far, `bytes` both ways."""

    circuits: int = 0
    bytes: int = 0


class CircuitTable:
    """The reservations and circuits of one conduit. Times are monotonic, in ms."""

    def __init__(self, settings: ConduitSettings) -> None:
        self.reserved: dict[PeerId, None] = {}
        self.circuits: dict[Circuit, None] = {}
        self.passed: OrderedDict[Pair, Passed] = OrderedDict()
        self._settings = settings
        self._by_token: dict[bytes, Circuit] = {}
        self._held: dict[PeerId, int] = {}
        self._asked: dict[PeerId, tuple[float, int]] = {}
        self._bytes = 0

    def reserve(self, peer: PeerId) -> str:
        """Keep a place for a peer that can be asked for from now on; return why not, or ''."""
        if peer not in self.reserved and len(self.reserved) >= self._settings.reservations:
            return FULL
        self.reserved[peer] = None
        return ""

    def release(self, peer: PeerId) -> None:
        """The peer can be asked for no more; circuits that stand are not touched."""
        self.reserved.pop(peer, None)

    def ask(
        self, asker: PeerId, target: PeerId, tokens: tuple[bytes, bytes], now_ms: int, valid_ms: int
    ) -> Circuit | str:
        """Set up a circuit; return it, or why there is none.

        The first of the two random `tokens` is the asker's, the second the target's. Both have `valid_ms` to
        come with them.
        """
        refusal = self._refusal(asker, target, now_ms)
        if refusal:
            return refusal
        circuit = Circuit(asker, target, dict(zip(tokens, (asker, target), strict=True)), now_ms + valid_ms)
        self.circuits[circuit] = None
        self._by_token.update(dict.fromkeys(tokens, circuit))
        self._held[asker] = self._held.get(asker, 0) + 1
        return circuit

    @property
    def bytes_passed(self) -> int:
        """All bytes that have passed so far."""
        return self._bytes

    def redeem(self, token: bytes, now_ms: int) -> tuple[Circuit, PeerId] | None:
        """Return the circuit that a token is for and whose it is; None if it is not good (any more)."""
        circuit = self._by_token.pop(token, None)
        if circuit is None or circuit.deadline_ms < now_ms:
            return None
        peer = circuit.tokens.pop(token)
        if circuit.open:
            self._pair(circuit).circuits += 1
        return circuit, peer

    def count(self, circuit: Circuit, size_bytes: int) -> None:
        """Bytes have passed through a circuit."""
        circuit.bytes += size_bytes
        self._bytes += size_bytes
        self._pair(circuit).bytes += size_bytes

    def close(self, circuit: Circuit) -> None:
        """A circuit is over, or did not come about."""
        if circuit not in self.circuits:
            return
        del self.circuits[circuit]
        for token in circuit.tokens:
            self._by_token.pop(token, None)
        self._held[circuit.asker] -= 1
        if not self._held[circuit.asker]:
            del self._held[circuit.asker]

    def overdue(self, now_ms: int) -> list[Circuit]:
        """Return the circuits to which somebody has not come in time."""
        return [one for one in self.circuits if not one.open and one.deadline_ms < now_ms]

    def of(self, peer: PeerId) -> list[Circuit]:
        """Return the circuits from or to a peer."""
        return [one for one in self.circuits if peer in (one.asker, one.target)]

    def _refusal(self, asker: PeerId, target: PeerId, now_ms: int) -> str:
        if not self._may_ask(asker, now_ms):
            return TOO_OFTEN
        if asker == target:
            return ITSELF
        if target not in self.reserved:
            return NOT_HERE
        free = self._settings.circuits - len(self.circuits)
        if free <= 0:
            return FULL
        # As many as are free, never more: however many members want all, one more place is always left.
        held = self._held.get(asker, 0)
        return SHARE if held >= min(free, self._settings.circuits_per_peer) else ""

    def _may_ask(self, asker: PeerId, now_ms: int) -> bool:
        left, at_ms = self._asked.pop(asker, (float(ASKS_AT_ONCE), now_ms))
        left = min(float(ASKS_AT_ONCE), left + (now_ms - at_ms) * ASKS_PER_S / 1000)
        good = left >= 1
        self._asked[asker] = (left - good, now_ms)  # who asked last stands last
        while len(self._asked) > PAIRS_KEPT:
            del self._asked[next(iter(self._asked))]
        return good

    def _pair(self, circuit: Circuit) -> Passed:
        passed = self.passed.pop(circuit.pair, None) or Passed()
        self.passed[circuit.pair] = passed
        while len(self.passed) > PAIRS_KEPT:
            self.passed.popitem(last=False)
        return passed


class FairShare(Generic[K]):
    """Rations bytes: who wants some queues by member, and members take turns of QUANTUM_BYTES each.

    Rates are in bytes per second, 0 for no bound. Nothing is lost while somebody waits: what one member does
    not use goes to the others, unless its own bound says no.
    """

    def __init__(self, total_bytes_s: int, peer_bytes_s: int) -> None:
        self._total = _Bucket(total_bytes_s) if total_bytes_s else None
        self._peer_bytes_s = peer_bytes_s
        self._buckets: OrderedDict[PeerId, _Bucket] = OrderedDict()
        self._queues: OrderedDict[PeerId, deque[K]] = OrderedDict()

    @property
    def unbounded(self) -> bool:
        """Whether there is nothing to ration."""
        return self._total is None and not self._peer_bytes_s

    def want(self, peer: PeerId, key: K) -> None:
        """Queue `key` of a member for one quantum."""
        self._queues.setdefault(peer, deque()).append(key)

    def forget(self, peer: PeerId, key: K) -> None:
        """`key` wants no more."""
        queue = self._queues.get(peer)
        if queue is not None and key in queue:
            queue.remove(key)
            if not queue:
                del self._queues[peer]

    def serve(self, now_ms: float) -> list[K]:
        """Return whose turn it is: each may pass QUANTUM_BYTES."""
        served: list[K] = []
        passed_over = 0
        while self._queues and passed_over < len(self._queues):
            if self._total is not None and not self._total.has(now_ms):
                break
            peer, queue = self._queues.popitem(last=False)
            bucket = self._bucket(peer, now_ms)
            if bucket is not None and not bucket.has(now_ms):
                self._queues[peer] = queue
                passed_over += 1
                continue
            passed_over = 0
            served.append(queue.popleft())
            for one in (self._total, bucket):
                if one is not None:
                    one.take(QUANTUM_BYTES)
            if queue:
                self._queues[peer] = queue
        return served

    def give_back(self, peer: PeerId, size_bytes: int) -> None:
        """A member has not used all of its quantum."""
        for one in (self._total, self._buckets.get(peer)):
            if one is not None:
                one.take(-size_bytes)

    def wait_ms(self, now_ms: float) -> float | None:
        """Return after how long somebody can be served again; None if nobody waits."""
        if not self._queues:
            return None
        total_ms = self._total.wait_ms(now_ms) if self._total is not None else 0.0
        buckets = [self._bucket(peer, now_ms) for peer in self._queues]
        return max(total_ms, min(0.0 if one is None else one.wait_ms(now_ms) for one in buckets))

    def _bucket(self, peer: PeerId, now_ms: float) -> _Bucket | None:
        if not self._peer_bytes_s:
            return None
        bucket = self._buckets.pop(peer, None) or _Bucket(self._peer_bytes_s, now_ms)
        self._buckets[peer] = bucket
        if len(self._buckets) > PAIRS_KEPT:
            self._buckets.popitem(last=False)
        return bucket


@dataclass(slots=True)
class _Bucket:
    """A token bucket that may go one quantum into debt; what is not used for 0.1 s is lost.

    Who waits for it waits 5 ms longer than need be, so that several quanta go at once.
    """

    bytes_s: int
    at_ms: float = 0.0
    level: float = QUANTUM_BYTES

    def has(self, now_ms: float) -> bool:
        most = max(QUANTUM_BYTES, self.bytes_s / 10)
        self.level = min(most, self.level + (now_ms - self.at_ms) * self.bytes_s / 1000)
        self.at_ms = now_ms
        return self.level > 0

    def take(self, size_bytes: int) -> None:
        self.level -= size_bytes

    def wait_ms(self, now_ms: float) -> float:
        return 0.0 if self.has(now_ms) else 5 + 1000 * -self.level / self.bytes_s

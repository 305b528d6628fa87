"""A conduit: joins peers that accept nothing from outside, and never sees what they say [S3.6].

Members come over mutual TLS, as everywhere, and say what they want (conduitwire.py); core/circuits.py
decides. The two ends of a circuit then come over plain TCP with a token each and are spliced. Between them
runs the same TLS as between any two peers, so what passes here is ciphertext for which the conduit has no
key, and whoever is at the other end has proved it to the other, not to the conduit.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from dataclasses import dataclass
from typing import cast

from edgepool.config import PeerSettings
from edgepool.core.circuits import NOT_HERE, Circuit, CircuitTable, FairShare
from edgepool.errors import DecodeError
from edgepool.model.codec import Wire, encode
from edgepool.model.ids import PeerId
from edgepool.runtime.ports import PeerIdentity
from edgepool.transport import refusals
from edgepool.transport.conduitkeys import ConduitKeys
from edgepool.transport.conduitwire import (
    LATE_PERIODS,
    MAX_FRAME_BYTES,
    Ask,
    AskFormer,
    Beat,
    BeatAnswer,
    Declined,
    FormerKeys,
    Granted,
    Offered,
    Reserve,
    Reserved,
    from_peer,
)
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.greeting import TOKEN_BYTES
from edgepool.transport.identity import Identity
from edgepool.transport.refusals import Counters, count
from edgepool.transport.splice import Gate, Pipes, Pump, Splice

CALLS_OF_ONE = 4
"""One member may have so many connections to a conduit (without circuits): each program of it one."""
SPARE_CALLS = 64
"""So many more than there are reservations may come to ask only."""

_OUTBOX_BYTES = 64 * 1024
_SWEEP_S = 1.0


@dataclass(slots=True)
class _Ends:
    """The sockets of a circuit: one that waits for the other, or both, joined."""

    waiting: tuple[PeerId, socket.socket] | None = None
    splice: Splice | None = None


class Conduit:
    """The conduit of one peer, whose transport hands it connections; nothing happens before `start`."""

    def __init__(
        self, settings: PeerSettings, identity: Identity, counters: Counters, keys: ConduitKeys
    ) -> None:
        self.keys = keys
        self.table = CircuitTable(settings.conduit)
        self.limits = settings.limits
        self.counters = counters
        self.names: dict[PeerId, str] = {}
        self._settings = settings.conduit
        self._trust = identity.trust
        self._calls: dict[_Call, None] = {}
        self._reserved: dict[PeerId, _Call] = {}
        self._ends: dict[Circuit, _Ends] = {}
        self._pipes = Pipes()
        self._gate: Gate | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look after circuits that nobody comes to, or that have fallen silent."""
        share: FairShare[Pump] = FairShare(
            self._settings.total_mbit_s * 125_000, self._settings.peer_mbit_s * 125_000
        )
        self._gate = None if share.unbounded else Gate(share)
        self._sweep()

    def close(self) -> None:
        """End everything."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for circuit in list(self._ends):
            self._end(circuit, "the conduit is closing")
        for call in list(self._calls):
            call.end()
        if self._gate is not None:
            self._gate.close()
        self._pipes.close()

    # --- for the transport --------------------------------------------------------------------

    def connection(self, identity: PeerIdentity) -> asyncio.BufferedProtocol | None:
        """Return what serves a member that wants something of this conduit; None (counted) if it is full."""
        own = sum(call.identity.peer == identity.peer for call in self._calls)
        if own >= CALLS_OF_ONE or len(self._calls) >= self._settings.reservations + SPARE_CALLS:
            count(self.counters, refusals.BUSY)
            return None
        return _Call(identity, self)

    def take(self, connection: socket.socket, token: bytes) -> bool:
        """Take one end of a circuit; False if its token is not good."""
        found = self.table.redeem(token, self._now_ms())
        if found is None:
            return False
        circuit, peer = found
        ends = self._ends[circuit]
        if ends.waiting is None:
            ends.waiting = (peer, connection)
            return True
        _, other = ends.waiting
        ends.waiting = None
        ends.splice = Splice(
            other,
            connection,
            self._pipes,
            lambda size_bytes: self.table.count(circuit, size_bytes),
            lambda _: self._end(circuit, ""),
            self._gate,
            circuit.asker,
        )
        ends.splice.start()
        return True

    # --- what calls tell ----------------------------------------------------------------------

    def call_began(self, call: _Call) -> None:
        """A member is there."""
        self._calls[call] = None
        self.names[call.identity.peer] = call.identity.name

    def call_ended(self, call: _Call) -> None:
        """A member is gone; circuits that it has stay."""
        self._calls.pop(call, None)
        peer = call.identity.peer
        if self._reserved.get(peer) is call:
            del self._reserved[peer]
            self.table.release(peer)

    def reserve(self, call: _Call) -> str:
        """Keep a place for a member, on this connection from now on."""
        refusal = self.table.reserve(call.identity.peer)
        if not refusal:
            self._reserved[call.identity.peer] = call
        else:
            count(self.counters, refusals.BUSY)
        return refusal

    def grant(self, asker: PeerIdentity, target: PeerId) -> bytes:
        """Set up a circuit and tell its target; return the asker's token. OSError says why there is none.

        It stands as long as both are trusted.
        """
        tokens = (secrets.token_bytes(TOKEN_BYTES), secrets.token_bytes(TOKEN_BYTES))
        timeout_ms = self.limits.handshake_timeout_ms
        circuit = self.table.ask(asker.peer, target, tokens, self._now_ms(), timeout_ms)
        if isinstance(circuit, str):
            count(self.counters, refusals.CIRCUIT)
            raise OSError(0, circuit)
        self._ends[circuit] = _Ends()
        call = self._reserved[target]
        if not call.say(Offered(asker.peer, tokens[1])):
            self._end(circuit, "the target does not listen")
            raise OSError(0, NOT_HERE)
        for identity in (asker, call.identity):
            self._trust.hold(identity, lambda why: self._end(circuit, why), lambda: circuit not in self._ends)
        return tokens[0]

    # --- circuits -----------------------------------------------------------------------------

    def _end(self, circuit: Circuit, reason: str) -> None:
        ends = self._ends.pop(circuit, None)
        if ends is None:
            return
        self.table.close(circuit)
        if ends.waiting is not None:
            ends.waiting[1].close()
        if ends.splice is not None:
            ends.splice.end(reason)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for circuit in self.table.overdue(self._now_ms()):
            count(self.counters, refusals.HALF_OPEN)
            self._end(circuit, "one side did not come in time")
        silent_s = loop.time() - self._settings.idle_timeout_ms / 1000
        for circuit, ends in list(self._ends.items()):
            if ends.splice is not None and ends.splice.moved_at_s < silent_s:
                count(self.counters, refusals.SILENT)
                self._end(circuit, "nothing has passed for too long")
        late_s = loop.time() - LATE_PERIODS * self.limits.keepalive_ms / 1000
        for call in [one for one in self._calls if one.heard_at_s < late_s]:
            count(self.counters, refusals.SILENT)
            call.end()
        known = {call.identity.peer for call in self._calls} | {
            one for pair in self.table.passed for one in pair
        }
        self.names = {peer: name for peer, name in self.names.items() if peer in known}
        self._sweeping = loop.call_later(_SWEEP_S, self._sweep)

    def _now_ms(self) -> int:
        return int(1000 * asyncio.get_running_loop().time())


class _Call(asyncio.BufferedProtocol):
    """A member's connection to the conduit: what it asks for, and what it is told."""

    def __init__(self, identity: PeerIdentity, conduit: Conduit) -> None:
        self.identity = identity
        self.heard_at_s = asyncio.get_running_loop().time()
        self._conduit = conduit
        self._transport: asyncio.Transport | None = None
        self._frames = FrameBuffer(MAX_FRAME_BYTES)
        self._has_said_keys = False

    def end(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def say(self, word: Wire) -> bool:
        """Send a word; False if the connection is gone or the other side takes nothing."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        body = encode(word)
        transport.write(header(len(body)) + body)
        return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over from the doorway."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        self._transport.set_write_buffer_limits(high=_OUTBOX_BYTES)
        self._conduit.call_began(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the member says; what is nothing of that ends the connection."""
        self._frames.received(nbytes)
        self.heard_at_s = asyncio.get_running_loop().time()
        try:
            while self._transport is not None and not self._transport.is_closing():
                frame = self._frames.next_frame()
                if frame is None:
                    return
                self._answer(frame)
        except DecodeError:
            count(self._conduit.counters, refusals.GARBAGE)
            self.end()

    def pause_writing(self) -> None:
        """The member takes nothing of what it is told: it is of no use here."""
        count(self._conduit.counters, refusals.OUTBOX)
        self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """The member is gone."""
        self._transport = None
        self._conduit.call_ended(self)

    def _answer(self, frame: bytes) -> None:
        match from_peer(frame):
            case Reserve():
                self.say(Reserved(self._conduit.reserve(self)))
            case Ask(number, target):
                try:
                    self.say(Granted(number, self._conduit.grant(self.identity, target)))
                except OSError as error:
                    self.say(Declined(number, error.strerror or "the conduit failed"))
            case AskFormer():
                if self._has_said_keys:
                    raise DecodeError("a question that was answered")
                self._has_said_keys = True
                self.say(FormerKeys(self._conduit.keys.line))
            case Beat(number):
                self.say(BeatAnswer(number))

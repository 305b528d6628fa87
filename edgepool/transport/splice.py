"""Joins two TCP connections into one way for bytes, without ever looking at them.

The kernel moves them from one socket to the other through a pipe (splice, Linux), so that no byte is copied
into this process. What is in the pipe is all that waits: if one side does not take it, nothing more is read
from the other. A pipe is only held while bytes are in it, so an idle way costs two sockets and nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
from collections.abc import Callable

from edgepool.core.circuits import QUANTUM_BYTES, FairShare
from edgepool.model.ids import PeerId

PIPE_BYTES = 1024 * 1024
"""So much may wait in each direction of a way."""

_ROUNDS = 2
"""After so many pipes full it is the turn of others on the event loop."""
_SPARE_PIPES = 16
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_SET_PIPE_SIZE = 1031  # fcntl.F_SETPIPE_SZ, which Python names only on the systems that have it


class Pipes:
    """Pipes that are empty, to be used again."""

    def __init__(self) -> None:
        self.spare: list[tuple[int, int]] = []

    def take(self) -> tuple[int, int]:
        """Return (read end, write end) of an empty pipe; OSError if there are no descriptors left."""
        if self.spare:
            return self.spare.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(pipe[1], _SET_PIPE_SIZE, PIPE_BYTES)
        except OSError:
            pass  # this user has many pipes already: it is smaller then, and as good
        return pipe

    def give_back(self, pipe: tuple[int, int], empty: bool) -> None:
        """Take a pipe back; one with bytes in it is closed."""
        if empty and len(self.spare) < _SPARE_PIPES:
            self.spare.append(pipe)
            return
        for end in pipe:
            os.close(end)

    def close(self) -> None:
        """Close all that are here."""
        for pipe in self.spare:
            self.give_back(pipe, False)
        self.spare.clear()


class Gate:
    """Lets those pass whose turn it is, by the rates of a FairShare."""

    def __init__(self, share: FairShare[Pump]) -> None:
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def want(self, peer: PeerId, pump: Pump) -> None:
        """Call `pump.granted` when it may pass QUANTUM_BYTES, never from within this call."""
        self._share.want(peer, pump)
        if self._timer is None:
            self._timer = self._loop.call_later(0, self._serve)

    def forget(self, peer: PeerId, pump: Pump) -> None:
        """The pump wants no more."""
        self._share.forget(peer, pump)

    def give_back(self, peer: PeerId, size_bytes: int) -> None:
        """Not all that was granted was used."""
        self._share.give_back(peer, size_bytes)

    def close(self) -> None:
        """Let nobody pass any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _serve(self) -> None:
        self._timer = None
        for pump in self._share.serve(1000 * self._loop.time()):
            pump.granted()
        wait_ms = self._share.wait_ms(1000 * self._loop.time())
        if wait_ms is not None and self._timer is None:
            self._timer = self._loop.call_later(wait_ms / 1000, self._serve)


class Splice:
    """Two connections, joined from `start` on until one breaks or both have ended; both are closed then.

    `moved(size_bytes)` is called as bytes arrive at the other side, `ended(reason)` once. What is passed is
    accounted to `payer` at the `gate`, if there is one.
    """

    def __init__(
        self,
        one: socket.socket,
        other: socket.socket,
        pipes: Pipes,
        moved: Callable[[int], None],
        ended: Callable[[str], None],
        gate: Gate | None = None,
        payer: PeerId | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.pipes = pipes
        self.gate = gate
        self.payer = payer or PeerId("")
        self.moved_at_s = self.loop.time()
        self._moved = moved
        self._ended = ended
        self._sockets = (one, other)
        self._pumps = (Pump(self, one, other), Pump(self, other, one))
        self._open = True

    def start(self) -> None:
        """Begin to pass bytes both ways."""
        for pump in self._pumps:
            pump.start()

    def count(self, size_bytes: int) -> None:
        """Bytes have gone to the other side."""
        self.moved_at_s = self.loop.time()
        self._moved(size_bytes)

    def finished(self) -> None:
        """One direction has ended in order."""
        if all(pump.done for pump in self._pumps):
            self.end("both sides have closed")

    def end(self, reason: str) -> None:
        """Close both connections at once; what is on its way is lost."""
        if not self._open:
            return
        self._open = False
        for pump in self._pumps:
            pump.stop()
        for one in self._sockets:
            one.close()
        self._ended(reason)


class Pump:
    """One direction of a splice: waits for bytes, then for its turn, then for room on the other side."""

    def __init__(self, splice: Splice, source: socket.socket, sink: socket.socket) -> None:
        self.done = False
        self._splice = splice
        self._source = source
        self._sink = sink
        self._pipe: tuple[int, int] | None = None
        self._waiting_bytes = 0
        self._reading = self._writing = self._queued = False

    def start(self) -> None:
        """Wait for bytes."""
        if not self._reading:
            self._reading = True
            self._splice.loop.add_reader(self._source, self._readable)

    def stop(self) -> None:
        """Wait for nothing more, and let the pipe go."""
        self.done = True
        self._pause_reading()
        if self._writing:
            self._writing = False
            self._splice.loop.remove_writer(self._sink)
        if self._queued and self._splice.gate is not None:
            self._splice.gate.forget(self._splice.payer, self)
        self._release()

    def granted(self) -> None:
        """It is this pump's turn for one quantum."""
        self._queued = False
        if self.done:
            return
        try:
            used = self._pass(QUANTUM_BYTES)
        except OSError as error:
            self._splice.end(_reason(error))
            return
        if self._splice.gate is not None and used < QUANTUM_BYTES:
            self._splice.gate.give_back(self._splice.payer, QUANTUM_BYTES - used)
        if not self.done and not self._writing:
            self.start()

    def _readable(self) -> None:
        gate = self._splice.gate
        if gate is not None:
            self._pause_reading()
            self._queued = True
            gate.want(self._splice.payer, self)
            return
        try:
            for _ in range(_ROUNDS):
                if not self._pass(PIPE_BYTES) or self._writing or self.done:
                    return
        except OSError as error:
            self._splice.end(_reason(error))

    def _pass(self, most_bytes: int) -> int:
        """Take what is there from the source, and hand on what the sink takes; return how much was taken."""
        if self._pipe is None:
            self._pipe = self._splice.pipes.take()
        try:
            taken = os.splice(self._source.fileno(), self._pipe[1], most_bytes, flags=_FLAGS)
        except BlockingIOError:
            self._release()
            return 0
        if not taken:
            self._finish()
            return 0
        self._waiting_bytes += taken
        self._hand_on()
        return taken

    def _hand_on(self) -> None:
        while self._waiting_bytes:
            assert self._pipe is not None
            try:
                gone = os.splice(self._pipe[0], self._sink.fileno(), self._waiting_bytes, flags=_FLAGS)
            except BlockingIOError:
                self._pause_reading()
                if not self._writing:
                    self._writing = True
                    self._splice.loop.add_writer(self._sink, self._writable)
                return
            self._waiting_bytes -= gone
            self._splice.count(gone)
        self._release()

    def _writable(self) -> None:
        try:
            self._hand_on()
        except OSError as error:
            self._splice.end(_reason(error))
            return
        if not self._waiting_bytes and not self.done:
            self._writing = False
            self._splice.loop.remove_writer(self._sink)
            self.start()

    def _finish(self) -> None:
        """The source has ended: so does the sink, from this side."""
        self.stop()
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
        self._splice.finished()

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._splice.loop.remove_reader(self._source)

    def _release(self) -> None:
        if self._pipe is not None:
            self._splice.pipes.give_back(self._pipe, not self._waiting_bytes)
            self._pipe = None


def _reason(error: OSError) -> str:
    return f"a side has broken off: {error.strerror or error}"

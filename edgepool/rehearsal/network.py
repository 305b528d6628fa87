"""Links between peers in one event loop: frames in order, late by what a seed draws, links that are lost.

As TCP would have it: what is sent over a path that has gone silent waits in a bounded outbox and arrives
if the path comes back in time; after a while of silence an end gives the link up. A peer that loses its
power says nothing: the others keep a link that is dead until silence, or its return, tells them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from random import Random

from edgepool.config import Limits
from edgepool.model.ids import PeerId
from edgepool.model.pool import Member
from edgepool.runtime.ports import LinkHandler, PeerIdentity
from edgepool.transport import refusals
from edgepool.transport.refusals import Counters, count

ADDRESS = "/dns4/rehearsal/tcp/1"
CALM_MS = (0.3, 8.0)
"""How long a frame takes where nothing is wrong, uniformly between the two."""
SILENT_S = 15.0
"""After as much silence an end gives its link up (three keepalive periods)."""
PAUSE_S = 2.0
"""For so long nobody links again whose link was ended for breaking the protocol."""
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0

Note = Callable[..., None]
"""Called with what has happened: a word, and names, numbers or bytes."""


class RehearsedNetwork:
    """Connects the transports made with it. `note` is called for all that happens on links."""

    def __init__(self, seed: int, note: Note) -> None:
        self.transports: dict[PeerId, RehearsedTransport] = {}
        self.slow_ms: dict[PeerId, int] = {}
        """Up to how much later frames to and from a peer arrive."""
        self.note = note
        self._seed = seed
        self._streams: dict[tuple[PeerId, PeerId], Random] = {}
        self._silent: dict[tuple[PeerId, PeerId], None] = {}
        self._links: dict[_Link, None] = {}

    def silence(self, pairs: Iterable[tuple[PeerId, PeerId]]) -> None:
        """Let nothing pass from the first to the second of each pair, instead of earlier silences."""
        before, self._silent = self._silent, dict.fromkeys(pairs)
        for link in list(self._links):
            ends = (link.ends[0].peer, link.ends[1].peer)
            for way in (ends, ends[::-1]):
                if way in self._silent and way not in before:
                    link.fall_silent(way[1])
                elif way in before and way not in self._silent:
                    link.lanes[way[0]].resume()

    def passes(self, sender: PeerId, receiver: PeerId) -> bool:
        """Say whether frames get from one peer to another now."""
        return (sender, receiver) not in self._silent

    def break_link(self, a: PeerId, b: PeerId) -> None:
        """End the link between two peers, if there is one, as a reset would: both hear of it."""
        for link in [link for link in self._links if {end.peer for end in link.ends} == {a, b}]:
            for end in link.ends:
                link.lose(end, "the connection was reset")

    def draw(self, a: PeerId, b: PeerId) -> Random:
        """Return the stream of chance of what passes from one peer to another."""
        stream = self._streams.get((a, b))
        if stream is None:
            stream = self._streams[a, b] = Random(f"{self._seed}/{a}/{b}")
        return stream

    def late_s(self, sender: PeerId, receiver: PeerId) -> float:
        """Draw how long a frame takes."""
        chance = self.draw(sender, receiver).random
        late_ms = CALM_MS[0] + chance() * (CALM_MS[1] - CALM_MS[0])
        if self.slow_ms:
            late_ms += chance() * max(self.slow_ms.get(sender, 0), self.slow_ms.get(receiver, 0))
        return late_ms / 1000

    def dial(self, dialler: RehearsedTransport, peer: PeerId) -> bool:
        """Make a link in a moment; False if nobody answers."""
        other = self.transports.get(peer)
        if other is None or not (self.passes(dialler.peer, peer) and self.passes(peer, dialler.peer)):
            return False
        late_s = self.late_s(dialler.peer, peer) + self.late_s(peer, dialler.peer)
        asyncio.get_running_loop().call_later(late_s, self._establish, dialler, other)
        return True

    def _establish(self, dialler: RehearsedTransport, other: RehearsedTransport) -> None:
        there = all(self.transports.get(end.peer) is end for end in (dialler, other))
        if not there or other.is_paused(dialler.peer) or dialler.is_paused(other.peer):
            dialler.dial_failed(other.peer)
            return
        if other.peer in dialler.links:
            return  # the other side has dialled as well, and its link stands
        link = _Link(self, dialler, other)
        self._links[link] = None
        self.note("link", dialler.identity.name, other.identity.name)
        other.set_up(link, dialler)
        dialler.set_up(link, other)

    def forget(self, link: _Link) -> None:
        """Both ends of a link have given it up."""
        self._links.pop(link, None)


class RehearsedTransport:
    """The Transport port on a RehearsedNetwork, for one life of a peer.

    `speaks` is called with each frame before it goes anywhere.
    """

    def __init__(
        self,
        network: RehearsedNetwork,
        identity: PeerIdentity,
        limits: Limits,
        speaks: Callable[[bytes], None],
    ) -> None:
        self.identity = identity
        self.peer = identity.peer
        self.limits = limits
        self.links: dict[PeerId, _Link] = {}
        self.counters: Counters = {}
        self._network = network
        self._speaks = speaks
        self._handler: LinkHandler | None = None
        self._wanted: dict[PeerId, None] = {}
        self._dials: dict[PeerId, asyncio.TimerHandle] = {}
        self._backoff_s: dict[PeerId, float] = {}
        self._paused_until_s: dict[PeerId, float] = {}

    # --- the port -----------------------------------------------------------------------------

    @property
    def addresses(self) -> tuple[str, ...]:
        """An address in form only: peers find each other by peer id here."""
        return (ADDRESS,)

    async def start(self, handler: LinkHandler) -> None:
        """Join the network and begin to dial."""
        assert self._handler is None, "a transport is started once"
        self._handler = handler
        self._network.transports[self.peer] = self
        for peer in self._wanted:
            self._dial_soon(peer)

    def want(self, member: Member) -> None:
        """Keep a link to `member`: dial it, and again with back-off when it is lost."""
        if member.peer == self.peer or member.peer in self._wanted:
            return
        self._wanted[member.peer] = None
        if self._handler is not None:
            self._dial_soon(member.peer)

    def unwant(self, peer: PeerId) -> None:
        """Dial `peer` no more; a link that stands stays until it is lost."""
        self._wanted.pop(peer, None)

    def send(self, peer: PeerId, frame: bytes) -> bool:
        """Queue `frame`; False (and it is counted) if there is no link or its outbox is full."""
        if self._handler is None:
            return False
        self._speaks(frame)
        link = self.links.get(peer)
        if link is None:
            count(self.counters, refusals.NO_LINK)
            return False
        if len(frame) > self.limits.frame_bytes:
            count(self.counters, refusals.FRAME_TOO_LONG)
            return False
        if not link.lanes[self.peer].put(frame):
            count(self.counters, refusals.OUTBOX)
            return False
        return True

    def close_link(self, peer: PeerId, reason: str) -> None:
        """End the link to `peer`, who broke the protocol; it may be made again after a pause."""
        loop = asyncio.get_running_loop()
        self._paused_until_s[peer] = loop.time() + PAUSE_S
        link = self.links.get(peer)
        if link is not None:
            link.end(self, reason)

    async def close(self) -> None:
        """Let arrive what is queued, then let the others know; the handler is told nothing more."""
        self._leave()
        for link in list(self.links.values()):
            link.finish(self)
        self.links.clear()

    # --- for the world ------------------------------------------------------------------------

    def cut_power(self) -> None:
        """Be gone at once: nothing more leaves, and nobody is told."""
        self._leave()
        for link in list(self.links.values()):
            link.die(self)
        self.links.clear()

    def is_paused(self, peer: PeerId) -> bool:
        """Say whether a link to `peer` was ended just now for its conduct."""
        return self._paused_until_s.get(peer, 0.0) > asyncio.get_running_loop().time()

    def dial_failed(self, peer: PeerId) -> None:
        """Dial again, more slowly."""
        if self._handler is None or peer in self.links or peer not in self._wanted or peer in self._dials:
            return
        backoff_s = min(max(2 * self._backoff_s.get(peer, 0.0), FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
        self._backoff_s[peer] = backoff_s
        self._dial_in(peer, backoff_s * self._network.draw(self.peer, peer).uniform(0.5, 1.0))

    def set_up(self, link: _Link, other: RehearsedTransport) -> None:
        """A link stands; one that was there is replaced."""
        assert self._handler is not None
        old = self.links.get(other.peer)
        if old is not None:
            old.lose(self, "a newer connection replaced the link")
        timer = self._dials.pop(other.peer, None)
        if timer is not None:
            timer.cancel()
        self._backoff_s.pop(other.peer, None)
        self.links[other.peer] = link
        self._handler.link_up(other.identity)

    def set_down(self, link: _Link, peer: PeerId, reason: str) -> None:
        """A link is gone."""
        if self._handler is None or self.links.get(peer) is not link:
            return
        del self.links[peer]
        self._handler.link_down(peer, reason)
        if peer in self._wanted and peer not in self._dials:
            self._dial_in(peer, FIRST_BACKOFF_S * self._network.draw(self.peer, peer).uniform(0.5, 1.0))

    def arrived(self, link: _Link, peer: PeerId, frame: bytes) -> None:
        """A frame of `peer` came over `link`."""
        if self._handler is not None and self.links.get(peer) is link:
            self._network.note("frame", self.identity.name, peer, frame)
            self._handler.frame_received(peer, frame)

    def _leave(self) -> None:
        self._handler = None
        if self._network.transports.get(self.peer) is self:
            del self._network.transports[self.peer]
        for timer in self._dials.values():
            timer.cancel()
        self._dials.clear()

    def _dial_soon(self, peer: PeerId) -> None:
        if peer not in self.links and peer not in self._dials:
            self._dial_in(peer, 0.02 * self._network.draw(self.peer, peer).random())

    def _dial_in(self, peer: PeerId, delay_s: float) -> None:
        self._dials[peer] = asyncio.get_running_loop().call_later(delay_s, self._dial, peer)

    def _dial(self, peer: PeerId) -> None:
        del self._dials[peer]
        if peer not in self.links and (self.is_paused(peer) or not self._network.dial(self, peer)):
            self.dial_failed(peer)


class _Lane:
    """One direction of a link: frames in order, counted until they arrive."""

    def __init__(self, link: _Link, sender: RehearsedTransport, receiver: RehearsedTransport) -> None:
        self._link = link
        self._sender = sender
        self._receiver = receiver
        self._queue: deque[tuple[float, bytes]] = deque()
        self._size_bytes = 0
        self._last_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._finishing = False
        self._stopped = False

    def put(self, frame: bytes) -> bool:
        """Queue a frame; False if there is no room for it."""
        if self._size_bytes + len(frame) > self._sender.limits.outbox_bytes:
            return False
        self._size_bytes += len(frame)
        self._enqueue(frame)
        self._arm()
        return True

    def finish(self) -> None:
        """Let the other end know that this was all, once it has arrived."""
        self._finishing = True
        self._enqueue(b"")
        self._arm()

    def stop(self) -> None:
        """Lose what is under way."""
        self._stopped = True
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resume(self) -> None:
        """The path is open again: what has waited is sent anew."""
        waiting = [frame for _, frame in self._queue]
        self._queue.clear()
        for frame in waiting:
            self._enqueue(frame)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._arm()

    def _enqueue(self, frame: bytes) -> None:
        late_s = self._link.network.late_s(self._sender.peer, self._receiver.peer)
        self._last_s = max(self._last_s, asyncio.get_running_loop().time() + late_s)
        self._queue.append((self._last_s, frame))

    def _arm(self) -> None:
        if self._timer is None and self._queue and not self._stopped:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._queue[0][0], self._arrive)

    def _arrive(self) -> None:
        """Hand over all that is due, unless the path is silent; `resume` goes on then."""
        self._timer = None
        now_s = asyncio.get_running_loop().time() + 1e-9
        while self._queue and self._queue[0][0] <= now_s:
            if not self._link.network.passes(self._sender.peer, self._receiver.peer):
                return
            _, frame = self._queue.popleft()
            if self._finishing and not self._queue:
                self._link.lose(self._receiver, "the other side closed the link")
                return
            self._size_bytes -= len(frame)
            self._receiver.arrived(self._link, self._sender.peer, frame)
        self._arm()


class _Link:
    """A link between two transports, which each of them loses for itself."""

    def __init__(self, network: RehearsedNetwork, a: RehearsedTransport, b: RehearsedTransport) -> None:
        self.network = network
        self.ends = (a, b)
        self.lanes = {a.peer: _Lane(self, a, b), b.peer: _Lane(self, b, a)}
        self._lost: dict[PeerId, None] = {}

    def end(self, end: RehearsedTransport, reason: str) -> None:
        """One end gives the link up; its handler hears of it in a later turn."""
        self.lanes[end.peer].stop()
        asyncio.get_running_loop().call_soon(self.lose, end, reason)

    def finish(self, end: RehearsedTransport) -> None:
        """One end closes, politely."""
        self._lost[end.peer] = None
        self.lanes[self._other(end).peer].stop()
        self.lanes[end.peer].finish()

    def die(self, end: RehearsedTransport) -> None:
        """One end has lost its power; the other one will notice by the silence."""
        self._lost[end.peer] = None
        for lane in self.lanes.values():
            lane.stop()
        self.fall_silent(self._other(end).peer)

    def fall_silent(self, listener: PeerId) -> None:
        """Nothing comes to the end of `listener` any more; after a while it gives the link up."""
        end = self.ends[0] if self.ends[0].peer == listener else self.ends[1]
        asyncio.get_running_loop().call_later(SILENT_S, self._notice, end)

    def _notice(self, end: RehearsedTransport) -> None:
        other = self._other(end)
        if other.peer in self._lost or not self.network.passes(other.peer, end.peer):
            self.lose(end, "nothing was heard of the other side")

    def lose(self, end: RehearsedTransport, reason: str) -> None:
        """The link is gone for one end, with what it had queued; the other is told, if that gets there."""
        if end.peer in self._lost:
            return
        self._lost[end.peer] = None
        self.lanes[end.peer].stop()
        other = self._other(end)
        if other.peer in self._lost:
            self.lanes[other.peer].stop()
            self.network.forget(self)
        else:
            late_s = self.network.late_s(end.peer, other.peer)
            asyncio.get_running_loop().call_later(late_s, self._reset, other)
        end.set_down(self, other.peer, reason)

    def _reset(self, end: RehearsedTransport) -> None:
        if self.network.passes(self._other(end).peer, end.peer):
            self.lose(end, "the connection was reset")
        else:
            self.fall_silent(end.peer)

    def _other(self, end: RehearsedTransport) -> RehearsedTransport:
        return self.ends[1] if end is self.ends[0] else self.ends[0]

"""The way in over libp2p: both sides prove their membership before anything else is read.

A libp2p stream is confidential and its ends know each other's peer ids by Noise, which lets anybody in who
has a key. So a stream begins with frames of the usual shape: a `ChannelHello` of its opener; a hello and the
`MembershipProof` of its acceptor; the `MembershipProof` of its opener, once that has checked the other's. The
proofs are bound to both peer ids, who opened the stream, for which protocol, and a fresh nonce of each side.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Annotated, Protocol, cast

from msgspec import Meta

from edgepool.errors import DecodeError
from edgepool.model.channelproof import MAX_PROOF_BYTES, MembershipProof, make_proof
from edgepool.model.codec import Wire, decode, encode
from edgepool.model.credential import NotProven
from edgepool.model.crypto import sha256
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId
from edgepool.transport.cutting import cut
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.identity import Identity
from edgepool.transport.refusals import BUSY, HANDSHAKE, Counters, count, lost, refused

NONCE_BYTES = 32


class ChannelHello(Wire, tag="hello", frozen=True):
    """The first frame on a libp2p stream: 32 fresh random bytes."""

    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Channel(Protocol):
    """What a proof door needs of a stream: an asyncio transport that knows its other end by Noise."""

    peer: PeerId

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        ...

    def abort(self) -> None:
        """End the stream."""
        ...

    def is_closing(self) -> bool:
        """Say whether it is over, or ends."""
        ...

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol take over."""
        ...


Admit = Callable[[PeerIdentity, str], asyncio.BufferedProtocol | None]
"""Is given who is there and the stream's protocol; returns what takes over, or None."""


def channel_binding(
    protocol: str, opener: PeerId, acceptor: PeerId, opener_nonce: bytes, acceptor_nonce: bytes
) -> bytes:
    """Return the 32 bytes that the membership proofs on one stream are bound to."""
    return sha256(encode(["edgepool/1/libp2p", protocol, opener, acceptor, opener_nonce, acceptor_nonce]))


class ProofDoor(asyncio.BufferedProtocol):
    """Stands on a stream while both sides prove their membership, then hands it on or ends it.

    `admitted` is what took over, None if nothing did (yet). Once `abandoned`, nobody gets in.
    """

    def __init__(
        self,
        identity: Identity,
        counters: Counters,
        protocol: str,
        opened_here: bool,
        admit: Admit,
        timeout_ms: int,
    ) -> None:
        self.admitted: asyncio.BufferedProtocol | None = None
        self.abandoned = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._identity = identity
        self._counters = counters
        self.protocol = protocol
        self._opened_here = opened_here
        self._admit = admit
        self._timeout_s = timeout_ms / 1000
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._binding = b""
        self._channel: Channel | None = None
        self._frames = FrameBuffer(MAX_PROOF_BYTES + 64)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello, and wait for theirs no longer than a handshake may take."""
        self._channel = cast("Channel", transport)
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._refuse, HANDSHAKE)
        if self._opened_here:
            self._write(encode(ChannelHello(self._nonce)))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take the hello, then the proof; what is behind it is for who takes over."""
        self._frames.received(nbytes)
        try:
            while self.admitted is None and not self.over.done():
                frame = self._frames.next_frame()
                if frame is None:
                    return
                if not self._binding:
                    self._greeted(decode(ChannelHello, frame))
                else:
                    self._proved(decode(MembershipProof, frame))
        except DecodeError:
            self._refuse(HANDSHAKE)

    def eof_received(self) -> None:
        """The other side has gone."""
        self._refuse(HANDSHAKE)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over before anybody was let in."""
        self._refuse(HANDSHAKE)

    def _greeted(self, hello: ChannelHello) -> None:
        assert self._channel is not None
        mine, theirs = (self._identity.peer, self._nonce), (self._channel.peer, hello.nonce)
        opener, acceptor = (mine, theirs) if self._opened_here else (theirs, mine)
        binding = channel_binding(self.protocol, opener[0], acceptor[0], opener[1], acceptor[1])
        self._binding = binding
        if not self._opened_here:
            self._write(encode(ChannelHello(self._nonce)))
            self._prove()

    def _prove(self) -> None:
        assert self._channel is not None
        own = self._identity
        proof = make_proof(own.signer, own.certificate_der, own.network, self._binding, self._channel.peer)
        self._write(encode(proof))

    def examine(self, proof: MembershipProof) -> PeerIdentity:
        """Return whom the other side's proof proves; NotProven if nobody."""
        assert self._channel is not None
        return self._identity.trust.check_proof(
            proof, binding=self._binding, prover=self._channel.peer, verifier=self._identity.peer
        )

    def _proved(self, proof: MembershipProof) -> None:
        assert self._channel is not None
        try:
            identity = self.examine(proof)
        except NotProven as error:
            self._refuse(refused(error.word))
            return
        taker = None if self.abandoned else self._admit(identity, self.protocol)
        self._end()
        if taker is None:
            self._channel.abort()
            return
        if self._opened_here:
            self._prove()
        self.admitted = taker
        self._identity.trust.hold(identity, lambda why: self._cut(taker, why), self._channel.is_closing)
        rest = self._frames.take_rest()
        self._channel.set_protocol(taker)
        taker.connection_made(cast("asyncio.Transport", self._channel))
        view = memoryview(rest)
        while view:
            space = memoryview(taker.get_buffer(len(view)))
            size = min(len(space), len(view))
            space[:size] = view[:size]
            taker.buffer_updated(size)
            view = view[size:]

    def give_way(self) -> None:
        """End the attempt: its place is wanted, and honest peers take milliseconds."""
        self._refuse(BUSY)

    def _cut(self, taker: asyncio.BufferedProtocol, why: str) -> None:
        """End what was admitted: its ground is gone."""
        count(self._counters, lost(why))
        cut(taker, why)
        if self._channel is not None:
            self._channel.abort()

    def _write(self, body: bytes) -> None:
        assert self._channel is not None
        self._channel.write(header(len(body)) + body)

    def _refuse(self, reason: str) -> None:
        if self.over.done():
            return
        count(self._counters, reason)
        self._end()
        if self._channel is not None:
            self._channel.abort()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.over.done():
            self.over.set_result(None)

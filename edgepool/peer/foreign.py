"""What a peer tells over libp2p to those it has no link with: pools, offers with proofs, news of blocks.

The other side of a stream has proved its membership before a question is read; what it may ask depends on
its role [S3.14, S1.2].
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

from edgepool.core.ledger.recordproof import prove_record, write_proof
from edgepool.core.machine import RankedOffer
from edgepool.core.rights import Subject, refusal
from edgepool.errors import DecodeError, EdgepoolError, Refused
from edgepool.model.asking import (
    MAX_HANDED_OVER,
    MAX_PLACES,
    MAX_POOLS,
    MAX_QUESTION_BYTES,
    Answer,
    BlockNews,
    Find,
    FoundOffer,
    HandoverList,
    HandoversAbove,
    No,
    Offers,
    Places,
    PoolList,
    Pools,
    ProofFile,
    Prove,
    Question,
    TrustProof,
    Where,
    WhomToTrust,
)
from edgepool.model.codec import decode, encode
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import ChainId
from edgepool.model.pool import Genesis
from edgepool.model.record import DataOffer
from edgepool.peer.values import BlockAdded
from edgepool.runtime.ports import Transport
from edgepool.transport.framing import FrameBuffer, header
from edgepool.transport.libp2p import PROOF_STREAM, QUERY_STREAM, Libp2pRoad
from edgepool.transport.tls import TlsTransport

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

AT_ONCE = 8
"""So many questions are worked on at once; others wait, each on its own stream."""
TOPIC = "/edgepool/events/1/"
"""The gossipsub topic of a pool is this and its chain id."""


class Foreign:
    """Answers questions over the libp2p road, if there is one, and publishes news if the settings say so."""

    def __init__(self, peer: Peer, transport: Transport) -> None:
        self._peer = peer
        self._road: Libp2pRoad | None = transport.libp2p if isinstance(transport, TlsTransport) else None
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._news: asyncio.Task[None] | None = None
        if self._road is not None:
            for protocol in (QUERY_STREAM, PROOF_STREAM):
                self._road.serving[protocol] = self._conversation

    def start(self) -> None:
        """Publish the blocks that stand from now on."""
        if self._road is not None and self._peer.settings.libp2p.events:
            self._news = asyncio.create_task(self._publish(self._road), name=f"news of {self._peer.name}")

    async def close(self) -> None:
        """Publish no more."""
        if self._news is not None:
            self._news.cancel()
            await asyncio.gather(self._news, return_exceptions=True)

    def _conversation(self, identity: PeerIdentity) -> asyncio.BufferedProtocol:
        async def answer(question: Question) -> Answer:
            async with self._at_once:
                return await self.answer(identity, question)

        return Conversation(answer)

    async def _publish(self, road: Libp2pRoad) -> None:
        async for event in self._peer.watch():
            if isinstance(event, BlockAdded):
                certified = event.certified
                news = BlockNews(certified.block.header, certified.certificate)
                road.process.publish(TOPIC + event.chain, encode(news))

    async def answer(self, asker: PeerIdentity, question: Question) -> Answer:
        """Answer a question of a proven member of the network."""
        subject = Subject(asker.peer, asker.role, asker.organisation)
        searches = refusal("search", subject)
        try:
            match question:
                case Pools():
                    return PoolList(self._pools())
                case Find(key, version, timeout_ms):
                    if searches:
                        return No(searches)
                    found = await self._peer.request(key, version=version, timeout_ms=timeout_ms)
                    return Offers(tuple(_told(offer) for offer in found))
                case Prove():
                    return self._prove(subject, searches, question)
                case HandoversAbove(chain, height):
                    above = [one for one in self._peer.handovers(chain) if one.header.height > height]
                    return HandoverList(tuple(above[:MAX_HANDED_OVER]))
                case WhomToTrust(chain):
                    return self._trusted(chain)
                case Where(chain):
                    known = self._peer.node.chains.get(chain)
                    places = () if known is None else self._peer.node.rendezvous.of_chain(known)
                    return Places(places[:MAX_PLACES])
        except EdgepoolError as error:
            return No(str(error)[:256])

    def _pools(self) -> tuple[tuple[Genesis, int], ...]:
        return tuple(
            (genesis, self._peer.chain_state(genesis.chain).height)
            for genesis in self._peer.pools[-MAX_POOLS:]
        )

    def _trusted(self, chain: ChainId) -> Answer:
        """Show what a chain says of trust by the header of its last block."""
        state = self._peer.chain_state(chain)
        certified = self._peer.block(chain, state.height)
        if state.explained is None or certified is None:
            return No("there is no block yet by which this can be shown: ask again after the next one")
        trust, rest = state.explained
        return TrustProof(encode(trust), rest, certified.block.header, certified.certificate)

    def _prove(self, subject: Subject, searches: str, asked: Prove) -> Answer:
        """Prove an offer to who may search, any record to who may follow its chain."""
        genesis = next((one for one in self._peer.pools if one.chain == asked.chain), None)
        certified = None if genesis is None else self._peer.block(asked.chain, asked.height)
        if genesis is None or certified is None or asked.index >= len(certified.block.records):
            return No("there is no such record here (any more)")
        people = self._peer.node.chains[asked.chain].people
        follows = refusal("follow chain", subject, ("people",) if subject.peer in people else ())
        is_offer = isinstance(certified.block.records[asked.index].record.body, DataOffer)
        if follows and (searches or not is_offer):
            raise Refused(follows)
        proof = prove_record(genesis, self._peer.handovers(asked.chain), certified, asked.index)
        return (
            No("too many changes of members lie before it")
            if proof is None
            else ProofFile(write_proof(proof))
        )


class Conversation(asyncio.BufferedProtocol):
    """One stream of questions, each answered before the next is read."""

    def __init__(self, answer: Callable[[Question], Awaitable[Answer]]) -> None:
        self._answer = answer
        self._frames = FrameBuffer(MAX_QUESTION_BYTES)
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The other side is a member."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._frames.space(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take the next question."""
        self._frames.received(nbytes)
        self._next()

    def eof_received(self) -> bool:
        """There are no more questions; what is under way is still answered."""
        self._ended = True
        self._next()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for an answer."""
        self._transport = None
        if self._task is not None:
            self._task.cancel()

    def _next(self) -> None:
        if self._task is not None or self._transport is None:
            return
        try:
            frame = self._frames.next_frame()
            if frame is None:
                if self._ended:
                    self._transport.close()
                return
            question: Question = decode(Question, frame)  # type: ignore[arg-type]
        except DecodeError:
            self._transport.abort()
            return
        # No more is read while one is answered, so a peer has one question here and no queue.
        self._transport.pause_reading()
        self._task = asyncio.create_task(self._reply(question), name="edgepool answer over libp2p")

    async def _reply(self, question: Question) -> None:
        answer = encode(await self._answer(question))
        self._task = None
        if self._transport is not None:
            self._transport.write(header(len(answer)) + answer)
            self._transport.resume_reading()
            self._next()


def _told(offer: RankedOffer) -> FoundOffer:
    return FoundOffer(
        offer.proof,
        offer.holder,
        offer.network_load_percent,
        offer.processing_load_percent,
        offer.round_trip_ms,
        offer.reachable,
    )

"""Questions and answers over libp2p, for peers that are no members of pools and programs in other languages.

Each is one frame on a stream of /edgepool/query/1 or /edgepool/proof/1; see docs/protocol/libp2p.md.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgepool.model.block import MAX_BLOCK_RECORDS, Handover, Header
from edgepool.model.codec import Wire
from edgepool.model.fields import ChainText, Hash, Height, KnownHeight, Percent, Text
from edgepool.model.message import MAX_OFFERS, OfferProof, Version
from edgepool.model.pool import Genesis, Member
from edgepool.model.twin import DataKey
from edgepool.model.vote import Certificate
from edgepool.model.whereabouts import Whereabouts

MAX_POOLS = 256
MAX_HANDED_OVER = 64
MAX_TRUST_BYTES = 2 * 1024 * 1024
MAX_PLACES = 512
MAX_PROOF_FILE_BYTES = 2 * 1024 * 1024
MAX_QUESTION_BYTES = 1024
Milliseconds = Annotated[int, Meta(ge=0, le=2**31)]


class Pools(Wire, tag="pools", frozen=True):
    """Which pools is this peer in?"""


class Find(Wire, tag="find", frozen=True):
    """Who has this? Version 0 asks for the newest; the answer comes within `timeout_ms`, at most 30 s."""

    key: DataKey
    version: Version
    timeout_ms: Annotated[int, Meta(ge=1, le=30_000)]


class Prove(Wire, tag="prove", frozen=True):
    """The proof, please, of the record at `index` (from 0) of a block."""

    chain: ChainText
    height: Height
    index: Annotated[int, Meta(ge=0, lt=MAX_BLOCK_RECORDS)]


class HandoversAbove(Wire, tag="handovers", frozen=True):
    """How has the roster of this chain changed above `height`? The oldest first, so many at a time."""

    chain: ChainText
    height: KnownHeight


class WhomToTrust(Wire, tag="trust", frozen=True):
    """Whom do the members of this chain trust, and whom have they revoked, with proof?"""

    chain: ChainText


class Where(Wire, tag="where", frozen=True):
    """Where are the people of this chain that have moved, as far as you know?"""

    chain: ChainText


class PoolList(Wire, tag="pool_list", frozen=True):
    """The pools that a peer is in: how each was born, and how high its chain is."""

    pools: Annotated[
        tuple[tuple[Genesis, Annotated[int, Meta(ge=0, le=2**53)]], ...], Meta(max_length=MAX_POOLS)
    ]


class FoundOffer(Wire, frozen=True):
    """A proven offer, who holds the data, and what the holder said of itself; the best comes first."""

    proof: OfferProof
    holder: Member
    network_load_percent: Percent
    processing_load_percent: Percent
    round_trip_ms: Milliseconds
    reachable: bool


class Offers(Wire, tag="offers", frozen=True):
    """What was found; nothing if nobody within reach offers it."""

    offers: Annotated[tuple[FoundOffer, ...], Meta(max_length=MAX_OFFERS)]


class ProofFile(Wire, tag="proof", frozen=True):
    """The proof of a record, byte by byte what 'edgepool proof make' writes."""

    file: Annotated[bytes, Meta(min_length=1, max_length=MAX_PROOF_FILE_BYTES)]


class HandoverList(Wire, tag="handover_list", frozen=True):
    """The handovers that were asked for; with none, there is none above that height."""

    handovers: Annotated[tuple[Handover, ...], Meta(max_length=MAX_HANDED_OVER)]


class TrustProof(Wire, tag="trusted", frozen=True):
    """What a chain said of trust before the block of `header`: an encoded Trust, shown by its state root.

    That root is SHA-256(SHA-256(trust) + rest).
    """

    trust: Annotated[bytes, Meta(min_length=1, max_length=MAX_TRUST_BYTES)]
    rest: Hash
    header: Header
    certificate: Certificate


class Places(Wire, tag="places", frozen=True):
    """Where people of a chain say that they are, each signed by the one whom it is about."""

    records: Annotated[tuple[Whereabouts, ...], Meta(max_length=MAX_PLACES)]


class No(Wire, tag="no", frozen=True):
    """The question is not answered, for this reason."""

    reason: Text


class BlockNews(Wire, tag="block", frozen=True):
    """A block stands: what is published of it. Its records are not told."""

    header: Header
    certificate: Certificate


Question = Pools | Find | Prove | HandoversAbove | WhomToTrust | Where
Answer = PoolList | Offers | ProofFile | HandoverList | TrustProof | Places | No

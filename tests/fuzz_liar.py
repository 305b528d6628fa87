"""What a liar with good keys says of records, data and pools; all choices come from one generator.

The liar is a member, so its records are authentic; the coordinator is trusted to form pools, so its
invitations are believed; a stranger has only a link.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

import msgspec
from fuzz_cell import (
    COORDINATOR,
    EPOCH_MS,
    FOREIGN,
    FOREIGN_BLOCKS,
    GENESES,
    HONEST,
    KEYS,
    LIAR,
    NETWORK,
    ROOT,
    STRANGER,
    Cell,
)

from edgepool.core.chain import Chain
from edgepool.core.ledger.proof import prove
from edgepool.model.block import (
    NIL,
    PRECOMMIT,
    Certificate,
    sign_vote,
)
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import (
    MAX_VISITED,
    ConfirmAnswer,
    ConfirmRequest,
    Hello,
    LoadQuery,
    LoadReport,
    Message,
    OfferProof,
    Ping,
    PoolAccept,
    PoolDecline,
    PoolFormed,
    PoolInvite,
    Proposal,
    Query,
    QueryAnswer,
    Records,
    RecordsRefused,
    decode_message,
)
from edgepool.model.pool import Invitation, Member, accept, sign_invitation
from edgepool.model.record import (
    Body,
    DataDemand,
    DataOffer,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    QualityInspection,
    SignedRecord,
    TransmissionConfirmation,
    confirmation_terms,
    sign_record,
)

T = TypeVar("T")
HEIGHTS_OFF = (-1, -1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 31, 32, 33)
ROUNDS_OFF = (0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 16, 17, 18)
NUMBERS = (0, 1, 2, 29, 2**31 - 1, 2**31)
LAST_HEIGHT = 2**53
LAST_ROUND = 2**31


class Liar:
    """Makes hostile messages about what stands in `cell`, but for consensus; choices come from `rng`.

    With `writes` it also makes records that may stand, so that chains grow.
    """

    def __init__(self, rng: Random, cell: Cell, *, writes: bool) -> None:
        self._rng = rng
        self._cell = cell
        self._writes = writes

    # --- records ------------------------------------------------------------------------------

    def _records(self) -> Message:
        chain = self._chain()
        return Records(chain.id, tuple(self._record(chain) for _ in range(self._one((1, 1, 3, 128)))))

    def _record(self, chain: Chain) -> SignedRecord:
        body = self._body(chain)
        may_write = isinstance(body, MachiningRequirement) and self._writes
        author = COORDINATOR if may_write and self._often() else LIAR if self._writes else STRANGER
        chain_id = chain.id if self._often() or self._often() else ChainId("0" * 40)
        nonce = int(self._rng.random() * 2**53)
        signed = sign_record(author, NETWORK, chain_id, body, self._one((0, EPOCH_MS, 2**53)), nonce)
        return signed if self._often() or self._often() else self._changed(signed, signature=self._bytes(64))

    def _body(self, chain: Chain) -> Body:
        task, number, text = self._one(("T1", "T2", "\0")), self._one((0, 10, 20, 100_000)), "x" * 64
        key, root = self._one(KEYS), self._one((ROOT, self._bytes(32)))
        match int(self._rng.random() * 7):
            case 0:
                step, steps = self._one((0, 1, 255)), self._one((1, 2, 256))
                minutes = self._one((0, 10_000_000))
                return MachiningRequirement(
                    task, "P", number, text, self._peer(), step, steps, minutes, minutes, 2**53
                )
            case 1:
                return MachiningProcedure(task, number, text, text, (2**53, -(2**53)) * 8, 0)
            case 2:
                return MachiningCompletion(task, number, text, 2**53)
            case 3:
                return QualityInspection(task, number, text, text, (0,) * 64, self._often())
            case 4:
                return DataDemand(key, self._one(NUMBERS), "x" * 256, "")
            case 5:
                version = max(1, self._one(NUMBERS))
                return DataOffer(key, version, root, self._one((0, 1000, 2**50)), "/" * 256, 100)
            case _:
                terms = confirmation_terms(NETWORK, key, root, STRANGER.peer, LIAR.peer, 2**53)
                signature = STRANGER.sign("confirmation", terms)
                return TransmissionConfirmation(
                    key, root, 1000, self._one((STRANGER.peer, self._peer())), LIAR.peer, 2**53, signature
                )

    def _refused(self) -> Message:
        heard = self._heard(Records)
        record_id = heard.records[0].id if heard is not None else self._bytes(32)
        return RecordsRefused(self._chain().id, record_id, "x" * self._one((0, 1, 256)))

    # --- data ---------------------------------------------------------------------------------

    def _query(self) -> Message:
        visited = [self._chain_text() for _ in range(self._one((0, 1, 2, MAX_VISITED - 1, MAX_VISITED)))]
        hops, budget_ms = self._one((0, 1, 3, 8)), self._one((0, 1, 12, 1_000, 60_000))
        return Query(self._number(), self._one(KEYS), self._one(NUMBERS), hops, budget_ms, tuple(visited))

    def _answer(self) -> Message:
        visited = tuple(self._chain_text() for _ in range(self._one((0, 1, MAX_VISITED))))
        offers = tuple(self._proof() for _ in range(self._one((0, 1, 1, 2, 16))))
        asked = self._cell.asked
        return QueryAnswer(asked.query if asked is not None else self._number(), offers, visited)

    def _proof(self) -> OfferProof:
        chain = self._chain()
        heard = self._heard(QueryAnswer)
        if heard is not None and heard.offers and self._often():
            proof = self._one(heard.offers)
        else:
            proof = prove(FOREIGN, self._one(FOREIGN_BLOCKS), 0)
        if self._often():
            return proof
        return self._changed(
            proof,
            index=self._one((0, 1, 2**20)),
            path=self._one(((), (b"",) * 20, (bytes(32),) * 20, (b"x",))),
            certificate=self._certificate(chain),
            genesis=self._one(GENESES),
            record=self._record(chain),
        )

    def _load_query(self) -> Message:
        return LoadQuery(self._number(), self._one((ROOT, self._bytes(32))))

    def _load_report(self) -> Message:
        return LoadReport(self._number(), self._one((ROOT, self._bytes(32))), self._often(), 0, 100)

    def _confirm_request(self) -> Message:
        signer = self._one((LIAR, STRANGER))
        until_ms = self._one((0, EPOCH_MS + self._cell.now_ms + 1_000, EPOCH_MS + 10**7, 2**53))
        key, root = self._one((*KEYS, KEYS[0])), self._one((ROOT, ROOT, self._bytes(32)))
        holder = self._one(HONEST)
        terms = confirmation_terms(NETWORK, key, root, signer.peer, holder, until_ms)
        return ConfirmRequest(
            self._number(), key, root, signer.peer, until_ms, signer.sign("confirmation", terms)
        )

    def _confirm_answer(self) -> Message:
        asked = self._heard(ConfirmRequest)
        if asked is None or not self._often():
            record = self._record(self._chain()) if self._often() else None
            return ConfirmAnswer(self._number(), self._one((ROOT, self._bytes(32))), record, "x" * 256)
        body = TransmissionConfirmation(
            asked.key,
            asked.root,
            self._one((0, 1000)),
            asked.requester,
            LIAR.peer,
            asked.valid_until_ms,
            asked.requester_signature,
        )
        signed = sign_record(LIAR, NETWORK, self._chain().id, body, 0, 0)
        return ConfirmAnswer(asked.query, asked.root, signed, "")

    # --- pools --------------------------------------------------------------------------------

    def _invite(self) -> Message:
        invitation = self._invitation()
        signer = COORDINATOR if self._often() else STRANGER
        return PoolInvite(invitation, sign_invitation(signer, invitation))

    def _invitation(self) -> Invitation:
        people = [self._member(self._peer()) for _ in range(self._one((1, 2, 29)))]
        if self._often():
            people = [self._member(peer) for peer in dict.fromkeys((*[m.peer for m in people], *HONEST))]
        watchers = tuple(self._member(self._peer()) for _ in range(self._one((0, 1, 8))))
        return Invitation(
            NETWORK if self._often() else "elsewhere",
            "x" * 64,
            self._one(("fixed", "manufacturing")),
            COORDINATOR.peer if self._often() else self._peer(),
            tuple(people),
            watchers,
            ("x" * 64,) * self._one((0, 32)),
            self._one((0, 2**53)),
            int(self._rng.random() * 2**53),
        )

    def _member(self, peer: PeerId) -> Member:
        return Member(peer, "x", "", self._one(((), ("/" * 256,) * 8)))

    def _accept(self) -> Message:
        heard = self._heard(PoolInvite)
        invitation = heard.invitation if heard is not None else self._invitation()
        return PoolAccept(invitation.hash, accept(self._signer(), invitation, self._bytes(32)))

    def _decline(self) -> Message:
        heard = self._heard(PoolInvite)
        return PoolDecline(heard.invitation.hash if heard is not None else self._bytes(32), "x" * 256)

    def _formed(self) -> Message:
        genesis = self._one((*GENESES, FOREIGN))
        if self._often():
            return PoolFormed(genesis)
        return PoolFormed(
            self._changed(
                genesis,
                invitation=self._invitation(),
                coordinator_signature=self._bytes(64),
                acceptances=self._one(((genesis.acceptances[0],), genesis.acceptances[::-1])),
            )
        )

    def _hello(self) -> Message:
        return Hello(self._one(((), ("/" * 256,) * 8, ("/ip4/10.0.0.1/tcp/99999",), ("\0",))))

    def _ping(self) -> Message:
        return Ping(self._one((0, 2**53)))

    def _certificate(self, chain: Chain) -> Certificate:
        height, round, block_id = self._height(chain), self._round(chain), self._bytes(32)
        mine = sign_vote(LIAR, NETWORK, chain.id, PRECOMMIT, height, round, block_id).signature
        indexes = self._one(((3,), (0, 1, 2), (0, 1, 3), (3, 3, 3), (2, 1, 0), (0, 1, 29), tuple(range(30))))
        return Certificate(height, round, block_id, tuple((index, mine) for index in indexes))

    # --- choices ------------------------------------------------------------------------------

    def _one(self, choices: Sequence[T]) -> T:
        return choices[int(self._rng.random() * len(choices))]

    def _often(self) -> bool:
        return self._rng.random() < 0.6

    def _changed(self, value: T, **others: object) -> T:
        """Return `value` with one of `others` in it."""
        name = self._one(tuple(others))
        return msgspec.structs.replace(value, **{name: others[name]})  # type: ignore[type-var]

    def _heard(self, kind: type[T]) -> T | None:
        """Return a message of `kind` that an honest node has sent of late, if one is met soon."""
        heard = self._cell.heard
        for _ in range(min(8, len(heard))):
            message = decode_message(heard[int(self._rng.random() * len(heard))])
            if isinstance(message, kind):
                return message
        return None

    def _chain(self) -> Chain:
        node = self._cell.nodes[self._one(HONEST)]
        return node.chains[self._one(GENESES).chain]

    def _chain_text(self) -> ChainId:
        if not self._often():
            return self._one(GENESES).chain
        return ChainId(sha256(self._rng.randbytes(4)).hex()[:40])

    def _height(self, chain: Chain) -> int:
        if self._rng.random() < 0.05:
            return LAST_HEIGHT
        return max(1, chain.state.height + 1 + self._one(HEIGHTS_OFF))

    def _round(self, chain: Chain) -> int:
        if self._rng.random() < 0.05:
            return LAST_ROUND
        return self._one((chain.engine.round, chain.engine.round, 0)) + self._one(ROUNDS_OFF)

    def _block_id(self, chain: Chain) -> bytes:
        heard = self._heard(Proposal)
        if heard is not None and self._often():
            return heard.block.header.id
        return self._one((NIL, NIL, self._bytes(32), b"x", chain.state.last_block_id))

    def _number(self) -> int:
        """Return a query's number: one that was heard, or any."""
        if self._often():
            asked = self._heard(Query) or self._heard(LoadQuery) or self._heard(ConfirmRequest)
            if asked is not None:
                return asked.query
        return self._one((0, 1, 2**53, int(self._rng.random() * 2**53)))

    def _peer(self) -> PeerId:
        return self._one((*HONEST, LIAR.peer, COORDINATOR.peer, STRANGER.peer, PeerId("1" * 46)))

    def _signer(self) -> Signer:
        return self._one((LIAR, COORDINATOR, STRANGER))

    def _bytes(self, count: int) -> bytes:
        return self._one((bytes(count), self._rng.randbytes(count)))

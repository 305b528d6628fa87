"""What a liar with good keys says of records, data and pools.

The liar is a member, so its records are authentic; the coordinator is trusted to form pools, so its
invitations are believed; a stranger has only a link.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

from fuzz_cell import Cell
from fuzz_choices import LAST_HEIGHT, LAST_ROUND, NUMBERS
from fuzz_governing import Governing
from fuzz_world import (
    COORDINATOR,
    EPOCH_MS,
    FOREIGN,
    FOREIGN_BLOCKS,
    GENESES,
    HONEST,
    KEYS,
    KEYS_OF,
    LIAR,
    NETWORK,
    NEWCOMER,
    ROOT,
    STRANGER,
)

from edgepool.core.chain import Chain
from edgepool.core.ledger.proof import prove
from edgepool.model.certifying import CertificateAnswer, CertificateRequest, CertificateShown, RootFollows
from edgepool.model.credential import MAX_CERTIFICATE_BYTES
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.lineage import MAX_LINE, Lineage, follow
from edgepool.model.message import (
    MAX_VISITED,
    ConfirmAnswer,
    ConfirmRequest,
    Hello,
    Join,
    JoinAnswer,
    LoadQuery,
    LoadReport,
    Message,
    OfferProof,
    Ping,
    Pong,
    PoolAccept,
    PoolDecline,
    PoolFormed,
    PoolInvite,
    Query,
    QueryAnswer,
    Reachable,
    Records,
    RecordsRefused,
)
from edgepool.model.policy import DataPolicy, PolicyTerms
from edgepool.model.pool import Invitation, Member, accept, sign_invitation
from edgepool.model.record import (
    Body,
    Complaint,
    DataDemand,
    DataOffer,
    MachiningCompletion,
    MachiningProcedure,
    MachiningRequirement,
    MembershipChange,
    QualityInspection,
    Share,
    SignedRecord,
    TransferReceipt,
    TransmissionConfirmation,
    confirmation_terms,
    join_terms,
    sign_record,
)
from edgepool.model.succession import Adoption, KeySuccession, key_succession
from edgepool.model.trust import MAX_ROOT_BYTES, RevokePeer, TrustChange, own_revocation
from edgepool.model.whereabouts import sign_whereabouts

PURPOSES = ("", "production", "x" * 64)
REFUSALS = ("", "", "no", "x" * 256)


class Liar(Governing):
    """Makes hostile messages about what stands in `cell`, but for consensus and snapshots."""

    def __init__(self, rng: Random, cell: Cell) -> None:
        super().__init__(rng, cell)
        self._writes = cell.manner.writes
        self.address: tuple[PeerId, PeerId] | None = None
        """Who is to say the last message to whom, if that matters."""

    # --- records ------------------------------------------------------------------------------

    def _records(self) -> Message:
        chain = self._chain()
        return Records(chain.id, tuple(self._record(chain) for _ in range(self._one((1, 1, 3, 128)))))

    def _record(self, chain: Chain) -> SignedRecord:
        """Return a record of a hostile member or the coordinator; of the stranger if nothing is to stand."""
        body, author = self._body(chain), self._voter(chain)
        manual = self._cell.manner.manual
        if isinstance(body, MachiningRequirement) and self._often():
            author = COORDINATOR
        elif isinstance(body, MembershipChange) and self._often():
            author = COORDINATOR
            body = body if manual else self._bearable(chain)
        elif isinstance(body, TrustChange) and self._often():
            author, body = COORDINATOR, self._bearable_trust()
        author = author if self._writes else STRANGER
        chain_id = chain.id if not self._seldom() else ChainId("0" * 40)
        nonce = int(self._rng.random() * 2**53)
        height, horizon = chain.state.height, chain.state.horizon
        since = self._one((height, height, height, 0, horizon, max(0, horizon - 1), height + 1, LAST_HEIGHT))
        signed = sign_record(author, NETWORK, chain_id, body, self._one((0, EPOCH_MS, 2**53)), nonce, since)
        return signed if not self._seldom() else self._changed(signed, signature=self._bytes(64))

    def _body(self, chain: Chain) -> Body:
        task, number, text = self._one(("T1", "T2", "\0")), self._one((0, 10, 20, 100_000)), "x" * 64
        key, root = self._one(KEYS), self._one((ROOT, self._bytes(32)))
        match int(self._rng.random() * 17):
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
            case 6:
                terms = confirmation_terms(NETWORK, key, root, STRANGER.peer, LIAR.peer, 2**53)
                signature = STRANGER.sign("confirmation", terms)
                return TransmissionConfirmation(
                    key, root, 1000, self._one((STRANGER.peer, self._peer())), LIAR.peer, 2**53, signature
                )
            case 7:
                return self._evidence(chain)
            case 8:
                return self._anchor(chain)
            case 9:
                return self._statement()
            case 10:
                return self._trust(chain)
            case 11:
                count, most = self._one((0, 1, 1, 16)), self._one((0, 1000, 2**50))
                shares = tuple(Share(self._peer(), self._one((0, 1, most))) for _ in range(count))
                return TransferReceipt(key, 1, root, most, shares, self._one((0, 2**53)))
            case 12:
                return Complaint(key, root, self._one((0, 65535)), self._peer(), self._bytes(32))
            case 13:
                return self._policy(chain)
            case 14:
                return self._new_key(chain)
            case _:
                return self._change(chain)

    def _refused(self) -> Message:
        heard = self._heard(Records)
        record_id = heard.records[0].id if heard is not None else self._bytes(32)
        return RecordsRefused(self._chain().id, record_id, "x" * self._one((0, 1, 256)))

    def _policy(self, chain: Chain) -> DataPolicy:
        """Return a policy for much, little or nothing, of the next version of its pattern or another."""
        part, kind = self._one(("*", KEYS[0].part, "x" * 64, "/", "P*")), self._one(("*", KEYS[0].kind))
        standing = max((entry.policy.version for _, entry in chain.state.policies()), default=0)
        version = max(1, self._one((1, standing, standing + 1, 2**31)))
        terms = PolicyTerms(
            tuple(self._peer() for _ in range(self._one((0, 1, 24)))),
            tuple(self._chain_text() for _ in range(self._one((0, 1, 16)))),
            self._one(((), ("works",), ("x" * 64,) * 8)),
            self._one(((), ("machine",), ("regulator", "client"))),
            self._one(((), ("production",), ("x" * 64,) * 8)),
            self._one((0, 0, EPOCH_MS, 2**53)),
            self._often(),
        )
        return DataPolicy(part, kind, version, terms if self._often() else None)

    def _new_key(self, chain: Chain) -> KeySuccession:
        """Return that somebody goes on under the key of this liar or of anybody, signed by it or not."""
        made = self._adoption(chain)
        return KeySuccession(made.incoming, made.signature if self._often() else self._bytes(64))

    def _adoption(self, chain: Chain) -> Adoption:
        """Return that somebody has taken over a pool, as its own key says it or not."""
        key = self._one((LIAR, STRANGER))
        name, role = self._one(("cloud", "x" * 64)), self._one(("coordinator", "client"))
        old = COORDINATOR.peer if self._often() else self._peer()
        member = Member(key.peer, name, "", (), role)
        return key_succession(key, NETWORK, chain.id, old, member).adoption(old)

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
            made = prove(FOREIGN, (), self._one(FOREIGN_BLOCKS), 0)
            assert made is not None
            proof = made
        if self._often():
            return proof
        return self._changed(
            proof,
            index=self._one((0, 1, 2**20)),
            path=self._one(((), (b"",) * 20, (bytes(32),) * 20, (b"x",))),
            certificate=self._certificate(chain),
            genesis=self._one(GENESES),
            handovers=self._handovers(chain),
            record=self._record(chain),
            adoption=self._one((None, self._adoption(chain))),
        )

    def _load_query(self) -> Message:
        root = self._one((ROOT, self._bytes(32)))
        return LoadQuery(self._number(), self._one(KEYS), root, self._one(PURPOSES))

    def _load_report(self) -> Message:
        return LoadReport(
            self._number(), self._one((ROOT, self._bytes(32))), self._often(), 0, 100, self._one(REFUSALS)
        )

    def _confirm_request(self) -> Message:
        signer = self._one((LIAR, STRANGER))
        until_ms = self._one((0, EPOCH_MS + self._cell.now_ms + 1_000, EPOCH_MS + 10**7, 2**53))
        key, root = self._one((*KEYS, KEYS[0])), self._one((ROOT, ROOT, self._bytes(32)))
        holder = self._one(HONEST)
        purpose = self._one(PURPOSES)
        terms = confirmation_terms(NETWORK, key, root, signer.peer, holder, until_ms, purpose)
        return ConfirmRequest(
            self._number(), key, root, signer.peer, until_ms, signer.sign("confirmation", terms), purpose
        )

    def _certify(self) -> Message:
        """Ask for a certificate, give one, or show one: of anybody, and none that can be read."""
        der = self._one((b"", self._bytes(32), bytes(MAX_CERTIFICATE_BYTES)))
        signature = self._one((b"", self._bytes(64)))
        return self._one(
            (
                CertificateRequest(self._peer(), signature),
                CertificateAnswer(self._peer(), der, "x" * self._one((0, 1, 256))),
                CertificateShown(der),
                RootFollows(der[:MAX_ROOT_BYTES] or b"root", bytes(64)),
                self._one((RevokePeer(self._peer(), signature), own_revocation(self._signer(), NETWORK))),
            )
        )

    def _confirm_answer(self) -> Message:
        asked = self._heard(ConfirmRequest)
        if asked is None or not self._often():
            record = self._record(self._chain()) if self._often() else None
            return ConfirmAnswer(
                self._number(), self._one((ROOT, self._bytes(32))), record, "x" * 256, self._maybe_policy()
            )
        body = TransmissionConfirmation(
            asked.key,
            asked.root,
            self._one((0, 1000)),
            asked.requester,
            LIAR.peer,
            asked.valid_until_ms,
            asked.requester_signature,
            asked.purpose,
        )
        signed = sign_record(LIAR, NETWORK, self._chain().id, body, 0, 0)
        return ConfirmAnswer(asked.query, asked.root, signed, "", self._maybe_policy())

    def _maybe_policy(self) -> OfferProof | None:
        """Return the proof of something that may be no policy, or nothing."""
        return self._proof() if self._often() else None

    # --- pools --------------------------------------------------------------------------------

    def _invite(self) -> Message:
        invitation = self._invitation()
        signer = COORDINATOR if self._often() else STRANGER
        return PoolInvite(invitation, sign_invitation(signer, invitation))

    def _invitation(self) -> Invitation:
        people = [self._named(self._peer()) for _ in range(self._one((1, 2, 29)))]
        if self._often():
            people = [self._named(peer) for peer in dict.fromkeys((*[m.peer for m in people], *HONEST))]
        watchers = tuple(self._named(self._peer()) for _ in range(self._one((0, 1, 8))))
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

    def _lineage(self) -> Message:
        """Return which keys the hostile had before: true words of keys that it has, or not."""
        keys = [self._signer() for _ in range(self._one((2, 2, 3, MAX_LINE + 1)))]
        line = tuple(follow(one, later, NETWORK) for one, later in pairwise(keys))
        if not self._often():
            line = tuple(self._changed(one, heir=self._peer(), heir_signature=bytes(64)) for one in line)
        return Lineage(line)

    def _reachable(self) -> Message:
        """Return where somebody is, signed by itself or not: what only a coordinator is believed."""
        records = []
        for _ in range(self._one((1, 1, 3, 32))):
            signer, number = self._signer(), self._one((0, 1, EPOCH_MS, 2**53))
            addresses = self._one((("/ip4/10.0.0.2/tcp/4001",), ("/" * 256,) * 8, ("\0",)))
            record = sign_whereabouts(signer, NETWORK, addresses, number)
            if not self._often():
                record = self._changed(record, peer=self._peer(), signature=self._bytes(64))
            records.append(record)
        return Reachable(tuple(records))

    def _ping(self) -> Message:
        return self._one((Ping, Pong))(self._one((0, 2**53)))

    # --- newcomers ----------------------------------------------------------------------------

    def _join(self) -> Message:
        """Return the wish of whoever that an honest peer comes into a pool: it is in it, or not, or full."""
        genesis = self._one((*GENESES, FOREIGN))
        if self._seldom():
            genesis = self._changed(
                genesis, coordinator_signature=self._bytes(64), invitation=self._invitation()
            )
        adoption = self._one((None, None, self._adoption(self._chain())))
        return Join(genesis, self._one((1, 2, LAST_ROUND)), adoption)

    def _join_answer(self) -> Message:
        """Return an answer that nobody has asked for; or one that was, good or not."""
        asked = [one for one in self._cell.asked_hostile if isinstance(one[2], Join)]
        if asked and self._often():
            sender, receiver, join = asked[-1]
            assert isinstance(join, Join)
            chain, number, comes = join.genesis.chain, join.number, self._signer_of(receiver)
            self.address = (receiver, sender)
        else:
            chain, number, comes = self._chain().id, self._one((1, 2, LAST_ROUND)), self._signer()
        member, tip = self._one((NEWCOMER, self._named(comes.peer))), self._bytes(32)
        signature = comes.sign("join", join_terms(NETWORK, chain, number, member, tip))
        answer = JoinAnswer(chain, number, member, tip, signature, "")
        if self._often():
            return answer
        return self._changed(
            answer,
            chain=self._chain_text(),
            number=self._one((1, 2)),
            member=self._named(self._peer()),
            beacon_tip=self._one((b"", b"x", bytes(32))),
            signature=self._one((b"", self._bytes(64))),
            refusal="x" * 256,
        )

    def _signer_of(self, peer: PeerId) -> Signer:
        return KEYS_OF.get(peer, STRANGER)

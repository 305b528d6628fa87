"""Fuzzing of the doors: certificates, roots, requests, codes, proofs of membership, and what is said there.

Whatever is mutated is refused in its own way; what is let in is exactly what was given out.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from fuzz_files import Raw
from fuzz_judge import Broken
from fuzz_mutation import Seed, mutate_bytes, mutate_value
from libp2p_words import EXAMPLES

from edgepool.errors import DecodeError, LocalError
from edgepool.model.certifying import (
    NEXT_ROOT_DOMAIN,
    CertificateRequest,
    RootFollows,
    next_root_terms,
    request_problem,
)
from edgepool.model.channelproof import MembershipProof, check_proof, make_proof
from edgepool.model.codec import decode, encode
from edgepool.model.credential import (
    NotProven,
    check_certificate,
    identity_uri,
    network_of,
    read_root,
    root_key,
)
from edgepool.model.crypto import Signer, sha256, verify
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId, public_key_of
from edgepool.transport import conduitwire
from edgepool.transport.framing import header
from edgepool.transport.joincode import JoinCode, read_code, write_code
from edgepool.transport.joindoor import Admission, JoinRequest, RootShown, _Guest
from edgepool.transport.proofdoor import ChannelHello, ProofDoor, channel_binding
from edgepool.transport.trust import TrustSet

NETWORK = "plant"
PROTOCOL = "/edgepool/link/1"
NOW_MS = 1_800_000_000_000
BINDING = sha256(b"a channel")
_BEGIN = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)
CODE = JoinCode(
    ("/ip4/10.0.0.1/tcp/4001", "/dns4/cloud.plant/tcp/4001"), bytes(16), bytes(6), bytes(range(16))
)
REQUEST = JoinRequest(bytes(6), bytes(16), Signer(bytes(32)).peer, "/ip4/10.0.0.9/tcp/4001", bytes(64))
_PEER = Signer(sha256(b"a peer")).peer
CONDUIT_WORDS: dict[object, list[object]] = {
    conduitwire.FromPeer: [conduitwire.Reserve(), conduitwire.Ask(7, _PEER), conduitwire.Beat(7)],
    conduitwire.FromConduit: [
        conduitwire.Reserved("no room"),
        conduitwire.Granted(7, bytes(32)),
        conduitwire.Declined(7, "gone"),
        conduitwire.Offered(_PEER, bytes(32)),
        conduitwire.BeatAnswer(7),
    ],
}
JOIN_WORDS: dict[object, list[object]] = {
    RootShown: [RootShown(bytes(300))],
    JoinRequest: [REQUEST],
    Admission: [Admission("", b"certificate", NETWORK, (_PEER,), "cell"), Admission("used")],
}


def door_words() -> list[tuple[Any, list[Seed]]]:
    """Return every kind that is said at a door, or to or by a libp2p child, with frames of it."""
    words = {**EXAMPLES, **CONDUIT_WORDS, **JOIN_WORDS}
    return [(kind, [Seed(encode(value)) for value in values]) for kind, values in words.items()]  # type: ignore[arg-type]


def _key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(sha256(name.encode()))


def _signer(name: str) -> Signer:
    return Signer(sha256(name.encode()))


def _certificate(root: str, name: str, role: str = "machine", network: str = NETWORK) -> bytes:
    """Return a certificate (DER) for the key `name`, or the root itself; the same bytes every time."""
    subject = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, root),
        x509.NameAttribute(NameOID.COMMON_NAME, name),
    ]
    is_root = root == name
    public = Ed25519PublicKey.from_public_bytes(public_key_of(_signer(name).peer))
    issuer = [subject[0], x509.NameAttribute(NameOID.COMMON_NAME, root)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(x509.Name(issuer))
        .public_key(public)
        .serial_number(int.from_bytes(sha256(name.encode())[:8], "big") >> 1 or 1)
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=0 if is_root else None), critical=True)
    )
    if not is_root:
        uri = x509.UniformResourceIdentifier(identity_uri(network, role, name))
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    return builder.sign(_key(root), None).public_bytes(Encoding.DER)


class _Channel:
    """A stream to `peer` that takes everything."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.closing = False

    def write(self, data: bytes) -> None: ...

    def abort(self) -> None:
        self.closing = True

    def close(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...


class Doors:
    """Knocks at all doors with what was given out, mutated."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._loop = asyncio.new_event_loop()
        self._root = read_root(_certificate("works", "works"))
        other = read_root(_certificate("others", "others"))
        self._good = [_certificate("works", name) for name in ("m1", "m2")]
        bad = [
            _certificate("others", "m3"),
            _certificate("works", "m4", "emperor"),
            _certificate("works", "m5", network="elsewhere"),
            other.der,
        ]
        self._certificates = [Raw(der) for der in (*self._good, *bad)]
        self._roots = [Raw(self._root.der), Raw(other.der), Raw(self._good[0])]
        self._known_roots = (self._root.der, other.der)
        self._prover, self._verifier = _signer("m1"), _signer("m2")
        proof = make_proof(self._prover, self._good[0], NETWORK, BINDING, self._verifier.peer)
        self._proof = Seed(encode(proof))
        self._identity = SimpleNamespace(
            peer=self._verifier.peer,
            signer=self._verifier,
            network=NETWORK,
            certificate_der=self._good[1],
            trust=TrustSet(NETWORK, (self._root,)),
        )
        self._codes = [Raw(write_code(CODE).encode())]
        signature = _signer("works").sign(
            NEXT_ROOT_DOMAIN, next_root_terms(NETWORK, self._root.fingerprint, other.der)
        )
        self._following = Seed(encode(RootFollows(other.der, signature)))
        self._next_root = other.der
        self._asking = Seed(encode(CertificateRequest(self._prover.peer, bytes(64))))
        self._request = Seed(encode(REQUEST))
        self._targets: tuple[Callable[[], bytes], ...] = (
            self._judge_certificate,
            self._judge_root,
            self._judge_proof,
            self._judge_code,
            self._judge_next_root,
            self._judge_request,
            self._converse,
            self._knock,
        )

    def close(self) -> None:
        """End the loop on which conversations are held."""
        self._loop.close()

    def run(self) -> bytes:
        """Try one mutated thing at its door; return it. Broken if something false is let in."""
        return self._targets[int(self._rng.random() * len(self._targets))]()

    def _wounded(self, raws: list[Raw]) -> bytes:
        rng = self._rng
        one, other = (raws[int(rng.random() * len(raws))] for _ in range(2))
        if rng.random() < 0.05:
            return one.frame
        return mutate_bytes(rng, one, other)  # type: ignore[arg-type]

    def _odd(self, seed: Seed) -> bytes:
        rng = self._rng
        if rng.random() < 0.05:
            return seed.frame
        return (mutate_bytes if rng.random() < 0.5 else mutate_value)(rng, seed, seed)

    # --- what is judged by itself ---------------------------------------------------------------

    def _judge_certificate(self) -> bytes:
        der = self._wounded(self._certificates)
        network_of(der)
        try:
            check_certificate(der, (self._root,), NETWORK, NOW_MS)
        except NotProven:
            return der
        if der not in self._good:
            raise Broken("a certificate that nobody has issued is believed")
        return der

    def _judge_root(self) -> bytes:
        der = self._wounded(self._roots)
        try:
            root = read_root(der)
        except DecodeError:
            return der
        root_key(root)
        if der not in self._known_roots:
            raise Broken("a root that has not signed itself is believed")
        return der

    def _judge_proof(self) -> bytes:
        frame = self._odd(self._proof)
        try:
            proof = decode(MembershipProof, frame)
            check_proof(
                proof,
                roots=(self._root,),
                network=NETWORK,
                binding=BINDING,
                prover=self._prover.peer,
                verifier=self._verifier.peer,
                now_ms=NOW_MS,
            )
        except (DecodeError, NotProven):
            return frame
        if frame != self._proof.frame:
            raise Broken("a proof that its prover has not made is believed")
        return frame

    def _judge_code(self) -> bytes:
        word = self._wounded(self._codes)
        try:
            found = read_code(word.decode("utf-8", errors="replace"))
        except LocalError:
            return word
        if found != CODE:
            raise Broken("a code that was not given out is read")
        return word

    def _judge_next_root(self) -> bytes:
        frame = self._odd(self._following)
        try:
            found = decode(RootFollows, frame)
        except DecodeError:
            return frame
        terms = next_root_terms(NETWORK, self._root.fingerprint, found.root)
        held = verify(root_key(self._root), NEXT_ROOT_DOMAIN, terms, found.signature)
        if held and found.root != self._next_root:
            raise Broken("a next root for which nobody vouches is believed")
        return frame

    def _judge_request(self) -> bytes:
        frame = self._odd(self._asking)
        try:
            request = decode(CertificateRequest, frame)
        except DecodeError:
            return frame
        me = self._verifier.peer
        if not request_problem(request, NETWORK, self._prover.peer, me) and request.key != self._prover.peer:
            raise Broken("a key that has not signed is certified")
        return frame

    # --- conversations --------------------------------------------------------------------------

    def _converse(self) -> bytes:
        """Speak to the door of the libp2p road; as its nonce is random, what was said is not returned."""
        return self._loop.run_until_complete(self._at_the_proof_door())

    async def _at_the_proof_door(self) -> bytes:
        rng, counters, admitted = self._rng, dict[str, int](), list[PeerIdentity]()

        def admit(identity: PeerIdentity, protocol: str) -> None:
            admitted.append(identity)

        door = ProofDoor(self._identity, counters, PROTOCOL, False, admit, 60_000)  # type: ignore[arg-type]
        door.connection_made(_Channel(self._prover.peer))  # type: ignore[arg-type]
        nonce = sha256(b"%d" % int(rng.random() * 2**30))
        hello = encode(ChannelHello(nonce))
        is_honest = rng.random() < 0.7
        first = hello if is_honest else self._odd(Seed(hello))
        self._say(door, first)
        binding = channel_binding(PROTOCOL, self._prover.peer, self._verifier.peer, nonce, door._nonce)
        proof = encode(make_proof(self._prover, self._good[0], NETWORK, binding, self._verifier.peer))
        said = self._odd(Seed(proof))
        self._say(door, said)
        door.connection_lost(None)
        if admitted and (first != hello or said != proof):
            raise Broken("somebody is let in without the proof")
        return b""

    def _knock(self) -> bytes:
        return self._loop.run_until_complete(self._at_the_join_door())

    async def _at_the_join_door(self) -> bytes:
        asked: list[JoinRequest] = []

        async def answer(request: JoinRequest, _: bytes) -> Admission:
            asked.append(request)
            return Admission("unknown")

        guest = _Guest(RootShown(self._root.der), bytes(32), answer, lambda: None, lambda _: None)
        guest.connection_made(_Channel(self._prover.peer))  # type: ignore[arg-type]
        frame = self._odd(self._request)
        self._say(guest, frame)
        if self._rng.random() < 0.2:
            self._say(guest, frame)
        await asyncio.sleep(0)
        guest.connection_lost(None)
        if any(encode(one) != frame for one in asked):
            raise Broken("a request is taken for another one")
        return frame

    def _say(self, to: ProofDoor | _Guest, body: bytes) -> None:
        """Send a frame in pieces, with a false length now and then."""
        rng = self._rng
        length = len(body) if rng.random() < 0.95 else int(rng.random() * 2**32)
        view = memoryview(header(length) + body)
        while view:
            piece = max(1, int(rng.random() * len(view))) if rng.random() < 0.5 else len(view)
            space = to.get_buffer(piece)
            size = min(piece, len(space))
            space[:size] = view[:size]
            to.buffer_updated(size)
            view = view[size:]

"""Keeps a peer's certificate from lapsing: asks its organisation's registrar for a newer one in time [S3.6].

It asks over a link, which has proved both sides, so that it works through conduits and over every transport.
The newer certificate is used for new connections and shown on those that stand; none is lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine

from edgepool.core.machine import Certify, Event, Submitted
from edgepool.errors import DecodeError, EdgepoolError, LocalError, Refused, RemoteError, Unavailable
from edgepool.model.certifying import (
    NEXT_ROOT_DOMAIN,
    CertificateAnswer,
    CertificateRequest,
    CertificateShown,
    Certifying,
    RootFollows,
    next_root_terms,
    request_for,
)
from edgepool.model.credential import NotProven, read_root, root_key
from edgepool.model.crypto import Signer, verify
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId
from edgepool.model.trust import RevokePeer
from edgepool.peer.lifeview import CertificateStatus, days_left
from edgepool.runtime.ports import Clock
from edgepool.transport.identity import Identity

RENEW_AT = 2 / 3
"""The part of a certificate's validity after which a newer one is asked for."""
JITTER = 0.05
"""The part of the validity by which it may be earlier, so that a plant does not ask all at once."""
FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 3600.0
ANSWER_TIMEOUT_S = 15.0
SHOWN_EVERY_MS = 1_000
"""One peer is not believed a newer certificate more often: each costs a signature check."""
NO_REGISTRAR = (
    "this coordinator issues none: set 'folder' in the table [authority] of its settings to the authority's "
    "folder, and restart it"
)

OUTDATED = (
    "the registrar issues with the root before its organisation's newest: have the next authority handed to "
    "it ('edgepool org hand-over' at the one that has it)"
)

_log = logging.getLogger(__name__)

Serve = Callable[[PeerIdentity, CertificateRequest], Awaitable[CertificateAnswer]]
"""Answers a member's request; never raises."""


EndFormer = Callable[[PeerId, RevokePeer], Coroutine[None, None, None]]


async def _end_nothing(peer: PeerId, revocation: RevokePeer) -> None:
    pass


class Certifier:
    """The certificates of one peer. `serve` answers others, if the peer is a registrar.

    `end_former` sees to the revocation of a linked peer's former key.
    """

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        post: Callable[[Event], None],
        linked: dict[PeerId, PeerIdentity],
    ) -> None:
        self.serve: Serve | None = None
        self.end_former: EndFormer = _end_nothing
        self.keeps_root = False
        """Whether this peer, a registrar, is to be the last to renew to its organisation's next root."""
        self.problem = ""
        """Why the last attempt to renew has failed, '' if it has not."""
        self._identity = identity
        self._clock = clock
        self._post = post
        self._linked = linked
        self._wake = asyncio.Event()
        self._early = random.uniform(0, JITTER)
        self._waiting: dict[tuple[PeerId, PeerId], asyncio.Future[CertificateAnswer]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._shown_ms: dict[PeerId, int] = {}

    # --- renewal ----------------------------------------------------------------------------

    @property
    def own_roots(self) -> tuple[bytes, ...]:
        """The fingerprints of the roots of this peer's own organisation, the present one first."""
        return self._identity.own_roots

    @property
    def due_ms(self) -> int:
        """When a newer certificate is asked for, in ms of wall time; 0 if that is at once."""
        own = self._identity.certificate
        if self._newest_root(own) != own.root and not self.keeps_root:
            return 0
        return self._aged_ms

    @property
    def _aged_ms(self) -> int:
        """When the certificate is old enough for a newer one, of whichever root."""
        start_ms, end_ms = self._identity.fresh_since_ms, self._identity.certificate.valid_until_ms
        return int(start_ms + (end_ms - start_ms) * (RENEW_AT - self._early))

    def _newest_root(self, of: PeerIdentity) -> bytes:
        """Return the fingerprint of the youngest root of an organisation that is trusted."""
        return self._identity.trust.newest_root(of.organisation, of.root)

    def status(self) -> CertificateStatus:
        """Return how long this peer's certificate lasts, and whether it is being renewed in time."""
        until_ms = self._identity.valid_until_ms
        return CertificateStatus(
            issued_ms=self._identity.fresh_since_ms,
            valid_until_ms=until_ms,
            days_left=days_left(until_ms, self._clock.now().wall_ms),
            due_ms=self.due_ms,
            problem=self.problem,
        )

    async def run(self) -> None:
        """Renew whenever it is due, with growing pauses between attempts that fail; never ends."""
        retry_s = FIRST_RETRY_S
        while True:
            self._wake.clear()
            left_s = (self.due_ms - self._clock.now().wall_ms) / 1000
            if left_s <= 0:
                try:
                    await self.renew()
                    retry_s = FIRST_RETRY_S
                    continue
                except EdgepoolError as error:
                    if str(error) != self.problem:
                        # There is time: it becomes somebody's business when it is long overdue.
                        late = self.status().is_overdue(self._clock.now().wall_ms)
                        level = logging.WARNING if late else logging.INFO
                        _log.log(level, "the certificate was not renewed: %s", error)
                    self.problem = str(error)
                left_s = retry_s * random.uniform(0.5, 1.0)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)
            try:
                async with asyncio.timeout(min(left_s, LONGEST_RETRY_S)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def look_again(self) -> None:
        """Other roots are trusted, or a registrar is linked: see at once whether something is due."""
        self._wake.set()

    async def renew(self) -> PeerIdentity:
        """Get a newer certificate now and use it; return what it says.

        Raises Unavailable (no registrar), Refused (it says no), RemoteError (it has answered nonsense).
        """
        certificate = await self.ask(self._identity.signer)
        before = self._identity.certificate
        if self._is_late(certificate) and self._clock.now().wall_ms < self._aged_ms:
            raise Unavailable(OUTDATED)
        await self._identity.take(certificate)
        now = self._identity.certificate
        self.problem = ""
        self._early = random.uniform(0, JITTER)
        if (now.root, now.valid_until_ms) == (before.root, before.valid_until_ms):
            raise Unavailable("the registrar has no certificate that lasts longer: see its root")
        self._say(tuple(self._linked), CertificateShown(certificate))
        return now

    async def ask(self, signer: Signer) -> bytes:
        """Return a certificate (DER) for the key of `signer`: this peer's own, or its successor."""
        own = self._identity.certificate
        if self.serve is not None:
            request = request_for(signer, self._identity.network, own.peer, own.peer)
            return self._taken(own.peer, signer.peer, await self.serve(own, request))
        registrars = [
            one
            for one in self._linked.values()
            if one.role == "coordinator" and one.organisation == own.organisation
        ]
        failure: EdgepoolError = Unavailable(
            f"no coordinator of '{own.organisation}' is linked that could issue a certificate"
        )
        late = b""
        for registrar in random.sample(registrars, len(registrars)):
            try:
                found = await self._ask(registrar.peer, signer)
            except EdgepoolError as error:
                failure = error
                continue
            if not self._is_late(found):
                return found
            late = found  # better than none, if there is nobody else
        if late:
            return late
        raise failure

    def is_superseded(self, root: bytes) -> bool:
        """Say whether a certificate of `root` is not wanted yet: another of its organisation follows it.

        One is better than none when the present one has become old.
        """
        newest = self._identity.trust.newest_root(self._identity.certificate.organisation, root)
        is_fresh = self._clock.now().wall_ms < self._aged_ms
        return newest != root and not self.keeps_root and is_fresh

    def _is_late(self, certificate: bytes) -> bool:
        """Say whether a certificate is of a root that another of its organisation has followed."""
        found = self._identity.trust.check(certificate)
        return not self.keeps_root and found.root != self._newest_root(found)

    async def _ask(self, registrar: PeerId, signer: Signer) -> bytes:
        key = (registrar, signer.peer)
        if key in self._waiting:
            raise LocalError("a certificate is asked for already")
        answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            request = request_for(signer, self._identity.network, self._identity.peer, registrar)
            self._say((registrar,), request)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return self._taken(registrar, signer.peer, await answer)
        except TimeoutError:
            raise Unavailable(f"registrar {registrar} has not answered in {ANSWER_TIMEOUT_S:g} s") from None
        finally:
            del self._waiting[key]

    def _taken(self, registrar: PeerId, key: PeerId, answer: CertificateAnswer) -> bytes:
        """Return the certificate of an answer if it is for this peer under `key`, as it is named now."""
        if not answer.certificate:
            raise Refused(f"the registrar gives no certificate: {answer.refusal or 'it does not say why'}")
        own = self._identity.certificate
        try:
            found = self._identity.trust.check(answer.certificate)
        except NotProven as error:
            raise RemoteError(registrar, f"what it gave proves nobody: {error.reason}") from None
        same = ("name", "role", "machine_type", "organisation")
        if found.peer != key or any(getattr(found, what) != getattr(own, what) for what in same):
            raise RemoteError(registrar, "it gave a certificate for somebody else")
        return answer.certificate

    # --- what linked peers say ----------------------------------------------------------------

    def said(self, peer: PeerId, message: Certifying) -> None:
        """Take what a linked peer has said about certificates."""
        identity = self._linked.get(peer)
        if identity is None:
            return
        match message:
            case CertificateAnswer(key):
                waiting = self._waiting.get((peer, PeerId(key)))
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case CertificateShown(certificate):
                self._see(identity, certificate)
            case CertificateRequest():
                self._spawn(self._answer(identity, message))
            case RootFollows():
                self._spawn(self._follow(identity, message))
            case RevokePeer():
                self._spawn(self.end_former(peer, message))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name="edgepool certify")
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def show_root(self, peers: tuple[PeerId, ...], message: RootFollows) -> None:
        """Tell linked members of the next root of their organisation."""
        self._say(peers, message)

    def show_revocation(self, peers: tuple[PeerId, ...], message: RevokePeer) -> None:
        """Ask linked members to have a former key of this peer's revoked."""
        self._say(peers, message)

    async def _follow(self, identity: PeerIdentity, message: RootFollows) -> None:
        """Trust a next root of this peer's organisation for which the key of the present one vouches."""
        own, trust = self._identity.certificate, self._identity.trust
        if identity.organisation != own.organisation or trust.is_root(message.root):
            return
        present = next((root for root in trust.roots if root.fingerprint == own.root), None)
        terms = next_root_terms(self._identity.network, own.root, message.root)
        if present is None or not verify(root_key(present), NEXT_ROOT_DOMAIN, terms, message.signature):
            _log.warning("%s showed a next root for which nobody vouches", identity.name)
            return
        try:
            root = read_root(message.root)
            if root.organisation == own.organisation and root.valid_from_ms > present.valid_from_ms:
                await self._identity.follow(root)
                self.look_again()
        except (DecodeError, LocalError) as error:
            _log.warning("the next root that %s showed was not taken: %s", identity.name, error)

    def _say(self, peers: tuple[PeerId, ...], message: Certifying) -> None:
        self._post(Submitted(0, Certify(peers, message)))

    async def _answer(self, identity: PeerIdentity, request: CertificateRequest) -> None:
        answer = CertificateAnswer(request.key, b"", NO_REGISTRAR)
        if self.serve is not None:
            answer = await self.serve(identity, request)
        self._say((identity.peer,), answer)

    def _see(self, identity: PeerIdentity, certificate: bytes) -> None:
        """Believe a newer certificate of a linked peer, if it says the same of it."""
        now_ms = self._clock.now().monotonic_ms
        if now_ms < self._shown_ms.get(identity.peer, -SHOWN_EVERY_MS) + SHOWN_EVERY_MS:
            return
        self._shown_ms = {peer: at for peer, at in self._shown_ms.items() if peer in self._linked}
        self._shown_ms[identity.peer] = now_ms
        try:
            self._linked[identity.peer] = self._identity.trust.renewed(certificate, identity)
        except NotProven as error:
            _log.info("%s showed a certificate that is worth nothing: %s", identity.name, error.reason)

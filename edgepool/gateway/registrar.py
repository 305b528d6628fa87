"""A coordinator that lets gateways join: it makes codes, issues certificates, and admits to pools [S3.6].

The authority's key is used on this machine only. A certificate is written down as given out, durably,
before it leaves; the same key may then fetch it again until the invitation expires.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edgepool.config import ROLES
from edgepool.errors import ConfigError, DecodeError, EdgepoolError, LocalError, Refused, StorageError
from edgepool.gateway.authorities import checked_authority
from edgepool.gateway.invitations import INVITATIONS_FILE, Invitation, Invitations
from edgepool.gateway.invitationview import InvitationView, NewInvitation
from edgepool.gateway.rotating import Rotation, keep_rotating
from edgepool.gateway.views import choose_chain
from edgepool.model.certifying import CertificateAnswer, CertificateRequest, request_problem
from edgepool.model.crypto import verify
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId, parse_address
from edgepool.peer.certifier import OUTDATED
from edgepool.runtime.clock import SystemClock
from edgepool.transport.certificates import issue_certificate
from edgepool.transport.dialler import directly
from edgepool.transport.joincode import JoinCode, fingerprint_of, write_code
from edgepool.transport.joindoor import (
    BARRED,
    FAILED,
    SIGNING_DOMAIN,
    UNKNOWN,
    Admission,
    JoinDoor,
    JoinRequest,
    request_statement,
)

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

LOOK_EVERY_S = 0.5
RENEW_EVERY_S = 2.0
"""One member is certified no more often; each time costs a thread and the authority's key."""
MAX_CERTIFIED = 1024
FIRST_PAUSE_S = 2.0
MAX_PAUSE_S = 60.0
PROPOSE_TIMEOUT_MS = 15_000
MIN_VALID_MS = 1_000
MAX_VALID_MS = 30 * 24 * 3_600_000
REASON = "has joined by invitation"
NO_REGISTRAR = (
    "this peer invites nobody: set 'folder' in the table [authority] of its settings to the authority's "
    "folder (a coordinator only), and restart it"
)

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_registrar(
    peer: Peer, report: Callable[[str], None] | None = None
) -> AsyncIterator[Registrar | None]:
    """Let gateways join as long as this is entered; gives None if `peer` is no registrar.

    ConfigError if the authority of the settings is not the one that `peer` trusts, or cannot be used.
    `report` is given a sentence for each gateway that joins (by default they are logged).
    """
    if peer.join_door is None:
        yield None
        return
    registrar = await asyncio.to_thread(Registrar, peer, peer.join_door, report or _log.info)
    admitting = asyncio.create_task(registrar.admit_joined(), name="edgepool registrar")
    registrar.open()
    try:
        async with keep_rotating(registrar):
            yield registrar
    finally:
        peer.certifier.serve = None
        admitting.cancel()
        await asyncio.gather(admitting, return_exceptions=True)
        await peer.join_door.close()


class Registrar:
    """The registrar of `peer`; use `open_registrar`."""

    def __init__(self, peer: Peer, door: JoinDoor, say: Callable[[str], None]) -> None:
        settings = peer.settings
        self._peer = peer
        self._door = door
        self._say = say
        self._clock = SystemClock()
        self.issuing = checked_authority(peer, settings.authority.folder)
        """With which members' certificates are issued."""
        self.admitting = self.issuing
        """With which newcomers are let in: of the root that this peer's own certificate has."""
        self._invitations = Invitations(settings.path(INVITATIONS_FILE))
        self._changing = asyncio.Lock()
        self._desks: dict[str, _Desk] = {}
        self._certified_s: dict[PeerId, float] = {}
        self.rotation = Rotation(peer, self, say)
        with suppress(ConfigError):  # retired meanwhile: this peer renews, and then lets others in
            self.admitting = checked_authority(peer, self.rotation.admits_with() or self.issuing.setting)

    def open(self) -> None:
        """Let strangers with a code knock at the peer's port."""
        self._peer.rotation.hindrance = self.rotation.hindrance
        self._door.open(self.admitting.root.der, self.answer)
        self._peer.certifier.serve = self.certify

    async def issue_with(self, setting: str) -> None:
        """Issue members' certificates with the authority that the settings name now, `setting`."""
        self.issuing = await asyncio.to_thread(checked_authority, self._peer, setting)

    async def admit_with(self, setting: str) -> list[str]:
        """Let newcomers in with the authority that the settings name `setting`; return whose codes are void.

        Those were made for the root before; their invitations are revoked, so that new ones can be made.
        """
        async with self._changing:
            self.admitting = await asyncio.to_thread(checked_authority, self._peer, setting)
            self._door.open(self.admitting.root.der, self.answer)
            now_ms = self._now_ms()
            void = [one for one in self._invitations.all() if one.state(now_ms) == "open"]
            for one in void:
                await asyncio.to_thread(self._invitations.revoke, one.id)
        return [one.name for one in void]

    def joined(self) -> dict[str, str]:
        """Return the names, by peer id, of those whose first certificate, got by invitation, may be valid."""
        since_ms = self._now_ms() - 1000 * self._peer.settings.authority.certificate_valid_s
        used = [one for one in self._invitations.all() if one.peer]
        return {one.peer: one.name for one in used if one.expires_ms > since_ms}

    async def invite(
        self, *, name: str, role: str = "machine", machine_type: str = "", pool: str = "", valid_ms: int
    ) -> NewInvitation:
        """Make a code for one gateway; LocalError says what is unfit."""
        if role not in ROLES:
            raise LocalError(f"'{role}' is not a role: use one of {', '.join(ROLES)}")
        for what, text, least in (("name", name, 1), ("machine type", machine_type, 0)):
            if not least <= len(text) <= 64 or not text.isprintable() or text != text.strip():
                raise LocalError(
                    f"the {what} '{text[:80]}' is not {least} to 64 printable characters without outer spaces"
                )
        if not MIN_VALID_MS <= valid_ms <= MAX_VALID_MS:
            raise LocalError("an invitation is valid for one second to 30 days")
        listen = self._peer.settings.listen
        if not listen or parse_address(listen)[1] == 0:
            raise LocalError(
                "this peer listens on port 0, which is not the same for ever: write a fixed port behind "
                "'listen' in its settings and restart it, so that those who join find it again"
            )
        chain = ""
        if pool:
            genesis = choose_chain(pool, self._peer.pools)
            chain, pool = genesis.chain, genesis.invitation.name
        async with self._changing:
            new, secret = await asyncio.to_thread(
                self._invitations.add,
                role=role,
                name=name,
                machine_type=machine_type,
                pool=pool,
                chain=chain,
                now_ms=self._now_ms(),
                valid_ms=valid_ms,
            )
        addresses = tuple(directly(self._peer.addresses))
        code = JoinCode(addresses, fingerprint_of(self.admitting.root.der), bytes.fromhex(new.id), secret)
        return NewInvitation(code=write_code(code), invitation=self._view(new))

    def invitations(self) -> list[InvitationView]:
        """Return what is known of all invitations, the oldest first."""
        return [self._view(one) for one in self._invitations.all()]

    async def revoke(self, invitation: str) -> InvitationView:
        """Make a code worthless; LocalError if there is none with this id, or it was used."""
        async with self._changing:
            return self._view(await asyncio.to_thread(self._invitations.revoke, invitation))

    async def answer(self, request: JoinRequest, leaf_hash: bytes) -> Admission:
        """Return a certificate for who asks with a good code, or why there is none."""
        statement = request_statement(fingerprint_of(self.admitting.root.der), leaf_hash, request)
        if not verify(request.peer, SIGNING_DOMAIN, statement, request.signature):
            return Admission(UNKNOWN)
        if request.peer in self._peer.trusting.revoked:
            return Admission(BARRED)
        try:
            if request.listen:  # with '' it accepts nothing from outside
                parse_address(request.listen)
        except DecodeError:
            return Admission(FAILED)
        async with self._changing:
            found = self._invitations.get(request.invitation.hex())
            if found is None:
                return Admission(UNKNOWN)
            refusal = found.refusal(request.secret, request.peer, self._now_ms())
            if refusal:
                return Admission(refusal)
            if not found.peer:
                try:
                    found = await asyncio.to_thread(self._let_in, found, request)
                except (LocalError, StorageError) as error:
                    _log.error("no certificate for '%s', who has a code: %s", found.name, error)
                    return Admission(FAILED)
                self._say(f"{found.name} has joined as {found.role}, peer {found.peer}")
        named = (self._peer.node.heirs.heir(PeerId(peer)) for peer in self._peer.settings.coordinators)
        others = tuple(dict.fromkeys(named))[:16]
        network = self._peer.settings.network
        return Admission("", found.certificate.encode(), network, others, found.pool)

    def _let_in(self, invitation: Invitation, request: JoinRequest) -> Invitation:
        certificate = issue_certificate(
            self.admitting.folder,
            request.peer,
            name=invitation.name,
            network=self._peer.settings.network,
            role=invitation.role,
            machine_type=invitation.machine_type,
            valid_s=self._peer.settings.authority.certificate_valid_s,
        )
        return self._invitations.use(invitation.id, request.peer, request.listen, certificate.decode())

    # --- members ----------------------------------------------------------------------------------

    async def certify(self, member: PeerIdentity, request: CertificateRequest) -> CertificateAnswer:
        """Return a newer certificate for a linked member of this organisation, or one for its new key."""
        try:
            certificate = await self._certified(member, request)
        except (LocalError, Refused) as error:
            if isinstance(error, LocalError):
                _log.error("no certificate for '%s', who asks for one: %s", member.name, error)
            reason = str(error) if isinstance(error, Refused) else "the registrar failed: its log says why"
            return CertificateAnswer(request.key, b"", reason[:256])
        return CertificateAnswer(request.key, certificate, "")

    async def _certified(self, member: PeerIdentity, request: CertificateRequest) -> bytes:
        peer, settings = self._peer, self._peer.settings
        # First what costs nothing: a member may ask as often as it likes.
        now_s = asyncio.get_running_loop().time()
        if now_s < self._certified_s.get(member.peer, -RENEW_EVERY_S) + RENEW_EVERY_S:
            raise Refused(f"it certifies one member every {RENEW_EVERY_S:g} s only")
        if len(self._certified_s) >= MAX_CERTIFIED:
            self._certified_s = {
                one: at for one, at in self._certified_s.items() if now_s < at + RENEW_EVERY_S
            }
        self._certified_s[member.peer] = now_s
        problem = request_problem(request, settings.network, member.peer, peer.id)
        if problem:
            raise Refused(problem)
        if member.root not in peer.certifier.own_roots:
            raise Refused("it certifies members of its own organisation only")
        if member.peer in peer.trusting.revoked or peer.trusting.is_accused(member.peer):
            raise Refused("its revocation is asked for")  # nor does a thief flee into another key
        await self.rotation.issue_with_next()
        if member.peer == peer.id and peer.certifier.is_superseded(self.issuing.root.fingerprint):
            raise Refused(OUTDATED)
        is_late = member.peer == peer.id and peer.certifier.keeps_root
        authority = self.admitting if is_late else self.issuing
        async with self._changing:
            pem = await asyncio.to_thread(
                issue_certificate,
                authority.folder,
                PeerId(request.key),
                name=member.name,
                network=settings.network,
                role=member.role,
                machine_type=member.machine_type,
                valid_s=settings.authority.certificate_valid_s,
            )
        self._say(
            f"{member.name} has a new certificate{'' if request.key == member.peer else ' for a new key'}"
        )
        return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)

    async def admit_joined(self) -> None:
        """Propose those who have joined for the pools they were invited to, once linked; never ends."""
        while True:
            now_s = asyncio.get_running_loop().time()
            waiting = [one for one in self._invitations.all() if one.awaits_admission]
            await asyncio.gather(*(self._look(one, now_s) for one in waiting))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self, invitation: Invitation, now_s: float) -> None:
        """Do the next thing for one newcomer: nothing, propose it, or note that it is a member."""
        desk = self._desks.setdefault(invitation.id, _Desk())
        pool = next((one for one in self._peer.pools if one.chain == invitation.chain), None)
        if pool is None:
            return
        state = self._peer.chain_state(pool.chain)
        if any(member.peer == invitation.peer for member in state.next_roster):
            async with self._changing:
                try:
                    await asyncio.to_thread(self._invitations.admit, invitation.id)
                except StorageError as error:
                    _log.error("%s", error)
                    return
            self._desks.pop(invitation.id, None)
            self._say(f"{invitation.name} is admitted to pool '{invitation.pool}'")
            return
        if now_s < desk.again_s or not any(one.peer == invitation.peer for one in self._peer.connected()):
            return
        if any(
            self._peer.id in authors
            and change.incoming is not None
            and change.incoming.peer == invitation.peer
            for change, authors in state.open_changes()
        ):
            return  # it is for the members now
        member = self._peer.member(PeerId(invitation.peer))
        if member is None:
            return
        desk.again_s = now_s + min(FIRST_PAUSE_S * 2**desk.tries, MAX_PAUSE_S)
        desk.tries = min(desk.tries + 1, 10)
        try:
            await self._peer.change_members(
                pool.chain, admit=member, reason=REASON, timeout_ms=PROPOSE_TIMEOUT_MS
            )
        except EdgepoolError as error:
            if str(error) != desk.told:
                desk.told = str(error)
                self._say(f"{invitation.name} cannot be admitted to pool '{invitation.pool}' yet: {error}")

    def _view(self, one: Invitation) -> InvitationView:
        return InvitationView(
            id=one.id,
            state=one.state(self._now_ms()),
            role=one.role,
            name=one.name,
            machine_type=one.machine_type,
            pool=one.pool,
            created_ms=one.created_ms,
            expires_ms=one.expires_ms,
            peer=one.peer,
            listen=one.listen,
            admitted=one.admitted,
        )

    def _now_ms(self) -> int:
        return self._clock.now().wall_ms


@dataclass(slots=True)
class _Desk:
    """What was tried for one newcomer."""

    tries: int = 0
    again_s: float = 0.0
    told: str = ""

"""What the local API answers about trust: roots, revocations, and what is open about them [S3.6]."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Meta

from edgepool.errors import DecodeError, LocalError
from edgepool.gateway.routes import PeerRoutes
from edgepool.gateway.views import choose_chain
from edgepool.model.credential import read_root
from edgepool.model.crypto import sha256
from edgepool.model.trust import AdmitRoot, RetireRoot, RevokePeer, TrustChange, TrustStep
from edgepool.peer.trust import trust_change_id


class TrustBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change: `what` is a root in PEM, a root's fingerprint or organisation, or a peer."""

    step: Literal["admit", "retire", "revoke"]
    what: Annotated[str, Meta(min_length=1, max_length=16 * 1024)]
    from_ms: Annotated[int, Meta(ge=0, le=2**53)] = 0
    reason: Annotated[str, Meta(max_length=256)] = ""
    pool: Annotated[str, Meta(max_length=64)] = ""


class ApproveTrustBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which change to approve: the beginning of its id, '' for the only one."""

    change: Annotated[str, Meta(max_length=64)] = ""


class TrustRoutes(PeerRoutes):
    """The routes under /v1/trust."""

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to the API."""
        return [
            web.get("/v1/trust", self._show),
            web.post("/v1/trust", self._change),
            web.post("/v1/trust/approve", self._approve),
            web.get("/v1/trust/hindrance/{who}", self._hindrance),
        ]

    async def _show(self, _: web.Request) -> web.StreamResponse:
        return self._answer(self._peer.trust())

    async def _change(self, request: web.Request) -> web.StreamResponse:
        body: TrustBody = await self._read(request, TrustBody)
        chain = choose_chain(body.pool, self._peer.pools).chain if body.pool else None
        step = self._step(body)
        ref = await self._peer.trusting.change(step, reason=body.reason, chain=chain)
        return self._answer(
            {
                "id": trust_change_id(TrustChange(step, body.reason)),
                "subject": subject_of(step),
                "chain": ref.chain,
                "height": ref.height,
                "index": ref.index,
            }
        )

    async def _approve(self, request: web.Request) -> web.StreamResponse:
        body: ApproveTrustBody = await self._read(request, ApproveTrustBody)
        ref = await self._peer.trusting.approve(body.change)
        return self._answer({"chain": ref.chain, "height": ref.height, "index": ref.index})

    async def _hindrance(self, request: web.Request) -> web.StreamResponse:
        peer = self._peer.trusting.meant(request.match_info["who"][:128])
        return self._answer({"hindrance": self._peer.trusting.hindrance(peer)})

    def _step(self, body: TrustBody) -> TrustStep:
        match body.step:
            case "revoke":
                return RevokePeer(self._peer.trusting.meant(body.what))
            case "retire":
                return RetireRoot(self._root(body.what), body.from_ms)
            case "admit":
                try:
                    certificate = x509.load_pem_x509_certificate(body.what.encode())
                    root = read_root(certificate.public_bytes(Encoding.DER))
                except ValueError:
                    raise LocalError("the root is no certificate in PEM") from None
                except DecodeError as error:
                    raise LocalError(f"the root cannot be admitted: {error}") from None
                return AdmitRoot(root.organisation, root.der)

    def _root(self, what: str) -> bytes:
        roots = [one for one in self._peer.trust().roots if not one.retired_ms]
        found = [one for one in roots if one.fingerprint.startswith(what.lower()) or one.organisation == what]
        if len(found) != 1:
            fault = "no root" if not found else f"{len(found)} roots"
            raise LocalError(
                f"'{what[:80]}' is {fault} that could be retired: write the beginning of a fingerprint, "
                "as 'edgepool org list' shows it"
            )
        return bytes.fromhex(found[0].fingerprint)


def subject_of(step: TrustStep) -> str:
    """Return the fingerprint or the peer id that a step is about."""
    match step:
        case RevokePeer(peer):
            return peer
        case RetireRoot(root):
            return root.hex()
        case AdmitRoot(_, der):
            return sha256(der).hex()

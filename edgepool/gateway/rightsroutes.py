"""What the local API answers about policies for data [S2.3]."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from edgepool.errors import LocalError
from edgepool.gateway.routes import PeerRoutes
from edgepool.gateway.views import choose_chain
from edgepool.model.identity import Role
from edgepool.model.policy import (
    MAX_NAMED,
    MAX_NAMED_PEERS,
    MAX_NAMED_POOLS,
    PolicyTerms,
)
from edgepool.model.twin import DataKey

_Word = Annotated[str, Meta(min_length=1, max_length=64)]


class PolicyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy as people write it: members and pools by name or id. `back` takes the standing one back."""

    pattern: Annotated[str, Meta(max_length=4096)]
    members: Annotated[tuple[_Word, ...], Meta(max_length=MAX_NAMED_PEERS)] = ()
    pools: Annotated[tuple[_Word, ...], Meta(max_length=MAX_NAMED_POOLS)] = ()
    organisations: Annotated[tuple[_Word, ...], Meta(max_length=MAX_NAMED)] = ()
    roles: tuple[Role, ...] = ()
    purposes: Annotated[tuple[_Word, ...], Meta(max_length=MAX_NAMED)] = ()
    valid_until_ms: Annotated[int, Meta(ge=0, le=2**53)] = 0
    hidden: bool = False
    back: bool = False
    chain: Annotated[str, Meta(max_length=4096)] = ""


class RightsRoutes(PeerRoutes):
    """The routes under /v1/policies."""

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to the API."""
        return [web.get("/v1/policies", self._show), web.post("/v1/policies", self._set)]

    async def _show(self, request: web.Request) -> web.StreamResponse:
        key = request.query.get("key", "")
        return self._answer(self._peer.rights.policies(DataKey.parse(key) if key else None))

    async def _set(self, request: web.Request) -> web.StreamResponse:
        body: PolicyBody = await self._read(request, PolicyBody)
        pattern = DataKey.parse(body.pattern)
        chain = choose_chain(body.chain, self._peer.pools).chain if body.chain else None
        refs = await self._peer.rights.set_policy(pattern, None if body.back else self._terms(body), chain)
        stands: list[dict[str, Any]] = [
            {"chain": ref.chain, "height": ref.height, "index": ref.index} for ref in refs
        ]
        return self._answer(stands)

    def _terms(self, body: PolicyBody) -> PolicyTerms:
        rights = self._peer.rights
        pools = tuple(choose_chain(one, self._peer.pools).chain for one in body.pools)
        if len(set(body.roles)) < len(body.roles):
            raise LocalError(f"a role stands twice in {', '.join(body.roles)}")
        return PolicyTerms(
            tuple(rights.peer_named(one) for one in body.members),
            pools,
            body.organisations,
            body.roles,
            body.purposes,
            body.valid_until_ms,
            body.hidden,
        )

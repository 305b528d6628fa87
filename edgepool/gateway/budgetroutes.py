"""What the local API answers about a peer's budget for bulk data."""

from __future__ import annotations

import msgspec
from aiohttp import web

from edgepool.config import BudgetSettings
from edgepool.gateway.routes import PeerRoutes


class BudgetBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another budget; none goes back to the settings file."""

    budget: BudgetSettings | None


class BudgetRoutes(PeerRoutes):
    """The routes under /v1/budget."""

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to the API."""
        return [web.get("/v1/budget", self._show), web.post("/v1/budget", self._set)]

    async def _show(self, _: web.Request) -> web.StreamResponse:
        return self._answer(self._peer.budgets.status())

    async def _set(self, request: web.Request) -> web.StreamResponse:
        body: BudgetBody = await self._read(request, BudgetBody)
        return self._answer(await self._peer.budgets.change(body.budget))

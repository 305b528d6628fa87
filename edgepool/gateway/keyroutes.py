"""What the local API answers about the peer's key: how far the change of it is, and that it begin [S3.6]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from edgepool.gateway.routes import Answer

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer


class KeyRoutes:
    """The routes under /v1/key; `answer` is how the API gives JSON."""

    def __init__(self, peer: Peer, answer: Answer) -> None:
        self._peer = peer
        self._answer = answer

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to the API."""
        return [web.get("/v1/key", self._show), web.post("/v1/key/rotate", self._rotate)]

    async def _show(self, _: web.Request) -> web.StreamResponse:
        return self._answer(self._peer.rotation.status())

    async def _rotate(self, _: web.Request) -> web.StreamResponse:
        return self._answer(await self._peer.rotation.begin())

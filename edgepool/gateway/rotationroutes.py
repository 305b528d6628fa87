"""What the local API answers about the rotation of an organisation's root."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from edgepool.gateway.rotationplan import Overlap
from edgepool.gateway.routes import Answer, Read

if TYPE_CHECKING:
    from edgepool.gateway.registrar import Registrar

OVERLAP_S = 7 * 86_400
"""How long both roots are trusted if nobody says otherwise, from when the registrar issues with the next."""


class RotateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is wanted of a rotation: None is what was said before, or seven days; see Rotation.begin."""

    overlap_s: Overlap | None = None
    leave_behind: bool = False


class RotationRoutes:
    """The routes under /v1/trust/rotation; `registrar` gives this peer's, or says that there is none."""

    def __init__(self, registrar: Callable[[], Registrar], read: Read, answer: Answer) -> None:
        self._registrar = registrar
        self._read = read
        self._answer = answer

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to the API."""
        return [web.get("/v1/trust/rotation", self._show), web.post("/v1/trust/rotation", self._begin)]

    async def _show(self, _: web.Request) -> web.StreamResponse:
        return self._answer(self._registrar().rotation.status())

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        body: RotateBody = await self._read(request, RotateBody)
        rotation = self._registrar().rotation
        return self._answer(await rotation.begin(body.overlap_s, OVERLAP_S, body.leave_behind))

"""What the local API answers about the data that a peer keeps: list, pin, evict, scrub."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta

from edgepool.errors import LocalError
from edgepool.gateway.routes import PeerRoutes

_T = TypeVar("_T")
_What = Annotated[str, Meta(max_length=128)]


class PinBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which data to pin or to unpin."""

    what: _What
    pinned: bool


class EvictBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which data to drop, or how many bytes to free: one of the two."""

    what: _What = ""
    free_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 0


class ScrubBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which data to read again, '' for all."""

    what: _What = ""


class DataRoutes(PeerRoutes):
    """The routes under /v1/data."""

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to the API."""
        return [
            web.get("/v1/data", self._list),
            web.post("/v1/data/pin", self._pin),
            web.post("/v1/data/evict", self._evict),
            web.post("/v1/data/scrub", self._scrub),
        ]

    async def _list(self, _: web.Request) -> web.StreamResponse:
        return self._answer(self._peer.storage.stored())

    async def _pin(self, request: web.Request) -> web.StreamResponse:
        body: PinBody = await self._read(request, PinBody)
        return self._answer(await self._peer.storage.pin(body.what, body.pinned))

    async def _evict(self, request: web.Request) -> web.StreamResponse:
        body: EvictBody = await self._read(request, EvictBody)
        if bool(body.what) == bool(body.free_bytes):
            raise LocalError("evict takes either data or a number of bytes to free, one of the two")
        if body.what:
            return self._answer(await self._peer.storage.evict_these(body.what))
        return self._answer(await self._peer.storage.evict(body.free_bytes))

    async def _scrub(self, request: web.Request) -> web.StreamResponse:
        body: ScrubBody = await self._read(request, ScrubBody)
        return self._answer(await self._peer.storage.scrub(body.what))

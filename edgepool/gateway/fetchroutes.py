"""What the local API does to fetch data: lines of progress, then the result."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from edgepool.errors import EdgepoolError
from edgepool.gateway.dataroutes import Answer, Read
from edgepool.gateway.export import copy_out, out_path
from edgepool.gateway.liveroutes import Describe, WriteLine
from edgepool.gateway.views import choose_chain, fetched_view
from edgepool.model.ids import ChainId
from edgepool.model.twin import DataKey
from edgepool.peer.values import FetchProgress

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

PROGRESS_INTERVAL_S = 0.1

_Text = Annotated[str, Meta(max_length=4096)]


class FetchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be fetched, and into which file."""

    key: _Text
    out: _Text
    version: Annotated[int, Meta(ge=0, le=2**31)] = 0
    chain: _Text = ""
    timeout_ms: Annotated[int, Meta(ge=1, le=24 * 3_600_000)] = 60_000
    purpose: Annotated[str, Meta(max_length=64)] = ""


class FetchRoutes:
    """The route /v1/fetch; the rest is how the API takes bodies and gives JSON, lines of it, and errors."""

    def __init__(
        self, peer: Peer, read: Read, answer: Answer, write_line: WriteLine, describe: Describe
    ) -> None:
        self._peer = peer
        self._read = read
        self._answer = answer
        self._write_line = write_line
        self._describe = describe

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to the API."""
        return [web.post("/v1/fetch", self._fetch)]

    async def _fetch(self, request: web.Request) -> web.StreamResponse:
        """Stream `{"done_bytes", "size_bytes", "sources"}` lines and at the end the result (or the error)."""
        body: FetchBody = await self._read(request, FetchBody)
        DataKey.parse(body.key)
        self._chain(body.chain)
        out_path(body.out)
        progress = [FetchProgress(0, 0, 0)]
        task = asyncio.create_task(self._get(body, progress))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        try:
            sent = progress[-1]
            while not task.done():
                await asyncio.wait({task}, timeout=PROGRESS_INTERVAL_S)
                if request.transport is None or request.transport.is_closing():
                    raise ConnectionResetError("the client has gone")
                if progress[-1] != sent and not task.done():
                    sent = progress[-1]
                    await self._write_line(request, response, asdict(sent))
            if not response.prepared:
                return self._answer(await task)
            try:
                last = await task
            except EdgepoolError as error:
                last = self._describe(error)[1]
            await self._write_line(request, response, last)
            await response.write_eof()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return response

    async def _get(self, body: FetchBody, progress: list[FetchProgress]) -> dict[str, Any]:
        def note(now: FetchProgress) -> None:
            progress[-1] = now

        fetched = await self._peer.fetch(
            body.key,
            version=body.version,
            chain=self._chain(body.chain),
            purpose=body.purpose,
            timeout_ms=body.timeout_ms,
            progress=note,
        )
        out = out_path(body.out)
        await asyncio.to_thread(copy_out, fetched.path, out)
        known = {peer: self._peer.member(peer) for peer in (fetched.holder, *fetched.shares)}
        names = {peer: member.name if member else "" for peer, member in known.items()}
        return fetched_view(fetched, str(out), names)

    def _chain(self, text: str) -> ChainId | None:
        return choose_chain(text, self._peer.pools).chain if text else None

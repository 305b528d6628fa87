"""What the local API does with live streams: takes samples as lines, and hands them on as lines of JSON."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from aiohttp import web

from edgepool.core.live.following import Item, Missed, Restarted, Sample
from edgepool.errors import EdgepoolError, LocalError
from edgepool.gateway.routes import Answer, Describe, WriteLine
from edgepool.gateway.views import choose_chain
from edgepool.model.live import MAX_SAMPLE_BYTES
from edgepool.model.twin import DataKey

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

LOOK_S = 0.5
"""How often it is looked whether a client that follows is still there."""


class LiveRoutes:
    """The routes under /v1/live; the rest is how the API gives JSON, lines of it, and errors."""

    def __init__(self, peer: Peer, answer: Answer, write_line: WriteLine, describe: Describe) -> None:
        self._peer = peer
        self._answer = answer
        self._write_line = write_line
        self._describe = describe

    def routes(self) -> list[web.RouteDef]:
        """Return what to add to the API."""
        return [web.post("/v1/live", self._publish), web.get("/v1/live", self._follow)]

    async def _publish(self, request: web.Request) -> web.StreamResponse:
        """Put each line of the body as a sample until the body ends, or the client is gone."""
        key = DataKey.parse(request.query.get("key", ""))
        chain = request.query.get("chain", "")
        where = choose_chain(chain, self._peer.pools).chain if chain else None
        put = 0
        async with self._peer.live(key, chain=where) as stream:
            with suppress(ConnectionResetError):
                while line := await _line(request, put + 1):
                    put = await stream.put(line.removesuffix(b"\n"))
        return self._answer({"put": put})

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        """Send each item as a line until the client is gone; an error is the last line."""
        key = DataKey.parse(request.query.get("key", ""))
        cursor, oldest = request.query.get("cursor", "") or None, request.query.get("oldest", "") == "1"
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)

        async def send() -> None:
            try:
                async with aclosing(self._peer.subscribe(key, cursor=cursor, oldest=oldest)) as items:
                    async for item in items:
                        await self._write_line(request, response, item_view(item))
            except EdgepoolError as error:
                await self._write_line(request, response, self._describe(error)[1])
            await response.write_eof()

        sending = asyncio.create_task(send())
        try:
            while not sending.done() and request.transport is not None and not request.transport.is_closing():
                await asyncio.wait({sending}, timeout=LOOK_S)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return response


async def _line(request: web.Request, number: int) -> bytes:
    try:
        return await request.content.readline()
    except ValueError:
        raise LocalError(
            f"line {number} has more than the {MAX_SAMPLE_BYTES} bytes that a sample may have"
        ) from None


def item_view(item: Item) -> dict[str, Any]:
    """Return an item of a live stream as JSON; the data is in base 64."""
    match item:
        case Sample(number, time_ms, data, cursor):
            text = b64encode(data).decode()
            return {"number": number, "time_ms": time_ms, "cursor": str(cursor), "data": text}
        case Missed(first, last):
            return {"missed": [first, last]}
        case Restarted(epoch, number):
            return {"restarted": epoch, "next_was": number}

"""HTTPS by aiohttp: a file as the answer to a request, straight or through a relay that passes it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from edgepool.bench.transfer.peers.arrival import MESSAGE_BYTES, Arrival
from edgepool.bench.transfer.peers.certificates import client_context, make_certificate, server_context
from edgepool.bench.transfer.side import Where

_PATH = "/data"


class Sender:
    """A web server with one file; given another server's address in the file's place, its relay."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runner: web.AppRunner | None = None
        self._origin: aiohttp.ClientSession | None = None

    async def open(self, host: str, path: Path) -> Where:
        """Listen."""

        async def answer(request: web.Request) -> web.StreamResponse:
            return web.FileResponse(path, chunk_size=MESSAGE_BYTES)

        return await self._listen(host, answer)

    async def relay(self, host: str, origin: Where) -> Where:
        """Listen, and pass on what `origin` answers as it comes."""
        self._origin = _session(origin["authority"])

        async def answer(request: web.Request) -> web.StreamResponse:
            assert self._origin is not None
            async with self._origin.get(_url(origin)) as found:
                response = web.StreamResponse()
                response.content_length = found.content_length
                await response.prepare(request)
                async for piece in found.content.iter_any():
                    await response.write(piece)
            return response

        return await self._listen(host, answer)

    async def _listen(self, host: str, answer: Any) -> Where:
        authority = make_certificate(self._folder)
        app = web.Application()
        app.add_routes([web.get(_PATH, answer)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, 0, ssl_context=server_context(self._folder)).start()
        return {"port": self._runner.addresses[0][1], "authority": authority.decode()}

    async def close(self) -> None:
        """End."""
        if self._origin is not None:
            await self._origin.close()
        if self._runner is not None:
            await self._runner.cleanup()


class Receiver:
    """A client with one connection."""

    def __init__(self, folder: Path) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._data: tuple[int, str] = (0, "")
        self._url = ""

    async def open(self, senders: list[Where], size_bytes: int, digest: str) -> None:
        """Be ready to connect."""
        self._data, self._url = (size_bytes, digest), _url(senders[0])
        self._session = _session(senders[0]["authority"])

    async def receive(self, **_: Any) -> dict[str, Any]:
        """Receive all."""
        assert self._session is not None
        arrival = Arrival(*self._data)
        async with self._session.get(self._url) as found:
            async for piece in found.content.iter_any():
                arrival.take(piece)
        arrival.check()
        return {}

    async def close(self) -> None:
        """End."""
        if self._session is not None:
            await self._session.close()


def _session(authority: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=client_context(authority)),
        read_bufsize=MESSAGE_BYTES,
        timeout=aiohttp.ClientTimeout(total=None),
    )


def _url(where: Where) -> str:
    return f"https://localhost:{where['port']}{_PATH}"

"""The cloud of the comparison: a server through which all twin data goes [S3.3, S3.16].

Stations upload what they make and download what they need, over HTTP with TLS 1.3 and certificates
on both sides. Data is kept under the root of its manifest and checked on its way in, as a peer does.

    PUT /v1/data/ROOT?part=P&kind=K&version=V   a manifest frame, then the data
    GET /v1/data/ROOT                           the same, back
    GET /v1/find?part=P&kind=K&version=V        what it has of that (V 0: the newest), as Found
    GET /v1/counts                              RelayCounts

A manifest frame is the length of the encoded manifest in four bytes (big-endian), then the manifest.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from aiohttp import web

from edgepool.errors import DecodeError, EdgepoolError, LocalError, Refused, StorageError
from edgepool.model.codec import decode, encode
from edgepool.model.twin import DataKey, Manifest
from edgepool.storage.blobs import BlobStore
from edgepool.workshop.events import RelayCounts

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_ENTRIES = 100_000
MAX_REQUESTS = 256
READ_BUFFER_BYTES = 1024 * 1024
STALL_S = 30

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_ROOT = re.compile(r"[0-9a-f]{64}")


class Found(msgspec.Struct, frozen=True):
    """Where the relay has what was asked for: the hexadecimal root of its manifest."""

    root: str
    version: int
    size_bytes: int


class Relay:
    """Serves on `host`; `context` is a server context that asks for certificates.

    `folder` keeps the data, `limit_bytes` bounds it. What is where is kept in memory only.
    """

    def __init__(self, folder: Path, context: ssl.SSLContext, *, host: str, limit_bytes: int) -> None:
        self.port = 0
        self._host = host
        self._context = context
        self._blobs = BlobStore(folder, limit_bytes)
        self._entries: dict[DataKey, dict[int, bytes]] = {}
        self._runner: web.AppRunner | None = None
        self._under_way = 0
        self._uploads = self._downloads = self._bytes_in = self._bytes_out = self._refused = 0

    @property
    def url(self) -> str:
        """Where the relay listens, such as https://127.0.0.1:8443."""
        return f"https://{self._host}:{self.port}"

    def counts(self) -> RelayCounts:
        """Return what has passed so far."""
        return RelayCounts(self._uploads, self._downloads, self._bytes_in, self._bytes_out, self._refused)

    async def start(self) -> None:
        """Listen on a free port."""
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.put("/v1/data/{root}", self._put),
                web.get("/v1/data/{root}", self._get),
                web.get("/v1/find", self._find),
                web.get("/v1/counts", self._count),
            ]
        )
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=1.0,
            read_bufsize=READ_BUFFER_BYTES,
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, 0, ssl_context=self._context).start()
        except OSError as error:
            await self._runner.cleanup()
            raise LocalError(f"the relay cannot listen on {self._host}: {error.strerror}") from None
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop listening; requests under way get a second to end."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --- routes ---------------------------------------------------------------------------------

    async def _put(self, request: web.Request) -> web.StreamResponse:
        root, (key, version) = _root(request), _what(request)
        if version < 1:
            raise Refused("no version", "an upload says which version it is, from 1")
        standing = self._entries.get(key, {}).get(version)
        if standing not in (None, root):
            raise Refused("other data is there", f"version {version} of {key}")
        if len(self._entries) >= MAX_ENTRIES and key not in self._entries:
            raise Refused("the relay is full", f"{MAX_ENTRIES} keys")
        await self._receive(request, root)
        self._entries.setdefault(key, {})[version] = root
        self._uploads += 1
        return web.json_response({"stored": True})

    async def _receive(self, request: web.Request, root: bytes) -> None:
        stream = request.content
        async with asyncio.timeout(STALL_S):
            length = int.from_bytes(await stream.readexactly(4), "big")
            if length > MAX_MANIFEST_BYTES:
                raise DecodeError("the manifest is too large")
            manifest = decode(Manifest, await stream.readexactly(length))
        if manifest.root != root:
            raise DecodeError("the manifest is not the one that the address names")
        writer = await asyncio.to_thread(self._blobs.writer, manifest)
        try:
            for index in range(len(manifest.chunks)):
                async with asyncio.timeout(STALL_S):
                    chunk = await stream.readexactly(manifest.chunk_size_bytes(index))
                self._bytes_in += len(chunk)
                if not writer.has(index):
                    await asyncio.to_thread(writer.put, index, chunk)
            await asyncio.to_thread(writer.finish)
        except BaseException:
            writer.abort()
            raise

    async def _get(self, request: web.Request) -> web.StreamResponse:
        root = _root(request)
        manifest = await asyncio.to_thread(self._blobs.manifest, root)
        if manifest is None:
            raise web.HTTPNotFound
        encoded = encode(manifest)
        head = len(encoded).to_bytes(4, "big") + encoded
        response = web.StreamResponse()
        response.content_length = len(head) + manifest.size_bytes
        await response.prepare(request)
        await response.write(head)
        with self._blobs.path(root).open("rb") as file:
            for index in range(len(manifest.chunks)):
                chunk = await asyncio.to_thread(file.read, manifest.chunk_size_bytes(index))
                async with asyncio.timeout(STALL_S):
                    await response.write(chunk)
                self._bytes_out += len(chunk)
        await response.write_eof()
        self._downloads += 1
        return response

    async def _find(self, request: web.Request) -> web.StreamResponse:
        key, version = _what(request)
        versions = self._entries.get(key, {})
        root = versions.get(version or max(versions, default=0))
        manifest = await asyncio.to_thread(self._blobs.manifest, root) if root else None
        if root is None or manifest is None:
            raise web.HTTPNotFound
        found = Found(root.hex(), version or max(versions), manifest.size_bytes)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def _count(self, _: web.Request) -> web.StreamResponse:
        return web.Response(body=msgspec.json.encode(self.counts()), content_type="application/json")

    # --- the door -------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if self._under_way >= MAX_REQUESTS:
            return self._refuse(503, f"{MAX_REQUESTS} requests are under way: try again later")
        self._under_way += 1
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return self._refuse(404, "the relay does not have that")
        except (asyncio.IncompleteReadError, TimeoutError):
            return self._refuse(400, "the data did not arrive whole")
        except (DecodeError, LocalError, Refused) as error:
            return self._refuse(400, str(error))
        except StorageError as error:
            return self._refuse(507, str(error))
        except EdgepoolError as error:
            return self._refuse(500, str(error))
        finally:
            self._under_way -= 1

    def _refuse(self, status: int, reason: str) -> web.Response:
        self._refused += 1
        response = web.json_response({"error": reason}, status=status)
        response.force_close()  # what the client still sends is not read
        return response


def _root(request: web.Request) -> bytes:
    text = request.match_info["root"]
    if not _ROOT.fullmatch(text):
        raise LocalError("a root is 64 lower-case hexadecimal digits")
    return bytes.fromhex(text)


def _what(request: web.Request) -> tuple[DataKey, int]:
    key = DataKey(request.query.get("part", ""), request.query.get("kind", ""))
    problem = key.problem()
    if problem:
        raise LocalError(f"not a data key: {problem}")
    version = request.query.get("version", "0")
    if not (version.isascii() and version.isdigit() and len(version) <= 9):
        raise LocalError("a version is a number from 0")
    return key, int(version)

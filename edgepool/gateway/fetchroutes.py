"""What the local API does to fetch data: lines of progress, then the result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from edgepool.errors import EdgepoolError
from edgepool.gateway.export import copy_all_out, copy_out, out_file, out_folder, out_path
from edgepool.gateway.routes import Answer, Describe, Read, WriteLine
from edgepool.gateway.views import choose_chain, fetched_view
from edgepool.model.ids import ChainId
from edgepool.model.twin import DataKey
from edgepool.peer.manyfetches import MAX_KEYS
from edgepool.peer.values import Fetched, FetchProgress

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


class FetchManyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which keys, or patterns of keys, are to be fetched, and into which folder."""

    keys: Annotated[list[_Text], Meta(min_length=1, max_length=MAX_KEYS)]
    out: _Text
    chain: _Text = ""
    timeout_ms: Annotated[int, Meta(ge=1, le=24 * 3_600_000)] = 60_000
    purpose: Annotated[str, Meta(max_length=64)] = ""


class FetchRoutes:
    """The routes /v1/fetch and /v1/fetch-many.

    The rest is how the API takes bodies and gives JSON, lines of it, and errors.
    """

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
        return [web.post("/v1/fetch", self._fetch), web.post("/v1/fetch-many", self._fetch_many)]

    async def _fetch(self, request: web.Request) -> web.StreamResponse:
        """Stream `{"done_bytes", "size_bytes", "sources"}` lines and at the end the result (or the error)."""
        body: FetchBody = await self._read(request, FetchBody)
        DataKey.parse(body.key)
        self._chain(body.chain)
        out_path(body.out)
        return await self._stream(request, lambda progress: self._get(body, progress))

    async def _fetch_many(self, request: web.Request) -> web.StreamResponse:
        """Stream lines as for one key, of all together, and at the end what is here and what is not."""
        body: FetchManyBody = await self._read(request, FetchManyBody)
        self._chain(body.chain)
        out_folder(body.out)
        keys = self._peer.keys_named(body.keys)
        return await self._stream(request, lambda progress: self._get_many(body, keys, progress))

    async def _stream(
        self, request: web.Request, get: Callable[[list[FetchProgress]], Coroutine[Any, Any, dict[str, Any]]]
    ) -> web.StreamResponse:
        progress = [FetchProgress(0, 0, 0)]
        task = asyncio.create_task(get(progress))
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
        return self._view(fetched, out)

    async def _get_many(
        self, body: FetchManyBody, keys: Sequence[DataKey], progress: list[FetchProgress]
    ) -> dict[str, Any]:
        def note(now: FetchProgress) -> None:
            progress[-1] = now

        done = await self._peer.fetch_many(
            keys,
            chain=self._chain(body.chain),
            purpose=body.purpose,
            timeout_ms=body.timeout_ms,
            progress=note,
        )
        outs = [out_file(Path(body.out), one.key) for one in done.fetched]
        files = [(one.path, out) for one, out in zip(done.fetched, outs, strict=True)]
        problems = await asyncio.to_thread(copy_all_out, files)
        failed = {str(key): problem for key, problem in done.failed.items()}
        fetched = []
        for one, out, problem in zip(done.fetched, outs, problems, strict=True):
            if problem or out is None:
                failed[str(one.key)] = problem
            else:
                fetched.append(self._view(one, out))
        return {
            "fetched": fetched,
            "failed": [{"key": key, "problem": problem} for key, problem in failed.items()],
            "duration_ms": done.duration_ms,
        }

    def _view(self, fetched: Fetched, out: Path) -> dict[str, Any]:
        known = {peer: self._peer.member(peer) for peer in (fetched.holder, *fetched.shares)}
        names = {peer: member.name if member else "" for peer, member in known.items()}
        return fetched_view(fetched, str(out), names)

    def _chain(self, text: str) -> ChainId | None:
        return choose_chain(text, self._peer.pools).chain if text else None

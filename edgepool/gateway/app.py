"""The local HTTP API of a running peer [S3.3]: loopback only, JSON in and out.

`GET /healthz` and `GET /metrics` are open to this machine; everything else needs the token of the
peer's folder (access.py). Errors are `{"error": one sentence, "kind": ...}`, where kind is `local`
(the caller's doing), `refused` (a rule said no), `unavailable` (nobody answered in time), `remote`,
`storage`, `missing`, `access` or `internal`. Request bodies, the number of requests under way and
all times are bounded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta

from edgepool.errors import (
    DecodeError,
    EdgepoolError,
    LocalError,
    Refused,
    RemoteError,
    StorageError,
    Unavailable,
)
from edgepool.gateway.access import ENDPOINT_FILE, Endpoint, check_loopback, own_token, refusal, write_private
from edgepool.gateway.budgetroutes import BudgetRoutes
from edgepool.gateway.dataroutes import DataRoutes
from edgepool.gateway.export import in_path
from edgepool.gateway.fetchroutes import FetchRoutes
from edgepool.gateway.keyroutes import KeyRoutes
from edgepool.gateway.liveroutes import LiveRoutes
from edgepool.gateway.metrics import CONTENT_TYPE, render_metrics
from edgepool.gateway.rightsroutes import RightsRoutes
from edgepool.gateway.rotationroutes import RotationRoutes
from edgepool.gateway.trustroutes import TrustRoutes
from edgepool.gateway.views import (
    block_view,
    change_view,
    choose_chain,
    offer_view,
    published_view,
)
from edgepool.model.ids import ChainId
from edgepool.model.twin import DataKey

if TYPE_CHECKING:
    from edgepool.gateway.registrar import Registrar
    from edgepool.peer.peer import Peer

MAX_BODY_BYTES = 64 * 1024
MAX_REQUESTS = 64
CLOSE_TIMEOUT_S = 0.5

_log = logging.getLogger(__name__)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_T = TypeVar("_T")
_Text = Annotated[str, Meta(max_length=4096)]
_Who = Annotated[str, Meta(max_length=64)]
_Address = Annotated[str, Meta(max_length=256)]
_Reason = Annotated[str, Meta(max_length=256)]
_Version = Annotated[int, Meta(ge=0, le=2**31)]
_TimeoutMs = Annotated[int, Meta(ge=1, le=24 * 3_600_000)]


class _Publish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: _Text
    path: _Text
    version: _Version = 0
    chain: _Text = ""


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: _Text
    version: _Version = 0
    timeout_ms: _TimeoutMs = 5_000
    purpose: _Who = ""


class _ChangeMembers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    admit: _Who = ""
    exclude: _Who = ""
    address: _Address = ""
    reason: _Reason = ""
    timeout_ms: _TimeoutMs = 30_000


class _Approve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    proposer: _Who = ""


class _Invite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: _Who
    role: _Who = "machine"
    machine_type: _Who = ""
    pool: _Text = ""
    valid_ms: Annotated[int, Meta(ge=0)] = 3_600_000


class ApiServer:
    """Serves the API of `peer` on loopback; `folder` holds its token and says where it listens.

    With a `registrar` it takes what 'edgepool invite' says, too.
    """

    def __init__(
        self,
        peer: Peer,
        folder: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        registrar: Registrar | None = None,
    ) -> None:
        check_loopback(host)
        self.port = port
        self._peer = peer
        self._registrar = registrar
        self._folder = folder
        self._host = host
        self._token = ""
        self._under_way = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where the API is, such as http://127.0.0.1:8080."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listen and write `api.json`; LocalError if the port is in use."""
        self._token = own_token(self._folder)
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        app.add_routes(self._routes())
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_TIMEOUT_S, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self.port).start()
        except OSError as error:
            await runner.cleanup()
            raise LocalError(
                f"the API cannot listen on {self._host} port {self.port} ({os.strerror(error.errno or 0)}): "
                "set api.port to another port, or to 0 for a free one"
            ) from None
        self._runner = runner
        self.port = runner.addresses[0][1]
        endpoint = Endpoint(url=self.url, peer=self._peer.id, pid=os.getpid())
        write_private(self._folder / ENDPOINT_FILE, msgspec.json.encode(endpoint) + b"\n")

    async def close(self) -> None:
        """Stop listening, give requests under way half a second to end, and remove `api.json`."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            with suppress(OSError):
                (self._folder / ENDPOINT_FILE).unlink(missing_ok=True)
            await runner.cleanup()

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self._healthz),
            web.get("/metrics", self._metrics),
            web.get("/v1/status", self._status),
            web.get("/v1/chains", self._chains),
            web.get("/v1/chains/{chain}/blocks/{height}", self._block),
            web.get("/v1/chains/{chain}/members", self._members),
            web.post("/v1/chains/{chain}/members", self._change_members),
            web.post("/v1/chains/{chain}/members/approve", self._approve),
            web.get("/v1/invitations", self._invitations),
            web.post("/v1/invitations", self._invite),
            web.post("/v1/invitations/{id}/revoke", self._revoke),
            web.post("/v1/publish", self._publish),
            web.post("/v1/request", self._request),
            *FetchRoutes(self._peer, _read, _json, _write_line, _describe).routes(),
            *DataRoutes(self._peer, _read, _json).routes(),
            *TrustRoutes(self._peer, _read, _json).routes(),
            *RotationRoutes(self._inviting, _read, _json).routes(),
            *BudgetRoutes(self._peer, _read, _json).routes(),
            *LiveRoutes(self._peer, _json, _write_line, _describe).routes(),
            *KeyRoutes(self._peer, _json).routes(),
            *RightsRoutes(self._peer, _read, _json).routes(),
        ]

    # --- routes ---------------------------------------------------------------------------------

    async def _healthz(self, _: web.Request) -> web.StreamResponse:
        failure = self._peer.failure
        return _json({"ok": False, "problem": failure}, 503) if failure else _json({"ok": True})

    async def _metrics(self, _: web.Request) -> web.StreamResponse:
        text = render_metrics(self._peer.metrics())
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _status(self, _: web.Request) -> web.StreamResponse:
        return _json(self._peer.status())

    async def _chains(self, _: web.Request) -> web.StreamResponse:
        return _json(self._peer.status().chains)

    async def _block(self, request: web.Request) -> web.StreamResponse:
        genesis = choose_chain(request.match_info["chain"], self._peer.pools)
        text = request.match_info["height"]
        if not (text.isascii() and text.isdigit() and len(text) <= 15):
            raise LocalError(f"'{text[:40]}' is no height: write a number from 1")
        block = self._peer.block(genesis.chain, int(text))
        if block is None:
            return _error(
                404, "missing", f"chain '{genesis.invitation.name}' has no block at height {int(text)}"
            )
        return _json(block_view(block, self._peer.node.chains[genesis.chain].rosters))

    async def _members(self, request: web.Request) -> web.StreamResponse:
        return _json(self._peer.members(self._named_chain(request)))

    async def _change_members(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request, _ChangeMembers)
        ref = await self._peer.change_members(
            self._named_chain(request),
            admit=body.admit or None,
            exclude=body.exclude or None,
            reason=body.reason,
            address=body.address,
            timeout_ms=body.timeout_ms,
        )
        return _json(change_view(ref, self._peer.block(ref.chain, ref.height)))

    async def _approve(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request, _Approve)
        ref = await self._peer.approve_change(self._named_chain(request), body.proposer)
        return _json(change_view(ref, self._peer.block(ref.chain, ref.height)))

    async def _invitations(self, _: web.Request) -> web.StreamResponse:
        return _json(self._inviting().invitations())

    async def _invite(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request, _Invite)
        return _json(await self._inviting().invite(**msgspec.structs.asdict(body)))

    async def _revoke(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._inviting().revoke(request.match_info["id"]))

    def _inviting(self) -> Registrar:
        if self._registrar is None:
            from edgepool.gateway.registrar import NO_REGISTRAR

            raise LocalError(NO_REGISTRAR)
        return self._registrar

    async def _publish(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request, _Publish)
        key, path = DataKey.parse(body.key), in_path(body.path)
        chain = self._chain(body.chain)
        published = await self._peer.publish(key, path=path, version=body.version, chain=chain)
        return _json(published_view(published))

    async def _request(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request, _Request)
        key = DataKey.parse(body.key)
        look = {"version": body.version, "timeout_ms": body.timeout_ms}
        offers = await self._peer.request(key, **look, purpose=body.purpose)
        return _json([offer_view(offer) for offer in offers])

    def _named_chain(self, request: web.Request) -> ChainId:
        return choose_chain(request.match_info["chain"], self._peer.pools).chain

    def _chain(self, text: str) -> ChainId | None:
        return choose_chain(text, self._peer.pools).chain if text else None

    # --- the door -------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        headers = request.headers
        code, sentence = refusal(
            request.path,
            headers.get("Host"),
            headers.get("Origin"),
            headers.get("Authorization", ""),
            self._token,
        )
        if code:
            return _error(code, "access", sentence)
        if self._under_way >= MAX_REQUESTS:
            return _error(503, "unavailable", f"{MAX_REQUESTS} requests are under way: try again later")
        self._under_way += 1
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _http_error(error, request)
        except EdgepoolError as error:
            code, described = _describe(error)
            return _json(described, code)
        except ConnectionResetError:
            raise
        except Exception:
            _log.exception("the API failed on %s %s", request.method, request.path)
            return _error(500, "internal", "the peer failed inside: its log says where")
        finally:
            self._under_way -= 1


async def _read(request: web.Request, kind: type[_T]) -> _T:
    """Return the request's JSON body as `kind`; LocalError names the field that is wrong."""
    raw = await request.read()
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        fault, _, place = str(error).partition(" - at ")
        where = place.strip("`").removeprefix("$.").removeprefix("$")
        raise LocalError(f"the request's body is wrong{f' at {where}' if where else ''}: {fault}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LocalError("the request's body is not JSON") from None


async def _write_line(request: web.Request, response: web.StreamResponse, value: object) -> None:
    if not response.prepared:
        await response.prepare(request)
    await response.write(msgspec.json.encode(value) + b"\n")


def _describe(error: EdgepoolError) -> tuple[int, dict[str, str]]:
    """Return the HTTP status of an error and its JSON."""
    match error:
        case Refused():
            code, kind = 409, "refused"
        case Unavailable():
            code, kind = 503, "unavailable"
        case RemoteError():
            code, kind = 502, "remote"
        case StorageError():
            code, kind = 507, "storage"
        case LocalError() | DecodeError():
            code, kind = 400, "local"
        case _:
            code, kind = 500, "internal"
    return code, {"error": str(error), "kind": kind}


def _http_error(error: web.HTTPException, request: web.Request) -> web.Response:
    match error.status:
        case 404:
            return _error(404, "missing", f"there is no {request.path[:200]} here")
        case 405:
            return _error(405, "local", f"{request.path[:200]} does not take {request.method}")
        case 413:
            return _error(413, "local", f"the request's body has more than {MAX_BODY_BYTES} bytes")
    return _error(error.status, "local", error.reason)


def _error(code: int, kind: str, sentence: str) -> web.Response:
    return _json({"error": sentence, "kind": kind}, code)


def _json(value: object, code: int = 200) -> web.Response:
    headers = {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return web.Response(body=msgspec.json.encode(value), status=code, headers=headers)

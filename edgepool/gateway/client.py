"""Calls the local API of a running peer, found through the peer's folder.

    async with ApiClient.of(Path("gateway")) as client:
        status = await client.status()

Errors come back as the classes that the peer raised: LocalError, Refused, Unavailable and so on.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from edgepool.config import CONFIG_FILE, BudgetSettings, load_peer_settings
from edgepool.errors import ConfigError, EdgepoolError, LocalError, Refused, StorageError, Unavailable
from edgepool.gateway.access import ENDPOINT_FILE, Endpoint, check_loopback, read_token
from edgepool.gateway.answers import answer_as, foreign
from edgepool.gateway.invitationview import InvitationView, NewInvitation
from edgepool.gateway.trustclient import ANSWER_TIMEOUT_S, TrustCalls
from edgepool.peer.datavalues import BudgetStatus, ScrubReport, StoredData
from edgepool.peer.policyview import PolicyView
from edgepool.peer.values import ChainStatus, KeyStatus, PeerStatus, PoolMembers
from edgepool.transport.keychange import KeyChange

MAX_ANSWER_BYTES = 16 * 1024 * 1024
CONNECT_TIMEOUT_S = 2
OPENING_S = 15.0
"""So long a peer may take to open again under a new key, on a slow machine."""
LOOK_EVERY_S = 0.05

_ERRORS: dict[str, type[EdgepoolError]] = {
    "refused": Refused,
    "unavailable": Unavailable,
    "storage": StorageError,
    "local": LocalError,
    "missing": LocalError,
    "access": LocalError,
}


class ApiClient(TrustCalls):
    """A caller of the API at `url` with `token`; use it as an async context manager."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def of(cls, folder: Path) -> ApiClient:
        """Return a client of the peer that runs from `folder`; LocalError if none does."""
        endpoint = find_endpoint(folder) or _opened_again(folder)
        if endpoint is None:
            raise LocalError(f"the peer in '{folder}' is not running: start it with 'edgepool run {folder}'")
        return cls(endpoint.url, read_token(folder))

    async def __aenter__(self) -> ApiClient:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            read_bufsize=MAX_ANSWER_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def status(self) -> PeerStatus:
        """Return the peer's status."""
        return answer_as(PeerStatus, await self._get("/v1/status"))

    async def chains(self) -> list[ChainStatus]:
        """Return the chains that the peer keeps."""
        return answer_as(list[ChainStatus], await self._get("/v1/chains"))

    async def block(self, chain: str, height: int) -> dict[str, Any]:
        """Return a block (views.block_view) of the chain with this id or name."""
        path = f"/v1/chains/{quote(chain, safe='')}/blocks/{height}"
        return answer_as(dict[str, Any], await self._get(path))

    async def members(self, chain: str) -> PoolMembers:
        """Return who is in the pool of a chain (its id or name), and what is to change."""
        return answer_as(PoolMembers, await self._get(f"/v1/chains/{quote(chain, safe='')}/members"))

    async def change_members(
        self,
        chain: str,
        *,
        admit: str = "",
        exclude: str = "",
        address: str = "",
        reason: str = "",
        timeout_ms: int = 30_000,
    ) -> dict[str, Any]:
        """Have the peer propose a change; return views.change_view once its word stands.

        `admit` and `exclude` are names or peer ids; both of them are a replacement.
        """
        body = {
            "admit": admit,
            "exclude": exclude,
            "address": address,
            "reason": reason,
            "timeout_ms": timeout_ms,
        }
        path = f"/v1/chains/{quote(chain, safe='')}/members"
        answer = await self._post(path, body, timeout_s=timeout_ms / 1000 + ANSWER_TIMEOUT_S)
        return answer_as(dict[str, Any], answer)

    async def key_status(self) -> KeyStatus:
        """Return how far a change of the peer's key is."""
        return answer_as(KeyStatus, await self._get("/v1/key"))

    async def rotate_key(self) -> KeyStatus:
        """Have the peer begin to change its key; return how far that is."""
        return answer_as(KeyStatus, await self._post("/v1/key/rotate", {}, timeout_s=ANSWER_TIMEOUT_S))

    async def approve_change(self, chain: str, proposer: str = "") -> dict[str, Any]:
        """Have the peer approve what `proposer` has open ('': the only change); return views.change_view."""
        path = f"/v1/chains/{quote(chain, safe='')}/members/approve"
        answer = await self._post(path, {"proposer": proposer}, timeout_s=2 * ANSWER_TIMEOUT_S)
        return answer_as(dict[str, Any], answer)

    async def invite(
        self, *, name: str, role: str = "machine", machine_type: str = "", pool: str = "", valid_ms: int
    ) -> NewInvitation:
        """Have a registrar invite a gateway; the answer holds the code, which is shown this once."""
        body = {"name": name, "role": role, "machine_type": machine_type, "pool": pool, "valid_ms": valid_ms}
        return answer_as(NewInvitation, await self._post("/v1/invitations", body, timeout_s=ANSWER_TIMEOUT_S))

    async def invitations(self) -> list[InvitationView]:
        """Return a registrar's invitations, the oldest first."""
        return answer_as(list[InvitationView], await self._get("/v1/invitations"))

    async def revoke(self, invitation: str) -> InvitationView:
        """Have a registrar revoke the invitation with this id."""
        path = f"/v1/invitations/{quote(invitation, safe='')}/revoke"
        return answer_as(InvitationView, await self._post(path, {}, timeout_s=ANSWER_TIMEOUT_S))

    async def publish(self, key: str, path: Path, *, version: int = 0, chain: str = "") -> dict[str, Any]:
        """Have the peer publish the file at `path`; return views.published_view."""
        body = {"key": key, "path": _absolute(path), "version": version, "chain": chain}
        return answer_as(dict[str, Any], await self._post("/v1/publish", body, timeout_s=3600))

    async def request(
        self, key: str, *, version: int = 0, timeout_ms: int = 5_000, purpose: str = ""
    ) -> list[dict[str, Any]]:
        """Return who has `key`, best first, as views.offer_view."""
        body = {"key": key, "version": version, "timeout_ms": timeout_ms, "purpose": purpose}
        answer = await self._post("/v1/request", body, timeout_s=timeout_ms / 1000 + ANSWER_TIMEOUT_S)
        return answer_as(list[dict[str, Any]], answer)

    async def policies(self, key: str = "") -> list[PolicyView]:
        """Return the policies on the peer's chains, or those that are for `key`."""
        path = f"/v1/policies?key={quote(key, safe='')}" if key else "/v1/policies"
        return answer_as(list[PolicyView], await self._get(path))

    async def set_policy(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Have the peer set a policy (rightsroutes.PolicyBody); return where it stands."""
        answer = await self._post("/v1/policies", body, timeout_s=4 * ANSWER_TIMEOUT_S)
        return answer_as(list[dict[str, Any]], answer)

    async def stored(self) -> list[StoredData]:
        """Return the data that the peer keeps, what was used last first."""
        return answer_as(list[StoredData], await self._get("/v1/data"))

    async def pin(self, what: str, pinned: bool) -> list[StoredData]:
        """Have the peer pin data (a key or the beginning of a root), or unpin it; return it."""
        body = {"what": what, "pinned": pinned}
        return answer_as(list[StoredData], await self._post("/v1/data/pin", body, timeout_s=ANSWER_TIMEOUT_S))

    async def evict(self, what: str = "", free_bytes: int = 0) -> list[StoredData]:
        """Have the peer drop data, or free so many bytes; return what went."""
        body = {"what": what, "free_bytes": free_bytes}
        return answer_as(
            list[StoredData], await self._post("/v1/data/evict", body, timeout_s=ANSWER_TIMEOUT_S)
        )

    async def publish_live(self, key: str, lines: AsyncIterable[bytes], *, chain: str = "") -> int:
        """Have the peer publish lines (each with its end) as samples of a live stream; return how many."""
        path = f"/v1/live?key={quote(key, safe='')}&chain={quote(chain, safe='')}"
        async with self._call("POST", path, lines, timeout_s=None) as response:
            return answer_as(dict[str, int], _decoded(await response.read()))["put"]

    async def follow(
        self, key: str, *, cursor: str = "", oldest: bool = False
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the items of a live stream as liveroutes.item_view, for ever."""
        begin = f"&cursor={quote(cursor, safe='')}&oldest={int(oldest)}"
        path = f"/v1/live?key={quote(key, safe='')}{begin}"
        async with self._call("GET", path, None, timeout_s=None) as response:
            async for raw in response.content:
                line = answer_as(dict[str, Any], _decoded(raw))
                if "error" in line:
                    raise _error_of(line)
                yield line

    async def budget(self) -> BudgetStatus:
        """Return the budget for bulk data that is in force."""
        return answer_as(BudgetStatus, await self._get("/v1/budget"))

    async def set_budget(self, budget: BudgetSettings | None) -> BudgetStatus:
        """Have the peer take another budget, at once and durably; None is that of its settings file."""
        body = {"budget": msgspec.to_builtins(budget)}
        return answer_as(BudgetStatus, await self._post("/v1/budget", body, timeout_s=ANSWER_TIMEOUT_S))

    async def scrub(self, what: str = "") -> ScrubReport:
        """Have the peer read its data again, all of it or some, and return what it found."""
        return answer_as(ScrubReport, await self._post("/v1/data/scrub", {"what": what}, timeout_s=24 * 3600))

    async def fetch(
        self,
        key: str,
        out: Path,
        *,
        version: int = 0,
        chain: str = "",
        purpose: str = "",
        timeout_ms: int = 60_000,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Have the peer fetch `key` into the file `out`; return views.fetched_view.

        `progress` is called with (done_bytes, size_bytes, holders that send) while data arrives.
        """
        body = {
            "key": key,
            "out": _absolute(out),
            "version": version,
            "chain": chain,
            "purpose": purpose,
            "timeout_ms": timeout_ms,
        }
        return await self._follow("/v1/fetch", body, progress)

    async def fetch_many(
        self,
        keys: Sequence[str],
        out: Path,
        *,
        chain: str = "",
        purpose: str = "",
        timeout_ms: int = 60_000,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Have the peer fetch many keys, or what patterns match, into files PART/KIND in the folder `out`.

        Returns 'fetched' (each as views.fetched_view), 'failed' (each with 'key' and 'problem') and
        'duration_ms'; `progress` is as for `fetch`, of all together.
        """
        body = {
            "keys": list(keys),
            "out": _absolute(out),
            "chain": chain,
            "purpose": purpose,
            "timeout_ms": timeout_ms,
        }
        return await self._follow("/v1/fetch-many", body, progress)

    async def _follow(
        self, path: str, body: dict[str, Any], progress: Callable[[int, int, int], None] | None
    ) -> dict[str, Any]:
        """Return the last line of an answer of many, telling `progress` of the others."""
        async with self._call("POST", path, body, timeout_s=None) as response:
            async for raw in response.content:
                line = answer_as(dict[str, Any], _decoded(raw))
                if "error" in line:
                    raise _error_of(line)
                if "done_bytes" not in line:
                    return line
                if progress is not None:
                    progress(line["done_bytes"], line["size_bytes"], line["sources"])
        raise Unavailable("the peer ended before the data was whole: look at its log, and fetch again")

    async def _get(self, path: str) -> Any:
        async with self._call("GET", path, None, timeout_s=ANSWER_TIMEOUT_S) as response:
            return _decoded(await response.read())

    async def _post(self, path: str, body: dict[str, Any], *, timeout_s: float) -> Any:
        async with self._call("POST", path, body, timeout_s=timeout_s) as response:
            return _decoded(await response.read())

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | AsyncIterable[bytes] | None,
        *,
        timeout_s: float | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise LocalError("use ApiClient in 'async with'")
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        data = msgspec.json.encode(body) if isinstance(body, dict) else body
        try:
            async with self._session.request(
                method, self.url + path, data=data, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise _error_of(_error_json(await response.read(), response.status))
                yield response
        except TimeoutError:
            raise Unavailable(
                f"the peer at {self.url} has not answered in time: it may be overloaded"
            ) from None
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
            raise Unavailable(
                f"the peer at {self.url} ended before it had answered: look at its log, and ask again"
            ) from None
        except aiohttp.ClientError as error:
            raise Unavailable(
                f"the peer at {self.url} cannot be reached ({error}): is it still running?"
            ) from None


def find_endpoint(folder: Path) -> Endpoint | None:
    """Return where the peer of `folder` listens, or None if it does not run.

    LocalError if `folder` is no peer's folder.
    """
    if not folder.exists():
        raise LocalError(f"'{folder}' does not exist: make a gateway's folder with 'edgepool init {folder}'")
    if not (folder / CONFIG_FILE).is_file():
        raise LocalError(
            f"'{folder}' is no gateway's folder (there is no {CONFIG_FILE} in it): "
            "name one that 'edgepool init' has made"
        )
    path = folder / ENDPOINT_FILE
    try:
        endpoint = msgspec.json.decode(path.read_bytes(), type=Endpoint)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        raise LocalError(f"{path} cannot be read: restart the peer, which writes it anew") from None
    try:
        host = urlsplit(endpoint.url).hostname or ""
    except ValueError:
        host = ""
    check_loopback(host)
    return endpoint if _runs(endpoint.pid) else None


def is_being_changed(folder: Path) -> bool:
    """Say whether the key of the peer of `folder` is being changed."""
    try:
        change = KeyChange(load_peer_settings(folder))
    except ConfigError:
        return False
    return change.begun or change.is_made


def _opened_again(folder: Path) -> Endpoint | None:
    """Wait a little for a peer that is just being opened again under a new key; None if none is."""
    deadline_s = time.monotonic() + OPENING_S
    while is_being_changed(folder):
        endpoint = find_endpoint(folder)
        if endpoint is not None or time.monotonic() > deadline_s:
            return endpoint
        time.sleep(LOOK_EVERY_S)
    return find_endpoint(folder)


def _decoded(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise foreign() from None


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _runs(pid: int) -> bool:
    """Say whether a process with this id exists: the token is not given to whoever took the port."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _error_json(raw: bytes, status: int) -> dict[str, str]:
    try:
        return msgspec.json.decode(raw, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {"error": f"the API answered with HTTP status {status}", "kind": "internal"}


def _error_of(described: dict[str, str]) -> EdgepoolError:
    kind = _ERRORS.get(described.get("kind", ""), Unavailable)
    return kind(described.get("error", "the API gave no reason"))

"""The local API over real HTTP: first its door, before a stand-in for a peer, then two real peers."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from edgepool.config import KnownPeer
from edgepool.errors import LocalError, Refused, RemoteError, StorageError, Unavailable
from edgepool.gateway.app import MAX_BODY_BYTES, ApiServer
from edgepool.gateway.client import ApiClient
from edgepool.gateway.pools import gather_members, pool_stands
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.model.pool import Genesis
from edgepool.peer.peer import Peer


class StandIn:
    """As much of a Peer as the door needs: it fails as it is told to."""

    id = "12D3KooWStandIn"
    pools = ()
    failure = ""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def metrics(self) -> dict[str, float]:
        return {"edgepool_links": 2, 'refused_total{reason="frame"}': 3}

    async def request(self, key: object, **_: object) -> tuple[object, ...]:
        if self.error is not None:
            raise self.error
        return ()


@dataclass
class Door:
    peer: StandIn
    server: ApiServer
    folder: Path
    http: aiohttp.ClientSession

    @property
    def token(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {(self.folder / 'api-token').read_text().strip()}"}

    async def call(self, method: str, path: str, **arguments: Any) -> tuple[int, Any]:
        headers = {**self.token, **arguments.pop("headers", {})}
        async with self.http.request(method, self.server.url + path, headers=headers, **arguments) as answer:
            return answer.status, await answer.json()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    peer = StandIn()
    server = ApiServer(peer, tmp_path)  # type: ignore[arg-type]
    await server.start()
    async with aiohttp.ClientSession() as http:
        yield Door(peer, server, tmp_path, http)
    await server.close()


async def test_health_and_metrics_are_open_and_the_rest_needs_the_token(door: Door) -> None:
    async with door.http.get(door.server.url + "/healthz") as answer:
        assert (answer.status, await answer.json()) == (200, {"ok": True})
    async with door.http.get(door.server.url + "/metrics") as answer:
        assert answer.content_type == "text/plain"
        text = await answer.text()
    assert "# TYPE edgepool_links gauge\nedgepool_links 2\n" in text
    assert '# TYPE edgepool_refused_total counter\nedgepool_refused_total{reason="frame"} 3\n' in text
    for headers in ({}, {"Authorization": "Bearer " + "0" * 64}, {"Authorization": "Bearer é"}):
        async with door.http.post(door.server.url + "/v1/request", headers=headers, json={}) as answer:
            assert answer.status == 401
            assert (await answer.json())["kind"] == "access"


async def test_a_peer_that_cannot_store_is_not_healthy(door: Door) -> None:
    door.peer.failure = "no space left"
    async with door.http.get(door.server.url + "/healthz") as answer:
        assert (answer.status, await answer.json()) == (503, {"ok": False, "problem": "no space left"})


@pytest.mark.parametrize("body", [b"hello", b"[1]", b'{"done_bytes": 1', b"\xff", b""])
async def test_what_is_no_peer_at_the_address_gets_one_sentence(body: bytes, tmp_path: Path) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body)

    app = web.Application()
    app.add_routes([web.route("*", "/{path:.*}", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with ApiClient(f"http://127.0.0.1:{runner.addresses[0][1]}", "0" * 64) as client:
            for call in (
                client.status(),
                client.chains(),
                client.block("cell", 1),
                client.publish("P/model", tmp_path),
                client.fetch("P/model", tmp_path / "out"),
            ):
                with pytest.raises(Unavailable, match=r"is no peer|ended before"):
                    await call
    finally:
        await runner.cleanup()


async def test_the_token_is_made_once_and_is_for_its_owner_only(door: Door) -> None:
    path = door.folder / "api-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    again = ApiServer(StandIn(), door.folder)  # type: ignore[arg-type]
    await again.start()
    await again.close()
    assert path.read_text() == before
    path.chmod(0o644)  # others may have read it by now
    again = ApiServer(StandIn(), door.folder)  # type: ignore[arg-type]
    await again.start()
    await again.close()
    assert path.read_text() != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "factory.example"},
        {"Host": "127.0.0.1.example:80"},
        {"Host": "10.0.0.7"},
        {"Host": "["},
        {"Origin": "http://127.0.0.1:8080"},
        {"Origin": "null"},
    ],
)
async def test_a_web_page_gets_nothing_even_with_the_token(door: Door, headers: dict[str, str]) -> None:
    for path in ("/healthz", "/metrics", "/v1/status"):
        status, body = await door.call("GET", path, headers=headers)
        assert (status, body["kind"]) == (403, "access")


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (Refused("the rule", "the value"), 409, "refused"),
        (Unavailable("nobody answered"), 503, "unavailable"),
        (RemoteError("12D3", "sent nonsense"), 502, "remote"),
        (StorageError("the disk is full"), 507, "storage"),
        (LocalError("the peer is closed"), 400, "local"),
    ],
)
async def test_errors_say_in_one_sentence_who_is_to_blame(
    door: Door, error: Exception, code: int, kind: str
) -> None:
    door.peer.error = error
    answer = await door.call("POST", "/v1/request", json={"key": "P-1/model"})
    assert answer == (code, {"error": str(error), "kind": kind})


async def test_a_bug_is_not_told_to_callers(door: Door) -> None:
    door.peer.error = ValueError("secret detail")
    status, body = await door.call("POST", "/v1/request", json={"key": "P-1/model"})
    assert (status, body["kind"]) == (500, "internal")
    assert "secret" not in body["error"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "not JSON"),
        (b"[" * 60_000, "the request's body is"),
        (b'{"key": 7}', "wrong at key: Expected `str`, got `int`"),
        (b'{"key": "P/model", "versio": 1}', "unknown field `versio`"),
        (b'{"key": "model"}', "write PART/KIND"),
        (b'{"key": "P/model", "version": -1}', "wrong at version"),
    ],
)
async def test_bad_bodies_are_named(door: Door, body: bytes, sentence: str) -> None:
    status, answer = await door.call("POST", "/v1/request", data=body)
    assert (status, answer["kind"]) == (400, "local")
    assert sentence in answer["error"]


async def test_bodies_are_bounded_and_unknown_paths_are_said(door: Door) -> None:
    status, answer = await door.call("POST", "/v1/request", data=b" " * (MAX_BODY_BYTES + 1))
    assert status == 413
    status, answer = await door.call("GET", "/v2/anything")
    assert (status, answer["kind"]) == (404, "missing")
    status, answer = await door.call("GET", "/v1/request")
    assert status == 405


async def test_only_loopback_and_a_port_that_is_free(door: Door, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="loopback only"):
        ApiServer(door.peer, tmp_path, "0.0.0.0")  # type: ignore[arg-type]
    second = ApiServer(door.peer, tmp_path, port=door.server.port)  # type: ignore[arg-type]
    with pytest.raises(LocalError, match=f"port {door.server.port}.*set api.port"):
        await second.start()


# --- two real peers -----------------------------------------------------------------------------


@dataclass
class Cell:
    mill: ApiClient
    lathe: ApiClient
    pool: Genesis
    folder: Path
    stop: Callable[[], Any]


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    async with AsyncExitStack() as stack:
        authority = tmp_path / "authority"
        make_peer_folder(tmp_path / "mill", PeerPlan("mill", "test", "coordinator", "Milling"), authority)
        mill = await stack.enter_async_context(Peer.open(tmp_path / "mill"))
        known = KnownPeer("mill", f"{mill.addresses[0]}/p2p/{mill.id}")
        plan = PeerPlan("lathe", "test", coordinators=(mill.id,), known_peers=(known,))
        make_peer_folder(tmp_path / "lathe", plan, authority)
        lathe = await stack.enter_async_context(Peer.open(tmp_path / "lathe"))
        pool = await mill.form_pool("cell", "fixed", await gather_members(mill, ["mill", "lathe"], 60))
        await pool_stands(pool, [mill, lathe], 60)
        servers = {peer.name: ApiServer(peer, tmp_path / peer.name) for peer in (mill, lathe)}
        for server in servers.values():
            await server.start()
            stack.push_async_callback(server.close)
        clients = [
            await stack.enter_async_context(ApiClient.of(tmp_path / name)) for name in ("mill", "lathe")
        ]
        yield Cell(clients[0], clients[1], pool, tmp_path, servers["lathe"].close)


async def test_data_goes_from_a_file_here_to_a_file_there(cell: Cell) -> None:
    data = bytes(range(256)) * 12_000
    source, out = cell.folder / "model.stl", cell.folder / "copy.stl"
    source.write_bytes(data)
    published = await cell.mill.publish("P-1/model", source, chain="cell")
    assert (published["version"], published["size_bytes"]) == (1, len(data))
    assert published["chain"] == cell.pool.chain

    offers = await cell.lathe.request("P-1/model")
    assert [offer["holder_name"] for offer in offers] == ["mill"]
    assert offers[0]["root"] == published["root"]
    assert offers[0]["proof"]["height"] == published["height"]

    seen: list[tuple[int, int, int]] = []
    fetched = await cell.lathe.fetch("P-1/model", out, progress=lambda *step: seen.append(step))
    assert out.read_bytes() == data
    assert (fetched["root"], fetched["holder_name"]) == (published["root"], "mill")
    assert [share["size_bytes"] for share in fetched["shares"]] == [len(data)]
    assert all(done <= size == len(data) and sources == 1 for done, size, sources in seen)
    assert not list(cell.folder.glob(".copy*"))

    status = await cell.lathe.status()
    assert (status.name, status.totals.answered, status.totals.bytes_received) == ("lathe", 1, len(data))


async def test_many_keys_go_into_a_folder(cell: Cell) -> None:
    data = {
        f"P-{number}/{kind}": f"{number} {kind}".encode() for number in range(3) for kind in ("model", "a.b")
    }
    data["../features"] = b"up"
    for key, content in data.items():
        source = cell.folder / "source"
        source.write_bytes(content)
        await cell.mill.publish(key, source, chain="cell")
    out = cell.folder / "out"
    out.mkdir()
    seen: list[tuple[int, int, int]] = []
    for _ in range(100):  # until all offers stand on the requester's side, too
        with suppress(LocalError):
            done = await cell.lathe.fetch_many(["P-*/model", "P-2/a.b", "../features"], out)
            if len(done["fetched"]) == 4:
                break
        await asyncio.sleep(0.1)
    wanted = {"P-0/model", "P-1/model", "P-2/model", "P-2/a.b"}
    assert {one["key"] for one in done["fetched"]} == wanted
    assert [one["key"] for one in done["failed"]] == ["../features"]
    assert "fetch it alone" in done["failed"][0]["problem"]
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == wanted
    assert all((out / key).read_bytes() == data[key] for key in wanted)
    done = await cell.lathe.fetch_many(["P-?/a.b"], out, progress=lambda *step: seen.append(step))
    assert len(done["fetched"]) == 3
    for bad, complaint in (("P-7*", "matches nothing"), ("P-7", "is not a data key")):
        with pytest.raises(LocalError, match=complaint):
            await cell.lathe.fetch_many([bad], out)
    with pytest.raises(LocalError, match="is not a folder"):
        await cell.lathe.fetch_many(["P-1/model"], cell.folder / "none")


async def test_blocks_can_be_read_by_name_and_height(cell: Cell) -> None:
    source = cell.folder / "data"
    source.write_bytes(b"data")
    published = await cell.mill.publish("P-1/model", source)
    (chain,) = await cell.lathe.chains()
    while chain.height < published["height"]:  # the mill may have been told first
        await asyncio.sleep(0.05)
        (chain,) = await cell.lathe.chains()
    assert (chain.id, chain.name, chain.height) == (cell.pool.chain, "cell", published["height"])
    for name in ("cell", cell.pool.chain, cell.pool.chain[:8]):
        block = await cell.lathe.block(name, published["height"])
        assert block["records"][published["index"]]["kind"] == "offer"
        assert block["records"][published["index"]]["author_name"] == "mill"
        assert {vote["name"] for vote in block["votes"]} == {"mill", "lathe"}
    with pytest.raises(LocalError, match="has no block at height 999"):
        await cell.lathe.block("cell", 999)
    with pytest.raises(LocalError, match=r"no chain 'shell' here: there are cell"):
        await cell.lathe.block("shell", 1)


async def test_what_cannot_be_done_is_said_before_anything_moves(cell: Cell) -> None:
    out = cell.folder / "out"
    with pytest.raises(Unavailable, match="P-9/model"):
        await cell.lathe.fetch("P-9/model", out, timeout_ms=20_000)
    assert not out.exists()
    with pytest.raises(LocalError, match="make the folder first"):
        await cell.lathe.fetch("P-9/model", cell.folder / "none" / "out")
    with pytest.raises(LocalError, match="is a folder"):
        await cell.lathe.fetch("P-9/model", cell.folder)
    with pytest.raises(LocalError, match="not a file that the peer can see"):
        await cell.mill.publish("P-9/model", cell.folder / "none")
    assert await cell.lathe.request("P-9/model") == []


async def test_a_peer_that_does_not_run_is_said_to_be_so(cell: Cell, tmp_path: Path) -> None:
    endpoint = tmp_path / "lathe" / "api.json"
    assert json.loads(endpoint.read_text())["url"].startswith("http://127.0.0.1:")
    await asyncio.wait_for(cell.stop(), 30)
    assert not endpoint.exists()
    with pytest.raises(LocalError, match=r"not running: start it with 'edgepool run .*lathe'"):
        ApiClient.of(tmp_path / "lathe")
    with pytest.raises(LocalError, match="is no gateway's folder"):
        ApiClient.of(tmp_path)

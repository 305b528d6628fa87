"""A pool whose machines accept nothing from outside: it forms, commits and moves data through a conduit."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from peer_cell import formed, make_coordinator, make_machine

from edgepool import Peer
from edgepool.bench.conduit import measure_conduit
from edgepool.config import ConduitSettings, load_peer_settings
from edgepool.model.ids import split_address, with_peer


class Tap:
    """A wire that writes down what passes: what a conduit sees, in both directions of each connection."""

    def __init__(self, host: str, port: int) -> None:
        self.streams: list[bytearray] = []
        self._there = (host, port)
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Return the port."""
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._there)
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = bytearray()
        self.streams.append(seen)
        try:
            while data := await reader.read(65536):
                seen += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def inner_cell(folder: Path, machines: int) -> AsyncIterator[tuple[Peer, list[Peer], Tap]]:
    """Open a coordinator that is a conduit, and machines that accept nothing; the first is tapped."""
    async with AsyncExitStack() as stack:
        settings = load_peer_settings(make_coordinator(folder))
        cloud = await stack.enter_async_context(Peer(replace(settings, conduit=ConduitSettings(serve=True))))
        host, port, *_ = split_address(cloud.addresses[0])
        tap = Tap(host, port)
        tapped = f"/ip4/127.0.0.1/tcp/{await tap.start()}"
        stack.callback(tap.close)
        peers = []
        for number in range(machines):
            settings = load_peer_settings(make_machine(folder, f"m{number}", cloud))
            conduit = with_peer(cloud.addresses[0] if number else tapped, cloud.id)
            settings = replace(settings, listen="", conduits=(conduit,))
            peers.append(await stack.enter_async_context(Peer(settings)))
        yield cloud, peers, tap


async def test_a_pool_of_machines_that_accept_nothing_works_and_its_conduit_reads_nothing(
    tmp_path: Path,
) -> None:
    async with inner_cell(tmp_path, 3) as (cloud, machines, tap):
        everybody = [cloud, *machines]
        await formed(cloud, everybody)
        # The surface of a part: bytes that nobody finds by chance.
        data = secrets.token_bytes(1_280_000)
        await machines[0].publish("PTVA1-1/surface", data=data)
        shown: set[tuple[str, bool, str, str]] = set()

        def look(_: object) -> None:
            for peer in machines[:2]:
                rows = peer.status().transfers
                shown.update((peer.name, row.outgoing, row.conduit, row.road) for row in rows)

        fetched = await machines[1].fetch("PTVA1-1/surface", progress=look)
        assert fetched.read() == data
        assert shown == {("m0", True, "cloud", "tls"), ("m1", False, "cloud", "tls")}
        assert fetched.holder == machines[0].id
        # Back again, too: the holder is the other side of the circuit now.
        answer = secrets.token_bytes(128_000)
        await machines[1].publish("PTVA1-1/model", data=answer)
        assert (await machines[0].fetch("PTVA1-1/model")).read() == answer

        totals = machines[1].status().totals
        assert totals.received_by_conduit == {cloud.id: len(data)}
        assert machines[1].metrics()["edgepool_data_received_through_conduits_bytes_total"] == len(data)
        assert machines[0].status().totals.sent_by_conduit == {cloud.id: len(data)}
        assert machines[0].metrics()["edgepool_data_sent_through_conduits_bytes_total"] == len(data)

        # Small data of one holder, which comes at once, is counted alike.
        for n in range(3):
            await machines[0].publish(f"PTVA1-{n}/features", data=b"few" * 100)
        many = [f"PTVA1-{n}/features" for n in range(3)]
        assert len((await machines[1].fetch_many(many)).fetched) == 3
        assert machines[0].status().totals.sent_by_conduit == {cloud.id: len(data) + 900}
        assert machines[1].status().totals.received_by_conduit == {cloud.id: len(data) + 900}

        paths = {link.name: link.conduit for link in machines[0].status().links}
        assert paths == {"cloud": "", "m1": "cloud", "m2": "cloud"}
        served = cloud.status().conduit
        assert served is not None
        assert served.places == ["m0", "m1", "m2"]
        between = next(pair for pair in served.pairs if set(pair.names) == {"m0", "m1"})
        assert between.bytes > len(data) + len(answer)
        assert cloud.metrics()["edgepool_conduit_passed_bytes_total"] >= between.bytes
        assert any(stream.startswith(b"ep-circ1") for stream in tap.streams), "no circuit was tapped"
        assert sum(map(len, tap.streams)) > len(data) + len(answer)
        for secret in (data[:64], answer[:64], b"PTVA1-1", b"surface"):
            assert not any(secret in stream for stream in tap.streams)


async def test_the_cost_of_a_conduit_is_measured_beside_the_direct_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepool.bench.conduit.QUICK_BYTES", 2 * 1024 * 1024)
    figures = await measure_conduit(True, tmp_path)
    assert [figure.name for figure in figures] == ["link", "round_trip", "transfer", "conduit_cpu"]
    assert all(figure.value > 0 for figure in figures)
    assert all(figure.beside == "the direct path" for figure in figures[:3])

"""`edgepool bench transfer`: what it measures is really moved and checked; the shape of its report."""

import asyncio
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from edgepool.bench.limiter import Limiter, TokenBucket
from edgepool.bench.run import this_machine
from edgepool.bench.transfer import run as run_module
from edgepool.bench.transfer.bars import BARS, find, judge
from edgepool.bench.transfer.delta import EDITED, make_versions
from edgepool.bench.transfer.material import GIB, MIB, Data, make_data, make_files, make_sides
from edgepool.bench.transfer.order import QUICK, Order
from edgepool.bench.transfer.peers import PEERS, PeerKind
from edgepool.bench.transfer.peers.arrival import Arrival
from edgepool.bench.transfer.run import NAMES, TransferReport, measure_transfer
from edgepool.bench.transfer.side import Side
from edgepool.cli.main import app
from edgepool.errors import LocalError, Unavailable
from edgepool.model.crypto import data_hash


def test_data_has_the_digest_that_is_told_and_no_pattern(tmp_path):
    data = make_data(tmp_path / "data", 5 * MIB + 7)
    content = data.path.read_bytes()
    assert len(content) == data.size_bytes == 5 * MIB + 7
    assert data_hash(content).hex() == data.digest
    assert len({content[place : place + 16] for place in range(0, MIB, 16)}) == MIB // 16
    assert make_data(tmp_path / "other", 100, seed=1).digest != make_data(tmp_path / "third", 100).digest


def test_two_versions_differ_where_they_should(tmp_path):
    old, new = (path.read_bytes() for path in make_versions(tmp_path, 1_000_000))
    changed = sum(a != b for a, b in zip(old, new, strict=True))
    assert 0.9 * EDITED < changed / 1_000_000 < EDITED


async def copied(tmp_path, means, data, **options):
    """Copy once between two sides in this process."""
    holder, requester = (Side(folder) for folder in make_sides(tmp_path, "holder", "requester"))
    try:
        where = await holder.send(means, "127.0.0.1", str(data.path))
        await requester.connect(means, [where], data.size_bytes, data.digest)
        return await requester.receive(options)
    finally:
        await requester.end()
        await holder.end()


@pytest.mark.parametrize("means", ["lane", "bare", "bare_tcp", "peers.http"])
@pytest.mark.parametrize("keep", [False, True])
async def test_a_copy_is_timed_and_leaves_nothing(tmp_path, means, keep):
    told = await copied(tmp_path, means, make_data(tmp_path / "data", 3 * MIB + 5), keep=keep)
    assert told["took_s"] > 0
    assert told["cpu_s"] > 0
    assert not list((tmp_path / "requester").rglob("*.data"))
    assert not (tmp_path / "requester" / "kept").exists()


@pytest.mark.parametrize("means", ["bare", "bare_tcp", "peers.http"])
async def test_a_copy_of_other_bytes_is_no_measurement(tmp_path, means):
    data = replace(make_data(tmp_path / "data", MIB), digest="00" * 32)
    with pytest.raises((Unavailable, ConnectionError), match="other bytes"):
        await copied(tmp_path, means, data)


async def test_of_a_new_version_only_differences_travel(tmp_path):
    (tmp_path / "versions").mkdir()
    old, _ = make_versions(tmp_path / "versions", 2 * MIB)
    told = await copied(tmp_path, "lane", Data(tmp_path / "versions", 2 * MIB, ""), old=str(old))
    assert EDITED * 0.5 < told["wire_bytes"] / (2 * MIB) < 0.1


@pytest.mark.parametrize("means", ["lane", "bare_echo"])
async def test_round_trips_are_timed(tmp_path, means):
    told = await copied(tmp_path, means, make_data(tmp_path / "data", 1024), trips=5)
    assert told["took_s"] > told["p50_s"] > 0


async def test_many_small_files_are_all_fetched(tmp_path):
    data = make_files(tmp_path / "many", 5, 1000)
    assert (await copied(tmp_path, "lane", data))["took_s"] > 0
    (tmp_path / "many/000003").unlink()
    with pytest.raises(Unavailable, match="4000 of 5000 bytes"):
        await copied(tmp_path / "again", "lane", data)


def test_an_arrival_is_right_only_if_every_byte_is():
    content = b"abc" * 100
    digest = data_hash(content).hex()
    good, short, long, other = (Arrival(300, digest) for _ in range(4))
    assert [good.take(content[:200]), good.take(memoryview(content)[200:])] == [False, True]
    good.check()
    short.take(content[:-1])
    long.take(content + b"a")
    other.take(content[:-1] + b"d")
    for wrong in (short, long, other):
        with pytest.raises(Unavailable, match="other bytes"):
            wrong.check()


# --- limits ---------------------------------------------------------------------------------------


def test_a_bucket_lets_its_rate_through():
    now_s = [0.0]
    bucket = TokenBucket(1000.0, lambda: now_s[0])
    sent_bytes = 0
    while now_s[0] < 10:
        now_s[0] += bucket.wait_s(64)
        sent_bytes += 64
    assert sent_bytes == pytest.approx(10_000, rel=0.02)
    now_s[0] += 100  # a pause is no credit
    assert bucket.wait_s(20) == 0
    assert bucket.wait_s(1000) == pytest.approx(1.0, rel=0.05)


async def test_a_limiter_passes_bytes_on_both_ways_and_ends_with_either_side():
    async def shout(reader, writer):
        writer.write((await reader.readexactly(4)).upper())
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    limiter = Limiter()
    try:
        port = await limiter.before("127.0.0.1", server.sockets[0].getsockname()[1], 1e6)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"abcd")
        async with asyncio.timeout(60):
            assert await reader.read() == b"ABCD"
        writer.close()
    finally:
        await limiter.close()
        server.close()


# --- the report -------------------------------------------------------------------------------------


def test_bars_are_judged_by_their_sense_and_only_if_measured():
    figures = {"single": {"ratio": 0.9, "cpu_s_per_GiB": 0.71}, "multi": {"1": {"fraction": 0.93}}}
    verdicts = {verdict.path: verdict.reached for verdict in judge(figures)}
    assert verdicts == {"single.ratio": True, "single.cpu_s_per_GiB": False, "multi.1.fraction": False}
    assert find(figures, "multi.2.fraction") is None
    assert {bar.path.partition(".")[0] for bar in BARS} <= set(NAMES)


def test_a_peer_that_is_not_installed_says_what_to_do():
    assert "pip install 'edgepool[bench]'" in PeerKind("x", "", "x", "no_such_package", "x-dist").missing()
    assert PeerKind("x", "", "x", "asyncio", "x").missing() == ""
    assert len({peer.name for peer in PEERS}) == len(PEERS) == 6


async def test_parts_fail_alone_and_what_is_skipped_is_named(monkeypatch):
    async def single(order, folder, tell, with_peers):
        assert with_peers == peers
        tell("at it")
        return {"single": {"ratio": 0.95}, "skipped": {"grpc_tls": "not here"}}

    async def fail(order, folder, tell):
        raise Unavailable("nobody there")

    async def hang(order, folder, tell):
        await asyncio.Event().wait()

    monkeypatch.setattr(run_module, "measure_single", single)
    monkeypatch.setattr(run_module, "_PARTS", {"multi": fail, "mixed": hang})
    monkeypatch.setattr(run_module, "LONGEST_S", 0.05)
    told = []
    peers = True
    report = await measure_transfer(QUICK, tell=told.append)
    assert told == ["single: at it"]
    assert report.skipped == {"peers.grpc_tls": "not here"}
    assert report.problems == {"multi": "nobody there", "mixed": "not done within 0.05 s"}
    assert [verdict.reached for verdict in report.verdicts] == [True]
    peers = False
    assert (await measure_transfer(QUICK, ["single"])).problems == {}
    with pytest.raises(LocalError, match=r"'nope'.*single"):
        await measure_transfer(QUICK, ["single", "nope"])


@pytest.mark.parametrize("problems", [{}, {"delta": "not yet"}])
def test_the_command_has_stable_keys_and_shows_bars(monkeypatch, problems):
    asked = []

    async def measure(order, names, tell=None):
        asked.append((order, names))
        figures = {
            "single": {"MBps": 1234.0, "ratio": 0.8},
            "peers": {"x": {"what": "an x", "MBps": 10.0, "cpu_s_per_GiB": 1.0, "ratio": 123.4}},
            "multi": {"1": {"fraction": 0.95, "forbidden": "no rights"}},
        }
        return TransferReport(
            1, "0", this_machine(), order, 1.0, figures, judge(figures), {"peers.y": "no y here"}, problems
        )

    monkeypatch.setattr(run_module, "measure_transfer", measure)
    arguments = [
        "bench",
        "transfer",
        "--size",
        "2M",
        "--rounds",
        "3",
        "--only",
        "single,multi",
        "--only",
        "peers",
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == bool(problems)
    assert asked == [(Order(size_bytes=2 * MIB, rounds=3), ["single", "multi", "peers"])]
    report = json.loads(result.stdout)
    assert {"format", "machine", "verdicts", "skipped", "problems", "single", "peers", "multi"} <= set(report)
    text = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"}).stdout
    for words in ("1,234", "an x", "missed", "reached", "no y here", "no rights", *problems.values()):
        assert words in text


@pytest.mark.parametrize(("text", "size_bytes"), [("1G", GIB), ("256MiB", 256 * MIB), ("2000000", 2_000_000)])
def test_sizes_are_written_as_people_do(monkeypatch, text, size_bytes):
    async def measure(order, names, tell=None):
        assert order.size_bytes == size_bytes
        raise LocalError("enough")

    monkeypatch.setattr(run_module, "measure_transfer", measure)
    assert "enough" in CliRunner().invoke(app, ["bench", "transfer", "--size", text]).output


@pytest.mark.parametrize("text", ["", "0", "1T", "-5M", "1000", "many"])
def test_a_size_that_is_none_is_refused(text):
    result = CliRunner().invoke(app, ["bench", "transfer", "--size", text])
    assert result.exit_code == 2
    assert "no size of 1 MiB or more" in result.output

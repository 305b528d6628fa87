"""The benchmark: shapes of its results, and that what it measures is really done."""

import asyncio
import json
import os
from contextlib import AsyncExitStack
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from edgepool.bench import ceiling as ceiling_part
from edgepool.bench import length as length_part
from edgepool.bench import load as load_part
from edgepool.bench import members as members_part
from edgepool.bench import pools as pools_part
from edgepool.bench import records as records_part
from edgepool.bench import run as run_module
from edgepool.bench.answerer import Answerer
from edgepool.bench.bare import FileReceiver
from edgepool.bench.ceiling import Ceiling
from edgepool.bench.chain import NAMES, _burst, _gentle, form_pool
from edgepool.bench.figures import Figure, Rounds, alternate, figure_of, percentile, timed
from edgepool.bench.length import measure_length
from edgepool.bench.link import Asker, _connect, manifest_of, round_trips
from edgepool.bench.load import PHASES, LoadReport, Spent, cost_of_an_empty_block
from edgepool.bench.longchain import LongChain
from edgepool.bench.material import NETWORK, make_block, make_pool, make_records
from edgepool.bench.members import Members
from edgepool.bench.pools import formula_per_s, gini, measure_pools, messages_per_block, tradeoff, turn_shares
from edgepool.bench.processes import Helper
from edgepool.bench.run import PARTS, Part, run
from edgepool.cli.main import app
from edgepool.core.ledger.state import ChainState
from edgepool.errors import LocalError, Unavailable
from edgepool.gateway.setup import PeerPlan, make_peer_folder, read_peer_id
from edgepool.model.block import CertifiedBlock
from edgepool.model.codec import encode
from edgepool.model.pool import Member
from edgepool.model.record import SignedRecord
from edgepool.storage.store import read_chain


@pytest.fixture
def brief(monkeypatch):
    """Let parts take two rounds of a millisecond."""
    monkeypatch.setattr(records_part, "_effort", lambda quick: (2, 0.001))


# --- figures --------------------------------------------------------------------------------------


def test_a_figure_is_the_median_and_its_ratio_the_median_of_the_rounds_ratios():
    figure = figure_of("x", "an x", "us", [1.0, 10.0, 4.0], [1.0, 2.0, 4.0], "bare x")
    assert (figure.value, figure.lowest, figure.highest, figure.bare) == (4.0, 1.0, 10.0, 2.0)
    assert figure.ratio == 1.0


def test_without_a_bare_thing_there_is_no_ratio():
    assert figure_of("x", "an x", "ms", [1.0]) == Figure("x", "an x", "ms", 1.0, 1.0, 1.0)


def test_rates_are_better_when_higher_and_times_when_lower():
    rounds = Rounds((0.5, 0.5), (0.25, 0.25))
    assert rounds.figure("t", "", "ms", "b").ratio == 2.0
    rate = rounds.figure("r", "", "MB/s", "b", amount=100)
    assert (rate.value, rate.bare, rate.ratio) == (200, 400, 0.5)


def test_both_sides_run_in_turn_and_the_first_round_does_not_count():
    calls = []

    def side(name):
        def call():
            calls.append(name)
            return float(len(calls))

        return call

    rounds = alternate(side("ours"), side("bare"), 3)
    assert calls == ["ours", "bare"] * 4
    assert (rounds.ours, rounds.bare) == ((3.0, 5.0, 7.0), (4.0, 6.0, 8.0))


def test_what_is_timed_is_called():
    calls = []
    round_of = timed(lambda: calls.append(None), 0.001, units=4)
    before = len(calls)
    assert round_of() > 0
    assert len(calls) > before


def test_percentiles():
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([float(n) for n in range(100)], 99) == 99.0
    assert percentile([7.0], 99) == 7.0


# --- parts in this process --------------------------------------------------------------------------


def test_the_made_up_records_and_blocks_would_stand_on_a_real_chain():
    pool = make_pool(4)
    records = make_records(pool, 3)
    state = ChainState(pool.genesis)
    draft = state.draft()
    assert [draft.add(signed) for signed in records] == [""] * 15
    assert all(signed.authentic() for signed in records)
    certified = make_block(pool, 1, state.last_block_id, records)
    assert certified.block.body_problem() == ""
    assert certified.certificate.problem(NETWORK, state.chain, state.members) == ""
    state.apply(certified.block)
    assert state.counts["completion"] == 3
    assert pool.genesis.problem(NETWORK) == ""


def test_codec_measures_the_encoding_of_real_records(brief, monkeypatch):
    decoded = []
    real = records_part.decode
    monkeypatch.setattr(records_part, "decode", lambda kind, data: decoded.append(real(kind, data)))
    size, encoding, decoding = records_part.measure_codec(True)
    records = make_records(make_pool(4), 10)
    assert size.value == sum(len(encode(record)) for record in records) / len(records)
    assert set(decoded) == set(records)
    assert encoding.value > 0
    assert decoding.ratio > 0


def test_signatures_and_ledger_have_their_figures(brief):
    assert [figure.name for figure in records_part.measure_signatures(True)] == ["sign", "verify"]
    figures = records_part.measure_ledger(True)
    assert [figure.name for figure in figures] == ["add", "apply", "draw_4", "draw_30"]
    assert all(figure.value > 0 and figure.ratio > 0 and figure.beside for figure in figures)


def test_store_leaves_real_blocks_on_disk(tmp_path):
    size, commit = records_part.measure_store(True, tmp_path)
    _, found = read_chain(tmp_path / "store", make_pool(4).genesis.chain)
    blocks = [block for _, block in found]
    assert len(blocks) == 31
    assert all(isinstance(block, CertifiedBlock) and len(block.block.records) == 100 for block in blocks)
    assert size.value == pytest.approx(len(encode(blocks[0])), rel=0.01)
    assert (tmp_path / "bare.log").stat().st_size == pytest.approx(31 * size.value, rel=0.01)
    assert commit.unit == "ms"


# --- links and chains -------------------------------------------------------------------------------


async def test_a_link_is_asked_and_all_data_arrives(tmp_path):
    size_bytes = 2 * 1024 * 1024
    settings = make_peer_folder(tmp_path / "asker", PeerPlan("asker", NETWORK), tmp_path / "authority")
    plan = PeerPlan("answerer", NETWORK)
    holder = read_peer_id(make_peer_folder(tmp_path / "answerer", plan, tmp_path / "authority"))
    answerer = Answerer(tmp_path)
    far = await answerer.open(size_bytes)
    asker = Asker(settings, Member(holder, "answerer", "", far["addresses"]))
    try:
        await asker.open()
        assert await asker.ask(b"x" * 1024) == b"x" * 1024
        await asker.transfer(manifest_of(far, size_bytes))
        async with asyncio.timeout(60), AsyncExitStack() as stack:
            for digest, right in ((far["digest"], True), ("00" * 32, False)):
                receiver = await _connect(
                    stack,
                    asker.identity,
                    far["file_port"],
                    lambda digest=digest: FileReceiver(size_bytes, bytes.fromhex(digest)),
                )
                if right:
                    await receiver.receive()
                else:
                    with pytest.raises(ConnectionError):
                        await receiver.receive()
    finally:
        await asker.close()
        await answerer.end()


async def test_an_answer_with_other_bytes_is_no_measurement():
    async def echo(data):
        return data

    async def liar(data):
        return data[::-1]

    rounds = await round_trips(echo, echo, 2, 3)
    assert (len(rounds.ours), len(rounds.bare)) == (2, 2)
    with pytest.raises(Unavailable):
        await round_trips(echo, liar, 2, 3)


class InProcess:
    """Stands for a helper process, without the process."""

    def __init__(self, folder):
        self.members = Members(folder)

    async def ask(self, question, **arguments):
        return await getattr(self.members, question)(**arguments)


async def test_a_burst_ends_up_on_the_chain_of_every_member(tmp_path):
    helper = InProcess(tmp_path)
    try:
        await form_pool([helper], tmp_path, NAMES)
        took_ms = await _gentle([helper], 0.05)
        burst = await _burst([helper], 5)
        peers = helper.members._peers
        assert [peer.name for peer in peers] == list(NAMES)
        for peer in peers:
            assert peer.chain_state(peer.chains[0]).counts["offer"] == len(took_ms) + 20
        assert burst["records_per_s"] > 0
        assert 0 < burst["per_block"] <= 20
        assert burst["cpu_us"] > 0
    finally:
        await helper.members.end()


async def test_a_flood_counts_what_is_final_and_what_is_lost(tmp_path, monkeypatch):
    helper = InProcess(tmp_path)
    members = helper.members
    try:
        await form_pool([helper], tmp_path, NAMES)
        flood = await members.flood(under_way=3, warm_s=0.05, duration_s=0.2)
        assert flood["records"] >= flood["blocks"] > 0
        assert flood["time_s"] >= 0.2
        assert flood["cpu_s"] > 0
        written = await members.written()
        assert {name: unanswered for name, (_, unanswered) in written.items()} == {name: [] for name in NAMES}
        assert sum(count for count, _ in written.values()) >= flood["records"]
        assert await members.missing(written) == 0
        count = written["mill"][0]
        monkeypatch.setattr(members_part, "STAND_S", 0.01)
        assert await members.missing({"mill": (count + 1, [])}) == len(NAMES)
        assert await members.missing({"mill": (count + 1, [count + 1])}) == 0
    finally:
        await members.end()


async def test_the_ceiling_takes_each_record_through_all_that_is_necessary(tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling_part, "BLOCKS", 1)
    ceiling = Ceiling(tmp_path)
    assert 390 <= await ceiling.prepare(4) <= 410
    assert all(value > 0 for value in (await ceiling.run()).values())
    _, blocks = read_chain(tmp_path / "ceiling-0", make_pool(4).genesis.chain)
    assert [len(block.block.records) for _, block in blocks] == [500]
    monkeypatch.setattr(SignedRecord, "authentic", lambda self: False)
    with pytest.raises(LocalError):
        await ceiling.run()


@pytest.mark.parametrize("lost", [0, 1])
def test_the_load_report_has_stable_keys_and_a_loss_is_a_failure(lost, monkeypatch):
    async def measure(validators, seconds, on_phase=None):
        assert (validators, seconds) == (7, 4.0)
        return LoadReport(
            7, 7, 2, 403, 4000.0, 5000.0, 0.8, 500.0, 500.0, 9.0, 20.0, 0.1, 80.0, 60.0, 70.0, lost
        )

    monkeypatch.setattr(load_part, "measure_load", measure)
    arguments = ["bench", "ledger", "--validators", "7", "--seconds", "4"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == lost
    report = json.loads(result.stdout)
    assert {"validators", "committed_per_s", "ceiling_per_s", "ratio", "p50_ms", "p99_ms"} <= set(report)
    assert {"rtt_ms", "cpu_us_per_record", "rss_MiB", "lost"} <= set(report)
    text = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).stdout
    assert "4,000" in text
    assert "7 validators" in text


# --- pools of several sizes ---------------------------------------------------------------------------


def a_load(members, lost=0):
    """Return what a pool might give whose members spend 60 us on a record and 5 ms on a block."""
    return LoadReport(
        members, min(members, 4), 2, 403, 800.0, 900.0, 0.8, 200.0, 400.0, 9.0, 20.0, 0.1, 80.0, 60.0, 70.0,
        lost, 5.0, 5.0,
    )  # fmt: skip


def test_the_formula_counts_votes_and_blocks():
    assert [messages_per_block(n) for n in (1, 4, 30)] == [0, 27, 1_769]
    assert formula_per_s(2, 4, 52.0, 0.15 + 2 * 3 * 0.085, 500) == pytest.approx(9_377, abs=1)
    assert formula_per_s(2, 4, 52.0, 0.0, 1) == pytest.approx(2e6 / 4 / 52)


def test_what_a_block_costs_comes_of_two_sizes_of_blocks():
    def spent(blocks, records_each):
        return Spent(blocks * records_each, blocks, blocks * (0.005 + 60e-6 * records_each))

    assert cost_of_an_empty_block(spent(30, 4), spent(7, 250)) == pytest.approx(0.005)
    assert cost_of_an_empty_block(spent(30, 4), spent(7, 4)) == pytest.approx(0.00524)
    disturbed = Spent(120, 30, 30 * 0.05)  # dearer than large blocks: there is no line
    assert cost_of_an_empty_block(disturbed, spent(7, 250)) == pytest.approx(0.05)
    assert cost_of_an_empty_block(Spent(0, 0, 0.1), spent(7, 250)) == 0


@pytest.mark.parametrize(
    ("members", "borne", "to_stop", "to_fork", "to_rewrite"),
    [(1, 0, 1, 1, 1), (4, 1, 2, 2, 3), (7, 2, 3, 3, 5), (13, 4, 5, 5, 9), (30, 9, 10, 12, 21)],
)
def test_what_a_pool_bears_and_who_must_collude(members, borne, to_stop, to_fork, to_rewrite):
    found = tradeoff(members, 100.0, turns=50)
    assert (found.liars_borne, found.crashes_borne, found.copies) == (borne, borne, members)
    assert (found.to_stop, found.to_fork, found.to_rewrite) == (to_stop, to_fork, to_rewrite)
    assert found.nakamoto == borne + 1
    assert found.nakamoto_share > 1 / 3 or members == 30
    # The lottery leaves a tenth of a share to all, and a third of the work is the most that counts.
    assert found.sole_worker_share == pytest.approx((0.3 + 0.1 / members) / 0.4 if members > 1 else 1.0)


def test_turns_fall_evenly_to_equal_work():
    shares = turn_shares(4, 2_000)
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares)
    assert gini(shares) < 0.05
    assert gini([1, 1, 1, 1]) == pytest.approx(0)
    assert gini([0, 0, 0, 1]) == pytest.approx(0.75)


async def test_a_size_that_fails_is_a_problem_and_the_others_go_on(monkeypatch):
    async def measure(members, seconds, on_phase):
        if members == 7:
            raise Unavailable("too slow")
        for _ in range(PHASES):
            on_phase("flood")
        return a_load(members)

    told = []
    monkeypatch.setattr(pools_part, "measure_load", measure)
    report = await measure_pools(3.0, (1, 7, 13), lambda phase, share: told.append((phase, share)))
    assert (
        [pool.members for pool in report.pools] == [column.members for column in report.tradeoff] == [1, 13]
    )
    assert report.problems == {"7": "too slow"}
    assert told[0] == ("1 members: flood", 0)
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] < 1
    one, many = report.pools
    assert one.formula_per_s == pytest.approx(1e6 / 85), "one process cannot use two processors"
    assert many.formula_per_s == pytest.approx(2e6 / 13 / 85)
    assert many.ratio == pytest.approx(800 / many.formula_per_s)
    assert many.members_per_process == 4


@pytest.mark.parametrize("lost", [0, 1])
def test_the_pools_report_has_stable_keys_and_a_loss_is_a_failure(lost, monkeypatch):
    async def measure(members, seconds, on_phase):
        return a_load(members, lost)

    monkeypatch.setattr(pools_part, "measure_load", measure)
    monkeypatch.setattr(pools_part, "turn_shares", lambda members, turns: [1 / members] * members)
    result = CliRunner().invoke(app, ["bench", "pools", "--seconds", "3", "--json"])
    assert result.exit_code == lost
    report = json.loads(result.stdout)
    assert set(report) == {
        "format", "seconds", "duration_s", "processors", "load", "record_bytes", "pools", "tradeoff",
        "quoted_per_s", "problems",
    }  # fmt: skip
    assert [pool["members"] for pool in report["pools"]] == [1, 4, 7, 13, 30]
    assert {"committed_per_s", "formula_per_s", "ratio", "messages_per_block"} <= set(report["pools"][0])
    assert {"liars_borne", "to_stop", "to_fork", "nakamoto", "turns_gini"} <= set(report["tradeoff"][0])
    text = CliRunner().invoke(app, ["bench", "pools"], env={"COLUMNS": "80"}).stdout
    assert "1,769" in text
    assert "Nakamoto coefficient" in text


async def test_a_helper_process_tells_what_fails_and_leaves_with_its_pipe(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    async with Helper("members", folder) as helper:
        with pytest.raises(Unavailable, match="edgepool init"):
            await helper.ask("open", name="nobody")
        process = helper._process
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 60) == 0
        assert not folder.exists()


# --- the run and the command --------------------------------------------------------------------------


async def test_a_part_that_fails_is_a_problem_and_the_others_go_on(monkeypatch):
    async def fail(quick, folder):
        (folder / "something").write_text("left behind")
        folders.append(folder)
        raise Unavailable("nobody there")

    async def work(quick, folder):
        folders.append(folder)
        return [figure_of("one", "a one", "us", [1.0])]

    folders = []
    parts = {"bad": Part("bad", "", 1, fail), "good": Part("good", "", 1, work)}
    monkeypatch.setattr(run_module, "PARTS", parts)
    told = []
    report = await run(on_part=told.append)
    assert [part.name for part in told] == ["bad", "good"]
    assert report.problems == {"bad": "nobody there"}
    assert list(report.figures) == ["good"]
    assert len(folders) == 2
    assert not any(folder.exists() for folder in folders)


async def test_a_part_that_hangs_is_given_up(monkeypatch):
    async def hang(quick, folder):
        await asyncio.Event().wait()

    monkeypatch.setattr(run_module, "PARTS", {"slow": Part("slow", "", 1, hang)})
    monkeypatch.setattr(run_module, "QUICK_LIMIT_S", 0.01)
    report = await run(quick=True)
    assert list(report.problems) == ["slow"]


async def test_an_unknown_part_is_refused_by_name():
    with pytest.raises(LocalError, match=r"'nope'.*codec"):
        await run(["codec", "nope"])


def test_json_has_stable_keys(brief):
    result = CliRunner().invoke(app, ["bench", "--quick", "--only", "codec", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert set(report) == {"format", "edgepool", "quick", "duration_s", "machine", "figures", "problems"}
    assert list(report["figures"]) == ["codec.record", "codec.encode", "codec.decode"]
    figure = report["figures"]["codec.decode"]
    assert set(figure) == {"what", "unit", "value", "lowest", "highest", "bare", "ratio", "beside"}


def test_the_help_names_every_part():
    text = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "200"}).stdout
    assert all(part in text for part in PARTS)


async def test_a_long_chain_is_measured_beside_a_fresh_one(tmp_path):
    chains = LongChain(tmp_path)
    assert await chains.begin(10) == os.getpid()
    assert await chains.grow(5) == 50
    took = await chains.commits(4)
    assert took["ratio"] == pytest.approx(took["full"] / took["empty"])
    assert await chains.age() == 90, "there is no snapshot yet"
    assert await chains.grow(2) == 110
    _, found = read_chain(tmp_path / "long", chains._long.chain)
    assert [len(block.block.records) for _, block in found] == [10] * 11
    assert await chains.size_bytes() > 110 * 200
    await chains.end()
    other = LongChain(tmp_path)
    assert all(value > 0 for value in (await other.reopen(10)).values())
    assert other._long.state.height == 11
    assert all(value > 0 for value in (await other.look_ups(4)).values())
    assert all(value > 0 for value in (await other.finds(4)).values())
    wear = await other.wear(1, 3)
    assert 300 < wear["files"] < wear["written"], "votes and a block to each record are more than it is"
    await other.end()


async def test_what_was_killed_while_it_committed_is_opened_and_measured(monkeypatch):
    monkeypatch.setattr(length_part, "_ROUNDS", 3)
    monkeypatch.setattr(length_part, "_GO_ON_S", 0.1)
    told = []
    report = await measure_length(1_000, lambda phase, share: told.append(phase))
    assert report.records == 10 * 100 + 3 * 100
    assert list(dict.fromkeys(told))[:3] == ["growing", "committing to both", "killing it"]
    numbers = {name: value for name, value in asdict(report).items() if name != "index_s"}
    assert all(value > 0 for value in numbers.values())
    assert report.records_a_day > report.records_a_day_alone

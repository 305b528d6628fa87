"""Policies, refusals, audit and the regulator, with real processes and by commands alone [S1.2, S2.3]."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from commands import edgepool, told, until
from peer_cell import open_cell
from test_cli_run import make_pool, running, wait_for_pool

from edgepool.core.machine import ConfirmTransfer, RankedOffer
from edgepool.errors import Refused
from edgepool.model.policy import PolicyTerms
from edgepool.model.record import SignedRecord
from edgepool.model.transfer import CHACHA20_POLY1305, PLAIN, TransferRequest
from edgepool.peer.peer import Peer
from edgepool.peer.values import DataAsked
from edgepool.storage.audit import read_audit
from edgepool.transport.dial import DIRECT
from edgepool.transport.serving import TransferSource

KEY = "PTVA10212-03/model"


def height_at(folder: Path) -> int:
    if not (folder / "api.json").exists():
        return 0
    chains = told("status", folder)["chains"]
    return chains[0]["height"] if chains else 0


def test_a_policy_is_kept_a_refusal_is_named_and_a_regulator_sees_records_and_no_data(tmp_path: Path) -> None:
    make_pool(tmp_path)
    edgepool("init", tmp_path / "auditor", "--role", "regulator", "--known", tmp_path / "cloud")
    mill, lathe, auditor = tmp_path / "mill", tmp_path / "lathe", tmp_path / "auditor"
    data, copy = tmp_path / "part.stl", tmp_path / "copy.stl"
    data.write_bytes(b"facet " * 1000)
    with running(tmp_path / "cloud"), running(mill), running(lathe):
        wait_for_pool(lathe)
        edgepool("publish", mill, KEY, data)
        policy = ("policy", "set", mill, "PTVA10212-*/model", "--roles", "machine", "--until", "90d")
        assert "is set in block" in edgepool(*policy, "--purpose", "production,inspection")
        until(lambda: KEY.split("/")[1] in edgepool("policy", "show", lathe, KEY))
        said = edgepool("fetch", lathe, KEY, copy, "--purpose", "marketing", code=1)
        assert "refused by mill: purpose 'marketing' is not among production, inspection" in said
        assert "not for you: no purpose is stated" in edgepool("request", lathe, KEY)
        assert "came from mill" in edgepool("fetch", lathe, KEY, copy, "--purpose", "production")
        assert copy.read_bytes() == data.read_bytes()
        assert len(list((lathe / "origins").glob("*.bin"))) == 1, "the policy has come with the data"

        with running(auditor):
            until(lambda: height_at(auditor) >= height_at(mill) > 0)
            assert "a regulator may not ask who has data" in edgepool("request", auditor, KEY, code=1)
            assert "a regulator may not read data" in edgepool(
                "fetch", auditor, KEY, tmp_path / "no.stl", code=1
            )
            height = height_at(auditor)
            edgepool("policy", "drop", mill, "PTVA10212-*/model")
            until(lambda: height_at(auditor) > height)
        kinds = edgepool("chain", "query", auditor, "--kind", "policy", "--json")
        assert len(json.loads(kinds)) == 2
        assert not (auditor / "blobs").exists() or not list((auditor / "blobs").glob("*.data"))
    refused = json.loads(edgepool("audit", mill, "--refused", "--json"))
    assert [(one["name"], one["purpose"], one["granted"]) for one in refused] == [
        ("lathe", "marketing", False)
    ]
    assert "granted" in edgepool("audit", mill)


async def test_holders_refuse_what_the_policy_says_whatever_the_asker_runs(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        owner, other = cell.machines
        published = await owner.publish(KEY, b"data" * 1000, chain=cell.chain)
        regulator = await cell.join("auditor", "regulator")
        client = await cell.join("customer", "client")
        offer = (await other.request(KEY))[0]
        assert isinstance(offer, RankedOffer)

        async def ask(peer: Peer) -> object:
            until_ms = int(time.time() * 1000) + 60_000
            command = ConfirmTransfer(offer.holder, published.key, published.root, until_ms)
            return await peer.command(command, 20_000)

        events = owner.watch()
        with pytest.raises(Refused, match="refused by m0: a regulator may not read data"):
            await ask(regulator)
        with pytest.raises(Refused, match="refused by m0: a client may read data only where a policy"):
            await ask(client)
        (theirs,) = {one.organisation for one in owner.connected()}
        await owner.rights.set_policy(KEY, PolicyTerms(organisations=("Others",)), cell.chain)
        with pytest.raises(Refused, match=f"organisation '{theirs}' is not among those"):
            await other.fetch(KEY, chain=cell.chain)
        terms = PolicyTerms(organisations=(theirs,), roles=("client",))
        await owner.rights.set_policy(KEY, terms, cell.chain)
        await ask(client)
        with pytest.raises(Refused, match="refused by m0: role 'machine' is not among client"):
            await other.fetch(KEY, chain=cell.chain)
        with pytest.raises(Refused, match="a regulator may not read data"):
            await ask(regulator)
        told = []
        async for event in events:
            if isinstance(event, DataAsked):
                told.append((event.name, event.granted))
            if len(told) == 6:
                break
        refused = [("auditor", False), ("customer", False), ("m1", False)]
        assert told == [*refused, ("customer", True), ("m1", False), ("auditor", False)]
    entries = list(read_audit(tmp_path / "m0"))
    assert [(one.role, one.granted) for one in entries] == [
        ("regulator", False),
        ("client", False),
        ("machine", False),
        ("client", True),
        ("machine", False),
        ("regulator", False),
    ]


async def test_a_confirmation_given_before_does_not_help_once_the_policy_says_no(tmp_path: Path) -> None:
    async with open_cell(tmp_path, 2) as cell:
        owner, other = cell.machines
        published = await owner.publish(KEY, b"data" * 1000, chain=cell.chain)
        offer = (await other.request(KEY))[0]
        until_ms = int(time.time() * 1000) + 60_000
        command = ConfirmTransfer(offer.holder, published.key, published.root, until_ms)
        confirmation = await other.command(command, 20_000)
        assert isinstance(confirmation, SignedRecord)
        (asker,) = (one for one in owner.connected() if one.peer == other.id)
        request = TransferRequest(1, confirmation, bytes(32), (CHACHA20_POLY1305,), (PLAIN,), True, ())
        assert isinstance(owner.data.serve(asker, request, DIRECT), TransferSource)
        await owner.rights.set_policy("PTVA*/*", PolicyTerms(purposes=("inspection",)))
        reason = "no purpose is stated, and it must be one of inspection"
        assert owner.data.serve(asker, request, DIRECT) == reason
    granted, refused = read_audit(tmp_path / "m0")
    assert (granted.granted, granted.at) == (True, "confirmation")
    assert (refused.granted, refused.at, refused.reason) == (False, "transfer", reason)

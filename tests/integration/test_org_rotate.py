"""An organisation's root rotates by one command: who renews, who is waited for, what a power cut leaves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from commands import edgepool, told
from commands import until as asked_until
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from test_certificates_live import code_for, until
from test_cli_run import running
from test_join import make_registrar

from edgepool import Peer
from edgepool.errors import LocalError, RemoteError
from edgepool.gateway import authorities, rotating
from edgepool.gateway.newcomer import join_network
from edgepool.gateway.pools import form_fixed_pools
from edgepool.gateway.registrar import Registrar, open_registrar
from edgepool.gateway.renewing import renew_folder
from edgepool.model.certifying import RootFollows
from edgepool.transport.certificates import create_authority, vouch_for_root
from edgepool.transport.identity import BACKDATE_MS

WEEK_S = 7 * 86_400


@asynccontextmanager
async def registrar_in(folder: Path) -> AsyncIterator[tuple[Peer, Registrar]]:
    async with Peer.open(folder / "cloud") as cloud, open_registrar(cloud) as registrar:
        assert registrar is not None
        await form_fixed_pools(cloud)
        yield cloud, registrar


def root_in(authority: Path) -> bytes:
    pem = (authority / "authority.pem").read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


async def join(registrar: Registrar, folder: Path, name: str, pool: str = "") -> Path:
    await join_network(await code_for(registrar, name, pool), folder / name)
    return folder / name


def stage(registrar: Registrar) -> str:
    return registrar.rotation.status().stage


def waited_for(registrar: Registrar) -> list[str]:
    return [one.name for one in registrar.rotation.status().waiting]


def issuer(peer: Peer) -> str:
    return peer.trusting.own_root().hex()


def in_settings(folder: Path) -> str:
    return str(tomllib.loads((folder / "cloud/edgepool.toml").read_text())["authority"]["folder"])


async def test_members_renew_and_nothing_is_retired_that_one_still_needs(tmp_path: Path) -> None:
    make_registrar(tmp_path)
    async with registrar_in(tmp_path) as (cloud, registrar):
        mill_at = await join(registrar, tmp_path, "mill", "cell")
        away_at = await join(registrar, tmp_path, "away")
        async with Peer.open(mill_at) as mill:
            await until(lambda: cloud.pools[0].chain in mill.chains)
            before = (tmp_path / "cloud/edgepool.toml").read_text()
            begun = await registrar.rotation.begin(0, WEEK_S, False)
            assert begun.old == issuer(mill)
            await until(lambda: registrar.rotation.status().renewed == ["mill"])
            await until(lambda: stage(registrar) == "renewing" and waited_for(registrar) == ["away"])
            found = registrar.rotation.status()
            assert (found.retire_ms, found.void, found.folder) == (0, [], "../authority-2")
            assert (issuer(mill), issuer(cloud)) == (found.next, found.old)
            # The settings say so, and nothing else in them has changed.
            assert in_settings(tmp_path) == "../authority-2"
            after = (tmp_path / "cloud/edgepool.toml").read_text()
            assert after.replace('"../authority-2"', '"../authority"') == before
            # A code that was made before is good as long as somebody may need the old root, and who joins
            # with it renews at once.
            late_at, unused = await join(registrar, tmp_path, "late"), await code_for(registrar, "unused")
            # Who was away and is in no pool hears of the next root on its link; then the old one goes.
            async with Peer.open(late_at) as late, Peer.open(away_at) as away:
                await until(lambda: issuer(late) == issuer(away) == found.next)
                await until(lambda: stage(registrar) == "done")
                await until(
                    lambda: [one.fingerprint.hex() for one in mill.trusting.own_roots()] == [found.next]
                )
                await until(lambda: {one.name for one in cloud.connected()} == {"mill", "away", "late"})
            assert registrar.rotation.status().void == ["unused"]
            with pytest.raises(RemoteError, match="the code is old"):
                await join_network(unused, tmp_path / "unused")
            new_at = await join(registrar, tmp_path, "new")
        async with Peer.open(new_at) as new:
            await until(lambda: new.connected())
            assert issuer(new) == found.next


async def test_a_member_that_was_away_comes_back_within_the_overlap(tmp_path: Path) -> None:
    make_registrar(tmp_path)
    async with registrar_in(tmp_path) as (cloud, registrar), AsyncExitStack() as stack:
        places, peers = list[Path](), list[Peer]()
        for name in ("mill", "lathe", "saw"):
            places.append(await join(registrar, tmp_path, name, "cell"))
            peers.append(await stack.enter_async_context(Peer.open(places[-1])))
            of = len(peers) + 1
            await until(lambda: len(cloud.chain_state(cloud.pools[0].chain).next_roster) == of)  # noqa: B023
        await peers.pop().__aexit__()
        await registrar.rotation.begin(0, WEEK_S, False)
        await until(lambda: registrar.rotation.status().renewed == ["lathe", "mill"])
        assert waited_for(registrar) == ["saw"]
        async with Peer.open(places[-1]) as saw:
            await until(lambda: stage(registrar) == "done")
            await until(lambda: len(saw.connected()) == 3)
            assert {issuer(one) for one in (*peers, saw, cloud)} == {registrar.rotation.status().next}


async def test_a_next_root_is_believed_for_the_old_ones_voucher_alone(tmp_path: Path) -> None:
    make_registrar(tmp_path)
    async with registrar_in(tmp_path) as (cloud, registrar):
        client_at = await join(registrar, tmp_path, "client")
        async with Peer.open(client_at) as client:
            await until(client.connected)
            (known,) = client.trusting.own_roots()
            await until(lambda: time.time() * 1000 > known.valid_from_ms + BACKDATE_MS + 1_000)
            for name, organisation in (
                ("stolen", "Test works"),
                ("other", "Other works"),
                ("good", "Test works"),
            ):
                create_authority(tmp_path / name, organisation)
            stolen, other, good = (root_in(tmp_path / name) for name in ("stolen", "other", "good"))
            own, bad = tmp_path / "authority", tmp_path / "stolen"
            for root, signature in (
                (stolen, vouch_for_root(bad, "plant", stolen)),
                (stolen, vouch_for_root(own, "elsewhere", stolen)),
                (stolen, vouch_for_root(own, "plant", good)),
                (stolen, bytes(64)),
                (other, vouch_for_root(own, "plant", other)),
                (b"nonsense", vouch_for_root(own, "plant", b"nonsense")),
                (good, vouch_for_root(own, "plant", good)),
            ):
                cloud.certifier.show_root((client.id,), RootFollows(root, signature))
            await until(lambda: len(client.trusting.own_roots()) > 1)
            assert [one.der for one in client.trusting.own_roots()] == [known.der, good]
            assert all(one.der != other for one in client._identity.trust.roots)


async def test_who_is_left_behind_is_named_and_comes_back_with_a_code(tmp_path: Path) -> None:
    make_registrar(tmp_path)
    async with registrar_in(tmp_path) as (cloud, registrar):
        away_at = await join(registrar, tmp_path, "away")
        await registrar.rotation.begin(WEEK_S, WEEK_S, True)
        await until(lambda: stage(registrar) == "retiring")
        found = registrar.rotation.status()
        assert [one.name for one in found.waiting] == ["away"]
        assert found.retire_ms >= found.started_ms + WEEK_S * 1000
        with pytest.raises(LocalError, match="brought forward, not put off"):
            await registrar.rotation.begin(2 * WEEK_S, WEEK_S, False)
        await registrar.rotation.begin(0, WEEK_S, False)
        await until(lambda: stage(registrar) == "done")
        await renew_folder(away_at, await code_for(registrar, "away"))
        async with Peer.open(away_at) as away:
            await until(lambda: away.connected() and cloud.connected())
            assert issuer(away) == found.next
        # And once more.
        again = await registrar.rotation.begin(0, WEEK_S, False)
        assert (again.old, again.folder) == (found.next, "../authority-3")


class Cut(BaseException):
    """The power is gone."""


def cut_at(monkeypatch: pytest.MonkeyPatch, where: str) -> list[str]:
    """Let the power go where something is written, before or after that; the list then has something."""
    happened: list[str] = []

    def cut(call: Callable[..., Any], after: bool, when: Callable[..., bool]) -> Callable[..., Any]:
        def instead(*arguments: Any) -> Any:
            if not when(*arguments):
                return call(*arguments)
            if after and not happened:
                call(*arguments)
            happened.append(where)
            raise Cut

        return instead

    def always(*_: object) -> bool:
        return True

    module, name, after, when = {
        "nothing is made": (rotating, "make_next", False, always),
        "half an authority is made": (
            authorities.os,
            "replace",
            False,
            lambda _, to: "authority-2" in str(to),
        ),
        "the authority is made": (rotating, "make_next", True, always),
        "it is to be written that it is made": (rotating, "write_plan", False, lambda _, plan: plan.next),
        "it is written that it is made": (rotating, "write_plan", True, lambda _, plan: plan.next),
        "the settings are to be written": (rotating, "write_settings", False, always),
        "the settings are written": (rotating, "write_settings", True, always),
        "the switch is to be written": (rotating, "write_plan", False, lambda _, plan: plan.switched_ms),
        "the switch is written": (rotating, "write_plan", True, lambda _, plan: plan.switched_ms),
        "the time is to be written": (rotating, "write_plan", False, lambda _, plan: plan.retire_ms),
        "the time is written": (rotating, "write_plan", True, lambda _, plan: plan.retire_ms),
    }[where]
    monkeypatch.setattr(module, name, cut(getattr(module, name), after, when))
    return happened


@pytest.mark.parametrize(
    "where",
    [
        "nothing is made",
        "half an authority is made",
        "the authority is made",
        "it is to be written that it is made",
        "it is written that it is made",
        "the settings are to be written",
        "the settings are written",
        "the switch is to be written",
        "the switch is written",
        "the time is to be written",
        "the time is written",
    ],
)
async def test_it_goes_on_by_itself_after_a_power_cut_in_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    first, then = tmp_path / "first", tmp_path / "then"
    make_registrar(first)
    async with registrar_in(first) as (_, registrar):
        with monkeypatch.context() as patched:
            happened = cut_at(patched, where)
            await registrar.rotation.begin(0, WEEK_S, False)
            await until(lambda: happened)
            # What stands on the disk now is what the next start finds; what this run does later is lost.
            await asyncio.to_thread(shutil.copytree, first, then)
    if where == "half an authority is made":
        (then / ".authority-2.new").mkdir(exist_ok=True)
        (then / ".authority-2.new/authority.key").write_text("half")
    async with registrar_in(then) as (cloud, registrar):
        await until(lambda: stage(registrar) == "done")
        found = registrar.rotation.status()
        assert (in_settings(then), issuer(cloud)) == ("../authority-2", found.next)
        there = sorted(name for name in os.listdir(then) if "authority" in name)
        assert there == ["authority", "authority-2"]
        mill_at = await join(registrar, then, "mill", "cell")
        async with Peer.open(mill_at) as mill:
            await until(lambda: cloud.pools[0].chain in mill.chains)


def test_the_command_shows_who_has_renewed_and_a_killed_registrar_goes_on(tmp_path: Path) -> None:
    cloud = make_registrar(tmp_path)
    with ExitStack() as stack:
        run = stack.enter_context(ExitStack())
        run.enter_context(running(cloud))
        asked_until(lambda: told("member", "list", cloud))
        code = edgepool("invite", cloud, "--name", "mill", "--pool", "cell").strip()
        edgepool("join", code, tmp_path / "mill")
        stack.enter_context(running(tmp_path / "mill"))
        asked_until(lambda: "mill" in edgepool("org", "list", cloud) + edgepool("member", "list", cloud))
        edgepool("org", "rotate", cloud, "--overlap", "1h", "--no-wait")
        os.kill(json.loads((cloud / "api.json").read_text())["pid"], signal.SIGKILL)
        with suppress(AssertionError):  # it was killed
            run.close()
        stack.enter_context(running(cloud))
        found = told("org", "rotate", cloud, "--timeout", "90")
        assert (found["stage"], found["renewed"], found["waiting"]) == ("retiring", ["mill"], [])
        assert found["retire_ms"] >= found["started_ms"] + 3_600_000
        shown = edgepool("org", "rotate", cloud)
        assert "renewed: mill" in shown
        assert "the old root goes" in shown
        assert "is no time" in edgepool("org", "rotate", cloud, "--overlap", "soon", code=2)
        hanging = edgepool("member", "revoke", cloud, "mill", "--timeout", "1", code=1)
        assert "pool cell has 2 members and needs all of them, mill too" in hanging
        assert "this peer invites nobody" in edgepool("org", "rotate", tmp_path / "mill", code=2)


async def test_a_fault_inside_is_told_and_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_registrar(tmp_path)
    async with registrar_in(tmp_path) as (_, registrar):
        with monkeypatch.context() as patched:
            patched.setattr(rotating, "make_next", lambda *_: 1 // 0)
            await registrar.rotation.begin(0, WEEK_S, False)
            await until(lambda: "ZeroDivisionError" in registrar.rotation.status().problem)
        await until(lambda: stage(registrar) == "done" and not registrar.rotation.status().problem)
    assert caplog.text.count("has failed inside") == 1

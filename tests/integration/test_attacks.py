"""Attacks on the door of a pool that works on: each is refused for its own reason, and harms nobody."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from attackers import DAY, NOW, Works
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from peer_cell import Cell, open_cell
from tls13 import replay, shake_hands

from edgepool import DataKey, Peer, Refused
from edgepool.model.codec import encode
from edgepool.model.credential import MAX_CERTIFICATE_BYTES
from edgepool.model.ids import parse_address
from edgepool.model.message import Records
from edgepool.model.record import DataDemand, MachiningRequirement, sign_record
from edgepool.model.trust import RevokePeer
from edgepool.transport.identity import LINK_PROTOCOL, TRANSFER_PROTOCOL
from edgepool.transport.keyfiles import read_private_key

KEY = DataKey("PTVA10212-01", "model")
PATIENCE_S = 60.0


@dataclass
class Scene:
    """A pool, the peer of it that is attacked, and what an attacker has got hold of."""

    cell: Cell
    victim: Peer
    works: Works
    elsewhere: Works
    key: Ed25519PrivateKey
    stolen: bytes
    """The certificate of a member, without its key."""

    @property
    def where(self) -> tuple[str, int]:
        host, port, _ = parse_address(self.victim.addresses[0])
        return host, port

    async def show(self, *certificates: bytes, protocol: str = LINK_PROTOCOL) -> bytes:
        """Shake hands with certificates and the attacker's own key."""
        return await shake_hands(*self.where, protocol, certificates, self.key.sign)

    def refused(self) -> dict[str, int]:
        return dict(self.victim.status().totals.refused)


async def stranger(scene: Scene) -> None:
    await scene.show()


async def wrong_organisation(scene: Scene) -> None:
    await scene.show(scene.elsewhere.certify(scene.key.public_key()))


async def stolen_certificate(scene: Scene) -> None:
    await scene.show(scene.stolen)


async def stolen_certificate_with_another_key_written_in(scene: Scene) -> None:
    own = scene.key.public_key().public_bytes_raw()
    theirs = x509.load_der_x509_certificate(scene.stolen).public_key()
    assert isinstance(theirs, Ed25519PublicKey)
    await scene.show(scene.stolen.replace(theirs.public_bytes_raw(), own))


async def another_network(scene: Scene) -> None:
    await scene.show(scene.works.certify(scene.key.public_key(), network="another"))


async def a_role_that_does_not_exist(scene: Scene) -> None:
    await scene.show(scene.works.certify(scene.key.public_key(), role="director"))


async def expired(scene: Scene) -> None:
    await scene.show(scene.works.certify(scene.key.public_key(), begins=NOW - 3 * DAY, ends=NOW - DAY))


async def not_yet_valid(scene: Scene) -> None:
    await scene.show(scene.works.certify(scene.key.public_key(), begins=NOW + DAY, ends=NOW + 3 * DAY))


async def oversized_certificate(scene: Scene) -> None:
    await scene.show(scene.works.certify(scene.key.public_key(), padding_bytes=MAX_CERTIFICATE_BYTES))


async def a_long_chain_of_certificates(scene: Scene) -> None:
    own = scene.works.certify(scene.key.public_key())
    await scene.show(own, *[scene.works.certify(scene.key.public_key()) for _ in range(20)])


async def an_endless_chain_of_certificates(scene: Scene) -> None:
    await scene.show(*[scene.works.certify(scene.key.public_key(), padding_bytes=3000)] * 300)


async def replayed_handshake(scene: Scene) -> None:
    recorded = await scene.show(scene.works.certify(scene.key.public_key()), protocol="nothing/1")
    await replay(*scene.where, recorded)


ATTACKS: dict[Callable[[Scene], Awaitable[None]], str] = {
    stranger: "refused_no_certificate",
    wrong_organisation: "refused_foreign",
    stolen_certificate: "refused_possession",
    stolen_certificate_with_another_key_written_in: "refused_foreign",
    another_network: "refused_wrong_network",
    a_role_that_does_not_exist: "refused_unknown_role",
    expired: "refused_expired",
    not_yet_valid: "refused_not_yet_valid",
    oversized_certificate: "refused_oversize_certificate",
    a_long_chain_of_certificates: "refused_chain",
    an_endless_chain_of_certificates: "refused_chain",
    replayed_handshake: "refused_handshake",
}


async def until(reached: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not reached():  # noqa: ASYNC110 - what is waited for is in other peers' hands
            await asyncio.sleep(0.01)


@asynccontextmanager
async def open_scene(folder: Path) -> AsyncIterator[Scene]:
    async with open_cell(folder, 4) as cell:
        pem = (folder / "m1/identity/certificate.pem").read_bytes()
        yield Scene(
            cell,
            cell.machines[0],
            Works(folder / "authority"),
            Works(folder / "elsewhere"),
            Ed25519PrivateKey.generate(),
            x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER),
        )


@asynccontextmanager
async def at_work(scene: Scene) -> AsyncIterator[list[int]]:
    """Have a member write one record after the other; yields the heights at which they stand."""
    heights: list[int] = []

    async def write() -> None:
        while True:
            demand = DataDemand(KEY, len(heights), "", "")
            heights.append((await scene.cell.machines[2].submit(demand, chain=scene.cell.chain)).height)

    writing = asyncio.create_task(write())
    try:
        yield heights
        assert not writing.done(), "a record was refused meanwhile"
    finally:
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing


async def test_every_attack_at_the_door_is_refused_for_its_own_reason(tmp_path: Path) -> None:
    async with open_scene(tmp_path) as scene, at_work(scene) as heights:
        linked = {one.peer for one in scene.victim.connected()}
        for attack, reason in ATTACKS.items():
            before, stood = scene.refused(), len(heights)
            async with asyncio.timeout(PATIENCE_S):
                await attack(scene)
            await until(lambda: scene.refused() != before)  # noqa: B023 - it is awaited here
            now = scene.refused()
            counted = {name: now[name] - before.get(name, 0) for name in now if now[name] != before.get(name)}
            if attack is replayed_handshake:
                # It replays one that stands, of a member who wants nothing that there is.
                del counted["refused_stranger"]
            assert counted == {reason: 1}, attack.__name__
            await until(lambda: len(heights) > stood + 1)  # noqa: B023
        assert {one.peer for one in scene.victim.connected()} == linked, "nobody came, and nobody was lost"


async def test_a_revoked_member_is_refused_as_such_at_every_door(tmp_path: Path) -> None:
    async with open_scene(tmp_path) as scene, at_work(scene) as heights:
        gone = scene.cell.machines[3]
        key = read_private_key(tmp_path / "m3/identity/key.pem", None, RuntimeError, "")
        der = x509.load_pem_x509_certificate((tmp_path / "m3/identity/certificate.pem").read_bytes())
        await scene.cell.cloud.trusting.change(RevokePeer(gone.id), reason="stolen")
        await until(lambda: gone.id not in [one.peer for one in scene.victim.connected()])
        for protocol in (LINK_PROTOCOL, TRANSFER_PROTOCOL):
            before = scene.refused().get("refused_revoked", 0)
            await shake_hands(*scene.where, protocol, [der.public_bytes(Encoding.DER)], key.sign)
            await until(lambda: scene.refused().get("refused_revoked", 0) > before)  # noqa: B023
        stood = len(heights)
        await until(lambda: len(heights) > stood + 1)
        assert gone.id not in [one.peer for one in scene.victim.connected()]


STRANGERS = """
import asyncio, ssl, sys

async def knock(number):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        secure = context if number % 2 else None
        reader, writer = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]), ssl=secure)
        if not secure:
            writer.write(bytes(100_000))
        async with asyncio.timeout(60):
            while await reader.read(65536):
                pass
    except OSError:
        pass

async def main():
    await asyncio.gather(*[knock(number) for number in range(int(sys.argv[3]))])

asyncio.run(main())
"""


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_a_thousand_strangers_at_once_cost_nobody_anything(tmp_path: Path) -> None:
    async with open_scene(tmp_path) as scene, at_work(scene) as heights:
        linked = {one.peer for one in scene.victim.connected()}
        await until(lambda: len(heights) > 20)
        before_bytes, stood = resident_bytes(), len(heights)
        words = [sys.executable, "-c", STRANGERS, *map(str, scene.where), "1000"]
        began_s = time.monotonic()
        strangers = await asyncio.create_subprocess_exec(*words)
        assert await strangers.wait() == 0
        attacked = (len(heights) - stood) / (time.monotonic() - began_s)
        assert resident_bytes() - before_bytes < 64 * 1024 * 1024
        refused = scene.refused()
        assert sum(number for name, number in refused.items() if name.startswith("refused_")) >= 1000
        assert {one.peer for one in scene.victim.connected()} == linked
        before, began_s = len(heights), time.monotonic()
        await until(lambda: len(heights) > before + 50)
        calm = (len(heights) - before) / (time.monotonic() - began_s)
        # They take a share of the processor here, as no stranger on a machine of its own does.
        assert attacked > calm / 10, "records became final meanwhile, about as fast as without them"


async def test_a_member_may_do_what_its_role_lets_it_and_nothing_else(tmp_path: Path) -> None:
    async with open_scene(tmp_path) as scene:
        everybody = [scene.cell.cloud.member(one.id) for one in scene.cell.machines[:2]]
        with pytest.raises(Refused, match="a machine may not form pools: only a coordinator may"):
            await scene.victim.form_pool(
                "mine", "manufacturing", [one for one in everybody if one is not None]
            )
        requirement = MachiningRequirement("T", "P", 10, "turn", scene.victim.id, 0, 1, 60, 0, 0)
        with pytest.raises(Refused, match="a machine may not state requirements: only a coordinator may"):
            await scene.victim.submit(requirement, chain=scene.cell.chain)


async def test_a_member_that_does_not_keep_to_its_role_is_refused_by_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own software lets it do anything; theirs judges by its certificate, and by the chain."""
    async with open_scene(tmp_path) as scene, at_work(scene) as heights:
        mallory, chain = scene.cell.machines[3], scene.cell.chain
        monkeypatch.setattr(mallory.node.pools, "_former_problem", lambda _: "")
        others = [scene.cell.cloud.member(one.id) for one in scene.cell.machines[:2]]
        refusal = "m[01] declined: a machine may not form pools: only a coordinator may"
        with pytest.raises(Refused, match=refusal):
            await mallory.form_pool("mine", "manufacturing", [one for one in others if one is not None])
        requirement = MachiningRequirement("T", "P", 10, "turn", scene.victim.id, 0, 1, 60, 0, 0)
        signer = mallory._identity.signer
        since = mallory.chain_state(chain).height
        forged = sign_record(signer, scene.victim.settings.network, chain, requirement, 0, 1, since)
        for one in scene.victim.connected():
            mallory._transport.send(one.peer, encode(Records(chain, (forged,))))
        mallory._transport.send(scene.victim.id, encode(Records(chain, (forged,))))
        stood = len(heights)
        await until(lambda: len(heights) > stood + 20)
        for peer in (scene.cell.cloud, *scene.cell.machines):
            assert not peer.chain_state(chain).tasks
            assert not peer.chain_state(chain).has_record(forged.id)
        assert scene.victim.id in [one.peer for one in mallory.connected()], "a refusal costs no link"

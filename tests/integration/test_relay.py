from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from blake3 import blake3

from edgepool.config import PeerSettings
from edgepool.errors import Refused, RemoteError, Unavailable
from edgepool.model.ids import ChainId
from edgepool.model.record import DataDemand, DataOffer
from edgepool.model.twin import DataKey, Manifest
from edgepool.storage.blobs import BlobStore
from edgepool.transport.certificates import create_authority, create_key, issue_certificate
from edgepool.transport.identity import Identity, load_identity
from edgepool.workshop.relay import Relay
from edgepool.workshop.relayclient import RelayClient, RelayData, RelayTotals, Transfer

KEY = DataKey("PTVA10212-01", "surface")
CHAIN = ChainId("ab" * 20)
DATA = bytes(range(256)) * 10_000  # 2.56 MB: three chunks
LIMIT_BYTES = 64 * 1024 * 1024


def make_identity(folder: Path, name: str, authority: Path) -> Identity:
    settings = PeerSettings(name=name, network="test", role="client", folder=folder)
    peer = create_key(settings.path(settings.identity.key))
    certificate = issue_certificate(
        authority, peer, name=name, network="test", role="client", machine_type=""
    )
    settings.path(settings.identity.certificate).write_bytes(certificate)
    settings.path(settings.identity.authority).write_bytes((authority / "authority.pem").read_bytes())
    return load_identity(settings)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    create_authority(tmp_path / "authority", "test")
    return tmp_path / "authority"


@pytest.fixture
async def relay(tmp_path: Path, authority: Path) -> AsyncIterator[Relay]:
    identity = make_identity(tmp_path / "relay", "relay", authority)
    relay = Relay(
        tmp_path / "relay" / "data", identity.server_context, host="127.0.0.1", limit_bytes=LIMIT_BYTES
    )
    await relay.start()
    yield relay
    await relay.close()


@pytest.fixture
async def client(tmp_path: Path, authority: Path, relay: Relay) -> AsyncIterator[RelayClient]:
    identity = make_identity(tmp_path / "station", "station", authority)
    client = RelayClient(relay.url, tmp_path / "relay" / "identity" / "certificate.pem", identity)
    yield client
    await client.close()


class FakePeer:
    """Takes records; its one chain knows the offers that were submitted."""

    def __init__(self) -> None:
        self.submitted: list[Any] = []

    async def submit(self, body: Any, *, chain: ChainId) -> None:
        assert chain == CHAIN
        self.submitted.append(body)

    def chain_state(self, chain: ChainId) -> Any:
        assert chain == CHAIN

        def offers(key: DataKey, version: int = 0) -> tuple[Any, ...]:
            return tuple(
                SimpleNamespace(offer=body)
                for body in self.submitted
                if isinstance(body, DataOffer)
                and body.key == key
                and body.version == (version or body.version)
            )

        return SimpleNamespace(offers=offers)


def stored(folder: Path, data: bytes) -> tuple[BlobStore, Manifest]:
    blobs = BlobStore(folder, LIMIT_BYTES)
    return blobs, blobs.import_bytes(data)


async def test_what_one_station_uploads_another_downloads(
    tmp_path: Path, relay: Relay, client: RelayClient
) -> None:
    peer = FakePeer()
    blobs = [BlobStore(tmp_path / f"blobs{number}", LIMIT_BYTES) for number in (1, 2)]
    maker, taker = (RelayData(cast(Any, peer), client, store) for store in blobs)
    await maker.publish(KEY, 10, DATA, CHAIN)
    assert await taker.fetch(KEY, 10, CHAIN) == len(DATA)

    offer, demand = peer.submitted
    assert isinstance(offer, DataOffer)
    assert isinstance(demand, DataDemand)
    assert blobs[1].path(offer.root).read_bytes() == DATA
    assert (offer.size_bytes, offer.version, demand.key) == (len(DATA), 10, KEY)
    report = taker.report()
    assert (report.totals.demands, report.totals.answered, report.totals.failed) == (1, 1, 0)
    assert report.totals.received_by_kind == {"surface": len(DATA)}
    assert maker.report().totals.bytes_sent == len(DATA)
    counts = relay.counts()
    assert (counts.bytes_in, counts.bytes_out) == (len(DATA), len(DATA))
    assert (counts.uploads, counts.downloads, counts.refused) == (1, 1, 0)


async def test_what_is_on_no_chain_at_hand_is_found_at_the_relay(tmp_path: Path, client: RelayClient) -> None:
    maker = RelayData(cast(Any, FakePeer()), client, BlobStore(tmp_path / "b1", LIMIT_BYTES))
    taker = RelayData(cast(Any, FakePeer()), client, BlobStore(tmp_path / "b2", LIMIT_BYTES))
    for version in (1, 2):
        await maker.publish(KEY, version, DATA[version:], CHAIN)
    assert await taker.fetch(KEY, 0, CHAIN) == len(DATA) - 2
    assert await taker.fetch(KEY, 1, CHAIN) == len(DATA) - 1


async def test_many_at_once(tmp_path: Path, client: RelayClient) -> None:
    peer = FakePeer()
    mover = RelayData(cast(Any, peer), client, BlobStore(tmp_path / "b1", LIMIT_BYTES))
    taker = RelayData(cast(Any, peer), client, BlobStore(tmp_path / "b2", LIMIT_BYTES))
    keys = [DataKey(f"P-{number}", "model") for number in range(12)]
    contents = [blake3(str(key).encode()).digest(length=200_000) for key in keys]
    await asyncio.gather(
        *(mover.publish(key, 1, data, CHAIN) for key, data in zip(keys, contents, strict=True))
    )
    sizes = await asyncio.gather(*(taker.fetch(key, 1, CHAIN) for key in keys))
    assert sizes == [200_000] * 12


async def test_what_nobody_uploaded_is_unavailable_and_counted(tmp_path: Path, client: RelayClient) -> None:
    taker = RelayData(cast(Any, FakePeer()), client, BlobStore(tmp_path / "blobs", LIMIT_BYTES))
    with pytest.raises(Unavailable, match="does not have that"):
        await taker.fetch(KEY, 0, CHAIN)
    totals = taker.report().totals
    assert (totals.demands, totals.answered, totals.failed) == (1, 0, 1)


async def test_an_upload_of_other_data_than_it_says_is_refused(
    tmp_path: Path, relay: Relay, client: RelayClient
) -> None:
    _, manifest = stored(tmp_path / "blobs", DATA)
    other = tmp_path / "other"
    other.write_bytes(DATA[:-1] + b"!")
    with pytest.raises((Refused, Unavailable)):  # the relay may end the connection while we still send
        await client.upload(KEY, 1, manifest, other)
    with pytest.raises(Unavailable, match="does not have that"):
        await client.find(KEY, 0)
    assert relay.counts().uploads == 0


async def test_a_version_cannot_be_replaced_by_other_data(tmp_path: Path, client: RelayClient) -> None:
    blobs, first = stored(tmp_path / "blobs", b"first")
    second = blobs.import_bytes(b"second")
    await client.upload(KEY, 1, first, blobs.path(first.root))
    with pytest.raises(Refused, match="other data is there"):
        await client.upload(KEY, 1, second, blobs.path(second.root))
    assert (await client.find(KEY, 1)).root == first.root.hex()


async def test_a_download_is_checked_chunk_by_chunk(
    tmp_path: Path, relay: Relay, client: RelayClient
) -> None:
    blobs, manifest = stored(tmp_path / "blobs", DATA)
    await client.upload(KEY, 1, manifest, blobs.path(manifest.root))
    held = next((tmp_path / "relay" / "data").glob("*.data"))
    damaged = bytearray(DATA)
    damaged[-1] ^= 1
    held.write_bytes(bytes(damaged))
    mine = BlobStore(tmp_path / "mine", LIMIT_BYTES)
    with pytest.raises(RemoteError, match="chunk 2 is not the one"):
        await client.download(manifest.root, mine, Transfer(RelayTotals(), "surface"))
    assert not mine.has(manifest.root)


async def test_a_stranger_cannot_talk_to_the_relay(tmp_path: Path, relay: Relay) -> None:
    create_authority(tmp_path / "others", "others")
    identity = make_identity(tmp_path / "stranger", "stranger", tmp_path / "others")
    stranger = RelayClient(relay.url, tmp_path / "relay" / "identity" / "certificate.pem", identity)
    with pytest.raises(Unavailable):
        await stranger.find(KEY, 0)
    await stranger.close()
    assert relay.counts().bytes_in == 0


async def test_a_relay_with_another_certificate_gets_nothing(
    tmp_path: Path, relay: Relay, authority: Path
) -> None:
    identity = make_identity(tmp_path / "station", "station", authority)
    client = RelayClient(relay.url, tmp_path / "station" / "identity" / "certificate.pem", identity)
    blobs, manifest = stored(tmp_path / "blobs", b"secret")
    with pytest.raises(Unavailable):
        await client.upload(KEY, 1, manifest, blobs.path(manifest.root))
    await client.close()
    assert relay.counts().bytes_in == 0

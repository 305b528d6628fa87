"""Connections rest on what their peers have shown: they end when none of it is good any more."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edgepool.core.ledger.trust import KnownRoot, UnitedTrust
from edgepool.errors import ConfigError
from edgepool.gateway.setup import PeerPlan, make_peer_folder
from edgepool.model.credential import RETIRED, Root, read_root
from edgepool.model.crypto import Signer
from edgepool.model.identity import PeerIdentity
from edgepool.transport.certificates import create_authority, issue_certificate, load_identity
from edgepool.transport.trust import TrustSet

NETWORK = "plant"
DAY_S = 86_400


def der_of(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


class Held:
    """A connection of the peer `mill` that was made under the first of two roots of one organisation."""

    def __init__(self, folder: Path, valid_s: int) -> None:
        self.folder = folder
        self.mill = Signer(b"\1" * 32).peer
        self.roots: list[Root] = []
        for name in ("first", "next"):
            create_authority(folder / name, "Test works")
            self.roots.append(read_root(der_of((folder / name / "authority.pem").read_bytes())))
        self.trust = TrustSet(NETWORK, self.roots)
        self.ended: list[str] = []
        self.identity: PeerIdentity = self.trust.check(self.certificate("first", valid_s))
        self.trust.hold(self.identity, self.ended.append, lambda: bool(self.ended))

    def certificate(self, authority: str, valid_s: int) -> bytes:
        facts = {"name": "mill", "network": NETWORK, "role": "machine", "machine_type": "mill"}
        return der_of(issue_certificate(self.folder / authority, self.mill, valid_s=valid_s, **facts))

    def retire_the_first(self) -> None:
        first = self.roots[0]
        decided = KnownRoot(first.fingerprint, first.organisation, first.der, retired_ms=1)
        self.trust.decide(UnitedTrust(roots={first.fingerprint: decided}))


@pytest.mark.parametrize("newer_valid_s", [DAY_S - 60, DAY_S, DAY_S + 60])
def test_a_link_whose_peer_has_shown_a_certificate_of_the_next_root_outlives_the_old_one(
    tmp_path: Path, newer_valid_s: int
) -> None:
    held = Held(tmp_path, DAY_S)
    held.trust.renewed(held.certificate("next", newer_valid_s), held.identity)
    held.retire_the_first()
    assert held.ended == []


def test_a_link_that_rests_on_the_retired_root_alone_ends_with_it(tmp_path: Path) -> None:
    held = Held(tmp_path, DAY_S)
    held.trust.renewed(held.certificate("first", DAY_S + 60), held.identity)
    held.retire_the_first()
    assert held.ended == [RETIRED]


def test_one_connection_that_fails_at_its_end_keeps_no_other_alive(tmp_path: Path) -> None:
    held, cut = Held(tmp_path, DAY_S), list[str]()

    def fail(_: str) -> None:
        raise OSError("it was half open")

    trust = TrustSet(NETWORK, held.roots)
    trust.hold(held.identity, fail, lambda: False)
    trust.hold(held.identity, cut.append, lambda: bool(cut))
    trust.decide(UnitedTrust(revoked={held.mill: None}))
    assert cut == ["revoked"]


def test_whom_the_owners_file_names_is_cut_off_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_peer_folder(tmp_path / "hub", PeerPlan("hub", NETWORK), tmp_path / "first-of-hub")
    identity, held, ended = load_identity(settings), Held(tmp_path, DAY_S), list[str]()
    identity.trust.install(held.roots)
    identity.trust.hold(held.identity, ended.append, lambda: bool(ended))
    path = settings.path(settings.identity.revoked)
    identity.look_at_barred()
    assert not identity.trust.revoked
    path.write_text(f"{held.mill}  # stolen\n")
    identity.look_at_barred()
    assert (ended, identity.trust.revoked) == (["revoked"], {held.mill})
    for unfit in (b"nobody", b"\xff\xfe", b"# so long\n" * 10_000):  # and whoever is barred stays so
        path.write_bytes(unfit)
        identity.look_at_barred()
        assert identity.trust.revoked == {held.mill}
        with pytest.raises(ConfigError):
            load_identity(settings)
    assert caplog.text.count("nobody else is barred") == 3
    path.unlink()
    identity.look_at_barred()
    assert not identity.trust.revoked

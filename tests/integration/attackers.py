"""What an attacker, or time, makes of an organisation's certificates."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from peer_cell import NETWORK

from edgepool.model.credential import identity_uri
from edgepool.transport.certificates import create_authority
from edgepool.transport.keyfiles import read_private_key

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@dataclass
class Works:
    """An organisation's root, with which its certificates are made as nobody should make them."""

    folder: Path

    def __post_init__(self) -> None:
        if not self.folder.exists():
            create_authority(self.folder, self.folder.name)
        self.root = x509.load_pem_x509_certificate((self.folder / "authority.pem").read_bytes())
        self.key = read_private_key(self.folder / "authority.key", None, RuntimeError, "")

    def certify(
        self,
        key: Ed25519PublicKey,
        *,
        role: str = "machine",
        network: str = NETWORK,
        name: str = "mallory",
        begins: datetime.datetime = NOW - DAY,
        ends: datetime.datetime = NOW + DAY,
        padding_bytes: int = 0,
    ) -> bytes:
        """Return a certificate in DER."""
        uris = [identity_uri(network, role, name)] + ["https://" + "x" * padding_bytes] * bool(padding_bytes)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(self.root.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]), False
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        )
        return builder.sign(self.key, None).public_bytes(Encoding.DER)

    def renewed(
        self, certificate: x509.Certificate, begins: datetime.datetime, ends: datetime.datetime
    ) -> bytes:
        """Return a certificate in DER that says what another does, for another time."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(certificate.subject)
            .issuer_name(self.root.subject)
            .public_key(certificate.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
        )
        for extension in certificate.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        return builder.sign(self.key, None).public_bytes(Encoding.DER)

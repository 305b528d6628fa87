"""Certificates for those that know none of ours: ECDSA P-256, a name, and an authority of their own."""

from __future__ import annotations

import datetime
import ssl
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

AUTHORITY, CERTIFICATE, KEY = "web-authority.pem", "web-certificate.pem", "web-key.pem"
_A_DAY = datetime.timedelta(days=1)


def make_certificate(folder: Path) -> bytes:
    """Write an authority, a certificate for localhost and its key into `folder`; return the authority."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgepool bench")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    authority = x509.BasicConstraints(ca=True, path_length=0)
    root = _builder(root_name, root_name, root_key.public_key()).add_extension(authority, critical=True)
    named = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    own = _builder(name, root_name, key.public_key()).add_extension(named, critical=False)
    pem = serialization.Encoding.PEM
    root_pem = root.sign(root_key, hashes.SHA256()).public_bytes(pem)
    (folder / AUTHORITY).write_bytes(root_pem)
    (folder / CERTIFICATE).write_bytes(own.sign(root_key, hashes.SHA256()).public_bytes(pem))
    (folder / KEY).write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return root_pem


def server_context(folder: Path) -> ssl.SSLContext:
    """Return a TLS 1.3 context with the certificate in `folder`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    return context


def client_context(authority: str) -> ssl.SSLContext:
    """Return a TLS 1.3 context that trusts an authority (PEM)."""
    context = ssl.create_default_context(cadata=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _A_DAY)
        .not_valid_after(now + _A_DAY)
    )

"""The files in which a peer's folder keeps roots: more than one certificate in PEM, one behind the other."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from edgepool.config import load_peer_settings
from edgepool.errors import DecodeError, LocalError
from edgepool.model.credential import Root, read_root
from edgepool.transport.identity import installed_roots, pem_of, read_certificates
from edgepool.transport.keyfiles import replace_file

MAX_TRUSTED = 64


def read_root_file(path: Path) -> Root:
    """Return the root in a PEM file; LocalError if there is none that can be trusted."""
    try:
        return read_root(read_certificates(path)[0].public_bytes(Encoding.DER))
    except DecodeError as error:
        raise LocalError(f"{path} is no root: {error}") from None


def add_trusted(folder: Path, path: Path) -> Root:
    """Add the root in the file `path` to those that the peer of `folder` trusts from its next start on."""
    settings = load_peer_settings(folder)
    root = read_root_file(path)
    known = installed_roots(settings)
    if any(one.fingerprint == root.fingerprint for one in known):
        raise LocalError(f"the peer in '{folder}' trusts that root already")
    if len(known) >= MAX_TRUSTED:
        raise LocalError(f"the peer in '{folder}' trusts {MAX_TRUSTED} roots already: take one out first")
    into = settings.path(settings.identity.trusted)
    before = read_certificates(into) if into.exists() else []
    replace_file(into, pem_of([*before, root.certificate]), 0o644)
    return root

"""Private keys in files, plain or under a passphrase, and where the passphrase comes from.

A key file is PKCS#8 in PEM, for its owner alone. Under a passphrase it is encrypted PKCS#8, and is only ever
decrypted in memory. No passphrase and nothing of a key is ever part of an error.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgepool.config import PeerSettings
from edgepool.errors import ConfigError, LocalError
from edgepool.storage.files import sync_folder, write_all

PASSPHRASE_VARIABLE = "EDGEPOOL_PASSPHRASE"
AUTHORITY_PASSPHRASE_VARIABLE = "EDGEPOOL_AUTHORITY_PASSPHRASE"
MAX_PASSPHRASE_BYTES = 1000
"""OpenSSL takes 1023 bytes."""

MAX_KEY_FILE_BYTES = 64 * 1024
_ENCRYPTED_MARKS = (b"BEGIN ENCRYPTED", b"4,ENCRYPTED")


def own_passphrase(settings: PeerSettings) -> bytes | None:
    """Return the passphrase of a peer's key: of its identity.passphrase_file, else of the environment.

    None if neither is configured. ConfigError if what is configured cannot be one.
    """
    if settings.identity.passphrase_file:
        path = settings.path(settings.identity.passphrase_file)
        return read_passphrase_file(path, ConfigError)
    return passphrase_of_environment(PASSPHRASE_VARIABLE, ConfigError)


def passphrase_of_environment(variable: str, error: type[LocalError]) -> bytes | None:
    """Return the passphrase in an environment variable, None if it is not set; `error` if it is unfit."""
    text = os.environ.get(variable)
    if text is None:
        return None
    return _checked(os.fsencode(text), f"the environment variable {variable}", error)


def read_passphrase_file(path: Path, error: type[LocalError]) -> bytes:
    """Return the passphrase in a file, without the end of its line; `error` if there is none to be had.

    The file must be its owner's alone.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_PASSPHRASE_BYTES + 3)
            mode = os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        raise error(
            f"the passphrase file {path} does not exist: mount the medium that it is on, or write it there"
        ) from None
    except OSError as fault:
        raise error(f"the passphrase file {path} cannot be read: {fault.strerror}") from None
    if os.name == "posix" and mode & 0o077:
        raise error(
            f"the passphrase file {path} can be read by others than its owner: run 'chmod 600 {path}'"
        )
    return _checked(raw.removesuffix(b"\n").removesuffix(b"\r"), f"the passphrase file {path}", error)


def read_private_key(
    path: Path, passphrase: bytes | None, error: type[LocalError], remedy: str
) -> Ed25519PrivateKey:
    """Return the Ed25519 key in a PEM file; a plain one is taken whatever `passphrase` is.

    `error`, in one sentence, if it is missing, open to others, of another kind, or does not open; `remedy`
    says what to do if it needs a passphrase and there is none.
    """
    raw = read_key_bytes(path, error)
    refuse_open_key_file(path, error)
    encrypted = is_encrypted(raw)
    if encrypted and passphrase is None:
        raise error(f"{path} is encrypted and no passphrase is configured: {remedy}")
    try:
        key = serialization.load_pem_private_key(raw, password=passphrase if encrypted else None)
    except Exception:
        # The library raises several kinds, for broken PEM and for kinds of key it does not know.
        if encrypted:
            raise error(f"{path} does not open: the passphrase is wrong, or the file is damaged") from None
        raise error(f"{path} is not a private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        kind = type(key).__name__.removesuffix("PrivateKey").strip("_")
        raise error(f"{path} is a key of another kind ({kind}): it must be an Ed25519 key")
    return key


def read_key_bytes(path: Path, error: type[LocalError]) -> bytes:
    """Return what a key's or certificate's file holds; `error` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_KEY_FILE_BYTES)
    except FileNotFoundError:
        raise error(f"{path} does not exist: make or copy it there, or correct its path") from None
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror}") from None


def is_encrypted(pem: bytes) -> bool:
    """Say whether a key in PEM is under a passphrase."""
    return any(mark in pem for mark in _ENCRYPTED_MARKS)


def key_pem(key: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    """Return `key` as PKCS#8 in PEM, encrypted if there is a passphrase."""
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        how = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the file at `path` durably, whole or not at all (LocalError)."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise LocalError(f"{path} cannot be written: {error.strerror}") from None


def refuse_open_key_file(path: Path, error: type[LocalError]) -> None:
    """Raise `error` if others than its owner may read the private key at `path`."""
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise error(f"{path} can be read by others than its owner: run 'chmod 600 {path}'")


def _checked(passphrase: bytes, where: str, error: type[LocalError]) -> bytes:
    if not passphrase:
        raise error(f"{where} is empty: write a passphrase of 1 to {MAX_PASSPHRASE_BYTES} bytes there")
    if len(passphrase) > MAX_PASSPHRASE_BYTES:
        raise error(f"{where} holds more than {MAX_PASSPHRASE_BYTES} bytes: write a shorter passphrase there")
    return passphrase

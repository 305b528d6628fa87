"""Who may call a peer's local API, and how a client on the same machine finds it.

Two files in the peer's folder: `api-token`, 32 random bytes in hexadecimal that only the owner of
the folder can read, made once; and `api.json`, which says where the running peer listens and is
gone when it does not run. A web page in the owner's browser is no caller: requests that name
another host (DNS rebinding) or that come from a page (they have an Origin) are turned away.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from edgepool.errors import LocalError

TOKEN_FILE = "api-token"
ENDPOINT_FILE = "api.json"
OPEN_PATHS = ("/healthz", "/metrics")
"""What anybody on this machine may read: they hold no secrets and change nothing."""

_TOKEN = re.compile(r"[0-9a-f]{64}")


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What `api.json` says: where the API of the running peer is, which peer and process it is."""

    url: str
    peer: str
    pid: int


def check_loopback(host: str) -> None:
    """Raise LocalError unless `host` is a loopback address: the API is for this machine only."""
    if not _is_loopback(host):
        raise LocalError(
            f"the local API listens on loopback only, not on '{host}': set api.host to 127.0.0.1"
        )


def own_token(folder: Path) -> str:
    """Return the folder's token; make one if there is none, or if others could have read it."""
    path = folder / TOKEN_FILE
    try:
        token = read_token(folder)
        if os.name != "posix" or path.stat().st_mode & 0o077 == 0:
            return token
    except LocalError:
        pass
    token = secrets.token_hex(32)
    write_private(path, token.encode() + b"\n")
    return token


def read_token(folder: Path) -> str:
    """Return the token in `folder`; LocalError if there is none that can be read."""
    path = folder / TOKEN_FILE
    try:
        token = path.read_text("ascii", errors="replace").strip()
    except FileNotFoundError:
        raise LocalError(f"{path} does not exist: start the peer with 'edgepool run {folder}'") from None
    except OSError as error:
        raise LocalError(
            f"{path} cannot be read ({error.strerror}): it belongs to the peer's owner"
        ) from None
    if not _TOKEN.fullmatch(token):
        raise LocalError(f"{path} holds no token: restart the peer, which makes a new one")
    return token


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, whole or not at all, readable by its owner only."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise LocalError(f"{path} cannot be written: {error.strerror}") from None


def refusal(
    path: str, host: str | None, origin: str | None, authorization: str, token: str
) -> tuple[int, str]:
    """Return (status, sentence) of why a request is turned away, or (0, '') if it may pass.

    The arguments are the request's path and its Host, Origin and Authorization headers.
    """
    if host is None or not _is_loopback(_hostname(host)):
        return 403, "this API answers to 127.0.0.1 and localhost only, not to other host names"
    if origin is not None:
        return 403, "web pages may not call this API"
    if path in OPEN_PATHS:
        return 0, ""
    scheme, _, presented = authorization.partition(" ")
    expected = token.encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(_ascii(presented.strip()), expected):
        return (
            401,
            f"the request needs the header 'Authorization: Bearer TOKEN' with the token in {TOKEN_FILE}",
        )
    return 0, ""


def _ascii(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")


def _hostname(host_header: str) -> str:
    try:
        return urlsplit("//" + host_header).hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""Puts a peer's key under a passphrase, and takes it out again, in the peer's folder.

The key is written aside, synced and renamed, so that there is always one whole key. In between, and if the
work is cut off, the settings may name a passphrase file for a plain key: the peer then says so and does not
start, and the same call again ends the work.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepool.config import CONFIG_FILE, PeerSettings, load_peer_settings
from edgepool.errors import LocalError
from edgepool.gateway.settingsfile import says, setting_line, write_settings
from edgepool.transport.keyfiles import (
    PASSPHRASE_VARIABLE,
    is_encrypted,
    key_pem,
    own_passphrase,
    read_key_bytes,
    read_passphrase_file,
    read_private_key,
    replace_file,
)

_TABLE = re.compile(r"(?m)^\[identity\][ \t]*(#.*)?$")
_SETTING = re.compile(r"(?m)^[ \t]*passphrase_file[ \t]*=.*\n?")


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What was done: `changed` is False if the key was as wanted before.

    `source` says where the passphrase is taken from at the next start; `to_write` is a line of the settings
    that the user has to add or take out, '' if there is none.
    """

    key: Path
    changed: bool
    source: str
    to_write: str


def encrypt_key(folder: Path, passphrase_file: Path | None) -> KeyChange:
    """Encrypt a peer's key in place, and name `passphrase_file` in its settings.

    Without one, the passphrase is that of the settings or of EDGEPOOL_PASSPHRASE. LocalError if there is
    none, or if the key is under another one.
    """
    settings = load_peer_settings(folder)
    path = settings.path(settings.identity.key)
    setting, to_write = settings.identity.passphrase_file, ""
    if passphrase_file is not None:
        passphrase = read_passphrase_file(passphrase_file, LocalError)
        named = _as_setting(folder, passphrase_file)
        if setting and settings.path(setting).resolve() != passphrase_file.resolve():
            raise LocalError(
                f"the settings name another passphrase file, '{setting}': "
                f"run 'edgepool key decrypt {folder}' before"
            )
    else:
        passphrase = _configured(settings, folder)
        named = setting
    encrypted = is_encrypted(read_key_bytes(path, LocalError))
    key = read_private_key(path, passphrase, LocalError, "")
    if named and not setting:
        line = _line(named)
        to_write = "" if _set_line(folder / CONFIG_FILE, line) else line
    if not encrypted:
        replace_file(path, key_pem(key, passphrase))
    source = named or f"the environment variable {PASSPHRASE_VARIABLE}"
    return KeyChange(path, not encrypted, source, to_write)


def decrypt_key(folder: Path) -> KeyChange:
    """Write a peer's key without its passphrase, and take the passphrase file out of its settings."""
    settings = load_peer_settings(folder)
    path = settings.path(settings.identity.key)
    encrypted = is_encrypted(read_key_bytes(path, LocalError))
    if encrypted:
        key = read_private_key(path, _configured(settings, folder), LocalError, "")
        replace_file(path, key_pem(key, None))
    to_write = ""
    if settings.identity.passphrase_file and not _remove_line(folder / CONFIG_FILE):
        to_write = _line(settings.identity.passphrase_file)
    return KeyChange(path, encrypted, "", to_write)


def _configured(settings: PeerSettings, folder: Path) -> bytes:
    passphrase = own_passphrase(settings)
    if passphrase is None:
        raise LocalError(
            f"no passphrase is configured for '{folder}': name a file with --passphrase-file, "
            f"or set the environment variable {PASSPHRASE_VARIABLE}"
        )
    return passphrase


def _as_setting(folder: Path, passphrase_file: Path) -> str:
    """Return how the settings name a file: relative to the peer's folder if it is in there."""
    where, home = passphrase_file.resolve(), folder.resolve()
    return str(where.relative_to(home) if where.is_relative_to(home) else where)


def _line(passphrase_file: str) -> str:
    return setting_line("passphrase_file", passphrase_file)


def _set_line(path: Path, line: str) -> bool:
    """Add a line to the table [identity] of the settings; False if their text is too unusual for that."""
    text = path.read_text("utf-8")
    before = tomllib.loads(text)
    if "identity" not in before:
        changed = f"{text.rstrip()}\n\n[identity]\n{line}\n"
    else:
        changed = _TABLE.sub(lambda found: f"{found[0]}\n{line}", text, count=1)
    wanted = {**before, "identity": {**before.get("identity", {}), **tomllib.loads(line)}}
    return _replace_settings(path, changed, wanted)


def _remove_line(path: Path) -> bool:
    text = path.read_text("utf-8")
    before = tomllib.loads(text)
    kept = {name: value for name, value in before["identity"].items() if name != "passphrase_file"}
    return _replace_settings(path, _SETTING.sub("", text, count=1), {**before, "identity": kept})


def _replace_settings(path: Path, text: str, wanted: dict[str, Any]) -> bool:
    """Write settings if they say what is wanted and nothing else."""
    if not says(text, wanted):
        return False
    write_settings(path, text)
    return True

"""Files at the edge of the API: what a caller may name, and whole copies of fetched data."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgepool.errors import LocalError


def in_path(text: str) -> Path:
    """Return the file to publish; LocalError if the peer cannot see it."""
    path = Path(text)
    if not path.is_absolute():
        raise LocalError(f"path '{text}' is not absolute: the peer does not run in your folder")
    if not path.is_file():
        raise LocalError(f"{path} is not a file that the peer can see")
    return path


def out_path(text: str) -> Path:
    """Return where to put data; LocalError, before anything is moved, if that cannot be."""
    path = Path(text)
    if not path.is_absolute():
        raise LocalError(f"path '{text}' is not absolute: the peer does not run in your folder")
    if path.is_dir():
        raise LocalError(f"{path} is a folder: name the file to write")
    if not path.parent.is_dir():
        raise LocalError(f"{path.parent} does not exist: make the folder first")
    return path


def copy_out(source: Path, out: Path) -> None:
    """Copy `source` to `out` (replacing it), written aside, synced and renamed."""
    with _aside(out) as written, source.open("rb") as data:
        shutil.copyfileobj(data, written, 1024 * 1024)


def write_out(out: Path, data: bytes) -> None:
    """Write `data` to `out` (replacing it), written aside, synced and renamed."""
    with _aside(out) as written:
        written.write(data)


@contextmanager
def _aside(out: Path) -> Iterator[BinaryIO]:
    """Give a file to write that becomes `out` if all goes well; LocalError, and no trace, if not."""
    aside = out.with_name(f".{out.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as written:
            yield written
            written.flush()
            os.fsync(written.fileno())
        os.replace(aside, out)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise LocalError(f"{out} cannot be written: {error.strerror}") from None

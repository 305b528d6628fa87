"""Files at the edge of the API: what a caller may name, and whole copies of fetched data."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgepool.errors import LocalError
from edgepool.model.twin import DataKey

COPY_THREADS = 8


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


def out_folder(text: str) -> Path:
    """Return the folder to put much data into; LocalError, before anything is moved, if that cannot be."""
    path = Path(text)
    if not path.is_absolute():
        raise LocalError(f"path '{text}' is not absolute: the peer does not run in your folder")
    if not path.is_dir():
        raise LocalError(f"{path} is not a folder: make one, several files are written into it")
    return path


def out_file(folder: Path, key: DataKey) -> Path | None:
    """Return where the data of `key` goes inside `folder`, PART/KIND; None if no file can have that name."""
    return None if {key.part, key.kind} & {".", ".."} else folder / key.part / key.kind


def copy_all_out(files: Sequence[tuple[Path, Path | None]]) -> list[str]:
    """Copy each source to its file as `copy_out` does; return for each what went wrong, or ''."""

    def copy(source: Path, out: Path | None) -> str:
        if out is None:
            return "no file can have its name: fetch it alone"
        try:
            out.parent.mkdir(exist_ok=True)
            copy_out(source, out)
        except OSError as error:
            return f"{out} cannot be written: {error.strerror}"
        except LocalError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(COPY_THREADS, "edgepool copy") as pool:
        return list(pool.map(copy, *zip(*files, strict=True))) if files else []


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

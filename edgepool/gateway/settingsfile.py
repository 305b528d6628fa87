"""Changes one line of a peer's settings file and leaves everything else, comments and all, as it is.

What comes out is read again before it is written: it must say what is wanted and nothing else. The file is
replaced whole and durably, or not at all.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from edgepool.transport.keyfiles import replace_file


def setting_line(name: str, value: str) -> str:
    """Return the line of TOML that sets `name` to a text."""
    return f"{name} = {json.dumps(value, ensure_ascii=False)}"


def replaced_setting(path: Path, table: str, name: str, value: str) -> str | None:
    """Return the text of a settings file in which `name` in [table], which is there, is `value`.

    None if the file is written too unusually for that.
    """
    text = path.read_text("utf-8")
    before: dict[str, Any] = tomllib.loads(text)
    head = re.search(rf"(?m)^\[{re.escape(table)}\][ \t]*(#.*)?$", text)
    if head is None or name not in before.get(table, {}):
        return None
    rest = re.search(r"(?m)^[ \t]*\[", text[head.end() :])
    end = head.end() + rest.start() if rest else len(text)
    line = re.compile(rf"(?m)^[ \t]*{re.escape(name)}[ \t]*=.*$")
    part = line.sub(lambda _: setting_line(name, value), text[head.end() : end], count=1)
    changed = text[: head.end()] + part + text[end:]
    return changed if says(changed, {**before, table: {**before[table], name: value}}) else None


def added_setting(path: Path, table: str, name: str, value: str) -> str | None:
    """Return the text of a settings file with `name` in [table], which it does not have; None if it has."""
    text = path.read_text("utf-8")
    before: dict[str, Any] = tomllib.loads(text)
    changed = f"{text.rstrip()}\n\n[{table}]\n{setting_line(name, value)}\n"
    return changed if table not in before and says(changed, {**before, table: {name: value}}) else None


def says(text: str, wanted: dict[str, Any]) -> bool:
    """Say whether settings say what is wanted and nothing else."""
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False


def write_settings(path: Path, text: str) -> None:
    """Replace a settings file; LocalError if it cannot be written, and stays as it was."""
    replace_file(path, text.encode(), path.stat().st_mode & 0o777)

"""Checks that the documentation names only what exists: files, tests, make targets, commands.

Run by `make check` and `make docs`; prints one line for each fault and ends with 1 if there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_LINES = 400


def main() -> int:
    faults: list[str] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        where = page.relative_to(ROOT)
        faults += [f"{where}: {fault}" for fault in [*links(page, text), *tests(text), *targets(text)]]
    faults += features()
    faults += commands("\n".join(page.read_text(encoding="utf-8") for page in PAGES))
    faults += long_files()
    for fault in faults:
        print(fault)
    print(f"{len(PAGES)} pages checked, {len(faults)} faults")
    return 1 if faults else 0


def links(page: Path, text: str) -> list[str]:
    """Relative links must lead somewhere."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    return [
        f"link to {target} leads nowhere"
        for target in found
        if "://" not in target and not (page.parent / target).exists()
    ]


def tests(text: str) -> list[str]:
    """Named tests must exist: tests/x.py or tests/x.py::test_y."""
    faults = []
    for name, case in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", text):
        path = ROOT / name
        if not path.exists():
            faults.append(f"{name} does not exist")
        elif case and f"def {case}(" not in path.read_text(encoding="utf-8"):
            faults.append(f"{name} has no {case}")
    return faults


def targets(text: str) -> list[str]:
    """`make X` must be a target."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return [
        f"'make {target}' is no target"
        for target in re.findall(r"`make ([a-z]+)", text)
        if not re.search(rf"^{target}:", makefile, re.MULTILINE)
    ]


def features() -> list[str]:
    """Every capability of the sources has a row."""
    text = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    counts = {1: 10, 2: 7, 3: 18, 4: 9, 5: 5}
    wanted = [f"S{part}.{n}" for part, count in counts.items() for n in range(1, count + 1)]
    return [f"docs/features.md: no row for [{row}]" for row in wanted if f"| {row} |" not in text]


def commands(text: str) -> list[str]:
    """`edgepool X` must be a command."""
    names = sorted(set(re.findall(r"`(?:\.venv/bin/)?edgepool ([a-z]+)", text)))
    listing = subprocess.run(
        [sys.executable, "-m", "edgepool", "--help"], capture_output=True, text=True, check=True
    ).stdout
    return [f"'edgepool {name}' is no command" for name in names if name not in listing]


def long_files() -> list[str]:
    """A file that grows past about 400 lines wants to be two."""
    return [
        f"{path.relative_to(ROOT)} has more than {MAX_LINES} lines"
        for path in sorted((ROOT / "edgepool").rglob("*.py"))
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES + 20
    ]


if __name__ == "__main__":
    sys.exit(main())

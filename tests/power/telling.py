"""How each rig of this folder ends: what came of it is printed, and violations make the exit code 1."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any


def tell(report: Any, as_json: bool, sentence: str) -> int:
    """Print a report, a dataclass with its `violations`, as JSON or as a sentence; return the exit code."""
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        print(sentence)
        for violation in report.violations:
            print(violation)
    return 1 if report.violations else 0

"""One suite for all roads: `road` is each of them, `wire` each that has bytes on a wire."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from roads import ROADS, Road


@pytest.fixture(autouse=True)
def _nothing_left_over(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test may leave an asyncio complaint (a lost task or exception) behind."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.name == "asyncio"] == []


@pytest.fixture(params=list(ROADS))
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Road:
    return made(request.param, tmp_path)


@pytest.fixture(params=[name for name in ROADS if name != "memory"])
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Road:
    return made(request.param, tmp_path)


def made(name: str, folder: Path) -> Road:
    if name == "libp2p" and find_spec("libp2p") is None:
        pytest.skip("the extra libp2p is not installed")
    return ROADS[name](folder)

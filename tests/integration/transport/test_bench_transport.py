"""`edgepool bench transport` measures each road that is installed, and what it says is of the right kind."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edgepool.bench.transport import measure_transport


async def test_all_roads_are_measured_side_by_side(tmp_path: Path) -> None:
    figures = {figure.name: figure for figure in await measure_transport(True, tmp_path)}
    roads = ["memory", "tls", *(["libp2p"] if find_spec("libp2p") is not None else [])]
    for road in roads:
        for what in ("round_trip", "rate", "cpu", *(["memory"] if road != "memory" else [])):
            figure = figures[f"{road}_{what}"]
            assert 0 <= figure.lowest <= figure.value <= figure.highest
            # In memory a few messages may take less than the processor's clock can tell.
            assert figure.highest > 0 or (road, what) == ("memory", "cpu")
            assert (figure.ratio is None) == (road == "tls")
    assert len(figures) == 4 * len(roads) - 1

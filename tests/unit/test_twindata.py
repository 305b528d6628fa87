from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from edgepool.errors import LocalError
from edgepool.workshop.orders import Task, expand, load_workshop
from edgepool.workshop.twindata import STEP_KINDS, TwinData

ROCKET_MOTOR = Path(__file__).parents[2] / "examples" / "rocket_motor.toml"
WORKSHOP = load_workshop(ROCKET_MOTOR)
TASKS: tuple[Task, ...] = expand(WORKSHOP).tasks


@pytest.fixture(scope="module")
def twin() -> TwinData:
    return TwinData(WORKSHOP.twin_data, seed=1)


def test_the_same_seed_gives_the_same_bytes(twin: TwinData) -> None:
    again = TwinData(WORKSHOP.twin_data, seed=1)
    other = TwinData(WORKSHOP.twin_data, seed=2)
    for kind in STEP_KINDS:
        data = twin.make("PTVN10312-04", 30, kind)
        assert again.make("PTVN10312-04", 30, kind) == data
        assert other.make("PTVN10312-04", 30, kind) != data
        assert twin.make("PTVN10312-05", 30, kind) != data


@pytest.mark.parametrize("seed", [1, 2, 42])
def test_the_demo_makes_400_to_600_megabytes_from_1_kb_to_64_mb(seed: int) -> None:
    twin = TwinData(WORKSHOP.twin_data, seed)
    sizes = [
        twin.size_bytes(task.part, step.operation_number, kind)
        for task in TASKS
        for step in task.steps
        for kind in STEP_KINDS
    ]
    assert 400e6 < sum(sizes) < 600e6
    assert min(sizes) <= 1100
    assert max(sizes) == 64 * 1024**2


def test_files_are_about_as_large_as_drawn(twin: TwinData) -> None:
    for kind in STEP_KINDS:
        made = len(twin.make("PTVL10111-02", 40, kind))
        assert made == pytest.approx(twin.size_bytes("PTVL10111-02", 40, kind), rel=0.1, abs=256)


def test_the_model_is_a_valid_binary_stl(twin: TwinData) -> None:
    data = twin.make("PTVA10212-02", 10, "model")
    (count,) = struct.unpack_from("<I", data, 80)
    assert len(data) == 84 + 50 * count
    facets = np.frombuffer(
        data, dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")], offset=84
    )
    assert np.isfinite(facets["corners"]).all()
    edges = facets["corners"][:, 1:] - facets["corners"][:, :1]
    assert np.allclose(np.linalg.norm(facets["normal"], axis=1), 1, atol=1e-3)
    across = np.abs(np.einsum("ijk,ik->ij", edges, facets["normal"]))
    assert (across <= 1e-3 * np.maximum(1, np.linalg.norm(edges, axis=2))).all()


def test_the_surface_has_the_points_that_its_header_counts(twin: TwinData) -> None:
    data = twin.make("PTVM10121-01", 30, "surface")
    assert data[:8] == b"EPPOINTS"
    count, channels = struct.unpack_from("<QI", data, 8)
    points = np.frombuffer(data, dtype="<f4", offset=32)
    assert points.size == count * channels
    assert channels == 3
    assert np.isfinite(points).all()


def test_each_operation_takes_material_off(twin: TwinData) -> None:
    def radius(operation_number: int) -> float:
        data = twin.make("PTVN10312-02", operation_number, "surface")
        points = np.frombuffer(data, dtype="<f4", offset=32).reshape(-1, 3)
        return float(np.hypot(points[:, 0], points[:, 1]).mean())

    assert radius(10) > radius(30) > radius(50)


def test_the_inspection_on_chain_is_the_one_in_the_file(twin: TwinData) -> None:
    inspection = twin.inspection("PTVA10212-01", 30)
    document = json.loads(twin.make("PTVA10212-01", 30, "requirements"))
    assert tuple(document["measured_um"]) == inspection.values_um
    assert document["feature"] == inspection.feature
    assert document["accepted"] is inspection.accepted is True


def test_documents_and_programs_are_text(twin: TwinData) -> None:
    assert len(json.loads(twin.make("DMU50-1", 0, "tools"))["entries"]) == 32
    program = twin.make("PTVA10212-01", 10, "features").decode()
    assert program.startswith("%\nO0010 (PTVA10212-01 OP10)")
    assert program.endswith("M30\n%\n")


def test_without_numpy_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(LocalError, match=r"pip install 'edgepool\[workshop\]'"):
        TwinData(WORKSHOP.twin_data, seed=1)

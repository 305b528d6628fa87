"""Real twin data of the kinds of the paper's Table 1, made from a seed [S3.2].

The same seed, part, operation and kind give the same bytes. The files are what they say they are:
the model is a binary STL that any viewer opens, the surface a cloud of measured points, the
features a program in G-code. Numpy makes the large ones; it is imported when it is first needed.
"""

from __future__ import annotations

import importlib
import json
import math
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from edgepool.errors import LocalError
from edgepool.workshop.orders import TwinDataSettings

if TYPE_CHECKING:
    import numpy as np

STEP_KINDS = ("features", "model", "surface", "equipment", "error", "requirements")
"""What a station makes in each step."""

NEEDED_KINDS = ("model", "surface", "requirements")
"""What the next station needs of its predecessor."""

STATION_KINDS = ("cases", "tools")
"""What a station knows beside its tasks, and publishes once on the main chain of its fixed pool."""

DEFAULT_SIZES_BYTES = {
    "features": (1_536, 262_144),
    "model": (32_768, 7_340_032),
    "surface": (32_768, 7_340_032),
    "equipment": (8_192, 1_048_576),
    "error": (1_024, 65_536),
}
STL_HEADER_BYTES = 84
STL_TRIANGLE_BYTES = 50
POINTS_HEADER = b"EPPOINTS"
SERIES_HEADER = b"EPSERIES"
HEADER_BYTES = 32


class Inspection(msgspec.Struct, frozen=True):
    """What was measured of one feature after a step; lengths in micrometres."""

    feature: str
    feature_kind: str
    nominal_um: int
    tolerance_um: int
    values_um: tuple[int, ...]

    @property
    def accepted(self) -> bool:
        """Whether every value is within tolerance."""
        return all(abs(value - self.nominal_um) <= self.tolerance_um for value in self.values_um)


class TwinData:
    """Makes the twin data of one run. LocalError if numpy is not installed."""

    def __init__(self, settings: TwinDataSettings, seed: int) -> None:
        self._ranges = {**DEFAULT_SIZES_BYTES, **settings.sizes_bytes}
        self._largest = settings.largest
        self._seed = seed
        self._np = _numpy()

    def size_bytes(self, part: str, operation_number: int, kind: str) -> int:
        """Return about how large that file will be: spread evenly over the orders of magnitude."""
        largest = self._largest
        if largest and (part, operation_number, kind) == (
            largest.part,
            largest.operation_number,
            largest.kind,
        ):
            return largest.size_bytes
        least, most = self._ranges.get(kind, (1024, 1024))
        share = int.from_bytes(self._draw(part, operation_number, kind, "size")[:6], "big") / 2**48
        return round(least * math.exp(share * math.log(most / least)))

    def make(self, part: str, operation_number: int, kind: str) -> bytes:
        """Return the bytes of one file; takes up to a second for the largest, so call it in a thread."""
        size_bytes = self.size_bytes(part, operation_number, kind)
        random = self._random(part, operation_number, kind)
        if kind == "model":
            return self._model(random, part, operation_number, size_bytes)
        if kind == "surface":
            return self._surface(random, part, operation_number, size_bytes)
        if kind == "features":
            return self._features(random, part, operation_number, size_bytes)
        if kind == "equipment":
            return self._equipment(random, size_bytes)
        if kind == "error":
            return self._error(random, size_bytes)
        if kind == "requirements":
            return self._requirements(part, operation_number)
        return self._document(part, kind)

    def inspection(self, part: str, operation_number: int) -> Inspection:
        """Return what is measured after a step; the same that the step's requirements file says."""
        random = self._random(part, operation_number, "inspection")
        nominal_um = int(random.integers(20_000, 200_000))
        deviations = random.integers(-18, 19, size=8)
        feature = f"Feature-{1 + int(random.integers(0, 9))}"
        kinds = ("diameter", "depth", "flatness", "position")
        feature_kind = kinds[int(random.integers(0, len(kinds)))]
        values_um = tuple(nominal_um + int(deviation) for deviation in deviations)
        return Inspection(feature, feature_kind, nominal_um, 20, values_um)

    def parameters(self, part: str, operation_number: int) -> tuple[int, ...]:
        """Return the parameters of a step: spindle speed in rev/min, feed in mm/min."""
        random = self._random(part, operation_number, "parameters")
        return int(random.integers(600, 8000)), int(random.integers(60, 900))

    def _draw(self, *words: object) -> bytes:
        return blake3(json.dumps([self._seed, *words]).encode()).digest()

    def _random(self, *words: object) -> np.random.Generator:
        random: np.random.Generator = self._np.random.Generator(
            self._np.random.PCG64(int.from_bytes(self._draw(*words), "big"))
        )
        return random

    def _grid(self, part: str, operation_number: int, rows: int, columns: int) -> Any:
        """Return (rows, columns, 3) points in mm on a shell of revolution with grooves and bosses.

        The shape is that of the part number; each operation takes some material off.
        """
        np = self._np
        shape = self._random(part.rpartition("-")[0], "shape")
        radius_mm, length_mm = shape.uniform(80, 240), shape.uniform(200, 900)
        waves = shape.integers(2, 9, size=4)
        depths_mm = shape.uniform(0.4, 4.0, size=4)
        along = np.linspace(0, 1, rows, dtype=np.float32)
        around = np.linspace(0, 2 * np.pi, columns, dtype=np.float32)
        profile = radius_mm + 60.0 / operation_number
        profile = profile + depths_mm[0] * np.sin(waves[0] * np.pi * along) + depths_mm[1] * (along > 0.7)
        bosses = depths_mm[2] * np.sin(waves[2] * around) * 0.2
        radius = (profile[:, None] + bosses[None, :]).astype(np.float32)
        points = np.empty((rows, columns, 3), dtype=np.float32)
        points[:, :, 0] = radius * np.cos(around)[None, :]
        points[:, :, 1] = radius * np.sin(around)[None, :]
        points[:, :, 2] = (along * length_mm).astype(np.float32)[:, None]
        return points

    def _model(self, random: np.random.Generator, part: str, operation_number: int, size_bytes: int) -> bytes:
        """Binary STL: 80 bytes of text, the count, then 50 bytes a triangle."""
        np = self._np
        triangles = max(8, (size_bytes - STL_HEADER_BYTES) // STL_TRIANGLE_BYTES)
        columns = max(2, math.isqrt(triangles))
        rows = max(2, triangles // (2 * columns))
        points = self._grid(part, operation_number, rows + 1, columns + 1)
        # Facets of a real part are not a perfect grid; this also keeps files from compressing to nothing.
        points += random.standard_normal(points.shape, dtype=np.float32) * np.float32(0.002)
        a, b, c, d = points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]
        facets = np.empty((rows, columns, 2), dtype=_facet_type(np))
        for index, corners in enumerate(((a, b, c), (a, c, d))):
            normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
            normal /= np.maximum(np.linalg.norm(normal, axis=2, keepdims=True), np.float32(1e-12))
            facets["normal"][:, :, index] = normal
            for corner in range(3):
                facets["corners"][:, :, index, corner] = corners[corner]
        facets["attribute"] = 0
        title = f"edgepool model of {part} after operation {operation_number}".encode()
        count = facets.size.to_bytes(4, "little")
        return b"".join((title[:80].ljust(80), count, facets.data))

    def _surface(
        self, random: np.random.Generator, part: str, operation_number: int, size_bytes: int
    ) -> bytes:
        """Measured points: a header, then float32 x, y, z in mm for each."""
        np = self._np
        count = max(4, (size_bytes - HEADER_BYTES) // 12)
        columns = max(2, math.isqrt(count))
        points = self._grid(part, operation_number, max(2, count // columns), columns)
        points += random.standard_normal(points.shape, dtype=np.float32) * np.float32(0.004)
        head = _header(POINTS_HEADER, points.shape[0] * points.shape[1], 3)
        return b"".join((head, points.data))

    def _equipment(self, random: np.random.Generator, size_bytes: int) -> bytes:
        """Equipment status over time: a header, then float32 (cutting force in N, temperature in °C)."""
        np = self._np
        count = max(16, (size_bytes - HEADER_BYTES) // 8)
        series = np.empty((count, 2), dtype=np.float32)
        time = np.arange(count, dtype=np.float32)
        series[:, 0] = 420 + 90 * np.sin(time * np.float32(0.31)) + random.normal(0, 12, count)
        series[:, 1] = 61 - 40 * np.exp(-3 * time / count) + random.normal(0, 0.2, count)
        return b"".join((_header(SERIES_HEADER, count, 2), series.data))

    def _error(self, random: np.random.Generator, size_bytes: int) -> bytes:
        """Deviations of the part as made from its model: a header, then float32 micrometres."""
        count = max(16, (size_bytes - HEADER_BYTES) // 4)
        deviations = random.normal(0, 6, count).astype(self._np.float32)
        return _header(SERIES_HEADER, count, 1) + deviations.tobytes()

    def _features(
        self, random: np.random.Generator, part: str, operation_number: int, size_bytes: int
    ) -> bytes:
        """The G-code of the step: a head, then moves until the size is reached."""
        speed, feed = self.parameters(part, operation_number)
        head = f"%\nO{operation_number:04d} ({part} OP{operation_number})\nG21 G90 G17\nS{speed} M3\n"
        tail = "G0 Z100.\nM5\nM30\n%\n"
        moves = max(1, (size_bytes - len(head) - len(tail)) // 38)
        places = random.uniform(-200, 200, size=(moves, 3)).round(3).tolist()
        lines = [f"G1 X{x:+08.3f} Y{y:+08.3f} Z{z:+08.3f} F{feed:03d}\n" for x, y, z in places]
        return "".join((head, *lines, tail)).encode()

    def _requirements(self, part: str, operation_number: int) -> bytes:
        """The accuracy that is asked for and what was measured, as JSON of about 1 KB."""
        inspection = self.inspection(part, operation_number)
        return _document(
            document="geometric accuracy requirements, with inspection",
            part=part,
            operation_number=operation_number,
            feature=inspection.feature,
            feature_kind=inspection.feature_kind,
            nominal_um=inspection.nominal_um,
            tolerance_um=inspection.tolerance_um,
            measured_um=list(inspection.values_um),
            accepted=inspection.accepted,
        )

    def _document(self, part: str, kind: str) -> bytes:
        """A document of the historical kinds, about a station ('part' is its name) or a part."""
        random = self._random(part, kind)
        entries = [
            {
                "case": number,
                "tool": f"T{int(random.integers(1, 60)):02d}",
                "wear_um": int(random.integers(2, 180)),
                "surface_roughness_nm": int(random.integers(200, 3200)),
                "spindle_load_percent": int(random.integers(8, 96)),
            }
            for number in range(1, 33)
        ]
        return _document(document=f"historical data: {kind}", of=part, entries=entries)


def _document(**fields: object) -> bytes:
    """Return JSON text of at least 1 KB."""
    text = json.dumps(fields, indent=1)
    return text.ljust(1023).encode() + b"\n"


def _header(magic: bytes, count: int, channels: int) -> bytes:
    head = magic + count.to_bytes(8, "little") + channels.to_bytes(4, "little")
    return head.ljust(HEADER_BYTES, b"\0")


def _facet_type(np: ModuleType) -> Any:
    return np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def _numpy() -> ModuleType:
    try:
        return importlib.import_module("numpy")
    except ImportError:
        raise LocalError(
            "the workshop needs numpy to make its twin data: install it with pip install 'edgepool[workshop]'"
        ) from None

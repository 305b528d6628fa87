"""Thousands of connections to a holder that are opened and left: it goes on serving, and does not grow.

    python tests/power/half_open.py --connections 10000 --json

A third of them say nothing, a third half a greeting of TLS, a third half that of a data connection.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import socket
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from plant import Gateway, Plant

from edgepool.bench.transfer.material import MIB
from edgepool.errors import EdgepoolError
from edgepool.gateway.client import ApiClient
from edgepool.model.ids import parse_address

GROWTH_BYTES = 64 * MIB
MOST_FILES = 600
FETCHES = 4
CANNOT_RUN = 3
_SPARE_FILES = 500
_SAY = (b"", b"\x16\x03\x01\x02", b"edgelane12345")


@dataclass(slots=True)
class Report:
    """What the holder had at most while so many connections to it were left half open."""

    connections: int = 0
    fetches: int = 0
    files: int = 0
    grown_bytes: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


def attack(plant: Plant, count: int) -> Report:
    """Leave so many connections to the honest holder half open, and fetch from it meanwhile."""
    report = Report()
    began_s = time.perf_counter()
    target = plant.honest
    memory_bytes = target.memory_bytes()
    plant.rogue_does("never_answers")  # so that the one under attack has to serve
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[1], count + _SPARE_FILES), limits[1]))
    opened: list[socket.socket] = []
    try:
        host, port, _ = parse_address(asyncio.run(_address(target)))
        for number in range(1, count + 1):
            opened.append(_half_open(host, port, number))
            if number % (count // FETCHES) == 0:
                _fetch(plant, report)
                report.files = max(report.files, target.file_descriptors())
        report.connections = len(opened)
    finally:
        for one in opened:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        plant.rogue_does("honest")
    report.grown_bytes = target.memory_bytes() - memory_bytes
    if report.grown_bytes > GROWTH_BYTES or report.files > MOST_FILES:
        report.violations.append(f"the holder grew by {report.grown_bytes} bytes, to {report.files} files")
    report.seconds = round(time.perf_counter() - began_s, 1)
    return report


def _fetch(plant: Plant, report: Report) -> None:
    asyncio.run(plant.forget())
    try:
        if asyncio.run(plant.fetch()) != plant.data.path.read_bytes():
            report.violations.append("what was fetched is not what was published")
        report.fetches += 1
    except EdgepoolError as error:
        report.violations.append(f"a fetch failed: {error}")


def _half_open(host: str, port: int, number: int) -> socket.socket:
    # From many addresses: what comes from one is sent away sooner, and honest peers are at 127.0.0.1.
    source = f"127.2.0.{number % 250 + 1}"
    connection = socket.create_connection((host, port), 60, source_address=(source, 0))
    with suppress(OSError):
        connection.sendall(_SAY[number % len(_SAY)])
    return connection


async def _address(gateway: Gateway) -> str:
    async with ApiClient.of(gateway.folder) as client:
        return (await client.status()).addresses[0]


def main() -> int:
    parser = argparse.ArgumentParser(description="Leave connections half open, and fetch meanwhile.")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < options.connections + _SPARE_FILES:
        print(f"only {most} files may be open here", file=sys.stderr)
        return CANNOT_RUN
    with tempfile.TemporaryDirectory(prefix="edgepool-half-open-") as folder:
        plant = Plant(Path(folder) / "plant")
        try:
            asyncio.run(plant.start())
            report = attack(plant, options.connections)
        finally:
            plant.end()
    print(json.dumps(asdict(report)) if options.json else report)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())

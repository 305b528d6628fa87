"""Network namespaces for measurements: hosts of their own on this machine, made and surely removed.

Only root can make them, and not everywhere. Nothing outside of them is touched: interfaces are made
inside. Their names hold the process that made them, so that those of a killed one can be swept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgepool.errors import Unavailable

PREFIX = "edgepool-bench"
_PLACES = Path("/run/netns")
_COMMAND_S = 10.0


@dataclass(frozen=True, slots=True)
class Host:
    """A host of a laboratory: words that put a command on it, and its address."""

    within: tuple[str, ...]
    address: str


class Namespaces:
    """The namespaces of this process, by number; all are removed by `remove`."""

    def __init__(self) -> None:
        self._made: list[str] = []

    def make(self) -> str:
        """Make one, with loopback up; return its name. Unavailable if this machine forbids it."""
        if not self._made:
            if shutil.which("ip") is None or shutil.which("tc") is None:
                raise Unavailable("network namespaces need the commands ip and tc (iproute2)")
            sweep()
        name = f"{PREFIX}-{os.getpid()}-{len(self._made)}"
        try:
            run("ip", "netns", "add", name)
            self._made.append(name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        except Unavailable as error:
            raise Unavailable(f"network namespaces cannot be made here ({error})") from None
        return name

    def remove(self) -> None:
        """Remove all, and with them their interfaces."""
        for name in self._made:
            _delete(name)
        self._made.clear()


def bridge(namespaces: Namespaces, rates_mbit_s: list[float]) -> list[Host]:
    """Make hosts on one bridge; each sends at its rate at most (tbf; 0: as fast as it can).

    A rate counts Ethernet frames whole, as a wire does: of 1,514 bytes 1,448 are data.
    """
    switch = namespaces.make()
    run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
    run("ip", "-n", switch, "link", "set", "bridge", "up")
    hosts = []
    for number, rate_mbit_s in enumerate(rates_mbit_s, 1):
        name, port, address = namespaces.make(), f"port{number}", f"10.77.0.{number}"
        run(
            "ip", "link", "add", port, "netns", switch, "type", "veth", "peer", "name", "wire", "netns", name
        )  # fmt: skip
        run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
        run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "wire")
        run("ip", "-n", name, "link", "set", "wire", "up")
        if rate_mbit_s:
            limit = ("rate", f"{rate_mbit_s:g}mbit", "burst", "64kb", "latency", "50ms")
            run("tc", "-n", name, "qdisc", "add", "dev", "wire", "root", "tbf", *limit)
        hosts.append(Host(("ip", "netns", "exec", name), address))
    return hosts


def sweep() -> None:
    """Remove the namespaces of processes that live no more."""
    for place in _PLACES.glob(f"{PREFIX}-*-*"):
        owner = place.name.removeprefix(f"{PREFIX}-").partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _delete(place.name)


def run(*command: str) -> None:
    """Run a command of the system; Unavailable says what it complains of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"'{' '.join(command[:3])}' cannot be run: {error}") from None
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise Unavailable(f"'{' '.join(command)}' says: {words[-1] if words else done.returncode}")


def _delete(name: str) -> None:
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=_COMMAND_S, check=False)

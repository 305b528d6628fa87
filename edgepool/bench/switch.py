"""A switch in user space between hosts in namespaces: delay and loss where the kernel has no netem.

Every host has a TUN interface whose other end this process holds. What one sends is read here, lost by
chance, or held back for the delay, and written to the other. One thread does nothing else.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import select
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from random import Random
from time import monotonic

from edgepool.bench.namespaces import Host, Namespaces, run
from edgepool.errors import Unavailable

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES = 2048
_IDLE_S = 0.1
_AT_ONCE = 64
_DESTINATION = 19
"""Where the last byte of an IPv4 packet's destination stands."""


@dataclass(frozen=True, slots=True)
class Weather:
    """What a packet meets on its way from any host to any other, each way."""

    delay_ms: float = 0.0
    loss: float = 0.0


class Switch:
    """Hosts 1 to `hosts` on a switch; `seed` decides which packets are lost."""

    def __init__(self, namespaces: Namespaces, hosts: int, weather: Weather, seed: int = 0) -> None:
        self.hosts: list[Host] = []
        self.lost = self.passed = 0
        self._weather = weather
        self._random = Random(seed)
        self._ends: dict[int, int] = {}
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._numbers = count()
        self._closing = False
        try:
            for number in range(1, hosts + 1):
                self.hosts.append(self._plug(namespaces.make(), number))
        except BaseException:
            self._unplug()
            raise
        self._thread = threading.Thread(target=self._pass_on, name="switch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; the interfaces vanish."""
        self._closing = True
        self._thread.join()
        self._unplug()

    def _plug(self, namespace: str, number: int) -> Host:
        """Make a host's interface, and keep its other end."""
        name, address = f"bench{os.getpid() % 100_000}.{number}", f"10.78.0.{number}"
        try:
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._ends[number] = end
            fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        except OSError as error:
            raise Unavailable(f"a TUN interface cannot be made here: {error.strerror}") from None
        run("ip", "link", "set", name, "netns", namespace)
        run("ip", "-n", namespace, "link", "set", name, "name", "wire")
        run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "wire")
        run("ip", "-n", namespace, "link", "set", "wire", "mtu", "1500", "txqueuelen", "2000", "up")
        return Host(("ip", "netns", "exec", namespace), address)

    def _unplug(self) -> None:
        for end in self._ends.values():
            os.close(end)
        self._ends.clear()

    def _pass_on(self) -> None:
        poll = select.epoll()
        for end in self._ends.values():
            poll.register(end, select.EPOLLIN)
        waiting = self._waiting
        while not self._closing:
            while waiting and waiting[0][0] <= monotonic():
                self._deliver(*heapq.heappop(waiting)[2:])
            idle_s = min(_IDLE_S, max(0.0, waiting[0][0] - monotonic())) if waiting else _IDLE_S
            for end, _ in poll.poll(idle_s):
                self._take(end)
        poll.close()

    def _take(self, end: int) -> None:
        """Read what a host has sent, and decide about each packet."""
        weather = self._weather
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(end, _PACKET_BYTES)
            except OSError:
                return
            if packet[0] >> 4 != 4 or packet[_DESTINATION] not in self._ends:
                continue
            if self._random.random() < weather.loss:
                self.lost += 1
                continue
            self.passed += 1
            due_s = monotonic() + weather.delay_ms / 1000
            heapq.heappush(self._waiting, (due_s, next(self._numbers), packet[_DESTINATION], packet))

    def _deliver(self, number: int, packet: bytes) -> None:
        with suppress(OSError):  # a host whose queue is full loses it, as everywhere
            os.write(self._ends[number], packet)

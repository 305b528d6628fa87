"""Two connections joined in the kernel: all bytes, in order, and only so many of them on their way."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator

import pytest
from tls_peers import until

from edgepool.core.circuits import QUANTUM_BYTES, FairShare
from edgepool.model.ids import PeerId
from edgepool.transport.splice import Gate, Pipes, Splice

PAYER = PeerId("payer")


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        one = socket.create_connection(door.getsockname())
        other, _ = door.accept()
    for end in (one, other):
        end.setblocking(False)
    return one, other


class Joined:
    """A splice with the sockets of those whom it joins: `left` and `right`."""

    def __init__(self, gate: Gate | None = None) -> None:
        self.left, near = pair()
        self.right, far = pair()
        self.moved = 0
        self.ends: list[str] = []
        self.pipes = Pipes()
        self.splice = Splice(near, far, self.pipes, self.count, self.ends.append, gate, PAYER)
        self.splice.start()

    def count(self, size_bytes: int) -> None:
        self.moved += size_bytes


@pytest.fixture
def joined() -> Iterator[list[Joined]]:
    ways: list[Joined] = []
    yield ways
    for way in ways:
        way.splice.end("the test is over")
        way.pipes.close()
        way.left.close()
        way.right.close()


async def receive(end: socket.socket, size_bytes: int) -> bytes:
    loop = asyncio.get_running_loop()
    got = bytearray()
    while len(got) < size_bytes and (piece := await loop.sock_recv(end, 1 << 18)):
        got += piece
    return bytes(got)


async def test_all_bytes_arrive_in_order_both_ways_at_once(joined: list[Joined]) -> None:
    joined.append(way := Joined())
    loop = asyncio.get_running_loop()
    chance = random.Random(1)
    there, back = chance.randbytes(5_000_003), chance.randbytes(3_000_001)
    got_there, got_back, _, _ = await asyncio.gather(
        receive(way.right, len(there)),
        receive(way.left, len(back)),
        loop.sock_sendall(way.left, there),
        loop.sock_sendall(way.right, back),
    )
    assert got_there == there
    assert got_back == back
    assert way.moved == len(there) + len(back)


async def test_one_side_may_end_and_still_hear_the_other(joined: list[Joined]) -> None:
    joined.append(way := Joined())
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(way.left, b"last words")
    way.left.shutdown(socket.SHUT_WR)
    assert await receive(way.right, 1000) == b"last words"
    await loop.sock_sendall(way.right, b"answer")
    assert await receive(way.left, 6) == b"answer"
    assert way.ends == []
    way.right.shutdown(socket.SHUT_WR)
    assert await receive(way.left, 1000) == b""
    await until(lambda: way.ends)
    assert way.ends == ["both sides have closed"]


async def test_when_one_side_breaks_off_so_does_the_other(joined: list[Joined]) -> None:
    joined.append(way := Joined())
    way.left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    way.left.close()
    await until(lambda: way.ends)
    assert await receive(way.right, 1000) == b""


async def test_a_reader_that_stalls_stops_the_writer_and_loses_nothing(joined: list[Joined]) -> None:
    joined.append(way := Joined())
    data = random.Random(2).randbytes(1 << 20) * 64
    sent = 0
    quiet = 0
    # The writer goes on until nothing is taken any more: all buffers on the way are full.
    while quiet < 20:
        try:
            sent += way.left.send(memoryview(data)[sent : sent + (1 << 20)])
            quiet = 0
        except BlockingIOError:
            quiet += 1
            await asyncio.sleep(0.005)
        assert sent < len(data), "what is on its way is not bounded"
    reading = asyncio.create_task(receive(way.right, len(data)))
    await asyncio.get_running_loop().sock_sendall(way.left, memoryview(data)[sent:])
    assert await reading == data


@pytest.mark.parametrize("total", [200_000_000, 0])
async def test_what_is_rationed_arrives_whole(joined: list[Joined], total: int) -> None:
    gate = Gate(FairShare(total, 100_000_000))
    joined.append(way := Joined(gate))
    data = random.Random(3).randbytes(30 * QUANTUM_BYTES + 1)
    reading = asyncio.create_task(receive(way.right, len(data)))
    await asyncio.get_running_loop().sock_sendall(way.left, data)
    assert await reading == data
    gate.close()


async def test_an_idle_way_holds_no_pipe(joined: list[Joined]) -> None:
    joined.append(way := Joined())
    await asyncio.get_running_loop().sock_sendall(way.left, b"one word")
    assert await receive(way.right, 8) == b"one word"
    await until(lambda: len(way.pipes.spare) == 1)

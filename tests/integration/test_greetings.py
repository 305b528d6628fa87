"""Connections that do not begin with TLS: who takes them, and who is sent away."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from msgspec.structs import replace
from tls_peers import TlsPeer, ended, make_settings, until

from edgepool.transport.door import Listener
from edgepool.transport.identity import load_identity

NAME = b"testdata"
TOKEN = bytes(range(32))


class Taker:
    """Takes the one connection that has the right token."""

    def __init__(self) -> None:
        self.taken: list[socket.socket] = []

    def take(self, connection: socket.socket, token: bytes) -> bool:
        if token != TOKEN:
            return False
        self.taken.append(connection)
        return True


async def test_a_greeting_with_a_known_token_is_handed_on_with_all_that_follows(tmp_path: Path) -> None:
    counters: dict[str, int] = {}
    settings = make_settings(tmp_path, "a")
    listener = Listener(load_identity(settings), settings.limits, counters, lambda *_: None)
    taker = Taker()
    listener.plain[NAME] = taker.take
    with socket.create_server(("127.0.0.1", 0)) as door:
        there = socket.create_connection(door.getsockname())
        here, _ = door.accept()
    with here, there:
        listener.take(here)
        there.sendall(NAME + TOKEN[:5])
        await asyncio.sleep(0)
        there.sendall(TOKEN[5:] + b"what follows")
        await until(lambda: taker.taken)
        assert taker.taken[0].recv(100) == b"what follows"
        assert counters == {}
    await listener.close()


async def test_an_unknown_name_or_token_is_sent_away_and_counted(tmp_path: Path) -> None:
    async with TlsPeer(make_settings(tmp_path, "a")) as a:
        for greeting in (b"whatever" + TOKEN, NAME + TOKEN, NAME):
            reader, writer = await asyncio.open_connection(*a.where)
            writer.write(greeting)
            writer.write_eof()
            assert await ended(reader)
            writer.close()
        await until(lambda: a.counters.get("refused_handshake") == 3)


async def test_who_says_nothing_is_sent_away_in_time(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "a")
    settings = replace(settings, limits=replace(settings.limits, handshake_timeout_ms=50))
    async with TlsPeer(settings) as a:
        reader, writer = await asyncio.open_connection(*a.where)
        assert await ended(reader)
        writer.close()
        await until(lambda: a.counters.get("refused_handshake") == 1)

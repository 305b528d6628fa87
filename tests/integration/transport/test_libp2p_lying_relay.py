"""A relay that lies: it is a member, and does with circuits what it likes; only circuits take harm."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("libp2p") is None:
    pytest.skip("the extra libp2p is not installed", allow_module_level=True)

import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as PeerMessage
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg
from libp2p.tools.anyio_service import background_trio_service
from test_libp2p_defects import LOOPBACK, begin

from edgepool.transport.libp2p_child import circuits
from edgepool.transport.libp2p_child.circuits import HOP, STOP
from edgepool.transport.libp2p_child.host import Connections

PING = "/ipfs/ping/1.0.0"
Lie = Callable[[Any, "World"], Awaitable[None]]


class World:
    """Somebody who asks, who is asked for, somebody else, and the relay between them."""

    def __init__(self) -> None:
        self.asker, self.wanted, self.other, self.relay = (
            Connections(begin(seed), lambda reason: None)
            for seed in (b"asker", b"wanted", b"other", b"relay")
        )

    @asynccontextmanager
    async def running(self, lie: Lie) -> AsyncIterator[str]:
        """Run all, the relay with `lie` in place of its handler; yields the address of who is wanted."""

        async def answer(stream: Any) -> None:
            asked = await read_delimited_msg(stream, HopMessage)
            if asked.type == HopMessage.RESERVE:
                await write_delimited_msg(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK))
                await stream.close()
                return
            await lie(stream, self)

        self.relay.host.set_stream_handler(HOP, answer)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.relay.host.run([LOOPBACK]))
            where = f"{self.relay.host.get_addrs()[0]}"
            for one in (self.asker, self.wanted, self.other):
                await stack.enter_async_context(background_trio_service(one.swarm))
                one.prove(id_of(self.relay))
                self.relay.prove(id_of(one))
                relay = self.relay.host.get_id()
                await one.swarm.dial_addr(self.relay.host.get_addrs()[0], relay)
                await one.circuits.reserve(id_of(self.relay), "")
            yield f"{where}/p2p-circuit/p2p/{id_of(self.wanted)}"


def id_of(connections: Connections) -> str:
    return str(connections.host.get_id())


async def says_nothing(stream: Any, world: World) -> None:
    await trio.sleep_forever()


async def says_yes_and_nothing_more(stream: Any, world: World) -> None:
    await write_delimited_msg(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK))
    await trio.sleep_forever()


async def says_yes_and_then_noise(stream: Any, world: World) -> None:
    await write_delimited_msg(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK))
    await stream.write(bytes(range(256)) * 64)


async def says_what_is_no_word(stream: Any, world: World) -> None:
    await stream.write(b"\xff" * 200)


async def says_yes_and_speaks_itself(stream: Any, world: World) -> None:
    """Play the one who is wanted."""
    await write_delimited_msg(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK))
    raw = world.relay.circuits._raw(stream, False, id_of(world.relay), id_of(world.asker))
    await world.relay.swarm.upgrade_inbound_raw_conn(raw, LOOPBACK)


async def leads_to_somebody_else(stream: Any, world: World) -> None:
    onward = await world.relay.open_stream(id_of(world.other), "", STOP)
    asker = PeerMessage(id=world.asker.host.get_id().to_bytes())
    await write_delimited_msg(onward, StopMessage(type=StopMessage.CONNECT, peer=asker))
    assert (await read_delimited_msg(onward, StopMessage)).status == Status.OK
    await write_delimited_msg(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK))
    await world.relay.circuits._pass(stream, onward, world.asker.host.get_id(), world.other.host.get_id())


@pytest.mark.parametrize(
    "lie",
    [
        says_nothing,
        says_yes_and_nothing_more,
        says_yes_and_then_noise,
        says_what_is_no_word,
        says_yes_and_speaks_itself,
        leads_to_somebody_else,
    ],
)
def test_a_relay_that_lies_gets_nobody_a_connection(lie: Lie, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits, "ANSWER_S", 1.0)

    async def main() -> None:
        world = World()
        async with world.running(lie) as address:
            reached = []
            for _ in range(2):
                # As the child does it: for as long as its parent has said, whatever the relay says.
                with trio.move_on_after(3), suppress(Exception):
                    reached.append(await world.asker.open_stream(id_of(world.wanted), address, PING))
            assert reached == []
            assert world.asker.live(world.wanted.host.get_id()) == []
            assert world.asker.live(world.other.host.get_id()) == []

    trio.run(main)


def test_what_a_relay_says_of_who_comes_is_not_believed() -> None:
    """It names another peer than the one who comes; Noise says who that is."""

    async def main() -> None:
        world = World()

        async def misname(stream: Any, world: World) -> None:
            onward = await world.relay.open_stream(id_of(world.wanted), "", STOP)
            other = PeerMessage(id=world.other.host.get_id().to_bytes())
            await write_delimited_msg(onward, StopMessage(type=StopMessage.CONNECT, peer=other))
            assert (await read_delimited_msg(onward, StopMessage)).status == Status.OK
            await write_delimited_msg(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK))
            ends = world.asker.host.get_id(), world.wanted.host.get_id()
            await world.relay.circuits._pass(stream, onward, *ends)

        async with world.running(misname) as address:
            with trio.fail_after(45):
                stream = await world.asker.open_stream(id_of(world.wanted), address, PING)
                await stream.reset()
            assert world.wanted.live(world.asker.host.get_id())
            assert world.wanted.live(world.other.host.get_id()) == []

    trio.run(main)


def test_who_has_proved_nothing_brings_nobody() -> None:
    async def main() -> None:
        world = World()

        async def nothing(stream: Any, world: World) -> None: ...

        async with world.running(nothing):
            await world.wanted.disconnect(id_of(world.relay))
            await world.wanted.swarm.dial_addr(world.relay.host.get_addrs()[0], world.relay.host.get_id())
            onward = await world.relay.open_stream(id_of(world.wanted), "", STOP)
            asker = PeerMessage(id=ID(world.asker.host.get_id().to_bytes()).to_bytes())
            await write_delimited_msg(onward, StopMessage(type=StopMessage.CONNECT, peer=asker))
            with trio.fail_after(45), pytest.raises(Exception) as failed:
                await read_delimited_msg(onward, StopMessage)
            assert not isinstance(failed.value, trio.TooSlowError)

    trio.run(main)

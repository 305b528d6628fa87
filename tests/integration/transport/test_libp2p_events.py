"""News by gossipsub go to members that have subscribed, and to nobody else."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

if find_spec("libp2p") is None:
    pytest.skip("the extra libp2p is not installed", allow_module_level=True)

import trio
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from edgepool.transport.libp2p_child import events
from edgepool.transport.libp2p_child.events import MESHSUB, Events
from edgepool.transport.libp2p_child.host import Connections
from edgepool.transport.libp2p_child.messages import Begin

TOPIC = "/edgepool/events/1/" + "0" * 40


def connections(seed: bytes) -> Connections:
    begin = Begin(seed.ljust(32), (), (), 4, 4, 5_000, 5_000, 0, True, False)
    return Connections(begin, lambda reason: None)


def test_a_subscriber_hears_nothing_before_it_is_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PROOF_S", 60.0)

    async def main() -> None:
        publisher, follower = connections(b"publisher"), connections(b"follower")
        news = Events(publisher)
        # The follower's pubsub is py-libp2p's own, which streams to whoever it is connected to.
        router = GossipSub([MESHSUB], 6, 4, 12, heartbeat_initial_delay=0.1, heartbeat_interval=1)
        pubsub = Pubsub(follower.host, router, strict_signing=True)
        here = str(follower.host.get_id())
        heard: list[bytes] = []

        async def listen(subscription: object) -> None:
            async for message in subscription:  # type: ignore[attr-defined]
                heard.append(message.data)

        async with (
            publisher.host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]),
            news.running(),
            background_trio_service(follower.swarm),
            background_trio_service(router),
            background_trio_service(pubsub),
            trio.open_nursery() as nursery,
        ):
            await pubsub.wait_until_ready()
            nursery.start_soon(listen, await pubsub.subscribe(TOPIC))
            await follower.swarm.dial_addr(publisher.host.get_addrs()[0], publisher.host.get_id())
            with trio.move_on_after(2):
                while not news._pubsub.peer_topics.get(TOPIC):
                    await news.publish(TOPIC, b"secret")
                    await trio.sleep(0.05)
            assert not news._pubsub.peer_topics.get(TOPIC)
            assert not news._pubsub.peers
            publisher.prove(here)
            await news.admit(here)
            with trio.fail_after(60):
                while b"public" not in heard:
                    await news.publish(TOPIC, b"public")
                    await trio.sleep(0.05)
            assert b"secret" not in heard
            nursery.cancel_scope.cancel()

    trio.run(main)

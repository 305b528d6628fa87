"""A valid value of every kind that is said on the libp2p road, by peers and by parent and child."""

from __future__ import annotations

from changing_pool import ChangingPool

from edgepool.core.ledger.trust import Trust
from edgepool.model.asking import (
    Answer,
    BlockNews,
    Find,
    HandoverList,
    HandoversAbove,
    No,
    Offers,
    Places,
    PoolList,
    Pools,
    ProofFile,
    Prove,
    Question,
    TrustProof,
    Where,
    WhomToTrust,
)
from edgepool.model.channelproof import MembershipProof
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer
from edgepool.model.ids import ChainId
from edgepool.model.twin import DataKey
from edgepool.model.whereabouts import sign_whereabouts
from edgepool.transport.libp2p_child import messages
from edgepool.transport.libp2p_child.messages import FromChild, ToChild
from edgepool.transport.proofdoor import ChannelHello

CHAIN = ChainId("0" * 40)
_POOL = ChangingPool()
_BLOCK = _POOL.block()
_POOL.change(incoming=_POOL.person("m9"))
EXAMPLES: dict[object, list[object]] = {
    Question: [
        *(Pools(), Find(DataKey("P", "model"), 0, 5_000), Prove(CHAIN, 1, 0)),
        *(HandoversAbove(CHAIN, 0), WhomToTrust(CHAIN), Where(CHAIN)),
    ],
    Answer: [
        *(PoolList(()), Offers(()), ProofFile(b"EPPROOF"), No("because")),
        HandoverList(_POOL.handovers),
        TrustProof(encode(Trust()), bytes(32), _BLOCK.block.header, _BLOCK.certificate),
        Places((sign_whereabouts(Signer(bytes(32)), "works", ("/ip4/10.0.0.1/tcp/1",), 5),)),
    ],
    BlockNews: [BlockNews(_BLOCK.block.header, _BLOCK.certificate)],
    ChannelHello: [ChannelHello(bytes(32))],
    MembershipProof: [MembershipProof(b"certificate", bytes(64))],
    ToChild: [
        messages.Begin(bytes(32), ("/ip4/127.0.0.1/tcp/0",), ("/x",), 1, 1, 1, 1, 0, False, True),
        messages.Reserve("1" * 52),
        messages.LookAround("127.0.0.1", ("/ip4/127.0.0.1/tcp/1/p2p/x",)),
        messages.Dial(2, "1" * 52, "", "/x", 1),
        messages.Publish("topic", b"news"),
        messages.Proven("1" * 52),
        messages.Disconnect("1" * 52),
        messages.Beat(1),
        messages.Data(2, b"data"),
        messages.Credit(2, 1),
        messages.Finish(2),
        messages.Reset(2, "because"),
    ],
    FromChild: [
        messages.Listening(("/ip4/127.0.0.1/tcp/1",)),
        messages.ListenFailed("/ip4/127.0.0.1/tcp/1", 98),
        messages.Accepted(1, "1" * 52, "/x", ""),
        messages.Opened(2, "1" * 52),
        messages.Met(2, "1" * 52),
        messages.Placed("1" * 52, ""),
        messages.Found("1" * 52, "/ip4/127.0.0.1/tcp/1"),
        messages.Counted("refused_handshake"),
        messages.Beating(*(1,) * 8),
        messages.Data(1, b"data"),
        messages.Credit(1, 1),
        messages.Finish(1),
        messages.Reset(1, ""),
    ],
}

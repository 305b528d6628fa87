"""Two peers in one program: a mill publishes a part model, a lathe fetches it.

Run it with `python examples/two_peers.py`. It makes a temporary authority and two folders, starts
both peers over real TLS links on loopback, forms a pool, and moves one file.
"""

import asyncio
import os
import tempfile
from pathlib import Path

from edgepool import Peer
from edgepool.config import KnownPeer
from edgepool.gateway.pools import gather_members, pool_stands
from edgepool.gateway.setup import PeerPlan, make_peer_folder


async def main(folder: Path) -> None:
    # Whoever has the authority's folder admits peers: each gets a certificate of it.
    authority = folder / "authority"

    # The mill also coordinates here: somebody has to form the pools.
    make_peer_folder(folder / "mill", PeerPlan("mill", "example", "coordinator", "Milling"), authority)
    async with Peer.open(folder / "mill") as mill:
        # The lathe is told where the mill is, and that it may form pools.
        plan = PeerPlan(
            "lathe",
            "example",
            machine_type="Turning",
            coordinators=(mill.id,),
            known_peers=(KnownPeer("mill", f"{mill.addresses[0]}/p2p/{mill.id}"),),
        )
        make_peer_folder(folder / "lathe", plan, authority)
        async with Peer.open(folder / "lathe") as lathe:
            await exchange(mill, lathe)


async def exchange(mill: Peer, lathe: Peer) -> None:
    # A pool is formed once its members are linked; it has a chain of its own.
    members = await gather_members(mill, ["mill", "lathe"], timeout_s=10)
    pool = await mill.form_pool("cell", "fixed", members)
    await pool_stands(pool, [mill, lathe], timeout_s=10)
    print(f"pool 'cell' stands: {', '.join(member.name for member in members)}, chain {pool.chain[:8]}")

    # The data stays with the mill; its hash goes on chain, in a record that both have signed off.
    model = os.urandom(5_000_000)
    published = await mill.publish("PTVA10212-03/model", model)
    print(f"mill offers {published.key} version {published.version} in block {published.ref.height}")

    # Who has it? Offers come with their proof from the chain, the least busy holder first.
    for offer in await lathe.request("PTVA10212-03/model"):
        print(f"lathe finds it at {offer.holder.name}, whose network is {offer.network_load_percent} % busy")

    # Demand on chain, confirmation by both, direct transfer, every chunk checked.
    fetched = await lathe.fetch("PTVA10212-03/model")
    assert fetched.read() == model
    print(f"lathe has {fetched.size_bytes} bytes after {fetched.duration_ms} ms, whole")
    print(f"the chain holds {lathe.chain_state(pool.chain).counts}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(Path(temporary)))

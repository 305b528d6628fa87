"""The checker in examples/js judges proofs as this package does; it needs Node alone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from ledger_world import NETWORK, World
from msgspec.structs import replace

from edgepool.core.ledger.proof import proof_problem, prove
from edgepool.model.codec import encode
from edgepool.model.message import OfferProof

CHECKER = Path(__file__).parents[2] / "examples/js/checking.mjs"
SCRIPT = """
const [checker, file, network, trusted] = process.argv.slice(1)
const { checkOffer } = await import(checker)
const { decode } = await import(new URL('./msgpack.mjs', checker))
const { readFileSync } = await import('node:fs')
try {
  console.log(checkOffer(decode(readFileSync(file)), network, [trusted]).body[0])
} catch (error) {
  console.log(error.message)
}
"""

if shutil.which("node") is None:
    pytest.skip("there is no Node on this machine", allow_module_level=True)


def judged(proof: OfferProof, trusted: str, folder: Path) -> str:
    """Return what the checker says to a proof: 'offer', or why it is none."""
    file = folder / "proof"
    file.write_bytes(encode(proof))
    command = ["node", "--input-type=module", "-e", SCRIPT, CHECKER.as_uri(), str(file), NETWORK, trusted]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_a_pool_is_believed_for_the_key_that_has_adopted_it(tmp_path: Path) -> None:
    world = World()
    new = world.newcomer("new key")
    world.pack(world.record(world.coordinator, world.new_key(world.coordinator, new)))
    certified = world.certify(world.pack(world.offer(0)))
    adopted = prove(world.genesis, (), certified, 0, world.state.adoption)
    assert adopted is not None
    assert adopted.adoption is not None
    forged = replace(adopted, adoption=replace(adopted.adoption, signature=bytes(64)))
    bare = replace(adopted, adoption=None)
    for proof, trusted, said in (
        (adopted, new.peer, "offer"),
        (bare, world.coordinator.peer, "offer"),
        (adopted, world.coordinator.peer, "the pool's coordinator is not trusted"),
        (bare, new.peer, "the pool's coordinator is not trusted"),
        (forged, new.peer, "the new key has not adopted the pool"),
    ):
        assert judged(proof, trusted, tmp_path) == said
        assert (proof_problem(proof, NETWORK, [trusted]) == "") == (said == "offer")

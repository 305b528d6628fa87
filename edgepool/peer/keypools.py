"""Which pools know a peer by its key, written down beside that key.

A peer whose chains are lost (its disk was changed) knows of no pool until one tells of itself. If its key
changed in between no pool would hear of the new one, and the old one, by which they all know it, would be
gone. So what it is in stands in a small file beside the key, a line with chain and name for each pool, and
the key does not change as long as one of these is not known here again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepool.core.chain import Chain
from edgepool.model.ids import ChainId
from edgepool.storage.store import archive_of, is_chain_id
from edgepool.transport.keyfiles import replace_file

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

MAX_POOLS = 1024
"""So many are written down, the newest."""
_MAX_LINE_CHARACTERS = 120


class KeyPools:
    """The pools that know `peer` by its key: those that it knows itself, and those that its file names."""

    def __init__(self, peer: Peer) -> None:
        key = peer.settings.path(peer.settings.identity.key)
        self.path = key.with_name(f"{key.name}.pools")
        self._archive = archive_of(peer.settings.folder) / "chains"
        self._peer = peer

    def missing(self) -> dict[ChainId, str]:
        """Return the pools (chain, name) that this peer was in and of which it knows nothing, or too little.

        What it has left, or put away, is not among them.
        """
        return {chain: name for chain, name in self._written().items() if not self._is_settled(chain)}

    def lines(self) -> bytes:
        """Return what the file is to say: what is missing, and what this peer is in; b"" if it says so."""
        chains = self._peer.node.chains.values()
        present = {one.id: one.genesis.invitation.name for one in chains if self._is_in(one)}
        wanted = dict(list({**self.missing(), **present}.items())[-MAX_POOLS:])
        if wanted.keys() == self._written().keys():
            return b""
        return "".join(f"{chain} {_shown(name)}\n" for chain, name in wanted.items()).encode() or b"\n"

    def write(self, lines: bytes) -> None:
        """Write the file; LocalError if it cannot be."""
        replace_file(self.path, lines)

    def _is_in(self, chain: Chain) -> bool:
        """Say whether a chain names this peer's key, or already the one that is to follow."""
        state, me = chain.state, self._peer.id
        return state.names(me) or state.names(state.heir(me))

    def _is_settled(self, chain: ChainId) -> bool:
        known = self._peer.node.chains.get(chain)
        if known is None:
            return (self._archive / chain).exists()
        return self._is_in(known) or self._peer.id in known.state.former

    def _written(self) -> dict[ChainId, str]:
        """Return what the file says; a line that is none, as somebody may have left it, says nothing."""
        try:
            with self.path.open(encoding="utf-8", errors="replace") as file:
                text = file.read(MAX_POOLS * _MAX_LINE_CHARACTERS)
        except OSError:
            return {}
        lines = (line.partition(" ") for line in text.splitlines())
        return {ChainId(chain): name for chain, _, name in lines if is_chain_id(chain)}


def _shown(name: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in name)

"""The part of a `Peer` that fetches much at once."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from edgepool.errors import LocalError
from edgepool.model.ids import ChainId
from edgepool.model.live import is_live
from edgepool.model.twin import DataKey
from edgepool.peer.data import checked_key, checked_keys, checked_purpose
from edgepool.peer.fetches import ProgressCallback
from edgepool.peer.streams import StreamingPeer
from edgepool.peer.values import FetchedMany

if TYPE_CHECKING:
    from edgepool.peer.data import DataPlane


class FetchingPeer(StreamingPeer):
    """Fetches many keys at once."""

    data: DataPlane

    def keys_named(self, names: Iterable[str]) -> tuple[DataKey, ...]:
        """Return the keys that are named, each once; in a pattern '*' is any text and '?' any character.

        Patterns match what the chains of this peer offer now. LocalError for what is no key, or matches none.
        """
        found: dict[DataKey, None] = {}
        for name in names:
            if "*" not in name and "?" not in name:
                found[checked_key(name)] = None
                continue
            matching = sorted(key for key in self._offered() if fnmatchcase(str(key), name))
            if not matching:
                raise LocalError(f"'{name[:80]}' matches nothing that the chains of {self.name} offer")
            found |= dict.fromkeys(matching)
        return tuple(found)

    def _offered(self) -> set[DataKey]:
        network = self.settings.network
        return {
            offer.key
            for chain in self._node.chains.values()
            for offer, holder in chain.state.newest_offers()
            if not is_live(network, offer, holder)
        }

    async def fetch_many(
        self,
        keys: Iterable[DataKey | str],
        *,
        chain: ChainId | None = None,
        purpose: str = "",
        timeout_ms: int = 60_000,
        progress: ProgressCallback | None = None,
    ) -> FetchedMany:
        """Get the newest version of many keys at once, each as by `fetch`; small data comes in bundles.

        Returns what is here, durably, and why the rest is not. Raises what concerns all of them, and
        LocalError for more than 4,096 keys.
        """
        self._check_open()
        wanted, purpose = checked_keys(keys), checked_purpose(purpose)
        return await self.data.fetch_many(wanted, self._membership.pick(chain), timeout_ms, progress, purpose)

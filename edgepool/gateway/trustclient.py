"""The calls of the local API that are about trust: roots, revocations, and the rotation of a root [S3.6]."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from edgepool.gateway.answers import answer_as
from edgepool.gateway.rotationplan import RotationStatus
from edgepool.peer.trustview import TrustStatus

ANSWER_TIMEOUT_S = 30


class TrustCalls:
    """A part of ApiClient, which says how to get and to post."""

    async def _get(self, path: str) -> Any:
        raise NotImplementedError

    async def _post(self, path: str, body: dict[str, Any], *, timeout_s: float) -> Any:
        raise NotImplementedError

    async def trust(self) -> TrustStatus:
        """Return whom the peer trusts, and what is open about that."""
        return answer_as(TrustStatus, await self._get("/v1/trust"))

    async def change_trust(
        self, step: str, what: str, *, from_ms: int = 0, reason: str = "", pool: str = ""
    ) -> dict[str, Any]:
        """Have the peer propose 'admit' (a root in PEM), 'retire' (a root) or 'revoke' (a peer).

        Returns `subject` (what it is about), and where the peer's word stands.
        """
        body = {"step": step, "what": what, "from_ms": from_ms, "reason": reason, "pool": pool}
        return answer_as(dict[str, Any], await self._post("/v1/trust", body, timeout_s=2 * ANSWER_TIMEOUT_S))

    async def approve_trust(self, change: str = "") -> dict[str, Any]:
        """Have the peer approve an open change of trust by the beginning of its id ('': the only one)."""
        body = {"change": change}
        return answer_as(
            dict[str, Any], await self._post("/v1/trust/approve", body, timeout_s=2 * ANSWER_TIMEOUT_S)
        )

    async def hindrance(self, who: str) -> str:
        """Return why the revocation of a peer (name or id) cannot be decided as things stand, or ''."""
        answer = await self._get(f"/v1/trust/hindrance/{quote(who, safe='')}")
        return answer_as(dict[str, str], answer)["hindrance"]

    async def rotate(self, overlap_s: int | None, leave_behind: bool) -> RotationStatus:
        """Have a registrar rotate its organisation's root, or go on with it; see Rotation.begin."""
        body = {"overlap_s": overlap_s, "leave_behind": leave_behind}
        return answer_as(
            RotationStatus, await self._post("/v1/trust/rotation", body, timeout_s=2 * ANSWER_TIMEOUT_S)
        )

    async def rotation(self) -> RotationStatus:
        """Return how far a registrar is with the rotation of its organisation's root."""
        return answer_as(RotationStatus, await self._get("/v1/trust/rotation"))

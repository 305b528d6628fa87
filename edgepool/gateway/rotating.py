"""Rotates an organisation's root by one command: the next authority is made and admitted, the registrar
issues with it, members renew by themselves, and the old root is retired when its overlap is over [S3.6].

The registrar itself is the last to renew: somebody who was away meanwhile knows the old root alone, is let
in by it, and hears of the next one, from the chain or with the old root's voucher. Each step is found again
from what stands (files, chains, certificates), so that it goes on after a power cut in any of them, by
itself. Nothing is retired that a member still needs, unless the owner says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from edgepool.config import CONFIG_FILE
from edgepool.errors import ConfigError, DecodeError, EdgepoolError, LocalError
from edgepool.gateway.authorities import make_next, next_folder, too_young_s
from edgepool.gateway.rotationplan import (
    MAX_SEEN,
    Plan,
    Renewer,
    RotationStatus,
    Seen,
    Stage,
    read_plan,
    write_plan,
)
from edgepool.gateway.settingsfile import replaced_setting, write_settings
from edgepool.model.certifying import RootFollows
from edgepool.model.credential import Root, read_root
from edgepool.model.ids import PeerId
from edgepool.model.trust import AdmitRoot, RetireRoot, TrustStep
from edgepool.runtime.clock import SystemClock
from edgepool.transport.certificates import AUTHORITY_CERTIFICATE, vouch_for_root
from edgepool.transport.identity import BACKDATE_MS

if TYPE_CHECKING:
    from edgepool.gateway.registrar import Registrar
    from edgepool.peer.peer import Peer

LOOK_EVERY_S = 0.5
SHOW_EVERY_S = 5.0
LONGEST_MARGIN_MS = 3_600_000
"""So long before the old root goes the registrar renews itself, or a quarter of the overlap if less."""
REASON = "the next root of its organisation"
RETIRED = "its organisation has a next root"
NO_ROTATION = "no rotation of the root was begun here: 'edgepool org rotate' begins one"

_log = logging.getLogger(__name__)


@asynccontextmanager
async def keep_rotating(registrar: Registrar) -> AsyncIterator[None]:
    """Go on with the rotation of `registrar`, if one was begun, as long as this is entered."""
    task = asyncio.create_task(registrar.rotation.run(), name="edgepool rotation")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Rotation:
    """The rotation of the root with which `registrar` issues certificates; `say` is given what was done."""

    def __init__(self, peer: Peer, registrar: Registrar, say: Callable[[str], None]) -> None:
        self._peer = peer
        self._registrar = registrar
        self._say = say
        self._home = peer.settings.folder
        self._beginning = asyncio.Lock()
        self._switching = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._problem = ""
        self._shown_s = -SHOW_EVERY_S
        self._next: Root | None = None
        self._plan: Plan | None = None
        try:
            self._plan = read_plan(self._home)
        except LocalError as error:  # no reason not to run: whoever asks is told
            self._problem = str(error)
        if self._plan is not None and self._stage(self._plan) != "done":
            peer.certifier.keeps_root = True

    # --- what the owner wants -------------------------------------------------------------------

    async def begin(self, overlap_s: int | None, default_s: int, leave_behind: bool) -> RotationStatus:
        """Begin a rotation, or say something else about the one that is not over; LocalError if it cannot be.

        `overlap_s` None is what was said before, or `default_s`. Without `leave_behind` nothing is retired as
        long as a member has not renewed.
        """
        async with self._beginning:
            plan = self._plan
            if plan is None or self._stage(plan) == "done":
                if plan is None and self._problem:
                    raise LocalError(self._problem)
                overlap = default_s if overlap_s is None else overlap_s
                new = await asyncio.to_thread(self._planned, overlap, leave_behind)
                await self._keep(new)
                self._peer.certifier.keeps_root = True
                self._say(f"the root of '{new.organisation}' rotates: the next authority is {new.folder}")
            else:
                changes: dict[str, object] = {"leave_behind": plan.leave_behind or leave_behind}
                if overlap_s is not None:
                    changes |= self._overlapping(plan, overlap_s)
                await self._change(**changes)
        return self.status()

    def status(self) -> RotationStatus:
        """Return how far the rotation is; LocalError if none was begun."""
        plan = self._plan
        if plan is None:
            raise LocalError(self._problem or NO_ROTATION)
        stage = self._stage(plan)
        renewed, waiting = self._members(plan)
        step = self._step(plan)
        return RotationStatus(
            stage=stage,
            organisation=plan.organisation,
            old=plan.old,
            next=plan.next,
            folder=plan.folder,
            started_ms=plan.started_ms,
            overlap_s=plan.overlap_s,
            retire_ms=plan.retire_ms,
            leave_behind=plan.leave_behind,
            pools=self._peer.trusting.standing(step) if step is not None and stage != "done" else [],
            renewed=renewed,
            waiting=[] if stage == "done" else waiting,
            void=plan.void,
            problem=self._problem,
        )

    def hindrance(self) -> str:
        """Say why the registrar's own key is not to be changed now, or return ''."""
        plan = self._plan
        if not self._beginning.locked() and (plan is None or self._stage(plan) == "done"):
            return ""
        return (
            "its organisation's root rotates: change the key when 'edgepool org rotate' says that it is over"
        )

    def _planned(self, overlap_s: int, leave_behind: bool) -> Plan:
        if self._peer.rotation.is_under_way:
            raise LocalError(
                "the key of this registrar is being changed: rotate the root when 'edgepool key rotate' says "
                "that this is over"
            )
        present = self._registrar.issuing
        own, folder = present.root, next_folder(present.setting, self._home)
        self._changed_settings(folder)
        self._peer.trusting.standing(AdmitRoot(own.organisation, own.der))  # or it says that nobody decides
        return Plan(
            organisation=own.organisation,
            old=own.fingerprint.hex(),
            folder=folder,
            present=present.setting,
            overlap_s=overlap_s,
            started_ms=_now_ms(),
            leave_behind=leave_behind,
        )

    def _overlapping(self, plan: Plan, overlap_s: int) -> dict[str, object]:
        """Return what another overlap changes; what is settled can be brought forward and not put off."""
        if not plan.retire_ms:
            return {"overlap_s": overlap_s}
        retire_ms = max(_now_ms(), plan.switched_ms + overlap_s * 1000)
        if retire_ms > plan.retire_ms:
            raise LocalError("the old root's retirement is settled: it can be brought forward, not put off")
        return {"overlap_s": overlap_s, "retire_ms": retire_ms}

    # --- going on -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Do what is to be done next, again and again; never ends."""
        while True:
            try:
                if self._plan is not None:
                    await self._go_on(self._plan)
                    self._problem = ""
            except EdgepoolError as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    _log.info("the root does not rotate yet: %s", error)
            except Exception as fault:  # it must be told and tried again, and nothing else stops for it
                if not self._problem:
                    _log.exception("the rotation of the root has failed inside")
                self._problem = f"an internal fault ({type(fault).__name__}: {fault}): the log says where"
            await asyncio.sleep(LOOK_EVERY_S)

    async def _go_on(self, plan: Plan) -> None:
        await self._admit_with_own(plan)
        if self._stage(plan) == "done":
            return
        await self._note_seen(plan)
        root = await self._made(plan)
        if not await self._peer.trusting.settle(AdmitRoot(plan.organisation, root.der), REASON):
            return
        plan = await self._switched(root)
        self._show_root(plan, root)
        is_waiting = bool(self._members(plan)[1])
        if not plan.retire_ms and (plan.leave_behind or not is_waiting):
            plan = await self._change(retire_ms=max(_now_ms(), plan.switched_ms + plan.overlap_s * 1000))
        soon = 0 < plan.retire_ms <= _now_ms() + _margin_ms(plan)
        if not is_waiting or soon:
            await self._renew_itself(plan)
        if plan.retire_ms and not (soon and self._is_late(plan)):
            await self._peer.trusting.settle(RetireRoot(bytes.fromhex(plan.old), plan.retire_ms), RETIRED)

    def _is_late(self, plan: Plan) -> bool:
        """Say whether the registrar's own certificate is of the old root still."""
        return self._peer.trusting.own_root().hex() != plan.next

    async def _renew_itself(self, plan: Plan) -> None:
        """Get the registrar, the last one, a certificate of the next root."""
        self._peer.certifier.keeps_root = False
        if self._is_late(plan):
            await self._peer.certifier.renew()
        await self._admit_with_own(plan)

    async def _admit_with_own(self, plan: Plan) -> None:
        """Let newcomers in with the root of the registrar's own certificate, which is shown to them."""
        if plan.switched_ms and not self._is_late(plan) and self._registrar.admitting.setting != plan.folder:
            void = await self._registrar.admit_with(plan.folder)
            await self._change(void=void)

    def _show_root(self, plan: Plan, root: Root) -> None:
        """Tell linked members of the old root about the next one: who is in no main pool hears of it so."""
        now_s = asyncio.get_running_loop().time()
        if not plan.voucher or now_s < self._shown_s + SHOW_EVERY_S:
            return
        self._shown_s = now_s
        old = bytes.fromhex(plan.old)
        late = tuple(one.peer for one in self._peer.connected() if one.root == old)
        if late:
            self._peer.certifier.show_root(late, RootFollows(root.der, bytes.fromhex(plan.voucher)))

    def admits_with(self) -> str:
        """Return which authority newcomers are let in with at the start, as the settings would name it.

        That is the present one as long as the registrar's own certificate is of its root; '' is no other
        than the settings name.
        """
        plan = self._plan
        return plan.present if plan is not None and self._peer.trusting.own_root().hex() == plan.old else ""

    async def issue_with_next(self) -> None:
        """Have the registrar issue with the next root from now on, if it is admitted everywhere.

        Members ask as soon as they have the block that admits it, and would get one of the old root else.
        """
        plan, root = self._plan, self._next
        if plan is None or root is None or plan.switched_ms or root.fingerprint.hex() != plan.next:
            return
        standing = self._peer.trusting.standing(AdmitRoot(plan.organisation, root.der))
        if all(one.decided for one in standing) and self._peer.trusting.is_own(root.der):
            await self._switched(root)

    async def _made(self, plan: Plan) -> Root:
        """Return the next root; make its authority if a power cut, or nobody, has left none."""
        if self._next is not None and self._next.fingerprint.hex() == plan.next:
            return self._next
        folder, present = self._home / plan.folder, self._home / plan.present
        if not plan.next:
            own = self._peer.trusting.own_roots()
            await asyncio.sleep(too_young_s(_now_ms() / 1000, own, BACKDATE_MS))
            await asyncio.to_thread(make_next, present, folder, plan.organisation)
        root = await asyncio.to_thread(_read_authority, folder)
        if plan.next not in ("", root.fingerprint.hex()):
            raise LocalError(f"the authority in {folder} is another one than was made there: put that back")
        if not plan.next:
            network = self._peer.settings.network
            voucher = await asyncio.to_thread(vouch_for_root, present, network, root.der)
            await self._change(next=root.fingerprint.hex(), voucher=voucher.hex())
        self._next = root
        return root

    async def _switched(self, root: Root) -> Plan:
        """Have the settings name the next authority, and the registrar issue with it; return the plan."""
        async with self._switching:
            plan = self._plan
            assert plan is not None
            if plan.switched_ms:
                return plan
            self._peer.certifier.keeps_root = True
            if self._registrar.issuing.root.fingerprint != root.fingerprint:
                await asyncio.to_thread(self._write_settings, plan.folder)
                await self._registrar.issue_with(plan.folder)
            plan = await self._change(switched_ms=_now_ms())
        self._say(f"members of '{plan.organisation}' renew to its root {plan.next[:16]}")
        return plan

    def _changed_settings(self, folder: str) -> str:
        path = self._home / CONFIG_FILE
        text = replaced_setting(path, "authority", "folder", folder) if path.exists() else None
        if text is None:
            raise LocalError(
                f"'folder' under [authority] in {path} is not written in a way that can be changed here: "
                'write it as the two lines [authority] and folder = "...", and say this again'
            )
        return text

    def _write_settings(self, folder: str) -> None:
        write_settings(self._home / CONFIG_FILE, self._changed_settings(folder))

    async def _change(self, **changes: object) -> Plan:
        """Write down what has changed of the plan, as it is by then; return it."""
        async with self._writing:
            assert self._plan is not None
            plan: Plan = replace(self._plan, **changes)
            if plan != self._plan:
                await asyncio.to_thread(write_plan, self._home, plan)
                self._plan = plan
        return plan

    async def _keep(self, plan: Plan) -> None:
        async with self._writing:
            await asyncio.to_thread(write_plan, self._home, plan)
            self._plan, self._next = plan, None

    # --- what stands ----------------------------------------------------------------------------

    def _stage(self, plan: Plan) -> Stage:
        if not plan.next:
            return "making"
        if not plan.switched_ms:
            step = self._step(plan)
            standing = self._peer.trusting.standing(step) if step is not None else []
            return "switching" if standing and all(one.decided for one in standing) else "admitting"
        if not plan.retire_ms or (plan.overlap_s == 0 and self._is_late(plan)):
            return "renewing"
        over = self._peer.trusting.retired_ms(bytes.fromhex(plan.old))
        return "done" if 0 < over <= _now_ms() else "retiring"

    def _step(self, plan: Plan) -> TrustStep | None:
        """Return what the members are to decide next, None if it is nothing."""
        if not plan.switched_ms:
            return AdmitRoot(plan.organisation, self._next.der) if self._next is not None else None
        return RetireRoot(bytes.fromhex(plan.old), plan.retire_ms) if plan.retire_ms else None

    async def _note_seen(self, plan: Plan) -> None:
        """Write down with which roots the linked peers are seen."""
        seen = dict(plan.seen)
        for one in self._peer.connected():
            if one.peer in seen or len(seen) < MAX_SEEN:
                seen[one.peer] = Seen(one.name, one.root.hex())
        await self._change(seen=seen)

    def _members(self, plan: Plan) -> tuple[list[str], list[Renewer]]:
        """Return who has renewed (names), and who has not or was not seen; both in their order by name."""
        revoked = self._peer.trusting.revoked
        names = {peer: one.name for peer, one in plan.seen.items()}
        names |= {peer: name for peer, name in self._known().items() if peer not in names}
        linked = {one.peer: one.root.hex() for one in self._peer.connected()}
        leading = {one.peer for one in self._peer.connected() if one.role == "coordinator"}
        renewed, waiting = list[str](), list[Renewer]()
        for peer, name in sorted(names.items(), key=lambda pair: (pair[1], pair[0])):
            seen = plan.seen.get(peer)
            root = linked.get(PeerId(peer), seen.root if seen else "")
            if peer == self._peer.id or peer in revoked:
                continue
            if root == plan.next and root:
                renewed.append(name)
            elif root in ("", plan.old):
                known = {"linked": PeerId(peer) in linked, "coordinator": PeerId(peer) in leading}
                waiting.append(Renewer(peer=peer, name=name, seen=bool(root), **known))
        return renewed, waiting

    def _known(self) -> dict[str, str]:
        """Return the names of all who may have a certificate of this organisation, linked or not."""
        known = self._registrar.joined()
        for genesis in self._peer.pools:
            state = self._peer.chain_state(genesis.chain)
            for one in (*state.roster, *state.next_roster, *state.observers):
                known[one.peer] = one.name
        return known


def _margin_ms(plan: Plan) -> int:
    return min(LONGEST_MARGIN_MS, plan.overlap_s * 250)


def _read_authority(folder: Path) -> Root:
    try:
        pem = (folder / AUTHORITY_CERTIFICATE).read_bytes()
        return read_root(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
    except OSError as error:
        raise LocalError(f"the next authority in {folder} cannot be read: {error.strerror}") from None
    except (ValueError, DecodeError, ConfigError):
        raise LocalError(f"the next authority in {folder} is damaged: put back a copy of it") from None


def _now_ms() -> int:
    return SystemClock().now().wall_ms

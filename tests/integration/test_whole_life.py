"""The whole life of members, by commands and processes of their own: from an invitation to a revocation."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attackers import Works
from commands import PATIENCE_S, edgepool, told, until
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from test_cli_run import running

DAY = datetime.timedelta(days=1)


class Plant:
    """Folders of two organisations, and the peers that run."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._running: dict[str, ExitStack] = {}

    def run(self, name: str) -> dict[str, Any]:
        self._running[name] = self._stack.enter_context(ExitStack())
        return self._running[name].enter_context(running(self.folder / name))

    def stop(self, name: str) -> None:
        self._running.pop(name).close()

    def ask(self, command: str, name: str, *more: object) -> Any:
        return told(*command.split(), self.folder / name, *more)

    def join(self, name: str) -> None:
        """Two commands and a code."""
        code = self.invite(name)
        edgepool("join", code, self.folder / name)
        self.run(name)
        until(lambda: name in self.members("cloud"))

    def invite(self, name: str) -> str:
        wish = ("--name", name, "--machine-type", "Milling", "--pool", "cell")
        return edgepool("invite", self.folder / "cloud", *wish).strip()

    def members(self, of: str) -> dict[str, dict[str, Any]]:
        """Return who votes, and who will as soon as what is decided is in force."""
        pools = self.ask("member list", of)
        if not pools:
            return {}
        (pool,) = pools
        coming = pool["decided"] and pool["decided"]["incoming_name"]
        return {one["name"]: one for one in pool["members"]} | ({coming: {}} if coming else {})

    def hand_over(self, holder: str, requester: str, key: str, content: bytes) -> None:
        data, copy = self.folder / "data", self.folder / f"copy-{requester}"
        data.write_bytes(content)
        edgepool("publish", self.folder / holder, key, data)
        edgepool("fetch", self.folder / requester, key, copy)
        assert copy.read_bytes() == content
        copy.unlink()


def found(folder: Path, stack: ExitStack) -> Plant:
    """Found both organisations; the pool of A has a coordinator and two machines that have joined."""
    plant = Plant(folder, stack)
    a = ("--name", "A works", "--network", "plant", "--coordinator", folder / "cloud")
    edgepool("org", "init", folder / "a", *a)
    edgepool("org", "init", folder / "b", "--name", "B works", "--network", "plant")
    with (folder / "cloud/edgepool.toml").open("a") as settings:
        settings.write('\n[[fixed_pools]]\nname = "cell"\nmembers = ["cloud"]\n')
    plant.run("cloud")
    until(lambda: plant.members("cloud"))
    for name in ("mill", "lathe"):
        plant.join(name)
    return plant


def let_lapse(folder: Path, name: str) -> None:
    """Give a gateway the certificate that it would have if it had been off for very long."""
    works = Works(folder / "a")
    path = folder / name / "identity/certificate.pem"
    old = x509.load_pem_x509_certificate(path.read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    der = works.renewed(old, begins=now - 30 * DAY, ends=now - DAY)
    path.write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))


def test_two_organisations_from_invitation_to_revocation(tmp_path: Path) -> None:
    with ExitStack() as stack:
        plant = found(tmp_path, stack)
        plant.hand_over("mill", "lathe", "PART-1/model", b"of A" * 1000)

        # A machine of another organisation is nobody, until the members have admitted its root.
        edgepool("init", tmp_path / "guest", "--authority", tmp_path / "b", "--known", tmp_path / "cloud")
        edgepool("org", "trust", tmp_path / "guest", tmp_path / "a/authority.pem")
        plant.run("guest")
        refused = "refused_foreign"
        until(lambda: plant.ask("status", "cloud")["totals"]["refused"].get(refused))
        done = plant.ask("org admit", "cloud", tmp_path / "b/authority.pem")
        assert done["decided"]
        until(lambda: "guest" in [link["name"] for link in plant.ask("status", "cloud")["links"]])
        plant.ask("member admit", "cloud", "cell", "guest")
        plant.hand_over("lathe", "mill", "PART-2/model", b"one record more, and it votes")
        until(lambda: plant.members("guest").get("guest"))
        plant.hand_over("guest", "mill", "PART-3/model", b"of B" * 1000)
        plant.hand_over("mill", "guest", "PART-4/model", b"for B" * 1000)

        # Its key has been in use for long: a new one takes its place while it votes and hands over data.
        model, got = tmp_path / "model", tmp_path / "got"
        model.write_bytes(os.urandom(12_000_000))
        edgepool("publish", tmp_path / "mill", "PART-8/model", model)
        edgepool("budget", "set", tmp_path / "lathe", "--mbit-s", "5")
        words = [sys.executable, "-m", "edgepool", "fetch", tmp_path / "lathe", "PART-8/model", got]
        buyer = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: any(one["outgoing"] for one in plant.ask("status", "mill")["transfers"]))
        keys = plant.ask("key rotate", "mill")
        edgepool("budget", "set", tmp_path / "lathe", "--mbit-s", "1000")
        _, complaint = buyer.communicate(timeout=PATIENCE_S)
        assert buyer.returncode == 0, complaint
        assert got.read_bytes() == model.read_bytes()
        for name in ("cloud", "lathe", "guest", "mill"):
            until(lambda: plant.members(name).get("mill", {}).get("peer") == keys["id"])  # noqa: B023
            until(lambda: keys["former"] in [one["peer"] for one in plant.ask("org list", name)["revoked"]])  # noqa: B023
        plant.hand_over("mill", "guest", "PART-9/model", b"under the new key")

        # So is the coordinator's, which is the registrar. All that follows it does under the new one.
        keys = plant.ask("key rotate", "cloud")
        for name in ("cloud", "lathe", "guest", "mill"):
            until(lambda: plant.members(name).get("cloud", {}).get("peer") == keys["id"])  # noqa: B023
            until(lambda: keys["former"] in [one["peer"] for one in plant.ask("org list", name)["revoked"]])  # noqa: B023
        plant.hand_over("lathe", "guest", "PART-10/model", b"all under the coordinator's new key")

        # A gateway was off while its certificate lapsed: one command, one approval, the same peer as before.
        before = plant.members("cloud")["mill"]["peer"]
        plant.stop("mill")
        let_lapse(tmp_path, "mill")
        assert "expired" in edgepool("run", tmp_path / "mill", code=2)
        edgepool("renew", tmp_path / "mill", plant.invite("mill"))
        plant.run("mill")
        until(lambda: plant.members("mill").get("mill", {}).get("peer") == before)
        plant.hand_over("mill", "lathe", "PART-5/model", b"back again")

        # The guest's gateway is stolen: cut off while it votes and fetches, voteless, and not let in again.
        big = tmp_path / "big"
        big.write_bytes(os.urandom(20_000_000))
        edgepool("publish", tmp_path / "mill", "PART-6/model", big)
        edgepool("budget", "set", tmp_path / "mill", "--mbit-s", "4")
        words = [
            sys.executable,
            "-m",
            "edgepool",
            "fetch",
            tmp_path / "guest",
            "PART-6/model",
            tmp_path / "loot",
            "--timeout",
            "20",
        ]
        thief = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: any(one["outgoing"] for one in plant.ask("status", "mill")["transfers"]))
        done = plant.ask("member revoke", "cloud", "guest", "--reason", "stolen")
        assert done["decided"]
        # Had it not been cut off, all would come now.
        edgepool("budget", "set", tmp_path / "mill", "--mbit-s", "1000")
        _, complaint = thief.communicate(timeout=PATIENCE_S)
        assert thief.returncode == 1, complaint
        assert not (tmp_path / "loot").exists()
        for name in ("cloud", "mill", "lathe"):
            until(lambda: "guest" not in [link["name"] for link in plant.ask("status", name)["links"]])  # noqa: B023
        plant.hand_over("lathe", "mill", "PART-7/model", b"work goes on")

        def is_out() -> bool:
            """Its exclusion is in force two blocks after it is decided."""
            edgepool("publish", tmp_path / "lathe", "PART-7/features", tmp_path / "data")
            return "guest" not in plant.members("lathe")

        until(is_out)
        until(lambda: plant.ask("status", "lathe")["totals"]["refused"].get("refused_revoked"))
        plant.stop("guest")
        for name in ("lathe", "mill", "cloud"):
            plant.stop(name)
    for name in ("cloud", "mill", "lathe"):
        assert all(chain["verified"] for chain in told("chain", "verify", tmp_path / name))

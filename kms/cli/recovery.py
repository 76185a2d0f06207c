"""`keypeer recovery`: the key that brings the HSM's keys back when the token is lost."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path

import click
import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_adapter.limits import RECOVERY_BITS, RSA_EXPONENT
from hsm_adapter.pin import read_pin
from kms import limits, shares
from kms.cli.adapter import backup_file
from kms.cli.common import Exit, folder, home_option, in_words, json_option, say
from kms.cli.files import write_new
from kms.cli.worker import hsm_worker
from kms.errors import BadRequest
from kms.settings import Home, read_home

PUBLIC = "recovery.pub.pem"
SEALED = "recovery.enc"


@click.group()
def recovery() -> None:
    """Break-glass: recovery key, officers' shares, and which keys are backed up."""


@recovery.command()
@click.option("--shares", "count", type=click.IntRange(2, limits.RECOVERY_SHARES_MAX), required=True, help="How many.")
@click.option(
    "--threshold", type=click.IntRange(2, limits.RECOVERY_SHARES_MAX), required=True, help="How many open it."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="A new folder for them.")
@click.option("--bits", type=click.Choice([str(bits) for bits in RECOVERY_BITS]), default="3072", show_default=True)
@home_option
@json_option
@in_words
def create(count: int, threshold: int, out: Path, bits: str, home: Path | None, as_json: bool) -> None:
    """Make a recovery key and its shares. Do it before `keypeer init`: keys are backed up as they are made.

    Each share is one line of words: on paper, to one officer each, and the file destroyed.
    """
    place = folder(home) / "recovery"
    if threshold > count:
        raise BadRequest("recovery.threshold", f"{threshold} of {count} shares can't be", hint="at most all of them")
    if (place / PUBLIC).exists():
        raise BadRequest(
            "recovery.exists",
            f"{place} holds a recovery key already",
            hint="its shares stay good; or move it away",
        )
    if out.exists():
        raise BadRequest("recovery.out", f"{out} is there already", hint="name a folder that isn't there yet")
    private = rsa.generate_private_key(RSA_EXPONENT, int(bits))
    made = shares.create(
        private, os.urandom(shares.SECRET_BYTES), os.urandom(shares.NONCE_BYTES), shares=count, threshold=threshold
    )
    out.mkdir(mode=0o700, parents=True)
    for number, words in enumerate(made.words, start=1):
        write_new(out / f"share-{number}.txt", f"{words}\n".encode())
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_new(place / SEALED, made.sealed)
    write_new(place / PUBLIC, made.public_pem)  # last: with it the key is there
    if as_json:
        click.echo(json.dumps({"recovery": str(place), "shares": str(out), "threshold": threshold, "count": count}))
    else:
        click.echo(f"{count} shares in {out}, {threshold} of them open the recovery key in {place}")
        say("next: keypeer init; on a service that has keys already, also rotate each (keypeer recovery status)")


@recovery.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@home_option
@json_option
@in_words
def drill(files: tuple[Path, ...], home: Path | None, as_json: bool) -> None:
    """Try whether the shares in FILES open the recovery key; without files the words are asked for. No token needed."""
    sealed = shares.read(_read(folder(home) / "recovery" / SEALED))
    shares.open_private(sealed, read_words(files, sealed.threshold))
    if as_json:
        click.echo(json.dumps({"opens": True, "recovery_key": sealed.public_key_sha256}))
    else:
        click.echo(f"the shares open recovery key {sealed.public_key_sha256[:16]}")


@recovery.command()
@home_option
@json_option
@in_words
def status(home: Path | None, as_json: bool) -> None:
    """Which of the token's keys are backed up, and which would be lost with it; and the fingerprint of the session key
    that vouches for the backups: note it with the shares, for `keypeer restore --trust`."""
    place = read_home(folder(home))
    found = asyncio.run(_status(place))
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(each) for each in found]))
    else:
        for each in found:
            good = click.style("backed up", fg="green")
            mark = good if each.backed_up else click.style("NOT backed up", fg="red", bold=True)
            click.echo(f"{each.key:<12} {each.version:>3}  {mark}")
        signer = next(each for each in found if each.key == "session")
        click.echo(f"the backups are vouched for by session key {signer.public_key_sha256} (restore --trust)")
    if not all(each.backed_up for each in found):
        say("to mend it: keypeer recovery create and keypeer init if there is no recovery key, then rotate these keys")
        sys.exit(Exit.BAD_INPUT)


class _Kept(msgspec.Struct, frozen=True):
    """One version of a key in the token. ``public_key_sha256``: of a pair's SubjectPublicKeyInfo, in hex."""

    key: str
    version: int
    backed_up: bool
    public_key_sha256: str


async def _status(home: Home) -> list[_Kept]:
    from kms.app import open_store
    from kms.custody.client import HsmClient

    asked = read_pin("prompt") if home.settings.hsm.pin == "prompt" else None
    with hsm_worker(home, asked) as socket:
        custody = HsmClient([socket])
        await custody.start()
        try:
            description = await custody.describe()
        finally:
            await custody.close()
    async with open_store(home) as store:
        kept = {item.key.decode() async for item in store.export(b"recovery/")}
    there = [("kek", version, "") for version in description.kek_versions]
    there += [("record-mac", version, "") for version in description.mac_key_versions]
    # The audit key's backup may be empty (SoftHSM wraps no Ed25519 key); a new one is made then, and the log tells.
    there += [
        (name, version, hashlib.sha256(public_key).hexdigest())
        for name, versions in description.signing_versions.items()
        for version, public_key in versions.items()
    ]
    return [
        _Kept(
            name,
            version,
            f"recovery/{name}/{version}" in kept or backup_file(home, name, version).exists(),
            fingerprint,
        )
        for name, version, fingerprint in sorted(there)
    ]


def read_words(files: tuple[Path, ...], threshold: int) -> list[str]:
    """The shares' words: from files, or asked for without an echo."""
    if files:
        return [_read(path).decode(errors="replace") for path in files]
    return [click.prompt(f"words of share {number}", hide_input=True) for number in range(1, threshold + 1)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadRequest("recovery.file", f"{path}: {error.strerror}", hint="is it the right folder?") from None

"""`keypeer token`: a SoftHSM token on a second node, sealed to that node on its way.

A real HSM shares a partition, or clones by its own means; these commands know SoftHSM's folder and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import socket as sockets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click
import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm_adapter import limits as hsm_limits
from hsm_adapter.errors import HsmError
from hsm_adapter.lock import token_lock
from hsm_adapter.pin import Pin, read_pin
from kms import limits, tokencopy
from kms.audit.record import AuditRecord, encode_record
from kms.cli.adapter import run_adapter
from kms.cli.common import folder, home_option, in_words, json_option, say
from kms.cli.files import write_new, write_private
from kms.cli.worker import hsm_worker
from kms.custody.port import Custody
from kms.errors import BadRequest, Unavailable
from kms.settings import Home, read_home
from kms.store.port import Commit, Committed
from kms.tokencopy import Invitation, TokenFolder

T = TypeVar("T")
_CONF = "SOFTHSM2_CONF"
_TOKENDIR = re.compile(r"^(\s*directories\.tokendir\s*=\s*)(.+?)\s*$", re.MULTILINE)
_FILE_BYTES_MAX = 2 * limits.TOKEN_COPY_BYTES_MAX  # bytes of a sealed copy; base64 adds a third


@click.group()
def token() -> None:
    """A second node's SoftHSM token: invite there, clone here, accept there."""


@token.command()
@click.option("--node", default=sockets.gethostname, show_default="this host's name", help="What to call this node.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The invitation's file; else printed.")
@home_option
@json_option
@in_words
def invite(node: str, out: Path | None, home: Path | None, as_json: bool) -> None:
    """On the new node: an invitation, to which one copy of the token may be sealed. It is good for a day."""
    place = read_home(folder(home))
    _softhsm(place)
    private = X25519PrivateKey.generate()
    try:
        invitation = tokencopy.invite(private, node, int(time.time()))
    except msgspec.ValidationError as error:
        raise BadRequest("token.node", f"{node!r}: {error}", hint="--node NAME, in printable ASCII") from None
    document = msgspec.json.encode(invitation)
    # One file, so that a half-written one can't pair a key with another invitation.
    write_private(_waiting(place), private.private_bytes_raw().hex().encode() + b"\n" + document + b"\n")
    if out is not None:
        write_private(out, document + b"\n")
    if as_json:
        click.echo(json.dumps({"invitation": msgspec.to_builtins(invitation), "fingerprint": invitation.fingerprint}))
    elif out is None:
        click.echo(document.decode())
    say(f"fingerprint {invitation.fingerprint}")
    say("read it out to whoever runs: keypeer token clone INVITATION --fingerprint … --out FILE")


@token.command()
@click.argument("invitation", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--fingerprint", required=True, help="As the new node told it, by another way than the file came.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A new file for the copy.")
@home_option
@json_option
@in_words
def clone(invitation: Path, fingerprint: str, out: Path, home: Path | None, as_json: bool) -> None:
    """On a node that has the token: a copy that only the inviting node can open. The service goes on meanwhile.

    The PIN isn't in it. That there is a copy, and for whom, is in the audit log before the file is written.
    """
    place = read_home(folder(home))
    invited = tokencopy.read_invitation(_read(invitation), int(time.time()))
    if not secrets.compare_digest(invited.fingerprint.encode(), fingerprint.strip().lower().encode()):
        raise BadRequest(
            "token.fingerprint",
            f"the invitation in {invitation} has fingerprint {invited.fingerprint}, not {fingerprint}",
            hint="this may be somebody else's; get the file and the fingerprint from the new node again",
        )
    if out.exists():
        raise BadRequest("token.out", f"{out} is there already", hint="name a file that isn't there yet")
    asked = _asked(place)
    # What is made in one token later reaches its copies by this pair (hsm_adapter/transfer.py).
    run_adapter(place, "provision", ["--transfer"], asked.reveal().encode() if asked else b"")
    copied, label = asyncio.run(_copied(place, asked))
    asyncio.run(_told(place, invited, copied))
    write_new(out, tokencopy.seal(copied, invited))
    if as_json:
        click.echo(json.dumps({"copy": str(out), "node": invited.node, "to": invited.fingerprint, "token": label}))
    else:
        click.echo(f"{out}: token {label}, for {invited.node} alone; there: keypeer token accept {out.name}")


@token.command()
@click.argument("copy", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Put it in the place of an older copy of the same token.")
@home_option
@json_option
@in_words
def accept(copy: Path, replace: bool, home: Path | None, as_json: bool) -> None:
    """On the new node: the copy becomes this node's token, once it has shown that it has this service's CA key."""
    place = read_home(folder(home))
    tokens = _softhsm(place)
    private, invitation = _invited(place)
    opened = tokencopy.unseal(_read(copy), invitation, private)
    target = tokens / opened.name
    _check_room(place, tokens, target, replace=replace)
    asked = _asked(place)
    with _tried(place, opened) as (trial, unpacked):
        asyncio.run(_prove(trial, place, asked))
        tokens.mkdir(mode=0o700, parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        unpacked.replace(target)
    _waiting(place).unlink()
    if as_json:
        click.echo(json.dumps({"token": str(target), "node": invitation.node, "files": len(opened.files)}))
    else:
        click.echo(f"{target}: the token of this service; next: keypeer serve")
        say(f"destroy {copy}; and give this node's token a PIN of its own if you like (pkcs11-tool --change-pin)")


# ── the one that gives ─────────────────────────────────────────────────────────────────────────────────────────


async def _copied(home: Home, asked: Pin | None) -> tuple[TokenFolder, str]:
    """The token's folder and its label, while nobody changes it."""
    with hsm_worker(home, asked) as socket:
        description = await _with_custody(socket, lambda custody: custody.describe())
    for found in sorted(_softhsm(home).iterdir()):
        if found.is_dir() and tokencopy.serial_of(found.name) == description.serial:
            break
    else:
        raise BadRequest(
            "token.not_softhsm",
            f"no token of serial number {description.serial} below {_softhsm(home)}",
            hint="keypeer clones SoftHSM tokens; let nodes with another HSM use one partition",
        )
    try:
        with token_lock(home.token_lock, hsm_limits.TOKEN_LOCK_COMMAND_S):
            files = {path.name: path.read_bytes() for path in sorted(found.iterdir())}
    except (HsmError, OSError) as error:
        raise Unavailable("token.unreadable", str(error), hint="run it as the HSM worker's user") from None
    return tokencopy.check_folder(found.name, files), description.token_label


async def _told(home: Home, invitation: Invitation, copied: TokenFolder) -> None:
    """The audit log's entry, durable before the copy is."""
    from kms.app import open_store

    entry = AuditRecord(
        time=time.time(),
        action="token.clone",
        outcome="granted",
        actor="keypeer token clone",
        role="",
        facts={
            "node": invitation.node,
            "fingerprint": invitation.fingerprint,
            "serial": tokencopy.serial_of(copied.name),
            "uid": os.getuid(),
        },
    )
    async with open_store(home) as store:
        if not isinstance(await store.commit(Commit(entries=[encode_record(entry)])), Committed):
            raise Unavailable("store.conflict", "the entry couldn't be written", hint="try again")


# ── the one that gets ──────────────────────────────────────────────────────────────────────────────────────────


def _check_room(home: Home, tokens: Path, target: Path, *, replace: bool) -> None:
    others = [path.name for path in tokens.iterdir() if path.is_dir()] if tokens.exists() else []
    if target.name in others and not replace:
        raise BadRequest(
            "token.there", f"this node has a copy of the token already ({target})", hint="--replace takes the newer one"
        )
    if set(others) - {target.name}:
        raise BadRequest(
            "token.another", f"{tokens} holds another token ({', '.join(others)})", hint="move it away first"
        )
    for socket in home.hsm_sockets():
        with sockets.socket(sockets.AF_UNIX) as client:
            try:
                client.connect(str(socket))
            except OSError:
                continue
        raise BadRequest("token.running", f"an HSM worker runs at {socket}", hint="stop the service of this node first")


@contextmanager
def _tried(home: Home, opened: TokenFolder) -> Iterator[tuple[Home, Path]]:
    """The token unpacked beside its place, on the same disk: a home that uses it there, and the folder."""
    tokens = _softhsm(home)
    trial = tokens.with_name(f".{tokens.name}.trial")
    shutil.rmtree(trial, ignore_errors=True)  # what a killed one left
    unpacked = trial / opened.name
    try:
        unpacked.mkdir(mode=0o700, parents=True)
        trial.chmod(0o700)
        for name, data in opened.files.items():
            write_new(unpacked / name, data)
            with (unpacked / name).open("rb") as file:
                os.fsync(file.fileno())
        conf = trial / "softhsm2.conf"
        text = _conf(home).read_text()
        write_new(conf, _TOKENDIR.sub(lambda found: f"{found[1]}{trial}", text).encode())
        hsm = msgspec.structs.replace(
            home.settings.hsm, environment={**home.settings.hsm.environment, _CONF: str(conf)}
        )
        yield Home(home.folder, msgspec.structs.replace(home.settings, hsm=hsm)), unpacked
    finally:
        shutil.rmtree(trial, ignore_errors=True)


async def _prove(trial: Home, home: Home, asked: Pin | None) -> None:
    """That the token opens with this node's PIN and signs with the CA key that this node's ca.pem names."""
    try:
        anchors = {
            certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo): certificate
            for certificate in x509.load_pem_x509_certificates((home.tls / "ca.pem").read_bytes())
        }
    except (OSError, ValueError) as error:
        raise BadRequest("token.ca", f"{home.tls / 'ca.pem'}: {error}", hint="copy tls/ from the other node") from None
    challenge = secrets.token_bytes(32)

    async def ask(custody: Custody) -> bool:
        for version, public in (await custody.describe()).signing_versions.get("ca", {}).items():
            if public in anchors:
                key = anchors[public].public_key()
                signature = await custody.sign("ca", challenge, version)
                return isinstance(key, ec.EllipticCurvePublicKey) and _verifies(key, signature, challenge)
        return False

    with hsm_worker(trial, asked) as socket:
        proven = await _with_custody(socket, ask)
    if not proven:
        raise BadRequest(
            "token.foreign",
            f"the token has no CA key of {home.tls / 'ca.pem'}",
            hint="it is another service's; or tls/ here is: copy it from the node that cloned",
        )


def _verifies(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _invited(home: Home) -> tuple[X25519PrivateKey, Invitation]:
    try:
        secret, _, document = _waiting(home).read_bytes().partition(b"\n")
        private = X25519PrivateKey.from_private_bytes(bytes.fromhex(secret.decode()))
    except FileNotFoundError:
        raise BadRequest(
            "token.not_invited", "this node waits for no copy", hint="keypeer token invite, then clone for it"
        ) from None
    return private, tokencopy.read_invitation(document, int(time.time()))


# ── both ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _waiting(home: Home) -> Path:
    """The private half of the invitation that is out, and the invitation."""
    return home.path("token-invitation")


def _conf(home: Home) -> Path:
    environment = home.hsm_worker(home.run / "command.sock")["environment"]
    named = environment.get(_CONF, os.environ.get(_CONF, "")) if isinstance(environment, dict) else ""
    if not named:
        raise BadRequest(
            "token.not_softhsm",
            f"hsm.environment in the settings has no {_CONF}",
            hint="keypeer clones SoftHSM tokens; let nodes with another HSM use one partition",
        )
    return Path(named)


def _softhsm(home: Home) -> Path:
    """The folder that SoftHSM keeps its tokens in (directories.tokendir)."""
    conf = _conf(home)
    try:
        found = _TOKENDIR.search(conf.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest("token.not_softhsm", f"{conf}: {error}", hint="mend hsm.environment in the settings") from None
    if found is None:
        raise BadRequest("token.not_softhsm", f"{conf} names no directories.tokendir", hint="it must name one")
    return Path(found[2])


async def _with_custody(socket: Path, ask: Callable[[Custody], Awaitable[T]]) -> T:
    from kms.custody.client import HsmClient

    custody = HsmClient([socket])
    await custody.start()
    try:
        return await ask(custody)
    finally:
        await custody.close()


def _asked(home: Home) -> Pin | None:
    return read_pin("prompt") if home.settings.hsm.pin == "prompt" else None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_FILE_BYTES_MAX + 1)
    if len(data) > _FILE_BYTES_MAX:
        raise BadRequest("token.copy", f"{path} has more than {_FILE_BYTES_MAX:,} bytes", hint="it is another file")
    return data

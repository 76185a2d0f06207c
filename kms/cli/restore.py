"""`keypeer restore`: a service out of its backup, in an empty place; with officers' shares also a lost token's keys."""

from __future__ import annotations

import asyncio
import base64
import shutil
import sys
import time
from pathlib import Path

import click
import msgspec

from hsm_adapter.pin import Pin, read_pin
from kms import shares
from kms.audit.record import AuditRecord, encode_record
from kms.cli.adapter import KeyBackup, backup_file, run_adapter, so_pin_arguments
from kms.cli.backup import FORMAT, MANIFEST, Manifest, digest, read_log
from kms.cli.common import Exit, folder, home_option, in_words, json_option, say
from kms.cli.recovery import SEALED, read_words
from kms.cli.store import Progress, tell
from kms.cli.worker import hsm_worker
from kms.domain.service_keys import SigningKeyRecord, SigningVersion
from kms.errors import BadRequest, KeypeerError
from kms.records import CHECKPOINTS, Records
from kms.rollback import RollbackGuard
from kms.settings import Home, read_home
from kms.signing_keys import SIGNING_KEYS
from kms.store.port import Check, Commit, Committed, Store
from kms.verification import Report, verify

_AUDIT = "audit"


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@home_option
@click.option(
    "--share", "files", multiple=True, type=click.Path(path_type=Path), help="A share's file; of each needed."
)
@click.option("--break-glass", is_flag=True, help="The token is lost: bring its keys into a blank one with the shares.")
@click.option(
    "--trust",
    multiple=True,
    metavar="SHA256",
    help="The session key that signed the backups (keypeer recovery status).",
)
@click.option("--so-pin", default=None, help="The SO PIN's source, to initialise a blank token.")
@json_option
@in_words
def restore(
    source: Path,
    home: Path | None,
    files: tuple[Path, ...],
    break_glass: bool,
    trust: tuple[str, ...],
    so_pin: str | None,
    as_json: bool,
) -> None:
    """Put the backup SOURCE into the service's folder, which must hold no service, and look at every record.

    What the backup doesn't hold: PIN, server's and staff's private keys. `keypeer init` makes a server certificate;
    staff go on with theirs.
    """
    place = folder(home)
    manifest = _checked(source)
    _lay(source, place, manifest)
    settled = read_home(place)
    asked = read_pin("prompt") if settled.settings.hsm.pin == "prompt" else None
    made: dict[str, list[str]] = {}
    if break_glass or files:
        made = _break_glass(settled, files, trust, so_pin, asked)
    report, rolled_back = asyncio.run(_looked_at(settled, asked))
    facts = {"home": str(place), "log_size": manifest.log_size, "rolled_back": rolled_back, "keys": made}
    tell(report, as_json=as_json, more=facts)
    if rolled_back:
        say(f"nothing will be released until officers accept it: {rolled_back}")
    when = time.strftime("%F %T", time.gmtime(manifest.made_at))
    say(f"{place} holds the service as of {when} UTC; next: keypeer init")
    if report.failures:
        sys.exit(Exit.BAD_INPUT)


def _checked(source: Path) -> Manifest:
    """The backup's manifest, once every file is what it says. Raises BadRequest ``backup.damaged``."""
    try:
        manifest = msgspec.json.decode((source / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(f"{source / MANIFEST}: {error}") from None
    if manifest.format != FORMAT:
        raise _damaged(f"{source} is of format {manifest.format}; this is {FORMAT}")
    for name, file in manifest.files.items():
        path = source / name
        if not path.resolve().is_relative_to(source.resolve()) or not path.is_file() or digest(path) != file:
            raise _damaged(f"{path} isn't the file that was backed up")
    return manifest


def _damaged(detail: str) -> BadRequest:
    return BadRequest("backup.damaged", detail, hint="take another copy of the backup")


def _lay(source: Path, place: Path, manifest: Manifest) -> None:
    """Copies every file; what is there already must be the same file, so that an interrupted restore goes on."""
    for name, file in manifest.files.items():
        target = place / name
        if target.exists() and digest(target) == file:
            continue
        if target.exists():
            raise BadRequest(
                "restore.not_empty", f"{target} is there already, and another file", hint="restore into an empty folder"
            )
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = target.with_name(f"{target.name}.partial")
        shutil.copyfile(source / name, draft)
        draft.chmod(0o600)
        draft.replace(target)
    for name in ("identities", "vendor-cas"):
        (place / name).mkdir(mode=0o700, exist_ok=True)
    size, root, _ = asyncio.run(read_log(place / "store"))
    if (size, root) != (manifest.log_size, manifest.log_root):
        raise _damaged(f"the log in it has {size} entries; the manifest says {manifest.log_size}")


# ── break-glass ────────────────────────────────────────────────────────────────────────────────────────────────


def _break_glass(
    home: Home, files: tuple[Path, ...], trust: tuple[str, ...], so_pin: str | None, asked: Pin | None
) -> dict[str, list[str]]:
    """The keys of a lost token into the one that the settings name, which is blank. Anybody can wrap keys of their own
    to the recovery key, so ``trust`` says whose signature the backups must have."""
    if asked is not None:
        raise BadRequest("recovery.pin", "hsm.pin is prompt; the shares are read there", hint="give the PIN in a file")
    try:
        sealed = shares.read((home.recovery / SEALED).read_bytes())
    except OSError as error:
        raise BadRequest(
            "recovery.file", f"{error.filename}: {error.strerror}", hint="this service had no recovery key"
        ) from None
    asyncio.run(_gather_backups(home))
    private = shares.open_private(sealed, read_words(files, sealed.threshold))
    arguments = ["--backups", str(home.recovery / "keys"), *so_pin_arguments(home, so_pin)]
    done = run_adapter(home, "restore", [*arguments, *(f"--trust={each}" for each in trust)], private)
    if not trust:
        signed = ", ".join(done["signers"])
        say(f"the backups are signed by session key {signed}: compare it with what was noted (keypeer recovery status)")
    say(f"in the token: {', '.join(done['restored'] + done['present'] + done['made'])}")
    asyncio.run(_follow_audit_key(home))
    return {name: list(labels) for name, labels in done.items() if isinstance(labels, list)}


async def _gather_backups(home: Home) -> None:
    """Backups of versions that a rotation made are in the store; all into the one folder that the adapter reads."""
    from kms.app import open_store

    place = home.recovery / "keys"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with open_store(home) as store:
        async for item in store.export(b"recovery/"):
            backup = msgspec.json.decode(item.value, type=KeyBackup)
            path = backup_file(home, backup.key, backup.version)
            path.write_bytes(item.value)
            path.chmod(0o600)


async def _follow_audit_key(home: Home) -> None:
    """Where the token couldn't give the audit key away (SoftHSM wraps no Ed25519 key), a new version signs the log from
    now on: that is written in the log, and the last checkpoint, by a key that is lost, makes room for a new one."""
    from kms.app import open_store
    from kms.custody.client import HsmClient

    with hsm_worker(home, None) as socket:
        async with open_store(home) as store:
            custody = HsmClient([socket])
            await custody.start()
            try:
                there = (await custody.describe()).signing_versions[_AUDIT]
                records = Records(store, custody)
                loaded = await records.load(SIGNING_KEYS, _AUDIT)
                known = loaded.value.versions if loaded else (SigningVersion(1, _first_audit_key(home)),)
                if max(there) in {each.version for each in known if not each.retired_at}:
                    return
                now = int(time.time())
                lost = tuple(
                    each
                    if each.version in there or each.retired_at
                    else msgspec.structs.replace(each, retired_at=now, why="lost with the token")
                    for each in known
                )
                new = SigningVersion(max(there), there[max(there)], made_at=now, made_by="keypeer restore")
                puts = await records.seal([SIGNING_KEYS.put(_AUDIT, SigningKeyRecord((*lost, new)))])
                check = loaded.check if loaded else Check(SIGNING_KEYS.key(_AUDIT), 0)
                await _commit(store, check, puts, new)
            finally:
                await custody.close()


def _first_audit_key(home: Home) -> bytes:
    backup = msgspec.json.decode(backup_file(home, _AUDIT, 1).read_bytes(), type=KeyBackup)
    return base64.b64decode(backup.public_key)


async def _commit(store: Store, check: Check, puts: list[tuple[bytes, bytes]], new: SigningVersion) -> None:
    entry = AuditRecord(
        time=time.time(),
        action="keys.restore",
        outcome="done",
        actor="keypeer restore",
        role="",
        facts={"key": _AUDIT, "version": new.version, "public_key": new.public_key.hex()},
    )
    change = Commit(checks=[check], puts=puts, deletes=[CHECKPOINTS.key("newest")], entries=[encode_record(entry)])
    if not isinstance(await store.commit(change), Committed):
        raise KeypeerError("store.conflict", "the store is being written", hint="stop the service, and try again")


async def _looked_at(home: Home, asked: Pin | None) -> tuple[Report, str]:
    """Every record, and what the token remembers that the store hasn't, in words."""
    from kms.app import open_store
    from kms.custody.client import HsmClient

    with hsm_worker(home, asked) as socket:
        async with open_store(home) as store:
            custody = HsmClient([socket])
            await custody.start()
            try:
                records = Records(store, custody)
                trouble = await RollbackGuard(store, custody, records).look()
                report = await verify(store, records, custody, time.time, Progress())
            finally:
                await custody.close()
    return report, trouble.error().detail if trouble else ""

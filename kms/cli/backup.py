"""`keypeer backup`: a copy of what the service can't make anew, while it goes on working."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import lmdb
import msgspec

from kms.cli.common import folder, home_option, in_words, json_option, say
from kms.errors import BadRequest, Unavailable
from kms.settings import FILE, Home, read_home
from kms.store.lmdb import LmdbStore

FORMAT = "keypeer-backup/1"
MANIFEST = "manifest.json"
STORE = "store"
_SPARE_BYTES = 64 * 1024 * 1024  # bytes of the disk that a backup leaves free
_TOLD_EVERY_S = 1.0  # seconds between two lines of progress


class BackedFile(msgspec.Struct, frozen=True):
    """A file of a backup."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup holds. ``log_size`` and ``log_root``: the audit log's head in it; ``checkpoint``: the newest signed
    note in it; ``files``: by path in the backup."""

    format: str = FORMAT
    made_at: int
    log_size: int
    log_root: str
    checkpoint: str
    files: dict[str, BackedFile]


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@home_option
@json_option
@in_words
def backup(target: Path, home: Path | None, as_json: bool) -> None:
    """Copy store, settings, CA certificate and key backups to the new folder TARGET.

    Consistent, while the service works. No key in the clear and no PIN is in it: the HSM, or its recovery shares, are
    needed to use it.
    """
    place = read_home(folder(home))
    if target.exists():
        raise BadRequest("backup.exists", f"{target} is there already", hint="name a folder that isn't there yet")
    draft = target.with_name(f"{target.name}.partial")
    _check_room(place, target)
    shutil.rmtree(draft, ignore_errors=True)  # what an interrupted one left
    draft.mkdir(mode=0o700, parents=True)
    _copy_store(place.store, draft / STORE)
    for source, name in _files(place):
        path = draft / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        path.chmod(0o600)
    manifest = _manifest(draft)
    (draft / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    _sync(draft)
    draft.replace(target)
    if as_json:
        click.echo(json.dumps({"backup": str(target), "log_size": manifest.log_size, "files": len(manifest.files)}))
    else:
        size = sum(file.size for file in manifest.files.values())
        click.echo(f"{target}: {size / 1e6:,.1f} MB, {manifest.log_size:,} audit entries")
        say("keep it apart from the HSM and from the recovery shares: together they open every key")


def _check_room(home: Home, target: Path) -> None:
    if home.postgres() is not None:
        raise BadRequest(
            "backup.postgres",
            "the store is on PostgreSQL, which makes its own backups",
            hint="pg_basebackup; or keypeer store copy STORE.URL lmdb:FOLDER, and a backup of a home with that store",
        )
    data = home.store / "data.mdb"
    if not data.exists():
        raise BadRequest("backup.nothing", f"{home.store} holds no store", hint="keypeer init makes a service")
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(parent).free, data.stat().st_blocks * 512 + _SPARE_BYTES
    if free < needed:
        raise Unavailable(
            "backup.room", f"{parent} has {free:,} bytes free; up to {needed:,} are needed", hint="choose another disk"
        )


def _copy_store(source: Path, target: Path) -> None:
    """LMDB's own consistent copy, without its free pages. It holds a read transaction: what the service frees meanwhile
    can't be used again, so its file grows by what changes in that time."""
    target.mkdir(mode=0o700)
    environment = lmdb.open(str(source), readonly=True, max_dbs=16, lock=True)
    try:
        with _progress(target / "data.mdb", (source / "data.mdb").stat().st_blocks * 512):
            environment.copy(str(target), compact=True)
    except lmdb.Error as error:
        raise Unavailable("backup.store", f"{source}: {error}", hint="is there room, and is the disk well?") from None
    finally:
        environment.close()
    (target / "data.mdb").chmod(0o600)


@contextmanager
def _progress(file: Path, expected: int) -> Iterator[None]:
    """A line a second while ``file`` grows."""
    done = threading.Event()

    def tell() -> None:
        start = time.monotonic()
        while not done.wait(_TOLD_EVERY_S):
            size = file.stat().st_size if file.exists() else 0
            say(f"store: {size / 1e6:,.0f} of at most {expected / 1e6:,.0f} MB, {time.monotonic() - start:.0f} s")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _files(home: Home) -> Iterator[tuple[Path, str]]:
    """What is copied as it is: (file, name in the backup). The server's private key isn't: `keypeer init` makes one."""
    yield home.folder / FILE, FILE
    yield home.tls / "ca.pem", "tls/ca.pem"
    for place, name in ((home.vendor_cas, "vendor-cas"), (home.vendor_cas.with_name("crls"), "crls")):
        for path in sorted(path for path in place.rglob("*") if path.is_file()):
            yield path, f"{name}/{path.relative_to(place)}"
    for path in sorted(path for path in home.recovery.rglob("*") if path.is_file()):
        yield path, f"recovery/{path.relative_to(home.recovery)}"


def _manifest(draft: Path) -> Manifest:
    size, root, checkpoint = asyncio.run(read_log(draft / STORE))
    files = {str(path.relative_to(draft)): digest(path) for path in sorted(draft.rglob("*")) if path.is_file()}
    files.pop(f"{STORE}/lock.mdb", None)
    (draft / STORE / "lock.mdb").unlink(missing_ok=True)
    return Manifest(made_at=int(time.time()), log_size=size, log_root=root, checkpoint=checkpoint, files=files)


async def read_log(store: Path) -> tuple[int, str, str]:
    """Size and root (hex) of the log in the LMDB folder ``store``, and its newest checkpoint's note."""
    from kms.records import CHECKPOINTS

    map_size = max((store / "data.mdb").stat().st_size * 2, 64 * 2**20)
    opened = LmdbStore.open(store, map_size=map_size)
    try:
        head = await opened.log_head()
        item = await opened.get(CHECKPOINTS.key("newest"))
    finally:
        await opened.close()
    note = CHECKPOINTS.decoder.decode(item.value).note if item is not None else ""
    return head.size, head.root.hex(), note


def digest(path: Path) -> BackedFile:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
    return BackedFile(path.stat().st_size, found.hexdigest())


def _sync(place: Path) -> None:
    """Everything below ``place`` is on the disk before the backup gets its name."""
    for path in [place, *place.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""`keypeer image`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from keypeer import limits
from keypeer.cli import meter, output
from keypeer.cli.calling import fail, json_option
from keypeer.cli.image_keys import KeySource, key_options
from keypeer.errors import KeypeerClientError, StateError
from keypeer.wire.encoding import WireError

if TYPE_CHECKING:
    from keypeer.cli.image_work import Facts

_STREAM = Path("-")
_INTERRUPTED = 128  # and the signal's number, as a shell tells it
_ID_BYTES = 16

_path = click.Path(path_type=Path, allow_dash=True)
_source = click.argument("source", type=_path, default=_STREAM)
_target = click.argument("target", type=_path, default=_STREAM)
_force_option = click.option("--force", is_flag=True, help="Overwrite TARGET.")
_xts_option = click.option("--xts", is_flag=True, help="Length-preserving AES-256-XTS, with the limits said above.")
_id_option = click.option("--id", "image_id", default=None, help="The id that it must have, in hexadecimal.")
_EPOCH = click.IntRange(0, 2**63 - 1)
_CHUNK = click.IntRange(limits.IMAGE_CHUNK_BYTES_MIN, limits.IMAGE_CHUNK_BYTES_MAX)


@click.group()
def image() -> None:
    """Memory images: what a VM's RAM holds, encrypted under its key."""


@image.command()
@_source
@_target
@key_options
@click.option("--epoch", type=_EPOCH, default=None, help="Your number for the image; 0 unless told.")
@click.option("--chunk", type=_CHUNK, default=None, help="Bytes of a chunk, or of an XTS data unit; 1 MiB unless told.")
@click.option("--size", type=click.IntRange(0), default=None, help="Bytes that SOURCE must have.")
@_xts_option
@_force_option
@json_option
def encrypt(
    source: Path,
    target: Path,
    key_from: KeySource,
    epoch: int | None,
    chunk: int | None,
    size: int | None,
    xts: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Encrypt SOURCE into TARGET; - is standard input or output, and the default.

    A TARGET that is a file appears when it is whole. A pipe's end doesn't tell whether its writer finished or died:
    where you know the size, give --size.

    --xts keeps the length and authenticates nothing: changes, cuts, another key go unnoticed, and two images under one
    epoch show which of their units are equal. So --epoch is a must then, a new one for each image.
    """
    key_from.check(source)
    if key_from.vm is None:
        raise click.UsageError("--vm is missing")
    if key_from.release and key_from.key_version is not None:
        raise click.UsageError("--key-version: --release gives the current version, the one to encrypt under")
    if xts and epoch is None:
        raise click.UsageError("--xts needs an --epoch that no other image of this VM has")

    def work() -> Facts:
        from keypeer.cli import image_work as do

        job = do.Job(source, target, force, key_from)
        if xts:
            return do.encrypt_units(job, epoch or 0, chunk or limits.XTS_UNIT_BYTES, size)
        return do.encrypt_image(job, epoch or 0, chunk or limits.IMAGE_CHUNK_BYTES, size)

    _run(work, "encrypted", target, as_json)


@image.command()
@_source
@_target
@key_options
@click.option("--epoch", type=_EPOCH, default=None, help="The epoch that it must have.")
@_id_option
@click.option(
    "--at", type=click.IntRange(0), default=None, help="Only from this byte of the image on; SOURCE is a file."
)
@click.option(
    "--length", type=click.IntRange(0), default=None, help="With --at: so many bytes; to the end unless told."
)
@click.option("--chunk", type=_CHUNK, default=None, help="With --xts: bytes of a data unit; 1 MiB unless told.")
@_xts_option
@_force_option
@json_option
def decrypt(
    source: Path,
    target: Path,
    key_from: KeySource,
    epoch: int | None,
    image_id: str | None,
    at: int | None,
    length: int | None,
    chunk: int | None,
    xts: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Decrypt SOURCE into TARGET; - is standard input or output, and the default.

    What is written was verified before, chunk by chunk, but through a pipe only exit code 0 tells that it was all.
    An old image of the VM is an image of the VM: --epoch and --id say which one it must be.

    --xts takes --vm, --key-version, --epoch and --chunk as they were; anything else gives noise, and nothing notices.
    """
    key_from.check(source)
    wanted = _id(image_id)
    if length is not None and at is None:
        raise click.UsageError("--length goes with --at")
    if xts and (key_from.vm is None or epoch is None or image_id is not None):
        raise click.UsageError("--xts needs --vm and --epoch, and knows no --id")
    if chunk is not None and not xts:
        raise click.UsageError("--chunk goes with --xts; an image says what it has")

    def work() -> Facts:
        from keypeer.cli import image_work as do

        job = do.Job(source, target, force, key_from)
        part = None if at is None else do.Part(at, length)
        if xts:
            return do.decrypt_units(job, epoch or 0, chunk or limits.XTS_UNIT_BYTES, part)
        return do.decrypt_image(job, epoch, wanted, part)

    _run(work, "decrypted", target, as_json)


@image.command()
@_source
@key_options
@click.option("--epoch", type=_EPOCH, default=None, help="The epoch that it must have.")
@_id_option
@json_option
def inspect(source: Path, key_from: KeySource, epoch: int | None, image_id: str | None, as_json: bool) -> None:
    """What the image SOURCE says of itself; with a key, whether all of it is so. - is standard input, the default."""
    wanted = _id(image_id)
    if key_from.given:
        key_from.check(source)
    elif epoch is not None or image_id is not None:
        raise click.UsageError("--epoch and --id are verified with a key")

    def work() -> Facts:
        from keypeer.cli import image_work as do

        return do.inspect_image(do.Job(source, source, False, key_from), epoch, wanted)

    facts = _in_words(work, as_json, err=False)
    if as_json:
        output.as_json(facts)
        return
    shown = {name: value for name, value in facts.items() if value is not None}
    shown |= {"created_at": output.when(facts["created_at"]), "verified": "yes" if facts["verified"] else "no: no key"}
    output.facts((name, str(value)) for name, value in shown.items())


def _id(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != _ID_BYTES:
        raise click.UsageError(f"--id has {2 * _ID_BYTES} hexadecimal characters")
    return found


def _run(work: Callable[[], Facts], done: str, target: Path, as_json: bool) -> None:
    """Runs ``work`` and tells what it did: on standard error where standard output is the data's."""
    err = target == _STREAM
    if err and sys.stdout.isatty():
        fail(
            StateError("output.terminal", "standard output is a terminal", "name a TARGET, or redirect"),
            as_json=as_json,
        )
    facts = _in_words(work, as_json, err=err)
    if as_json:
        output.as_json(facts, err=err)
        return
    which = f"id {facts['id']}" if "id" in facts else f"XTS units of {facts['unit']} bytes"
    of = f"of VM {facts['vm']}, key version {facts['version']}, epoch {facts['epoch']}, {which}"
    click.echo(f"{done} {meter.size(facts['size'])} {of}", err=err)


def _in_words(work: Callable[[], Facts], as_json: bool, *, err: bool) -> Facts:
    try:
        with _stopped_cleanly():
            return work()
    except (KeypeerClientError, WireError) as error:
        fail(error, as_json=as_json, err=err)
    except OSError as error:
        fail(StateError("input.file", str(error)), as_json=as_json, err=err)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED + signal.SIGINT)


@contextmanager
def _stopped_cleanly() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind, so that no draft is left behind; what nohup(1) ignores stays ignored."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(_INTERRUPTED + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

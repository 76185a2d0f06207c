"""`keypeer store`: the service's own store."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hsm_adapter.pin import Pin, read_pin
from kms.cli.common import Exit, folder, home_option, in_words, json_option, say
from kms.cli.worker import hsm_worker
from kms.errors import BadRequest
from kms.settings import Home, read_home
from kms.store.copy import Copied, copy_store
from kms.store.postgres_address import is_postgres
from kms.verification import Report

_TOLD_EVERY_S = 1.0  # seconds between two lines of progress


@click.group()
def store() -> None:
    """The store of this service."""


@store.command()
@home_option
@json_option
@in_words
def verify(home: Path | None, as_json: bool) -> None:
    """Look at every record: it decodes, its seal or MAC holds, VM keys open in the HSM, the log's root recomputes.

    Changes nothing, and may run beside the service.
    """
    place = read_home(folder(home))
    asked = read_pin("prompt") if place.settings.hsm.pin == "prompt" else None
    report = asyncio.run(verified(place, asked))
    tell(report, as_json=as_json)
    if report.failures:
        sys.exit(Exit.BAD_INPUT)


@store.command()
@click.argument("source")
@click.argument("target")
@home_option
@json_option
@in_words
def copy(source: str, target: str, home: Path | None, as_json: bool) -> None:
    """Copy every record and the audit log from the store SOURCE to TARGET, and compare them: lmdb:FOLDER or
    postgresql://USER@HOST/DATABASE?…, as store.url has them.

    May begin while the service works, and goes on where it was interrupted; it ends well only when nothing was changed
    during its last look. TARGET must be empty, or hold an earlier state of the same store.
    """
    place = read_home(folder(home))
    named = (_checked_url(source), _checked_url(target))
    if named[0] == named[1]:
        raise BadRequest("copy.same", "SOURCE and TARGET are the same store", hint="name another TARGET")
    start = time.monotonic()
    copied = asyncio.run(_copied(place, *named))
    seconds = time.monotonic() - start
    if as_json:
        click.echo(json.dumps({**copied._asdict(), "root": copied.root.hex(), "seconds": round(seconds, 3)}))
    else:
        words = f"{copied.records:,} records and {copied.entries:,} audit entries are the same in both"
        click.echo(f"{words}; {seconds:,.1f} s; root {copied.root.hex()}")
    say("next: put TARGET into store.url and start the service; SOURCE is left as it is")


def _checked_url(url: str) -> str:
    if not (url.startswith("lmdb:") or is_postgres(url)):
        raise BadRequest("copy.url", f"{url!r} names no store", hint="lmdb:FOLDER or postgresql://USER@HOST/DATABASE")
    return url


async def _copied(home: Home, source: str, target: str) -> Copied:
    from kms.app import open_store

    if not is_postgres(source) and not (home.path(source.removeprefix("lmdb:")) / "data.mdb").exists():
        raise BadRequest("copy.nothing", f"{source} holds no store", hint="relative folders start at the home")
    async with open_store(home, source) as old, open_store(home, target) as new:
        return await copy_store(old, new, CopyProgress())


class CopyProgress:
    """A line a second: how many records were compared, and how many written."""

    def __init__(self) -> None:
        self._start = self._told = time.monotonic()

    def __call__(self, what: str, compared: int, written: int) -> None:
        now = time.monotonic()
        if now - self._told >= _TOLD_EVERY_S:
            self._told = now
            rate = compared / (now - self._start)
            say(f"{what}: {compared:,} looked at, {written:,} written; {rate:,.0f}/s")


async def verified(home: Home, asked: Pin | None) -> Report:
    """The report over the store of ``home``, with progress for people."""
    from kms.app import open_store
    from kms.custody.client import HsmClient
    from kms.records import Records
    from kms.verification import verify as look

    with hsm_worker(home, asked) as socket:
        async with open_store(home) as opened:
            custody = HsmClient([socket])
            await custody.start()
            try:
                return await look(opened, Records(opened, custody), custody, time.time, Progress())
            finally:
                await custody.close()


class Progress:
    """A line a second: what was looked at, and how fast."""

    def __init__(self) -> None:
        self._start = self._told = time.monotonic()

    def __call__(self, report: Report) -> None:
        now = time.monotonic()
        if now - self._told < _TOLD_EVERY_S:
            return
        self._told = now
        done = sum(report.looked_at.values())
        click.echo(f"{_counts(report)}: {done / (now - self._start):,.0f}/s", err=True)


def tell(report: Report, *, as_json: bool, more: Mapping[str, Any] = {}) -> None:  # never changed
    """The report, for people or as JSON with ``more`` in it."""
    if as_json:
        told = [{"where": w.where, "found": w.found, "mend": w.mend} for w in report.wrong]
        document = {"good": not report.failures, "looked_at": report.looked_at, "failures": report.failures}
        click.echo(json.dumps(document | {"wrong": told, **more}))
        return
    for wrong in report.wrong:
        click.echo(f"{click.style('WRONG', fg='red', bold=True)}  {wrong.where}: {wrong.found}\n       → {wrong.mend}")
    verdict = f"{report.failures} are wrong" if report.failures else "all are as they should be"
    click.echo(f"looked at {_counts(report)}: {verdict}")


def _counts(report: Report) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in report.looked_at.items()) or "nothing"

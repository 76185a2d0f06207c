"""`keypeer audit`."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.calling import as_option, client_of, command, home_folder, home_option, json_option, run_in_words
from keypeer.cli.exits import Exit
from keypeer.errors import StateError
from keypeer.wire.encoding import WireError
from keypeer.wire.messages import AuditView

if TYPE_CHECKING:
    from keypeer.client import AsyncClient
    from keypeer.wire.tlog.note import VerifierKey

FOLLOW_S = 1.0  # seconds between looks for new entries
PAGE = 1000  # entries; the service's most
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}  # seconds


@click.group()
def audit() -> None:
    """The audit log: every decision, granted or refused; read, searched, copied and verified."""


@audit.command()
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="The last so many.")
@click.option("--follow", is_flag=True, help="Go on with new entries until Ctrl-C.")
@command("auditor")
async def tail(client: AsyncClient, limit: int, follow: bool, as_json: bool) -> None:
    """The newest entries, oldest of them first; with --json one a line."""
    size = (await client.audit(0, 1)).size
    after = max(0, size - limit)
    while True:
        page = await client.audit(after, PAGE)
        for entry in page.items:
            output.as_json(entry) if as_json else output.done(_line(entry))
        after += len(page.items)
        if after >= page.size:
            if not follow:
                return
            await asyncio.sleep(FOLLOW_S)


@audit.command()
@click.option("--action", help="Such as key.release.")
@click.option("--outcome", type=click.Choice(["granted", "refused", "done"]))
@click.option("--actor", help="Who asked.")
@click.option("--host", help="Of this host.")
@click.option("--vm", help="Of this VM, in batches too.")
@click.option("--code", help="A refusal's code.")
@click.option("--since", help="2026-11-23, 2026-11-23T12:00 (UTC), or how long ago: 30m, 12h, 7d.")
@click.option("--until", help="As --since.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option("--oldest-first", is_flag=True, help="From the log's beginning, instead of the newest first.")
@command("auditor")
async def search(
    client: AsyncClient,
    /,
    limit: int,
    oldest_first: bool,
    since: str | None,
    until: str | None,
    as_json: bool,
    **texts: str,
) -> None:
    """Entries that are all that is asked for; with --json one a line."""
    wanted: dict[str, str | int] = {name: text for name, text in texts.items() if text}
    wanted |= {name: _time(text) for name, text in (("since", since), ("until", until)) if text}
    if not oldest_first:
        wanted["newest"] = 1
    found, after, cursor = 0, 0, "after" if oldest_first else "before"
    while found < limit:
        page = await client.audit(after if oldest_first else 0, min(limit - found, PAGE), **wanted)
        for entry in page.items:
            output.as_json(entry) if as_json else output.done(_line(entry))
        found += len(page.items)
        if page.next is None:
            break
        if oldest_first:
            after = page.next
        else:
            wanted[cursor] = page.next
        if sys.stderr.isatty():
            looked = page.next if oldest_first else page.size - page.next
            click.echo(f"\r{looked:,} of {page.size:,} entries searched", nl=False, err=True)
    if sys.stderr.isatty():
        output.say("")


@audit.command()
@click.option("--cosigned", is_flag=True, help="The newest that witnesses cosigned.")
@command("auditor")
async def checkpoint(client: AsyncClient, cosigned: bool, as_json: bool) -> None:
    """The log's signed head, as C2SP tlog-checkpoint has it."""
    from keypeer.wire.tlog.checkpoint import Checkpoint
    from keypeer.wire.tlog.note import parse_note

    note = await client.log_checkpoint(cosigned=cosigned)
    if not as_json:
        click.echo(note.decode(), nl=False)
        return
    parsed = parse_note(note)
    head = Checkpoint.parse(parsed.text)
    signers = [signature.name for signature in parsed.signatures]
    output.as_json(
        {"origin": head.origin, "size": head.size, "root": head.root.hex(), "signed_by": signers, "note": note.decode()}
    )


@audit.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@command("auditor")
async def export(client: AsyncClient, folder: Path, as_json: bool) -> None:
    """Copy the log to FOLDER, or bring a copy up to date (C2SP tlog-tiles). Only what is missing is fetched."""
    from keypeer.logcopy import LogFolder
    from keypeer.logcopy import export as bring

    copy = LogFolder(folder)
    pinned = bool(copy.keys())
    with click.progressbar(length=0, label="tiles", file=sys.stderr) as bar:

        def progress(done: int, count: int) -> None:
            bar.length = count
            bar.update(done - bar.pos)

        signed = await bring(client, copy, progress)
    if not pinned:
        _tell_keys(copy.keys(), f"pinned in {folder}: compare with what the officers know")
    head = signed.checkpoint
    if as_json:
        output.as_json({"folder": str(folder), "origin": head.origin, "size": head.size, "root": head.root.hex()})
    else:
        output.done(f"{folder} holds the {head.size} entries of {head.origin}; check it: keypeer audit verify {folder}")


@audit.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--key", "keys", multiple=True, help="The log's verifier key, NAME+ID+KEY; the pinned one unless given.")
@click.option("--entry", type=click.IntRange(0), help="Prove this entry's inclusion too (without FOLDER).")
@home_option
@as_option
@json_option
def verify(
    folder: Path | None,
    keys: tuple[str, ...],
    entry: int | None,
    home: Path | None,
    identity: str | None,
    as_json: bool,
) -> None:
    """Verify a copy in FOLDER, offline, whole; or the service's log against the head that was seen last."""
    from keypeer.wire.tlog.note import VerifierKey

    async def run() -> int:
        given = [VerifierKey.parse(key) for key in keys]
        if folder is not None:
            if entry is not None:
                raise click.UsageError("--entry goes without FOLDER: a copy is verified entry by entry")
            return _verify_copy(folder, given, as_json)
        name = identity or "auditor"
        async with client_of(home, name) as client:
            place = home_folder(home) / "identities" / name / "log.json"
            return await _verify_live(client, place, given, entry, as_json)

    run_in_words(run, as_json=as_json)


def _verify_copy(folder: Path, given: list[VerifierKey], as_json: bool) -> int:
    from keypeer.logcopy import LogFolder
    from keypeer.logcopy import verify as judge

    copy = LogFolder(folder)
    keys = given or copy.keys()
    if not keys:
        raise StateError("log.key", f"{folder} has no key pinned", "give the log's key with --key")
    if not given:
        _tell_keys(keys, "pinned in the copy itself: whoever made it up could have pinned another; --key is sure")
    with click.progressbar(length=0, label="entries", file=sys.stderr) as bar:

        def progress(done: int, count: int) -> None:
            bar.length = count
            bar.update(done - bar.pos)

        verdict = judge(copy, keys, progress, strict=not given)
    head = verdict.signed.checkpoint if verdict.signed else None
    if as_json:
        findings = [{"file": finding.file, "found": finding.words} for finding in verdict.findings]
        shown = {"origin": head.origin, "size": head.size, "root": head.root.hex()} if head else {}
        output.as_json({"good": not findings, **shown, "findings": findings})
    else:
        for finding in verdict.findings:
            output.done(f"{click.style('WRONG', fg='red', bold=True)}  {finding}")
        if head is not None and not verdict.findings:
            signers = ", ".join(key.name for key in verdict.signed.verified.by) if verdict.signed else ""
            output.done(f"all {head.size} entries of {head.origin} are as they were logged; signed by {signers}")
    return Exit.FORGED if verdict.findings else Exit.DONE


async def _verify_live(
    client: AsyncClient, place: Path, given: list[VerifierKey], entry: int | None, as_json: bool
) -> int:
    from keypeer.logwatch import LogWatch

    watch = LogWatch.open(place)
    first = not watch.keys
    seen = await watch.look(client, given)
    if first and not given:
        _tell_keys(watch.keys, f"pinned in {place}: compare with what the officers know")
    found = await watch.prove(client, entry) if entry is not None else None
    if as_json:
        shown = {"origin": seen.origin, "size": seen.size, "root": seen.root.hex(), "before": watch.before}
        output.as_json(shown | ({"entry": entry, "found": found.decode()} if found is not None else {}))
        return Exit.DONE
    since = "is seen for the first time" if watch.before is None else f"goes on from the {watch.before} seen before"
    output.done(f"the log {seen.origin} has {seen.size} entries; it {since}")
    if found is not None:
        output.done(f"entry {entry} is in it: {found.decode()}")
    return Exit.DONE


def _tell_keys(keys: list[VerifierKey], words: str) -> None:
    for key in keys:
        output.say(f"{click.style('key', fg='yellow', bold=True)}  {key}  ({words})")


def _time(text: str) -> int:
    """Unix seconds. Raises WireError."""
    amount, unit = text[:-1], text[-1:]
    if unit in _UNITS and amount.isascii() and amount.isdigit():
        return int((datetime.now(UTC) - timedelta(seconds=int(amount[:9]) * _UNITS[unit])).timestamp())
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise WireError("time", f"{text!r} is neither a date (2026-11-23T12:00) nor an age (12h)") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def _line(entry: AuditView) -> str:
    at = datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
    colour = {"granted": "green", "refused": "red"}.get(entry.outcome)
    subject = " ".join(f"{name}={value}" for name, value in (("host", entry.host), ("vm", entry.vm)) if value)
    words = f"{at}  {click.style(entry.outcome.ljust(7), fg=colour)}  {entry.action.ljust(16)} {entry.actor}"
    if subject:
        words += f"  {subject}"
    if entry.code:
        words += f"  {entry.code}: " + ("; ".join(f"{reason.id}: {reason.found}" for reason in entry.reasons) or "–")
    return words

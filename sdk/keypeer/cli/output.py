"""How commands speak: one JSON document, or tables and words for people."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

from keypeer.wire.messages import ReasonView

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400  # seconds


def as_json(value: Any, *, err: bool = False) -> None:
    """One JSON document on one line; on standard error where the output is data."""
    click.echo(msgspec.json.encode(value), err=err)


def say(text: str) -> None:
    """A line for people, on standard error."""
    click.echo(text, err=True)


def done(text: str) -> None:
    """What was done, on standard output."""
    click.echo(text)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table: drawn on a terminal, tab-separated with a head line elsewhere."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*columns, title=title, box=SIMPLE_HEAD, title_justify="left")
    for row in rows:
        drawn.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    Console(no_color="NO_COLOR" in os.environ).print(drawn)


def _style(cell: str) -> str:
    good, bad = ("approved", "granted", "yes"), ("revoked", "refused", "no")
    return "green" if cell in good else "red" if cell in bad else "yellow" if cell == "pending" else ""


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")


def reasons(found: Iterable[ReasonView], *, err: bool = False) -> None:
    """Every failed check: what was found, what was asked, how to mend it."""
    for reason in found:
        click.echo(click.style(reason.id, fg="red", bold=True), err=err)
        click.echo(f"  found  {reason.found}\n  asked  {reason.asked}\n  mend   {reason.mend}", err=err)


def when(seconds: int | None) -> str:
    """A time of the service in words: how long ago, or in how long."""
    if not seconds:
        return ""
    away = seconds - int(time.time())
    text = _span(abs(away))
    return f"in {text}" if away > 0 else f"{text} ago"


def _span(seconds: int) -> str:
    for unit, size in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"

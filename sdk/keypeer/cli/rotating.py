"""What `keypeer kek` and `keypeer keys` share: a rotation begun, watched and told."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.exits import Exit
from keypeer.errors import ServiceUnavailable

if TYPE_CHECKING:
    from keypeer.client import AsyncClient
    from keypeer.wire.messages import KeyView, RotationView

_POLL_S = 0.5  # seconds between looks
_LINE_S = 5.0  # seconds between lines where there is no terminal
_LOST_MAX = 60  # looks in a row that may fail: a worker is replaced meanwhile
_ENDED = ("complete", "incomplete")


async def rotate(client: AsyncClient, key: str, wait: bool, as_json: bool) -> int:
    """Begins; stays when asked to."""
    view = await client.rotate_key(key)
    if wait:
        return await watch(client, view, as_json)
    if as_json:
        output.as_json(view)
    else:
        output.done(f"{key} is being rotated to version {view.to}, in the background")
        output.say(f"keypeer {_noun(key, 'status')} --wait shows how far it is")
    return Exit.DONE


async def status(client: AsyncClient, key: str, wait: bool, as_json: bool) -> int:
    """The last rotation, until its end when asked to."""
    view = await client.rotation(key)
    if wait and view.state not in _ENDED:
        return await watch(client, view, as_json)
    show(view, as_json)
    return _code(view)


async def destroy(client: AsyncClient, key: str, version: int, as_json: bool) -> None:
    """An old version, for good."""
    gone = await client.destroy_key(key, version)
    if as_json:
        output.as_json(gone)
    elif gone.there_was:
        output.done(f"version {version} of {key} is destroyed; of {gone.records} records none needs it")
    else:
        output.done(f"version {version} of {key} was gone already; of {gone.records} records none needs it")


async def watch(client: AsyncClient, view: RotationView, as_json: bool) -> int:
    """Shows a rotation until it has ended: a bar on a terminal, lines elsewhere, JSON lines with --json. Numbers are
    the service's own, so that whoever looks later sees the same."""
    try:
        if not as_json and sys.stderr.isatty():
            view = await _bar(client, view)
        else:
            view = await _lines(client, view, as_json)
    except (asyncio.CancelledError, KeyboardInterrupt):
        output.say(f"the rotation of {view.key} goes on without this command: keypeer {_noun(view.key, 'status')}")
        raise
    if not as_json:
        show(view, as_json=False)
    return _code(view)


async def _bar(client: AsyncClient, view: RotationView) -> RotationView:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{view.key} version {view.to}", total=None, words="")
        while view.state not in _ENDED:
            progress.update(task, total=view.total or None, completed=min(view.done, view.total), words=_words(view))
            await asyncio.sleep(_POLL_S)
            view = await _again(client, view)
    return view


async def _lines(client: AsyncClient, view: RotationView, as_json: bool) -> RotationView:
    loop = asyncio.get_running_loop()
    told = -_LINE_S
    while view.state not in _ENDED:
        if loop.time() - told >= _LINE_S:
            told = loop.time()
            if as_json:
                output.as_json(view)
            else:
                output.say(f"{view.key} version {view.to}: {view.done} of {view.total}, {_words(view)}")
        await asyncio.sleep(_POLL_S)
        view = await _again(client, view)
    if as_json:
        output.as_json(view)
    return view


async def _again(client: AsyncClient, view: RotationView) -> RotationView:
    for _ in range(_LOST_MAX):
        try:
            return await client.rotation(view.key)
        except ServiceUnavailable:
            await asyncio.sleep(_POLL_S)
    return await client.rotation(view.key)


def _words(view: RotationView) -> str:
    if view.state != "running":
        return view.state
    if view.round > 1:
        return f"looking at everything again, round {view.round}"
    if view.seconds_left is None:
        return f"{view.rate}/s"
    minutes, seconds = divmod(view.seconds_left, 60)
    return f"{view.rate}/s, {minutes}:{seconds:02d} left"


def show(view: RotationView, as_json: bool) -> None:
    """One rotation."""
    if as_json:
        output.as_json(view)
        return
    output.facts(
        [
            ("key", f"{view.key}, to version {view.to}"),
            ("state", _state(view)),
            ("records", f"{view.done} of {view.total} moved" if view.total or view.done else ""),
            ("rate", _words(view) if view.state == "running" else ""),
            ("started", f"{output.when(view.started_at)} by {view.started_by}"),
            ("ended", output.when(view.finished_at)),
        ]
    )
    for record, code in view.failures.items():
        output.done(f"{click.style('failed', fg='red')}  {record}: {code}")


def _state(view: RotationView) -> str:
    return f"{view.state}: {view.failed} records failed" if view.failed else view.state


def table(views: Sequence[KeyView], as_json: bool) -> None:
    """Keys, one a line."""
    if as_json:
        for view in views:
            output.as_json(view)
        return
    rows = [
        (
            view.key,
            ", ".join(map(str, view.versions)),
            _state(view.rotation) + f" (to {view.rotation.to})" if view.rotation else "never",
            f"{view.sessions_below}, the last ends {output.when(view.sessions_until)}" if view.sessions_below else "–",
        )
        for view in views
    ]
    output.table("Keys in the HSM", ("key", "versions", "rotation", "sessions on old versions"), rows)


def _code(view: RotationView) -> int:
    return Exit.REFUSED if view.state == "incomplete" else Exit.DONE


def _noun(key: str, verb: str) -> str:
    return f"kek {verb}" if key == "kek" else f"keys {verb} {key}"

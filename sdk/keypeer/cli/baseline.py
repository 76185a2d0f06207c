"""`keypeer baseline`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from keypeer.cli import output
from keypeer.cli.boot import words
from keypeer.cli.calling import command
from keypeer.cli.documents import read_document
from keypeer.cli.exits import Exit
from keypeer.cli.runtime import tell
from keypeer.errors import StateError
from keypeer.wire.messages import BaselineView, PutBaseline, RecordBaseline
from keypeer.wire.runtime import Requirement, RuntimePolicy

if TYPE_CHECKING:
    from keypeer.client import AsyncClient
    from keypeer.packages import PackageSet

_DAY_S = 86_400
_expires_option = click.option(
    "--expires-in", type=click.IntRange(1, 3660), default=None, metavar="DAYS", help="Ends after so many days."
)


@click.group()
def baseline() -> None:
    """Baselines: the boot states that are good."""


@baseline.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@command("officer")
async def put(client: AsyncClient, name: str, file: Path, as_json: bool) -> None:
    """Propose the reference values in FILE (JSON or TOML), such as `keypeer agent pcrs --baseline` or
    `keypeer baseline show --json` prints."""
    _tell(await client.put_baseline(name, read_document(file, PutBaseline)), as_json)


@baseline.command()
@click.argument("name")
@click.option("--host", required=True, help="The golden host: its last evidence is recorded.")
@click.option("--pcrs", default="", metavar="LIST", help="PCRs to record by value too, such as 0,2,17,18.")
@_expires_option
@command("officer")
async def record(client: AsyncClient, name: str, host: str, pcrs: str, expires_in: int | None, as_json: bool) -> None:
    """Propose what a golden host proved last: its boot log's facts, and the PCRs named."""
    request = RecordBaseline(host=host, pcrs=_indices(pcrs), expires_at=_end(expires_in))
    _tell(await client.record_baseline(name, request), as_json)


@baseline.command("from-packages")
@click.argument("name")
@click.option("--root", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path("/"))
@click.option("--debs", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A folder of .deb files.")
@click.option("--package", "packages", multiple=True, help="Only this package; may be given again. All unless told.")
@click.option("--require", "required", multiple=True, metavar="PATH", help="Must have been measured; may be repeated.")
@click.option("--exclude", "excludes", multiple=True, metavar="GLOB", help="May hold anything, such as /var/log/**.")
@click.option("--output", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write a file, store nothing.")
@command("officer")
async def from_packages(
    client: AsyncClient,
    name: str,
    root: Path,
    debs: Path | None,
    packages: tuple[str, ...],
    required: tuple[str, ...],
    excludes: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Make runtime policy NAME out of the Debian packages under --root (a golden machine) or in --debs, and store it:
    after an update, run it again."""
    found = _read_packages(name, root, packages, debs)
    for deviation in found.deviations:
        output.say(f"left out: {deviation.path} of {deviation.package} {deviation.problem}")
    files = {path: tuple(f"sha256:{each}" for each in sorted(digests)) for path, digests in found.files.items()}
    document = RuntimePolicy(
        sets={name: _as_printed(files)},
        excludes=excludes,
        require=tuple(Requirement(path=path, of=name) for path in required),
    )
    if out is not None:
        _save(out, msgspec.json.encode(document))
        output.done(f"{len(found.files)} files of {len(found.packages)} packages written to {out}")
        return
    tell(await client.put_runtime_policy(name, document), as_json)


@baseline.command()
@click.argument("name")
@command("officer")
async def approve(client: AsyncClient, name: str, as_json: bool) -> None:
    """Put a proposed baseline in force, beside the others. It never changes afterwards."""
    _tell(await client.approve_baseline(name), as_json)


@baseline.command()
@click.argument("name")
@command("officer")
async def retire(client: AsyncClient, name: str, as_json: bool) -> None:
    """Take a baseline out of force, for good; hosts that match no other are refused."""
    _tell(await client.retire_baseline(name), as_json)


@baseline.command()
@click.argument("name")
@click.argument("other", required=False)
@click.option("--host", default="", help="Compare with what this host proved last, instead of another baseline.")
@command("auditor")
async def diff(client: AsyncClient, name: str, other: str | None, host: str, as_json: bool) -> int:
    """What differs between baseline NAME and baseline OTHER, or a host, in words. Exit 1 when anything does."""
    if bool(other) == bool(host):
        raise StateError("input.invalid", "compare with one baseline or one host", "name OTHER, or give --host")
    found = await client.baseline_differences(name, other=other or "", host=host)
    if as_json:
        output.as_json(found)
    elif not found.items:
        output.done(f"{found.found} is what {found.expected} says")
    else:
        for item in found.items:
            output.done(item.sentence)
    return Exit.REFUSED if found.items else Exit.DONE


@baseline.command()
@click.argument("name")
@command("auditor")
async def show(client: AsyncClient, name: str, as_json: bool) -> None:
    """One baseline; with --json also as the document that `put` takes, under "pcrs" and "boot"."""
    view = await client.baseline(name)
    if as_json:
        output.as_json(view)
        return
    output.facts(
        [
            ("baseline", view.name),
            ("status", f"{view.status}{f' by {view.decided_by}' if view.decided_by else ''}"),
            ("proposed", f"{output.when(view.updated_at)} by {view.updated_by}"),
            ("ends", output.when(view.expires_at)),
            *((f"PCR {index}", " or ".join(values)) for index, values in view.pcrs.items()),
            *(words(view.boot) if view.boot else ()),
        ]
    )


@baseline.command("list")
@command("auditor")
async def list_baselines(client: AsyncClient, as_json: bool) -> None:
    """Every baseline."""
    from keypeer.client import every

    found: list[BaselineView] = [view async for view in every(client.baselines)]
    if as_json:
        output.as_json(found)
        return
    rows = [(v.name, v.status, _covers(v), output.when(v.expires_at) or "never", v.updated_by) for v in found]
    output.table("baselines", ("baseline", "status", "covers", "ends", "by"), rows)


def _tell(view: BaselineView, as_json: bool) -> None:
    if as_json:
        output.as_json(view)
        return
    hint = f"; an officer reads it and runs: keypeer baseline approve {view.name}" if view.status == "proposed" else ""
    output.done(f"baseline {view.name} is {view.status}: {_covers(view)}{hint}")


def _covers(view: BaselineView) -> str:
    pcrs = f"{view.bank} PCRs {', '.join(view.pcrs)}" if view.pcrs else ""
    return " and ".join(part for part in ("boot log" if view.boot else "", pcrs) if part)


def _read_packages(name: str, root: Path, packages: tuple[str, ...], debs: Path | None) -> PackageSet:
    from keypeer.debs import from_debs
    from keypeer.packages import from_dpkg

    with click.progressbar(length=0, label="packages", file=sys.stderr) as bar:

        def progress(done: int, all_: int, _next: str) -> None:
            bar.length = all_
            bar.update(done - bar.pos)

        if debs is not None:
            return from_debs(debs, progress, name=name)
        return from_dpkg(root, packages or None, progress, name=name)


def _as_printed(files: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    # IMA writes an underscore for each space of a name; a line end or NUL can't be in a measured one.
    return {path.replace(" ", "_"): digests for path, digests in files.items() if path.isprintable()}


def _save(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise StateError("input.invalid", f"--pcrs {text!r} is no list of PCRs", "write them like 0,2,17,18") from None


def _end(days: int | None) -> int:
    return int(time.time()) + days * _DAY_S if days is not None else 0

"""Who calls, and how a command's errors become words and exit codes."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar

import click

from keypeer.cli import output
from keypeer.cli.exits import Exit, of_status
from keypeer.errors import (
    AnswerError,
    KeypeerClientError,
    ProblemError,
    ServiceUnavailable,
    StateError,
    TpmError,
)
from keypeer.wire.encoding import WireError

if TYPE_CHECKING:
    from keypeer.cli.proposing import ProposingClient

P = ParamSpec("P")
T = TypeVar("T")

PROPOSED = "approval.proposed"  # keypeer.cli.proposing.Proposed, which is loaded only where it is raised
_HOME_HELP = "keypeer's folder: $KEYPEER_HOME, else .keypeer here, else ~/.config/keypeer."
home_option = click.option("--home", type=click.Path(file_okay=False, path_type=Path), default=None, help=_HOME_HELP)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
as_option = click.option(
    "--as", "identity", envvar="KEYPEER_AS", default=None, help="Identity to call as: a folder in HOME/identities."
)


def home_folder(home: Path | None) -> Path:
    """keypeer's folder, chosen or by default."""
    if home is not None:
        return home
    if configured := os.environ.get("KEYPEER_HOME"):
        return Path(configured)
    here = Path(".keypeer")
    return here if here.is_dir() else Path.home() / ".config" / "keypeer"


def client_of(home: Path | None, identity: str) -> ProposingClient:
    """A client that calls as ``identity``. Raises StateError when there is no such identity."""
    from keypeer.cli.proposing import ProposingClient

    place = home_folder(home) / "identities" / identity
    server = place / "server"
    if not server.is_file():
        raise StateError(
            "identity.missing",
            f"there is no identity {identity!r}: {place} doesn't hold one",
            "put cert.pem, key.pem, ca.pem and server (the service's URL) there, or choose another with --as",
        )
    return ProposingClient(server.read_text().strip(), place)


def command(
    role: str,
) -> Callable[[Callable[Concatenate[ProposingClient, P], Awaitable[int | None]]], Callable[..., None]]:
    """Makes a coroutine over a client a click callback with --home, --as and --json. It calls as the identity named
    like ``role`` unless told otherwise; what it returns is the exit code."""

    def decorate(work: Callable[Concatenate[ProposingClient, P], Awaitable[int | None]]) -> Callable[..., None]:
        @home_option
        @as_option
        @json_option
        @functools.wraps(work)
        def run(home: Path | None, identity: str | None, *args: P.args, **kwargs: P.kwargs) -> None:
            async def call() -> int | None:
                async with client_of(home, identity or role) as client:
                    return await work(client, *args, **kwargs)

            run_in_words(call, as_json=bool(kwargs["as_json"]))

        return run

    return decorate


def run_in_words(call: Callable[[], Awaitable[int | None]], *, as_json: bool) -> None:
    """Runs ``call`` on an event loop and exits; errors in words, or as JSON on standard output."""
    try:
        code = asyncio.run(_awaited(call))
    except (KeypeerClientError, WireError) as error:
        fail(error, as_json=as_json)
    except (OSError, UnicodeError) as error:  # of files: what is wrong with the network is told by then
        fail(
            StateError("input.file", str(error), "does the file belong to you, and is it what it should be?"),
            as_json=as_json,
        )
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell tells a Ctrl-C
    sys.exit(code or Exit.DONE)


async def _awaited(call: Callable[[], Awaitable[int | None]]) -> int | None:
    return await call()


def fail(error: KeypeerClientError | WireError, *, as_json: bool, err: bool = False) -> NoReturn:
    """Tells ``error`` and exits with its code. ``err``: standard output is for data."""
    found = _document(error)
    if as_json:
        output.as_json(found, err=err)
    else:
        told = click.style("proposed", fg="yellow") if found["code"] == PROPOSED else click.style("error", fg="red")
        output.say(f"{told}: {found['code']}: {found['detail']}")
        if found["hint"]:
            output.say(f"hint: {found['hint']}")
        if isinstance(error, ProblemError):
            output.reasons(error.reasons, err=True)
    sys.exit(exit_code(error))


def _document(error: KeypeerClientError | WireError) -> dict[str, Any]:
    if isinstance(error, WireError):
        return {"code": "input.invalid", "detail": str(error), "hint": ""}
    found: dict[str, Any] = {"code": error.code, "detail": error.detail, "hint": error.hint}
    if error.code == PROPOSED:
        found["proposal"] = getattr(error, "view", None)
    if isinstance(error, ProblemError):
        found |= {"status": error.status, "reasons": error.reasons}
    return found


def exit_code(error: KeypeerClientError | WireError) -> int:
    """The exit code that tells ``error``."""
    if isinstance(error, ProblemError):
        return of_status(error.status)
    if isinstance(error, KeypeerClientError) and error.code == PROPOSED:
        return Exit.PROPOSED
    if isinstance(error, TpmError):
        return Exit.REFUSED if error.code == "tpm.policy" else Exit.UNAVAILABLE
    if isinstance(error, ServiceUnavailable):
        return Exit.UNAVAILABLE
    return Exit.FORGED if isinstance(error, AnswerError) else Exit.BAD_INPUT

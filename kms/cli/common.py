"""What the service's commands share: the home option, exit codes, errors in words."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from kms.errors import BadRequest, KeypeerError, Refused
from kms.settings import default_folder

P = ParamSpec("P")
T = TypeVar("T")


class Exit(IntEnum):
    """Exit codes, the same for every keypeer command."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    BAD_INPUT = 3
    UNAVAILABLE = 4


home_option = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="The service's folder: $KEYPEER_HOME, else .keypeer here, else /var/lib/keypeer.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


def folder(home: Path | None) -> Path:
    """The service's folder, chosen or by default."""
    return home if home is not None else default_folder()


def say(text: str) -> None:
    """A line for people, on standard error; results go to standard output."""
    click.echo(text, err=True)


def in_words(command: Callable[P, T]) -> Callable[P, T]:
    """Turns a KeypeerError into its words and its exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except KeypeerError as error:
            if kwargs.get("as_json"):
                click.echo(json.dumps({"code": error.code, "detail": error.detail, "hint": error.hint}))
            say(f"error: {error.code}: {error.detail}")
            if error.hint:
                say(f"hint: {error.hint}")
            sys.exit(_exit_code(error))

    return run


def _exit_code(error: KeypeerError) -> Exit:
    if isinstance(error, Refused):
        return Exit.REFUSED
    return Exit.BAD_INPUT if isinstance(error, BadRequest) else Exit.UNAVAILABLE

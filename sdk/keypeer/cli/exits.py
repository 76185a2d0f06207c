"""Exit codes, the same for every command."""

from __future__ import annotations

from enum import IntEnum
from http import HTTPStatus


class Exit(IntEnum):
    """What a script may rely on."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    BAD_INPUT = 3
    UNAVAILABLE = 4
    FORGED = 5
    PROPOSED = 6


EPILOG = """\b
Exit codes:
  0  done, granted
  1  refused: policy, evidence, role
  2  the command line is wrong
  3  bad input, not found, conflict, or a local file
  4  the service, the HSM or the TPM can't be reached, or asks to wait
  5  an answer that the service didn't make
  6  proposed: it waits for other officers
"""


def of_status(status: int) -> Exit:
    """The exit code that tells an HTTP status."""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return Exit.REFUSED
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Exit.UNAVAILABLE
    return Exit.BAD_INPUT if status < HTTPStatus.INTERNAL_SERVER_ERROR else Exit.UNAVAILABLE

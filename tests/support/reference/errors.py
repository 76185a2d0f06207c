"""deploy/reference/errors.md: every code that an error, a reason or a finding can have."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import Final, get_args

from hsm_adapter.errors import RETURN_VALUES
from keypeer.cli.calling import exit_code
from keypeer.cli.exits import EPILOG, of_status
from keypeer.errors import KeypeerClientError
from keypeer.wire.encoding import WireError
from kms.errors import KeypeerError
from kms.evidence import counters
from kms.movers import MOVERS
from kms.quotas import OwnerKind
from kms.web.limiter import LIMITS
from tests.support.reference import COMMAND, head, row
from tests.support.reference.flow import ANOTHERS
from tests.support.reference.raised import CARRIERS, Sink, found

_HEAD = f"""\
# Errors

Every stable code, by prefix; made by `{COMMAND}` from the calls that make them. A code never changes its
meaning. Words may change, and those in braces are put in.

- **status**: of the problem document (RFC 9457) that the service answers with. *reason*: one failed check of a
  decision, in a problem's `reasons`; where an act on a VM key or a migration is refused, the first reason's id may be
  the problem's code as well, with 409. *check*: of `keypeer doctor` and `/readyz`, and 503 where a PostgreSQL server
  isn't taken because of it. *client*: made by a command, an agent or the SDK itself; no status.
- **exit**: of a command that meets it. What the service says tells by its status: 401 and 403 are 1, 429 and 5xx 4,
  others 3.

```
{EPILOG.removeprefix(chr(8) + chr(10)).strip()}
```
"""
CODE: Final = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_-]+)*")
# Codes that are put together: what may stand in braces.
PARTS: Final[dict[str, Iterable[str]]] = {
    "boot.pcr.{pcr}": ("N",),
    "boot.separator.{pcr}": ("N",),
    "boot.unexplained.{…}": ("N",),
    "boot.unproven.{…}": ("N",),
    "pcr.{index}": ("N",),
    "platform.drtm.pcr{pcr}": ("N",),
    "counters.{event}": counters._REASONS,
    "quota.{kind}": get_args(OwnerKind),
    "rate.{rate}": LIMITS,
    "key.records.{…}": sorted({each.prefix.decode().strip("/") for movers in MOVERS.values() for each in movers}),
}
# Functions that have a code from outside our errors, and what it can be.
FROM_OUTSIDE: Final = {"kms.cli.adapter.run_adapter": "the words of an HsmError of hsm_adapter's own commands"}
# Codes that aren't made by a call.
_WRITTEN_DOWN: Final = (
    Sink(
        "keypeer.wire.encoding.WireError", ("input.invalid",), ("{where} {problem}",), (), (), "", "keypeer.cli.calling"
    ),
)
_HSM: Final = "hsm_adapter."
_DIFFERENCE: Final = "kms.evidence.boot.difference.Difference"
_OF_DIFFERENCES: Final = "kms.evidence.baselines._differences"


@dataclass(slots=True)
class Row:
    """What is told of one code."""

    statuses: dict[str, None] = field(default_factory=dict)
    exits: dict[str, None] = field(default_factory=dict)
    words: dict[str, None] = field(default_factory=dict)
    hints: dict[str, None] = field(default_factory=dict)


def text() -> str:
    """The file's text."""
    parts, last = [_HEAD], ""
    for code, told in sorted(rows().items()):
        prefix = code.partition(".")[0]
        if prefix != last:
            parts.append(f"\n## {prefix}\n\n{head('code', 'status', 'exit', 'found', 'mend')}")
            last = prefix
        cells = ("<br>".join(each) for each in (told.statuses, told.exits, told.words, told.hints))
        parts.append(row(f"`{code}`", *cells))
    return "".join(parts)


@cache
def rows() -> dict[str, Row]:
    """What is told, by code."""
    told: dict[str, Row] = {}
    for sink in (*found(), *_WRITTEN_DOWN):
        for code in codes(sink):
            each = told.setdefault(code, Row())
            status, exit_ = _outcome(sink, code)
            each.statuses[status] = None
            each.exits |= {exit_: None} if exit_ else {}
            each.words |= dict.fromkeys(_words(sink))
            each.hints |= dict.fromkeys(filter(_says_something, sink.hint))
    # Boots that differ become reasons at one place, which says how to mend them all.
    mend = [hint for sink in found() if sink.where == _OF_DIFFERENCES and "{.id}" in sink.code for hint in sink.hint]
    for sink in found():
        if sink.made == _DIFFERENCE:
            for code in codes(sink):
                told[code].hints |= dict.fromkeys(mend)
    for name, value in RETURN_VALUES.items():
        told[value.code].words[f"CKR_{name}"] = None
    for event, (asked, hint) in counters._REASONS.items():
        told[f"counters.{event}"].words[f"asked: {asked}"] = None
        told[f"counters.{event}"].hints[hint] = None
    for each in told.values():
        each.words = {words: None for words in each.words if _says_something(words)} or each.words
    return told


def codes(sink: Sink) -> list[str]:
    """The codes that are made there. Raises KeyError for one that nobody has told the parts of."""
    told = []
    for code in sink.code:
        if CODE.fullmatch(code):
            told.append(code)
        elif code not in ANOTHERS and sink.where not in FROM_OUTSIDE:
            told += [re.sub(r"\{[^}]*\}", part, code) for part in PARTS[code]]
    return told


def _outcome(sink: Sink, code: str) -> tuple[str, str]:
    if sink.made in CARRIERS and not sink.made.startswith(_HSM):
        return ("check" if sink.made.endswith(".Finding") else "reason"), ""
    if sink.made.startswith(_HSM):  # kms.custody makes problems of them
        return _told(HTTPStatus.BAD_REQUEST if code == "hsm.bad_request" else HTTPStatus.SERVICE_UNAVAILABLE)
    made = class_of(sink.made)
    if issubclass(made, KeypeerError):
        status = _status(sink.status, made)
        return _told(status) if status else ("4xx", "3 or 4")
    error = made.__new__(made)
    if isinstance(error, KeypeerClientError):
        error.code = code
    assert isinstance(error, KeypeerClientError | WireError)
    return "client", str(int(exit_code(error)))


def _told(status: HTTPStatus) -> tuple[str, str]:
    return str(status.value), str(of_status(status).value)


def _status(told: str, made: type[KeypeerError]) -> HTTPStatus | None:
    """None: that of aiohttp's own error."""
    if not told:
        return made.status
    match ast.parse(told, mode="eval").body:
        case ast.Attribute(value=ast.Name(id="HTTPStatus"), attr=name):
            return HTTPStatus[name]
    return None


def class_of(name: str) -> type:
    """The class of that name."""
    place, _, own = name.rpartition(".")
    found: type = getattr(importlib.import_module(place), own)
    return found


def _words(sink: Sink) -> list[str]:
    found = list(filter(_says_something, sink.detail)) or [*sink.detail[:1]]
    asked = " / ".join(filter(_says_something, sink.asked))
    if not asked:
        return found
    return [f"{each}; asked: {asked}" for each in found if _says_something(each)] or [f"asked: {asked}"]


def _says_something(words: str) -> bool:
    return bool(words) and re.fullmatch(r"\{[^}]*\}", words) is None

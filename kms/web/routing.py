"""What a route is: the one table from which handlers, the role matrix and the OpenAPI document are made."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from keypeer.wire.types import Name
from kms import limits
from kms.domain.staff import Role
from kms.errors import BadRequest
from kms.flows.context import Caller, Context

HOST: frozenset[Role] = frozenset({"host"})
OFFICER: frozenset[Role] = frozenset({"officer"})
OPERATOR: frozenset[Role] = frozenset({"operator"})
AUDITOR: frozenset[Role] = frozenset({"auditor", "officer"})
STAFF: frozenset[Role] = frozenset({"officer", "operator", "auditor"})
HOST_OR_STAFF: frozenset[Role] = STAFF | HOST


@dataclass(frozen=True, slots=True)
class Call:
    """One request, decoded: path and query parameters, body, and who calls (None on routes open to anyone)."""

    ctx: Context
    caller: Caller | None
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    def accepts(self, content_type: str) -> bool:
        """Whether the caller asks for this kind of answer (RFC 9110 §12.5.1)."""
        return content_type in self.headers.get("Accept", "")

    @property
    def who(self) -> Caller:
        """The caller of a route that demands a certificate."""
        if self.caller is None:
            raise AssertionError("a route without roles has no caller")
        return self.caller

    def name(self, parameter: str) -> str:
        """A name from the path or the query; raises BadRequest when it isn't one."""
        value = self.path.get(parameter) or self.query.get(parameter)
        try:
            return msgspec.convert(value, Name)
        except msgspec.ValidationError as error:
            raise BadRequest("request.invalid", f"{parameter}: {error}", hint="see /openapi.json") from None

    def optional_name(self, parameter: str) -> str:
        """A name from the query, "" when there is none."""
        return self.name(parameter) if self.query.get(parameter) else ""

    def page(self) -> tuple[str, int]:
        """The page asked for: (after, limit)."""
        return self.query.get("after", ""), self.number("limit", limits.PAGE_DEFAULT, 1, limits.PAGE_MAX)

    def nonce(self) -> str:
        """A relying party's nonce from the query, "" when there is none (RFC 9711 §4.1: 8 to 88 characters)."""
        text = self.query.get("nonce", "")
        if text and not (8 <= len(text) <= 88 and text.isascii() and text.isprintable()):
            raise BadRequest("request.invalid", "nonce isn't 8 to 88 printable characters", hint="RFC 9711 §4.1")
        return text

    def number(self, parameter: str, default: int, least: int, most: int) -> int:
        """A whole number from the query."""
        text = self.query.get(parameter)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 18 and least <= int(text) <= most):
            raise BadRequest(
                "request.invalid", f"{parameter} is {text!r}", hint=f"a whole number from {least} to {most}"
            )
        return int(text)


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Raw:
    """An answer that isn't JSON. ``cache`` is its Cache-Control."""

    body: bytes
    cache: str = "no-store"


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that goes on, as bytes ready to send, and its content type."""

    frames: AsyncGenerator[bytes, None]
    content_type: str


@dataclass(frozen=True, slots=True)
class Route:
    """``roles`` None: no client certificate needed. ``query`` names the query parameters with a description each.
    ``raw`` is the content type of answers that are Raw; ``rest`` names the path parameter that may hold slashes.
    ``act`` names an officers' act: it needs as many officers as the approval rules say for it (DESIGN §10).
    ``rate`` names the limit that it counts against (kms/web/limiter.py), ``cost`` for how many a body counts.
    ``streams`` is the content type of the Stream that who accepts it gets, ``line`` what each line of it is, if it has
    lines. ``cut_off`` answers instead at a site that can't reach the store's primary. ``while_rolled_back``: it may
    change a database that was put back (kms.rollback)."""

    method: str
    path: str
    summary: str
    roles: frozenset[Role] | None
    call: Handler
    request: type | None = None
    answer: type | None = None
    status: int = 200
    query: Mapping[str, str] | None = None
    body_max: int = limits.BODY_BYTES_MAX
    act: str = ""
    while_rolled_back: bool = False
    rate: str = "calls"
    cost: Callable[[Any], int] | None = None
    raw: str = ""
    rest: str = ""
    streams: str = ""
    line: type | None = None
    cut_off: Handler | None = None


PAGE_QUERY = {
    "after": "the last name of the page before",
    "limit": f"items a page, 1 to {limits.PAGE_MAX}; {limits.PAGE_DEFAULT} unless told",
}

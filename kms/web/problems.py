"""Errors as RFC 9457 problem documents."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from keypeer.wire.encoding import WireError
from kms.errors import BadRequest

CONTENT_TYPE = "application/problem+json"


def from_decoding(error: msgspec.DecodeError) -> BadRequest:
    """A body that isn't JSON (400) or isn't the message that the route takes (422)."""
    if isinstance(error, msgspec.ValidationError):
        return BadRequest(
            "request.invalid",
            f"the body isn't what this call takes: {error}",
            hint="see /openapi.json",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
        )
    return BadRequest("request.not_json", f"the body isn't JSON: {error}", hint="send a JSON document in UTF-8")


def from_wire(error: WireError) -> BadRequest:
    """A field whose bytes aren't what they should be."""
    return BadRequest(
        "request.invalid",
        f"{error.where} {error.problem}",
        hint="see /openapi.json",
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
    )

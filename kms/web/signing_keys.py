"""The signing keys' versions."""

from __future__ import annotations

from keypeer.wire.messages import RetireVersion, SigningKeyPage, SigningKeyView
from kms.domain.service_keys import SigningName
from kms.errors import BadRequest, NotFound
from kms.flows import signing_keys
from kms.signing_keys import ROTATED
from kms.web.routing import OFFICER, STAFF, Call, Route

_VERSION_DIGITS = 7  # hsm_adapter.limits.KEY_VERSION_MAX has as many


async def _keys(call: Call) -> SigningKeyPage:
    return await signing_keys.keys(call.ctx)


async def _show(call: Call) -> SigningKeyView:
    return await signing_keys.show(call.ctx, _name(call))


async def _rotate(call: Call) -> SigningKeyView:
    return await signing_keys.rotate(call.ctx, call.who, _name(call))


async def _retire(call: Call) -> SigningKeyView:
    return await signing_keys.retire(call.ctx, call.who, _name(call), _version(call), call.body)


async def _destroy(call: Call) -> SigningKeyView:
    return await signing_keys.destroy(call.ctx, call.who, _name(call), _version(call))


def _name(call: Call) -> SigningName:
    name = call.name("key")
    if name not in ROTATED:
        raise NotFound("key.unknown", f"there is no signing key {name}", hint=f"one of {', '.join(ROTATED)}")
    return name


def _version(call: Call) -> int:
    text = call.path["version"]
    if not (text.isascii() and text.isdigit() and len(text) <= _VERSION_DIGITS):
        raise BadRequest("request.invalid", f"version is {text!r}", hint="a whole number from 1 on")
    return int(text)


_KEY = "/v1/signing-keys/{key}"
_VERSION = f"{_KEY}/versions/{{version}}"

ROUTES = (
    Route("GET", "/v1/signing-keys", "The signing keys and their versions", STAFF, _keys, answer=SigningKeyPage),
    Route("GET", _KEY, "One signing key", STAFF, _show, answer=SigningKeyView),
    Route("POST", f"{_KEY}/rotation", "Make a new version", OFFICER, _rotate, answer=SigningKeyView, act="keys.rotate"),
    Route(
        "POST",
        f"{_VERSION}/retirement",
        "Let an old version verify nothing any more",
        OFFICER,
        _retire,
        RetireVersion,
        SigningKeyView,
        act="keys.retire",
    ),
    Route("DELETE", _VERSION, "Destroy an old version", OFFICER, _destroy, answer=SigningKeyView, act="keys.destroy"),
)

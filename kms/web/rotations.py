"""The HSM's long-lived keys: their versions, rotation, destruction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from keypeer.wire.messages import DestroyedVersion, KeyPage, RotationView
from kms.domain.service_keys import RotatedKey
from kms.errors import BadRequest
from kms.flows import key_destructions, rotations
from kms.movers import MOVERS
from kms.web.routing import OFFICER, STAFF, Call, Route

_VERSION_MAX = 2**31 - 1  # hsm_adapter.limits.KEY_VERSION_MAX


async def _keys(call: Call) -> KeyPage:
    return await rotations.keys(call.ctx)


def _routes(key: RotatedKey) -> tuple[Route, ...]:
    """Each key has paths of its own, so that each of its acts can ask for other officers."""
    path = f"/v1/keys/{key}/rotation"
    noun = "kek" if key == "kek" else "keys"

    def call(flow: Callable[..., Awaitable[RotationView]]) -> Callable[[Call], Awaitable[Any]]:
        async def run(request: Call) -> RotationView:
            return await flow(request.ctx, request.who, key)

        return run

    async def show(request: Call) -> RotationView:
        return await rotations.show(request.ctx, key)

    async def destroy(request: Call) -> DestroyedVersion:
        text = request.path["version"]
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= _VERSION_MAX):
            raise BadRequest("request.invalid", f"version is {text!r}", hint="a whole number from 1 on")
        return await key_destructions.destroy(request.ctx, request.who, key, int(text))

    return (
        Route("POST", path, f"Rotate {key}", OFFICER, call(rotations.start), answer=RotationView, act=f"{noun}.rotate"),
        Route("GET", path, f"The last rotation of {key}", STAFF, show, answer=RotationView),
        Route(
            "POST", f"{path}/pause", f"Pause the rotation of {key}", OFFICER, call(rotations.pause), answer=RotationView
        ),
        Route(
            "POST",
            f"{path}/resume",
            f"Let the rotation of {key} go on",
            OFFICER,
            call(rotations.resume),
            answer=RotationView,
        ),
        Route(
            "DELETE",
            f"/v1/keys/{key}/versions/{{version}}",
            f"Destroy an old version of {key}",
            OFFICER,
            destroy,
            answer=DestroyedVersion,
            act=f"{noun}.destroy",
        ),
    )


ROUTES = (
    Route("GET", "/v1/key-versions", "The HSM's keys and their versions", STAFF, _keys, answer=KeyPage),
    *(route for key in MOVERS for route in _routes(key)),
)

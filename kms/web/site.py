"""A node at a site of its own, while the primary of its store can't be reached (kms.flows.site)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from kms import limits
from kms.errors import Unavailable
from kms.flows.context import Context
from kms.flows.site import refuse_cut_off
from kms.web.routing import Handler, Route

# What the store says when no primary can be reached; and nothing was changed then.
_CUT_OFF = frozenset({"store.unavailable", "store.primary"})


class Site:
    """One web worker's. ``ctx`` has a ``site``."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._until = 0.0  # CLOCK_MONOTONIC, seconds: until then the standby is asked at once

    async def answer(self, route: Route, respond: Callable[[Context, Handler], Awaitable[Any]]) -> Any:
        """The primary's answer, or else what the standby can. To notice a cut takes seconds: who can be answered here
        isn't made to wait for it each time."""
        here = self._ctx.site
        if here is not None and route.cut_off is not None and time.monotonic() < self._until:
            return await respond(here, route.cut_off)
        try:
            return await respond(self._ctx, route.call)
        except Unavailable as error:
            if error.code not in _CUT_OFF or here is None or route.roles is None:
                raise
            if route.cut_off is None:
                raise refuse_cut_off(error) from error
            self._until = time.monotonic() + limits.SITE_LOOK_S
            return await respond(here, route.cut_off)

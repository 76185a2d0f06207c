"""A database that was put back, and its acceptance."""

from __future__ import annotations

from keypeer.wire.messages import AcceptRollback, RollbackView
from kms.flows import rollback
from kms.web.routing import OFFICER, STAFF, Call, Route


async def _show(call: Call) -> RollbackView:
    return await rollback.show(call.ctx)


async def _accept(call: Call) -> RollbackView:
    return await rollback.accept(call.ctx, call.who, call.body)


ROUTES = (
    Route("GET", "/v1/store/rollback", "What the token remembers of the log", STAFF, _show, answer=RollbackView),
    Route(
        "POST",
        "/v1/store/accept-rollback",
        "Take a database that was put back as it is",
        OFFICER,
        _accept,
        AcceptRollback,
        RollbackView,
        act="store.accept-rollback",
        while_rolled_back=True,
    ),
)

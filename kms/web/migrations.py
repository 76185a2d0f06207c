"""Live migrations of VMs."""

from __future__ import annotations

from http import HTTPStatus

from keypeer.wire.messages import (
    AbortMigration,
    AcceptedMigration,
    AcceptMigration,
    BeginMigration,
    MigrationPage,
    MigrationView,
    SwitchOver,
)
from kms.domain.staff import Role
from kms.flows import migrations
from kms.web.routing import HOST, HOST_OR_STAFF, PAGE_QUERY, STAFF, Call, Route

_HOST_OR_OPERATOR: frozenset[Role] = frozenset({"host", "operator"})
_ONE = "/v1/vms/{vm}/migrations/{migration}"


async def _begin(call: Call) -> MigrationView:
    return await migrations.begin(call.ctx, call.who, call.name("vm"), call.body)


async def _accept(call: Call) -> AcceptedMigration:
    return await migrations.accept(call.ctx, call.who, call.name("vm"), call.name("migration"), call.body)


async def _switch_over(call: Call) -> MigrationView:
    return await migrations.switch_over(call.ctx, call.who, call.name("vm"), call.name("migration"), call.body)


async def _leave(call: Call) -> MigrationView:
    return await migrations.leave(call.ctx, call.who, call.name("vm"), call.name("migration"))


async def _complete(call: Call) -> MigrationView:
    return await migrations.complete(call.ctx, call.who, call.name("vm"), call.name("migration"))


async def _abort(call: Call) -> MigrationView:
    return await migrations.abort(call.ctx, call.who, call.name("vm"), call.name("migration"), call.body)


async def _show(call: Call) -> MigrationView:
    return await migrations.show(call.ctx, call.who, call.name("vm"))


async def _page(call: Call) -> MigrationPage:
    return await migrations.page(call.ctx, *call.page())


ROUTES = (
    Route(
        "POST",
        "/v1/vms/{vm}/migrations",
        "Begin a VM's migration",
        _HOST_OR_OPERATOR,
        _begin,
        BeginMigration,
        MigrationView,
        HTTPStatus.CREATED,
    ),
    Route("POST", f"{_ONE}/accept", "Get the key", HOST, _accept, AcceptMigration, AcceptedMigration),
    Route("POST", f"{_ONE}/switchover", "Change the owner", HOST, _switch_over, SwitchOver, MigrationView),
    Route("POST", f"{_ONE}/leave", "Say that the source's copy runs no more", HOST, _leave, answer=MigrationView),
    Route("POST", f"{_ONE}/complete", "Say that the VM runs there", HOST, _complete, answer=MigrationView),
    Route("POST", f"{_ONE}/abort", "Leave the VM there", _HOST_OR_OPERATOR, _abort, AbortMigration, MigrationView),
    Route("GET", "/v1/vms/{vm}/migration", "A VM's last migration", HOST_OR_STAFF, _show, answer=MigrationView),
    Route("GET", "/v1/migrations", "Last migrations", STAFF, _page, answer=MigrationPage, query=PAGE_QUERY),
)

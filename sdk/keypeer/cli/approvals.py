"""`keypeer approvals`: how many officers each act needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.wire.messages import ApprovalsView

if TYPE_CHECKING:
    from keypeer.cli.proposing import ProposingClient


class _Rule(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    name = "ACT=N"

    def convert(
        self, value: str | tuple[str, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        act, _, count = value.partition("=")
        if not act or not (count.isascii() and count.isdigit() and 1 <= int(count[:4]) <= 64):
            self.fail(f"{value!r} isn't an act and a count, such as kek.rotate=2", param, ctx)
        return act, int(count)


@click.group()
def approvals() -> None:
    """How many officers each act needs."""


@approvals.command("list")
@command("auditor")
async def list_rules(client: ProposingClient, as_json: bool) -> None:
    """Every act and how many officers it needs."""
    _tell(await client.approval_rules(), as_json)


@approvals.command("set")
@click.argument("rules", nargs=-1, required=True, type=_Rule())
@command("officer")
async def set_rules(client: ProposingClient, rules: tuple[tuple[str, int], ...], as_json: bool) -> None:
    """Set how many officers acts need: kek.rotate=2 kek.destroy=2. Needs as many officers as any act does."""
    _tell(await client.set_approvals(dict(rules)), as_json)


def _tell(view: ApprovalsView, as_json: bool) -> None:
    if as_json:
        output.as_json(view)
        return
    output.table("approvals", ("act", "officers"), [(act, str(count)) for act, count in view.needs.items()])
    output.say(f"{view.officers} officers can approve")

"""Options that several `keypeer vm` commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
LabelPairs = tuple[tuple[str, str], ...]


class _Label(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """NAME=VALUE."""

    name = "name=value"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not (name and equals and text):
            self.fail(f"{value!r} is no label: write NAME=VALUE", param, ctx)
        return name, text


tenant_option = click.option("--tenant", default=None, help="The owner.")
policy_option = click.option("--policy", default=None, help="Those under this policy.")
prefix_option = click.option("--prefix", default=None, help="Those whose name begins so.")
label_option = click.option("--label", "labels", type=_Label(), multiple=True, help="NAME=VALUE; may be repeated.")
why_option = click.option("--why", default="", help="For the audit log.")


def filter_options(command: F) -> F:
    """--tenant, --policy, --label, --prefix."""
    for option in (prefix_option, label_option, policy_option, tenant_option):
        command = option(command)
    return command


def labels_of(pairs: LabelPairs) -> dict[str, str]:
    """The labels given. Raises UsageError for one that is given twice."""
    labels = dict(pairs)
    if len(labels) != len(pairs):
        raise click.UsageError("a label is given twice")
    return labels

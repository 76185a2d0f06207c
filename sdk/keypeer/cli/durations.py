"""Durations on the command line."""

from __future__ import annotations

import re

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}  # seconds


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A whole number and s, m, h or d; becomes seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", str(value))
        if match is None:
            self.fail(f"{value!r} is no duration: write a whole number and s, m, h or d, like 180d", param, ctx)
        return int(match[1]) * _UNITS[match[2]]

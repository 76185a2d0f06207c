"""Which strings an expression may be: literals, what functions hand on as arguments, constants, tables.

A value is a tuple of alternatives. In one, a NUL-quoted name stands for an argument of the function, which whoever
calls it knows; what nobody knows is written {name}, or {…} when it has none.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tests.support.reference.code import Function, Module, modules, original
from tests.support.reference.reaching import Given

UNKNOWN = "{…}"
ANOTHERS = ("{.code}", "{.id}")  # what another error, reason or finding has: told where that one is made
ALTERNATIVES_MAX = 64
PARAMETER = re.compile("\0([^\0]+)\0")
Values = tuple[str, ...]


@dataclass(slots=True)
class Scope:
    """Where an expression stands: the function, its parameters, and what its names were given."""

    module: Module
    function: Function | None = None
    given: Given = field(default_factory=dict)
    bound: dict[str, Values] = field(default_factory=dict)
    following: frozenset[str] = frozenset()

    def parameters(self) -> set[str]:
        """The names that callers give values to."""
        if self.function is None:
            return set()
        given = self.function.args
        return {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)}


def values(expression: ast.expr | None, scope: Scope) -> Values:  # noqa: PLR0911 - one case a syntax
    """The strings that ``expression`` may be."""
    match expression:
        case ast.Constant(value=str(text)):
            return (text,)
        case ast.JoinedStr(values=parts):
            return _product([_part(part, scope) for part in parts])
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            both = [values(left, scope), values(right, scope)]
            return (UNKNOWN,) if both == [(UNKNOWN,), (UNKNOWN,)] else _product(both)
        case ast.IfExp(body=left, orelse=right):
            return _distinct(values(left, scope) + values(right, scope))
        case ast.BoolOp(values=parts):
            return _distinct(tuple(each for part in parts for each in values(part, scope)))
        case ast.Name(id=name):
            return _named(name, scope)
        case ast.Attribute() if constant := _constant(scope.module.qualified(expression)):
            return values(constant[1], constant[0])
        case ast.Attribute(attr="code" | "id"):
            return (f"{{.{expression.attr}}}",)
        case ast.Attribute(attr=name):
            return (f"{{{name}}}",)
        case ast.Subscript(value=table) if (found := _table(table, scope)) is not None:
            return _distinct(tuple(each for value in found for each in values(value, scope)))
        case ast.Call(func=ast.Attribute(value=table, attr="get"), args=[_, other]) if (
            found := _table(table, scope)
        ) is not None:
            return _distinct(tuple(each for value in (*found, other) for each in values(value, scope)))
    return (UNKNOWN,)


def frames(scope: Scope) -> Iterator[Scope]:
    """``scope`` once for each row of a table that the function takes several names from at once."""
    for node in ast.walk(scope.function) if scope.function else ():
        match node:
            case ast.Assign(
                targets=[ast.Tuple(elts=names)],
                value=ast.Call(func=ast.Attribute(value=table, attr="get"), args=[_, other]),
            ):
                rows = [*(_table(table, scope) or ()), other]
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Subscript(value=table)):
                rows = _table(table, scope) or []
            case ast.For(target=ast.Tuple(elts=names), iter=ast.Tuple(elts=rows) | ast.List(elts=rows)):
                pass
            case _:
                continue
        if rows and all(isinstance(row, ast.Tuple) and len(row.elts) == len(names) for row in rows):
            for row in rows:
                bound = {ast.unparse(n): values(v, scope) for n, v in zip(names, row.elts, strict=True)}
                yield replace(scope, bound=scope.bound | bound)
            return
    yield scope


def substituted(texts: Values, arguments: Mapping[str, Values]) -> Values:
    """``texts`` with the arguments that a call gives."""
    found: list[str] = []
    for text in texts:
        pieces = PARAMETER.split(text)
        found += _product([arguments.get(p, (f"{{{p}}}",)) if i % 2 else (p,) for i, p in enumerate(pieces)])
    return _distinct(tuple(found))


def shown(text: str) -> str:
    """``text`` for people: what is put in stands in braces."""
    return PARAMETER.sub(r"{\1}", text).replace("{.", "{")


def _part(part: ast.expr, scope: Scope) -> Values:
    if isinstance(part, ast.FormattedValue):
        return values(part.value, scope)
    return values(part, scope)


def _named(name: str, scope: Scope) -> Values:
    if name in scope.bound:
        return scope.bound[name]
    assigned = () if name in scope.following else scope.given.get(name, ())
    if assigned:
        inner = replace(scope, following=scope.following | {name})
        return _distinct(tuple(each for value in assigned for each in values(value, inner)))
    if name in scope.parameters():
        return (f"\0{name}\0",)
    if constant := _constant(scope.module.names.get(name, "")):
        return values(constant[1], constant[0])
    return (f"{{{name}}}",)


def _constant(name: str) -> tuple[Scope, ast.expr] | None:
    place, _, own = original(name).rpartition(".")
    module = modules().get(place)
    if module is None or own not in module.constants:
        return None
    return Scope(module), module.constants[own]


def _table(expression: ast.expr, scope: Scope) -> list[ast.expr] | None:
    """The values of a dictionary that is written down: here, in this function, or as a constant."""
    if isinstance(expression, ast.Dict):
        return expression.values
    if isinstance(expression, ast.Name):
        for value in scope.given.get(expression.id, ()):
            if isinstance(value, ast.Dict):
                return value.values
    constant = _constant(scope.module.qualified(expression))
    if constant is not None and isinstance(constant[1], ast.Dict):
        return constant[1].values
    return None


def _product(parts: list[Values]) -> Values:
    found: Values = ("",)
    for part in parts:
        found = tuple(left + right for left in found for right in part)
        if len(found) > ALTERNATIVES_MAX:
            return (UNKNOWN,)
    return _distinct(found)


def _distinct(texts: Values) -> Values:
    return tuple(dict.fromkeys(texts))

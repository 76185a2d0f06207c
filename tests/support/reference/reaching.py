"""Each call of a function with what its names were given where it stands (reaching definitions)."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from tests.support.reference.code import Function

Given = Mapping[str, tuple[ast.expr, ...]]
_ENDS = ast.Return | ast.Raise | ast.Continue | ast.Break
_COMPREHENSION = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp


def calls(function: Function) -> list[tuple[ast.Call, Given]]:
    """All calls in ``function``, nested functions too."""
    found: list[tuple[ast.Call, Given]] = []
    _block(function.body, {}, found)
    return found


def _block(body: list[ast.stmt], given: Given, found: list[tuple[ast.Call, Given]]) -> Given | None:
    """What names have at the block's end; None when it isn't left there."""
    now: Given | None = given
    for statement in body:
        now = _statement(statement, now or given, found)
    return now


def _statement(statement: ast.stmt, given: Given, found: list[tuple[ast.Call, Given]]) -> Given | None:
    blocks = list(_blocks(statement))
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.expr | ast.withitem | ast.keyword | ast.arguments):
            found += _within(child, given)
    given = {**given, **_assigned(statement)}
    if isinstance(statement, ast.Try):
        return _try(statement, given, found)
    if blocks:
        ends = [_block(block, given, found) for block in blocks]
        whole = isinstance(statement, ast.With | ast.AsyncWith) or (isinstance(statement, ast.If) and statement.orelse)
        return _merged([*ends, *([] if whole else [given])])
    return None if isinstance(statement, _ENDS) else given


def _try(statement: ast.Try, given: Given, found: list[tuple[ast.Call, Given]]) -> Given | None:
    body = _block(statement.body, given, found)
    ends = [_block(handler.body, given, found) for handler in statement.handlers]
    ends.append(_block(statement.orelse, body, found) if body is not None else None)
    merged = _merged(ends)
    after = _block(statement.finalbody, merged or given, found)
    return None if merged is None else after


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse"):
        block = getattr(statement, name, None)
        if isinstance(block, list) and block:
            yield block
    if isinstance(statement, ast.Match):
        yield from (case.body for case in statement.cases)


def _merged(ends: list[Given | None]) -> Given | None:
    open_ends = [each for each in ends if each is not None]
    if not open_ends:
        return None
    names = dict.fromkeys(name for each in open_ends for name in each)
    return {name: tuple(dict.fromkeys(value for each in open_ends for value in each.get(name, ()))) for name in names}


def _within(node: ast.AST, given: Given) -> Iterator[tuple[ast.Call, Given]]:
    """Calls in an expression; a comprehension has names of its own."""
    if isinstance(node, _COMPREHENSION):
        for each in node.generators:
            given = {**given, **_taken(each.target, each.iter)}
    if isinstance(node, ast.Call):
        yield node, given
    for child in ast.iter_child_nodes(node):
        yield from _within(child, given)


def _assigned(statement: ast.stmt) -> Given:
    found: dict[str, tuple[ast.expr, ...]] = {}
    for node in () if isinstance(statement, Function | ast.ClassDef) else _headers(statement):
        if isinstance(node, ast.NamedExpr) and isinstance(node.target, ast.Name):
            found[node.target.id] = (node.value,)
    match statement:
        case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=ast.expr() as value):
            found |= _unpacked(target, value)
        case ast.For(target=target, iter=rows) | ast.AsyncFor(target=target, iter=rows):
            found |= _taken(target, rows)
        case ast.FunctionDef(args=given) | ast.AsyncFunctionDef(args=given):
            found |= {each.arg: _nothing(each.arg) for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
    return found


def _headers(statement: ast.stmt) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.expr):
            yield from ast.walk(child)


def _unpacked(target: ast.expr, value: ast.expr) -> dict[str, tuple[ast.expr, ...]]:
    match target, value:
        case ast.Name(id=name), _:
            return {name: (value,)}
        case _, ast.IfExp(body=left, orelse=right):
            one, other = _unpacked(target, left), _unpacked(target, right)
            return {name: one.get(name, ()) + other.get(name, ()) for name in one | other}
        case ast.Tuple(elts=names), ast.Tuple(elts=given) if len(names) == len(given):
            return {each.id: (of,) for each, of in zip(names, given, strict=True) if isinstance(each, ast.Name)}
    return _unknown(target)


def _taken(target: ast.expr, rows: ast.expr) -> dict[str, tuple[ast.expr, ...]]:
    """What a loop gives to its names."""
    if isinstance(target, ast.Name) and isinstance(rows, ast.Tuple | ast.List):
        return {target.id: tuple(rows.elts)}
    return _unknown(target)


def _unknown(target: ast.expr) -> dict[str, tuple[ast.expr, ...]]:
    return {each.id: _nothing(each.id) for each in ast.walk(target) if isinstance(each, ast.Name)}


def _nothing(name: str) -> tuple[ast.expr, ...]:
    return (ast.Constant(f"{{{name}}}"),)

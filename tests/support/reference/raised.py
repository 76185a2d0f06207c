"""Every error code and reason id that the packages can make, by where it is made.

A code is what is given as ``code`` or ``id`` to an error class, or to a class that carries one until an error is made
of it. A function that hands its argument on as a code is asked for wherever it is called.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from tests.support.reference.code import Class, Function, Module, classes, functions, lineage, modules, original
from tests.support.reference.flow import PARAMETER, Scope, Values, frames, shown, substituted, values
from tests.support.reference.reaching import calls

ERRORS = {"kms.errors.KeypeerError", "keypeer.errors.KeypeerClientError", "hsm_adapter.errors.HsmError"}
# They carry a code; an error, a reason or a finding is made of it elsewhere.
CARRIERS = {
    "kms.errors.Reason": ("id", "found", "asked", "mend"),
    "kms.store.port.Finding": ("id", "found", "", "mend"),
    "kms.evidence.boot.difference.Difference": ("id", "sentence", "", ""),
    "hsm_adapter.errors.ReturnValue": ("code", "", "", ""),
}
_ERROR_FIELDS = ("code", "detail", "", "hint")


@dataclass(frozen=True, slots=True)
class Sink:
    """A code that is made: of which class, in which words, with which status; in ``where``, a function."""

    made: str
    code: Values
    detail: Values
    asked: Values
    hint: Values
    status: str
    where: str


@dataclass(frozen=True, slots=True)
class Callee:
    """A function that makes codes of its arguments."""

    function: Function
    is_method: bool
    sinks: tuple[Sink, ...]


def is_error(name: str) -> bool:
    """Whether ``name`` is an error class with a code."""
    return any(each.name in ERRORS for each in lineage(name))


@cache
def found() -> tuple[Sink, ...]:
    """All of them; a function's argument has been followed to those who give it."""
    makers: dict[str, Callee] = {}
    sinks: dict[Sink, None] = {}
    places = [_place(module, *each) for module in modules().values() for each in functions(module)]
    while True:
        before = len(sinks), sum(len(each.sinks) for each in makers.values())
        by_method: dict[str, list[Callee]] = {}
        for name, callee in makers.items():
            if callee.is_method:
                by_method.setdefault(name.rpartition(".")[2], []).append(callee)
        for name, function, own, there in places:
            made = dict.fromkeys(
                each for call, scope in there for each in _call(call, scope, name, own, makers, by_method)
            )
            sinks |= {each: None for each in made if not all(map(PARAMETER.search, each.code))}
            handed_on = tuple(each for each in made if any(map(PARAMETER.search, each.code)))
            if handed_on:
                makers[name] = Callee(function, own is not None, handed_on)
        if before == (len(sinks), sum(len(each.sinks) for each in makers.values())):
            return tuple(_settled(sinks))


def _settled(sinks: dict[Sink, None]) -> Iterator[Sink]:
    for each in sinks:
        yield Sink(
            each.made,
            tuple(code for code in each.code if not PARAMETER.search(code)),
            tuple(map(shown, each.detail)),
            tuple(map(shown, each.asked)),
            tuple(map(shown, each.hint)),
            each.status,
            each.where,
        )


def _place(
    module: Module, name: str, function: Function, own: Class | None
) -> tuple[str, Function, Class | None, list[tuple[ast.Call, Scope]]]:
    found = calls(function)
    rows = list(frames(Scope(module, function))) if found else []
    return name, function, own, [(call, replace(row, given=given)) for row in rows for call, given in found]


def _call(
    node: ast.Call,
    scope: Scope,
    where: str,
    own: Class | None,
    makers: dict[str, Callee],
    by_method: dict[str, list[Callee]],
) -> Iterator[Sink]:
    called = original(scope.module.qualified(node.func))
    match node.func:
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="__init__") if own is not None:
            # What the class' own errors are; the base's words.
            for base in own.bases:
                yield from _constructed(base, own.name, node, scope, where, makers)
            return
        case ast.Attribute(attr=method) if called.rpartition(".")[0] not in modules() and called not in classes():
            for callee in by_method.get(method, ()):
                yield from _through(callee, node, scope, where)
            return
    if called in classes():
        yield from _constructed(called, called, node, scope, where, makers)
    elif called in makers:
        yield from _through(makers[called], node, scope, where)


def _constructed(
    asked: str, made: str, node: ast.Call, scope: Scope, where: str, makers: dict[str, Callee]
) -> Iterator[Sink]:
    if asked in CARRIERS:
        arguments = _arguments(node, list(classes()[asked].fields), {}, scope)
        if arguments is not None:
            yield _sink(made, [arguments.get(each, ()) for each in CARRIERS[asked]], "", where)
        return
    if not is_error(asked):
        return
    maker = next((each for each in lineage(asked) if "__init__" in each.methods), None)
    assert maker is not None
    if maker.name in ERRORS:
        init = maker.methods["__init__"]
        arguments = _arguments(node, _names(init, is_method=True), _defaults(init, scope), scope)
        if arguments is not None:
            status = next((ast.unparse(each.value) for each in node.keywords if each.arg == "status"), "")
            yield _sink(made, [arguments.get(each, ()) for each in _ERROR_FIELDS], status, where)
    elif f"{maker.name}.__init__" in makers:
        for each in _through(makers[f"{maker.name}.__init__"], node, scope, where):
            status = each.status if each.status != "status" else ""
            yield Sink(made, each.code, each.detail, each.asked, each.hint, status, where)


def _sink(made: str, texts: list[Values], status: str, where: str) -> Sink:
    code, detail, asked, hint = texts
    return Sink(made, code, detail, asked, hint, status, where)


def _through(callee: Callee, node: ast.Call, scope: Scope, where: str) -> Iterator[Sink]:
    names = _names(callee.function, is_method=callee.is_method)
    module = scope.module
    arguments = _arguments(node, names, _defaults(callee.function, Scope(module)), scope)
    if arguments is None or not _required(callee.function, is_method=callee.is_method) <= arguments.keys():
        return
    for each in callee.sinks:
        code = substituted(tuple(filter(PARAMETER.search, each.code)), arguments)
        status = each.status
        for keyword in node.keywords:
            if keyword.arg and status in {keyword.arg, f"HTTPStatus({keyword.arg})"}:
                status = ast.unparse(keyword.value)
        words = [substituted(texts, arguments) for texts in (each.detail, each.asked, each.hint)]
        yield _sink(each.made, [code, *words], status, where)


def _names(function: Function, *, is_method: bool) -> list[str]:
    given = function.args
    static = any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in function.decorator_list)
    names = [each.arg for each in (*given.posonlyargs, *given.args)]
    return [*names[1 if is_method and not static else 0 :], *(each.arg for each in given.kwonlyargs)]


def _defaults(function: Function, scope: Scope) -> dict[str, Values]:
    given = function.args
    positional = [each.arg for each in (*given.posonlyargs, *given.args)]
    pairs = list(zip(reversed(positional), reversed(given.defaults), strict=False))
    pairs += [(each.arg, value) for each, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value]
    return {name: values(value, scope) for name, value in pairs}


def _required(function: Function, *, is_method: bool) -> set[str]:
    return set(_names(function, is_method=is_method)) - _defaults(function, Scope(modules()["kms.errors"])).keys()


def _arguments(node: ast.Call, names: list[str], defaults: dict[str, Values], scope: Scope) -> dict[str, Values] | None:
    """What a call gives to which name; None when it hands on a sequence that was made elsewhere."""
    if node.args and isinstance(node.args[0], ast.Starred):
        return None
    found, given = dict(defaults), list(zip(names, node.args, strict=False))
    star = next((i for i, each in enumerate(node.args) if isinstance(each, ast.Starred)), None)
    if star is not None:  # what comes after it counts from the end
        after = len(node.args) - star - 1
        given = given[:star] + list(zip(names[len(names) - after :], node.args[star + 1 :], strict=True))
    found |= {name: values(value, scope) for name, value in given}
    return found | {each.arg: values(each.value, scope) for each in node.keywords if each.arg}

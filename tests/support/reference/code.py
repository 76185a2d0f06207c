"""The packages as syntax trees: their modules, what names in them mean, and where a call leads."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from tests.support.reference import ROOT

_PACKAGES = ((ROOT, "kms"), (ROOT, "hsm_adapter"), (ROOT / "sdk", "keypeer"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Class:
    """A class: its qualified name, those of its bases, its fields in order, its methods."""

    name: str
    bases: tuple[str, ...]
    fields: tuple[str, ...]
    methods: dict[str, Function]
    tree: ast.ClassDef


@dataclass(slots=True)
class Module:
    """A module: ``names`` tells what a name at its top means, qualified."""

    name: str
    tree: ast.Module
    names: dict[str, str] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    classes: dict[str, Class] = field(default_factory=dict)

    def qualified(self, expression: ast.expr) -> str:
        """What a name, or a name behind a name, stands for; empty for anything else."""
        match expression:
            case ast.Name(id=name):
                return self.names.get(name, "")
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in self.names:
                return f"{self.names[name]}.{attribute}"
        return ""


@cache
def modules() -> dict[str, Module]:
    """All modules of the packages, by name."""
    found = {}
    for root, package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = _read(name, ast.parse(path.read_text()))
    return found


def _read(name: str, tree: ast.Module) -> Module:
    module = Module(name, tree)
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                module.names |= {each.asname: each.name for each in aliases if each.asname}
            case ast.ImportFrom(module=source, names=aliases):
                module.names |= {each.asname or each.name: f"{source}.{each.name}" for each in aliases}
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=own) | ast.AsyncFunctionDef(name=own):
                module.functions[own] = node
            case ast.ClassDef(name=own):
                pass
            case ast.Assign(targets=[ast.Name(id=own)], value=value):
                module.constants[own] = value
            case ast.AnnAssign(target=ast.Name(id=own), value=ast.expr() as value):
                module.constants[own] = value
            case _:
                continue
        module.names[own] = f"{name}.{own}"
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            module.classes[node.name] = _class(module, node)
    return module


def _class(module: Module, tree: ast.ClassDef) -> Class:
    return Class(
        f"{module.name}.{tree.name}",
        tuple(module.qualified(base) or ast.unparse(base) for base in tree.bases),
        tuple(
            each.target.id
            for each in tree.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        ),
        {each.name: each for each in tree.body if isinstance(each, Function)},
        tree,
    )


@cache
def classes() -> dict[str, Class]:
    """All classes at the top of a module, by qualified name."""
    return {each.name: each for module in modules().values() for each in module.classes.values()}


def lineage(name: str) -> Iterator[Class]:
    """The class and its ancestors that are ours, nearest first."""
    found = classes().get(original(name))
    if found is not None:
        yield found
        for base in found.bases:
            yield from lineage(base)


def original(name: str) -> str:
    """The name under which ``name``, which a module may only hand on, is defined."""
    place, _, own = name.rpartition(".")
    module = modules().get(place)
    if module is None or own in module.classes or own in module.functions or own in module.constants:
        return name
    further = module.names.get(own, name)
    return name if further == name else original(further)


def functions(module: Module) -> Iterator[tuple[str, Function, Class | None]]:
    """Functions and methods of a module with what is nested in them: qualified name, tree, class. What a module does
    when it is imported counts as one."""
    others = [each for each in module.tree.body if not isinstance(each, Function | ast.ClassDef)]
    yield module.name, _at_import(others), None
    for own, function in module.functions.items():
        yield f"{module.name}.{own}", function, None
    for each in module.classes.values():
        for own, function in each.methods.items():
            yield f"{each.name}.{own}", function, each


def _at_import(body: list[ast.stmt]) -> Function:
    empty = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.FunctionDef(name="", args=empty, body=body or [ast.Pass()], decorator_list=[])

"""deploy/reference/settings.md: every setting, from the structs that the files are read into."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import inspect as shapes

from hsm_adapter.settings import Settings as WorkerSettings
from keypeer.agentd.settings import DaemonSettings
from keypeer.state import AgentSettings
from kms.setting_tables import Settings
from tests.support.reference import COMMAND, head, row

_KINDS: Final[dict[type[shapes.Type], str]] = {
    shapes.StrType: "string",
    shapes.IntType: "integer",
    shapes.FloatType: "number",
    shapes.BoolType: "boolean",
}
_HEAD = f"""\
# Settings

Made by `{COMMAND}` from the structs that the files are read into. The files are TOML, and
unknown keys are errors. In keypeer.toml, paths are relative to the file's folder.
"""
ROOTS: Final[dict[str, tuple[type[msgspec.Struct], str]]] = {
    "keypeer.toml": (Settings, "The service's. `kms/setting_tables.py`; `keypeer init` writes one."),
    "agent.toml": (AgentSettings, "A host's agent: which service, which TPM. `sdk/keypeer/state.py`."),
    "agentd.toml": (DaemonSettings, "The agent's daemon, beside agent.toml. `sdk/keypeer/agentd/settings.py`."),
    "The worker's file": (
        WorkerSettings,
        "For an HSM worker that is started by itself (`python -m hsm_adapter --config FILE`); `keypeer serve` makes it "
        "from `[hsm]`. JSON unless it is named `*.toml`. `hsm_adapter/settings.py`.",
    ),
}


@dataclass(frozen=True, slots=True)
class Table:
    """One table: the struct, where it stands, and the instance that has its defaults, if there is one."""

    struct: type[msgspec.Struct]
    path: str = ""
    title: str = ""
    words: tuple[str, ...] = ()
    default: Any = None


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, in words."""

    name: str
    kind: str
    default: str
    unit: str
    bounds: str
    meaning: str
    is_number: bool


def text() -> str:
    """The file's text."""
    return _HEAD + "".join(_file(name, *of) for name, of in ROOTS.items())


def _file(name: str, root: type[msgspec.Struct], words: str) -> str:
    parts = [f"\n## {name}\n\n{words}\n"]
    for table in tables(root):
        told = f"\n### `{table.title}`\n\n{' '.join(filter(None, table.words))}\n" if table.title else ""
        found = settings(table)
        rows = "".join(row(f"`{s.name}`", s.kind, s.default, s.unit, s.bounds, s.meaning) for s in found)
        if rows:
            parts.append(f"{told}\n{head('setting', 'type', 'default', 'unit', 'bounds', 'what it means')}{rows}")
    return "".join(parts)


def tables(root: type[msgspec.Struct]) -> Iterator[Table]:
    """The file's own table, and all tables in it."""
    return _tables(Table(root))


def _tables(table: Table) -> Iterator[Table]:
    yield table
    meanings = documented(table.struct)
    for field in _shape(table.struct).fields:
        inner, form = _table_in(field.type)
        if inner is None:
            continue
        name = f"{table.path}{field.encode_name}"
        title = form.format(name)
        bounds, _ = _limits(field.type)
        words = (_sentence(inner), meanings.get(field.name, ""), *(f"{bound.capitalize()}." for bound in bounds))
        default = None if field.default is msgspec.NODEFAULT or title != f"[{name}]" else field.default
        yield from _tables(Table(inner, f"{title.strip('[]')}.", title, words, default))


def settings(table: Table) -> Iterator[Setting]:
    """The settings that stand in ``table`` itself."""
    meanings = documented(table.struct)
    for field in _shape(table.struct).fields:
        if _table_in(field.type)[0] is not None:
            continue
        standard = field.default if table.default is None else getattr(table.default, field.name)
        bounds, unit = _limits(field.type)
        yield Setting(
            table.path + field.encode_name,
            _kind(field.type),
            _default(standard, field),
            unit,
            "; ".join(bounds),
            meanings[field.name],
            isinstance(_plain(field.type), shapes.IntType | shapes.FloatType),
        )


def documented(table: type[msgspec.Struct]) -> dict[str, str]:
    """What stands under each field: a string, as Sphinx and others read it."""
    body = ast.parse(textwrap.dedent(inspect.getsource(table))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                found[name] = " ".join(words.split())
    return found


def _sentence(table: type[msgspec.Struct]) -> str:
    return " ".join((table.__doc__ or "").replace("``", "`").split())


def _shape(table: type[msgspec.Struct]) -> shapes.StructType:
    shape = shapes.type_info(table)
    assert isinstance(shape, shapes.StructType)
    return shape


def _plain(kind: shapes.Type) -> shapes.Type:
    while isinstance(kind, shapes.Metadata | shapes.UnionType):
        if isinstance(kind, shapes.Metadata):
            kind = kind.type
        else:
            (kind,) = (each for each in kind.types if not isinstance(each, shapes.NoneType))
    return kind


def _table_in(kind: shapes.Type) -> tuple[type[msgspec.Struct] | None, str]:
    """The struct in a field, and how its title is written: a table, an array of tables, or tables by name."""
    match _plain(kind):
        case shapes.StructType(cls=cls):
            return cls, "[{}]"
        case shapes.VarTupleType(item_type=item) if isinstance(_plain(item), shapes.StructType):
            return _table_in(item)[0], "[[{}]]"
        case shapes.DictType(value_type=value) if isinstance(_plain(value), shapes.StructType):
            return _table_in(value)[0], "[{}.NAME]"
    return None, ""


def _kind(kind: shapes.Type) -> str:
    match _plain(kind):
        case shapes.VarTupleType(item_type=item):
            return f"array of {_kind(item)}s"
        case shapes.DictType(value_type=value):
            return f"table of {_kind(value)}s"
        case shapes.LiteralType(values=values):
            return " or ".join(f"`{value}`" for value in values)
        case other:
            return _KINDS[type(other)]


def _default(value: Any, field: shapes.Field) -> str:
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is msgspec.NODEFAULT:
        return "must be given"
    return "–" if value is None else f"`{json.dumps(value)}`"


def _limits(kind: shapes.Type) -> tuple[list[str], str]:
    """Bounds in words, those of an array's items too, and the unit."""
    match kind:
        case shapes.Metadata(type=inner, extra=extra):
            bounds, unit = _limits(inner)
            return bounds, (extra or {}).get("unit", unit)
        case shapes.UnionType():
            return _limits(_plain_union(kind))
        case shapes.VarTupleType(item_type=item, min_length=least, max_length=most):
            each, unit = _limits(item)
            return [*_span(least, most, " items"), *(f"each {bound}" for bound in each)], unit
    return _bounds(kind), ""


def _bounds(kind: shapes.Type) -> list[str]:
    match kind:
        case shapes.IntType(ge=least, le=most) | shapes.FloatType(ge=least, le=most, gt=None):
            return _span(least, most, "")
        case shapes.FloatType(gt=above, le=most):
            return [f"above {_number(above)}", *_span(None, most, "")]
        case shapes.StrType(pattern=pattern, min_length=least, max_length=most):
            return [*([f"`{pattern}`"] if pattern else []), *_span(least, most, " characters")]
    return []


def _plain_union(kind: shapes.UnionType) -> shapes.Type:
    (found,) = (each for each in kind.types if not isinstance(each, shapes.NoneType))
    return found


def _span(least: float | None, most: float | None, of: str) -> list[str]:
    if least is not None and most is not None:
        return [f"{_number(least)} to {_number(most)}{of}"]
    if least is not None:
        return [f"at least {_number(least)}{of}"]
    return [f"at most {_number(most)}{of}"] if most is not None else []


def _number(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None and float(value).is_integer() else str(value)

"""`python -m tests.support.reference` writes deploy/reference/*.md from the code: settings, errors, log events."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from hsm_adapter.errors import RETURN_VALUES
from keypeer.agentd.settings import DaemonSettings
from kms import errors as service_errors
from kms.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "reference"
_PACKAGES = ("kms", "hsm_adapter", "sdk")
_CODE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_…]+)+")
_MADE = "Made from the code by `python -m tests.support.reference`.\n"
_NO_CODE = re.compile(r".*\.(toml|pem|crt|md|json|sock|py|xml|journal)…?")  # files, in messages
_LEVELS = {"debug", "info", "warning", "error", "exception"}


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Every module that ships, by its path."""
    for package in _PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def words(node: ast.expr | None) -> str:
    """A text as the code has it, with … for what is put in at run time; "" for what isn't text at all."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(words(part) if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.BinOp(left=left, right=right, op=ast.Add()):
            return (words(left) or "…") + (words(right) or "…")
        case ast.IfExp(body=body, orelse=other):
            return " / ".join(filter(None, (words(body), words(other))))
        case _:
            return ""


def _cell(text: str) -> str:
    return re.sub(r"…(\s*…)+", "…", text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _table(head: str, rows: Iterator[tuple[str, ...]]) -> str:
    columns = head.count("|") - 1
    return f"{head}\n|{'---|' * columns}\n" + "".join("| " + " | ".join(row) + " |\n" for row in rows) + "\n"


# ── errors ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Code:
    """A stable code, and all that the code says with it."""

    kind: set[str] = field(default_factory=set)
    says: list[str] = field(default_factory=list)
    mends: list[str] = field(default_factory=list)
    where: set[str] = field(default_factory=set)


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _status(name: str, call: ast.Call) -> str:
    for keyword in call.keywords:
        if keyword.arg == "status" and isinstance(keyword.value, ast.Attribute):
            status = getattr(HTTPStatus, keyword.value.attr, None)
            if status is not None:
                return str(status.value)
    kind = getattr(service_errors, name, None)
    if inspect.isclass(kind) and issubclass(kind, service_errors.KeypeerError):
        return str(kind.status.value)
    return {"Reason": "denial", "Finding": "doctor"}.get(name, "")


def _text_of(call: ast.Call, position: int, *names: str) -> str:
    for keyword in call.keywords:
        if keyword.arg in names:
            return words(keyword.value)
    return words(call.args[position]) if len(call.args) > position else ""


def codes() -> dict[str, Code]:
    """Every code that is given to an error, a denial's reason or a finding, wherever that happens."""
    found: dict[str, Code] = defaultdict(Code)
    for path, tree in trees():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name, code = _called(call), words(call.args[0]) if call.args else ""
            made = name[:1].isupper() or name.startswith("_") or name in {"refused", "problem", "wrong"}
            if (
                not made
                or not _CODE.fullmatch(code)
                or _NO_CODE.fullmatch(code)
                or (name.startswith("_") and len(call.args) < 2)
            ):
                continue
            each = found[code]
            each.kind.add(_status(name, call) or ("agent, CLI" if path.startswith("sdk") else ""))
            each.where.add(path)
            reason = name in {"Reason", "Finding"}
            says, mends = _text_of(call, 2 if reason else 1, "found", "detail"), _text_of(call, 3, "mend", "hint")
            if not reason and path.startswith("sdk"):
                mends = _text_of(call, 2, "hint")
            each.says += [says] if says and says not in each.says else []
            each.mends += [mends] if mends and mends not in each.mends else []
    for value in RETURN_VALUES.values():
        found[value.code].kind.add("")
        found[value.code].where.add("hsm_adapter/errors.py")
    return dict(found)


def errors() -> str:
    """deploy/reference/errors.md."""
    text = f"""# Errors

{_MADE}
A code never changes its meaning. The service answers with a problem document (RFC 9457): `code`, `detail`, `hint`, and
`reasons` of a denial, each with its own id, what was asked, what was found and how to mend it. The column `status` is
the HTTP status; "denial" is a reason's id; "agent, CLI" is found out on the caller's side; "doctor" is what `keypeer
doctor` and the start look at. `…` stands for what is put in. Where a code has several texts, the first is shown.

"""
    groups: dict[str, list[tuple[str, Code]]] = defaultdict(list)
    for code, each in sorted(codes().items()):
        groups[code.partition(".")[0]].append((code, each))
    for group, members in groups.items():
        rows = (
            (
                f"`{code}`",
                ", ".join(sorted(filter(None, each.kind))),
                _cell(each.says[0] if each.says else ""),
                _cell(each.mends[0] if each.mends else ""),
            )
            for code, each in members
        )
        text += f"## {group}\n\n" + _table("| code | status | says | mend |", rows)
    return text.rstrip() + "\n"


# ── log events ─────────────────────────────────────────────────────────────────────────────────────────────────


def events() -> dict[tuple[str, str], tuple[set[str], set[str]]]:
    """(event, level) → its fields, and the modules that write it."""
    found: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for path, tree in trees():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            match call.func:
                case ast.Attribute(attr=level, value=ast.Name(id="log" | "_log")) if level in _LEVELS:
                    pass
                case ast.Name(id="tell"):  # the level that the status asks for
                    level = "warning / info"
                case _:
                    continue
            event = words(call.args[0]) if call.args else ""
            if not event:
                continue
            fields, modules = found.setdefault((event, level), (set(), set()))
            fields |= {keyword.arg or "…" for keyword in call.keywords}
            modules.add(path)
    return found


def logs() -> str:
    """deploy/reference/logs.md."""
    rows = (
        (f"`{_cell(event)}`", level, ", ".join(f"`{each}`" for each in sorted(fields)), ", ".join(sorted(modules)))
        for (event, level), (fields, modules) in sorted(events().items())
    )
    return (
        f"""# Log events

{_MADE}
One line an event on standard error: JSON, or `key = value` on a terminal (`log.format`). Each has `event`, `level`,
`timestamp`, and in the service `worker`. No event holds a key, a PIN or a request's body. What is proven of the past is
the audit log ([../audit.md](../audit.md)), not this.

"""
        + _table("| event | level | fields | written by |", rows).rstrip()
        + "\n"
    )


# ── settings ───────────────────────────────────────────────────────────────────────────────────────────────────


def _fields(kind: Any, prefix: str) -> Iterator[tuple[str, ...]]:
    for each in msgspec.structs.fields(kind):
        if _inner(each.type) is None:
            yield f"`{prefix}{each.encode_name}`", _type(each.type), _default(each)


def _inner(kind: Any) -> tuple[Any, str] | None:
    """The table that a setting is, and how its name is written."""
    info = msgspec.inspect.type_info(kind)
    if isinstance(info, msgspec.inspect.StructType):
        return info.cls, "[{}]"
    if isinstance(info, msgspec.inspect.VarTupleType) and isinstance(info.item_type, msgspec.inspect.StructType):
        return info.item_type.cls, "[[{}]]"
    if isinstance(info, msgspec.inspect.DictType) and isinstance(info.value_type, msgspec.inspect.StructType):
        return info.value_type.cls, "[{}.NAME]"
    return None


def _type(kind: Any) -> str:
    return _cell(_told(msgspec.inspect.type_info(kind)))


def _told(info: Any) -> str:  # noqa: PLR0911 - a table
    match info:
        case msgspec.inspect.Metadata(type=inner):
            return _told(inner)
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            name = "whole number" if isinstance(info, msgspec.inspect.IntType) else "number"
            least = "" if info.ge is None else f" from {info.ge:,}"
            least = least if info.gt is None else f" above {info.gt:,}"
            return name + least + ("" if info.le is None else f" to {info.le:,}")
        case msgspec.inspect.StrType():
            return "text" + (f" like `{info.pattern}`" if info.pattern else "")
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case msgspec.inspect.VarTupleType(item_type=item):
            return f"list of {_told(item)}"
        case msgspec.inspect.DictType():
            return "table of text"
        case msgspec.inspect.UnionType(types=types):
            return " or ".join(_told(each) for each in types)
        case msgspec.inspect.NoneType():
            return "nothing"
        case _:
            return type(info).__name__.removesuffix("Type").lower()


def _default(each: Any) -> str:
    if each.default_factory is not msgspec.NODEFAULT:
        return f"`{each.default_factory()!r}`"
    if each.default is msgspec.NODEFAULT:
        return "must be set"
    value = list(each.default) if isinstance(each.default, tuple) else each.default
    return f"`{msgspec.json.encode(value).decode()}`"


def _tables(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(heading, struct, prefix) of a file's tables."""
    for each in msgspec.structs.fields(kind):
        if (inner := _inner(each.type)) is not None:
            name = f"{prefix}{each.encode_name}"
            yield inner[1].format(name), inner[0], f"{name}."
            yield from _tables(inner[0], f"{name}.")


def settings() -> str:
    """deploy/reference/settings.md."""
    text = (
        f"# Settings\n\n{_MADE}\nUnknown names are errors, and so is what isn't of its type or within its bounds.\n\n"
    )
    for title, kind in (("keypeer.toml: the service", Settings), ("agentd.toml: `keypeer agent run`", DaemonSettings)):
        text += f"## {title}\n\n"
        own = list(_fields(kind, ""))
        if own:
            text += _table("| setting | what it may be | default |", iter(own))
        for heading, table, prefix in _tables(kind):
            text += f"### {heading}\n\n{_cell(inspect.cleandoc(table.__doc__ or '')).replace('``', '`')}\n\n"
            text += _table("| setting | what it may be | default |", _fields(table, prefix))
    return text.rstrip() + "\n"


FILES: dict[str, Callable[[], str]] = {"settings.md": settings, "errors.md": errors, "logs.md": logs}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in FILES.items():
        (FOLDER / name).write_text(text())

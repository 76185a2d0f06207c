"""deploy/reference/logs.md: every event that goes into a log, from the calls that write it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from tests.support.reference import COMMAND, head, row
from tests.support.reference.code import Function, Module, functions, modules
from tests.support.reference.flow import Scope, Values, values
from tests.support.reference.reaching import Given, calls

_HEAD = f"""\
# Logs

Every event, by who writes it; made by `{COMMAND}` from the calls that write them. All go to
standard error, a line each. The service's form and least level are `log.format` and `log.level`; HSM workers and agents
write JSON, agents from info up.

Besides its own fields a line has `event`, `level`, `timestamp` (UTC, ISO 8601) and, of the service, `worker`: which
process. `exception` is a traceback. `code` is one of [errors.md](errors.md).
"""
LEVELS: Final = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
# Who runs the code of a module; the longest beginning counts.
WRITERS: Final = {
    "kms.web": "Web workers",
    "kms.app": "Web workers",
    "kms.app.open_context": "Web workers and the background process",
    "kms.tls": "Web workers",
    "kms.supervisor": "The supervisor",
    "kms.roles": "Web workers and the background process",
    "kms.background": "The background process",
    "kms.flows": "The background process",
    "kms.flows.site": "Web workers",
    "kms.custody": "Web workers and the background process",
    "kms.store": "Web workers and the background process",
    "hsm_adapter": "HSM workers",
    "keypeer.agentd": "Agents",
}

_WEB, _BACKGROUND, _BOTH = "Web workers", "The background process", "Web workers and the background process"
_SUPERVISOR, _HSM, _AGENT = "The supervisor", "HSM workers", "Agents"
# When each is written, by who writes it.
WHEN: Final = {
    (_WEB, "serving"): "It takes connections.",
    (_WEB, "refused"): "A request was answered with a problem document; a warning where its status is 5xx.",
    (_WEB, "bug"): "A request met an error that nobody foresaw; it was answered with 500 `internal`.",
    (_WEB, "stream ended"): "The store failed under an event stream; the listener connects again.",
    (_WEB, "serving another certificate"): "The server certificate on disk was replaced, and is taken up.",
    (_WEB, "certificates not followed"): "The CA's or the server's certificates can't be read; once for each cause.",
    (_WEB, "cut off from the primary"): "A request needed the store's primary, and got `site.cut_off` (postgres.md).",
    (_WEB, "leases renewed while cut off"): "A page of a host's leases, by this site's standby, within their grace.",
    (_BOTH, "store and token"): "At the start: store and HSM token don't fit; requests are refused (recovery.md).",
    (_BOTH, "can't start"): "The process ends; for good where the store has a schema that it can't use.",
    (_BOTH, "store writer"): "A group of commits met an error that nobody foresaw; its callers got `store.unknown`.",
    (_BOTH, "worker passed its deadline"): "An HSM worker didn't answer in time; its connection is closed.",
    (_BOTH, "worker speaks nonsense"): "What an HSM worker answered is no reply; its connection is closed.",
    (_BACKGROUND, "working"): "It runs its jobs.",
    (_BACKGROUND, "job failed"): "One step of a job failed; it is tried again, later each time.",
    (_BACKGROUND, "job works again"): "After `failures` in a row.",
    (_BACKGROUND, "job not noted"): "The store didn't take the note of a job's failure that `/readyz` would show.",
    (_BACKGROUND, "bug"): "A step of a job met an error that nobody foresaw.",
    (_BACKGROUND, "anchor not written"): "The HSM token didn't remember the audit log's head.",
    (_BACKGROUND, "no cosignature"): "A witness didn't cosign the checkpoint of `size` entries.",
    (_SUPERVISOR, "nursery lost"): "The process that workers are forked from ended or hung; another one is started.",
    (_SUPERVISOR, "worker ended"): "A process of the service ended with exit status `code`; info where that is 0.",
    (_SUPERVISOR, "worker hangs"): "A process gave no sign of life, or didn't answer, for that long; it is killed.",
    (_HSM, "serving"): "It takes connections.",
    (_HSM, "simulating a network HSM"): "`hsm.simulated_delay_ms` is set: it waits, for planning and tests alone.",
    (_HSM, "token open"): "Logged in, self-test passed. `oaep`, `key_wrap`: the mechanisms that it uses.",
    (_HSM, "not serving"): "The token can't be used; told once for each cause, tried again every second.",
    (_HSM, "operation failed"): "PKCS #11 returned an error; the token is probed, and the operation tried once more.",
    (_HSM, "probe failed, opening the token anew"): "After that.",
    (_HSM, "self-test failed, opening the token anew"): "A regular self-test failed.",
    (_HSM, "connection refused"): "A user who isn't in `hsm.clients`, or one connection too many.",
    (_HSM, "connection dropped"): "A client sent what is no frame.",
    (_HSM, "leaving"): "`reason` is signal, or recycling after `hsm.recycle_after` operations.",
    (_HSM, "close failed"): "The token had something against being closed; nothing follows from it.",
    (_AGENT, "working"): "It attests, listens and serves helpers. `memory`: where keys lie.",
    (_AGENT, "trouble"): "What `what` names (attest, renew, stream) fails; told once for each cause.",
    (_AGENT, "works again"): "It works again.",
    (_AGENT, "leases ended"): "The service ended leases; their keys are dropped.",
    (_AGENT, "dropped"): "A VM's key was dropped, and its hooks ran; an error where every hook failed.",
    (_AGENT, "silent"): "A lease is over without an answer: its grace runs, and hooks ran; as above.",
}


@dataclass(frozen=True, slots=True)
class Event:
    """One call that writes a line."""

    name: str
    levels: tuple[str, ...]
    fields: tuple[str, ...]
    where: str


def text() -> str:
    """The file's text."""
    parts = [_HEAD]
    for writer in dict.fromkeys(WRITERS.values()):
        parts.append(f"\n## {writer}\n\n{head('event', 'level', 'fields', 'when', 'where')}")
        for each in sorted((each for each in events() if writer_of(each.where) == writer), key=lambda each: each.name):
            fields = ", ".join(f"`{name}`" for name in each.fields)
            cells = (" or ".join(each.levels), fields, WHEN[writer, each.name], f"`{each.where}`")
            parts.append(row(f"`{each.name}`", *cells))
    return "".join(parts)


@cache
def events() -> tuple[Event, ...]:
    """All of them."""
    return tuple(event for module in modules().values() for event in _written(module))


def writer_of(where: str) -> str:
    """Which processes run that code. Raises ValueError where nobody told."""
    return WRITERS[max((each for each in WRITERS if f"{where}.".startswith(f"{each}.")), key=len)]


def _written(module: Module) -> Iterator[Event]:
    loggers = {
        name for name, value in module.constants.items() if ast.unparse(value).startswith("structlog.get_logger(")
    }
    if not loggers:
        return
    for name, function, _ in functions(module):
        for call, given in calls(function):
            levels = _levels(call.func, given, loggers)
            if levels:
                yield from _events(call, levels, Scope(module, function, given), name)
    uses = sum(
        isinstance(each, ast.Name) and each.id in loggers and isinstance(each.ctx, ast.Load)
        for each in ast.walk(module.tree)
    )
    known = sum(_uses(function, loggers) for _, function, _ in functions(module))
    assert uses == known, f"{module.name} does something else with its logger"


def _uses(function: Function, loggers: set[str]) -> int:
    """How often a level of a logger is named."""
    return sum(_level(each, loggers) is not None for each in ast.walk(function) if isinstance(each, ast.expr))


def _events(call: ast.Call, levels: tuple[str, ...], scope: Scope, where: str) -> Iterator[Event]:
    assert all(each.arg for each in call.keywords), f"{where}: fields that only a run can tell"
    fields = tuple(str(each.arg) for each in call.keywords)
    traced = isinstance(call.func, ast.Attribute) and call.func.attr == "exception"
    for name in values(call.args[0], scope):
        assert "{" not in name, f"{where}: an event that only a run can tell"
        yield Event(name, levels, (*fields, "exception") if traced else fields, where)


def _levels(called: ast.expr, given: Given, loggers: set[str]) -> Values:
    """At which levels a call writes: that of a logger's method, or of those that a name was given."""
    if isinstance(called, ast.Name):
        candidates = [
            each for value in given.get(called.id, ()) for each in ast.walk(value) if isinstance(each, ast.expr)
        ]
    else:
        candidates = [called]
    found = {_level(each, loggers) for each in candidates}
    return tuple(dict.fromkeys(level for level in LEVELS.values() if level in found))


def _level(expression: ast.expr, loggers: set[str]) -> str | None:
    match expression:
        case ast.Attribute(value=ast.Name(id=logger), attr=method) if logger in loggers:
            return LEVELS[method]
    return None

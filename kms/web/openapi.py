"""The OpenAPI 3.1 document, made from the table of routes and the wire types."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from keypeer.wire.messages import Problem
from kms import __version__
from kms.web.problems import CONTENT_TYPE
from kms.web.routing import Route

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)\}")


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """OpenAPI 3.1 of ``routes``."""
    types = {t for route in routes for t in (route.request, route.answer, route.line) if t is not None} | {Problem}
    ordered = sorted(types, key=lambda t: t.__name__)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=_REF)
    refs = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "keypeer",
            "version": __version__,
            "description": "Releases VM keys to hosts that prove their boot state and their place. "
            "Binary is base64url without padding; errors are RFC 9457 problem documents with a stable code.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"client-certificate": {"type": "mutualTLS", "description": "issued by this service"}},
        },
    }


def _operation(route: Route, refs: dict[type, dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "as asked"}
    if route.answer is not None:
        answer["content"] = {"application/json": {"schema": refs[route.answer]}}
    if route.streams:
        answer["content"][route.streams] = {"schema": {"type": "string"}}
    if route.line is not None:
        answer["description"] = f"as asked; {route.streams}: one such object a line, an `end` in the last"
        answer["content"][route.streams]["schema"] = refs[route.line]
    if route.raw:
        answer["content"] = {route.raw.partition(";")[0]: {}}
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "responses": {
            str(int(route.status)): answer,
            "default": {
                "description": "a problem document",
                "content": {CONTENT_TYPE: {"schema": refs[Problem]}},
            },
        },
    }
    if route.roles is not None:
        operation["security"] = [{"client-certificate": []}]
        operation["description"] = "Roles: " + ", ".join(sorted(route.roles))
    if route.act:
        operation["description"] += f". Officers' act: {route.act}"
    parameters = [_parameter(name, "path", "") for name in _PARAMETER.findall(route.path)]
    parameters += [_parameter(name, "query", text) for name, text in (route.query or {}).items()]
    if parameters:
        operation["parameters"] = parameters
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[route.request]}}}
    return operation


def _parameter(name: str, where: str, text: str) -> dict[str, Any]:
    parameter: dict[str, Any] = {"name": name, "in": where, "required": where == "path", "schema": {"type": "string"}}
    if text:
        parameter["description"] = text
    return parameter


def _operation_id(route: Route) -> str:
    words = re.sub(r"[{}]", "", route.path.removeprefix("/v1")).strip("/").replace("-", "_").split("/")
    return "_".join([route.method.lower(), *words])

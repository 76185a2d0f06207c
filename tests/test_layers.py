"""The house keeps its floors (imports go down only), has no import cycle, and its two lower floors are pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Longest prefix wins. A module may import its own floor within the same package, and anything below.
FLOORS = {
    "keypeer.wire": 0,
    "kms.errors": 0,
    "kms.domain": 0,
    "kms.limits": 0,
    "kms": 0,  # the version alone
    "kms.tpm": 1,
    "kms.policy": 1,
    "kms.keys": 1,
    "kms.audit": 1,
    "kms.nonces": 1,
    "kms.pki": 1,
    "kms.approvals": 1,
    "kms.rates": 1,
    "kms.evidence": 1.5,
    "hsm_adapter.protocol": 1.5,
    "hsm_adapter.framing": 1.5,
    "hsm_adapter.limits": 1.5,
    "hsm_adapter.errors": 1.5,
    "hsm_adapter.pin": 1.5,
    "hsm_adapter.systemd": 1.6,
    "hsm_adapter.lock": 1.6,
    "kms.store.port": 2,
    "kms.store.bounds": 2,
    "kms.custody.port": 2,
    "kms.witness.port": 2,
    "kms.webhooks.port": 2,
    "kms.tree": 2.3,
    "kms.views": 2.3,
    "kms.fences": 2.3,
    "kms.in_use": 2.6,
    "kms.records": 2.5,
    "kms.vm_records": 2.6,
    "kms.runtime_records": 2.6,
    "kms.vm_filter": 2.7,
    "kms.quotas": 2.7,
    "kms.rollback": 2.7,
    "kms.signing_keys": 2.7,
    "kms.authorities": 2.8,
    "kms.certificates": 2.8,
    "kms.known": 2.8,
    "kms.officers": 2.7,
    "kms.movers": 2.9,
    "kms.nodes": 2.9,
    "kms.held": 2.9,
    "kms.trust": 2.7,
    "kms.listeners": 2.7,
    "kms.destinations": 2.9,
    "kms.verification": 2.9,
    "kms.flows": 3,
    "kms.custody": 4,
    "kms.store": 4,
    "kms.witness": 4,
    "kms.webhooks": 4,
    "kms.web": 4,
    "kms.cli": 6,
    "kms.setting_tables": 4.9,
    "kms.settings": 5,
    "kms.shares": 5,
    "kms.tokencopy": 5,
    "kms.lean": 5,
    "kms.hardening": 5,
    "kms.nursery": 5.2,
    "kms.roles": 5,
    "kms.heartbeats": 5,
    "kms.clocks": 5,
    "kms.logs": 5,
    "kms.tls": 5.2,
    "kms.app": 5.5,
    "kms.background": 5.5,
    "kms.supervisor": 5.5,
    "kms.__main__": 7,
}
PURE_FLOORS = 1.5
IMPURE = {"asyncio", "aiohttp", "lmdb", "os", "time", "random", "secrets", "logging", "structlog", "socket", "pathlib"}
FLOW_FORBIDDEN = {"aiohttp", "lmdb", "pkcs11"}
MODULE_FORBIDDEN = {
    "hsm_adapter": {"kms", "keypeer"},
    "keypeer": {"kms", "hsm_adapter"},
}


def modules() -> dict[str, Path]:
    found = {}
    for root, package in ((ROOT, "kms"), (ROOT, "hsm_adapter"), (ROOT / "sdk", "keypeer")):
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                child = f"{node.module}.{alias.name}"
                yield child if child in MODULES else str(node.module)


def floor(module: str) -> float | None:
    parts = module.split(".")
    for size in range(len(parts), 0, -1):
        known = FLOORS.get(".".join(parts[:size]))
        if known is not None and (size > 1 or module == "kms"):
            return known
    return None


def root(module: str) -> str:
    return module.partition(".")[0]


def ours(module: str) -> bool:
    return root(module) in {"kms", "hsm_adapter", "keypeer"}


KMS = sorted(name for name in MODULES if name.startswith("kms"))


@pytest.mark.parametrize("module", KMS)
def test_imports_go_down_only(module: str) -> None:
    own = floor(module)
    assert own is not None, f"{module} stands on no floor: draw it in tests/test_layers.py first"
    package = module.split(".")[:2]
    for imported in filter(ours, imports(MODULES[module])):
        other = floor(imported)
        assert other is not None, f"{module} imports {imported}, which stands on no floor"
        same_room = imported.split(".")[:2] == package
        assert other < own or (other == own and (same_room or own in {0, 5, 5.5})), f"{module} imports up: {imported}"


@pytest.mark.parametrize("module", [name for name in KMS if (floor(name) or 0) <= PURE_FLOORS])
def test_lower_floors_are_pure(module: str) -> None:
    roots = {root(name) for name in imports(MODULES[module])}
    assert not roots & IMPURE, f"{module} imports {sorted(roots & IMPURE)}"


@pytest.mark.parametrize("module", [name for name in KMS if name.startswith("kms.flows")])
def test_flows_know_no_machinery_and_no_other_flow(module: str) -> None:
    names = set(imports(MODULES[module]))
    assert not {root(name) for name in names} & FLOW_FORBIDDEN
    others = {name for name in names if name.startswith("kms.flows.")} - {"kms.flows.context", module}
    assert not others, f"{module} imports {sorted(others)}"


@pytest.mark.parametrize("module", sorted(name for name in MODULES if root(name) in MODULE_FORBIDDEN))
def test_adapter_and_sdk_stand_alone(module: str) -> None:
    roots = {root(name) for name in imports(MODULES[module])}
    assert not roots & MODULE_FORBIDDEN[root(module)]


def test_kms_takes_only_the_wire_from_the_sdk() -> None:
    taken = {name for module in KMS for name in imports(MODULES[module]) if root(name) == "keypeer"}
    assert taken, "the scan finds imports at all"
    assert not [name for name in taken if not name.startswith("keypeer.wire")]


def test_no_import_cycles() -> None:
    graph = {
        module: {name for name in imports(path, top_level_only=True) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
    assert done == set(MODULES)

"""A bound has one place and one value: two parts that took the same name would silently share the later one."""

from __future__ import annotations

import ast
import inspect
from collections import Counter

import pytest

import hsm_adapter.limits
import kms.limits


@pytest.mark.parametrize("module", [kms.limits, hsm_adapter.limits])
def test_no_bound_is_named_twice(module: object) -> None:
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]  # modules
    names = Counter(
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    )
    assert len(names) > 10
    assert [name for name, count in names.items() if count > 1] == []

"""Tests on recorded evidence run where KEYPEER_VECTORS names its folder, and aren't there elsewhere."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects, not skips: nothing that a user could install is missing."""
    if os.environ.get("KEYPEER_VECTORS"):
        return
    absent = [item for item in items if item.get_closest_marker("vectors")]
    if absent:
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if not item.get_closest_marker("vectors")]

"""Tests on recorded evidence run where KEYPEER_VECTORS names its folder, those with libvirt's test driver where virsh
is, those with libvirtds of their own where libvirtd and root are; they aren't there elsewhere."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

# A shell without job control starts what runs in the background with SIGINT ignored, nohup its command with SIGHUP,
# and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects, not skips: nothing that a user could install is missing."""
    missing = [] if os.environ.get("KEYPEER_VECTORS") else ["vectors"]
    missing += [] if shutil.which("virsh") else ["virsh"]
    missing += [] if shutil.which("libvirtd", path="/usr/sbin") and os.geteuid() == 0 else ["libvirtd"]
    absent = [item for item in items if any(item.get_closest_marker(marker) for marker in missing)]
    if absent:
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in set(absent)]

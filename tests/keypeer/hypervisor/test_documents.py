"""deploy/hypervisors.md: its programs run as they stand."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from keypeer.hypervisor.libvirt import hook_file
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey
from tests.support.guest import Guest, Guests

DOCUMENT = Path(__file__).resolve().parents[3] / "deploy" / "hypervisors.md"
KEYPEER = '#!/bin/sh\nexec {python} -c "from keypeer.cli import main; main()" "$@"\n'


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


async def run(program: str, names: dict[str, Any]) -> None:
    code = compile(program, str(DOCUMENT), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(code, CodeType)
    result = eval(code, names)  # noqa: S307 - the document's own text
    if inspect.iscoroutine(result):
        await result


@pytest.fixture
def key(vm_key: bytes) -> VmKey:
    secret = LockedBytes(64)
    secret.writable[:] = vm_key
    return VmKey(secret, vm="web-1", version=1, generation=1, lease_expires_at=0, grace=0)


async def test_the_programs_start_save_restore_and_migrate(
    guests: Guests, key: VmKey, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "keypeer").write_text(KEYPEER.format(python=sys.executable))
    (folder / "keypeer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(folder)
    start, move, _ = blocks("python")
    spec = guests.spec("one")
    names: dict[str, Any] = {
        "key": key, "run": spec.folder, "state": spec.vtpm_state, "image": folder / "image", "boot": spec.arguments,
        "machine": spec.machine, "accelerator": spec.accelerator,
    }  # fmt: skip
    await run(start, names)
    source = guests.adopt(Guest(names["spec"], names["vm"], spec.folder.parent / "serial"))
    await source.until_tick(3)

    async def yes() -> None:
        """Every callback's answer."""

    there = guests.spec("two", disk=folder / "web-1.luks")
    destination = await guests.start(there, key, incoming=True)
    await run(
        move,
        {
            "asyncio": asyncio, "source": source.qemu, "destination": destination.qemu, "address": "127.0.0.1",
            "psk": os.urandom(32), "admit": yes, "fence": yes, "go": yes,
        },
    )  # fmt: skip
    await destination.until_tick(3)
    assert await source.is_gone()


def test_the_command_prints_the_hook() -> None:
    (command,) = blocks("sh")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    expected = hook_file(["/usr/local/sbin/admit-vm"]).replace(sys.executable, "PYTHON")
    assert re.sub(r"exec \S+ -P", "exec PYTHON -P", done.stdout) == expected

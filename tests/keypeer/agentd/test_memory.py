"""Where the daemon's keys lie, and how one is handed over."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from keypeer.agentd import memory
from keypeer.agentd.memory import SecretMemory, sealed_copy
from keypeer.errors import StateError

KEYS = [bytes([number % 256]) * size for number in range(1500) for size in (32, 64)]


@pytest.mark.parametrize("kernel", [True, False])
def test_secrets_are_kept_apart_and_wiped(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:  # a system call that no kernel has
        monkeypatch.setattr(memory, "_SYS_MEMFD_SECRET", 2**20)
    secrets = SecretMemory()
    assert secrets.kind == ("memfd_secret" if kernel else "locked")
    kept = [secrets.keep(memoryview(key)) for key in KEYS]
    assert [bytes(each.view()) for each in kept] == KEYS
    view = kept[0].view()
    kept[0].close()
    kept[0].close()
    assert not any(view)
    assert bytes(kept[1].view()) == KEYS[1]
    if kernel:
        assert bytes(kept[0].view()) == b""
    else:
        with pytest.raises(StateError):
            kept[0].view()


def test_root_can_t_read_them_from_outside() -> None:
    program = """
import sys
from keypeer.agentd.memory import SecretMemory
kept = SecretMemory().keep(memoryview(bytes(range(64))))
import ctypes
address = ctypes.addressof(ctypes.c_char.from_buffer(kept._view))
print(address, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = int(process.stdout.readline())
        with open(f"/proc/{process.pid}/mem", "rb", buffering=0) as mem:
            mem.seek(address)
            with pytest.raises(OSError, match=r"Input/output error|Bad address"):
                mem.read(64)
        process.communicate(b"")


def test_what_a_helper_gets_can_t_be_changed() -> None:
    descriptor = sealed_copy(memoryview(b"k" * 64))
    try:
        assert os.read(descriptor, 100) == b"k" * 64
        for change in (lambda: os.pwrite(descriptor, b"x", 0), lambda: os.ftruncate(descriptor, 1)):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(descriptor)

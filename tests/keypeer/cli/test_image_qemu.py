"""The filters under QEMU itself: a guest saved and restored through ``exec:``; its memory is nowhere on disk."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

KEYPEER = shlex.quote(str(Path(sys.executable).with_name("keypeer")))
NAMED = "--vm web-1 --key-version 1"
WORD = b"MARKER-IN-GUEST-MEMORY:"
MARKER = WORD * 1000 + os.urandom(3 * 1024 * 1024)  # several chunks, for QEMU leaves pages of one byte out
WHERE = 0x1000000  # guest address, in bytes
WAIT_S = 30


class Qemu:
    """A guest without firmware's help: QEMU's loader puts the marker into its memory. QMP over its standard streams."""

    def __init__(self, *arguments: str) -> None:
        command = ["qemu-system-x86_64", "-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-m", "64"]
        self.process = subprocess.Popen(
            [*command, "-qmp", "stdio", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert "QMP" in self._line()
        self("qmp_capabilities")

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def __call__(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        while "return" not in (answer := self._line()):
            assert "error" not in answer, answer
        return answer["return"]

    def migrated(self) -> str:
        """How the migration that was begun ends."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            status: str = self("query-migrate").get("status", "")
            if status in ("completed", "failed"):
                return status
            time.sleep(0.02)
        raise AssertionError("the migration doesn't end")

    def memory(self, file: Path) -> bytes:
        """What stands where the marker was put."""
        self("pmemsave", val=WHERE, size=len(MARKER), filename=str(file))
        return file.read_bytes()


@contextmanager
def qemu(*arguments: str) -> Iterator[Qemu]:
    guest = Qemu(*arguments)
    try:
        yield guest
    finally:
        guest.process.kill()
        guest.process.communicate(timeout=WAIT_S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(bytes(range(64)))
    (tmp_path / "marker").write_bytes(MARKER)
    return tmp_path


def saved(folder: Path, pipeline: str) -> str:
    """How a migration of a guest with the marker to ``exec:pipeline`` ends."""
    with qemu("-device", f"loader,file={folder / 'marker'},addr={WHERE:#x},force-raw=on") as guest:
        guest("cont")  # the loader works at reset
        guest("stop")
        assert guest.memory(folder / "before") == MARKER
        guest("migrate", uri=f"exec:cd {folder} && {pipeline}")
        return guest.migrated()


def test_a_guest_is_saved_and_restored_and_its_memory_is_nowhere_on_disk(folder: Path) -> None:
    assert saved(folder, "cat >plain") == "completed"
    assert WORD in (folder / "plain").read_bytes(), "without encryption it is found, so that this check can fail"
    assert saved(folder, f"exec {KEYPEER} image encrypt - web-1.kpi {NAMED} --key-fd 3 3<key") == "completed"
    image = (folder / "web-1.kpi").read_bytes()
    assert WORD not in image
    with qemu("-incoming", f"exec:cd {folder} && exec {KEYPEER} image decrypt web-1.kpi --key-fd 3 3<key") as guest:
        assert guest.migrated() == "completed"
        assert guest.memory(folder / "after") == MARKER
    (folder / "cut.kpi").write_bytes(image[: len(image) // 2])
    with qemu("-incoming", f"exec:cd {folder} && exec {KEYPEER} image decrypt cut.kpi --key-fd 3 3<key") as guest:
        assert guest.process.wait(timeout=WAIT_S) != 0, "a guest of half a memory doesn't start"


def test_a_save_that_fails_is_told_by_qemu_and_leaves_no_image(folder: Path) -> None:
    (folder / "key").write_bytes(b"short")
    assert saved(folder, f"exec {KEYPEER} image encrypt - web-1.kpi {NAMED} --key-fd 3 3<key") == "failed"
    assert not (folder / "web-1.kpi").exists()

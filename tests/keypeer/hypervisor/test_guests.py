"""Guests' files: what they say, and what they may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from keypeer.errors import StateError
from keypeer.hypervisor.guests import names, read_guest

WHOLE = """memory_mib = 2048
processors = 2
machine = "pc"
accelerator = "tcg"
run = "run"
disks = ["/srv/web-1.luks", "second.luks"]
vtpm = "vtpm"
arguments = ["-nic", "user"]
"""


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "web-1.toml").write_text(WHOLE)
    spec = read_guest(tmp_path, "web-1")
    assert (spec.name, spec.memory_mib, spec.processors) == ("web-1", 2048, 2)
    assert (spec.machine, spec.accelerator) == ("pc", "tcg")
    assert spec.disks == (Path("/srv/web-1.luks"), tmp_path / "second.luks")
    assert (spec.folder, spec.vtpm_state, spec.arguments) == (tmp_path / "run", tmp_path / "vtpm", ("-nic", "user"))
    assert names(tmp_path) == ["web-1"]


def test_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "web-1.toml").write_text("memory_mib = 64")
    spec = read_guest(tmp_path, "web-1")
    assert (spec.folder, spec.machine, spec.accelerator) == (Path("/run/keypeer-guests/web-1"), "q35", "kvm")
    assert (spec.processors, spec.disks, spec.vtpm_state) == (1, (), None)


@pytest.mark.parametrize(
    ("vm", "text", "code", "words"),
    [
        ("web-1", None, "guest.missing", "No such file"),
        ("../web-1", "memory_mib = 64", "guest.name", "no VM's name"),
        ("web-1", "memory_mib = 64\ndisk = 'x'", "guest.file", "disk"),
        ("web-1", "memory_mib = '64'", "guest.file", "memory_mib"),
        ("web-1", "memory_mib = 0", "guest.file", "memory_mib"),
        ("web-1", "processors = 1", "guest.file", "memory_mib"),
        ("web-1", "memory_mib =", "guest.file", "web-1.toml"),
        ("web-1", "memory_mib = 64\n#" + "x" * 70_000, "guest.file", "larger"),
    ],
)
def test_what_is_no_guest(tmp_path: Path, vm: str, text: str | None, code: str, words: str) -> None:
    if text is not None:
        (tmp_path / "web-1.toml").write_text(text)
    with pytest.raises(StateError) as caught:
        read_guest(tmp_path, vm)
    assert caught.value.code == code
    assert words in caught.value.detail


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"guest\.missing"):
        names(tmp_path / "nowhere")

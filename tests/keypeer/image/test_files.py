"""New files: whole under their name, or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from keypeer.errors import StateError
from keypeer.image.files import Input, opened_output
from keypeer.image.streams import read, write_all


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("replace", [True, False])
def test_a_file_has_its_name_once_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool, links: bool
) -> None:
    def no_links(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))  # as link(2) does on vfat

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    path = tmp_path / "new"
    if replace:
        path.write_bytes(b"old")
    with opened_output(path, replace=replace) as made:
        write_all(made, b"new")
        assert (path.read_bytes() if replace else path.exists()) == (b"old" if replace else False)
        made.finish()
    assert path.read_bytes() == b"new"
    assert [found.name for found in tmp_path.iterdir()] == ["new"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("links", [True, False])
def test_a_name_taken_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def no_links(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    path = tmp_path / "new"
    with opened_output(path) as made:
        path.write_bytes(b"another's")
        with pytest.raises(StateError) as refused:
            made.finish()
    assert refused.value.code == "output.file"
    assert path.read_bytes() == b"another's"
    assert [found.name for found in tmp_path.iterdir()] == ["new"]


def test_names_up_to_the_longest_work(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)  # 254 bytes
    with opened_output(path) as made:
        made.finish()
    assert path.exists()


def test_what_is_not_finished_never_was(tmp_path: Path) -> None:
    with opened_output(tmp_path / "new") as made:
        write_all(made, b"half")
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


def test_sizes_are_known_of_files_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert Input(tmp_path / "file").size == 5
    assert Input(Path("/dev/null")).size is None


def test_an_input_is_read_and_sought(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    given = Input(tmp_path / "file")
    assert given.seek(3) == 3
    assert read(given, 9) == b"45"
    given.close()

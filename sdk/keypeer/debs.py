"""Reference values from ``.deb`` files, streamed: nothing is unpacked to disk, no maintainer script runs."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from keypeer.errors import StateError
from keypeer.limits import DEB_MEMBERS_MAX, HASH_CHUNK_BYTES, PACKAGE_INDEX_BYTES_MAX
from keypeer.packages import (
    MERGED,
    PackageSet,
    Progress,
    Which,
    control_fields,
    hash_file,
    is_measured,
    parse_md5sums,
)


def from_debs(
    folder: Path,
    progress: Progress | None = None,
    *,
    name: str = "packages",
    which: Which = "measured",
    keep_changed: bool = False,
) -> PackageSet:
    """Every ``*.deb`` of ``folder``. A file is listed under both its names of a merged /usr, whichever the hosts show.

    Signatures are apt's to check. Raises StateError when there are none, or one can't be read.
    """
    archives = sorted(folder.glob("*.deb"))
    if not archives:
        raise StateError("packages.none", f"no .deb file in {folder}")
    found = PackageSet(name)
    for index, archive in enumerate(archives):
        if progress is not None:
            progress(index, len(archives), archive.name)
        _add_archive(found, archive, which, keep_changed)
    if progress is not None:
        progress(len(archives), len(archives), "")
    found.deviations.sort()
    return found


def _add_archive(found: PackageSet, archive: Path, which: Which, keep_changed: bool) -> None:
    control = _control(archive)
    fields = control_fields(control.get("control", ""))
    if not {"Package", "Version"} <= fields.keys():
        raise StateError("packages.deb", f"{archive.name} has no Package and Version", "fetch it again")
    label = fields["Package"]
    if fields.get("Multi-Arch") == "same":
        label = f"{label}:{fields.get('Architecture', '')}"
    found.packages.add(f"{label}={fields['Version']}")
    listed = parse_md5sums(control.get("md5sums", ""))
    for path, md5, sha256 in _files(archive, which):
        # Configuration files aren't in the list; the archive itself says what they are.
        if listed.get(path, md5) != md5:
            found.report(label, path, "differs from the package's MD5 list")
            if not keep_changed:
                continue
        found.record(label, path, sha256, MERGED)


def _control(archive: Path) -> dict[str, str]:
    texts = {}
    with _tar(archive, "--ctrl-tarfile") as tar:
        for member in _members(archive, tar):
            name = member.name.removeprefix("./")
            if name in {"control", "md5sums"} and member.isreg():
                if member.size > PACKAGE_INDEX_BYTES_MAX:
                    raise StateError("packages.deb", f"{archive.name}: {name} has {member.size} bytes")
                texts[name] = os.fsdecode(_open(tar, member).read())
    return texts


def _files(archive: Path, which: Which) -> Iterator[tuple[str, str, str]]:
    """Path, MD5 and SHA-256 of the regular files; a hard link is the file that it was linked to."""
    digests: dict[str, tuple[str, str]] = {}
    with _tar(archive, "--fsys-tarfile") as tar:
        for member in _members(archive, tar):
            path = _absolute(member.name)
            if member.islnk():
                linked = digests.get(_absolute(member.linkname))
                if linked is None:
                    continue  # to a file that isn't measured
                digests[path] = linked
            elif member.isreg():
                file = _open(tar, member)
                head = file.read(HASH_CHUNK_BYTES)
                if which == "measured" and not is_measured(path, member.mode, head):
                    continue
                digests[path] = hash_file(file, head)
            else:
                continue
            yield (path, *digests[path])


def _absolute(name: str) -> str:
    return os.path.normpath(f"/{name.lstrip('/')}")  # of two slashes at the start POSIX keeps both


def _open(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    return cast("BinaryIO", tar.extractfile(member))  # None only for what isn't a regular file


def _members(archive: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for count, member in enumerate(tar):
        if count >= DEB_MEMBERS_MAX:
            raise StateError("packages.deb", f"{archive.name} has more than {DEB_MEMBERS_MAX} files")
        yield member


@contextmanager
def _tar(archive: Path, part: str) -> Iterator[tarfile.TarFile]:
    with tempfile.TemporaryFile() as errors:
        try:
            dpkg = subprocess.Popen(["dpkg-deb", part, os.fspath(archive)], stdout=subprocess.PIPE, stderr=errors)
        except FileNotFoundError:
            raise StateError("packages.dpkg", "there is no dpkg-deb", "install dpkg") from None
        with dpkg:
            try:
                with tarfile.open(fileobj=dpkg.stdout, mode="r|") as tar:
                    yield tar
                while dpkg.stdout is not None and dpkg.stdout.read(HASH_CHUNK_BYTES):
                    pass  # padding
            except tarfile.TarError as error:
                raise StateError("packages.deb", f"{archive.name}: {error}", "fetch it again") from None
        if dpkg.returncode:
            errors.seek(0)
            raise StateError("packages.deb", errors.read(500).decode(errors="replace").strip(), "fetch it again")

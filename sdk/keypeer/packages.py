"""Reference values for the runtime from Debian packages: path → SHA-256 of what IMA would measure.

From an installed system (a machine's / or a chroot) or from ``.deb`` files. Every file is first compared with its own
package's MD5 list; what differs is reported and left out, unless the caller keeps it. That finds accidents and crude
tampering, not a forger, who would change the list as well: read a golden system, or packages that apt verified.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from keypeer.errors import StateError
from keypeer.limits import HASH_CHUNK_BYTES, PACKAGE_INDEX_BYTES_MAX, SYMLINKS_MAX

Which = Literal["measured", "all"]
Progress = Callable[[int, int, str], None]  # packages done, packages in all, the package that comes next

# Before usrmerge a package lists /lib/x, and IMA then shows /usr/lib/x: d_path() knows no symlinks.
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
ELF = b"\x7fELF"
_MODULES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")


@dataclass(frozen=True, slots=True, order=True)
class Deviation:
    """A file that isn't what its package says, or can't be read."""

    package: str
    path: str
    problem: str


@dataclass(slots=True)
class PackageSet:
    """A named set of reference values. ``packages``: ``name=version``, or ``name:architecture=version`` where several
    architectures may be installed beside each other."""

    name: str
    packages: set[str] = field(default_factory=set)
    files: dict[str, set[str]] = field(default_factory=dict)
    deviations: list[Deviation] = field(default_factory=list)

    def document(self) -> bytes:
        """JSON; of the same packages always the same bytes."""
        files = {path: sorted(digests) for path, digests in sorted(self.files.items())}
        return msgspec.json.encode({"name": self.name, "created_from": sorted(self.packages), "files": files})

    def record(self, package: str, path: str, sha256: str, merged: Iterable[str]) -> None:
        """Lists ``path`` under both its names where ``merged`` top folders are links into /usr."""
        try:
            path.encode()
        except UnicodeEncodeError:
            self.report(package, path, "has a name that isn't UTF-8")
            return
        for alias in aliases(path, merged):
            self.files.setdefault(alias, set()).add(sha256)

    def report(self, package: str, path: str, problem: str) -> None:
        """Notes a deviation; bytes that aren't UTF-8 are shown escaped."""
        shown = os.fsencode(path).decode(errors="backslashreplace")
        self.deviations.append(Deviation(package, shown, problem))


def aliases(path: str, merged: Iterable[str]) -> tuple[str, ...]:
    """``path`` and, in a merged folder, its other name."""
    inner = path.removeprefix("/usr")
    if not inner.startswith("/") or inner[1:].partition("/")[0] not in merged:
        return (path,)
    return (inner, f"/usr{inner}")


def is_measured(path: str, mode: int, head: bytes) -> bool:
    """Whether IMA measures the file at execution, mmap or load (BPRM_CHECK, MMAP_CHECK, MODULE_CHECK and FIRMWARE_CHECK
    in Linux Documentation/ABI/testing/ima_policy). ``head``: its first bytes."""
    executable = bool(mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH))
    firmware = path.removeprefix("/usr").startswith("/lib/firmware/")
    return executable or head.startswith(ELF) or path.endswith(_MODULES) or firmware


def hash_file(file: BinaryIO, head: bytes) -> tuple[str, str]:
    """MD5 and SHA-256 in hex of ``head`` and the rest of ``file``."""
    md5, sha256 = hashlib.md5(head, usedforsecurity=False), hashlib.sha256(head)
    while chunk := file.read(HASH_CHUNK_BYTES):
        md5.update(chunk)
        sha256.update(chunk)
    return md5.hexdigest(), sha256.hexdigest()


def parse_md5sums(text: str) -> dict[str, str]:
    """Absolute path → MD5, from a package's ``md5sums`` (deb-md5sums(5))."""
    pairs = (line.split("  ", 1) for line in text.split("\n"))
    return {f"/{pair[1]}": pair[0] for pair in pairs if len(pair) == 2}


# ── an installed system ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Installed:
    name: str
    architecture: str
    version: str
    multi_arch: bool
    conffiles: dict[str, str]

    @property
    def label(self) -> str:
        return f"{self.name}:{self.architecture}" if self.multi_arch else self.name


def from_dpkg(
    root: Path,
    names: Iterable[str] | None = None,
    progress: Progress | None = None,
    *,
    name: str = "packages",
    which: Which = "measured",
    keep_changed: bool = False,
) -> PackageSet:
    """The packages installed under ``root``; ``names`` (``coreutils``, ``libc6:amd64``) picks some, None all.

    Nothing outside ``root`` is read, wherever its symlinks lead. Raises StateError when there is no dpkg database, or a
    name isn't installed.
    """
    tree = _Tree(root)
    installed = _chosen(_read_status(tree), names)
    diverted = _read_diversions(tree)
    found = PackageSet(name)
    for index, package in enumerate(installed):
        if progress is not None:
            progress(index, len(installed), package.label)
        _add_installed(found, tree, package, diverted, which, keep_changed)
    if progress is not None:
        progress(len(installed), len(installed), "")
    found.deviations.sort()
    return found


def _add_installed(
    found: PackageSet,
    tree: _Tree,
    package: _Installed,
    diverted: Mapping[str, tuple[str, str]],
    which: Which,
    keep_changed: bool,
) -> None:
    found.packages.add(f"{package.label}={package.version}")
    listed = parse_md5sums(tree.index(f"info/{package.label}.md5sums")) | package.conffiles
    for path in tree.index(f"info/{package.label}.list").split("\n"):
        to, owner = diverted.get(path, (path, package.name))
        actual = path if owner == package.name else to
        try:
            digests = tree.digests(actual, which)
        except OSError as error:
            found.report(package.label, actual, f"can't be read: {error.strerror}")
            continue
        if digests is None:
            continue
        md5, sha256 = digests
        if listed.get(path) != md5:
            problem = "differs from the package's MD5 list" if path in listed else "isn't in the package's MD5 list"
            found.report(package.label, actual, problem)
            if not keep_changed:
                continue
        found.record(package.label, actual, sha256, tree.merged)


def _chosen(installed: list[_Installed], names: Iterable[str] | None) -> list[_Installed]:
    if names is None:
        return installed
    wanted = set(names)
    chosen = [each for each in installed if not wanted.isdisjoint({each.name, f"{each.name}:{each.architecture}"})]
    unknown = wanted - {name for each in chosen for name in (each.name, f"{each.name}:{each.architecture}")}
    if unknown:
        raise StateError("packages.unknown", f"not installed: {', '.join(sorted(unknown))}", "see dpkg --list")
    return chosen


def _read_status(tree: _Tree) -> list[_Installed]:
    status = tree.index("status")
    if not status:
        raise StateError(
            "packages.database", f"{tree.root} has no dpkg status file", "name the root of a Debian system"
        )
    found = []
    for stanza in status.split("\n\n"):
        fields = control_fields(stanza)
        if fields.get("Status", "").endswith(" installed") and {"Package", "Version"} <= fields.keys():
            package = _Installed(
                name=fields["Package"],
                architecture=fields.get("Architecture", ""),
                version=fields["Version"],
                multi_arch=fields.get("Multi-Arch") == "same",
                conffiles=_conffiles(fields.get("Conffiles", "")),
            )
            found.append(package)
    return sorted(found, key=lambda each: each.label)


def control_fields(stanza: str) -> dict[str, str]:
    """Field → value of one stanza (deb822(5)); continuation lines stay in the value."""
    fields: dict[str, str] = {}
    last = ""
    for line in stanza.split("\n"):
        if line[:1] in {" ", "\t"}:
            fields[last] = f"{fields.get(last, '')}\n{line[1:]}"
        else:
            last, _, value = line.partition(":")
            fields[last] = value.strip()
    return fields


def _conffiles(value: str) -> dict[str, str]:
    # "/etc/x <md5 as shipped> [obsolete] [remove-on-upgrade]"; a path may hold spaces.
    found = {}
    for line in value.split("\n"):
        path, _, md5 = line.removesuffix(" remove-on-upgrade").removesuffix(" obsolete").rpartition(" ")
        found[path] = md5
    return found


def _read_diversions(tree: _Tree) -> dict[str, tuple[str, str]]:
    """Path → where it went, and the package that keeps the original name (dpkg-divert(1))."""
    lines = iter(tree.index("diversions").split("\n"))
    return {path: (to, owner) for path, to, owner in zip(lines, lines, lines, strict=False)}


class _Tree:
    """Files below ``root``, whose symlinks are followed as in a chroot: none leads out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, str] = {}
        self.merged = frozenset(top for top in MERGED if self._folder(f"/{top}") == f"/usr/{top}")

    def index(self, name: str) -> str:
        """A file of dpkg's database; empty when there is none."""
        path = self._outside(f"/var/lib/dpkg/{name}")
        try:
            with path.open("rb") as file:
                data = file.read(PACKAGE_INDEX_BYTES_MAX + 1)
        except FileNotFoundError:
            return ""
        if len(data) > PACKAGE_INDEX_BYTES_MAX or b"\0" in data:
            raise StateError("packages.database", f"{path} has over {PACKAGE_INDEX_BYTES_MAX} bytes, or isn't text")
        return os.fsdecode(data)

    def digests(self, path: str, which: Which) -> tuple[str, str] | None:
        """MD5 and SHA-256 of the regular file at ``path``; None for anything else, and for what isn't asked for."""
        actual = self._outside(path)
        try:
            mode = actual.lstat().st_mode
        except FileNotFoundError:
            return None  # left out at installation (path-exclude), or removed: nothing that could run
        if not stat.S_ISREG(mode):
            return None
        descriptor = os.open(actual, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            head = file.read(HASH_CHUNK_BYTES if which == "all" or is_measured(path, mode, b"") else len(ELF))
            return hash_file(file, head) if which == "all" or is_measured(path, mode, head) else None

    def _outside(self, path: str) -> Path:
        folder, _, name = path.rpartition("/")
        return self.root / f"{self._folder(folder or '/')}/{name}".lstrip("/")

    def _folder(self, path: str) -> str:
        """``path`` with its symlinks resolved below the root; each folder is looked at once."""
        known = self._folders.get(path)
        if known is None:
            known = self._folders[path] = self._resolve(path)
        return known

    def _resolve(self, path: str) -> str:
        here, links = "", 0
        ahead = path.split("/")[::-1]
        while ahead:
            name = ahead.pop()
            if name in {"", "."}:
                continue
            above = here.rpartition("/")[0] if name == ".." else here
            here = above if name == ".." else f"{here}/{name}"
            try:
                target = os.readlink(self.root / here.lstrip("/"))
            except OSError:
                continue  # no link, or nothing at all
            links += 1
            if links > SYMLINKS_MAX:
                raise StateError("packages.links", f"{path} goes through more than {SYMLINKS_MAX} symbolic links")
            here = "" if target.startswith("/") else above
            ahead += target.split("/")[::-1]
        return here or "/"

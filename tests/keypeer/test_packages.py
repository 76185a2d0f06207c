"""Reference values from Debian packages: installed ones (a made-up root, and this machine's own) and .deb files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from keypeer.debs import from_debs
from keypeer.errors import StateError
from keypeer.packages import Deviation, aliases, from_dpkg, is_measured

ELF = b"\x7fELF\x02\x01\x01"
TOOL, LIBRARY, MODULE, SCRIPT = ELF + b"tool", ELF + b"library", b"\xfd7zXZ module", b"#!/bin/sh\n"

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg-deb")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class System:
    """A root with a dpkg database; /bin and /lib are links into /usr."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.info = root / "var/lib/dpkg/info"
        self.info.mkdir(parents=True)
        for top in ("bin", "lib"):
            (root / "usr" / top).mkdir(parents=True)
            (root / top).symlink_to(f"usr/{top}")
        self.status = ""

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(mode)

    def package(
        self,
        name: str,
        files: dict[str, bytes],
        *,
        status: str = "install ok installed",
        more: str = "",
        info: str | None = None,
    ) -> None:
        self.status += f"Package: {name}\nStatus: {status}\nArchitecture: amd64\nVersion: 1.0-1\n{more}\n"
        (self.root / "var/lib/dpkg/status").write_text(self.status)
        lines = "".join(f"{path}\n" for path in ("/.", "/usr", *files))
        (self.info / f"{info or name}.list").write_text(lines)
        sums = "".join(f"{md5(data)}  {path[1:]}\n" for path, data in files.items() if not path.startswith("/etc"))
        (self.info / f"{info or name}.md5sums").write_text(sums)


@pytest.fixture
def system(tmp_path: Path) -> System:
    made = System(tmp_path)
    files = {"/bin/tool": TOOL, "/usr/lib/libx.so.1": LIBRARY, "/lib/modules/6.1/x.ko.xz": MODULE, "/usr/doc": b"words"}
    for path, data in files.items():
        made.put(path, data, 0o755 if path == "/bin/tool" else 0o644)
    made.package("tools", files)
    return made


def test_what_ima_measures_is_listed_under_both_names_of_a_merged_usr(system: System) -> None:
    found = from_dpkg(system.root, name="tools-2026.2")
    assert found.deviations == []
    assert json.loads(found.document()) == {
        "name": "tools-2026.2",
        "created_from": ["tools=1.0-1"],
        "files": {
            "/bin/tool": [sha256(TOOL)],
            "/usr/bin/tool": [sha256(TOOL)],
            "/lib/libx.so.1": [sha256(LIBRARY)],
            "/usr/lib/libx.so.1": [sha256(LIBRARY)],
            "/lib/modules/6.1/x.ko.xz": [sha256(MODULE)],
            "/usr/lib/modules/6.1/x.ko.xz": [sha256(MODULE)],
        },
    }


def test_all_lists_every_regular_file(system: System) -> None:
    assert "/usr/doc" in from_dpkg(system.root, which="all").files


def test_the_document_is_the_same_each_time(system: System) -> None:
    system.package("more", {"/bin/tool": TOOL})
    assert from_dpkg(system.root).document() == from_dpkg(system.root, ["more", "tools"]).document()


@pytest.mark.parametrize("keep", [False, True])
def test_a_file_that_differs_from_its_package_is_reported_and_left_out_unless_kept(system: System, keep: bool) -> None:
    system.put("/bin/tool", ELF + b"trojan", 0o755)
    found = from_dpkg(system.root, keep_changed=keep)
    assert found.deviations == [Deviation("tools", "/bin/tool", "differs from the package's MD5 list")]
    assert found.files.get("/usr/bin/tool") == ({sha256(ELF + b"trojan")} if keep else None)


def test_a_file_without_a_known_digest_is_reported(system: System) -> None:
    (system.info / "tools.md5sums").unlink()
    found = from_dpkg(system.root)
    assert {each.problem for each in found.deviations} == {"isn't in the package's MD5 list"}
    assert found.files == {}


def test_configuration_files_are_held_to_their_own_digests(system: System) -> None:
    system.put("/etc/init.d/good one", SCRIPT, 0o755)
    system.put("/etc/init.d/edited", SCRIPT + b"edited", 0o755)
    conffiles = f"Conffiles:\n /etc/init.d/good one {md5(SCRIPT)}\n /etc/init.d/edited {md5(SCRIPT)} obsolete\n"
    system.package("daemon", {"/etc/init.d/good one": SCRIPT, "/etc/init.d/edited": SCRIPT}, more=conffiles)
    found = from_dpkg(system.root, ["daemon"])
    assert set(found.files) == {"/etc/init.d/good one"}
    assert [each.path for each in found.deviations] == ["/etc/init.d/edited"]


def test_what_is_not_installed_does_not_count(system: System) -> None:
    system.package("gone", {"/bin/tool": TOOL}, status="deinstall ok config-files")
    system.package("half", {"/bin/tool": TOOL}, status="install ok half-installed")
    assert from_dpkg(system.root).packages == {"tools=1.0-1"}


def test_a_package_of_several_architectures_is_named_with_its_own(system: System) -> None:
    system.package("libx", {"/usr/lib/libx.so.1": LIBRARY}, more="Multi-Arch: same\n", info="libx:amd64")
    for name in ("libx", "libx:amd64"):
        found = from_dpkg(system.root, [name])
        assert found.packages == {"libx:amd64=1.0-1"}
        assert "/usr/lib/libx.so.1" in found.files


def test_a_diverted_file_is_where_it_went(system: System) -> None:
    system.put("/bin/tool.distrib", TOOL, 0o755)
    system.put("/bin/tool", SCRIPT, 0o755)
    system.package("wrapper", {"/bin/tool": SCRIPT})
    (system.root / "var/lib/dpkg/diversions").write_text("/bin/tool\n/bin/tool.distrib\nwrapper\n")
    found = from_dpkg(system.root)
    assert found.deviations == []
    assert (found.files["/bin/tool"], found.files["/bin/tool.distrib"]) == ({sha256(SCRIPT)}, {sha256(TOOL)})


def test_links_lead_nowhere_outside_the_root(system: System, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("host")
    (outside / "secret").write_bytes(TOOL)
    (outside / "secret").chmod(0o755)
    (system.root / "escape").symlink_to(outside)
    (system.root / "up").symlink_to(f"../../../../../../../..{outside}")
    (system.root / "absolute").symlink_to("/usr/bin")
    (system.root / "usr/bin/final").symlink_to(outside / "secret")
    files = {"/escape/secret": TOOL, "/up/secret": TOOL, "/absolute/tool": TOOL, "/usr/bin/final": TOOL}
    system.package("links", files)
    assert set(from_dpkg(system.root, ["links"]).files) == {"/absolute/tool"}


def test_a_loop_of_links_ends(system: System) -> None:
    (system.root / "one").symlink_to("two")
    (system.root / "two").symlink_to("one")
    system.package("loop", {"/one/x": TOOL})
    with pytest.raises(StateError, match="symbolic links"):
        from_dpkg(system.root, ["loop"])


def test_names_are_lines_and_nothing_else_ends_one(system: System) -> None:
    path = "/usr/bin/two\u2028words\x0c"
    system.put(path, TOOL, 0o755)
    system.package("lines", {path: TOOL})
    assert path in from_dpkg(system.root, ["lines"]).files


@pytest.mark.parametrize("path", ["/x" * 2000, "/usr/bin/" + "x" * 300, "/usr/bin/tool/x"])
def test_paths_that_cannot_be_are_reported_or_passed_over(system: System, path: str) -> None:
    system.package("long", {path: TOOL})
    assert from_dpkg(system.root, ["long"]).files == {}


def test_a_database_that_is_no_text_is_an_error(system: System) -> None:
    (system.info / "tools.list").write_bytes(b"/usr/bin/tool\0\n")
    with pytest.raises(StateError, match="isn't text"):
        from_dpkg(system.root)


def test_a_fifo_or_a_missing_file_is_passed_over(system: System) -> None:
    os.mkfifo(system.root / "usr/bin/pipe")
    system.package("odd", {"/usr/bin/pipe": b"", "/usr/share/man/left-out": b""})
    assert from_dpkg(system.root, ["odd"]).deviations == []


def test_an_unreadable_file_is_reported(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the system's refusal is played."""
    opens = os.open

    def refusing(path: str, flags: int) -> int:
        if str(path).endswith("/bin/tool"):
            raise PermissionError(13, "Permission denied", path)
        return opens(path, flags)

    monkeypatch.setattr(os, "open", refusing)
    (deviation,) = from_dpkg(system.root).deviations
    assert deviation == Deviation("tools", "/bin/tool", "can't be read: Permission denied")


def test_a_name_that_is_not_utf8_is_reported(system: System) -> None:
    path = os.fsdecode(b"/usr/bin/caf\xe9")
    system.put(path, TOOL, 0o755)
    system.package("latin", {})
    (system.info / "latin.list").write_bytes(os.fsencode(path) + b"\n")
    (system.info / "latin.md5sums").write_bytes(md5(TOOL).encode() + b"  " + os.fsencode(path[1:]) + b"\n")
    found = from_dpkg(system.root, ["latin"])
    assert found.deviations == [Deviation("latin", r"/usr/bin/caf\xe9", "has a name that isn't UTF-8")]
    assert found.document()


def test_an_unknown_package_is_an_error(system: System) -> None:
    with pytest.raises(StateError, match="nothing-such"):
        from_dpkg(system.root, ["tools", "nothing-such"])


def test_no_database_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no dpkg status"):
        from_dpkg(tmp_path)


def test_progress_counts_to_the_end(system: System) -> None:
    system.package("more", {})
    seen: list[tuple[int, int, str]] = []
    from_dpkg(system.root, progress=lambda *step: seen.append(step))
    assert seen == [(0, 2, "more"), (1, 2, "tools"), (2, 2, "")]


@pytest.mark.skipif(
    not Path("/var/lib/dpkg/info/coreutils.md5sums").exists(), reason="this machine has no coreutils.deb"
)
def test_this_machines_own_coreutils() -> None:
    found = from_dpkg(Path("/"), ["coreutils"])
    assert found.deviations == []
    path = "/bin/cat" if "/bin/cat" in found.files else "/usr/bin/cat"
    assert found.files[path] == {sha256(Path(path).read_bytes())}
    assert len(found.files) > 80


# ── .deb files ─────────────────────────────────────────────────────────────────────────────────────────────────


def build_deb(folder: Path, *, sums: dict[str, bytes] | None = None) -> Path:
    tree = folder / "tree"
    files = {"usr/bin/tool": TOOL, "lib/libx.so.1": LIBRARY, "usr/share/doc/x": b"words", "etc/init.d/x": SCRIPT}
    for path, data in files.items():
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o755 if path in {"usr/bin/tool", "etc/init.d/x"} else 0o644)
    os.link(tree / "usr/bin/tool", tree / "usr/bin/twin")
    (tree / "usr/bin/link").symlink_to("tool")
    control = tree / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(
        "Package: tools\nVersion: 2.0-1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: x\n"
    )
    listed = sums if sums is not None else {path: data for path, data in files.items() if not path.startswith("etc")}
    (control / "md5sums").write_text("".join(f"{md5(data)}  {path}\n" for path, data in listed.items()))
    archive = folder / "tools_2.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, archive], check=True, capture_output=True)
    shutil.rmtree(tree)
    return archive


@needs_dpkg
def test_a_deb_is_read_without_unpacking(tmp_path: Path) -> None:
    build_deb(tmp_path)
    found = from_debs(tmp_path)
    assert found.deviations == []
    assert found.packages == {"tools=2.0-1"}
    assert found.files == {
        "/bin/tool": {sha256(TOOL)},
        "/usr/bin/tool": {sha256(TOOL)},
        "/bin/twin": {sha256(TOOL)},
        "/usr/bin/twin": {sha256(TOOL)},
        "/lib/libx.so.1": {sha256(LIBRARY)},
        "/usr/lib/libx.so.1": {sha256(LIBRARY)},
        "/etc/init.d/x": {sha256(SCRIPT)},
    }
    assert "/usr/share/doc/x" in from_debs(tmp_path, which="all").files
    assert [path.name for path in tmp_path.iterdir()] == ["tools_2.0-1_all.deb"]


@needs_dpkg
@pytest.mark.parametrize("keep", [False, True])
def test_a_deb_that_contradicts_its_own_list_is_reported(tmp_path: Path, keep: bool) -> None:
    build_deb(tmp_path, sums={"lib/libx.so.1": b"what it was"})
    found = from_debs(tmp_path, keep_changed=keep)
    assert found.deviations == [Deviation("tools", "/lib/libx.so.1", "differs from the package's MD5 list")]
    assert ("/lib/libx.so.1" in found.files) is keep


@needs_dpkg
@pytest.mark.parametrize("share", [0, 0.2, 0.9])
def test_a_damaged_deb_is_an_error(tmp_path: Path, share: float) -> None:
    archive = build_deb(tmp_path)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(StateError) as caught:
        from_debs(tmp_path)
    assert caught.value.code == "packages.deb"


def test_no_deb_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"no \.deb"):
        from_debs(tmp_path)


@needs_dpkg
def test_without_dpkg_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_deb(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StateError, match="dpkg-deb"):
        from_debs(tmp_path)


# ── what is measured, and under which names ────────────────────────────────────────────────────────────────────

MEASURED = {
    "program": ("/usr/bin/x", 0o755, ELF, True),
    "script": ("/usr/bin/x", 0o755, b"#!", True),
    "executable for its group alone": ("/usr/bin/x", 0o710, b"#!", True),
    "library without the bit": ("/usr/lib/x.so", 0o644, ELF, True),
    "module, compressed": ("/usr/lib/modules/x.ko.zst", 0o644, b"\x28\xb5", True),
    "firmware": ("/lib/firmware/x.bin", 0o644, b"", True),
    "words": ("/usr/share/doc/x", 0o644, b"words", False),
    "empty": ("/usr/share/doc/x", 0o644, b"", False),
}


@pytest.mark.parametrize("name", MEASURED)
def test_is_measured(name: str) -> None:
    path, mode, head, expected = MEASURED[name]
    assert is_measured(path, mode, head) is expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/lib/x", ("/lib/x", "/usr/lib/x")),
        ("/usr/lib/x", ("/lib/x", "/usr/lib/x")),
        ("/usr/share/x", ("/usr/share/x",)),
        ("/opt/lib/x", ("/opt/lib/x",)),
        ("/usrlib/x", ("/usrlib/x",)),
        ("/usr", ("/usr",)),
        ("/bin", ("/bin", "/usr/bin")),
        ("/usr/libexec/x", ("/usr/libexec/x",)),
    ],
)
def test_aliases(path: str, expected: tuple[str, ...]) -> None:
    assert aliases(path, {"bin", "lib"}) == expected

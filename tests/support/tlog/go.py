"""Programs over Go's reference implementation of transparency logs (golang.org/x/mod/sumdb), as Debian has it."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keypeer.wire.tlog.note import VerifierKey

SOURCES = Path(__file__).parent
# Debian's golang-golang-x-mod-dev puts the reference implementation here; nothing is fetched.
GOPATH = "/usr/share/gocode"


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="keypeer-go-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def go_program(name: str) -> Path:
    """``name``.go, compiled once a test run."""
    folder = _folder()
    environment = {"GO111MODULE": "off", "GOPATH": GOPATH, "GOCACHE": str(folder / "cache"), "GOFLAGS": ""}
    subprocess.run(
        ["go", "build", "-o", str(folder / name), str(SOURCES / f"{name}.go")],
        env={**os.environ, **environment},
        check=True,
        timeout=240,
    )
    return folder / name


@dataclass(frozen=True)
class RunningWitness:
    """A witness process, and how to reach it."""

    process: subprocess.Popen[str]
    url: str
    key: VerifierKey


@contextmanager
def running_witness(
    log: VerifierKey, name: str = "witness.test/w", seed: bytes = bytes(32)
) -> Iterator[RunningWitness]:
    """A witness of ``log`` that knows nothing of it yet."""
    command = [str(go_program("witness")), name, seed.hex(), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url, key = process.stdout.readline().split()
            yield RunningWitness(process, url, VerifierKey.parse(key))
        finally:
            process.kill()

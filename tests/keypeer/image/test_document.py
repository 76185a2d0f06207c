"""deploy/image.md does what it says: its commands, its reader, its image."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from keypeer.image import encrypt
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey

DOCUMENT = (Path(__file__).resolve().parents[3] / "deploy" / "image.md").read_text()
KEY = bytes(range(64))
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def prepared(folder: Path) -> bytes:
    """A key and a memory of a few chunks → the memory."""
    (folder / "web-1.key").write_bytes(KEY)
    (folder / "web-1.key").chmod(0o600)
    memory = os.urandom(3 * 1024 * 1024 + 100)
    (folder / "memory").write_bytes(memory)
    return memory


def shell(folder: Path, script: str) -> str:
    done = subprocess.run(
        ["bash", "-euc", f"set -o pipefail\n{script}"],
        cwd=folder,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_commands_do_what_stands_beside_them(tmp_path: Path) -> None:
    memory = prepared(tmp_path)
    commands, xts = blocks("bash")
    shown = shell(tmp_path, commands)
    assert ("no: no key" in shown, "verified    yes" in shown) == (True, True)
    assert (tmp_path / "restored").read_bytes() == memory
    assert (tmp_path / "page").read_bytes() == memory[8192:12288]
    shell(tmp_path, xts)
    assert (tmp_path / "raw").stat().st_size == len(memory)
    assert (tmp_path / "same").read_bytes() == memory
    assert (tmp_path / "part").read_bytes() == memory[100:150]


def test_the_documents_reader_reads_an_image_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    memory = prepared(tmp_path)
    shell(tmp_path, blocks("bash")[0])
    (reader,) = blocks("python")
    command = [sys.executable, "-I", "-c", reader, "web-1.key", "web-1.kpi"]
    assert subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, timeout=60, check=True).stdout == memory
    image = tmp_path / "web-1.kpi"
    image.write_bytes(image.read_bytes()[:-1])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert b"InvalidTag" in done.stderr
    assert memory.startswith(done.stdout)


def test_the_documents_image_is_the_one_that_is_written() -> None:
    (shown,) = blocks("hex")
    secret, target = LockedBytes(64), io.BytesIO()
    secret.writable[:] = KEY
    with VmKey(secret, vm="web-1", version=1, generation=0, lease_expires_at=0, grace=0) as key:
        image_id = bytes(range(16))
        encrypt(io.BytesIO(b"keypeer\n"), target, key, epoch=7, image_id=image_id, created_at=1_900_000_000, chunk=4096)
    assert target.getvalue() == bytes.fromhex(shown)

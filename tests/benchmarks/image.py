"""GB/s of encrypting and decrypting memory images on one core, against `openssl speed` for AES-256-GCM.

    python -m tests.benchmarks.image [--mib 512] [--rounds 5] [--seconds 1]

`library` is keypeer.image from a file in memory (tmpfs) to /dev/null, reading included; `command` is the whole
`keypeer image` as a filter, started once a round, whose start has a row of its own. Two limits: openssl's own loop over
the same chunk (the machine's openssl), and the loop of `cryptography` over one chunk that stays in the cache (the
library's own OpenSSL, often newer). All are CPU seconds, user and system, as openssl counts them too; rounds are
interleaved, figures are medians. `age` (Debian's) is unpacked once where the machine has none.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keypeer import limits
from keypeer.image import decrypt, encrypt
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey
from tests.benchmarks.peers.environments import attempt, program
from tests.benchmarks.report import Row, Spread, in_turns, tell

TARGET = 0.7  # of openssl speed, for the library, both ways
CHUNK = limits.IMAGE_CHUNK_BYTES
MIB = 1024 * 1024
KEYPEER = str(Path(sys.executable).with_name("keypeer"))
NAMED = ("--vm", "web-1", "--key-version", "1")
OPENSSL, PYCA, AGE, START = "limit: openssl speed", "limit: cryptography", "age", "start"


class Files:
    """A key and an image in memory, and what is measured on them; each gives CPU seconds."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        self.plain, self.image, self.key = folder / "plain", folder / "image", folder / "key"
        self.key.write_bytes(os.urandom(64))
        self.key.chmod(0o600)
        with self.plain.open("wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
        self.library_encrypt(self.image)

    def library_encrypt(self, target: Path = Path("/dev/null")) -> float:
        """keypeer.image.encrypt."""
        with self._key() as key, self.plain.open("rb", buffering=0) as source, target.open("wb", buffering=0) as file:
            start = time.process_time()
            written = encrypt(source, file, key, epoch=0, created_at=0)
            spent = time.process_time() - start
        assert written.size == self.size
        return spent

    def library_decrypt(self) -> float:
        """keypeer.image.decrypt."""
        with self._key() as key, self.image.open("rb", buffering=0) as source, open("/dev/null", "wb", 0) as file:
            start = time.process_time()
            assert decrypt(source, file, key) == self.size
            return time.process_time() - start

    def command(self, *arguments: str, source: Path | None = None) -> float:
        """A program as a filter, ``source`` to /dev/null."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with open(source or os.devnull, "rb") as given, open(os.devnull, "wb") as taken:
            subprocess.run(arguments, stdin=given, stdout=taken, stderr=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def peak(self, *arguments: str, source: Path) -> int:
        """The most memory that a program had, in bytes."""
        with open(source, "rb") as given, open(os.devnull, "wb") as taken:
            process = subprocess.Popen(arguments, stdin=given, stdout=taken, stderr=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_maxrss * 1024

    def _key(self) -> VmKey:
        secret = LockedBytes(64)
        secret.writable[:] = self.key.read_bytes()
        return VmKey(secret, vm="web-1", version=1, generation=0, lease_expires_at=0, grace=0)


def openssl(seconds: float) -> float:
    """Bytes a second, as openssl speed counts them."""
    command = ["openssl", "speed", "-mr", "-seconds", str(max(1, round(seconds))), "-bytes", str(CHUNK)]
    shown = subprocess.run([*command, "-evp", "aes-256-gcm"], capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("+F:")]
    return float(line.split(":")[-1])


def pyca(seconds: float) -> float:
    """Bytes a second of one chunk sealed again and again: no memory to read, no format."""
    aead, data, sealed = AESGCM(os.urandom(32)), bytearray(CHUNK), bytearray(CHUNK + 16)
    done, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        aead.encrypt_into(done.to_bytes(12, "big"), data, b"", sealed)
        done += 1
    return done * CHUNK / spent


def with_age(files: Files, folder: Path) -> dict[str, Callable[[], float]]:
    """age's, where it can be had: X25519 recipient, ChaCha20-Poly1305 in chunks of 64 KiB."""
    age = attempt(lambda: str(program("age", "age")[0]))
    if not age:
        return {}
    keygen = f"{age}-keygen"
    identity, sealed = folder / "identity", folder / "sealed"
    subprocess.run([keygen, "-o", identity], stderr=subprocess.DEVNULL, check=True)
    shown = subprocess.run([keygen, "-y", identity], capture_output=True, text=True, check=True)
    recipient = shown.stdout.strip()
    subprocess.run([age, "-r", recipient, "-o", sealed, files.plain], check=True)
    return {
        f"{AGE}, encrypt": lambda: files.size / files.command(age, "-r", recipient, source=files.plain) / 1e9,
        f"{AGE}, decrypt": lambda: files.size / files.command(age, "-d", "-i", str(identity), source=sealed) / 1e9,
    }


def measure(folder: Path, size: int, rounds: int, seconds: float) -> tuple[dict[str, Spread], int]:
    """By row, in GB/s (the start: in seconds), and the command's peak memory in bytes."""
    files = Files(folder, size)
    encrypting = (KEYPEER, "image", "encrypt", "--key-file", str(files.key), *NAMED)
    decrypting = (KEYPEER, "image", "decrypt", "--key-file", str(files.key))
    found = in_turns(
        {
            OPENSSL: lambda: openssl(seconds) / 1e9,
            PYCA: lambda: pyca(seconds) / 1e9,
            "library, encrypt": lambda: size / files.library_encrypt() / 1e9,
            "library, decrypt": lambda: size / files.library_decrypt() / 1e9,
            "command, encrypt": lambda: size / files.command(*encrypting, source=files.plain) / 1e9,
            "command, decrypt": lambda: size / files.command(*decrypting, source=files.image) / 1e9,
            **with_age(files, folder),
            START: lambda: files.command(*encrypting),
        },
        rounds,
    )
    peak = max(files.peak(*encrypting, source=files.plain), files.peak(*decrypting, source=files.image))
    return found, peak


def told(found: Mapping[str, Spread], peak: int, size: int) -> tuple[Row, ...]:
    """The rows of ``measure``."""
    made = []
    for what in ("library", "command"):
        for way in ("encrypt", "decrypt"):
            ours, marked = found[f"{what}, {way}"], what == "library"
            names = [name for name in (OPENSSL, PYCA, f"{AGE}, {way}") if name in found]
            made.append(
                Row(
                    what=f"memory images, {what}, {way}, one core",
                    unit="GB/s",
                    ours=ours,
                    beside={name: found[name] for name in names},
                    mark=f"≥ {TARGET} of openssl" if marked else "",
                    met=ours.median >= TARGET * found[OPENSSL].median if marked else None,
                    note=f"{size // MIB} MiB in chunks of {CHUNK // 1024} KiB, GB per CPU second",
                    chief=marked,
                )
            )
    start = Row(what="start of `keypeer image`", unit="s CPU", ours=found[START], better="less")
    memory = Row(what="peak memory of `keypeer image`", unit="MiB", ours=Spread.of([peak / MIB]), better="less")
    return (*made, start, memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # files of random names there
    with tempfile.TemporaryDirectory(prefix="keypeer-bench-", dir=memory) as folder:
        tell(*told(*measure(Path(folder), options.mib * MIB, options.rounds, options.seconds), options.mib * MIB))


if __name__ == "__main__":
    main()

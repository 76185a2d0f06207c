"""One run of the suite: where, when and of what it was made, and every module's rows; its JSON file."""

from __future__ import annotations

import datetime
import os
import platform
import ssl
import subprocess
from importlib.metadata import version
from pathlib import Path

import msgspec

from tests.benchmarks.report import Row

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = (
    "aiohttp", "asyncpg", "cryptography", "lmdb", "msgspec", "python-pkcs11", "uvloop",
)  # fmt: skip


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures depend on."""

    cpu: str
    cores: int
    memory_gib: int
    kernel: str
    python: str
    openssl: str  # the standard library's, which does the TLS
    packages: dict[str, str]

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = [line.partition(":")[2] for line in lines if line.startswith("model name")]
        return cls(
            cpu=cpu[0].strip() if cpu else platform.processor(),
            cores=os.cpu_count() or 1,
            memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            kernel=platform.release(),
            python=platform.python_version(),
            openssl=ssl.OPENSSL_VERSION,
            packages={name: version(name) for name in DISTRIBUTIONS},
        )

    def __str__(self) -> str:
        return (
            f"{self.cores} cores ({self.cpu}), {self.memory_gib} GiB, Linux {self.kernel}, Python {self.python}, "
            f"{self.openssl}"
        )


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """One module's part of a run."""

    name: str
    seconds: float
    good: bool  # it ended with exit status 0
    rows: tuple[Row, ...] = ()


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    version: str
    commit: str  # with "+" where files were changed since
    date: str
    machine: Machine
    quick: bool  # rounds too short for figures to be quoted
    modules: tuple[Module, ...] = ()

    @classmethod
    def begin(cls, *, quick: bool) -> Run:
        """A run of nothing yet, now and here."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(version=version("keypeer"), commit=_commit(), date=now, machine=Machine.here(), quick=quick)

    @property
    def rows(self) -> dict[tuple[str, str], Row]:
        """By module and ``what``."""
        return {(module.name, row.what): row for module in self.modules for row in module.rows}

    @classmethod
    def read(cls, file: Path) -> Run:
        """Raises OSError, msgspec.ValidationError."""
        return msgspec.json.decode(file.read_bytes(), type=cls)

    def write(self, file: Path) -> None:
        """As JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def _commit() -> str:
    """The checkout's; "unknown" without git."""
    try:
        head, changed = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain", "-uno")
    except FileNotFoundError:
        return "unknown"
    return (head or "unknown") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()

"""The agent's folder, its owner's alone.

agent.toml          server, host, tcti, boot_log, ima_log
ca.crt              who signs the service's certificate: its CA's certificates in force
host.key host.crt   the host's TLS identity: EC P-256, made at enrolment
session-key.der     under which the HSM signs sessions, pinned at enrolment (SPKI)
binding.pub .priv   the binding key's TPM2B_PUBLIC and TPM2B_PRIVATE; only this host's TPM can load it
geo-tag.json        the current geo-tag as the service signed it
launches.json       what this boot's launch PCR was extended with
lock                held while a process of this agent is at the TPM
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE

import msgspec

from keypeer import limits
from keypeer.errors import StateError
from keypeer.tpm import DEFAULT_TCTI, BindingBlob, Boot
from keypeer.wire.launch import LaunchEntry
from keypeer.wire.messages import SignedGeoTag
from keypeer.wire.types import HostId

_DRAFT = ".new"
_OTHERS = 0o077  # group's and others' permission bits


_KERNEL_BOOT_LOG = "/sys/kernel/security/tpm0/binary_bios_measurements"
_KERNEL_IMA_LIST = "/sys/kernel/security/ima/ascii_runtime_measurements"


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """agent.toml, which `keypeer agent enrol` writes."""

    server: str
    """The service's URL, https://HOST:PORT."""
    host: HostId
    """The host's name at the service, like a DNS label."""
    tcti: str = DEFAULT_TCTI
    """The TPM, as tpm2-tss names it (TCTI): `device:PATH`, `swtpm:…`."""
    boot_log: str | None = None
    """File of the firmware's event log; empty: none. Left out: the kernel's, where the TPM is a `device:` and the
    kernel has one."""
    ima_log: str | None = None
    """File of Linux' IMA measurement list; empty: none. Left out: the kernel's, as with `boot_log`."""

    def boot_log_file(self) -> Path | None:
        """The firmware's event log, if any."""
        return self._log(self.boot_log, _KERNEL_BOOT_LOG)

    def ima_log_file(self) -> Path | None:
        """Linux' measurement list, if any."""
        return self._log(self.ima_log, _KERNEL_IMA_LIST)

    def _log(self, told: str | None, kernels: str) -> Path | None:
        if told is not None:
            return Path(told) if told else None
        # The kernel's logs speak of the machine's own chip; another TPM knows nothing of them.
        return Path(kernels) if self.tcti.startswith("device:") and Path(kernels).exists() else None


class _Launches(msgspec.Struct, frozen=True, kw_only=True):
    """launches.json: the entries of the boot with this resetCount."""

    reset_count: int
    entries: tuple[LaunchEntry, ...]


class AgentState:
    """An agent's folder that exists and that nobody else may read. Use ``open`` or ``create``."""

    def __init__(self, folder: Path, settings: AgentSettings) -> None:
        self.folder = folder
        self.settings = settings
        self._draft = ""  # of settings and CA that an enrolment may yet put in force

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> AgentState:
        """The state in ``folder``; raises StateError ``state.missing``, ``state.permissions`` or ``state.settings``."""
        place = Path(folder)
        _check_private(place)
        text = _read(place / "agent.toml", "the folder holds no agent")
        try:
            settings = msgspec.convert(tomllib.loads(text.decode()), AgentSettings)
        except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise StateError("state.settings", f"{place / 'agent.toml'}: {error}", "mend it, or enrol anew") from None
        _check_server(settings.server)
        return cls(place, settings)

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        *,
        server: str,
        host: str,
        ca: bytes,
        tcti: str = DEFAULT_TCTI,
        boot_log: str | None = None,
        ima_log: str | None = None,
    ) -> AgentState:
        """A folder for ``host`` (0700). ``ca`` is PEM. Where the host's agent is there already, its settings and CA
        stay as they are until ``save_certificate``: an enrolment that fails changes nothing. Raises StateError
        ``state.host`` for another host's folder."""
        place = Path(folder)
        _check_server(server)
        told = {"server": server, "host": host, "tcti": tcti, "boot_log": boot_log, "ima_log": ima_log}
        try:
            settings = msgspec.convert(told, AgentSettings)
        except msgspec.ValidationError as error:
            raise StateError("state.settings", str(error), "a host's name is like a DNS label") from None
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(place)
        state = cls(place, settings)
        if (place / "agent.toml").exists():
            there = cls.open(place).settings
            if there.host != host:
                found = f"{place} is the folder of host {there.host}"
                raise StateError("state.host", found, "give another folder, or remove this one")
            state._draft = _DRAFT
        # A JSON string is a TOML basic string (TOML 1.0.0, String).
        values = {name: value for name, value in msgspec.structs.asdict(settings).items() if value is not None}
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
        state._write(f"ca.crt{state._draft}", ca)
        state._write(f"agent.toml{state._draft}", "".join(lines).encode())
        return state

    # ── TLS identity ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def ca(self) -> Path:
        """PEM of the CA that signs the service's certificate."""
        return self.folder / f"ca.crt{self._draft}"

    @property
    def key(self) -> Path:
        """PEM of the host's TLS key."""
        return self.folder / "host.key"

    @property
    def certificate(self) -> Path:
        """PEM of the host's certificate."""
        return self.folder / "host.crt"

    def tls_key(self) -> bytes | None:
        """The TLS key's PEM; None before the first enrolment. Raises StateError when others may read it."""
        if not self.key.exists():
            return None
        _check_private(self.key)
        return _read(self.key, "")

    def save_tls_key(self, pem: bytes) -> None:
        """Keeps a new TLS key."""
        self._write("host.key", pem)

    def save_certificate(self, pem: str) -> None:
        """Keeps the certificate that an enrolment gave, and with it the settings and the CA that it was made with."""
        if self._draft:
            for name in ("ca.crt", "agent.toml"):
                (self.folder / f"{name}{self._draft}").replace(self.folder / name)
            self._draft = ""
        self._write("host.crt", pem.encode())

    def renew_certificate(self, pem: str) -> None:
        """Keeps a newer certificate over the same key."""
        self._write("host.crt", pem.encode())

    def save_ca(self, bundle: bytes) -> None:
        """Keeps what signs the service's certificate from now on (PEM)."""
        self._write("ca.crt", bundle)

    def session_key(self) -> bytes:
        """The public key under which the HSM signs sessions (SPKI DER). Raises StateError ``state.missing``."""
        return _read(self.folder / "session-key.der", "no enrolment has pinned the HSM's session key")

    def save_session_key(self, spki: bytes) -> None:
        """Pins the HSM's session key."""
        self._write("session-key.der", spki)

    # ── what belongs to the TPM ────────────────────────────────────────────────────────────────────────────────

    def binding(self) -> BindingBlob | None:
        """The binding key made last, if any."""
        public, private = self.folder / "binding.pub", self.folder / "binding.priv"
        if not (public.exists() and private.exists()):
            return None
        return BindingBlob(_read(public, ""), _read(private, ""))

    def save_binding(self, blob: BindingBlob) -> None:
        """Keeps a binding key. A crash between its files leaves a pair that the TPM won't load: a new one is made."""
        self._write("binding.priv", blob.private)
        self._write("binding.pub", blob.public)

    def forget_binding(self) -> None:
        """The next attestation makes a new binding key."""
        (self.folder / "binding.pub").unlink(missing_ok=True)
        (self.folder / "binding.priv").unlink(missing_ok=True)

    def geo_tag(self) -> SignedGeoTag | None:
        """The tag that the TPM holds the digest of, if any. Raises StateError ``state.geo_tag``."""
        place = self.folder / "geo-tag.json"
        if not place.exists():
            return None
        try:
            return msgspec.json.decode(_read(place, ""), type=SignedGeoTag)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateError("state.geo_tag", f"{place}: {error}", "delete it; the agent fetches it again") from None

    def save_geo_tag(self, tag: SignedGeoTag) -> None:
        """Keeps the tag as it was signed."""
        self._write("geo-tag.json", msgspec.json.encode(tag))

    def launches(self, boot: Boot) -> tuple[LaunchEntry, ...]:
        """What was launched in ``boot``, oldest first. Raises StateError ``state.launches``."""
        place = self.folder / "launches.json"
        if not place.exists():
            return ()
        try:
            kept = msgspec.json.decode(_read(place, "", limits.LAUNCH_LOG_BYTES_MAX), type=_Launches)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateError("state.launches", f"{place}: {error}", "reboot, or restore the file") from None
        return kept.entries if kept.reset_count == boot.reset_count else ()

    def save_launches(self, boot: Boot, entries: tuple[LaunchEntry, ...]) -> None:
        """Keeps the launch log of ``boot``."""
        self._write("launches.json", msgspec.json.encode(_Launches(reset_count=boot.reset_count, entries=entries)))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while at the TPM, so that two processes of one agent don't flush each other's keys. Raises StateError
        ``state.locked`` after limits.TPM_LOCK_S."""
        with open(os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:
            deadline = time.monotonic() + limits.TPM_LOCK_S
            while not _try_lock(file.fileno()):
                if time.monotonic() > deadline:
                    found = f"another process has held {self.folder / 'lock'} for {limits.TPM_LOCK_S:.0f} s"
                    raise StateError("state.locked", found, "is another agent of this host hanging?")
                time.sleep(limits.TPM_LOCK_POLL_S)
            yield

    def _write(self, name: str, data: bytes) -> None:
        write_private(self.folder, name, data)


def write_private(folder: Path, name: str, data: bytes) -> None:
    """A file of its owner's alone, whole or not at all: a draft, flushed to the disk, takes the name's place."""
    draft = folder / f".{name}.{os.getpid()}"
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / name)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path, missing: str, most: int = limits.STATE_FILE_BYTES_MAX) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StateError("state.missing", f"{path}: {missing}", "run: keypeer agent enrol") from None
    except OSError as error:
        raise StateError("state.permissions", f"{path}: {error.strerror}", "run as its owner") from None
    if len(data) > most:
        raise StateError("state.settings", f"{path} has {len(data)} bytes", "it isn't a file of this agent")
    return data


def _check_private(path: Path) -> None:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise StateError("state.missing", f"there is no {path}", "run: keypeer agent enrol") from None
    except OSError as error:
        raise StateError("state.permissions", f"{path}: {error.strerror}", "run as its owner") from None
    if found.st_uid != os.geteuid():
        raise StateError("state.permissions", f"{path} belongs to uid {found.st_uid}", "run as its owner")
    if S_IMODE(found.st_mode) & _OTHERS:
        mode = f"{S_IMODE(found.st_mode):04o}"
        raise StateError("state.permissions", f"others may use {path} (mode {mode})", f"chmod go= {path}")


def _check_server(url: str) -> None:
    if not url.startswith("https://"):
        raise StateError("state.settings", f"{url!r} is no https URL", "give the service's URL: https://…")

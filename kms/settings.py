"""The settings: one TOML file, read once. Relative paths start at the folder that holds it."""

from __future__ import annotations

import base64
import os
import pwd
from pathlib import Path

import msgspec

from keypeer.wire.encoding import WireError
from keypeer.wire.tlog.note import COSIGNATURE, VerifierKey
from kms import limits
from kms.errors import BadRequest
from kms.rates import Rate
from kms.setting_tables import AuditSettings, Settings
from kms.store.postgres_address import Address, is_postgres, parse
from kms.webhooks.port import Webhook

FILE = "keypeer.toml"
SETTINGS_BYTES_MAX = 65_536  # bytes
UNIX_PATH_BYTES_MAX = 107  # bytes; sun_path of unix(7) less its NUL


class Home:
    """The service's folder: settings, and where everything that they name stands."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings

    def path(self, text: str) -> Path:
        """``text`` as an absolute path."""
        return (self.folder / text).absolute()

    @property
    def run(self) -> Path:
        """Sockets and metrics of the running service."""
        return self.path(self.settings.service.run)

    @property
    def tls(self) -> Path:
        """``ca.pem``, ``server.pem``, ``server.key``."""
        return self.path(self.settings.service.tls)

    @property
    def store(self) -> Path:
        """The LMDB folder, where the store is one."""
        return self.path(self.settings.store.url.removeprefix("lmdb:"))

    def postgres(self, url: str = "") -> Address | None:
        """Where the PostgreSQL store is, when ``url``, or else the settings, name one."""
        named = url or self.settings.store.url
        return parse(named, self.folder) if is_postgres(named) else None

    def replica(self) -> Address | None:
        """Where this site's standby is, when the settings name one."""
        named = self.settings.store.replica
        return parse(named, self.folder) if named else None

    @property
    def vendor_cas(self) -> Path:
        """EK issuers' certificates, PEM or DER."""
        return self.path(self.settings.attestation.vendor_cas)

    @property
    def recovery(self) -> Path:
        """The recovery key's public half, its private half under the shares, and the backups of the HSM's keys."""
        return self.path("recovery")

    @property
    def identities(self) -> Path:
        """Where `keypeer init` puts the first staff certificates."""
        return self.path("identities")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        host, _, port = self.settings.service.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def rates(self) -> dict[str, Rate]:
        """The rate limits by name."""
        table = self.settings.limits
        named = {name: getattr(table, name) for name in table.__struct_fields__}
        return {name: Rate(each.rate, each.burst) for name, each in named.items()}

    def webhooks(self) -> tuple[Webhook, ...]:
        """Whom to tell of events, each with his secret (Standard Webhooks: base64 behind ``whsec_``)."""
        return tuple(Webhook(each.url, self._webhook_secret(each.secret)) for each in self.settings.webhook)

    def _webhook_secret(self, source: str) -> bytes:
        path = self.path(source.removeprefix("file:"))
        hint = "a line of whsec_ and the base64 of 24 to 64 random bytes"
        try:
            secret = base64.b64decode(path.read_text("ascii").strip().removeprefix("whsec_"), validate=True)
        except OSError as error:
            raise BadRequest("settings.webhook", f"{path}: {error.strerror}", hint=hint) from None
        except ValueError:  # its words may quote the secret
            raise BadRequest("settings.webhook", f"{path} holds no base64", hint=hint) from None
        if not limits.WEBHOOK_SECRET_BYTES_MIN <= len(secret) <= limits.WEBHOOK_SECRET_BYTES_MAX:
            raise BadRequest("settings.webhook", f"{path} holds {len(secret)} bytes", hint=hint)
        return secret

    def hsm_sockets(self) -> tuple[Path, ...]:
        """One Unix socket for each HSM worker."""
        folder = self.path(self.settings.hsm.sockets or self.settings.service.run)
        for each in (self.run, folder):
            longest = len(os.fsencode(each)) + len("/command-4194304.sock")
            if longest > UNIX_PATH_BYTES_MAX:
                raise BadRequest(
                    "settings.run",
                    f"{each} is too long for Unix sockets in it ({longest} bytes)",
                    hint="let service.run and hsm.sockets name folders whose paths have "
                    f"{UNIX_PATH_BYTES_MAX - 21} bytes at most",
                )
        return tuple(folder / f"hsm-{index}.sock" for index in range(self.settings.hsm.workers))

    @property
    def token_lock(self) -> Path:
        """What whoever changes the token holds (hsm_adapter/lock.py): one file for workers and commands."""
        return self.path(self.settings.hsm.lock) if self.settings.hsm.lock else self.run / "token.lock"

    def hsm_clients(self) -> tuple[int, ...]:
        """The uids of ``hsm.clients``. Raises BadRequest ``settings.hsm_clients``."""
        return tuple(map(_uid, self.settings.hsm.clients))

    def hsm_worker(self, socket: Path) -> dict[str, object]:
        """The settings of one HSM worker (hsm_adapter/settings.py)."""
        hsm = self.settings.hsm
        source, _, name = hsm.pin.partition(":")
        pin = hsm.pin
        if source == "file":
            pin = f"file:{self.path(name)}"
        elif source == "prompt":
            pin = "fd:0"  # the supervisor asks once and hands it on
        worker: dict[str, object] = {
            "module": hsm.module,
            "token_label": hsm.token,
            "pin": pin,
            "socket": str(socket),
            "lock": str(self.token_lock),
            "environment": {key: self._expand(value) for key, value in hsm.environment.items()},
            "exit_with_parent": True,
            "parent": os.getpid(),
        }
        if hsm.recycle_after is not None:
            worker["recycle_after"] = hsm.recycle_after
        if hsm.simulated_delay_ms:
            worker["simulated_delay_ms"] = hsm.simulated_delay_ms
            worker["simulated_delay_per"] = hsm.simulated_delay_per
        return worker

    def _expand(self, value: str) -> str:
        # `{home}` lets a settings file name SOFTHSM2_CONF without knowing where it will be unpacked.
        return value.replace("{home}", str(self.folder.absolute()))


def _uid(user: str) -> int:
    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise BadRequest(
            "settings.hsm_clients", f"there is no user {user!r}", hint="make it, or mend hsm.clients in the settings"
        ) from None


def default_folder() -> Path:
    """``$KEYPEER_HOME``, else ``.keypeer`` here when there is one, else ``/var/lib/keypeer``."""
    if configured := os.environ.get("KEYPEER_HOME"):
        return Path(configured)
    here = Path(".keypeer")
    return here if here.is_dir() else Path("/var/lib/keypeer")


def read_home(folder: Path) -> Home:
    """The settings in ``folder``; raises BadRequest ``settings.*`` naming the file and the key that is wrong."""
    file = folder / FILE
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise BadRequest("settings.missing", f"{file}: {error.strerror}", hint="keypeer init makes one") from None
    if len(raw) > SETTINGS_BYTES_MAX:
        raise BadRequest("settings.invalid", f"{file} has more than {SETTINGS_BYTES_MAX} bytes")
    try:
        settings = msgspec.toml.decode(raw, type=Settings)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(
            "settings.invalid", f"{file}: {error}", hint="unknown keys are errors; see the README"
        ) from None
    _check(file, settings)
    return Home(folder, settings)


def _check(file: Path, settings: Settings) -> None:
    _check_witnesses(file, settings.audit)
    attestation = settings.attestation
    missing = sorted(set(attestation.binding_pcrs) - set(attestation.quote_pcrs))
    if missing or not attestation.binding_pcrs:
        raise BadRequest(
            "settings.invalid",
            f"{file}: attestation.binding_pcrs must be some of attestation.quote_pcrs",
            hint="quote what you bind to",
        )
    check_store(file, settings.store.url)


def check_store(file: Path, url: str) -> None:
    """Raises BadRequest ``settings.invalid`` unless ``url`` may be ``store.url`` in ``file``."""
    if is_postgres(url):
        parse(url, file.parent)
    elif not url.startswith("lmdb:"):
        raise BadRequest(
            "settings.invalid", f"{file}: store.url is {url!r}", hint="lmdb:FOLDER, or postgresql://USER@HOST/DATABASE"
        )


def _check_witnesses(file: Path, audit: AuditSettings) -> None:
    try:
        keys = [VerifierKey.parse(witness.key) for witness in audit.witness]
    except WireError as error:
        raise BadRequest(
            "settings.invalid", f"{file}: audit.witness: {error}", hint="NAME+ID+KEY, as the witness tells it"
        ) from None
    names = {key.name for key in keys if key.kind == COSIGNATURE}
    if len(names) < len(keys):
        raise BadRequest(
            "settings.invalid",
            f"{file}: audit.witness: each needs a name of its own, and a key that cosigns",
            hint="C2SP tlog-cosignature: the key's first byte is 4",
        )
    if audit.witnesses_required > len(keys):
        raise BadRequest(
            "settings.invalid",
            f"{file}: audit.witnesses_required is {audit.witnesses_required} of {len(keys)}",
            hint="name as many witnesses",
        )

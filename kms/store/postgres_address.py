"""Where the PostgreSQL servers are, and how we prove who we are: what ``store.url`` says.

    postgresql://USER@HOST[:PORT][,HOST[:PORT]…]/DATABASE?sslrootcert=…&sslcert=…&sslkey=…

Names and meanings are libpq's (PostgreSQL manual, "Connection Strings"), as far as keypeer takes them.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from kms.errors import BadRequest, Unavailable

SCHEMES = ("postgresql", "postgres")
PORT = 5432
_FILES = ("sslrootcert", "sslcert", "sslkey", "passfile")
# What a URL may say besides files: it is what we do anyway.
_FIXED = {"sslmode": {"verify-full"}, "target_session_attrs": {"read-write", "primary"}}
_HINT = "postgresql://USER@HOST:PORT,HOST:PORT/DATABASE?sslrootcert=FILE&sslcert=FILE&sslkey=FILE"


@dataclass(frozen=True, slots=True)
class Address:
    """Hosts and ports of one cluster; a host that begins with ``/`` is the folder of a Unix socket."""

    hosts: tuple[tuple[str, int], ...]
    user: str
    database: str
    files: dict[str, Path]

    def __str__(self) -> str:
        """For people."""
        return ",".join(f"{host}:{port}" for host, port in self.hosts) + f"/{self.database}"

    @property
    def passfile(self) -> Path | None:
        """Where the password is, for servers that ask for one."""
        return self.files.get("passfile")

    def tls(self) -> ssl.SSLContext:
        """As ``sslmode=verify-full``: the server's certificate and name are checked; ours is sent where we have one."""
        try:
            root = self.files.get("sslrootcert")
            context = ssl.create_default_context(cafile=root)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if (certificate := self.files.get("sslcert")) is not None:
                context.load_cert_chain(certificate, self.files.get("sslkey"))
        except OSError as error:  # ssl.SSLError is one
            raise Unavailable(
                "store.unavailable",
                f"the certificates that store.url names can't be read: {error}",
                hint="; ".join(f"{name}={path}" for name, path in self.files.items()),
            ) from None
        return context


def is_postgres(url: str) -> bool:
    """Whether ``store.url`` means this store."""
    return url.partition(":")[0] in SCHEMES


def parse(url: str, folder: Path) -> Address:
    """``url`` taken apart; relative files start at ``folder``. Raises BadRequest ``settings.invalid``, which never
    shows a password."""
    # By hand: urllib takes one host, and a bracket only at the start.
    head, _, query = url.partition("://")[2].partition("?")
    authority, _, database = head.partition("/")
    login, _, places = authority.rpartition("@")
    user, colon, _ = login.partition(":")
    if colon:
        raise _invalid("it holds a password", "use a client certificate, or passfile=FILE (libpq's .pgpass)")
    if not is_postgres(url) or not user or not database:
        raise _invalid("it needs a user and a database", _HINT)
    options = dict(parse_qsl(query, keep_blank_values=True))
    socket_folder = options.pop("host", "")
    hosts = tuple(_place(each) for each in (places or socket_folder).split(","))
    for name, value in options.items():
        if name not in _FILES and value not in _FIXED.get(name, ()):
            raise _invalid(f"{name}={value} is nothing that it may say", _HINT)
    files = {name: (folder / options[name]).absolute() for name in _FILES if options.get(name)}
    return Address(hosts, unquote(user), unquote(database), files)


def _place(text: str) -> tuple[str, int]:
    if text.startswith("/"):
        return text, PORT
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if not host or (port and not (port.isdecimal() and 0 < int(port) < 65_536)):
        raise _invalid(f"{text!r} is no HOST:PORT", _HINT)
    return unquote(host), int(port or PORT)


def _invalid(found: str, hint: str) -> BadRequest:
    return BadRequest("settings.invalid", f"store.url: {found}", hint=hint)

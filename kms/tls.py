"""The service's end of TLS: its own certificate, and whose clients it hears. Both may change while it runs."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

from kms import limits, pki
from kms.errors import BadRequest, KeypeerError
from kms.flows.context import Context
from kms.settings import Home

_log = structlog.get_logger("keypeer.tls")
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: kms/web/identity.py checks dates, with words


def tls_context(home: Home) -> ssl.SSLContext:
    """TLS 1.3 with the service's certificate; client certificates must chain to the HSM's CA. Which calls need one is
    the routes' matter."""
    context = _own_certificate(home, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(home.tls / "ca.pem")
    except (OSError, ssl.SSLError) as error:
        raise _broken(home, error) from None
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    context.num_tickets = 0  # agents keep their connections alive; a ticket would outlive a revoked certificate
    return context


def first_ca(home: Home) -> bytes:
    """The CA certificate that `keypeer init` issued, DER: the last of the file, which has the newest first."""
    return _first(home.tls / "ca.pem", last=True)


def server_certificate(home: Home) -> bytes:
    """The service's own certificate, DER, as its file has it now."""
    return _first(home.tls / "server.pem")


def has_server_pair(home: Home) -> bool:
    """Whether the service's certificate and its key are there and belong together."""
    try:
        _own_certificate(home, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    except BadRequest:
        return False
    return True


class Follower:
    """Keeps a live context at the CA's versions and the service's certificate; new handshakes go by what it did last.

    A CA once heard is heard until the process ends: whether its certificates are good is looked up for each request."""

    def __init__(self, ctx: Context, home: Home, context: ssl.SSLContext) -> None:
        self._ctx = ctx
        self._home = home
        self._context = context
        self._heard: set[bytes] = set()
        self._served = server_certificate(home)
        self._failed = ""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(limits.CA_WATCH_S)
            await self.look()

    async def look(self) -> None:
        """One look; says when it can't, once. With another token's keys nothing can be followed, and the service stays
        up to tell why."""
        try:
            await self._look()
            self._failed = ""
        except KeypeerError as error:
            if self._failed != error.code:
                _log.warning("certificates not followed", code=error.code, detail=error.detail)
            self._failed = error.code

    async def _look(self) -> None:
        heard = set((await self._ctx.authorities()).heard)
        for certificate in heard - self._heard:
            self._context.load_verify_locations(cadata=certificate)
            self._heard.add(certificate)
        served = server_certificate(self._home)
        if served != self._served:
            # On a context of its own first: certificate and key take their places one after the other.
            _own_certificate(self._home, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            _own_certificate(self._home, self._context)
            self._served = served
            _log.info("serving another certificate", issuer=pki.issuer_name(served))


def _own_certificate(home: Home, context: ssl.SSLContext) -> ssl.SSLContext:
    try:
        context.load_cert_chain(home.tls / "server.pem", home.tls / "server.key")
    except (OSError, ssl.SSLError) as error:
        raise _broken(home, error) from None
    return context


def _first(path: Path, *, last: bool = False) -> bytes:
    try:
        return pki.from_pem(path.read_text("ascii"))[-1 if last else 0]
    except (OSError, ValueError) as error:
        raise BadRequest("settings.tls", f"{path}: {error}", hint="keypeer init makes certificates") from None


def _broken(home: Home, error: Exception) -> BadRequest:
    return BadRequest("settings.tls", f"{home.tls}: {error}", hint="keypeer init makes certificates")

"""`keypeer doctor`: looks at everything the service stands on; each finding that is bad comes with its remedy."""

from __future__ import annotations

import asyncio
import json
import ssl
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from keypeer.wire.messages import HealthCheck
from kms import limits
from kms.cli.common import Exit, folder, home_option, in_words, json_option
from kms.errors import KeypeerError
from kms.settings import Home, read_home

_PRIVATE = stat.S_IRWXG | stat.S_IRWXO
EXPIRY_WARNING_S = 30 * 86400  # seconds; as long as init needs to be run in time


@click.command()
@home_option
@json_option
@in_words
def doctor(home: Path | None, as_json: bool) -> None:
    """Check module, token, PIN, permissions, store, certificates, clock and the running service."""
    place = read_home(folder(home))
    checks = [
        HealthCheck(id="settings", ok=True, found=f"{place.folder} reads well"),
        *_permissions(place),
        *_certificates(place, time.time()),
        *_module(place),
        *asyncio.run(_parts(place)),
        _service(place),
    ]
    healthy = all(check.ok for check in checks)
    if as_json:
        found = [{"id": c.id, "ok": c.ok, "found": c.found, "mend": c.mend} for c in checks]
        click.echo(json.dumps({"healthy": healthy, "checks": found}))
    else:
        for check in checks:
            click.echo(_line(check))
    if not healthy:
        sys.exit(Exit.UNAVAILABLE)


def _line(check: HealthCheck) -> str:
    mark = click.style("ok  ", fg="green") if check.ok else click.style("FAIL", fg="red", bold=True)
    return f"{mark}  {check.id:<12} {check.found}" + (f"\n      {'':<12} → {check.mend}" if check.mend else "")


def _permissions(home: Home) -> Iterator[HealthCheck]:
    secret = [home.tls / "server.key", *sorted(home.identities.glob("*/key.pem"))]
    source, _, name = home.settings.hsm.pin.partition(":")
    if source == "file":
        secret.append(home.path(name))
    missing = [path for path in secret if not path.exists()]
    loose = [path for path in secret if path.exists() and path.stat().st_mode & _PRIVATE]
    if missing:
        yield HealthCheck(
            id="files", ok=False, found=f"missing: {', '.join(map(str, missing))}", mend="keypeer init makes them"
        )
    if loose:
        names = " ".join(map(str, loose))
        yield HealthCheck(id="permissions", ok=False, found=f"open to others: {names}", mend=f"chmod 600 {names}")
    else:
        yield HealthCheck(id="permissions", ok=True, found=f"{len(secret)} secret files are their owner's alone")


def _certificates(home: Home, now: float) -> Iterator[HealthCheck]:
    from cryptography import x509

    for path in (home.tls / "ca.pem", home.tls / "server.pem", *sorted(home.identities.glob("*/cert.pem"))):
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError) as error:
            yield HealthCheck(id="certificate", ok=False, found=f"{path}: {error}", mend="keypeer init issues it")
            continue
        left = certificate.not_valid_after_utc.timestamp() - now
        early = certificate.not_valid_before_utc.timestamp() > now
        good = left > EXPIRY_WARNING_S and not early
        when = "isn't valid yet" if early else f"ends in {left / 86400:.0f} days"
        mend = "" if good else "check this machine's clock, then keypeer init"
        name = path.relative_to(home.folder.absolute())
        yield HealthCheck(id="certificate", ok=good, found=f"{name} {when}", mend=mend)


def _module(home: Home) -> Iterator[HealthCheck]:
    module = home.settings.hsm.module
    there = Path(module).is_file()
    mend = "" if there else "install it, or mend hsm.module in the settings"
    yield HealthCheck(id="hsm.module", ok=there, found=f"{module} is {'there' if there else 'missing'}", mend=mend)


async def _parts(home: Home) -> list[HealthCheck]:
    return [await _hsm(home), *await _store(home)]


async def _hsm(home: Home) -> HealthCheck:
    """Module, token and PIN by a worker of our own, as the service would start it."""
    from hsm_adapter.pin import read_pin
    from kms.cli.worker import hsm_worker
    from kms.custody.client import HsmClient

    asked = read_pin("prompt") if home.settings.hsm.pin == "prompt" else None
    with hsm_worker(home, asked) as socket:
        custody = HsmClient([socket])
        await custody.start()
        try:
            description = await custody.describe()
        except KeypeerError as error:
            (worker,) = await custody.health()
            found = error.detail if error.code != "hsm.unavailable" else worker.reason
            return HealthCheck(
                id="hsm",
                ok=False,
                found=found,
                mend="check hsm.module, hsm.token and hsm.pin in the settings; is the token plugged in?",
            )
        finally:
            await custody.close()
    return HealthCheck(
        id="hsm",
        ok=True,
        found=f"token {description.token_label} of {description.manufacturer.strip()}: self-test passed, KEK version "
        f"{max(description.kek_versions)}, OAEP {description.oaep_hash}, {description.key_wrap}",
    )


async def _store(home: Home) -> list[HealthCheck]:
    from kms.app import open_store
    from kms.audit.record import decode_record

    try:
        async with open_store(home) as store:
            findings = await store.preflight()
            head = await store.log_head()
            entries = await store.log_read(head.size - 1, 1) if head.size else []
    except KeypeerError as error:
        return [HealthCheck(id="store", ok=False, found=error.detail, mend=error.hint)]
    checks = [
        HealthCheck(id=f"store.{f.id}" if "." not in f.id else f.id, ok=f.ok, found=f.found, mend=f.mend)
        for f in findings
    ]
    newest = decode_record(entries[0].entry).time if entries else 0.0
    behind = newest - time.time()
    good = behind <= limits.CLOCK_BACKWARDS_MAX_S
    found = f"agrees with {head.size} audit entries" if good else f"stands {behind:.0f} s before the newest audit entry"
    mend = "" if good else "set the clock (NTP) and look into who set it back"
    return [*checks, HealthCheck(id="clock", ok=good, found=found, mend=mend)]


def _service(home: Home) -> HealthCheck:
    """The running service's own word."""
    import http.client

    host, port = home.address
    context = ssl.create_default_context(cafile=str(home.tls / "ca.pem"))
    context.check_hostname = False  # the service may listen on an address that its certificate doesn't name
    try:
        connection = http.client.HTTPSConnection(host, port, timeout=5, context=context)
        connection.request("GET", "/readyz")
        answer = json.loads(connection.getresponse().read())
    except (OSError, ValueError) as error:
        return HealthCheck(
            id="service", ok=False, found=f"nothing answers on {host}:{port}: {error}", mend="keypeer serve starts it"
        )
    bad = [f"{check['id']}: {check['found']}" for check in answer["checks"] if not check["ok"]]
    found = "; ".join(bad) or f"ready on {host}:{port}"
    return HealthCheck(id="service", ok=bool(answer["ready"]), found=found, mend="see the service's log" if bad else "")

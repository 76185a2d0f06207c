"""Who holds certificates by which version of the CA key."""

from __future__ import annotations

from collections.abc import AsyncIterator

from kms import limits
from kms.domain.hosts import EnrolledHost, IssuedCertificate
from kms.domain.staff import Principal
from kms.records import CERTIFICATES, HOSTS, PRINCIPALS, SESSIONS, Records
from kms.store.port import Store


async def certificate_holders(store: Store, records: Records, ca: int, now: int) -> list[str]:
    """Approved hosts and staff (role/name) whose certificates by that version are good and needed."""
    return [name async for name in _holders(store, records, ca, now)]


async def _holders(store: Store, records: Records, ca: int, now: int) -> AsyncIterator[str]:
    after: str | None = ""
    while after is not None:
        hosts = await records.page(HOSTS, after, limits.PAGE_MAX)
        names = [host.value.host for host in hosts]
        issued = await records.open(CERTIFICATES, await store.get_many([CERTIFICATES.key(f"host/{n}") for n in names]))
        sessions = await records.open(SESSIONS, await store.get_many([SESSIONS.key(name) for name in names]))
        for host, last, session in zip(hosts, issued, sessions, strict=True):
            seen = session is not None and session.value.certificate_sha256 == host.value.certificate_sha256
            if host.value.status == "approved" and _needs(host.value, last.value if last else None, ca, now, seen=seen):
                yield f"host/{host.value.host}"
        after = names[-1] if len(names) == limits.PAGE_MAX else None
    for principal in await records.all(PRINCIPALS):
        name = PRINCIPALS.name(principal.key)
        last = await records.load(CERTIFICATES, name)
        if _needs(principal.value, last.value if last else None, ca, now, seen=True):
            yield name


def _needs(
    holder: EnrolledHost | Principal, issued: IssuedCertificate | None, ca: int, now: int, *, seen: bool
) -> bool:
    """``seen``: the holder has called with its newest certificate, so that it doesn't need the one before."""
    if issued is None or issued.sha256 != holder.certificate_sha256:
        # Issued before issues were noted, which was before the first rotation.
        life = limits.HOST_CERTIFICATE_LIFE_S if isinstance(holder, EnrolledHost) else limits.STAFF_CERTIFICATE_LIFE_S
        return ca == 1 and holder.enrolled_at + life > now
    if issued.ca == ca and issued.until > now:
        return True
    return issued.previous_ca == ca and issued.previous_until > now and not seen

"""`keypeer host`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.boot import words
from keypeer.cli.calling import command
from keypeer.wire.messages import AppraisalView, EvidenceView, ExpectHost, HostView

if TYPE_CHECKING:
    from keypeer.client import AsyncClient


@click.group()
def host() -> None:
    """Hosts: list, show, expect, approve, revoke."""


@host.command("list")
@command("auditor")
async def list_hosts(client: AsyncClient, as_json: bool) -> None:
    """Every host, its status, place and last appraisal."""
    from keypeer.client import every

    hosts: list[HostView] = [view async for view in every(client.hosts)]
    if as_json:
        output.as_json(hosts)
        return
    columns = ("host", "status", "country", "place", "baselines", "attested", "last refusal")
    output.table("hosts", columns, [_row(view) for view in hosts])


def _row(view: HostView) -> tuple[str, ...]:
    refusal = ", ".join(reason.id for reason in view.last_refusal)
    return (
        view.host,
        view.status,
        view.geo.country if view.geo else "–",
        view.geo.place if view.geo else "–",
        ", ".join(view.appraisal.baselines) if view.appraisal else "–",
        output.when(view.appraisal.appraised_at) if view.appraisal else "–",
        f"{refusal} ({output.when(view.last_refusal_at)})" if refusal else "–",
    )


@host.command()
@click.argument("name")
@command("auditor")
async def show(client: AsyncClient, name: str, as_json: bool) -> None:
    """One host, its appraisal, and why it was last refused."""
    _tell(await client.host(name), as_json)


@host.command()
@click.argument("name")
@click.option("--nonce", default="", help="Of who asks for the token, 8 to 88 characters.")
@command("auditor")
async def token(client: AsyncClient, name: str, nonce: str, as_json: bool) -> None:
    """A host's good appraisal as a signed token (EAR, a JWT) for other relying parties."""
    view = await client.appraisal_token(name, nonce)
    output.as_json(view) if as_json else output.done(view.token)


@host.command()
@click.argument("name")
@click.option("--ek-digest", required=True, help="SHA-256 of its EK in hex, as `keypeer agent ek` prints it there.")
@command("officer")
async def expect(client: AsyncClient, name: str, ek_digest: str, as_json: bool) -> None:
    """Put a TPM on the inventory: it enrols under this name without an officer looking on."""
    await client.expect_host(ExpectHost(host=name, ek_digest=ek_digest))
    if as_json:
        output.as_json({"host": name, "ek_digest": ek_digest})
    else:
        output.done(f"host {name} is expected with EK {ek_digest}")


@host.command()
@click.argument("name")
@command("officer")
async def approve(client: AsyncClient, name: str, as_json: bool) -> None:
    """Let an enrolled host attest. Compare its EK digest first."""
    _tell(await client.approve_host(name), as_json)


@host.command()
@click.argument("name")
@click.option("--why", required=True, help="Goes into the audit log and to the host.")
@command("officer")
async def revoke(client: AsyncClient, name: str, why: str, as_json: bool) -> None:
    """End a host's session and its right to attest, at once."""
    _tell(await client.revoke_host(name, why), as_json)


def _evidence(appraisal: AppraisalView) -> Iterator[tuple[str, str]]:
    yield "TPM", " ".join(filter(None, (appraisal.tpm_manufacturer, f"firmware {appraisal.tpm_firmware}")))
    yield "dynamic launch", "as a baseline lists it" if appraisal.drtm else "none"
    for verdict in appraisal.runtime:
        failures = f"{len(verdict.reasons)} reasons against it" if verdict.reasons else "nothing against it"
        yield f"runs {verdict.policy}", f"{verdict.entries} entries, {failures}"


def _proven(evidence: EvidenceView) -> Iterator[tuple[str, str]]:
    """What the TPM proved last, whether it was good or not."""
    if evidence.boot is not None:
        yield from words(evidence.boot)
    else:
        yield "boot log", "none was sent, or none that its quote carries"
    for vm, config in evidence.launches.items():
        yield f"started {vm}", config


def _tell(view: HostView, as_json: bool) -> None:
    if as_json:
        output.as_json(view)
        return
    geo, appraisal = view.geo, view.appraisal
    output.facts(
        [
            ("host", view.host),
            ("status", f"{view.status}{f' by {view.decided_by}' if view.decided_by else ''}"),
            ("why", view.why),
            ("EK", f"{view.ek_digest} ({view.ek_trust})"),
            ("enrolled", output.when(view.enrolled_at)),
            (
                "geo-tag",
                f"{geo.country}, {geo.place} ({geo.source}, ends {output.when(geo.expires_at)})" if geo else "none",
            ),
            ("appraised", output.when(appraisal.appraised_at) if appraisal else "not, or refused"),
            ("baselines", ", ".join(appraisal.baselines) if appraisal else ""),
            *(_evidence(appraisal) if appraisal else ()),
            (
                "boots",
                f"resetCount {appraisal.reset_count}, restartCount {appraisal.restart_count}" if appraisal else "",
            ),
            *(_proven(view.evidence) if view.evidence else ()),
            ("session ends", output.when(view.session_expires_at)),
            ("last refused", output.when(view.last_refusal_at)),
        ]
    )
    for verdict in appraisal.runtime if appraisal else ():
        output.reasons(verdict.reasons)
    output.reasons(view.last_refusal)

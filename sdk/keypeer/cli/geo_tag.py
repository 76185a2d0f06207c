"""`keypeer geo-tag`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import click

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.cli.durations import Duration
from keypeer.wire.geo import GeoSource
from keypeer.wire.messages import GeoTagView, IssueGeoTag

if TYPE_CHECKING:
    from keypeer.client import AsyncClient


class _Degrees(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """From minus ``most`` to ``most``; nan is no place."""

    name = "degrees"

    def __init__(self, most: int) -> None:
        self._most = most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            degrees = float(str(value))
        except ValueError:
            degrees = math.nan
        if not -self._most <= degrees <= self._most:
            self.fail(f"{value!r} isn't from -{self._most} to {self._most} degrees", param, ctx)
        return degrees


@click.group()
def geo_tag() -> None:
    """Geo-tags: state where hosts stand."""


@geo_tag.command()
@click.option("--host", required=True, help="The enrolled host.")
@click.option("--country", required=True, help="ISO 3166-1 alpha-2, such as DE.")
@click.option("--place", default="", help="Town, site, rack: for people.")
@click.option("--latitude", type=_Degrees(90), default=None, help="Degrees north, WGS 84.")
@click.option("--longitude", type=_Degrees(180), default=None, help="Degrees east, WGS 84.")
@click.option("--source", type=click.Choice(get_args(GeoSource)), default="survey", show_default=True)
@click.option("--valid", type=Duration(), default="180d", show_default=True, help="How long the tag is good.")
@command("officer")
async def issue(
    client: AsyncClient,
    host: str,
    country: str,
    place: str,
    latitude: float | None,
    longitude: float | None,
    source: GeoSource,
    valid: int,
    as_json: bool,
) -> None:
    """Sign a tag for a host; its agent writes it to the TPM at its next attestation."""
    view = await client.issue_geo_tag(
        host,
        IssueGeoTag(country=country, place=place, latitude=latitude, longitude=longitude, source=source, valid=valid),
    )
    if as_json:
        output.as_json(view)
    else:
        output.done(
            f"host {host} is tagged {view.geo.country} ({view.geo.place}), ends {output.when(view.geo.expires_at)}"
        )


@geo_tag.command("list")
@command("auditor")
async def list_tags(client: AsyncClient, as_json: bool) -> None:
    """Every host's current tag."""
    from keypeer.client import every

    tags: list[GeoTagView] = [view async for view in every(client.geo_tags)]
    if as_json:
        output.as_json(tags)
        return
    rows = [
        (v.host, v.geo.country, v.geo.place, v.geo.source, output.when(v.geo.issued_at), output.when(v.geo.expires_at))
        for v in tags
    ]
    output.table("geo-tags", ("host", "country", "place", "source", "issued", "ends"), rows)

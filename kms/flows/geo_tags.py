"""Geo-tags: an officer states where a host stands, the HSM signs, the host's agent locks the digest into its TPM."""

from __future__ import annotations

from keypeer.wire.canonical import geo_tag_preimage
from keypeer.wire.geo import GeoTagStatement, encode_statement
from keypeer.wire.messages import GeoTagPage, GeoTagView, GeoView, IssueGeoTag
from kms.audit.record import Facts
from kms.domain.attestation import StoredGeoTag
from kms.domain.trust import StoredEvent
from kms.errors import BadRequest, NotFound
from kms.flows.context import Caller, Context, unknown_host
from kms.records import EVENT_HEADS, GEO_TAGS, HOSTS, SESSIONS
from kms.store.port import Check
from kms.trust import Change, due_key, host_log
from kms.views import geo_tag_view

TAG_ID_BYTES = 8  # bytes; distinguishes a host's tags, no secret


async def issue(ctx: Context, caller: Caller, host: str, request: IssueGeoTag) -> GeoTagView:
    """Signs a new tag for an enrolled host; it supersedes the one before at once."""
    enrolled = await ctx.records.load(HOSTS, host)
    if enrolled is None:
        raise unknown_host(host)
    if (request.latitude is None) != (request.longitude is None):
        raise BadRequest("geo.coordinates", "one coordinate without the other", hint="give both, or neither")
    now = ctx.now()
    statement = encode_statement(
        GeoTagStatement(
            tag=ctx.random(TAG_ID_BYTES).hex(),
            host=host,
            ek=enrolled.value.ek_digest.hex(),
            country=request.country,
            place=request.place,
            latitude=request.latitude,
            longitude=request.longitude,
            source=request.source,
            issued_at=now,
            expires_at=now + request.valid,
        )
    )
    return await _store(ctx, caller, host, statement, enrolled.check)


async def _store(ctx: Context, caller: Caller, host: str, statement: bytes, host_check: Check) -> GeoTagView:
    key = await ctx.signing_key("geo")
    signature = await ctx.custody.sign("geo", geo_tag_preimage(statement), key.newest.version)
    view = geo_tag_view(StoredGeoTag(host, "", statement, signature))
    stored = StoredGeoTag(host, view.geo.tag, statement, signature, key.newest.version)
    known = await ctx.records.load(GEO_TAGS, host)
    facts: Facts = {
        "tag": view.geo.tag,
        "country": view.geo.country,
        "place": view.geo.place,
        "source": view.geo.source,
        "expires_at": view.geo.expires_at,
    }
    before = geo_tag_view(known.value).geo if known else None
    told = await _tell(ctx, host, before, view.geo)
    await ctx.commit(
        checks=[host_check, key.check, known.check if known else Check(GEO_TAGS.key(host), 0), *told.checks],
        puts=[
            *await ctx.records.seal([GEO_TAGS.put(host, stored)]),
            (due_key(view.geo.expires_at, host), b""),
            *told.puts,
        ],
        # The session stands on the tag before.
        deletes=[SESSIONS.key(host), *told.deletes],
        entries=[ctx.entry(caller, "geo-tag.issue", "done", host=host, facts=facts)],
    )
    return view


async def _tell(ctx: Context, host: str, before: GeoView | None, after: GeoView) -> Change:
    """Another tag is to be proven; a host that stands in another country than it proved holds nothing any more."""
    session = await ctx.records.load(SESSIONS, host)
    log, now = host_log(host, await ctx.records.load(EVENT_HEADS, host)), ctx.clock()
    if before is not None and before.country != after.country:
        why = f"its tag said {before.country}, and says {after.country} now"
        if ended := log.end_all("tag.moved", now, session=session is not None, why=why, attest=True):
            return ended
    return log.tell([StoredEvent(0, now, host, "tag.issued", attest=True)])


async def show(ctx: Context, host: str) -> GeoTagView:
    """The host's current tag."""
    stored = await ctx.records.load(GEO_TAGS, host)
    if stored is None:
        raise NotFound(
            "geo.missing", f"host {host} has no geo-tag", hint=f"an officer runs: keypeer geo-tag issue --host {host} …"
        )
    return geo_tag_view(stored.value)


async def page(ctx: Context, after: str, limit: int) -> GeoTagPage:
    """Current tags in the order of their hosts' names."""
    items = tuple(geo_tag_view(tag.value) for tag in await ctx.records.page(GEO_TAGS, after, limit))
    return GeoTagPage(items=items, next=items[-1].host if len(items) == limit else None)

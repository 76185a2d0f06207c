"""The geo-tag: a signed statement of where a host stands."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from keypeer.wire.encoding import WireError
from keypeer.wire.types import CountryCode, HexDigest, HostId, UnixSeconds

GeoSource = Literal["survey", "gps", "provider", "declared"]


class GeoTagStatement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the service states. ``ek`` is the SHA-256 of the host's EK public area (TPMT_PUBLIC), so a tag can't
    be carried to another TPM. ``source`` says how the place is known."""

    tag: Annotated[str, Meta(min_length=1, max_length=64)]
    host: HostId
    ek: HexDigest
    country: CountryCode
    place: Annotated[str, Meta(max_length=120)] = ""
    latitude: Annotated[float, Meta(ge=-90, le=90)] | None = None  # degrees, WGS 84
    longitude: Annotated[float, Meta(ge=-180, le=180)] | None = None
    source: GeoSource = "survey"
    issued_at: UnixSeconds
    expires_at: UnixSeconds


_statement = msgspec.json.Decoder(GeoTagStatement)


def encode_statement(statement: GeoTagStatement) -> bytes:
    """The JSON bytes that are signed; they travel unchanged, so no canonical form is needed to verify them."""
    return msgspec.json.encode(statement)


def decode_statement(data: bytes) -> GeoTagStatement:
    """The statement in ``data``; raises WireError when it is none."""
    try:
        return _statement.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError("geo_tag.statement", str(error)) from None

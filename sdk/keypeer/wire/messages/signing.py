"""Versions of the signing keys."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from keypeer.wire.messages.base import Answer, Request
from keypeer.wire.types import UnixSeconds


class RetireVersion(Request, frozen=True, kw_only=True):
    """From now on nothing that this version signed is good."""

    why: Annotated[str, Meta(min_length=1, max_length=200)]


class SigningVersionView(Answer, frozen=True, kw_only=True):
    """``state``: signs, verifies, retired or destroyed. ``public_key``: SubjectPublicKeyInfo DER in hex."""

    version: int
    state: str
    public_key: str
    made_at: UnixSeconds | None = None
    made_by: str = ""
    retired_at: UnixSeconds | None = None
    why: str = ""


class SigningKeyView(Answer, frozen=True, kw_only=True):
    """A signing key: geo, appraisal, session or audit."""

    key: str
    versions: tuple[SigningVersionView, ...]


class SigningKeyPage(Answer, frozen=True, kw_only=True):
    """All of them."""

    items: tuple[SigningKeyView, ...]

"""Versions of the signing keys."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from keypeer.wire.messages.base import Answer, Request
from keypeer.wire.types import CaPem, Pem, Sha256Hex, UnixSeconds


class RetireVersion(Request, frozen=True, kw_only=True):
    """From now on nothing that this version signed is good. ``anyway``: of the CA key, though hosts and staff hold
    certificates by it; they are locked out until they enrol again."""

    why: Annotated[str, Meta(min_length=1, max_length=200)]
    anyway: bool = False


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
    """A signing key: geo, appraisal, session, audit or ca. Of the CA key alone, where it is asked for by name: which
    version ``issuing`` certificates, by which the service's own is (``server``), and whose are by older ones, the first
    by role and name (``waiting``) and how many."""

    key: str
    versions: tuple[SigningVersionView, ...]
    issuing: int | None = None
    server: int | None = None
    waiting: tuple[str, ...] = ()
    waiting_count: int = 0


class SigningKeyPage(Answer, frozen=True, kw_only=True):
    """All of them."""

    items: tuple[SigningKeyView, ...]


class CaBundle(Answer, frozen=True, kw_only=True):
    """The certificates of the service's CA that are in force, PEM, newest first, and the SHA-256 of that text."""

    certificates: CaPem
    sha256: Sha256Hex


class OwnCertificate(Answer, frozen=True, kw_only=True):
    """The caller's certificate by the newest CA, over the same key."""

    certificate: Pem
    expires_at: UnixSeconds

"""Quotas: how many VM keys a tenant or an operator may have."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from keypeer.wire.messages.base import Answer, Request
from keypeer.wire.types import UnixSeconds

OwnerKind = Literal["tenant", "operator"]
MaxKeys = Annotated[int, Meta(ge=0, le=10**12, description="VM keys")]


class PutQuota(Request, frozen=True, kw_only=True):
    """``max_keys`` null: no bound."""

    max_keys: MaxKeys | None


class QuotaView(Answer, frozen=True, kw_only=True):
    """``keys`` are those that weren't erased yet; ``max_keys`` null: no bound."""

    kind: OwnerKind
    name: str
    max_keys: int | None
    keys: int
    updated_at: UnixSeconds | None = None
    updated_by: str = ""


class QuotaPage(Answer, frozen=True, kw_only=True):
    """One page of tenants or operators."""

    items: tuple[QuotaView, ...]
    next: str | None = None

"""The store's place in time."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from keypeer.wire.messages.base import Answer, Request
from keypeer.wire.types import Sha256Hex


class LogHeadView(Request, frozen=True, kw_only=True):
    """A head of the audit log: how many entries, and their RFC 6962 root."""

    size: Annotated[int, Meta(ge=0)]
    root: Sha256Hex


class RollbackView(Answer, frozen=True, kw_only=True):
    """The head that the HSM token remembers, and the store's. ``rolled_back``: the store's log doesn't begin with the
    token's, so nothing is decided on it."""

    rolled_back: bool
    token: LogHeadView
    store: LogHeadView


class AcceptRollback(Request, frozen=True, kw_only=True):
    """Takes the store as it is; both heads as they were shown."""

    token: LogHeadView
    store: LogHeadView

"""What flows may ask of those who want to be told, and who they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Webhook:
    """Whom to call. ``secret`` is shared with him: the key of the HMAC."""

    url: str
    secret: bytes = field(repr=False)


class WebhookClient(Protocol):
    """Raises kms.errors.Unavailable ``webhook.unreachable`` without an answer within limits.WEBHOOK_DEADLINE_S."""

    async def post(self, webhook: Webhook, headers: dict[str, str], body: bytes) -> int:
        """The answer's status."""
        ...


class _Nobody:
    """Of processes that call nobody."""

    async def post(self, webhook: Webhook, headers: dict[str, str], body: bytes) -> int:
        raise AssertionError(f"no client to call {webhook.url} with")


NOBODY: WebhookClient = _Nobody()

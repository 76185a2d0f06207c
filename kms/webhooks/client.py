"""Webhooks over HTTP, bounded in time; an answer's body is nobody's business."""

from __future__ import annotations

import ssl

import aiohttp

from kms import limits
from kms.errors import Unavailable
from kms.webhooks.port import Webhook


class HttpWebhooks:
    """kms.webhooks.port.WebhookClient. Connects when it is asked first."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def post(self, webhook: Webhook, headers: dict[str, str], body: bytes) -> int:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Its own context: aiohttp's has no CA certificates here (kms/lean.py).
                connector=aiohttp.TCPConnector(ssl=ssl.create_default_context()),
                timeout=aiohttp.ClientTimeout(total=limits.WEBHOOK_DEADLINE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        try:
            async with self._session.post(webhook.url, data=body, headers=headers, allow_redirects=False) as response:
                return response.status
        except TimeoutError:
            raise _unreachable(webhook, f"no answer in {limits.WEBHOOK_DEADLINE_S:.0f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(webhook, str(error) or type(error).__name__) from None

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _unreachable(webhook: Webhook, why: str) -> Unavailable:
    return Unavailable("webhook.unreachable", f"{webhook.url}: {why}", hint="is it up, and its URL right?")

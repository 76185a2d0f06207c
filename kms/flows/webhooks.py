"""Webhooks: each of the fleet's events, in order, at least once, to each who is named in the settings.

Signed as the Standard Webhooks specification says: ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``,
which is ``v1,`` and the base64 of HMAC-SHA-256 over ``<id>.<timestamp>.<body>``. An event is told when it was answered
with a 2xx; until then it is tried again, later and later, and those after it wait. Who was away for so long that events
weren't kept gets ``resync`` in their place.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac

import msgspec

from keypeer.wire.messages.events import RESYNC, HostEvent
from kms import limits
from kms.domain.trust import WebhookState
from kms.errors import KeypeerError, Unavailable
from kms.flows.context import Context
from kms.records import FLEET_EVENTS, FLEET_HEADS, WEBHOOKS, Loaded
from kms.store.port import Check
from kms.views import event_view
from kms.webhooks.port import Webhook

_encode = msgspec.json.Encoder().encode
_HEAD = "fleet"
_GOOD = range(200, 300)


async def step(ctx: Context) -> None:
    """Tells each what he hasn't heard, as far as he answers. One who doesn't keeps no other waiting."""
    if ctx.webhooks:
        await asyncio.gather(*(_tell(ctx, webhook) for webhook in ctx.webhooks))


def signature(webhook: Webhook, number: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    signed = b"%s.%d." % (number.encode(), timestamp) + body
    return "v1," + base64.b64encode(hmac.digest(webhook.secret, signed, "sha256")).decode()


async def _tell(ctx: Context, webhook: Webhook) -> None:
    name, now = hashlib.sha256(webhook.url.encode()).hexdigest()[:32], ctx.clock()
    # In this order: a head read before what another process has told since would be behind it.
    loaded = await ctx.records.load(WEBHOOKS, name)
    head = await ctx.records.load(FLEET_HEADS, _HEAD)
    last = head.value.last if head else 0
    if loaded is None:  # named in the settings just now: he hears what comes
        await _keep(ctx, name, None, WebhookState(webhook.url, last))
        return
    state = loaded.value
    waits = min(2.0 ** min(state.failures, 16), limits.WEBHOOK_BACKOFF_MAX_S) if state.failures else 0.0
    if state.sent == last or 0 <= now - state.tried_at < waits:
        return
    sent, trouble = state.sent, ""
    for event in await _after(ctx, state.sent, last):
        try:
            await _deliver(ctx, webhook, event)
        except KeypeerError as error:
            trouble = str(error)
            break
        sent = event.id
    failures = state.failures + 1 if trouble else 0
    moved = WebhookState(webhook.url, sent, failures, now, trouble[: limits.JOB_DETAIL_CHARS_MAX])
    await _keep(ctx, name, loaded, moved)


async def _after(ctx: Context, sent: int, last: int) -> list[HostEvent]:
    items = await ctx.store.scan(FLEET_EVENTS.prefix, FLEET_EVENTS.key(f"{sent:016d}"), limits.WEBHOOK_STEP_MAX)
    loaded = [each for each in await ctx.records.open(FLEET_EVENTS, items) if each is not None]
    events = [event_view(each.value, int(FLEET_EVENTS.name(each.key))) for each in loaded]
    if events and events[0].id == sent + 1:
        return events
    lost = events[0].id - 1 if events else last
    return [HostEvent(id=lost, at=ctx.clock(), host="", event=RESYNC, attest=False), *events]


async def _deliver(ctx: Context, webhook: Webhook, event: HostEvent) -> None:
    body, timestamp, number = _encode(event), ctx.now(), f"event-{event.id}"
    headers = {
        "Content-Type": "application/json",
        "webhook-id": number,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(webhook, number, timestamp, body),
    }
    status = await ctx.webhook_client.post(webhook, headers, body)
    if status not in _GOOD:
        raise Unavailable("webhook.refused", f"{webhook.url} answered {status} to {number}", hint="see its log")


async def _keep(ctx: Context, name: str, before: Loaded[WebhookState] | None, state: WebhookState) -> None:
    await ctx.try_commit(
        checks=[before.check if before else Check(WEBHOOKS.key(name), 0)],
        puts=await ctx.records.seal([WEBHOOKS.put(name, state)]),
        entries=[],
    )

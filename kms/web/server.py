"""The aiohttp application: one handler made for each route of the table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from aiohttp import web

from keypeer.wire.encoding import WireError
from keypeer.wire.messages import Readiness
from kms import limits
from kms.errors import BadRequest, KeypeerError, NotFound, Throttled
from kms.flows.context import Context
from kms.flows.proposals import alone
from kms.views import problem_view as problem
from kms.web import (
    attestations,
    audit,
    certificates,
    enrolments,
    events,
    health,
    hosts,
    leases,
    log,
    migrations,
    policies,
    principals,
    proposals,
    quotas,
    rollback,
    rotations,
    signing_keys,
    state,
    vms,
)
from kms.web.identity import identify, known_identity
from kms.web.limiter import Limiter
from kms.web.metrics import Metrics
from kms.web.openapi import document
from kms.web.problems import CONTENT_TYPE, from_decoding, from_wire
from kms.web.routing import STAFF, Call, Handler, Raw, Route, Stream
from kms.web.site import Site

ROUTES: tuple[Route, ...] = (
    *enrolments.ROUTES,
    *attestations.ROUTES,
    *hosts.ROUTES,
    *events.ROUTES,
    *leases.ROUTES,
    *policies.ROUTES,
    *vms.ROUTES,
    *migrations.ROUTES,
    *quotas.ROUTES,
    *rotations.ROUTES,
    *principals.ROUTES,
    *proposals.routes(lambda: ROUTES),
    *proposals.rules_routes(lambda: ROUTES),
    *rollback.ROUTES,
    *signing_keys.ROUTES,
    *certificates.ROUTES,
    *audit.ROUTES,
    *log.ROUTES,
    *health.ROUTES,
)

_log = structlog.get_logger("keypeer.web")
_encode = msgspec.json.Encoder().encode
_Decode = Callable[[bytes], Any]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(ctx: Context, metrics: Metrics, limiter: Limiter) -> web.Application:
    """The whole HTTP face over the service's parts."""
    app = web.Application(client_max_size=limits.BODY_BYTES_MAX, middlewares=[_outer(ctx)])
    site = Site(ctx) if ctx.site is not None else None
    for route in ROUTES:
        path = route.path.replace(f"{{{route.rest}}}", f"{{{route.rest}:.+}}") if route.rest else route.path
        app.router.add_route(route.method, path, _handler(ctx, metrics, limiter, route, site))
    app.on_shutdown.append(_end_streams(ctx))
    app.router.add_get("/metrics", _metrics_handler(ctx, metrics))
    app.router.add_get("/openapi.json", _openapi_handler())
    return app


def _end_streams(ctx: Context) -> Callable[[web.Application], Awaitable[None]]:
    async def end(_app: web.Application) -> None:
        ctx.listeners.close()

    return end


def _handler(ctx: Context, metrics: Metrics, limiter: Limiter, route: Route, site: Site | None = None) -> _Handler:
    decode: _Decode | None = msgspec.json.Decoder(route.request).decode if route.request is not None else None
    if route.while_rolled_back:
        ctx = replace(ctx, accepts_rollback=True)

    async def respond(ctx: Context, call: Handler, request: web.Request, certificate: bytes | None) -> Any:
        caller = await identify(ctx, route, certificate)
        body = await _body(request, route, decode) if decode is not None else None
        if route.cost is not None and (more := route.cost(body) - 1) > 0:
            await _admit(ctx, limiter, route, request, certificate, more)
        granted = await alone(ctx, caller, route.act) if route.act and caller is not None else ctx
        return await call(Call(granted, caller, request.match_info, request.query, body, request.headers))

    async def handle(request: web.Request) -> web.StreamResponse:
        started = time.perf_counter()
        try:
            certificate = _certificate(request)
            await _admit(ctx, limiter, route, request, certificate)
            if site is None:
                answer = await respond(ctx, route.call, request, certificate)
            else:
                answer = await site.answer(route, partial(respond, request=request, certificate=certificate))
            status = _status(route, answer)
        except KeypeerError as error:
            metrics.refused(route, error, time.perf_counter() - started)
            return _problem(error, request)
        except WireError as error:
            metrics.refused(route, from_wire(error), time.perf_counter() - started)
            return _problem(from_wire(error), request)
        metrics.answered(route, status, time.perf_counter() - started)
        if answer is None:
            return web.Response(status=status)
        if isinstance(answer, Stream):
            with metrics.streaming() if answer.content_type == events.EVENT_STREAM else nullcontext():
                return await _stream(request, answer)
        if isinstance(answer, Raw):
            headers = {"Content-Type": route.raw, "Cache-Control": answer.cache}
            return web.Response(body=answer.body, status=status, headers=headers)
        return web.Response(body=_encode(answer), status=status, content_type="application/json")

    return handle


async def _stream(request: web.Request, stream: Stream) -> web.StreamResponse:
    """Sends until the stream ends, the listener goes, or leaves what was sent unread."""
    headers = {"Content-Type": stream.content_type, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    try:
        await response.prepare(request)
        async for frame in stream.frames:
            async with asyncio.timeout(limits.STREAM_WRITE_S):
                await response.write(frame)
        await response.write_eof()
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
    except KeypeerError as error:  # of the store: the listener connects again, and hears why
        _log.warning("stream ended", path=request.path, code=error.code, detail=error.detail)
        if request.transport is not None:
            request.transport.abort()
    except Exception:
        if request.transport is not None:  # a bug, and an answer that has begun can't become a problem document
            request.transport.abort()
        raise
    finally:
        await stream.frames.aclose()
    return response


async def _admit(
    ctx: Context, limiter: Limiter, route: Route, request: web.Request, certificate: bytes | None, cost: int = 1
) -> None:
    identity = known_identity(certificate) if certificate is not None and route.roles is not None else None
    error = limiter.refusal(route, identity, request.remote or "", cost)
    if error is not None:
        raise await limiter.refuse(ctx, identity, error)


def _certificate(request: web.Request) -> bytes | None:
    ssl_object = request.get_extra_info("ssl_object")
    return ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None


async def _body(request: web.Request, route: Route, decode: _Decode) -> Any:
    if request.content_type != "application/json":
        raise BadRequest(
            "request.content_type",
            f"the body's type is {request.content_type}",
            hint="send Content-Type: application/json",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )
    if route.body_max != limits.BODY_BYTES_MAX:
        request = request.clone(client_max_size=route.body_max)
    try:
        return decode(await request.read())
    except web.HTTPRequestEntityTooLarge:
        raise BadRequest(
            "request.too_large",
            f"the body is larger than {route.body_max} bytes",
            hint="send fewer items a request",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        ) from None
    except msgspec.DecodeError as error:
        raise from_decoding(error) from None
    except (UnicodeDecodeError, RecursionError):
        raise BadRequest("request.not_json", "the body isn't JSON in UTF-8", hint="send a JSON document") from None


def _status(route: Route, answer: Any) -> int:
    if isinstance(answer, Readiness) and not answer.ready:
        return HTTPStatus.SERVICE_UNAVAILABLE
    return route.status


def _problem(error: KeypeerError, request: web.Request) -> web.Response:
    tell = _log.warning if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR else _log.info
    tell("refused", method=request.method, path=request.path, code=error.code, detail=error.detail)
    headers = {}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE and error.code != "store.unknown":
        headers["Retry-After"] = str(limits.RETRY_AFTER_S)  # says too that nothing was changed
    if isinstance(error, Throttled):
        headers["Retry-After"] = str(error.retry_after)
    return web.Response(body=_encode(problem(error)), status=error.status, headers=headers, content_type=CONTENT_TYPE)


def _outer(ctx: Context) -> Any:
    """aiohttp's own refusals (no such route) and bugs, as problem documents; and, when the process is about to end, the
    end of the connection with its answer."""

    @web.middleware
    async def outer(request: web.Request, handler: _Handler) -> web.StreamResponse:
        response = await _caught(request, handler)
        if ctx.listeners.closed and not response.prepared:
            response.force_close()
        return response

    return outer


async def _caught(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _problem(_from_http(error, request), request)
    except asyncio.CancelledError:
        raise
    except Exception as bug:
        # The one place where anything may be caught: a bug ends one request and is logged whole.
        _log.exception("bug", method=request.method, path=request.path, error=type(bug).__name__)
        return _problem(KeypeerError("internal", "the service failed on this request; its log says how"), request)


def _from_http(error: web.HTTPException, request: web.Request) -> KeypeerError:
    status = HTTPStatus(error.status)
    words, hint = f"{request.method} {request.path}: {status.phrase}", "see /openapi.json"
    if status is HTTPStatus.NOT_FOUND:
        return NotFound("request.no_route", words, hint=hint)
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        return BadRequest("request.method", words, hint=hint, status=HTTPStatus.METHOD_NOT_ALLOWED)
    return BadRequest("request.http", words, hint=hint, status=status)


def _metrics_handler(ctx: Context, metrics: Metrics) -> _Handler:
    route = Route("GET", "/metrics", "Prometheus metrics", STAFF, health.ROUTES[0].call)

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            await identify(ctx, route, _certificate(request))
        except KeypeerError as error:
            return _problem(error, request)
        body, content_type = metrics.exposition(await state.look(ctx))
        return web.Response(body=body, headers={"Content-Type": content_type})

    return handle


def _openapi_handler() -> _Handler:
    body = _encode(document(ROUTES))

    async def handle(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    return handle

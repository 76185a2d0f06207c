"""HTTPS to the service: pooled connections, mutual TLS, bounded in time and size; problem documents as errors."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec

from keypeer import limits
from keypeer.errors import AnswerError, ProblemError, ServiceUnavailable, StateError
from keypeer.wire.messages import Problem

_Answer = TypeVar("_Answer")
_encode = msgspec.json.Encoder().encode
_problem = msgspec.json.Decoder(Problem)
_PROBLEM_TYPE = "application/problem+json"  # RFC 9457 §3
_BAD = 400
_LATER = (429, 503)  # RFC 6585 §4, RFC 9110 §15.6.4


class Transport:
    """Where the service is and who calls. Open it with ``async with``, inside a running event loop.

    ``ca`` is the PEM file of the CA's certificates that are trusted; ``certificate`` and ``key`` are the caller's (PEM
    files), left out only for enrolment and health. Raises StateError when a file is missing or broken.
    """

    def __init__(self, server: str, *, ca: Path, certificate: Path | None = None, key: Path | None = None) -> None:
        if not server.startswith("https://"):
            raise StateError("client.url", f"{server!r} is no https URL", "give the service's URL: https://…")
        self._server = server.rstrip("/")
        self._tls, self.certificate = _tls(ca, certificate, key)
        self._session: aiohttp.ClientSession | None = None

    @property
    def server(self) -> str:
        """The service's URL."""
        return self._server

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self._tls, limit=limits.CONNECTIONS_MAX, keepalive_timeout=limits.KEEPALIVE_S
            ),
            timeout=aiohttp.ClientTimeout(total=limits.CALL_S, sock_connect=limits.CONNECT_S),
            headers={"Accept": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self,
        method: str,
        path: str,
        answer: type[_Answer],
        body: msgspec.Struct | None = None,
        *,
        query: Mapping[str, str | int] | None = None,
        repeat: bool = False,
        accept: int = 0,
    ) -> _Answer:
        """One call and its answer, decoded. ``repeat`` says that a second one does no harm: it is tried again while the
        service can't be reached or answers 503 or 429; other calls only where such an answer names its Retry-After,
        which means that nothing was done. ``accept`` is an error status whose body is an answer all the same.

        Raises ProblemError, ServiceUnavailable (``service.unreachable``, ``service.timeout``, ``service.tls``) and
        AnswerError.
        """
        status, kind, data = await self._attempts(method, path, body, query, repeat, accept)
        return _decode(status, kind, data, answer, accept)

    async def fetch(self, path: str, *, query: Mapping[str, str | int] | None = None) -> bytes:
        """The bytes of an answer that isn't JSON. Raises as ``call`` does."""
        status, kind, data = await self._attempts("GET", path, None, query, True, 0)
        if status >= _BAD:
            _decode(status, kind, data, type(None), 0)
        return data

    async def stream(self, path: str, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes of a server-sent event stream as they come, the first of them once it is open. ``last``: the id of
        the last event that was heard. Raises as ``call`` does; ``service.timeout`` after limits.STREAM_SILENCE_S."""
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        async with aclosing(self._parts("GET", path, None, "text/event-stream", headers)) as parts:
            async for part in parts:
                yield part

    async def lines(self, path: str, body: msgspec.Struct) -> AsyncGenerator[bytes, None]:
        """The JSON lines that a POST answers, as they come; never tried again. Raises as ``stream`` does, and
        AnswerError for a line of more than limits.LINE_BYTES_MAX. Whether the last one is the end is for the reader."""
        rest = bytearray()
        headers = {"Content-Type": "application/json"}
        async with aclosing(self._parts("POST", path, _encode(body), "application/jsonl", headers)) as parts:
            async for part in parts:
                rest += part
                *whole, tail = rest.split(b"\n")
                for line in whole:
                    yield bytes(line)
                rest = tail
                if len(rest) > limits.LINE_BYTES_MAX:
                    raise AnswerError("service.answer", f"a line of more than {limits.LINE_BYTES_MAX} bytes")
        if rest:
            raise AnswerError("service.answer", "a line without its end")

    async def _parts(
        self, method: str, path: str, body: bytes | None, accept: str, headers: Mapping[str, str]
    ) -> AsyncGenerator[bytes, None]:
        """An answer of the kind ``accept`` as it comes, however long that takes, unless nothing does."""
        if self._session is None:
            raise StateError("client.closed", "this client isn't open", "use it inside: async with …")
        headers = {"Accept": accept, **headers}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=limits.CONNECT_S, sock_read=limits.STREAM_SILENCE_S, connect=limits.CALL_S
        )
        with self._in_words(method, path):
            async with self._session.request(
                method, self._server + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.content_type != accept:
                    retry_after = _seconds(response.headers.get("Retry-After"))
                    data = await _bounded(response)
                    _decode(response.status, response.content_type, data, type(None), 0, retry_after)
                    raise AnswerError("service.answer", f"the answer isn't {accept}", _NOT_KEYPEER)
                async for part in response.content.iter_any():
                    yield part

    async def _attempts(
        self,
        method: str,
        path: str,
        body: msgspec.Struct | None,
        query: Mapping[str, str | int] | None,
        repeat: bool,
        accept: int,
    ) -> tuple[int, str, bytes]:
        delay = limits.RETRY_FIRST_S
        for attempt in range(1, limits.ATTEMPTS_MAX + 1):
            last = attempt == limits.ATTEMPTS_MAX
            try:
                status, kind, data, retry_after = await self._exchange(method, path, body, query)
            except ServiceUnavailable as error:
                if last or not repeat or error.code == "service.tls":
                    raise
            else:
                wait = retry_after if retry_after is not None else delay if repeat else None
                if status not in _LATER or status == accept or last or wait is None:
                    return status, kind, data
                delay = wait
            await asyncio.sleep(delay)
            delay *= 2
        raise AssertionError("the last attempt returns or raises")

    async def _exchange(
        self, method: str, path: str, body: msgspec.Struct | None, query: Mapping[str, str | int] | None
    ) -> tuple[int, str, bytes, float | None]:
        if self._session is None:
            raise StateError("client.closed", "this client isn't open", "use it inside: async with …")
        data = None if body is None else _encode(body)
        headers = {"Content-Type": "application/json"} if data is not None else {}
        with self._in_words(method, path):
            async with self._session.request(
                method, self._server + path, data=data, params=query, headers=headers, allow_redirects=False
            ) as response:
                retry_after = _seconds(response.headers.get("Retry-After"))
                return response.status, response.content_type, await _bounded(response), retry_after

    @contextmanager
    def _in_words(self, method: str, path: str) -> Iterator[None]:
        """What goes wrong on the way to the service, as errors of this package."""
        try:
            yield
        except TimeoutError:
            found = f"{self._server} didn't answer {method} {path} in time"
            raise ServiceUnavailable("service.timeout", found, "is the service overloaded?") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError) as error:
            hint = "does the CA file belong to this service, and does the URL name it as its certificate does?"
            raise ServiceUnavailable("service.tls", f"{self._server}: {error}", hint) from None
        except (aiohttp.ClientError, OSError) as error:
            found = f"{self._server}: {error or type(error).__name__}"
            raise ServiceUnavailable("service.unreachable", found, "is the service running, and reachable?") from None


def _tls(ca: Path, certificate: Path | None, key: Path | None) -> tuple[ssl.SSLContext, bytes]:
    """The TLS context, and the caller's certificate in DER (empty without one)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=ca)
        if certificate is None:
            return context, b""
        context.load_cert_chain(certificate, key)
        return context, ssl.PEM_cert_to_DER_cert(_first_certificate(certificate.read_text()))
    except (OSError, ValueError) as error:
        named = ", ".join(str(path) for path in (ca, certificate, key) if path is not None)
        raise StateError("client.identity", f"{named}: {error}", "are these PEM files of one identity?") from None


def _first_certificate(pem: str) -> str:
    end = "-----END CERTIFICATE-----"
    return pem[pem.index("-----BEGIN CERTIFICATE-----") : pem.index(end) + len(end)]


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > limits.ANSWER_BYTES_MAX:
            raise AnswerError("service.answer", f"an answer of more than {limits.ANSWER_BYTES_MAX} bytes")
    return bytes(data)


def _seconds(retry_after: str | None) -> float | None:
    """RFC 9110 §10.2.3; a date, or more than we are willing to wait, is the caller's to wait for."""
    if retry_after is None or not (retry_after.isascii() and retry_after.isdigit()):
        return None
    seconds = float(retry_after[:9])
    return seconds if seconds <= limits.RETRY_AFTER_MAX_S else None


def _decode(
    status: int, kind: str, data: bytes, answer: type[_Answer], accept: int, retry_after: float | None = None
) -> _Answer:
    try:
        if status >= _BAD and status != accept:
            if kind != _PROBLEM_TYPE:
                raise AnswerError("service.answer", f"status {status} and no problem document", _NOT_KEYPEER)
            raise ProblemError(_problem.decode(data), retry_after)
        return msgspec.json.decode(data or b"null", type=answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AnswerError(
            "service.answer", f"status {status}, but the body isn't its kind: {error}", _NOT_KEYPEER
        ) from None


_NOT_KEYPEER = "does the URL lead to a keypeer service of this version?"

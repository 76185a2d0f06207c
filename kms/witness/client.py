"""Witnesses over HTTP: one kept connection each, bounded in time and size."""

from __future__ import annotations

import ssl

import aiohttp

from kms import limits
from kms.errors import Unavailable
from kms.witness.port import Witness, WitnessAnswer


class HttpWitnesses:
    """kms.witness.port.WitnessClient. Connects when it is asked first."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def add_checkpoint(self, witness: Witness, body: bytes) -> WitnessAnswer:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Its own context: aiohttp's has no CA certificates here (kms/lean.py).
                connector=aiohttp.TCPConnector(ssl=ssl.create_default_context()),
                timeout=aiohttp.ClientTimeout(total=limits.WITNESS_DEADLINE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        url = f"{witness.url.rstrip('/')}/add-checkpoint"
        try:
            async with self._session.post(url, data=body, allow_redirects=False) as response:
                data = await _bounded(response)
                return WitnessAnswer(response.status, response.content_type, data)
        except TimeoutError:
            raise _unreachable(witness, f"no answer in {limits.WITNESS_DEADLINE_S:.0f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(witness, str(error) or type(error).__name__) from None

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > limits.WITNESS_ANSWER_BYTES_MAX:
            raise aiohttp.ClientPayloadError(f"an answer of more than {limits.WITNESS_ANSWER_BYTES_MAX} bytes")
    return bytes(data)


def _unreachable(witness: Witness, why: str) -> Unavailable:
    return Unavailable("witness.unreachable", f"{witness.name}: {why}", hint="is the witness up, and its URL right?")

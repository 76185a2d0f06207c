"""What a simulated host sends while nothing about it is new, with all that stays the same made once: an exchange costs
two signatures over a fresh nonce and little else. For loads of thousands of hosts."""

from __future__ import annotations

import base64
import time
from hashlib import sha256

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from keypeer.wire import messages as wire
from kms.tpm import constants as c
from kms.tpm.signature import parse_signature
from tests.support import tpm_bytes as t
from tests.support.simulated_host import SimulatedHost

_EXTRA = slice(4 + 2 + 2 + 34 + 2, 4 + 2 + 2 + 34 + 2 + 32)  # of a TPMS_ATTEST: behind magic, type, signer and size
_CLOCK = slice(_EXTRA.stop, _EXTRA.stop + 8)
_ECDSA = ec.ECDSA(hashes.SHA256())
_SIGNATURE_HEAD = t.ECDSA_SHA256 + t.u16(32)
_NONCE_BYTES = 32
_MARKS = [f"@{number}" for number in range(5)]  # no base64url
_CLOCK_ORIGIN_MS = 123_456  # where a simulated TPM's clock stands at first


class SteadyHost:
    """``tpm`` has a P-256 AK, an open session and a geo-tag. Its PCRs and counters aren't looked at again."""

    def __init__(self, tpm: SimulatedHost, client_certificate: bytes, challenge: wire.Challenge) -> None:
        self.name = tpm.name
        assert isinstance(tpm.ak, ec.EllipticCurvePrivateKey)
        self._sign = tpm.ak.sign
        zeros = bytes(_NONCE_BYTES)
        evidence = tpm.evidence(zeros, challenge.quote_pcrs, with_binding=False)
        assert evidence.geo is not None
        self._attests = [_around(evidence.quote_attest), _around(evidence.geo.attest)]
        request = tpm.attest_request(challenge, client_certificate)
        assert request.geo is not None
        signed = [wire.SignedAttest(attest=_MARKS[at], signature=_MARKS[at + 1]) for at in (1, 3)]
        geo = msgspec.structs.replace(request.geo, certified=signed[1])
        marked = msgspec.structs.replace(request, nonce=_MARKS[0], binding=None, quote=signed[0], geo=geo)
        self._parts = _split(msgspec.json.encode(marked))
        label = b"keypeer/attest/v1" + t.tpm2b(zeros)[:2]
        fields = (tpm.name.encode(), sha256(client_certificate).digest(), tpm.binding_name, challenge.purpose.encode())
        self._qualifying = (label, b"".join(map(t.tpm2b, fields)))
        self._started = time.monotonic()

    def body(self, nonce: bytes) -> bytes:
        """The AttestRequest in JSON that answers ``nonce`` (base64url), signed now."""
        label, fields = self._qualifying
        extra = sha256(label + base64.urlsafe_b64decode(nonce + b"=") + fields).digest()
        clock = t.u64(_CLOCK_ORIGIN_MS + int((time.monotonic() - self._started) * 1000))
        head, *parts = self._parts
        made = [head, nonce]
        for number, (before, after) in enumerate(self._attests):
            attest = before + extra + clock + after
            made += [parts[2 * number], _base64(attest), parts[2 * number + 1], _base64(self._signed(attest))]
        return b"".join([*made, parts[-1]])

    def _signed(self, attest: bytes) -> bytes:
        r, s = decode_dss_signature(self._sign(attest, _ECDSA))
        return _SIGNATURE_HEAD + r.to_bytes(32, "big") + b"\x00\x20" + s.to_bytes(32, "big")


def _around(attest: bytes) -> tuple[bytes, bytes]:
    """What is before extraData's bytes, and after the clock that follows them."""
    assert attest[_EXTRA] == bytes(_NONCE_BYTES)
    assert attest[:4] == t.u32(c.TPM_GENERATED_VALUE)
    return attest[: _EXTRA.start], attest[_CLOCK.stop :]


def _split(body: bytes) -> list[bytes]:
    parts = []
    for mark in _MARKS:
        before, _, body = body.partition(mark.encode())
        parts.append(before)
    return [*parts, body]


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def first_nonce(challenge: wire.Challenge) -> bytes:
    """The challenge's nonce as ``SteadyHost.body`` takes it."""
    return challenge.nonce.encode()


def evidence_of(tpm: SimulatedHost, pcrs: tuple[int, ...]) -> list[tuple[bytes, bytes]]:
    """The two signatures (DER) of one exchange and what each is over."""
    evidence = tpm.evidence(bytes(_NONCE_BYTES), pcrs, with_binding=False)
    assert evidence.geo is not None
    pairs = ((evidence.quote_signature, evidence.quote_attest), (evidence.geo.signature, evidence.geo.attest))
    return [(parse_signature(signature).value, attest) for signature, attest in pairs]

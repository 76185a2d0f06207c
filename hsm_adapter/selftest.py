"""The worker's self-test: known answers, a blob that must not open, the generator, and that each KEK is still itself.

A wrong *answer* raises SelfTestFailed; a call that *fails* raises CryptokiError as anywhere else. The difference
matters: the first says the token can't be trusted, the second that it can't be reached.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from pkcs11 import Attribute, KeyType, ObjectClass

from hsm_adapter import canonical, mechanisms
from hsm_adapter.cryptoki import Mechanism
from hsm_adapter.errors import Blame, CryptokiError, Unusable
from hsm_adapter.keys import handle_of
from hsm_adapter.token import Token
from hsm_adapter.translate import translated

# Published examples don't fit SoftHSM: it rounds RFC 5649 §6's 20 octets up to 24 before wrapping, and refuses
# HMAC keys under 32 bytes. So test keys of the sizes we use, and answers from another implementation.
_TEST_KEK: Final = bytes(range(32))
_TEST_KEY: Final = bytes(range(64, 128))
_TEST_WRAPPED: Final = aes_key_wrap_with_padding(_TEST_KEK, _TEST_KEY)
_TEST_MAC: Final = hmac.digest(_TEST_KEY, b"keypeer", "sha256")

_CANARY: Final = canonical.mac_bytes(b"keypeer/canary/v1")
_RNG_BITS: Final = 256


class SelfTestFailed(Unusable):
    """The token gave a wrong answer. Retryable: another worker may be on another, sound device."""

    def __init__(self, detail: str) -> None:
        super().__init__("hsm.self_test_failed", detail, retryable=True)


@dataclass(frozen=True, slots=True)
class Canary:
    """A key made once and kept wrapped: only the KEK that wrapped it brings back the key that made ``mac``."""

    wrapped: bytes
    mac: bytes


class SelfTest:
    """Remembers canaries for the life of the process: after a device error or a heal, the same label must still
    be the same key, since handles may silently name another one (DESIGN §4, vendors' errata)."""

    def __init__(self) -> None:
        self._keks: dict[int, Canary] = {}
        self._macs: dict[int, bytes] = {}

    def run(self, token: Token, key_wrap: Mechanism) -> str:
        """Everything, newest keys included → which known answer was used: "rfc5649", or "length".

        "length" stands for tokens that import no test key: their wraps were only seen to have RFC 5649's length.
        """
        token.refresh()
        known_answer = "rfc5649" if _known_answers(token, key_wrap) else "length"
        _check_generator(token)
        for version in token.keys.keks:
            self._check_kek(token, key_wrap, version)
        for version in token.keys.macs:
            self._check_mac(token, version)
        return known_answer

    def probe(self, token: Token, key_wrap: Mechanism) -> None:
        """The quick part, to tell a bad operation from a bad token: newest KEK and record-mac, no search."""
        self._check_kek(token, key_wrap, token.keys.current_kek)
        self._check_mac(token, token.keys.current_mac)

    def _check_kek(self, token: Token, key_wrap: Mechanism, version: int) -> None:
        canary = self._keks.get(version)
        if canary is None:
            canary = self._keks[version] = _new_canary(token, key_wrap, version)
        try:
            opened = _open_canary(token, key_wrap, version, canary.wrapped)
        except CryptokiError as error:
            fresh = _new_canary(token, key_wrap, version)
            _open_canary(token, key_wrap, version, fresh.wrapped)  # raises for itself when the token is what fails
            raise SelfTestFailed(f"KEK {version} no longer opens what it wrapped ({error.detail})") from error
        if not compare_digest(opened, canary.mac):
            raise SelfTestFailed(f"KEK {version} opens its canary to another key")
        _refuse_tampered(token, key_wrap, version, canary.wrapped)

    def _check_mac(self, token: Token, version: int) -> None:
        found = token.fast.hmac(token.mac(version), _CANARY)
        if not compare_digest(self._macs.setdefault(version, found), found):
            raise SelfTestFailed(f"record-mac {version} gives another MAC than before")


def _new_canary(token: Token, key_wrap: Mechanism, version: int) -> Canary:
    fast = token.fast
    key = fast.generate(mechanisms.GENERIC_SECRET_KEY_GEN, mechanisms.GENERATE_SESSION_MAC_KEY)
    try:
        return Canary(fast.wrap(key_wrap, token.kek(version), key), fast.hmac(key, _CANARY))
    finally:
        fast.destroy_all(key)


def _open_canary(token: Token, key_wrap: Mechanism, version: int, wrapped: bytes) -> bytes:
    fast = token.fast
    key = fast.unwrap(key_wrap, token.kek(version), wrapped, mechanisms.UNWRAP_SESSION_MAC_KEY)
    try:
        return fast.hmac(key, _CANARY)
    finally:
        fast.destroy_all(key)


def _refuse_tampered(token: Token, key_wrap: Mechanism, version: int, wrapped: bytes) -> None:
    tampered = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
    try:
        _open_canary(token, key_wrap, version, tampered)
    except CryptokiError:
        return
    raise SelfTestFailed(f"KEK {version} opened a tampered blob")


def _check_generator(token: Token) -> None:
    """Two draws differ and aren't zero (the continuous test of FIPS 140-2 §4.9.2, in its plainest form)."""
    with translated("C_GenerateRandom"):
        first, second = (token.session.generate_random(_RNG_BITS) for _ in range(2))
    if first == second or not any(first) or not any(second):
        raise SelfTestFailed("the generator repeats itself")


def _known_answers(token: Token, key_wrap: Mechanism) -> bool:
    """RFC 5649 and RFC 2104 with test keys; False where the token imports none."""
    handles: list[int] = []
    try:
        handles.append(_import(token, KeyType.AES, _TEST_KEK))
        handles.append(_import(token, KeyType.GENERIC_SECRET, _TEST_KEY))
        kek, key = handles
        wrapped, mac = token.fast.wrap(key_wrap, kek, key), token.fast.hmac(key, b"keypeer")
    except CryptokiError as error:
        if error.blame is not Blame.OPERATION:
            raise
        return False
    finally:
        token.fast.destroy_all(*handles)
    if wrapped != _TEST_WRAPPED:
        raise SelfTestFailed("RFC 5649 key wrap gives a wrong answer")
    if mac != _TEST_MAC:
        raise SelfTestFailed("HMAC-SHA-256 gives a wrong answer")
    return True


def _import(token: Token, kind: KeyType, value: bytes) -> int:
    """A test key as a session object; its value is no secret."""
    with translated("C_CreateObject"):
        return handle_of(
            token.session.create_object(
                {
                    Attribute.CLASS: ObjectClass.SECRET_KEY,
                    Attribute.KEY_TYPE: kind,
                    Attribute.TOKEN: False,
                    Attribute.VALUE: value,
                    Attribute.EXTRACTABLE: True,
                    Attribute.WRAP: kind is KeyType.AES,
                    Attribute.SIGN: kind is not KeyType.AES,
                }
            )
        )

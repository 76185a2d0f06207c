"""The worker's self-test: known answers, a blob that must not open, the generator, and that each KEK is still itself.

A wrong *answer* raises SelfTestFailed; a call that *fails* raises CryptokiError as anywhere else. The difference
matters: the first says the token can't be trusted, the second that it can't be reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

from pkcs11 import Attribute, KeyType, ObjectClass

from hsm_adapter import canonical, mechanisms
from hsm_adapter.cryptoki import Mechanism
from hsm_adapter.errors import Blame, CryptokiError, Unusable
from hsm_adapter.keys import handle_of
from hsm_adapter.token import Token
from hsm_adapter.translate import translated

# RFC 5649 §6, first example: 20 octets of key data under a 192-bit KEK.
_RFC5649_KEK: Final = bytes.fromhex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8")
_RFC5649_KEY: Final = bytes.fromhex("c37b7e6492584340bed12207808941155068f738")
_RFC5649_WRAPPED: Final = bytes.fromhex("138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a")
# RFC 4231 §4.2, test case 1.
_RFC4231_KEY: Final = b"\x0b" * 20
_RFC4231_DATA: Final = b"Hi There"
_RFC4231_MAC: Final = bytes.fromhex("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7")

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
    """RFC 5649 and RFC 4231 with their published keys; False where the token imports none."""
    handles: list[int] = []
    try:
        for kind, value in (
            (KeyType.AES, _RFC5649_KEK),
            (KeyType.GENERIC_SECRET, _RFC5649_KEY),
            (KeyType.GENERIC_SECRET, _RFC4231_KEY),
        ):
            handles.append(_import(token, kind, value))
        kek, key, mac_key = handles
        wrapped, mac = token.fast.wrap(key_wrap, kek, key), token.fast.hmac(mac_key, _RFC4231_DATA)
    except CryptokiError as error:
        if error.blame is not Blame.OPERATION:
            raise
        return False
    finally:
        token.fast.destroy_all(*handles)
    if wrapped != _RFC5649_WRAPPED:
        raise SelfTestFailed("RFC 5649 §6 gives another answer")
    if mac != _RFC4231_MAC:
        raise SelfTestFailed("RFC 4231 §4.2 gives another answer")
    return True


def _import(token: Token, kind: KeyType, value: bytes) -> int:
    """A published test key as a session object; its value is no secret."""
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

"""The tree out of CKR values: complete for what python-pkcs11 raises, one code and one blame each."""

from __future__ import annotations

import re

import pkcs11
import pytest
from pkcs11 import exceptions

from hsm_adapter.errors import RETURN_VALUES, Blame, CryptokiError, HsmError
from hsm_adapter.translate import translated

# Raised by python-pkcs11 itself, or only by calls that nobody here makes.
NOT_RETURN_VALUES = {
    "AnotherUserAlreadyLoggedIn",
    "ExceededMaxIterations",
    "KeyIndigestible",
    "KeyNeeded",
    "KeyNotNeeded",
    "MultipleObjectsReturned",
    "MultipleTokensReturned",
    "NoEvent",
    "NoSuchKey",
    "NoSuchToken",
    "PKCS11Error",
    "RandomSeedNotSupported",
    "SessionExists",
    "SessionReadOnlyExists",
    "SessionReadWriteSOExists",
    "SignatureInvalid",
    "SignatureLenRange",
    "UserTooManyTypes",
}
CLASSES = {name: kind for name, kind in vars(exceptions).items() if isinstance(kind, type)}


def test_numbers_are_distinct() -> None:
    assert len({value.number for value in RETURN_VALUES.values()}) == len(RETURN_VALUES)


def test_codes_are_stable_names() -> None:
    assert all(re.fullmatch(r"hsm\.[a-z_]+", value.code) for value in RETURN_VALUES.values())


@pytest.mark.parametrize("name", sorted(set(CLASSES) - NOT_RETURN_VALUES))
def test_every_exception_of_python_pkcs11_is_known(name: str) -> None:
    with pytest.raises(CryptokiError) as caught, translated("C_Test"):
        raise CLASSES[name]
    assert RETURN_VALUES[caught.value.name].number == caught.value.number
    assert caught.value.detail == f"C_Test returned CKR_{caught.value.name}"


def test_an_unknown_value_accuses_the_device() -> None:
    error = CryptokiError(0x8000_1234, "C_Sign")
    assert (error.code, error.retryable, error.blame) == ("hsm.device", True, Blame.DEVICE)
    assert error.detail == "C_Sign returned CKR_0x80001234"
    with pytest.raises(CryptokiError) as caught, translated("C_Sign"):
        raise pkcs11.PKCS11Error("Unmapped error code 0x80001234")
    assert caught.value.blame is Blame.DEVICE


@pytest.mark.parametrize(
    ("name", "code", "retryable", "blame"),
    [
        ("PIN_INCORRECT", "hsm.pin_incorrect", False, Blame.OPERATION),
        ("PIN_LOCKED", "hsm.pin_locked", False, Blame.OPERATION),
        ("SESSION_HANDLE_INVALID", "hsm.session", True, Blame.HANDLES),
        ("USER_NOT_LOGGED_IN", "hsm.session", True, Blame.HANDLES),
        ("DEVICE_REMOVED", "hsm.token_missing", True, Blame.DEVICE),
        ("GENERAL_ERROR", "hsm.device", True, Blame.DEVICE),
        ("WRAPPED_KEY_INVALID", "hsm.unwrap_failed", False, Blame.OPERATION),
    ],
)
def test_the_values_that_decide_something(name: str, code: str, retryable: bool, blame: Blame) -> None:
    error = CryptokiError(RETURN_VALUES[name].number, "C_Test")
    assert isinstance(error, HsmError)
    assert (error.code, error.retryable, error.blame) == (code, retryable, blame)

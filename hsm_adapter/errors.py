"""One tree of errors out of PKCS #11's return values.

    HsmError                what a client sees: code, detail, retryable
    ├── BadRequest          hsm.bad_request: the operation can't be right, whoever sent it
    ├── RecordTampered      hsm.record_tampered: a record's MAC doesn't fit its bytes
    ├── Unusable            the token can't serve at all: hsm.token_missing, hsm.pin_incorrect, hsm.key_missing …
    └── CryptokiError       a call returned other than CKR_OK; its code comes from the table below

``retryable`` says that the same operation may succeed later, or on another worker now.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple


class Blame(Enum):
    """What a return value accuses; it decides what the engine tries before it gives up."""

    OPERATION = "operation"  # the operation's own fault
    HANDLES = "handles"  # session, login or object handles died: probe, then fresh handles
    DEVICE = "device"  # the device, or a module that answers everything with one code: probe, then reopen


class ReturnValue(NamedTuple):
    """One CKR value: its number (PKCS #11 v3.0 §5.1), our code, whether to retry, and whom it accuses."""

    number: int
    code: str
    retryable: bool
    blame: Blame


_OPERATION, _HANDLES, _DEVICE = Blame.OPERATION, Blame.HANDLES, Blame.DEVICE

# GENERAL_ERROR and FUNCTION_FAILED accuse the device, but SoftHSM also answers a tampered blob with them.
RETURN_VALUES: Final[dict[str, ReturnValue]] = {
    "HOST_MEMORY": ReturnValue(0x002, "hsm.device", True, _DEVICE),
    "SLOT_ID_INVALID": ReturnValue(0x003, "hsm.token_missing", True, _DEVICE),
    "GENERAL_ERROR": ReturnValue(0x005, "hsm.device", True, _DEVICE),
    "FUNCTION_FAILED": ReturnValue(0x006, "hsm.device", True, _DEVICE),
    "ARGUMENTS_BAD": ReturnValue(0x007, "hsm.bad_request", False, _OPERATION),
    "ATTRIBUTE_READ_ONLY": ReturnValue(0x010, "hsm.unsupported", False, _OPERATION),
    "ATTRIBUTE_SENSITIVE": ReturnValue(0x011, "hsm.unsupported", False, _OPERATION),
    "ATTRIBUTE_TYPE_INVALID": ReturnValue(0x012, "hsm.unsupported", False, _OPERATION),
    "ATTRIBUTE_VALUE_INVALID": ReturnValue(0x013, "hsm.unsupported", False, _OPERATION),
    "ACTION_PROHIBITED": ReturnValue(0x01B, "hsm.unsupported", False, _OPERATION),
    "DATA_INVALID": ReturnValue(0x020, "hsm.bad_request", False, _OPERATION),
    "DATA_LEN_RANGE": ReturnValue(0x021, "hsm.bad_request", False, _OPERATION),
    "DEVICE_ERROR": ReturnValue(0x030, "hsm.device", True, _DEVICE),
    "DEVICE_MEMORY": ReturnValue(0x031, "hsm.device", True, _DEVICE),
    "DEVICE_REMOVED": ReturnValue(0x032, "hsm.token_missing", True, _DEVICE),
    "ENCRYPTED_DATA_INVALID": ReturnValue(0x040, "hsm.unwrap_failed", False, _OPERATION),
    "ENCRYPTED_DATA_LEN_RANGE": ReturnValue(0x041, "hsm.unwrap_failed", False, _OPERATION),
    "FUNCTION_CANCELED": ReturnValue(0x050, "hsm.device", True, _DEVICE),
    "FUNCTION_NOT_SUPPORTED": ReturnValue(0x054, "hsm.unsupported", False, _OPERATION),
    "KEY_HANDLE_INVALID": ReturnValue(0x060, "hsm.session", True, _HANDLES),
    "KEY_SIZE_RANGE": ReturnValue(0x062, "hsm.unsupported", False, _OPERATION),
    "KEY_TYPE_INCONSISTENT": ReturnValue(0x063, "hsm.session", True, _HANDLES),
    "KEY_FUNCTION_NOT_PERMITTED": ReturnValue(0x068, "hsm.session", True, _HANDLES),
    "KEY_NOT_WRAPPABLE": ReturnValue(0x069, "hsm.unsupported", False, _OPERATION),
    "KEY_UNEXTRACTABLE": ReturnValue(0x06A, "hsm.unsupported", False, _OPERATION),
    "MECHANISM_INVALID": ReturnValue(0x070, "hsm.unsupported", False, _OPERATION),
    "MECHANISM_PARAM_INVALID": ReturnValue(0x071, "hsm.unsupported", False, _OPERATION),
    "OBJECT_HANDLE_INVALID": ReturnValue(0x082, "hsm.session", True, _HANDLES),
    "OPERATION_ACTIVE": ReturnValue(0x090, "hsm.session", True, _DEVICE),
    "OPERATION_NOT_INITIALIZED": ReturnValue(0x091, "hsm.session", True, _DEVICE),
    "PIN_INCORRECT": ReturnValue(0x0A0, "hsm.pin_incorrect", False, _OPERATION),
    "PIN_INVALID": ReturnValue(0x0A1, "hsm.pin_incorrect", False, _OPERATION),
    "PIN_LEN_RANGE": ReturnValue(0x0A2, "hsm.pin_incorrect", False, _OPERATION),
    "PIN_EXPIRED": ReturnValue(0x0A3, "hsm.pin_locked", False, _OPERATION),
    "PIN_LOCKED": ReturnValue(0x0A4, "hsm.pin_locked", False, _OPERATION),
    "SESSION_CLOSED": ReturnValue(0x0B0, "hsm.session", True, _HANDLES),
    "SESSION_COUNT": ReturnValue(0x0B1, "hsm.session", True, _DEVICE),
    "SESSION_HANDLE_INVALID": ReturnValue(0x0B3, "hsm.session", True, _HANDLES),
    "SESSION_READ_ONLY": ReturnValue(0x0B5, "hsm.unsupported", False, _OPERATION),
    "TEMPLATE_INCOMPLETE": ReturnValue(0x0D0, "hsm.unsupported", False, _OPERATION),
    "TEMPLATE_INCONSISTENT": ReturnValue(0x0D1, "hsm.unsupported", False, _OPERATION),
    "TOKEN_NOT_PRESENT": ReturnValue(0x0E0, "hsm.token_missing", True, _DEVICE),
    "TOKEN_NOT_RECOGNIZED": ReturnValue(0x0E1, "hsm.token_missing", True, _DEVICE),
    "TOKEN_WRITE_PROTECTED": ReturnValue(0x0E2, "hsm.unsupported", False, _OPERATION),
    "UNWRAPPING_KEY_HANDLE_INVALID": ReturnValue(0x0F0, "hsm.session", True, _HANDLES),
    "UNWRAPPING_KEY_SIZE_RANGE": ReturnValue(0x0F1, "hsm.unsupported", False, _OPERATION),
    "UNWRAPPING_KEY_TYPE_INCONSISTENT": ReturnValue(0x0F2, "hsm.session", True, _HANDLES),
    "USER_ALREADY_LOGGED_IN": ReturnValue(0x100, "hsm.session", True, _DEVICE),
    "USER_NOT_LOGGED_IN": ReturnValue(0x101, "hsm.session", True, _HANDLES),
    "USER_PIN_NOT_INITIALIZED": ReturnValue(0x102, "hsm.pin_incorrect", False, _OPERATION),
    "WRAPPED_KEY_INVALID": ReturnValue(0x110, "hsm.unwrap_failed", False, _OPERATION),
    "WRAPPED_KEY_LEN_RANGE": ReturnValue(0x112, "hsm.unwrap_failed", False, _OPERATION),
    "WRAPPING_KEY_HANDLE_INVALID": ReturnValue(0x113, "hsm.session", True, _HANDLES),
    "WRAPPING_KEY_SIZE_RANGE": ReturnValue(0x114, "hsm.unsupported", False, _OPERATION),
    "WRAPPING_KEY_TYPE_INCONSISTENT": ReturnValue(0x115, "hsm.session", True, _HANDLES),
    "RANDOM_NO_RNG": ReturnValue(0x121, "hsm.unsupported", False, _OPERATION),
    "DOMAIN_PARAMS_INVALID": ReturnValue(0x130, "hsm.unsupported", False, _OPERATION),
    "CURVE_NOT_SUPPORTED": ReturnValue(0x140, "hsm.unsupported", False, _OPERATION),
    "BUFFER_TOO_SMALL": ReturnValue(0x150, "hsm.device", True, _DEVICE),
    "CRYPTOKI_NOT_INITIALIZED": ReturnValue(0x190, "hsm.session", True, _DEVICE),
    "CRYPTOKI_ALREADY_INITIALIZED": ReturnValue(0x191, "hsm.session", True, _DEVICE),
    "PIN_TOO_WEAK": ReturnValue(0x1B8, "hsm.pin_incorrect", False, _OPERATION),
    "PUBLIC_KEY_INVALID": ReturnValue(0x1B9, "hsm.bad_request", False, _OPERATION),
    "FUNCTION_REJECTED": ReturnValue(0x200, "hsm.unsupported", False, _OPERATION),
}
_NAME_BY_NUMBER: Final = {value.number: name for name, value in RETURN_VALUES.items()}


class HsmError(Exception):
    """Root of what a client may see. ``code`` is stable, ``detail`` is for people and holds no secret."""

    def __init__(self, code: str, detail: str, *, retryable: bool = False) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retryable = retryable


class BadRequest(HsmError):
    """The operation can't be right, whoever sent it."""

    def __init__(self, detail: str) -> None:
        super().__init__("hsm.bad_request", detail)


class RecordTampered(HsmError):
    """A record's MAC doesn't fit its bytes: changed, moved to another VM, or made by another token."""

    def __init__(self, what: str) -> None:
        super().__init__("hsm.record_tampered", f"the MAC of {what} does not verify")


class Unusable(HsmError):
    """The token can't serve; ``code`` says why. Retryable where mending the token mends the worker by itself."""


class CryptokiError(HsmError):
    """A PKCS #11 call returned ``number`` in ``function``. Vendor-defined and unknown values accuse the device."""

    def __init__(self, number: int, function: str) -> None:
        self.number = number
        self.name = _NAME_BY_NUMBER.get(number, f"0x{number:08X}")
        self.function = function
        value = RETURN_VALUES.get(self.name, ReturnValue(number, "hsm.device", True, Blame.DEVICE))
        self.blame = value.blame
        super().__init__(value.code, f"{function} returned CKR_{self.name}", retryable=value.retryable)

"""The one seam to the module's C functions: what python-pkcs11 can't do, or does at a third of the speed.

cffi in ABI mode (no compiler at run time) over the same loaded module as python-pkcs11, hence over the same login:
PKCS #11 keeps login state by process and token (v3.0 §2.5). Mechanisms, templates and buffers are built once;
a call costs a microsecond over the module's own time. Not thread-safe, as the whole worker isn't.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import cffi

from hsm_adapter import limits
from hsm_adapter.errors import CryptokiError, Unusable
from hsm_adapter.network import NETWORK

# CK_FUNCTION_LIST in the order that PKCS #11 v2.40 pkcs11f.h fixes; later versions only append elsewhere.
_FUNCTIONS: Final = """
    Initialize Finalize GetInfo GetFunctionList GetSlotList GetSlotInfo GetTokenInfo GetMechanismList GetMechanismInfo
    InitToken InitPIN SetPIN OpenSession CloseSession CloseAllSessions GetSessionInfo GetOperationState
    SetOperationState Login Logout CreateObject CopyObject DestroyObject GetObjectSize GetAttributeValue
    SetAttributeValue FindObjectsInit FindObjects FindObjectsFinal EncryptInit Encrypt EncryptUpdate EncryptFinal
    DecryptInit Decrypt DecryptUpdate DecryptFinal DigestInit Digest DigestUpdate DigestKey DigestFinal SignInit Sign
    SignUpdate SignFinal SignRecoverInit SignRecover VerifyInit Verify VerifyUpdate VerifyFinal VerifyRecoverInit
    VerifyRecover DigestEncryptUpdate DecryptDigestUpdate SignEncryptUpdate DecryptVerifyUpdate GenerateKey
    GenerateKeyPair WrapKey UnwrapKey DeriveKey SeedRandom GenerateRandom GetFunctionStatus CancelFunction
    WaitForSlotEvent
""".split()  # noqa: SIM905 - 68 names read better as prose than as a list

_ffi: Final = cffi.FFI()
_ffi.cdef(
    """
    typedef unsigned char CK_BYTE;
    typedef unsigned long CK_ULONG;
    typedef struct { CK_ULONG type; void *pValue; CK_ULONG ulValueLen; } CK_ATTRIBUTE;
    typedef struct { CK_ULONG mechanism; void *pParameter; CK_ULONG ulParameterLen; } CK_MECHANISM;
    typedef struct { CK_ULONG hashAlg; CK_ULONG mgf; CK_ULONG source; void *pSourceData; CK_ULONG ulSourceDataLen; }
        CK_RSA_PKCS_OAEP_PARAMS;
    typedef CK_ULONG (*InitToken)(CK_ULONG slot, const CK_BYTE *pin, CK_ULONG pin_len, const CK_BYTE *label);
    typedef CK_ULONG (*CopyObject)(CK_ULONG session, CK_ULONG object, CK_ATTRIBUTE *, CK_ULONG count, CK_ULONG *copy);
    typedef CK_ULONG (*DestroyObject)(CK_ULONG session, CK_ULONG object);
    typedef CK_ULONG (*SignInit)(CK_ULONG session, CK_MECHANISM *mechanism, CK_ULONG key);
    typedef CK_ULONG (*Sign)(CK_ULONG session, const CK_BYTE *data, CK_ULONG data_len, CK_BYTE *out, CK_ULONG *len);
    typedef CK_ULONG (*GetAttributeValue)(CK_ULONG session, CK_ULONG object, CK_ATTRIBUTE *, CK_ULONG count);
    typedef CK_ULONG (*DigestInit)(CK_ULONG session, CK_MECHANISM *mechanism);
    typedef CK_ULONG (*DigestKey)(CK_ULONG session, CK_ULONG key);
    typedef CK_ULONG (*DigestFinal)(CK_ULONG session, CK_BYTE *out, CK_ULONG *len);
    typedef CK_ULONG (*GenerateKey)(CK_ULONG session, CK_MECHANISM *, CK_ATTRIBUTE *, CK_ULONG count, CK_ULONG *key);
    typedef CK_ULONG (*WrapKey)(CK_ULONG session, CK_MECHANISM *, CK_ULONG wrapping_key, CK_ULONG key, CK_BYTE *out,
        CK_ULONG *len);
    typedef CK_ULONG (*UnwrapKey)(CK_ULONG session, CK_MECHANISM *, CK_ULONG unwrapping_key, const CK_BYTE *wrapped,
        CK_ULONG wrapped_len, CK_ATTRIBUTE *, CK_ULONG count, CK_ULONG *key);
    """
    f"typedef struct {{ CK_BYTE version[2]; void *function[{len(_FUNCTIONS)}]; }} CK_FUNCTION_LIST;"
    "CK_ULONG C_GetFunctionList(CK_FUNCTION_LIST **list);"
)

CKR_OK: Final = 0


class Mechanism:
    """A CK_MECHANISM built once; ``keep`` holds what its parameter points to."""

    __slots__ = ("keep", "pointer")

    def __init__(self, number: int, parameter: Any = None) -> None:
        self.keep = parameter
        self.pointer = _ffi.new("CK_MECHANISM *")
        self.pointer.mechanism = number
        if parameter is not None:
            self.pointer.pParameter = parameter
            self.pointer.ulParameterLen = _ffi.sizeof(_ffi.typeof(parameter).item)

    @classmethod
    def oaep(cls, hash_number: int, mgf: int) -> Mechanism:
        """CKM_RSA_PKCS_OAEP (PKCS #11 v3.0 §2.1.8) with an empty label."""
        specified = 1  # CKZ_DATA_SPECIFIED
        return cls(0x09, _ffi.new("CK_RSA_PKCS_OAEP_PARAMS *", (hash_number, mgf, specified, _ffi.NULL, 0)))


class Template:
    """A CK_ATTRIBUTE array built once out of booleans, CK_ULONGs and bytes, the only kinds that templates here need."""

    __slots__ = ("count", "keep", "pointer")

    def __init__(self, attributes: Mapping[int, bool | int | bytes]) -> None:
        self.count = len(attributes)
        self.pointer = _ffi.new("CK_ATTRIBUTE[]", self.count)
        self.keep = [_held(value) for value in attributes.values()]
        for entry, number, (value, size) in zip(self.pointer, attributes, self.keep, strict=True):
            entry.type, entry.pValue, entry.ulValueLen = number, value, size


def _held(value: bool | int | bytes) -> tuple[Any, int]:
    if isinstance(value, bytes):
        return _ffi.new("CK_BYTE[]", value), len(value)
    held = _ffi.new("CK_BYTE *" if isinstance(value, bool) else "CK_ULONG *", value)
    return held, _ffi.sizeof(_ffi.typeof(held).item)


class Module:
    """The module's function list. Loading a path that python-pkcs11 has loaded gives the same module again."""

    def __init__(self, path: str) -> None:
        try:
            self._library = _ffi.dlopen(path, _ffi.RTLD_NOW | _ffi.RTLD_LOCAL)
            get_function_list = self._library.C_GetFunctionList
        except (OSError, AttributeError) as error:
            raise Unusable("hsm.module_missing", f"{path} is not a PKCS #11 module: {error}") from error
        pointer = _ffi.new("CK_FUNCTION_LIST **")
        if (rv := get_function_list(pointer)) != CKR_OK:
            raise CryptokiError(rv, "C_GetFunctionList")
        self._list = pointer[0]

    def function(self, name: str) -> Any:
        """The C function ``C_<name>``, typed by the typedef of the same name above."""
        return NETWORK.beyond(name, _ffi.cast(name, self._list.function[_FUNCTIONS.index(name)]))

    def init_token(self, slot: int, so_pin: str, label: str) -> None:
        """C_InitToken: erases the token in ``slot``, sets its label and the SO's PIN."""
        pin, padded = so_pin.encode(), label.encode().ljust(limits.TOKEN_LABEL_BYTES)
        if (rv := self.function("InitToken")(slot, pin, len(pin), padded)) != CKR_OK:
            raise CryptokiError(rv, "C_InitToken")


class Session:
    """The hot calls on one open PKCS #11 session, which somebody else opened, logged in and will close.

    Keys are object handles. Raises CryptokiError, naming the C function.
    """

    def __init__(self, module: Module, handle: int) -> None:
        self._handle = handle
        self._copy = module.function("CopyObject")
        self._destroy = module.function("DestroyObject")
        self._sign_init = module.function("SignInit")
        self._sign = module.function("Sign")
        self._generate = module.function("GenerateKey")
        self._wrap = module.function("WrapKey")
        self._unwrap = module.function("UnwrapKey")
        self._get = module.function("GetAttributeValue")
        self._digest = tuple(module.function(name) for name in ("DigestInit", "DigestKey", "DigestFinal"))
        self._sha256 = Mechanism(0x250).pointer  # CKM_SHA256, PKCS #11 v3.0 §2.22
        self._hmac = Mechanism(0x251).pointer  # CKM_SHA256_HMAC, PKCS #11 v3.0 §2.22
        # One buffer for every output: an RSA ciphertext is the longest. None of them is a secret in the clear.
        self._out = _ffi.new("CK_BYTE[]", limits.OUTPUT_BYTES_MAX)
        self._out_view = _ffi.buffer(self._out)
        self._length = _ffi.new("CK_ULONG *")
        self._key = _ffi.new("CK_ULONG *")

    def hmac(self, key: int, data: bytes) -> bytes:
        """HMAC-SHA-256 of ``data``, 32 bytes."""
        if rv := self._sign_init(self._handle, self._hmac, key):
            raise CryptokiError(rv, "C_SignInit")
        self._length[0] = limits.OUTPUT_BYTES_MAX
        if rv := self._sign(self._handle, data, len(data), self._out, self._length):
            raise CryptokiError(rv, "C_Sign")
        return self._taken()

    def digest(self, key: int) -> bytes:
        """SHA-256 of a secret key's value. As good as the value for telling keys apart: it goes nowhere."""
        start, take, finish = self._digest
        if rv := start(self._handle, self._sha256):
            raise CryptokiError(rv, "C_DigestInit")
        taken = take(self._handle, key)
        self._length[0] = limits.OUTPUT_BYTES_MAX
        rv = finish(self._handle, self._out, self._length)  # also after a refusal: no operation stays open
        if taken or rv:
            raise CryptokiError(taken or rv, "C_DigestKey" if taken else "C_DigestFinal")
        return self._taken()

    def value_length(self, key: int) -> int:
        """CKA_VALUE_LEN in bytes, 0 where the token doesn't tell it."""
        length = _ffi.new("CK_ULONG *", 0)
        attribute = _ffi.new("CK_ATTRIBUTE *", (0x161, length, _ffi.sizeof("CK_ULONG")))
        refused = self._get(self._handle, key, attribute, 1)
        return 0 if refused else int(length[0])

    def generate(self, mechanism: Mechanism, template: Template) -> int:
        """A new secret key's handle."""
        if rv := self._generate(self._handle, mechanism.pointer, template.pointer, template.count, self._key):
            raise CryptokiError(rv, "C_GenerateKey")
        return int(self._key[0])

    def wrap(self, mechanism: Mechanism, wrapping_key: int, key: int) -> bytes:
        """``key`` wrapped by ``wrapping_key``."""
        self._length[0] = limits.OUTPUT_BYTES_MAX
        if rv := self._wrap(self._handle, mechanism.pointer, wrapping_key, key, self._out, self._length):
            raise CryptokiError(rv, "C_WrapKey")
        return self._taken()

    def unwrap(self, mechanism: Mechanism, unwrapping_key: int, wrapped: bytes, template: Template) -> int:
        """The handle of a new session object that holds the unwrapped key."""
        rv = self._unwrap(
            self._handle,
            mechanism.pointer,
            unwrapping_key,
            wrapped,
            len(wrapped),
            template.pointer,
            template.count,
            self._key,
        )
        if rv:
            raise CryptokiError(rv, "C_UnwrapKey")
        return int(self._key[0])

    def copy(self, key: int, template: Template) -> int:
        """The handle of a copy that differs by ``template``."""
        if rv := self._copy(self._handle, key, template.pointer, template.count, self._key):
            raise CryptokiError(rv, "C_CopyObject")
        return int(self._key[0])

    def destroy(self, key: int) -> None:
        """Destroy a session object."""
        if rv := self._destroy(self._handle, key):
            raise CryptokiError(rv, "C_DestroyObject")

    def destroy_all(self, *keys: int) -> None:
        """Destroy what can be destroyed; a handle that died with its session or device needs no more."""
        for key in keys:
            with suppress(CryptokiError):
                self.destroy(key)

    def _taken(self) -> bytes:
        return bytes(self._out_view[0 : self._length[0]])

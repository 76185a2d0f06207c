"""A connection to the TPM, and its errors in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from keypeer import limits
from keypeer.errors import TpmError

DEFAULT_TCTI = "device:/dev/tpmrm0"  # the kernel's resource manager
_RESOURCE_MANAGERS = ("tpmrm", "tabrmd")  # what is loaded behind these belongs to other processes

# TPM_RC less its handle, parameter and session numbers (TPM 2.0 Part 2 §6.6.3): code, what it means, how to mend it.
_CODES = {
    0x09D: ("tpm.policy", "a PCR policy check failed: a boot PCR moved since the key was made", "attest again"),
    0x128: ("tpm.policy", "a PCR moved during the command", "try again"),
    0x921: ("tpm.lockout", "the TPM is in dictionary-attack lockout", "wait, or clear it: tpm2_dictionarylockout -c"),
    0x08E: ("tpm.auth", "an authorisation failed", "the owner and endorsement hierarchies need an empty password"),
    0x0A2: ("tpm.auth", "an authorisation failed", "the owner and endorsement hierarchies need an empty password"),
    0x902: ("tpm.memory", "the TPM has no room for another object", "flush transient objects: tpm2_flushcontext -t"),
    0x148: ("tpm.nv_locked", "the NV index is locked", "its content stays until it is undefined"),
    0x14A: ("tpm.nv_unwritten", "nothing was written to the NV index yet", "write it first"),
    0x08B: ("tpm.handle", "there is no such object or NV index", ""),
    0x09F: ("tpm.integrity", "the blob isn't one of this TPM's", "was the TPM cleared or replaced? enrol again"),
    0x095: ("tpm.blob", "a TPM structure has the wrong size", "enrol or attest from the start"),
    0x09A: ("tpm.blob", "a TPM structure is cut short", "enrol or attest from the start"),
}
# In format-zero codes (bit 7 clear) every bit is the code's own; in format-one codes bits 6 and 8 to 11 number the
# handle, parameter or session at fault.
_FORMAT_ONE, _FORMAT_ONE_MASK = 0x080, 0x0BF
# The layers of the TSS number themselves above the TPM's 16 bits (TCG TSS 2.0 Overview and Common Structures §3.3): the
# TPM itself, a resource manager speaking as one, and the marshalling library.
_LAYER_SHIFT, _CODE_MASK = 16, 0xFFFF
_SAID_BY_A_TPM, _MARSHALLING = (0, 12), 9


class Tpm:
    """An open TPM. ``esys`` is tpm2-pytss' ESAPI context; one thread at a time."""

    def __init__(self, esys: Any) -> None:
        self.esys = esys

    @classmethod
    def open(cls, tcti: str = DEFAULT_TCTI) -> Tpm:
        """Connects to ``device:PATH``, ``swtpm:path=SOCKET`` or any other TCTI string. Raises TpmError."""
        # The TSS prints to standard error; our errors say it instead.
        os.environ.setdefault("TSS2_LOG", "all+NONE")
        try:
            from tpm2_pytss import ESAPI, TSS2_Exception
        except ImportError as error:
            raise TpmError("tpm.missing", f"tpm2-pytss can't be loaded: {error}", "install keypeer[tpm]") from None
        try:
            tpm = cls(ESAPI(tcti))
        except (TSS2_Exception, RuntimeError, ValueError) as error:
            hint = "is the TPM there, and may this user open it?"
            raise TpmError("tpm.unavailable", f"{tcti}: {error}", hint) from None
        try:
            if not any(manager in tcti for manager in _RESOURCE_MANAGERS):
                with translated():
                    tpm._flush_leftovers()
        except TpmError:
            tpm.close()
            raise
        return tpm

    def _flush_leftovers(self) -> None:
        """Without a resource manager a TPM has three transient slots, and a killed process leaves its keys in them."""
        from tpm2_pytss import TPM2_HC

        for first in (TPM2_HC.TRANSIENT_FIRST, TPM2_HC.LOADED_SESSION_FIRST):
            for handle in self.handles(int(first)):
                self.flush(self.esys.tr_from_tpmpublic(handle))

    def handles(self, first: int) -> list[int]:
        """The handles in use from ``first`` on, of its kind."""
        from tpm2_pytss import TPM2_CAP

        _, capability = self.esys.get_capability(TPM2_CAP.HANDLES, first, limits.HANDLES_A_LIST_MAX)
        return [int(handle) for handle in capability.data.handles]

    def flush(self, handle: Any) -> None:
        """Takes a transient object or a session out of the TPM."""
        with translated():
            self.esys.flush_context(handle)

    @contextmanager
    def loaded(self, handle: Any) -> Iterator[Any]:
        """``handle`` for the length of the block, flushed after it."""
        try:
            yield handle
        finally:
            self.flush(handle)

    def close(self) -> None:
        """Ends the connection."""
        self.esys.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def translated() -> Iterator[None]:
    """TSS exceptions of the block as TpmError."""
    from tpm2_pytss import TSS2_Exception

    try:
        yield
    except TSS2_Exception as error:
        raise _in_words(int(error.rc), str(error)) from None


def _in_words(rc: int, text: str) -> TpmError:
    layer, code = rc >> _LAYER_SHIFT, rc & _CODE_MASK
    if layer == _MARSHALLING:
        return TpmError("tpm.blob", f"a TPM structure doesn't parse: {text}", "enrol or attest from the start")
    if layer not in _SAID_BY_A_TPM:
        return TpmError("tpm.unavailable", f"the TPM doesn't answer: {text}", "is it there, and does nothing block it?")
    base = code & _FORMAT_ONE_MASK if code & _FORMAT_ONE else code
    name, detail, hint = _CODES.get(base, ("tpm.failed", text, ""))
    return TpmError(name, f"{detail} (TPM answered 0x{code:03X})", hint)

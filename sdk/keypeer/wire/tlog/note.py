"""Signed notes (C2SP signed-note) with Ed25519 signatures and witnesses' cosignatures (C2SP tlog-cosignature)."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from keypeer.wire.encoding import WireError

ED25519 = 0x01  # signature types of signed-note
COSIGNATURE = 0x04  # tlog-cosignature: Ed25519, with the time
KEY_ID_BYTES = 4
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
NOTE_BYTES_MAX = 65_536  # bytes; a checkpoint has some 200 and each signature 150
SIGNATURES_MAX = 64  # signed-note wants 16 to be taken at least

_DASH = "\N{EM DASH}"


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key under its name. ``kind`` is ED25519 or COSIGNATURE."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """What tells it from other keys of the same name: 4 bytes."""
        head = self.name.encode() + b"\n" + bytes([self.kind])
        return hashlib.sha256(head + self.public).digest()[:KEY_ID_BYTES]

    def __str__(self) -> str:
        encoded = base64.b64encode(bytes([self.kind]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """``name+key id in hex+base64(kind ‖ public key)``. Raises WireError."""
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = _b64(encoded, "verifier key")
        if not is_key_name(name) or len(raw) != 1 + PUBLIC_BYTES or raw[0] not in (ED25519, COSIGNATURE):
            raise WireError("verifier key", "isn't NAME+ID+KEY with an Ed25519 key (C2SP signed-note)")
        key = cls(name, raw[0], raw[1:])
        if key.key_id.hex() != key_id:
            raise WireError("verifier key", f"{name}'s ID is {key.key_id.hex()}, not {key_id}")
        return key

    def verify(self, text: str, signature: bytes) -> int | None:
        """When a cosignature was made (Unix seconds), None of a plain signature. Raises WireError when it is wrong."""
        timestamp = None
        message, raw = text.encode(), signature
        if self.kind == COSIGNATURE:
            timestamp, raw = int.from_bytes(signature[:8], "big"), signature[8:]
            message = cosigned(text, timestamp)
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(raw, message)
        except (InvalidSignature, ValueError):
            raise WireError("signature", f"of {self.name} isn't its signature over this text") from None
        return timestamp


class Signature(NamedTuple):
    """One line below a note's text. ``line`` counts the note's lines from 1."""

    name: str
    key_id: bytes
    data: bytes
    line: int = 0

    def __str__(self) -> str:
        return f"{_DASH} {self.name} {base64.b64encode(self.key_id + self.data).decode()}\n"


class Note(NamedTuple):
    """A text (with its last newline) and the signatures below it, unverified."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return f"{self.text}\n{''.join(map(str, self.signatures))}"


class Verified(NamedTuple):
    """Whose signatures hold, with the time of a cosignature, and those of keys that aren't known."""

    by: dict[VerifierKey, int | None]
    unknown: tuple[Signature, ...]


def is_key_name(name: str) -> bool:
    """Not empty, no Unicode space, no plus, no control character."""
    return bool(name) and "+" not in name and not any(char.isspace() or char < " " for char in name)


def cosigned(text: str, timestamp: int) -> bytes:
    """What a witness signs at ``timestamp`` (Unix seconds) over a checkpoint's text."""
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


def parse_note(data: bytes) -> Note:
    """The note in ``data``. Raises WireError where it isn't exactly as signed-note has it."""
    if len(data) > NOTE_BYTES_MAX:
        raise WireError("note", f"has {len(data)} bytes; at most {NOTE_BYTES_MAX} are read")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise WireError("note", "isn't UTF-8") from None
    if any(char < " " and char != "\n" for char in whole):
        raise WireError("note", "holds control characters")
    text, separator, lines = whole.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        raise WireError("note", "has no signatures below an empty line, or doesn't end with a newline")
    return Note(text + "\n", parse_signatures(lines, text.count("\n") + 3))


def parse_signatures(lines: str, first: int = 1) -> tuple[Signature, ...]:
    """Signature lines, of which the first is line ``first``. Raises WireError."""
    found = lines.removesuffix("\n").split("\n")
    if len(found) > SIGNATURES_MAX:
        raise WireError("note", f"has {len(found)} signatures; at most {SIGNATURES_MAX} are read")
    return tuple(_signature(line, number) for number, line in enumerate(found, first))


def _signature(text: str, line: int) -> Signature:
    where = f"line {line}"
    dash, _, rest = text.partition(" ")
    name, _, encoded = rest.partition(" ")
    if dash != _DASH or not is_key_name(name):
        raise WireError(where, "is no signature line")
    raw = _b64(encoded, where)
    if len(raw) <= KEY_ID_BYTES:
        raise WireError(where, "has no signature in it")
    return Signature(name, raw[:KEY_ID_BYTES], raw[KEY_ID_BYTES:], line)


def verify_note(note: Note, keys: Iterable[VerifierKey]) -> Verified:
    """Checks every signature of the known keys. Raises WireError when one of them is wrong."""
    known = {(key.name, key.key_id): key for key in keys}
    by: dict[VerifierKey, int | None] = {}
    unknown = []
    for signature in note.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is None:
            unknown.append(signature)
            continue
        try:
            by[key] = key.verify(note.text, signature.data)
        except WireError as error:
            raise WireError(f"line {signature.line}", f"the signature {error.problem}") from None
    return Verified(by, tuple(unknown))


def _b64(text: str, where: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise WireError(where, "isn't base64 (RFC 4648 §4)") from None
    if base64.b64encode(raw).decode() != text:
        raise WireError(where, "isn't canonical base64 (RFC 4648 §3.5)")
    return raw

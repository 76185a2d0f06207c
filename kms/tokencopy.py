"""A SoftHSM token on its way to another node: the invitation that the other one gives, and the copy sealed to it.

SoftHSM keeps a token as a folder of files, their secrets encrypted under the PIN; a copy of the folder is the token.
It travels under HPKE (RFC 9180; X25519, HKDF-SHA-256, AES-256-GCM) to a key that the receiving node made for this one
copy. Whoever has the PIN and the copy's plaintext has every key, so nobody but that node may open it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from msgspec import Meta

from keypeer.wire.encoding import field
from kms import limits
from kms.errors import BadRequest

INVITATION = "keypeer-token-invitation/1"
COPY = "keypeer-token-copy/1"
_LABEL = b"keypeer/token-copy/v1"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
# SoftHSM names a token's folder by a UUID and the files in it by UUIDs with a suffix; nothing else may be written.
_FOLDER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,99}")

NodeName = Annotated[str, Meta(min_length=1, max_length=limits.NODE_NAME_CHARS_MAX, pattern=r"^[\x21-\x7e]+$")]
_T = TypeVar("_T", bound="Invitation | SealedCopy")


class Invitation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the receiving node hands out. ``public_key``: 32 bytes of X25519 in base64; ``made_at``: Unix seconds."""

    format: str = INVITATION
    node: NodeName
    made_at: int
    public_key: Annotated[str, Meta(max_length=64)]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything in it, hex: what people compare."""
        digest = hashlib.sha256(_LABEL)
        digest.update(field(self.node.encode()) + field(str(self.made_at).encode()) + field(self.public_key.encode()))
        return digest.hexdigest()


class SealedCopy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file that travels. ``to``: the invitation's fingerprint; ``sealed``: HPKE's encapsulated key and ciphertext,
    base64."""

    format: str = COPY
    node: NodeName
    to: str
    sealed: str


class TokenFolder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token as SoftHSM keeps it: its folder's name, and every file's bytes by name."""

    name: str
    files: dict[str, bytes]


def serial_of(folder: str) -> str:
    """The serial number that SoftHSM gives the token in a folder of this name: the end of its UUID."""
    return folder[19:23] + folder[24:]


def invite(private: X25519PrivateKey, node: str, now: int) -> Invitation:
    """``private`` is used for one copy and then forgotten."""
    raw = private.public_key().public_bytes_raw()
    return msgspec.convert({"node": node, "made_at": now, "public_key": base64.b64encode(raw).decode()}, Invitation)


def read_invitation(data: bytes, now: int) -> Invitation:
    """Raises BadRequest ``token.invitation`` for what is none, ``token.expired``."""
    invitation = _read(data, Invitation, INVITATION, "token.invitation")
    if not 0 <= now - invitation.made_at + limits.TOKEN_INVITATION_EARLY_S <= limits.TOKEN_INVITATION_LIFE_S:
        raise BadRequest(
            "token.expired",
            f"the invitation of {invitation.node} was made {now - invitation.made_at} s ago; it is good for "
            f"{limits.TOKEN_INVITATION_LIFE_S} s",
            hint="make another one there: keypeer token invite; or put the clocks right",
        )
    return invitation


def seal(token: TokenFolder, invitation: Invitation) -> bytes:
    """The file for the node of ``invitation``. Raises BadRequest ``token.invitation``."""
    try:
        public = X25519PublicKey.from_public_bytes(base64.b64decode(invitation.public_key, validate=True))
        sealed = _SUITE.encrypt(msgspec.msgpack.encode(token), public, _info(invitation))
    except ValueError as error:
        raise BadRequest("token.invitation", f"its public key is none: {error}", hint=_ANOTHER) from None
    copy = SealedCopy(node=invitation.node, to=invitation.fingerprint, sealed=base64.b64encode(sealed).decode())
    return msgspec.json.encode(copy) + b"\n"


def unseal(data: bytes, invitation: Invitation, private: X25519PrivateKey) -> TokenFolder:
    """The token in the file ``data``. Raises BadRequest ``token.copy`` (damaged, or nothing of SoftHSM's) and
    ``token.other_node``."""
    copy = _read(data, SealedCopy, COPY, "token.copy")
    if copy.to != invitation.fingerprint:
        raise BadRequest(
            "token.other_node",
            f"the copy is for node {copy.node}, invitation {copy.to[:16]}…; this node is {invitation.node} and gave "
            f"{invitation.fingerprint[:16]}…",
            hint="take it to that node, or clone again for this one's invitation",
        )
    try:
        opened = _SUITE.decrypt(base64.b64decode(copy.sealed, validate=True), private, _info(invitation))
        token = msgspec.msgpack.decode(opened, type=TokenFolder)
    except (InvalidTag, ValueError):
        raise BadRequest("token.copy", "the copy doesn't open: it was changed on its way", hint=_AGAIN) from None
    if not _FOLDER.fullmatch(token.name) or not all(map(_FILE.fullmatch, token.files)):
        raise BadRequest("token.copy", "what the copy holds is no token of SoftHSM's", hint=_AGAIN)
    return token


_ANOTHER = "make another one on the new node: keypeer token invite"
_AGAIN = "clone again: keypeer token clone"


def _info(invitation: Invitation) -> bytes:
    return field(_LABEL) + field(bytes.fromhex(invitation.fingerprint))


def _read(data: bytes, kind: type[_T], form: str, code: str) -> _T:
    try:
        found = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(code, f"this is no {form}: {error}", hint=_ANOTHER if form == INVITATION else _AGAIN) from None
    if found.format != form:
        raise BadRequest(code, f"it is of format {found.format}; this is {form}", hint="use the same keypeer on both")
    return found


def check_folder(name: str, files: Mapping[str, bytes]) -> TokenFolder:
    """A token's folder as it was found. Raises BadRequest ``token.not_softhsm``."""
    if not _FOLDER.fullmatch(name) or not files or not all(map(_FILE.fullmatch, files)):
        raise BadRequest(
            "token.not_softhsm",
            f"{name} isn't a token's folder of SoftHSM 2",
            hint="another HSM has ways of its own; let all nodes use one partition",
        )
    size = sum(map(len, files.values()))
    if size > limits.TOKEN_COPY_BYTES_MAX:
        raise BadRequest(
            "token.too_large",
            f"the token's files have {size:,} bytes; {limits.TOKEN_COPY_BYTES_MAX:,} are taken",
            hint="destroy versions of keys that nothing needs",
        )
    return TokenFolder(name=name, files=dict(files))
